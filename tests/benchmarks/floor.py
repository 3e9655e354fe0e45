"""What a turn cannot do without: its messages and its commits, as bare gRPC and SQLite, with none of our logic.

`count` runs real turns over a scheduler in this process and counts its calls, the work items that it hands out, and
its commits, with their sizes. `server`, `worker` and `client` then exchange as many messages of those sizes in the
same pattern: the client starts and waits; the server commits and hands the worker an item; the worker reads as often
as it does in a turn, answers on the same stream, and gets the next one; the last answer wakes the client.
"""

from __future__ import annotations

import asyncio
import functools
import json
import sqlite3
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import anyio
import attrs
import grpc
import grpc.aio

from dafx_actors._durable.bundles import CONNECT, answer_of, unpack
from tests.benchmarks import control
from tests.benchmarks.processes import OURS, PATIENCE, Machine

STARTS = {"StartInstance"}
WAITS = {"WaitForInstanceCompletion"}
COMPLETIONS = {"CompleteOrchestratorTask", "CompleteActivityTask", "CompleteEntityTask"}


@attrs.frozen(kw_only=True)
class Turn:
    """What a turn needs, on average."""

    items: int
    """Work items: each one message to the worker, and one back with its result."""
    reads: int
    """Calls besides, but for the client's start and its wait."""
    commits: int
    item_bytes: int
    """Of a work item, of a result, and of what a commit stores."""


# --- Counting ------------------------------------------------------------------------------------------------------


class Counting(grpc.aio.ServerInterceptor):
    """Counts calls and the messages of streams, by method."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()

    async def intercept_service(self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: Any) -> Any:
        handler: Any = await continuation(handler_call_details)
        name = handler_call_details.method.rpartition("/")[2]
        if handler is None:
            return handler
        if handler.request_streaming:

            async def counted_stream(requests: Any, context: Any) -> Any:
                return await handler.stream_stream(requests, _CountingContext(context, self))

            return grpc.stream_stream_rpc_method_handler(counted_stream)
        if handler.response_streaming:
            return handler

        async def counted(request: Any, context: Any) -> Any:
            self.calls[name] += 1
            self.bytes[name] += len(request) if isinstance(request, bytes) else request.ByteSize()
            return await handler.unary_unary(request, context)

        return grpc.unary_unary_rpc_method_handler(counted, handler.request_deserializer, handler.response_serializer)


class _CountingContext:
    """A bundle stream's, whose answers are counted as the calls that they stand for."""

    def __init__(self, context: Any, counting: Counting) -> None:
        self._context = context
        self._counting = counting

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    async def read(self) -> Any:
        message = await self._context.read()
        for kind, _, payload in unpack(message) if isinstance(message, bytes) else ():
            if kind != CONNECT:
                self._counting.calls[answer_of(kind)] += 1
                self._counting.bytes[answer_of(kind)] += len(payload)
        return message


async def count(turns: int) -> dict[str, float]:
    """Run turns, one after another, over a scheduler in this process."""
    from dafx_actors.scheduler import EmbeddedScheduler

    counting = Counting()
    grpc_aio: Any = grpc.aio
    grpc_aio.server = functools.partial(grpc_aio.server, interceptors=[counting])
    with tempfile.TemporaryDirectory() as folder:
        async with EmbeddedScheduler(Path(folder) / "count.db") as scheduler:
            machine = Machine("")
            with (
                machine.role(OURS, "worker", scheduler.endpoint) as worker,
                machine.role(OURS, "client", scheduler.endpoint) as client,
            ):
                for each in (worker, client):
                    await anyio.to_thread.run_sync(each.answer)
                await anyio.to_thread.run_sync(lambda: client.ask("turns", count=3))
                await asyncio.sleep(0.2)
                committer = scheduler.engine.store.committer
                before, sizes, commits = +counting.calls, +counting.bytes, committer.commits
                await anyio.to_thread.run_sync(lambda: client.ask("turns", count=turns))
                await asyncio.sleep(0.2)
                calls, sizes = counting.calls - before, counting.bytes - sizes
                commits = committer.commits - commits
    items = sum(calls[name] for name in COMPLETIONS)
    reads = calls.total() - items - sum(calls[name] for name in STARTS | WAITS)
    return {
        "items": items / turns,
        "reads": reads / turns,
        "commits": commits / turns,
        "item_bytes": sum(sizes[name] for name in COMPLETIONS) / items,
    }


