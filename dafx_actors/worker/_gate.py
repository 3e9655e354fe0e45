"""What lets steps in, counts them, and ends those that outlast their worker or their turn.

When a worker stops, steps that have not begun are given back, and those that do not end within the bound are ended by
`HandedBack`: durabletask then sends no answer, so the scheduler hands them out again. Only the gate hands work back: a
cancellation at any other time is a failure like others.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Generator
from concurrent.futures import CancelledError, Future
from contextlib import contextmanager, suppress
from typing import TypeVar

import anyio

from dafx_actors._raised import safe
from dafx_actors._turns.host import TurnEnded
from dafx_actors.orchestration._coroutines import at_end_of_work_item

T = TypeVar("T")


class HandedBack(asyncio.CancelledError):
    """Leaves a work item unanswered. A cancellation, for it passes durabletask's `except Exception` without noise."""


class Gate:
    """Lets steps in until it is closed."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside: dict[object, Callable[[], object]] = {}
        """What has begun, with what ends it."""
        self._closed = False
        self._is_over = False
        self._mine = threading.local()

    @contextmanager
    def pass_through(self) -> Generator[None]:
        """Count what runs in the `with` block, until its answer is sent too, where that is part of the work item.

        A work item that is inside may pass again while the gate is closing: a step that has begun is not cut in two.

        Raises:
            HandedBack: The gate is closed.
        """
        token = self.enter(again=bool(getattr(self._mine, "inside", 0)))
        self._mine.inside = getattr(self._mine, "inside", 0) + 1

        def leave() -> None:
            self._mine.inside -= 1
            self.leave(token)

        try:
            yield
        finally:
            if not at_end_of_work_item(leave):
                leave()

    def enter(self, *, again: bool = False) -> object:
        """Let a step in, and give the token that `leave` takes. With `again` the step is part of one that is inside.

        Raises:
            HandedBack: The gate is closed.
        """
        token = object()
        with self._changed:
            if self._is_over or (self._closed and not again):
                raise HandedBack
            self._inside[token] = _not_at_all
        return token

    def may_end(self, token: object, cancel: Callable[[], object]) -> None:
        """A step can be ended by `cancel`, from any thread: when the bound is over."""
        with self._changed:
            self._inside[token] = cancel
            is_over = self._is_over
        if is_over:
            cancel()

    def leave(self, token: object) -> None:
        """A step is over, and answered."""
        with self._changed:
            del self._inside[token]
            self._changed.notify_all()

    def wait_for(self, started: Future[T]) -> T:
        """The result of a step that runs on the loop; ended when the gate is closed and the bound is over.

        Raises:
            HandedBack: It was cancelled, whoever did it, while the gate is closed.
            Exception: What it raised; also that it was cancelled, at any other time.
        """
        token = self.enter(again=True)
        try:
            self.may_end(token, started.cancel)
            return started.result()
        except (CancelledError, asyncio.CancelledError) as error:
            if self._closed:
                raise HandedBack from None
            cancelled = error
        finally:
            self.leave(token)
        raise safe(cancelled)

    @property
    def is_closed(self) -> bool:
        """True while the worker stops: a step that is cancelled from now on is handed back."""
        return self._closed

    @property
    def is_over(self) -> bool:
        """True once the bound has passed and the steps that were still inside have been ended."""
        return self._is_over

    def open(self) -> None:
        """Let steps in, again."""
        with self._changed:
            self._closed = self._is_over = False

    def close(self, seconds: float) -> int:
        """Let no more in, wait `seconds` for those inside, and end the others; how many were ended.

        A plain function that blocks cannot be ended: it is only waited for, by durabletask, for as long as it takes.
        """
        with self._changed:
            self._closed = True
            self._changed.wait_for(lambda: not self._inside, seconds)
            self._is_over = True
            left = [cancel for cancel in self._inside.values() if cancel is not _not_at_all]
        for cancel in left:
            cancel()
        return len(left)

    def emptied(self, seconds: float) -> None:
        """Wait, at most so long, until those that were ended are over."""
        with self._changed:
            self._changed.wait_for(lambda: not self._inside, seconds)


def _not_at_all() -> None:
    """Stands for the way to end a plain function that blocks: there is none."""


_WATCH_AFTER = 1.0
"""Seconds that a step runs before the end of its turn is looked for: most are over by then."""
_WATCH_AGAIN = 5.0
"""Seconds until it is looked for again, where the call that waits for it was lost."""


async def until_turn_ends(
    step: Callable[[], Awaitable[T]],
    watch: Callable[[Callable[[bool], None]], Callable[[], object]],
    *,
    after: float = _WATCH_AFTER,
) -> T:
    """Run a step, and cancel it when its turn ends.

    Activities get no word from their orchestration, unless the embedded scheduler gives it. So, once a step has run for
    a while, the worker that runs it asks the scheduler to say when the turn is over: a long poll, which costs neither a
    thread nor a wake-up.

    Args:
        step: What to run.
        watch: Begins to wait for the end of the turn, see `EndWatch.watch`.
        after: Seconds until it is called.

    Raises:
        TurnEnded: It has ended.
    """
    loop = asyncio.get_running_loop()
    clean_up: list[Callable[[], object]] = []
    over = False

    def begin() -> None:
        clean_up[:] = [watch(tell)]

    def tell(ended: bool) -> None:
        with suppress(RuntimeError):  # the loop was closed meanwhile
            loop.call_soon_threadsafe(heard, ended)

    def heard(ended: bool) -> None:
        if over:
            return
        if ended:
            scope.cancel()
        else:
            clean_up[:] = [loop.call_later(_WATCH_AGAIN, begin).cancel]

    with anyio.CancelScope() as scope:
        if after:
            clean_up[:] = [loop.call_later(after, begin).cancel]
        else:
            begin()
        try:
            return await step()
        finally:
            over = True
            clean_up[0]()
    raise TurnEnded
