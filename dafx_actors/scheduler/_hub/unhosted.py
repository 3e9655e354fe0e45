"""Tells people of work that no connected worker takes: a name that is mistyped, dropped, or not deployed yet."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from dafx_actors.scheduler._ground.clock import SECOND
from dafx_actors.scheduler._ground.records import WORK_KINDS

if TYPE_CHECKING:
    from dafx_actors.scheduler._hub.ground import Ground
    from dafx_actors.scheduler._rules.filters import Lane

logger = logging.getLogger("dafx_actors.scheduler._unhosted")

_PATIENCE = 10 * SECOND
"""How long work may wait for a worker to come before anybody is told."""
_AGAIN = 600 * SECOND
"""When it is said again of the same name."""
_AT_ONCE = 20
"""Names that are told of in one look; a scheduler full of forgotten work must not fill its log with them."""


class Unhosted:
    """Watches over the work of one task hub."""

    def __init__(self, ground: Ground, hub: str) -> None:
        self._ground = ground
        self._hub = hub
        self._told: dict[Lane, int] = {}
        """When it was last said of a lane."""

    def look(self) -> None:
        """Warn of each name whose work waits and that no connected worker takes."""
        queue, now = self._ground.delivery.queue, self._ground.clock.now()
        self._told = {lane: at for lane, at in self._told.items() if now - at < _AGAIN}
        waiting = {lane: since for kind in WORK_KINDS for lane, since in queue.unwanted(kind).items()}
        due = [lane for lane, since in waiting.items() if now - since >= _PATIENCE and lane not in self._told]
        for lane in due[:_AT_ONCE]:
            self._told[lane] = now
            version = f" in version {lane.version}" if lane.version else ""
            logger.warning(
                "No connected worker takes the %s %s%s of task hub %s, for which work waits since %d s. Is its worker "
                "running, and is the name spelt as the worker has it?",
                lane.kind,
                lane.name,
                version,
                self._hub,
                (now - waiting[lane]) // SECOND,
                extra={"task_hub": self._hub, "kind": lane.kind, "work": lane.name},
            )
