"""Deployments and crashes under a client that sends again: `python -m tests.integration.deployments [--kills N]`.

Turns of five tools, ten at a time, from one client, which sends a request again, under the same correlation id and in
the same thread, whenever it is told that there was no answer. Meanwhile the scheduler and the workers, which are
processes, are killed (SIGKILL) one after the other; every fourth time all workers are killed at once and are away for a
while, as in a deployment. `--load` processes do nothing but burn processor time beside all that.

*lost*: a request without an answer. *wrong*: one with another answer. *twice*: a tool call that acted twice (each is
`effect="once"`, and can look up what became of it), or a turn that stands in its thread twice. All must be 0, and so
must be *raised*: what the client saw and does not know, such as a bare CancelledError. How often it had to send again,
and why, is told for interest.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import anyio
import attrs

from dafx_actors import (
    DurableAIAgentClient,
    DurableAIAgentWorker,
    ModelRequest,
    NotDone,
    ToolContext,
    durable_agent,
    tool,
)
from dafx_actors.errors import AgentNotHosted, SchedulerError, TurnTimeout
from dafx_actors.testing import ScriptedModel, call
from dafx_actors.testing._model import Reply
from dafx_actors.transcript import Request
from tests.chaos.effects import Effects
from tests.conftest import free_port
from tests.scheduler.kills import Victim

TOOLS = 5
AT_A_TIME = 10
WORKERS = 2
AFTER_THE_LAST_KILL = 120.0
"""Seconds that a turn may take to be answered when nothing is killed any more."""


def reply(request: ModelRequest) -> Reply:
    """Five tools, one after the other; how far a turn is shows in what it is asked with."""
    begun = max(n for n, message in enumerate(request.messages) if message.role == "user")
    steps = sum(message.role == "assistant" for message in request.messages[begun:])
    return call("act", number=steps) if steps < TOOLS else "Done."


@durable_agent(name="Clerk", model=ScriptedModel(reply))
class Clerk:
    """Acts, where everybody can see it."""

    instructions = "You do as the script says."

    def __init__(self, folder: Path) -> None:
        self._effects = Effects(folder / "effects")

    async def find(self, number: int, context: ToolContext) -> str:
        if self._effects.look_up(context.idempotency_key, context.attempt):
            return f"did {number}"
        raise NotDone

    @tool(effect="once", reconcile=find)
    async def act(self, number: int, context: ToolContext) -> str:
        """Act."""
        self._effects.begin(context.idempotency_key, context.attempt)
        await anyio.sleep(0.01)
        self._effects.act(context.idempotency_key, context.attempt)
        return f"did {number}"


def run_worker(endpoint: str, folder: Path) -> None:
    """A worker process, until it is killed or its standard input is closed."""
    worker = DurableAIAgentWorker.connect(endpoint)
    worker.add_agent(Clerk(folder))
    worker.start()
    print("ready", flush=True)
    sys.stdin.read()
    os._exit(0)


def run_scheduler(port: int, folder: Path) -> None:
    """Likewise, a scheduler."""
    from dafx_actors.scheduler import EmbeddedScheduler

    with EmbeddedScheduler(db=folder / "dafx.db", port=port).on_a_thread():
        print("ready", flush=True)
        sys.stdin.read()
        os._exit(0)


@attrs.define
class Report:
    """What became of it."""

    turns: int = 0
    kills: int = 0
    outages: int = 0
    """Times that all workers were away."""
    sent_again: Counter[str] = attrs.field(factory=Counter[str])
    """By the error after which."""
    lost: list[str] = attrs.field(factory=list[str])
    wrong: list[str] = attrs.field(factory=list[str])
    twice: list[str] = attrs.field(factory=list[str])
    raised: list[str] = attrs.field(factory=list[str])
    seconds: float = 0.0

    @property
    def clean(self) -> bool:
        return not (self.lost or self.wrong or self.twice or self.raised)


@attrs.define
class Campaign:
    """One run: processes, a client's book, and what is found at the end."""

    folder: Path
    turns: int
    kills: int
    pause: float
    """Seconds between two kills, at most."""
    away: float
    """Seconds that all workers are away."""
    rng: random.Random
    report: Report = attrs.field(factory=Report)
    scheduler: Victim = attrs.field(init=False)
    workers: list[Victim] = attrs.field(init=False)
    endpoint: str = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        port, here = free_port(), ["-m", "tests.integration.deployments"]
        self.endpoint = f"http://127.0.0.1:{port}"
        self.scheduler = Victim("scheduler", [*here, "scheduler", str(port), str(self.folder)])
        self.workers = [
            Victim(f"worker {n}", [*here, "worker", self.endpoint, str(self.folder)]) for n in range(WORKERS)
        ]

    async def run(self) -> Report:
        begun = time.monotonic()
        with ExitStack() as running:
            for victim in (self.scheduler, *self.workers):
                await self._start(victim)
                running.callback(victim.kill)
            async with DurableAIAgentClient.connect(self.endpoint) as client:
                over = anyio.Event()
                try:
                    async with anyio.create_task_group() as tasks:
                        tasks.start_soon(self._kill, over)
                        slots = anyio.CapacityLimiter(AT_A_TIME)
                        for number in range(self.turns):
                            tasks.start_soon(self._ask, client, number, slots, over)
                except BaseException as error:
                    self.report.raised.append(repr(error))
                    if not isinstance(error, Exception):
                        raise
                await self._look(client)
        self.report.seconds = time.monotonic() - begun
        return self.report

    async def _start(self, victim: Victim) -> None:
        victim.start()
        await victim.ready()

    async def _kill(self, over: anyio.Event) -> None:
        """One after the other, at random moments."""
        for number in range(self.kills):
            await anyio.sleep(self.rng.uniform(0.2, 1.0) * self.pause)
            if number % 4 == 3:
                for worker in self.workers:
                    worker.kill()
                self.report.outages += 1
                await anyio.sleep(self.away)
                for worker in self.workers:
                    await self._start(worker)
            else:
                victim = self.rng.choice([self.scheduler, *self.workers])
                victim.kill()
                await self._start(victim)
            self.report.kills += 1
        over.set()

    async def _ask(
        self, client: DurableAIAgentClient, number: int, slots: anyio.CapacityLimiter, over: anyio.Event
    ) -> None:
        """Send a request until it is answered. Every other time with a timeout, which ends in the middle of things."""
        name, clerk = f"turn-{number}", client.get_agent("Clerk")
        # So that there is one on its way at every kill, and not a crowd at the first.
        await anyio.sleep(self.kills * self.pause * 0.6 * number / self.turns)
        async with slots:
            give_up = time.monotonic() + AFTER_THE_LAST_KILL
            while True:
                try:
                    timeout = self.rng.uniform(0.5, 5.0) if self.rng.random() < 0.5 else None
                    answer = await clerk.run("Go.", thread=f"thread-{number}", correlation_id=name, timeout=timeout)
                    break
                except (AgentNotHosted, SchedulerError, TurnTimeout) as error:
                    self.report.sent_again[type(error).__name__] += 1
                if over.is_set() and time.monotonic() > give_up:
                    self.report.lost.append(name)
                    return
                if not over.is_set():
                    give_up = time.monotonic() + AFTER_THE_LAST_KILL
                await anyio.sleep(0.1)
        self.report.turns += 1
        if answer.text != "Done.":
            self.report.wrong.append(f"{name}: {answer.text}")

    async def _look(self, client: DurableAIAgentClient) -> None:
        for number in range(self.turns):
            transcript = await client.get_agent("Clerk").get_transcript(f"thread-{number}")
            asked = [entry.correlation_id for entry in transcript.entries if isinstance(entry, Request)]
            if len(asked) != len(set(asked)):
                self.report.twice.append(f"turn-{number} in its thread")
        acted = Effects(self.folder / "effects").all()
        self.report.twice += [key for key, did in acted.items() if sum(word == "acted" for word, _ in did) > 1]
        done = sum(any(word == "acted" for word, _ in did) for did in acted.values())
        if not self.report.lost and done != self.turns * TOOLS:
            self.report.wrong.append(f"{done} calls acted, and not {self.turns * TOOLS}")


