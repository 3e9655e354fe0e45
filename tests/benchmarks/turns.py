"""How a worker bears many turns: `python tests/benchmarks/turns.py [--json FILE] [--turns N ...]`.

Everything is real but the model, which sleeps: a scheduler process on disk, one worker wrapped with default settings,
a client, over sockets. Printed are, per number of turns at once, the most that were in flight, the wall time over the
ideal (the model's own time), and what an orchestration without agents took meanwhile, over what it takes when idle.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
from durabletask.azuremanaged.worker import DurableTaskSchedulerWorker

from dafx_actors import (
    DurableAIAgentClient,
    DurableAIAgentWorker,
    ModelRequest,
    OrchestrationContext,
    durable_agent,
    orchestrator,
)
from dafx_actors.testing import ScriptedModel

THINKING = 10.0
"""Seconds that the model takes."""


class Slow:
    """A model that takes its time, and counts who waits for it."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.now = self.most = 0

    async def reply(self, request: ModelRequest) -> str:
        self.now += 1
        self.most = max(self.most, self.now)
        await anyio.sleep(self.seconds)
        self.now -= 1
        return "done"


slow = Slow()


@durable_agent(model=ScriptedModel(slow.reply))
class Thinker:
    """Thinks."""

    instructions = "Think."


@orchestrator
async def trivial(context: OrchestrationContext) -> int:
    """Waits for one activity."""
    result: int = await context.call_activity("answer")
    return result


def answer() -> int:
    """An activity."""
    return 42


@contextmanager
def scheduler() -> Generator[str]:
    """The embedded scheduler, as a process of its own on a file of its own."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "dafx_actors.cli", "scheduler", "--port", "0", "--db", f"{folder}/dafx.db"]
        with subprocess.Popen([*command, "--log-format", "json"], stderr=subprocess.PIPE, text=True) as process:
            try:
                yield _endpoint(process)
            finally:
                process.terminate()


def _endpoint(process: subprocess.Popen[str]) -> str:
    assert process.stderr is not None
    for line in process.stderr:
        if "http://127.0.0.1:" in line:
            return "http://127.0.0.1:" + line.split("http://127.0.0.1:")[1].split(";")[0].split('"')[0].strip()
    raise RuntimeError("the scheduler did not start")


async def latency(client: DurableAIAgentClient) -> float:
    begun = time.perf_counter()
    await (await client.schedule_new_orchestration(trivial))
    return time.perf_counter() - begun


async def measure(client: DurableAIAgentClient, turns: int) -> dict[str, Any]:
    """`turns` turns at once, on threads of their own."""
    slow.seconds, slow.most = THINKING, 0
    thinker = client.get_agent(Thinker)
    others: list[float] = []
    failed: list[str] = []

    async def one() -> None:
        try:
            await thinker.run("Think about it.")
        except Exception as error:
            failed.append(repr(error))

    async def meanwhile(scope: anyio.CancelScope) -> None:
        with scope:
            while True:
                others.append(await latency(client))
                await anyio.sleep(0.1)

    begun = time.perf_counter()
    scope = anyio.CancelScope()
    async with anyio.create_task_group() as around:
        around.start_soon(meanwhile, scope)
        async with anyio.create_task_group() as tasks:
            for _ in range(turns):
                tasks.start_soon(one)
        wall = time.perf_counter() - begun
        scope.cancel()
    return {
        "turns": turns,
        "in flight": slow.most,
        "wall over ideal": wall / THINKING,
        "failed": len(failed),
        "other p50 ms": statistics.median(others) * 1000,
        "other max ms": max(others) * 1000,
    }


async def main(sizes: list[int], file: str | None) -> None:
    with scheduler() as endpoint:
        # Wrapped, as the reference shows it, and with default settings.
        worker = DurableTaskSchedulerWorker(
            host_address=endpoint, taskhub="default", token_credential=None, secure_channel=False
        )
        agent_worker = DurableAIAgentWorker(worker)
        agent_worker.add_agent(Thinker)
        agent_worker.add_orchestrator(trivial)
        agent_worker.add_activity(answer)
        async with agent_worker, DurableAIAgentClient.connect(endpoint) as client:
            thinker = client.get_agent(Thinker)
            fresh: list[float] = []
            for _ in range(50):
                begun = time.perf_counter()
                await thinker.run("Think about it.")
                fresh.append(time.perf_counter() - begun)
            idle = statistics.median([await latency(client) for _ in range(50)])
            print(f"a turn, model time 0: p50 {statistics.median(fresh) * 1000:.1f} ms")
            print(f"an orchestration with one activity, idle: p50 {idle * 1000:.1f} ms")
            results = [await measure(client, turns) for turns in sizes]
    for result in results:
        result["other p50 over idle"] = result["other p50 ms"] / (idle * 1000)
        print("  ".join(f"{name}: {value:.4g}" for name, value in result.items()))
    if file:
        report = {"turn p50 ms": statistics.median(fresh) * 1000, "idle p50 ms": idle * 1000, "results": results}
        Path(file).write_text(json.dumps(report, indent=2))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--turns", type=int, nargs="*", default=[1, 50, 200, 1000, 2000])
    given = parser.parse_args()
    anyio.run(main, given.turns, given.json)
