"""The scheduler's only source of time.

Every time that is stored or compared is an integer: microseconds since 1970 in UTC. That is what the public
SDKs' clocks can tell apart, it compares quickly, and SQLite sorts it.
"""

from __future__ import annotations

import asyncio
import math
import time
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

SECOND = 1_000_000
"""Microseconds in a second."""

_LONGEST_SLEEP = 30.0
"""Seconds after which a sleeping alarm looks at the wall clock again, which somebody may have set."""


class Alarm(Protocol):
    """A wake-up that was asked for."""

    def cancel(self) -> None:
        """Forget it. Harmless when it has rung."""


class Clock(Protocol):
    """What the scheduler asks of a clock; a test's clock may be moved by hand."""

    def now(self) -> int:
        """Microseconds since 1970, UTC."""
        ...

    def alarm(self, due: int, ring: Callable[[], None]) -> Alarm:
        """Call `ring` on the running event loop, once, as soon as `now() >= due`."""
        ...


class SystemClock:
    """The machine's wall clock."""

    def now(self) -> int:
        """Microseconds since 1970, UTC."""
        return time.time_ns() // 1_000

    def alarm(self, due: int, ring: Callable[[], None]) -> Alarm:
        """Call `ring` once the wall clock shows `due`, also when the clock is set meanwhile."""
        return _SystemAlarm(self, due, ring)


class _SystemAlarm:
    """Sleeps by the monotonic clock, in bounded stretches, and rings by the wall clock."""

    __slots__ = ("_clock", "_due", "_handle", "_ring")

    def __init__(self, clock: SystemClock, due: int, ring: Callable[[], None]) -> None:
        self._clock = clock
        self._due = due
        self._ring = ring
        self._handle: asyncio.TimerHandle | None = None
        self._sleep()

    def cancel(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _sleep(self) -> None:
        seconds = min(max(self._due - self._clock.now(), 0) / SECOND, _LONGEST_SLEEP)
        # Rounded up, or the loop would wake a little early, find nothing due, and spin.
        self._handle = asyncio.get_running_loop().call_later(math.ceil(seconds * 10_000) / 10_000, self._wake)

    def _wake(self) -> None:
        self._handle = None
        if self._clock.now() >= self._due:
            self._ring()
        else:
            self._sleep()
