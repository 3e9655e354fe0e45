"""Which names the workers of a task hub took lately, also before a restart of the scheduler.

After a restart, of the scheduler or of workers, nobody is connected for a moment. Whoever asks then must be able to
tell a name whose workers are about to come back from one that nobody has ever hosted. It is written when workers come
and go, and now and then while they stay; what is lost with a process that dies is at most `_REFRESH` old.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, TypeAlias

from dafx_actors.errors import SchedulerError
from dafx_actors.scheduler._ground.clock import SECOND
from dafx_actors.scheduler._ground.records import WORK_KINDS
from dafx_actors.scheduler.storage import tables

if TYPE_CHECKING:
    from dafx_actors.scheduler._ground.records import WorkKind
    from dafx_actors.scheduler._hub.ground import Changing, Ground
    from dafx_actors.scheduler._rules.filters import Filters

LATELY = 600 * SECOND
"""How long a name is remembered after the last worker that took it has gone."""
_REFRESH = 30 * SECOND
"""How often it is written that a worker is still there."""
_AGAIN = 5 * SECOND
"""A worker that comes and goes all the time is written down no more often than this."""
_ANYTHING = ""
"""Stands for the names of a worker that takes whatever comes."""

_Name: TypeAlias = "tuple[WorkKind, str]"


class Lately:
    """What was hosted lately in one task hub."""

    def __init__(self, ground: Ground, changing: Changing) -> None:
        self._ground = ground
        self._changing = changing
        self._seen: dict[_Name, int] = {}
        """When a worker that takes the name was last known to be connected, as it is written."""

    def load(self) -> None:
        """Read what is written."""
        for kind, name, at in self._ground.store.hosted_lately(self._ground.hub):
            self._seen[kind, name] = max(at, self._seen.get((kind, name), at))

    def note(self, filters: Filters) -> None:
        """A worker with these filters has come, or has gone."""
        self._write(_names(filters), older_than=_AGAIN)

    def refresh(self) -> None:
        """Write who is still there, and forget what nobody has hosted for long."""
        connected = {name for worker in self._ground.delivery.queue.workers for name in _names(worker.filters)}
        self._write(connected, older_than=_REFRESH)
        before = self._ground.clock.now() - LATELY
        old = [name for name, at in self._seen.items() if at < before and name not in connected]
        if old:
            with suppress(SchedulerError), self._changing() as changes:
                tables.delete_hosted(changes, self._ground.hub, before)
                for name in old:
                    del self._seen[name]

    def names(self, kind: WorkKind) -> tuple[frozenset[str], bool]:
        """Names of this kind that were hosted lately; and whether some worker took whatever comes."""
        before = self._ground.clock.now() - LATELY
        found = {name for (of, name), at in self._seen.items() if of == kind and at >= before}
        found |= {
            name for worker in self._ground.delivery.queue.workers for of, name in _names(worker.filters) if of == kind
        }
        return frozenset(found - {_ANYTHING}), _ANYTHING in found

    def _write(self, names: set[_Name], *, older_than: int) -> None:
        now = self._ground.clock.now()
        due = sorted(name for name in names if not 0 <= now - self._seen.get(name, 0) < older_than)
        if not due:
            return
        # Nothing waits for it: while nothing can be written, workers come and go all the same.
        with suppress(SchedulerError), self._changing() as changes:
            for kind, name in due:
                tables.write_hosted(changes, self._ground.hub, kind, name, now)
            self._seen.update(dict.fromkeys(due, now))


def _names(filters: Filters) -> set[_Name]:
    found: set[_Name] = set()
    for kind in WORK_KINDS:
        names = filters.of(kind)
        found |= {(kind, _ANYTHING)} if names is None else {(kind, name) for name in names}
    return found
