"""The event loop where agents run: durabletask runs work as plain functions on threads, and agents are async."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, TypeVar

import anyio
import anyio.from_thread
import attrs

from dafx_actors._raised import contained

T = TypeVar("T")


class AgentLoop:
    """An event loop that other threads run coroutines on."""

    def __init__(self) -> None:
        self._home: _Home | None = None
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()
        self._tasks: set[asyncio.Task[None]] = set()

    def use(self, portal: anyio.from_thread.BlockingPortal | None) -> None:
        """Run on this loop, that of `portal`, from now on; None: on no loop until one is needed."""
        self._home = None if portal is None else _Home(portal, asyncio.get_running_loop())

    def call(self, function: Callable[[], Awaitable[T]]) -> Future[T]:
        """Start a coroutine function on the loop, which is started on a thread of its own if there is none yet."""

        async def run() -> T:
            # What is no `Exception` would end the loop of all agents.
            return await contained(function, lambda: True)

        # Not by the portal, which waits on the calling thread until it has begun: see `begin`.
        return asyncio.run_coroutine_threadsafe(run(), self._at_home().loop)

    def begin(
        self, step: Callable[[], Coroutine[Any, Any, None]], on_begin: Callable[[Callable[[], None]], None]
    ) -> None:
        """Start a coroutine function, which raises nothing, on the loop, and do not even wait until it is there.

        A portal does wait for that on the calling thread, which costs more than a short step.

        Args:
            step: The coroutine function.
            on_begin: Told on the loop how to cancel it: by a function for any thread.
        """
        loop = self._at_home().loop

        def start() -> None:
            task = loop.create_task(step())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

            def cancel() -> None:
                with suppress(RuntimeError):  # the loop was closed meanwhile
                    loop.call_soon_threadsafe(task.cancel)

            on_begin(cancel)

        # In a context of its own: it may be begun by the end of another step, of which it must not see anything.
        loop.call_soon_threadsafe(start, context=contextvars.Context())

    def stop(self) -> None:
        """End the loop, if it has a thread of its own; what runs on it is cancelled."""
        with self._starting:
            thread, home = self._thread, self._home
            if thread is not None and home is not None:
                home.portal.call(home.portal.stop, True)
                thread.join()
                self._thread = self._home = None

    def _at_home(self) -> _Home:
        with self._starting:
            return self._home or self._start()

    def _start(self) -> _Home:
        ready: Future[_Home] = Future()

        async def serve() -> None:
            async with anyio.from_thread.BlockingPortal() as portal:
                ready.set_result(_Home(portal, asyncio.get_running_loop()))
                await portal.sleep_until_stopped()

        # A daemon: where a program stops only the durabletask worker that it wrapped, it must still be able to end.
        self._thread = threading.Thread(target=anyio.run, args=(serve,), name="dafx-agents", daemon=True)
        self._thread.start()
        self._home = home = ready.result()
        return home


@attrs.frozen
class _Home:
    portal: anyio.from_thread.BlockingPortal
    loop: asyncio.AbstractEventLoop
