"""What the scheduler remembers, in memory and on disk.

Orchestrations and entities are the two things that change; each is a mutable record that only `_hub/orchestrations.py`
and `_hub/entities.py` write to, as a decision of `_rules/episodes.py` or `_rules/batches.py` says. All else is frozen.

Every row of every table takes its id from one counter, so ids also tell the order of arrival.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Literal

import attrs

from dafx_actors.scheduler._ground.pacing import Pace
from dafx_actors.scheduler._ground.proto import LARGE, Status

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

WorkKind = Literal["orchestration", "activity", "entity"]
WORK_KINDS: tuple[WorkKind, ...] = ("orchestration", "activity", "entity")

NEVER_COMMITTED = 0


@attrs.frozen(kw_only=True)
class Parent:
    """Who waits for a child orchestration."""

    id: int
    instance_id: str
    execution_id: str
    """The answer is for this execution only: a later one counts its tasks from 1 again."""
    task_id: int
    name: str
    version: str | None


@attrs.frozen(kw_only=True)
class Start:
    """What an orchestration is started with; kept for restarts and for `continue_as_new`."""

    name: str
    version: str | None = None
    input: str | None = None
    tags: Mapping[str, str] = attrs.field(factory=dict[str, str])
    trace: bytes = b""
    """A serialized `TraceContext` of whoever started it."""
    scheduled: int | None = None
    """When it may start, if not at once."""


MessageKind = Literal["answer", "event", "suspend", "resume", "nudge", "rewind"]
"""What waits in an orchestration's inbox.

An *answer* (of an activity, a timer, a child, an entity) belongs to one execution; the others outlive it. A *nudge*
carries no event: it only makes the orchestration take an episode.
"""
MESSAGE_KINDS: tuple[MessageKind, ...] = ("answer", "event", "suspend", "resume", "nudge", "rewind")


@attrs.frozen
class Message:
    """Something that an orchestration has yet to be told."""

    id: int
    kind: MessageKind
    event: bytes
    """A serialized `HistoryEvent`; empty for a nudge."""


class History:
    """What an orchestration was told, as bytes: see `proto.py`. Large parts of it are not copied to be joined."""

    def __init__(self, chunks: Iterable[bytes] = ()) -> None:
        """Begin with these, one after the other."""
        self.parts: list[bytes | bytearray] = []
        self._size = 0
        for chunk in chunks:
            self.add(chunk)

    def add(self, events: bytes) -> None:
        """More has happened."""
        self._size += len(events)
        if len(events) >= LARGE:
            self.parts.append(events)
        elif self.parts and isinstance(tail := self.parts[-1], bytearray):
            tail += events
        else:
            self.parts.append(bytearray(events))

    def __len__(self) -> int:
        return self._size

    def joined(self) -> bytes:
        """All of it."""
        return b"".join(self.parts)


@attrs.define(kw_only=True, eq=False)
class Orchestration:
    """One orchestration instance that is not idle, or was used a moment ago."""

    id: int
    instance_id: str
    execution_id: str
    name: str
    version: str | None
    status: int
    created: int
    updated: int
    """Also the floor of the orchestration's own clock, which must never go back."""
    completed: int | None = None
    scheduled: int | None = None
    """When it may start; None once it may."""
    parent: Parent | None = None
    custom_status: str | None = None
    trace: bytes = b""
    """The serialized `OrchestrationTraceContext` of its last episode."""

    start: Start | None = None
    """None until it is needed, as is `history`."""
    output: str | None = None
    failure: bytes | None = None
    history: History | None = None
    inbox: deque[Message] = attrs.field(factory=deque[Message])
    activities: set[int] = attrs.field(factory=set[int])
    large: set[int] = attrs.field(factory=set[int])
    """Those of the activities whose rows are large. SQLite reads a whole row to find it, which would hold the loop; so
    the record stays in memory as long as it has any."""
    timers: set[int] = attrs.field(factory=set[int])

    lease: str | None = None
    """The completion token of the episode that a worker holds."""
    taken: int = 0
    """How many messages of the inbox that episode was given."""
    told: list[bytes] = attrs.field(factory=list[bytes])
    """The new events of that episode, which join the history when it is answered."""
    episode_started: int = 0
    """The orchestration's clock in that episode."""
    queued: bool = False
    """Its next episode waits for a worker."""
    dirty: int = NEVER_COMMITTED
    """The last change that touched it; until that is on disk it may not be forgotten."""
    gone: bool = False
    """Deleted, or replaced by a newer instance of the same id."""
    pace: Pace = attrs.field(factory=Pace)

    @property
    def ended(self) -> bool:
        return self.status in Status.ENDED

    @property
    def idle(self) -> bool:
        """Nothing in memory would be lost by forgetting it, once it is on disk."""
        return not self.inbox and self.lease is None and not self.queued and not self.large


@attrs.frozen(kw_only=True)
class Activity:
    """An activity that was scheduled and has not been answered."""

    id: int
    orchestration: int
    """The id (not the instance id) of the orchestration that asked for it."""
    instance_id: str
    task_id: int
    name: str
    version: str | None
    request: bytes
    """A serialized `ActivityRequest`."""


@attrs.frozen(kw_only=True)
class Operation:
    """An operation in an entity's mailbox."""

    id: int
    event: bytes
    """A serialized `HistoryEvent`: `entityOperationCalled` or `entityOperationSignaled`."""
    request_id: str
    caller: int | None = None
    """The id of the orchestration that waits for the answer; None for a signal."""
    caller_instance: str | None = None
    caller_execution: str | None = None


@attrs.frozen(kw_only=True)
class Lock:
    """Who holds an entity."""

    section: str
    """The critical section's id, from the orchestration that holds it."""
    holder: int
    """That orchestration's id."""
    holder_instance: str


@attrs.frozen(kw_only=True)
class LockRequest:
    """An orchestration's wish to hold several entities at once."""

    id: int
    """Also its place in line: operations with a smaller id run first."""
    section: str
    holder: int
    holder_instance: str
    holder_execution: str
    entities: tuple[str, ...]


@attrs.define(kw_only=True, eq=False)
class Entity:
    """One entity that is not idle, or was used a moment ago."""

    id: int
    entity_id: str
    state: str | None = None
    """None: as far as anybody can see, it does not exist."""
    modified: int = 0
    lock: Lock | None = None
    mailbox: deque[Operation] = attrs.field(factory=deque[Operation])

    stored: bool = False
    """Whether a row was written for it."""
    lease: str | None = None
    batch: tuple[Operation, ...] = ()
    """What the worker that holds the lease was asked to do."""
    queued: bool = False
    """Its next batch waits for a worker."""
    dirty: int = NEVER_COMMITTED

    @property
    def idle(self) -> bool:
        """Nothing in memory would be lost by forgetting it, once it is on disk."""
        return not self.mailbox and self.lease is None and not self.queued and self.lock is None

    @property
    def empty(self) -> bool:
        """Nothing is left to remember."""
        return self.state is None and self.idle
