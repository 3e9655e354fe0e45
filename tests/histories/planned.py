"""A scheduler's database in which work stands between plan and act, as an earlier version left it.

`python planned.py FILE` records it, with the version that is installed: a worker plans tool calls, and is gone before
it makes them; an orchestration has had its activity's result, and waits. `planned.sql` was recorded before values had
the form of today (`_forms.py`).
"""

from __future__ import annotations

import os
import sqlite3
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio
from durabletask.worker import TaskHubGrpcWorker

from dafx_actors import (
    DurableAIAgentClient,
    DurableAIAgentWorker,
    ModelRequest,
    OrchestrationContext,
    durable_agent,
    orchestrator,
    tool,
)
from dafx_actors.scheduler import EmbeddedScheduler
from dafx_actors.testing import ScriptedModel, call

SQL = Path(__file__).with_suffix(".sql")
THREADS = {"keep": "5c0a9d5e-6f4e-4f0b-9a80-3f1f5a3f2b01", "charge": "5c0a9d5e-6f4e-4f0b-9a80-3f1f5a3f2b02"}
"""By the tool that is called there; the turns are called after it."""
GIVEN = {"data": "Y2Fmw6k=", "at": "2024-07-01T15:00:00"}
"""What the model gives each tool: as text it is that, as base64 it is `café`."""
BLOB = bytes(range(7))
ACTED: list[tuple[str, bytes, datetime]] = []
"""What was really done."""


def _say(request: ModelRequest) -> Any:
    last = request.messages[-1]
    return "Done." if last.role == "tool" else call(last.text, **GIVEN)


@durable_agent(model=ScriptedModel(_say))
class Keeper:
    """Keeps things."""

    instructions = "You keep what you are given."

    @tool
    async def keep(self, data: bytes, at: datetime) -> dict[str, Any]:
        """Keep it."""
        ACTED.append(("keep", data, at))
        return {"data": data, "at": at}

    @tool(effect="once", approval=True)
    async def charge(self, data: bytes, at: datetime) -> dict[str, Any]:
        """Take money for it."""
        ACTED.append(("charge", data, at))
        return {"data": data, "at": at}


async def make(at: datetime) -> bytes:
    return BLOB


@orchestrator
async def fetch(context: OrchestrationContext, at: datetime) -> list[Any]:
    blob = await context.call_activity(make, input=at)
    context.set_custom_status("made")
    await context.wait_for_external_event("go")
    return [blob == BLOB, at]


def host(worker: DurableAIAgentWorker) -> None:
    """Add all of it."""
    worker.add_agent(Keeper)
    worker.add_orchestrator(fetch)
    worker.add_activity(make)


def restore(file: Path) -> None:
    """Make the recorded database anew."""
    with sqlite3.connect(file) as database:
        database.executescript(SQL.read_text("utf-8"))
    database.close()


async def _work(endpoint: str) -> None:
    def gone(work: Any) -> None:
        if work.kind == "tool":
            os._exit(1)

    address = endpoint.removeprefix("http://")
    worker = DurableAIAgentWorker(TaskHubGrpcWorker(host_address=address), on_work=gone)
    host(worker)
    async with worker:
        await anyio.sleep_forever()


async def _record(file: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        db = Path(folder) / "dafx.db"
        async with EmbeddedScheduler(db=db) as scheduler:
            work = [sys.executable, __file__, "--work", scheduler.endpoint]
            async with DurableAIAgentClient.connect(endpoint=scheduler.endpoint) as client:
                noon = datetime(2024, 7, 1, 12, tzinfo=UTC)
                async with await anyio.open_process(work, stdout=None, stderr=None) as worker:
                    handle = await client.schedule_new_orchestration(fetch, input=noon, instance_id="fetch")
                    while await handle.custom_status() != "made":
                        await anyio.sleep(0.05)
                    keeper = client.get_agent("Keeper")
                    await keeper.start("charge", thread=THREADS["charge"], correlation_id="charge")
                    while not await client.pending_approvals("Keeper"):
                        await anyio.sleep(0.05)
                    await keeper.start("keep", thread=THREADS["keep"], correlation_id="keep")
                    await worker.wait()
        database = sqlite3.connect(db)
        kept = [(name, *database.execute(f"PRAGMA {name}").fetchone()) for name in ("application_id", "user_version")]
        lines = [*(f"PRAGMA {name} = {value};" for name, value in kept), *database.iterdump()]
        file.write_text("\n".join(lines) + "\n", "utf-8")
        database.close()


if __name__ == "__main__":
    if sys.argv[1] == "--work":
        anyio.run(_work, sys.argv[2])
    else:
        anyio.run(_record, Path(sys.argv[1]))
