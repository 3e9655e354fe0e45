"""A clock that only moves when a test moves it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import attrs

_START = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


@attrs.define(eq=False)
class _HandAlarm:
    clock: HandClock
    due: int
    ring: Callable[[], None]

    def cancel(self) -> None:
        """Forget it."""
        self.clock.forget(self)


class HandClock:
    """A clock for a scheduler that stands still until it is moved: `EmbeddedScheduler(clock=HandClock())`."""

    def __init__(self, start: datetime | None = None) -> None:
        """Show a time.

        Args:
            start: With its time zone; by default that of the machine.
        """
        self._now = time.time_ns() // 1_000 if start is None else (start - _START) // _MICROSECOND
        self._alarms: list[_HandAlarm] = []

    @property
    def time(self) -> datetime:
        """The time that the clock shows, in UTC."""
        return _START + timedelta(microseconds=self._now)

    @property
    def next_alarm(self) -> datetime | None:
        """When the next thing is due that waits for this clock; None where nothing does."""
        due = min((alarm.due for alarm in self._alarms), default=None)
        return None if due is None else _START + timedelta(microseconds=due)

    def move_to(self, when: datetime) -> None:
        """Show a later time, and ring what is due by then. To be called on the scheduler's event loop.

        Raises:
            ValueError: It is earlier: time only goes forward.
        """
        if when < self.time:
            raise ValueError(f"the clock shows {self.time}; it cannot be moved back to {when}")
        self._now = (when - _START) // _MICROSECOND
        for alarm in sorted(self._alarms, key=lambda alarm: alarm.due):
            if alarm.due <= self._now and alarm in self._alarms:
                self._alarms.remove(alarm)
                alarm.ring()

    # --- What the scheduler asks ----------------------------------------------------------------------------------

    def now(self) -> int:
        """Microseconds since 1970, UTC."""
        return self._now

    def alarm(self, due: int, ring: Callable[[], None]) -> _HandAlarm:
        """Call `ring` when the clock is moved to `due`, in microseconds since 1970; at once, where that is past."""
        alarm = _HandAlarm(self, due, ring)
        self._alarms.append(alarm)
        if due <= self._now:
            asyncio.get_running_loop().call_soon(self._ring, alarm)
        return alarm

    def forget(self, alarm: _HandAlarm) -> None:
        """Do not ring it."""
        if alarm in self._alarms:
            self._alarms.remove(alarm)

    def _ring(self, alarm: _HandAlarm) -> None:
        if alarm in self._alarms:
            self._alarms.remove(alarm)
            alarm.ring()
