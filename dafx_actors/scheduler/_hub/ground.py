"""What the parts of a task hub stand on: its place in the store, the clock, timers, and the way to workers."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, TypeAlias

import attrs

if TYPE_CHECKING:
    from dafx_actors.scheduler._ground.clock import Clock
    from dafx_actors.scheduler._ground.ids import Ids
    from dafx_actors.scheduler._hub.delivery import Delivery
    from dafx_actors.scheduler._hub.timers import Timers
    from dafx_actors.scheduler.storage.committer import Changes
    from dafx_actors.scheduler.storage.store import Store

Changing: TypeAlias = "Callable[[], AbstractContextManager[Changes]]"
"""Opens a change; see `TaskHub.changing`."""


@attrs.frozen
class Ground:
    """Of one task hub. Decides nothing."""

    hub: int
    """The row of the task hub."""
    store: Store
    clock: Clock
    timers: Timers
    delivery: Delivery

    @property
    def ids(self) -> Ids:
        """Gives rows and execution ids."""
        return self.store.ids

    def add_timer(self, due: int, timer: int, kind: int, orchestration: int | None, event: bytes | None) -> None:
        """Have the task hub called when a timer is due."""
        self.timers.add((due, timer, self.hub, kind, orchestration, event))
