"""What a look into the inbox costs: `python tests/benchmarks/inbox.py [--turns 10000] [--json FILE]`.

Turns that wait are made by telling the entities of the inbox what threads would tell; so it is the index that is
measured. The looks are `client.inbox(verify=False)`: with `verify` each turn costs the reading of its thread besides.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio

from dafx_actors import DurableAIAgentClient, DurableAIAgentWorker, durable_agent
from dafx_actors._json.asks import Asks
from dafx_actors._json.books import QuestionRecord
from dafx_actors.ids import AgentThread, asks_id
from dafx_actors.scheduler import EmbeddedScheduler
from dafx_actors.testing import ScriptedModel

LEFT = 10
GOALS = {"all": 300.0, "left": 5.0}
"""Milliseconds, for 10,000 turns."""


@durable_agent(model=ScriptedModel())
class Payer:
    """Asks."""

    instructions = "Pay."


def asks(number: int, *, waits: bool = True) -> Asks:
    """What the thread of a turn tells."""
    question = QuestionRecord.of(
        key="k",
        kind="approval",
        call_key="k",
        call_id="c",
        tool="refund",
        arguments={"order": f"A-{number}", "amount": 950},
        asked_at=datetime(2026, 1, 1, tzinfo=UTC),
    )
    thread, asked = AgentThread("Payer", f"thread-{number}"), [question] if waits else []
    return Asks.of(thread, f"turn-{number}", asked_at=question.asked_at, number=1 + (not waits), questions=asked)


async def looked(client: DurableAIAgentClient, many: int) -> float:
    """The median of some looks that find so many, in milliseconds."""
    taken: list[float] = []
    while len(taken) < 9:
        began = time.perf_counter()
        found = 0
        async for page in client.inbox(verify=False).pages(size=1_000):
            found += len(page.items)
        if found == many:
            taken.append((time.perf_counter() - began) * 1e3)
        else:
            await anyio.sleep(0.2)
    return statistics.median(taken)


async def measured(endpoint: str, turns: int) -> dict[str, float]:
    worker = DurableAIAgentWorker.connect(endpoint)
    worker.add_agent(Payer)
    async with DurableAIAgentClient.connect(endpoint) as client, worker:
        backend: Any = client._backend

        async def tell(numbers: range, *, waits: bool) -> None:
            for number in numbers:
                told = asks(number, waits=waits)
                await backend.signal(asks_id("Payer", told.turn), told.operation, told.dump())

        async def tell_all(numbers: range, *, waits: bool) -> None:
            async with anyio.create_task_group() as group:
                for first in range(32):
                    group.start_soon(functools.partial(tell, numbers[first::32], waits=waits))

        await tell_all(range(turns), waits=True)
        everything = await looked(client, turns)
        await tell_all(range(LEFT, turns), waits=False)
        return {"all": everything, "left": await looked(client, LEFT)}


def main(turns: int, file: str | None) -> None:
    with (
        tempfile.TemporaryDirectory() as folder,
        EmbeddedScheduler(db=Path(folder) / "dafx.db").on_a_thread() as scheduler,
    ):
        found = anyio.run(measured, scheduler.endpoint, turns)
    for name, taken in found.items():
        what = f"{turns:,} turns wait" if name == "all" else f"{LEFT} of them are left"
        print(f"{what}: a look takes {taken:.1f} ms (goal, for 10,000: {GOALS[name]:g} ms)")
    if file:
        Path(file).write_text(json.dumps({"turns": turns, **found}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=10_000)
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_args()
    main(arguments.turns, arguments.json)
