"""The scheduler and the workers of the chaos run: `python -m tests.chaos.programs scheduler|worker ...`.

Both say `ready`, end in an orderly way at SIGTERM or when their standard input is closed, and answer every line on it
with what they hold, as JSON. At SIGUSR1 they write where their threads are.
"""

from __future__ import annotations

import asyncio
import faulthandler
import json
import os
import signal
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import anyio
from durabletask.task import RetryPolicy

from dafx_actors import Approval, DurableAIAgentWorker, NotDone, ToolContext, Turn, durable_agent, tool
from dafx_actors.scheduler import EmbeddedScheduler
from tests.chaos.effects import Effects
from tests.chaos.faults import resources_of

WORKER_TIMEOUT = 2.0
"""Seconds after which a worker that was stopped counts as gone: so short that stopping one is soon past it."""
SOON = RetryPolicy(
    first_retry_interval=timedelta(milliseconds=200),
    max_number_of_attempts=20,
    max_retry_interval=timedelta(seconds=2),
)


@durable_agent(retry=SOON)
class Clerk:
    """Has a tool of each kind; the model calls those that the request names."""

    def __init__(self, folder: Path) -> None:
        self._effects = Effects(folder / "effects")

    async def instructions(self, turn: Turn) -> str:
        """Says who asks, for the record of the model's server; and takes its worker down where the request says so."""
        if turn.text.endswith(" poison"):
            os.kill(os.getpid(), signal.SIGKILL)
        return f"worker {os.getpid()}"

    @tool
    async def look(self, context: ToolContext) -> str:
        """May be repeated."""
        await anyio.sleep(0.01)
        return context.idempotency_key

    async def find_payment(self, context: ToolContext) -> str:
        if self._effects.look_up(context.idempotency_key, context.attempt):
            return "paid"
        raise NotDone

    @tool(effect="once", reconcile=find_payment)
    async def pay(self, context: ToolContext) -> str:
        """Acts once; what became of a call can be looked up."""
        return await self._act(context, "paid")

    @tool(effect="once")
    async def ship(self, context: ToolContext) -> str:
        """Acts once; only a person can look up what became of a call."""
        return await self._act(context, "shipped")

    @tool(approval=Approval(timeout=timedelta(hours=1)))
    async def sign(self, context: ToolContext) -> str:
        """Wants to be approved."""
        return context.idempotency_key

    @tool
    def bomb(self) -> None:
        """Takes its worker down."""
        os.kill(os.getpid(), signal.SIGKILL)

    async def _act(self, context: ToolContext, done: str) -> str:
        key, attempt = context.idempotency_key, context.attempt
        self._effects.begin(key, attempt)
        await anyio.sleep(0.02)
        self._effects.act(key, attempt)
        await anyio.sleep(0.02)
        return done


def run_worker(endpoint: str, folder: Path) -> None:
    """A worker, with an event loop of its own."""
    worker = DurableAIAgentWorker.connect(endpoint, stop_timeout=3.0)
    worker.add_agent(Clerk(folder))

    def stop(*_: object) -> None:
        worker.stop()
        os._exit(0)

    signal.signal(signal.SIGTERM, stop)
    worker.start()
    print("ready", flush=True)
    for _ in sys.stdin:
        inside = len(worker._gate._inside) + len(worker._host._reports)
        tasks = worker._loop.call(_count_tasks).result() - 1
        names = sorted(each.name.rstrip("0123456789_-") for each in threading.enumerate())
        held = {**resources_of(os.getpid()), "work": inside, "tasks": tasks, "named": names}
        print(json.dumps(held), flush=True)
    os._exit(0)


async def _count_tasks() -> int:
    return len(asyncio.all_tasks())


class _Turns:
    """A loop's selector that measures the CPU time of the loop's thread between two looks at its sockets."""

    def __init__(self, selector: Any) -> None:
        self._selector = selector
        self._since = time.thread_time()
        self.longest = 0.0

    def select(self, timeout: float | None = None) -> Any:
        self.longest = max(self.longest, time.thread_time() - self._since)
        try:
            return self._selector.select(timeout)
        finally:
            self._since = time.thread_time()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._selector, name)


async def run_scheduler(port: int, db: Path) -> None:
    """A scheduler over a file."""
    loop, stopping = asyncio.get_running_loop(), asyncio.Event()
    turns: Any = _Turns(cast("Any", loop)._selector)
    cast("Any", loop)._selector = turns
    loop.add_signal_handler(signal.SIGTERM, stopping.set)
    async with EmbeddedScheduler(db, port=port, worker_timeout=WORKER_TIMEOUT) as scheduler:

        def measure() -> None:
            hub = scheduler.engine.hub("default")
            held: dict[str, Any] = {
                **resources_of(os.getpid()),
                "work": hub.delivery.held(),
                "tasks": len(asyncio.all_tasks()),
                "waiting": len(hub.waiters),
                "turn": turns.longest,
            }
            print(json.dumps(held), flush=True)

        def listen() -> None:
            for _ in sys.stdin:
                loop.call_soon_threadsafe(measure)
            loop.call_soon_threadsafe(stopping.set)

        threading.Thread(target=listen, daemon=True).start()
        print("ready", flush=True)
        await stopping.wait()


def main(kind: str, where: str, path: str) -> None:
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    if kind == "scheduler":
        asyncio.run(run_scheduler(int(where), Path(path)))
    else:
        run_worker(where, Path(path))


if __name__ == "__main__":
    main(*sys.argv[1:])
