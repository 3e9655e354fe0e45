"""Crashes of the worker: `python -m tests.integration.faults [--every] [--crashes N] [--seed S] [--json FILE]`.

A turn of ten steps (four model calls and six tool calls, some at the same time, two that may act only once, one that
waits for a person) runs again and again, while its worker crashes: with `--every` once before, after and upon the
record of each piece of work that an undisturbed turn is made of; with `--crashes` at random points, several in a turn.

*completed steps run again*: a model or tool call that was begun again after its result was recorded.
*lost*: a turn that did not come to its answer. *answered twice*: a request or an answer that stands twice in its
thread, or a tool call without exactly one result.
*repeated effects*: a call with `effect="once"` that has acted twice. *silent re-runs*: one that was made again
although neither its `reconcile` nor a person said that it had not acted.
All must be 0. How often a step in flight was made again, and who was asked what became of a call, is told for interest.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import anyio
import attrs

from dafx_actors import ModelRequest, ToolContext, durable_agent, tool
from dafx_actors.errors import NotDone
from dafx_actors.ids import AgentThread
from dafx_actors.testing import AgentHost, Point, ScriptedModel, call
from dafx_actors.testing._model import Reply
from dafx_actors.transcript import FunctionCallContent, FunctionResultContent, Request, Response, Transcript

STEPS: list[Reply] = [
    [call("look", city="Oslo"), call("look", city="Rome")],
    [call("charge", amount=5), call("notify", text="charged")],
    [call("refund", amount=2), call("look", city="Bonn")],
    "Done.",
]
ENDED = ("completed", "failed", "terminated", "cancelled")
CHANCE = 0.02
"""Of a crash at each point."""


@attrs.define
class World:
    """What the tools act on; it outlives every worker."""

    entered: Counter[str] = attrs.field(factory=Counter[str])
    """By idempotency key, of tools that may act only once."""
    acted: Counter[str] = attrs.field(factory=Counter[str])
    cleared: Counter[str] = attrs.field(factory=Counter[str])
    """How often somebody found that the call had not acted."""
    reconciled: int = 0

    async def act_once(self, key: str) -> None:
        self.entered[key] += 1
        await anyio.lowlevel.checkpoint()
        self.acted[key] += 1
        await anyio.lowlevel.checkpoint()


def reply(request: ModelRequest) -> Reply:
    """By how far the turn is, and not by how often it was asked: a call that was cut off is made again."""
    begun = max(n for n, message in enumerate(request.messages) if message.role == "user")
    return STEPS[sum(message.role == "assistant" for message in request.messages[begun:])]


@durable_agent(model=ScriptedModel(reply))
class Clerk:
    """Has tools of every sort."""

    instructions = "You do as the script says."

    def __init__(self, world: World) -> None:
        self._world = world

    @tool
    async def look(self, city: str) -> str:
        """Look at the weather."""
        await anyio.lowlevel.checkpoint()
        return f"fine in {city}"

    @tool(effect="once", reconcile="find_charge")
    async def charge(self, amount: int, context: ToolContext) -> str:
        """Take money."""
        await self._world.act_once(context.idempotency_key)
        return f"took {amount}"

    async def find_charge(self, amount: int, context: ToolContext) -> str:
        self._world.reconciled += 1
        if not self._world.acted[context.idempotency_key]:
            self._world.cleared[context.idempotency_key] += 1
            raise NotDone
        return f"took {amount}"

    @tool(effect="once")
    async def notify(self, text: str, context: ToolContext) -> str:
        """Send a letter."""
        await self._world.act_once(context.idempotency_key)
        return f"sent {text}"

    @tool(approval=True)
    async def refund(self, amount: int) -> str:
        """Give money back."""
        await anyio.lowlevel.checkpoint()
        return f"gave {amount}"


RESULTS = ["fine in Oslo", "fine in Rome", "took 5", "sent charged", "gave 2", "fine in Bonn"]


@attrs.define
class Report:
    """What became of it."""

    turns: int = 0
    crashes: int = 0
    where: Counter[str] = attrs.field(factory=Counter[str])
    """The crashes, by point and kind of work."""
    not_met: list[str] = attrs.field(factory=list[str])
    """Planned crashes at points that the turn did not come by this time."""
    steps_made_again: int = 0
    reconciled: int = 0
    asked_a_person: int = 0
    completed_steps_run_again: list[str] = attrs.field(factory=list[str])
    lost: list[str] = attrs.field(factory=list[str])
    answered_twice: list[str] = attrs.field(factory=list[str])
    repeated_effects: list[str] = attrs.field(factory=list[str])
    silent_reruns: list[str] = attrs.field(factory=list[str])
    seconds: float = 0.0

    @property
    def clean(self) -> bool:
        return not (
            self.completed_steps_run_again
            or self.lost
            or self.answered_twice
            or self.repeated_effects
            or self.silent_reruns
        )


class Desk:
    """Has turns taken, and decides what they wait for."""

    def __init__(self, host: AgentHost, world: World, report: Report) -> None:
        self._host, self._world, self._report = host, world, report

    async def take_turn(self, about: str) -> None:
        self._report.turns += 1
        clerk = self._host.client.get_agent(Clerk)
        thread, minutes = clerk.get_new_thread(), 10
        try:
            with anyio.fail_after(60):
                turn = await clerk.start("Do it", thread=thread)
                await self._host.settled()
                while (status := await turn.status()).state not in ENDED:
                    # Work that was cut off often is handed out again after a pause, which grows to a minute.
                    if not await self._decide(thread):
                        await self._host.advance(60)
                        minutes -= 1
                        assert minutes, f"it stands still: {status}"
                    await self._host.settled()
                answer = (await turn).text
        except Exception as error:
            self._report.lost.append(f"{about}: {error!r}")
            return
        if answer != "Done.":
            self._report.lost.append(f"{about}: answered {answer!r}")
        self._check(about, await clerk.get_transcript(thread))

    async def _decide(self, thread: AgentThread) -> bool:
        """What waits for a person, after a look at the world; whether anything did."""
        client = self._host.client
        approvals = await client.pending_approvals(Clerk, thread)
        outcomes = await client.pending_outcomes(Clerk, thread)
        for asked in approvals:
            await self._host.fast_forward(client.approve(asked, by="the desk"))
        for unknown in outcomes:
            self._report.asked_a_person += 1
            key = unknown.key.partition(".outcome")[0]  # the call's; each question about it has one of its own
            if self._world.acted[key]:
                resolving = client.resolve(unknown, "result", result="sent charged", by="the desk")
            else:
                self._world.cleared[key] += 1
                resolving = client.resolve(unknown, "retry", by="the desk")
            await self._host.fast_forward(resolving)
        return bool(approvals or outcomes)

    def _check(self, about: str, transcript: Transcript) -> None:
        kinds = Counter(type(entry) for entry in transcript.entries)
        if kinds != {Request: 1, Response: 1} or transcript.draft:
            self._report.answered_twice.append(f"{about}: {kinds}")
        contents = [content for message in transcript for content in message.contents]
        calls = [content.call_id for content in contents if isinstance(content, FunctionCallContent)]
        results = [content for content in contents if isinstance(content, FunctionResultContent)]
        if len(calls) != 6 or sorted(calls) != sorted(result.call_id for result in results):
            self._report.answered_twice.append(f"{about}: calls {calls}, results {results}")
        elif [result.result for result in results] != RESULTS:
            self._report.lost.append(f"{about}: results {results}")


def check(host: AgentHost, world: World, report: Report) -> None:
    """Look back at all that was run."""
    recorded: set[tuple[str, int]] = set()
    begun: Counter[tuple[str, int]] = Counter()
    for point in host.passed:
        if point.kind not in ("model", "tool") or point.task_id is None:
            continue
        step = (point.instance_id, point.task_id)
        if point.when == "before":
            begun[step] += 1
            if step in recorded:
                report.completed_steps_run_again.append(str(point))
        elif point.when == "recorded":
            recorded.add(step)
    report.steps_made_again = sum(times - 1 for times in begun.values())
    report.repeated_effects = [key for key, times in world.acted.items() if times > 1]
    report.silent_reruns = [key for key, times in world.entered.items() if times > 1 + world.cleared[key]]
    report.reconciled = world.reconciled
    report.crashes = len(host.crashes)
    report.where = Counter(f"{point.when} {point.kind}" for point in host.crashes)


async def crash_at_every_point(most: int | None = None, seed: int = 0) -> Report:
    """A turn for each point that an undisturbed turn passes, with a crash there; or for `most` of them."""
    report, world, begun = Report(), World(), time.monotonic()
    async with AgentHost(Clerk(world)) as host:
        desk = Desk(host, world, report)
        await desk.take_turn("undisturbed")
        await host.settled()
        seen: Counter[tuple[str, str, str]] = Counter()
        points: list[Point] = []
        for point in host.passed:
            seen[point.when, point.kind, point.name] += 1
            points.append(attrs.evolve(point, nth=seen[point.when, point.kind, point.name]))
        if most is not None and most < len(points):
            points = random.Random(seed).sample(points, most)
        for point in points:
            where: dict[str, Any] = {point.when: point.kind}
            fault = host.crash(**where, name=point.name, nth=point.nth)
            await desk.take_turn(str(point))
            if fault.point is None:
                report.not_met.append(str(point))
                fault.cancel()
        await host.settled()
        check(host, world, report)
    report.seconds = time.monotonic() - begun
    return report


async def crash_at_random(crashes: int, seed: int, chance: float = CHANCE) -> Report:
    """Turns with crashes at random points, until there were so many."""
    report, world, begun, rolls = Report(), World(), time.monotonic(), random.Random(seed)
    done = 0

    def faults(_: Point) -> bool:
        nonlocal done
        crash = done < crashes and rolls.random() < chance
        done += crash
        return crash

    async with AgentHost(Clerk(world), faults=faults) as host:
        desk = Desk(host, world, report)
        while done < crashes:
            await desk.take_turn(f"turn {report.turns + 1}, seed {seed}")
        await host.settled()
        check(host, world, report)
    report.seconds = time.monotonic() - begun
    return report


def main() -> int:
    """Run it and print what became of it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--every", action="store_true", help="crash once at each point of the turn")
    parser.add_argument("--crashes", type=int, default=1000, help="how many at random points")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    reports: dict[str, Report] = {}
    if arguments.every:
        reports["every point"] = anyio.run(crash_at_every_point)
    if arguments.crashes:
        reports[f"random, seed {arguments.seed}"] = anyio.run(crash_at_random, arguments.crashes, arguments.seed)
    figures = {name: attrs.asdict(report) for name, report in reports.items()}
    print(json.dumps(figures, indent=2))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")
    return 0 if all(report.clean for report in reports.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