# --- The bare exchange ---------------------------------------------------------------------------------------------


class Server:
    """Hands out items and commits."""

    def __init__(self, turn: Turn, connection: sqlite3.Connection) -> None:
        self._turn = turn
        self._connection = connection
        self._todo: asyncio.Queue[bytes] = asyncio.Queue()
        self._left = 0
        self._ended = asyncio.Event()
        self._item = b"." * turn.item_bytes
        # Spread over the calls that change something: the start and the completions.
        self._commits: deque[bool] = deque()

    def _spread(self) -> deque[bool]:
        changes = self._turn.items + 1
        return deque(
            (number + 1) * self._turn.commits // changes > number * self._turn.commits // changes
            for number in range(changes)
        )

    def _commit(self) -> None:
        if self._commits and self._commits.popleft():
            self._connection.execute("BEGIN IMMEDIATE")
            self._connection.execute("INSERT INTO rows (row) VALUES (?)", (self._item,))
            self._connection.execute("COMMIT")

    async def start(self, _: bytes, __: Any) -> bytes:
        """A turn begins."""
        self._commits, self._left = self._spread(), self._turn.items
        self._commit()
        self._ended.clear()
        self._todo.put_nowait(self._item)
        return b""

    async def wait(self, _: bytes, __: Any) -> bytes:
        """Until it has ended."""
        await self._ended.wait()
        return self._item

    async def read(self, _: bytes, __: Any) -> bytes:
        """Something is looked up."""
        return self._item

    async def work(self, _: object, context: Any) -> None:
        """The worker's stream: an item, and when its result has come, the next."""
        while True:
            await context.write(await self._todo.get())
            await context.read()
            self._commit()
            self._left -= 1
            if self._left:
                self._todo.put_nowait(self._item)
            else:
                self._ended.set()


async def _serve(turn: Turn) -> None:
    with tempfile.TemporaryDirectory() as folder:
        connection = sqlite3.connect(f"{folder}/floor.db", isolation_level=None)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("CREATE TABLE rows (id INTEGER PRIMARY KEY, row BLOB)")
        served = Server(turn, connection)
        server = grpc.aio.server()
        unary = grpc.unary_unary_rpc_method_handler
        methods: dict[str, Any] = {name: unary(getattr(served, name)) for name in ("start", "wait", "read")}
        methods["work"] = grpc.stream_stream_rpc_method_handler(served.work)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("floor", methods),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        print(f"127.0.0.1:{port}", flush=True)
        await server.wait_for_termination()


def work(endpoint: str, turn: Turn) -> None:
    """Answer items, one after another, on one thread."""
    channel: Any
    with grpc.insecure_channel(endpoint) as channel:
        read = channel.unary_unary("/floor/read")
        result, number = b"." * turn.item_bytes, 0
        results: SimpleQueue[bytes] = SimpleQueue()
        print(json.dumps("ready"), flush=True)
        for _ in channel.stream_stream("/floor/work")(iter(results.get, None), timeout=PATIENCE):
            # Spread over the items of a turn.
            for _ in range((number + 1) * turn.reads // turn.items - number * turn.reads // turn.items):
                read(b"")
            results.put(result)
            number = (number + 1) % turn.items


class Client:
    """Starts and waits, as the real one does."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        self._channel: Any = None

    async def turns(self, count: int) -> list[float]:
        """The exchanges of so many turns, one after another; how long each took."""
        if self._channel is None:
            self._channel = grpc.aio.insecure_channel(self._endpoint)
        start, wait = (self._channel.unary_unary(f"/floor/{name}") for name in ("start", "wait"))
        took: list[float] = []
        for _ in range(count):
            begun = time.perf_counter()
            await start(b"." * 600)
            await wait(b"")
            took.append(time.perf_counter() - begun)
        return took


if __name__ == "__main__":
    control.quiet()
    role, *more = sys.argv[1:]
    if role == "count":
        control.serve({"count": count})
    elif role == "server":
        asyncio.run(_serve(Turn(**json.loads(more[0]))))
    elif role == "worker":
        work(more[0], Turn(**json.loads(more[1])))
    else:
        control.serve({"turns": Client(more[0]).turns})
