"""A client's connections: one for each event loop that it is used from, and none that is used on after a fork.

gRPC's asyncio has one thread for a process, which a fork does not copy: a child that goes on with what it has inherited
hangs, or is aborted by gRPC. So who can, closes the connections before a fork (`rest`, `go_on`), and each of the two
processes makes new ones. In a child of a process that could not, no connection is made, and an error says what to do.
"""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import weakref
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, TypeAlias

import anyio
import grpc
import grpc.aio
from durabletask.client import AsyncTaskHubGrpcClient, TaskHubGrpcClient

from dafx_actors._durable.calls import Replaced
from dafx_actors._durable.connect import DurableTaskClient, is_connected
from dafx_actors.errors import ClientOfAnotherLoop, ForkedWhileConnected

Loop: TypeAlias = asyncio.AbstractEventLoop | None
"""None: of another kind than asyncio's, where a sync client is used."""

_REST = 2.0
"""Seconds that calls have to notice that their connection was closed for a fork."""
_ENDS = 0.2
"""Seconds that gRPC's thread has to end."""
_POLLER = "(_poll_wrapper)"
"""What the name of the thread ends with by which gRPC's asyncio hears of its calls; Python gives it that name."""


class Connection:
    """What one event loop has to do with one scheduler."""

    def __init__(self, client: DurableTaskClient, *, is_ours: bool) -> None:
        """Make it.

        Args:
            client: Of durabletask.
            is_ours: It was made here, and is closed here.
        """
        self.client: Any = client
        self.is_ours = is_ours
        self.telling: grpc.aio.Channel | None = None
        """For what is asked beside the client."""
        # A sync client's calls hold a thread each while they wait; gRPC ends them, so they cannot pile up for ever.
        self.threads = anyio.CapacityLimiter(2048)
        self.is_closed = False
        self.idle = asyncio.Event()
        """No call is on its way."""
        self.idle.set()
        self._calls = 0

    @contextmanager
    def call(self) -> Generator[None]:
        """Make a call over it.

        Raises:
            Replaced: The connection was closed meanwhile.
        """
        self._calls += 1
        self.idle.clear()
        try:
            yield
        except Exception as error:
            if self.is_closed:
                raise Replaced from error
            raise
        finally:
            self._calls -= 1
            if not self._calls:
                self.idle.set()

    async def close(self) -> None:
        """Close it; calls on their way end with `Replaced`."""
        if self.is_closed:
            return
        self.is_closed = True
        with anyio.CancelScope(shield=True):
            if self.telling is not None:
                await self.telling.close()
            if (closing := self.client.close()) is not None:
                await closing
        if self.is_ours:
            # gRPC's thread ends with the last of its channels, and that with the last who refers to it.
            self.client = self.telling = None


class Connections:
    """The connections of one client."""

    def __init__(self, client: DurableTaskClient | Callable[[], DurableTaskClient], endpoint: str) -> None:
        """Make it; nothing is connected yet.

        Args:
            client: A client that somebody else made, which the first event loop keeps; or what makes one, which is
                called for each event loop.
            endpoint: For errors.
        """
        given = client if isinstance(client, TaskHubGrpcClient | AsyncTaskHubGrpcClient) else None
        self.is_async = not isinstance(client, TaskHubGrpcClient)
        self.is_ours = given is None
        self._given = given
        self._make: Any = client
        self._endpoint = endpoint
        self._by_loop: dict[Loop, Connection] = {}
        self._forks = _fork.count
        with _fork.lock:
            _fork.all.add(self)

    @property
    def is_open(self) -> bool:
        """Whether gRPC's asyncio has a connection of it."""
        return self.is_async and bool(self._by_loop)

    @property
    def client(self) -> Any:
        """Durabletask's client of the running event loop.

        Raises:
            ClientOfAnotherLoop, ForkedWhileConnected: As of `here`.
        """
        return self._open(_running()).client

    async def here(self) -> Connection:
        """The connection of the running event loop. It waits while this process is being forked.

        Raises:
            ClientOfAnotherLoop: The client was given, is one for asyncio, and another event loop has used it before.
            ForkedWhileConnected: This process is a fork, and the client was given, or gRPC cannot be used.
        """
        loop = _running()
        while (resting := _fork.resting.get(loop)) is not None:
            await resting.wait()
        return self._open(loop)

    def is_connected(self) -> bool | None:
        """Whether the running event loop has a connection now; None: unknown."""
        # Others' clients change their channels, so that the one that they have tells nothing of a call's own.
        if not self.is_ours:
            return None
        found = self._by_loop.get(_running())
        return False if found is None or found.is_closed else is_connected(found.client)

    def is_there(self) -> bool:
        """Whether the scheduler is there for certain, by a connection of another kind than the client's."""
        found = self._by_loop.get(_running())
        if found is None or found.telling is None:
            return False
        return found.telling.get_state() is grpc.ChannelConnectivity.READY

    async def close(self) -> None:
        """Close the connections of all event loops."""
        here = _running()
        self._leave_inherited()
        found, self._by_loop = self._by_loop, {}
        for loop, connection in found.items():
            if loop is here or loop is None:
                await connection.close()
            elif loop.is_running():
                await _close_in(loop, connection)

    async def rest(self, loop: Loop) -> Connection | None:
        """Close what this event loop, which runs, has open and can open again."""
        found = self._by_loop.pop(loop, None) if self.is_ours and self._forks == _fork.count else None
        if found is not None:
            await found.close()
        return found

    def _open(self, loop: Loop) -> Connection:
        self._leave_inherited()
        if (found := self._by_loop.get(loop)) is not None:
            return found
        self.forget_ended()
        if self._given is not None and self.is_async and self._by_loop:
            raise ClientOfAnotherLoop(self._endpoint)
        if _fork.is_spoiled:
            raise ForkedWhileConnected(self._endpoint, "which had connections open")
        client = self._make() if self._given is None else self._given
        self._by_loop[loop] = Connection(client, is_ours=self._given is None)
        return self._by_loop[loop]

    def forget_ended(self) -> None:
        """Let go of the connections of event loops that have ended: nobody can close them any more."""
        if self.is_ours:
            for ended in [each for each in list(self._by_loop) if each is not None and each.is_closed()]:
                self._by_loop.pop(ended, None)

    def _leave_inherited(self) -> None:
        if self._forks == _fork.count:
            return
        if self._given is not None:
            raise ForkedWhileConnected(self._endpoint, "in which the durabletask client that is wrapped was made")
        self._by_loop, self._forks = {}, _fork.count


