"""Going on from before a failure.

The worker rewrites the history of a failed orchestration, without its failures; the scheduler puts that in place,
and sees to the children that have no result in it: failed ones are rewound in the same way, lost ones are started
afresh, and those that have a result report it again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from dafx_actors.scheduler._ground import events as _events
from dafx_actors.scheduler._ground.proto import Status
from dafx_actors.scheduler._ground.records import History, Parent
from dafx_actors.scheduler.storage import tables

if TYPE_CHECKING:
    from dafx_actors.scheduler._ground.records import Orchestration, Start
    from dafx_actors.scheduler._hub.ground import Ground
    from dafx_actors.scheduler._hub.orchestrations import Orchestrations
    from dafx_actors.scheduler._rules.episodes import Rewound
    from dafx_actors.scheduler.storage.committer import Changes


class Rewinding:
    """Rewinds the orchestrations of a task hub."""

    def __init__(self, ground: Ground, orchestrations: Orchestrations) -> None:
        self._ground = ground
        self._orchestrations = orchestrations

    def request(self, changes: Changes, it: Orchestration, reason: str | None, parent: str | None = None) -> None:
        """Have a failed orchestration rewound, by an episode of its own.

        Args:
            changes: what to add to.
            it: the orchestration.
            reason: whatever the person who asked for it said.
            parent: the execution id of the parent that is rewound, if that is why.
        """
        assert it.status == Status.FAILED, "nothing else can be rewound"
        self._ground.store.load_payload(it)
        it.status = Status.RUNNING
        it.completed, it.output, it.failure = None, None, None
        it.updated = max(self._ground.clock.now(), it.updated)
        tables.update_orchestration(changes, it)
        tables.update_outcome(changes, it)
        event = _events.execution_rewound(
            it.updated, reason, parent_execution_id=parent, instance_id=it.instance_id if parent else None
        )
        self._orchestrations.tell(changes, it, "rewind", event)

    def rewound(self, changes: Changes, it: Orchestration, how: Rewound) -> None:
        """A worker has rewritten the history."""
        it.execution_id = how.execution_id or self._ground.ids.execution()
        it.status = Status.RUNNING
        it.history = History([how.history])
        tables.delete_history(changes, it.id)
        tables.append_history(changes, self._ground.ids.row, it.id, how.history)
        tables.update_orchestration(changes, it)
        self._orchestrations.tell(changes, it, "nudge", b"")
        for task_id, instance_id, start in how.unfinished:
            parent = Parent(
                id=it.id,
                instance_id=it.instance_id,
                execution_id=it.execution_id,
                task_id=task_id,
                name=it.name,
                version=it.version,
            )
            self._child(changes, parent, instance_id, start, how.reason)

    def _child(self, changes: Changes, parent: Parent, instance_id: str, start: Start, reason: str | None) -> None:
        orchestrations = self._orchestrations
        child = orchestrations.find(instance_id)
        if child is None:
            orchestrations.create(changes, instance_id, start, parent)
            return
        child.parent = attrs.evolve(parent)
        tables.update_parent(changes, child)
        orchestrations.touch(changes, child)
        if child.status == Status.FAILED:
            self.request(changes, child, reason, parent.execution_id)
        elif child.ended:
            self._ground.store.load_payload(child)
            orchestrations.report(changes, child)
