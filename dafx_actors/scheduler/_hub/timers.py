"""Everything that is due at some time, of all task hubs, in one heap with one alarm."""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable

    from dafx_actors.scheduler._ground.clock import Alarm, Clock

Timer: TypeAlias = "tuple[int, int, int, int, int | None, bytes | None]"
"""Due, id, task hub, kind, orchestration, event. A tuple, since there may be very many."""

_FEWEST_DEAD = 1_000

_AT_ONCE = 200
"""Timers that fire in one turn of the event loop; after a pause of the scheduler very many may be due."""


class Timers:
    """A heap of timers; what is due is handed over together, very many in several goes."""

    def __init__(self, clock: Clock, fire: Callable[[list[Timer]], None]) -> None:
        """Start empty.

        Args:
            clock: tells the time, and rings.
            fire: is given what is due, in order, whenever something is.
        """
        self._clock = clock
        self._fire = fire
        self._heap: list[Timer] = []
        self._armed: set[int] = set()
        """The ids of those that are to fire; others in the heap were cancelled."""
        self._alarm: Alarm | None = None
        self._rings = 0
        self.stopped = False

    def __len__(self) -> int:
        return len(self._armed)

    def add(self, timer: Timer) -> None:
        """One more; it may be due already."""
        self._armed.add(timer[1])
        heapq.heappush(self._heap, timer)
        if self._alarm is None or timer[0] < self._rings:
            self._set_alarm()

    def replace(self, hub: int, timers: list[Timer]) -> None:
        """These are all the timers of a task hub; whatever else it had is forgotten."""
        self._heap = [timer for timer in self._heap if timer[2] != hub and timer[1] in self._armed]
        self._heap += timers
        self._armed = {timer[1] for timer in self._heap}
        heapq.heapify(self._heap)
        self._set_alarm()

    def cancel(self, ids: set[int]) -> None:
        """These must not fire any more; some may not have been added yet, and then are not."""
        # Taken out of the heap when they come up, or all together when they have become the greater part.
        self._armed -= ids
        if len(self._heap) - len(self._armed) > max(_FEWEST_DEAD, len(self._heap) // 2):
            self._heap = [timer for timer in self._heap if timer[1] in self._armed]
            heapq.heapify(self._heap)

    def stop(self) -> None:
        """Fire nothing any more."""
        self.stopped = True
        self._set_alarm()

    def _set_alarm(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        if self._heap and not self.stopped:
            self._rings = self._heap[0][0]
            self._alarm = self._clock.alarm(self._rings, self._ring)

    def _ring(self) -> None:
        self._alarm = None
        now = self._clock.now()
        due: list[Timer] = []
        while self._heap and self._heap[0][0] <= now and len(due) < _AT_ONCE:
            timer = heapq.heappop(self._heap)
            if timer[1] in self._armed:
                self._armed.discard(timer[1])
                due.append(timer)
        self._set_alarm()
        if due:
            self._fire(due)