async def _close_in(loop: asyncio.AbstractEventLoop, connection: Connection) -> None:
    """Close a connection of another event loop, which may end in this moment: then its connections have ended."""
    closing = connection.close()
    try:
        closed = asyncio.wrap_future(asyncio.run_coroutine_threadsafe(closing, loop))
    except RuntimeError:
        closing.close()
        return
    done, _ = await asyncio.wait({closed}, timeout=_REST)
    if done and not closed.cancelled():
        closed.exception()


def _running() -> Loop:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


# --- Forks --------------------------------------------------------------------------------------------------------


def _pollers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.endswith(_POLLER)]


class _Fork:
    """What this process knows of forks."""

    def __init__(self) -> None:
        self.count = 0
        """Forks that lie between this process and the first one."""
        self.is_spoiled = False
        """Whether gRPC cannot be used in this process."""
        self.resting: dict[Loop, asyncio.Event] = {}
        self.lock = threading.RLock()
        self.all: weakref.WeakSet[Connections] = weakref.WeakSet()
        self.inherited: list[object] = []
        """What must never be given back: in a child, gRPC would wait for its thread, which is not there."""
        self._was_polled: bool | None = None

    def before(self) -> None:
        """Look whether gRPC's asyncio is at work."""
        with self.lock:
            clients = list(self.all)
        for each in clients:
            each.forget_ended()
        polling = _pollers()
        if polling and not any(each.is_open for each in clients):
            # gRPC ends its thread with the last of its channels, and those that were closed stand in circles.
            gc.collect()
            for thread in polling:
                thread.join(_ENDS)
            polling = _pollers()
        self._was_polled = bool(polling)

    def in_child(self) -> None:
        """Leave what the parent has to the parent."""
        self.count += 1
        was_polled, self._was_polled = self._was_polled, None
        if was_polled is None:  # some servers fork without a word before it
            was_polled = any(each.is_open for each in self.all)
        self.is_spoiled = self.is_spoiled or was_polled
        self.resting.clear()
        self.lock = threading.RLock()
        self.inherited += [*self.all, *[dict(vars(each)) for each in self.all]]


_fork = _Fork()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_fork.before, after_in_child=_fork.in_child)


async def rest() -> None:
    """Close the connections of the running event loop until `go_on`; calls on their way are made again then."""
    loop = _running()
    _fork.resting[loop] = asyncio.Event()
    with _fork.lock:
        everybody = list(_fork.all)
    closed = [found for each in everybody if (found := await each.rest(loop)) is not None]
    with anyio.move_on_after(_REST):
        for each in closed:
            await each.idle.wait()


async def go_on() -> None:
    """Let calls of the running event loop be made again."""
    if (resting := _fork.resting.pop(_running(), None)) is not None:
        resting.set()
