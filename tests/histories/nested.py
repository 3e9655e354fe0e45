"""A scheduler's database with a tree of agents that stands between plan and act, as an earlier version left it.

`python nested.py FILE` records it, with the version that is installed: an agent asks another, whose worker plans a call
that may act only once, and is gone before it makes it; a call of a third waits for a person. `nested.sql` was recorded
when the names of calls were made of their turns' ids, and limits were those of one turn.
"""

from __future__ import annotations

import os
import sqlite3
import sys
import tempfile
from pathlib import Path
from typing import Any

import anyio
from durabletask.worker import TaskHubGrpcWorker

from dafx_actors import (
    DurableAIAgentClient,
    DurableAIAgentWorker,
    Limits,
    ModelReply,
    ModelRequest,
    ToolContext,
    as_tool,
    durable_agent,
    tool,
)
from dafx_actors.scheduler import EmbeddedScheduler
from dafx_actors.testing import ScriptedModel, call
from dafx_actors.transcript import ChatMessage, UsageStats

SQL = Path(__file__).with_suffix(".sql")
THREADS = {"pay": "5c0a9d5e-6f4e-4f0b-9a80-3f1f5a3f2b11", "order": "5c0a9d5e-6f4e-4f0b-9a80-3f1f5a3f2b12"}
"""By what is asked for there; the turns are called after it."""
ACTED: list[tuple[str, str]] = []
"""What was really done, with its idempotency key."""


def _say(request: ModelRequest) -> Any:
    last = request.messages[-1]
    if last.role == "tool":
        usage = UsageStats(40, 2, 42)
        return ModelReply(message=ChatMessage("assistant", "Done."), usage=usage, finish_reason="stop")
    return call("Clerk", request=last.text) if request.messages[0].text == "You lead." else call(last.text)


@durable_agent(model=ScriptedModel(_say))
class Clerk:
    """Does things."""

    instructions = "You serve."

    @tool(effect="once")
    async def pay(self, context: ToolContext) -> str:
        """Pay."""
        ACTED.append(("pay", context.idempotency_key))
        return "paid"

    @tool(approval=True)
    async def order(self, context: ToolContext) -> str:
        """Order."""
        ACTED.append(("order", context.idempotency_key))
        return "ordered"


# The second turn takes six steps in its tree, and four by itself: it was begun when only those counted.
@durable_agent(model=ScriptedModel(_say), limits=Limits(steps=4))
class Boss:
    """Has others do things."""

    instructions = "You lead."
    tools = (as_tool(Clerk),)


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
    worker.add_agent(Boss, Clerk)
    async with worker:
        await anyio.sleep_forever()


async def _record(file: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        db = Path(folder) / "dafx.db"
        async with EmbeddedScheduler(db=db) as scheduler:
            work = [sys.executable, __file__, "--work", scheduler.endpoint]
            async with (
                DurableAIAgentClient.connect(endpoint=scheduler.endpoint) as client,
                await anyio.open_process(work, stdout=None, stderr=None) as worker,
            ):
                boss = client.get_agent("Boss")
                await boss.start("order", thread=THREADS["order"], correlation_id="order")
                while not await client.pending_approvals("Clerk"):
                    await anyio.sleep(0.05)
                await boss.start("pay", thread=THREADS["pay"], correlation_id="pay")
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
