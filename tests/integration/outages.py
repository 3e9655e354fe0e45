"""How soon all is back after an outage: `python -m tests.integration.outages [--seconds 60] [--times 1]`.

The scheduler, a process, is killed and away for a while, during which a client waits for
an answer. When it is there again, this waits for that answer, which needs the worker as well; and for that of a *fresh*
client in the same process, since gRPC has all channels of a process share their connections, and pauses, unless it is
told otherwise. The figures are seconds from the moment at which the scheduler says that it is ready.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import anyio
import attrs

from dafx_actors import DurableAIAgentClient, DurableAIAgentWorker, durable_agent
from dafx_actors.testing import ScriptedModel
from tests.conftest import free_port
from tests.scheduler.kills import Victim


@durable_agent(model=ScriptedModel(lambda request: request.messages[-1].text))
class Echo:
    """Says what it is told."""

    instructions = "You repeat."


@attrs.define
class Report:
    """Seconds until they were answered, by outages."""

    waiting: list[float] = attrs.field(factory=list[float])
    """The client that waited for an answer through the outage."""
    fresh: list[float] = attrs.field(factory=list[float])
    """A client made after it."""

    @property
    def worst(self) -> float:
        return max(*self.waiting, *self.fresh)


async def run(*, seconds: float, times: int) -> Report:
    """See the module."""
    report, port = Report(), free_port()
    endpoint = f"http://127.0.0.1:{port}"
    worker = DurableAIAgentWorker.connect(endpoint, stop_timeout=1.0)
    worker.add_agent(Echo)
    with tempfile.TemporaryDirectory() as folder:
        arguments = ["-m", "tests.integration.deployments", "scheduler", str(port), str(Path(folder))]
        scheduler = Victim("scheduler", arguments)
        scheduler.start()
        await scheduler.ready()
        try:
            async with worker, DurableAIAgentClient.connect(endpoint) as client:
                echo = client.get_agent(Echo)
                await echo.run("Hello")
                for _ in range(times):
                    scheduler.kill()
                    await _outage(client, endpoint, scheduler, seconds, report)
        finally:
            scheduler.kill()
    return report


async def _outage(
    client: DurableAIAgentClient, endpoint: str, scheduler: Victim, seconds: float, report: Report
) -> None:
    ready = 0.0

    async def wait() -> None:
        await client.get_agent(Echo).run("Still there?", timeout=seconds + 100)
        report.waiting.append(time.monotonic() - ready)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait)
        await anyio.sleep(seconds)
        scheduler.start()
        await scheduler.ready()
        ready = time.monotonic()
        async with DurableAIAgentClient.connect(endpoint) as fresh:
            await fresh.get_agent(Echo).run("Anybody?", timeout=100)
        report.fresh.append(time.monotonic() - ready)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long the scheduler is away")
    parser.add_argument("--times", type=int, default=1)
    asked = parser.parse_args()
    report: Report = anyio.run(lambda: run(seconds=asked.seconds, times=asked.times))
    print(json.dumps(attrs.asdict(report), indent=2))
    return 0 if report.worst < 3.0 else 1


if __name__ == "__main__":
    sys.exit(main())
