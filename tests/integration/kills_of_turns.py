"""Conversations with tools under kill -9.

::

    python -m tests.integration.kills_of_turns [--kills N] [--seed S] [--json FILE]

A scheduler and two workers are real processes, of which one after the other is killed (SIGKILL) at random moments and
started again, while clients have conversations: on each thread two of them talk at the same time, so that turns queue.
Every turn looks something up, some pay (which may happen only once), and some sign a paper, which a person allows.
At the end what the clients were told is compared with what the threads remember.

*lost*: an answer that a client saw and its thread does not hold, or an error that a client got instead of one.
*repeated*: a request that stands twice in its thread, or was answered twice.
*out of order*: an answer that had not seen exactly what stands before it.
*stuck*: a turn that has not ended a minute after the last kill.
*paid twice*, *not paid*: what a turn paid stands in the book more than once, or not at all though it was answered.
*not allowed*: a paper that was signed before anybody allowed it.
All of them must be 0. A step in flight may be made again after a kill; how many were is told for interest.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from pathlib import Path

import anyio
import attrs

from dafx_actors import (
    DurableAIAgent,
    DurableAIAgentClient,
    DurableAIAgentWorker,
    ModelReply,
    ToolContext,
    Turn,
    durable_agent,
    tool,
)
from dafx_actors.errors import DafxError
from dafx_actors.transcript import Response
from tests.conftest import free_port
from tests.integration.turns import asks
from tests.scheduler.kills import Victim

THREADS = 4
TALKERS = 2
"""On each thread at the same time."""
AFTER_THE_LAST_KILL = 60.0


LONGEST_PAYMENT = 0.05


@durable_agent
class Witness:
    """Uses its tools, and then says what it was asked, and how many requests stood before that."""

    def __init__(self, log: Path) -> None:
        self._log = log

    def _note(self, name: str, line: str) -> None:
        with self._log.with_name(name).open("a") as book:
            book.write(f"{line}\n")

    async def respond(self, turn: Turn) -> ModelReply | str:
        self._note(self._log.name, f"{turn.correlation_id}.{len(turn.messages)}")
        await anyio.sleep(random.uniform(0, 0.05))
        if turn.messages[-1].role == "user" and turn.tools:
            wanted = [name for name, every in TOOLS.items() if sum(turn.correlation_id.encode()) % every == 0]
            return asks(*[(name, {}) for name in wanted])
        return f"{turn.text} after {sum(message.role == 'user' for message in turn.messages) - 1}"

    @tool
    async def look(self, context: ToolContext) -> str:
        await anyio.sleep(random.uniform(0, 0.02))
        return context.idempotency_key

    @tool(effect="once")
    async def pay(self, context: ToolContext) -> str:
        await anyio.sleep(random.uniform(0, LONGEST_PAYMENT))
        self._note("paid", context.idempotency_key)
        await anyio.sleep(random.uniform(0, LONGEST_PAYMENT))
        return "paid"

    @tool(approval=True)
    def sign(self, context: ToolContext) -> str:
        self._note("signed", context.idempotency_key)
        return "signed"


TOOLS = {"look": 1, "pay": 2, "sign": 3}
"""Of how many turns one uses each."""


def run_worker(endpoint: str, log: Path) -> None:
    """A worker process, until it is killed or its standard input is closed."""
    worker = DurableAIAgentWorker.connect(endpoint)
    worker.add_agent(Witness(log))
    worker.start()
    print("ready", flush=True)
    sys.stdin.read()
    os._exit(0)


@attrs.define
class Report:
    """What became of it."""

    kills: Counter[str] = attrs.field(factory=Counter[str])
    answers: int = 0
    steps_made_again: int = 0
    lost: list[str] = attrs.field(factory=list[str])
    repeated: list[str] = attrs.field(factory=list[str])
    out_of_order: list[str] = attrs.field(factory=list[str])
    stuck: list[str] = attrs.field(factory=list[str])
    payments: int = 0
    allowed: int = 0
    outcomes_asked_for: int = 0
    """Payments that were cut off, so that somebody had to look into the book."""
    paid_twice: list[str] = attrs.field(factory=list[str])
    not_paid: list[str] = attrs.field(factory=list[str])
    not_allowed: list[str] = attrs.field(factory=list[str])
    seconds: float = 0.0

    @property
    def clean(self) -> bool:
        wrong = (self.lost, self.repeated, self.out_of_order, self.stuck)
        return not any((*wrong, self.paid_twice, self.not_paid, self.not_allowed))


class Talkers:
    """Clients that talk until they are told to stop, and note what they were answered."""

    def __init__(self, agent: DurableAIAgent, report: Report) -> None:
        self.told: dict[str, dict[str, str]] = {f"thread-{number}": {} for number in range(THREADS)}
        """By thread and correlation id."""
        self.stopping = False
        self.asking: set[str] = set()
        self._agent = agent
        self._report = report

    async def talk(self, thread: str, talker: int) -> None:
        number = 0
        while not self.stopping:
            number += 1
            turn = f"{thread}.{talker}.{number}"
            self.asking.add(turn)
            try:
                answer = await self._agent.run(f"<{turn}>", thread=thread, correlation_id=turn)
            except Exception as error:
                self._report.lost.append(f"{turn}: {error!r}")
            else:
                self.told[thread][turn] = answer.text
            self.asking.discard(turn)


class Person:
    """Allows papers to be signed, and finds out what became of payments that were cut off."""

    def __init__(self, client: DurableAIAgentClient, folder: Path, report: Report) -> None:
        self._client = client
        self._folder = folder
        self._report = report
        self.allowed: set[str] = set()

    async def work(self) -> None:
        while True:
            with suppress(DafxError):  # the scheduler is away, or the turn has gone on meanwhile: look again
                await self._look()
            await anyio.sleep(0.1)

    async def _look(self) -> None:
        for pending in await self._client.pending_approvals(Witness):
            self.allowed.add(pending.key)
            await self._client.approve(pending, by="a person")
        for pending in await self._client.pending_outcomes(Witness):
            # A payment that lost its scheduler, and not its worker, may still be on its way.
            if datetime.now(timezone.utc) - pending.asked_at < timedelta(seconds=1):
                continue
            paid = pending.key.split(".outcome")[0] in lines_of(self._folder / "paid")
            if paid:
                await self._client.resolve(pending, "result", result="paid, says the book", by="a person")
            else:
                await self._client.resolve(pending, "retry", by="a person")
            self._report.outcomes_asked_for += 1


def lines_of(path: Path) -> list[str]:
    return path.read_text().split() if path.exists() else []


async def run(kills: int, seed: int, *, pause: float = 0.5) -> Report:
    """Kill so many times while clients talk, then wait and check."""
    report, begun = Report(), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        endpoint, log = f"http://127.0.0.1:{free_port()}", Path(folder) / "steps.log"
        options = ["--port", endpoint.rsplit(":", 1)[1], "--db", f"{folder}/kills.db", "--log-level", "error"]
        scheduler = Victim("scheduler", ["-m", "dafx_actors.cli", "scheduler", *options])
        own = ["-m", "tests.integration.kills_of_turns", "--run-worker", endpoint, str(log)]
        victims = [scheduler, Victim("worker 1", own), Victim("worker 2", own)]
        try:
            for victim in victims:
                victim.start()
                await victim.ready()
            async with DurableAIAgentClient.connect(endpoint, start_timeout=AFTER_THE_LAST_KILL) as client:
                agent = client.get_agent(Witness)
                talkers, person = Talkers(agent, report), Person(client, Path(folder), report)
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(person.work)
                    await talk_under_fire(talkers, victims, kills, pause, random.Random(seed), report)
                    tasks.cancel_scope.cancel()
                check_effects(Path(folder), person.allowed, [t for told in talkers.told.values() for t in told], report)
                for thread, told in talkers.told.items():
                    check(thread, told, (await agent.get_transcript(thread)).entries, report)
            steps = Counter(log.read_text().split())
            report.steps_made_again = sum(times - 1 for times in steps.values())
        finally:
            for victim in victims:
                if victim.process is not None:
                    victim.kill()
    report.seconds = time.monotonic() - begun
    return report


async def talk_under_fire(
    talkers: Talkers, victims: list[Victim], kills: int, pause: float, chance: random.Random, report: Report
) -> None:
    async with anyio.create_task_group() as tasks:
        for thread in talkers.told:
            for talker in range(TALKERS):
                tasks.start_soon(talkers.talk, thread, talker)
        for _ in range(kills):
            await anyio.sleep(chance.uniform(0, 2 * pause))
            victim = chance.choice([victims[0], *victims])
            victim.kill()
            victim.start()
            report.kills[victim.name] += 1
            await victim.ready()
        talkers.stopping = True
        with anyio.move_on_after(AFTER_THE_LAST_KILL):
            while talkers.asking:
                await anyio.sleep(0.05)
        report.stuck += sorted(talkers.asking)
        tasks.cancel_scope.cancel()


def check_effects(folder: Path, allowed: set[str], answered: list[str], report: Report) -> None:
    """Compare what tools did with what turns and persons asked for."""
    paid, signed = Counter(lines_of(folder / "paid")), Counter(lines_of(folder / "signed"))
    turns_that_paid = {key.rsplit(".", 2)[0] for key in paid}
    asked = [turn for turn in answered if sum(turn.encode()) % TOOLS["pay"] == 0]
    report.payments, report.allowed = len(paid), len(allowed)
    report.paid_twice += [key for key, times in paid.items() if times > 1]
    report.not_paid += [turn for turn in asked if turn not in turns_that_paid]
    report.not_allowed += sorted(signed.keys() - allowed)


def check(thread: str, told: dict[str, str], entries: tuple[object, ...], report: Report) -> None:
    """Compare what clients were told with what their thread remembers, in its order."""
    seen = Counter((type(entry).__name__, getattr(entry, "correlation_id", None)) for entry in entries)
    report.repeated += [f"{thread}: {kind} {turn}" for (kind, turn), times in seen.items() if times > 1]
    responses = [entry for entry in entries if isinstance(entry, Response)]
    stored = {response.correlation_id: response.text for response in responses}
    report.lost += [f"{turn}: told {text!r}" for turn, text in told.items() if stored.get(turn) != text]
    for number, response in enumerate(responses):
        if response.text != f"<{response.correlation_id}> after {number}":
            report.out_of_order.append(f"{thread}: {response.text!r} is answer {number}")
    report.answers += len(told)


def main() -> int:
    """Run it and print what became of it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--run-worker", nargs=2, metavar=("ENDPOINT", "LOG"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run_worker:
        run_worker(arguments.run_worker[0], Path(arguments.run_worker[1]))
    report = anyio.run(run, arguments.kills, arguments.seed)
    figures = {"seed": arguments.seed, **attrs.asdict(report)}
    print(json.dumps(figures, indent=2))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")
    return 0 if report.clean else 1


if __name__ == "__main__":
    sys.exit(main())
