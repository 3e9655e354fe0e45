"""The event loop of this process on which the calls of sync clients are made, in a thread of its own.

It is started by the first call, and ends with the last client that is closed, or with the program. A fork finds it
without a connection; the child has none of it, and starts its own.
"""

from __future__ import annotations

import asyncio
import atexit
import functools
import logging
import os
import sys
import threading
import weakref
from collections.abc import Awaitable, Callable
from concurrent.futures import CancelledError, Future
from concurrent.futures import wait as wait_for
from contextlib import suppress
from typing import Any, ParamSpec, TypeVar, cast

import anyio
from anyio.from_thread import BlockingPortal

from dafx_actors._durable import connections
from dafx_actors.errors import LoopWouldBlock

P = ParamSpec("P")
T = TypeVar("T")

_logger = logging.getLogger("dafx_actors.client")

_GRACE = 5.0
"""Seconds that the event loop has to end."""
_LOOK = 0.2 if sys.platform == "win32" else None
"""Seconds after which whoever waits looks for Ctrl+C; elsewhere it wakes who waits."""


class Closed(Exception):
    """The event loop was ended under a call."""


class _Portal:
    """The event loop with its thread, and who uses it."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._users: weakref.WeakSet[object] = weakref.WeakSet()
        self._portal: BlockingPortal | None = None
        self._thread: threading.Thread | None = None
        self._is_resting = False

    def begin(self, user: object, function: Callable[[], Awaitable[T]]) -> Future[T]:
        """Begin a call."""
        with self.lock:
            if self._portal is None or self._thread is None or not self._thread.is_alive():
                self._portal, self._thread = _start()
            self._users.add(user)
            return self._portal.start_task_soon(function)

    def leave(self, user: object) -> None:
        """End the event loop, if nobody else uses it."""
        with self.lock:
            self._users.discard(user)
            if not self._users:
                self.end()

    def end(self) -> None:
        """End the event loop; who waits for a call hears `Closed`."""
        with self.lock:
            portal, thread = self._portal, self._thread
            self._portal = self._thread = None
        if portal is None or thread is None or not thread.is_alive():
            return
        with suppress(RuntimeError, CancelledError):  # it has ended by itself
            portal.start_task_soon(portal.stop, True)
        thread.join(_GRACE)

    # --- Forks ----------------------------------------------------------------------------------------------------

    def before_fork(self) -> None:
        """Close the connections, so that the child inherits none; calls wait meanwhile."""
        self.lock.acquire()
        if self._portal is None or self._thread is None or self._thread is threading.current_thread():
            return
        self._is_resting = True
        try:
            wait_for([self._portal.start_task_soon(connections.rest)], _GRACE)
        except RuntimeError:
            _logger.warning("Connections were not closed before a fork", exc_info=True)

    def after_fork(self) -> None:
        """Go on, in the parent."""
        if self._is_resting and self._portal is not None:
            self._is_resting = False
            with suppress(RuntimeError):
                self._portal.start_task_soon(connections.go_on)
        self.lock.release()


def _start() -> tuple[BlockingPortal, threading.Thread]:
    # As `start_blocking_portal`, whose generator a forked child would end when it is collected: it would wait there for
    # a thread that it does not have.
    started: Future[BlockingPortal] = Future()

    async def run() -> None:
        async with BlockingPortal() as portal:
            started.set_result(portal)
            await portal.sleep_until_stopped()

    def run_in_thread() -> None:
        try:
            anyio.run(run)
        except BaseException as error:  # noqa: BLE001 - told to whoever starts it, or by its end
            if not started.done():
                started.set_exception(error)

    thread = threading.Thread(target=run_in_thread, name="dafx-sync", daemon=True)
    thread.start()
    return started.result(), thread


_portal = _Portal()
_inherited: list[_Portal] = []
"""Those of the processes that this one was forked from: what they hold is never given back here."""


def _in_child() -> None:
    global _portal
    _inherited.append(_portal)
    _portal = _Portal()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=lambda: _portal.before_fork(),
        after_in_parent=lambda: _portal.after_fork(),
        after_in_child=_in_child,
    )
atexit.register(lambda: _portal.end())


def call(user: object, function: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Make an async call, and wait for its end. Whoever is interrupted, as by Ctrl+C, leaves the call.

    Args:
        user: The client, which keeps the event loop until `leave`.
        function: The call.
        *args: Its arguments.
        **kwargs: Its arguments.

    Raises:
        LoopWouldBlock: An event loop runs in this thread.
        Closed: The client was closed, or the program ends.
    """
    if _runs_loop():
        raise LoopWouldBlock(getattr(function, "__name__", "") or "a call")
    future: Future[Any] = _portal.begin(user, functools.partial(function, *args, **kwargs))
    try:
        while not wait_for([future], _LOOK).done:
            pass
        return cast("T", future.result())
    except CancelledError:
        raise Closed from None
    finally:
        future.cancel()
        del future  # which has the error, whose frames have this one


def call_anywhere(user: object, function: Callable[[], Awaitable[object]]) -> None:
    """Make a short call, also where an event loop runs."""
    future = _portal.begin(user, function)
    wait_for([future], _GRACE)
    future.cancel()


def leave(user: object) -> None:
    """End the event loop, if nobody else uses it."""
    _portal.leave(user)


def _runs_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