def _burn() -> None:
    while True:
        sum(range(10_000))


@contextmanager
def load(processes: int) -> Generator[None]:
    """Keep processors busy."""
    context = multiprocessing.get_context("spawn")
    burning = [context.Process(target=_burn, daemon=True) for _ in range(processes)]
    for process in burning:
        process.start()
    try:
        yield
    finally:
        for process in burning:
            process.kill()
            process.join()


async def run(*, turns: int, kills: int, pause: float, away: float, seed: int, busy: int = 0) -> Report:
    """See the module."""
    with tempfile.TemporaryDirectory() as folder, load(busy):
        return await Campaign(Path(folder), turns, kills, pause, away, random.Random(seed)).run()


def main() -> int:
    if sys.argv[1:2] == ["worker"]:
        run_worker(sys.argv[2], Path(sys.argv[3]))
    if sys.argv[1:2] == ["scheduler"]:
        run_scheduler(int(sys.argv[2]), Path(sys.argv[3]))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=150)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--pause", type=float, default=5.0, help="seconds between two kills, at most")
    parser.add_argument("--away", type=float, default=13.0, help="seconds that all workers are away")
    parser.add_argument("--load", type=int, default=2, help="processes that burn processor time")
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    report: Report = anyio.run(
        lambda: run(
            turns=asked.turns, kills=asked.kills, pause=asked.pause, away=asked.away, seed=asked.seed, busy=asked.load
        )
    )
    found: dict[str, Any] = attrs.asdict(report)
    print(json.dumps(found, indent=2))
    return 0 if report.clean else 1


if __name__ == "__main__":
    sys.exit(main())
