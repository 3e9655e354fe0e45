"""Cancel against the start of a tool: `python -m tests.integration.races [--races N] [--seed S] [--json FILE]`.

In each race a turn is about to call a tool, and is cancelled at a random moment. The tool notes the time just before it
acts, and the client when `cancel()` has returned True. A tool acts after it has read in its thread that the turn goes
on, so two things are told apart:

*acted after the acknowledgement*: the tool acted later than the client was told.
*read after the acknowledgement*: it had also read the thread after that, and went on all the same. That must not be;
without it, the read came before the mark and only the act came late, which no reader of a mark can exclude.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import attrs

from dafx_actors import DurableAIAgentClient, DurableAIAgentWorker, ToolContext, tool
from dafx_actors._turns.activities import Steps
from dafx_actors.errors import TurnCancelled
from dafx_actors.scheduler import EmbeddedScheduler
from tests.integration.turns import agent, is_balanced, whenever_asked

AT_A_TIME = 8


@attrs.define
class Report:
    """What became of the races."""

    races: int = 0
    cancelled_first: int = 0
    """The tool never acted."""
    acted_first: int = 0
    answered: int = 0
    """The turn had ended before it was cancelled."""
    acted_after: list[str] = attrs.field(factory=list[str])
    read_after: list[str] = attrs.field(factory=list[str])
    unbalanced: list[str] = attrs.field(factory=list[str])
    seconds: float = 0.0

    @property
    def clean(self) -> bool:
        return not (self.read_after or self.unbalanced)


class Track:
    """Where the races are run: a worker whose tool notes when it read its thread and when it acted."""

    def __init__(self) -> None:
        self.read: dict[str, float] = {}
        self.acted: dict[str, float] = {}

    @tool
    def act(self, context: ToolContext) -> None:
        self.acted[context.correlation_id] = time.monotonic()

    def noting_reads(self, read: Callable[..., Any]) -> Callable[..., Any]:
        """`Steps._read`, and a note of when it began for the calls of tools."""

        def noted(hosted: Steps, thread: Any, turn: str, length: int) -> Any:
            begun = time.monotonic()
            found = read(hosted, thread, turn, length)
            self.read[turn] = begun  # of the latest step, which is the tool's where it acts
            return found

        return noted


async def race(client: DurableAIAgentClient, track: Track, turn: str, wait: float, report: Report) -> None:
    """One turn, cancelled so many seconds after its start."""
    worker = client.get_agent("Worker")
    handle = await worker.start("Act", thread=turn, correlation_id=turn)
    await anyio.sleep(wait)
    acknowledged = time.monotonic() if await handle.cancel() else None
    noted = time.monotonic()
    with suppress(TurnCancelled):
        await handle
    report.races += 1
    # A tool that had read before the mark may still be on its way.
    await anyio.sleep(0.02)
    acted, read = track.acted.get(turn), track.read.get(turn, 0.0)
    if acknowledged is None:
        report.answered += 1
    elif acted is None:
        report.cancelled_first += 1
    elif acted > noted:
        report.acted_after.append(f"{turn}: {acted - noted:.6f} s")
        if read > noted:
            report.read_after.append(turn)
    else:
        report.acted_first += 1
    if not is_balanced(await worker.get_transcript(turn)):
        report.unbalanced.append(turn)


async def run(races: int, seed: int) -> Report:
    """Run so many races, a few at a time."""
    report, chance, begun, track = Report(), random.Random(seed), time.monotonic(), Track()
    original = Steps._read
    Steps._read = track.noting_reads(original)  # type: ignore[method-assign]
    try:
        with tempfile.TemporaryDirectory() as folder, EmbeddedScheduler(db=Path(folder) / "r.db").on_a_thread() as s:
            worker = DurableAIAgentWorker.connect(s.endpoint)
            worker.add_agent(agent(whenever_asked(("act", {})), track.act))
            worker.start()  # on a loop of its own, apart from the client's
            try:
                async with DurableAIAgentClient.connect(s.endpoint) as client:
                    await client.get_agent("Worker").run("Act", correlation_id="warm-up")
                    limiter = anyio.CapacityLimiter(AT_A_TIME)

                    async def one(number: int) -> None:
                        async with limiter:
                            await race(client, track, f"race-{number}", chance.uniform(0, 0.3), report)

                    async with anyio.create_task_group() as tasks:
                        for number in range(races):
                            tasks.start_soon(one, number)
            finally:
                await anyio.to_thread.run_sync(worker.stop)
    finally:
        Steps._read = original  # type: ignore[method-assign]
    report.seconds = time.monotonic() - begun
    return report


def main() -> int:
    """Run them and print what became of them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--races", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    report = anyio.run(run, arguments.races, arguments.seed)
    figures = {"seed": arguments.seed, **attrs.asdict(report)}
    print(json.dumps(figures, indent=2))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")
    return 0 if report.clean else 1


if __name__ == "__main__":
    sys.exit(main())
