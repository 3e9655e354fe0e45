"""Records to rows and back: one function for each thing that is written or read."""

from __future__ import annotations

import json
from collections import deque
from typing import TYPE_CHECKING, Final

from dafx_actors.scheduler._ground.records import (
    MESSAGE_KINDS,
    Activity,
    Entity,
    Lock,
    LockRequest,
    Message,
    Operation,
    Orchestration,
    Parent,
    Start,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import Any

    from dafx_actors.scheduler._ground.records import MessageKind
    from dafx_actors.scheduler.storage.committer import Changes
    from dafx_actors.scheduler.storage.database import Row

MESSAGE_NUMBERS: Final[dict[MessageKind, int]] = {kind: number for number, kind in enumerate(MESSAGE_KINDS)}

TIMER_FIRES: Final = 0
TIMER_STARTS: Final = 1
TIMER_TELLS: Final = 2

# --- writing -------------------------------------------------------------------------------------------------


def insert_hub(changes: Changes, hub: int, name: str) -> None:
    """A task hub was used for the first time."""
    changes.write("INSERT INTO hubs (id, name) VALUES (?, ?)", hub, name)


def insert_orchestration(changes: Changes, hub: int, orchestration: Orchestration) -> None:
    """A new instance, with what it was started with."""
    it, parent = orchestration, orchestration.parent
    changes.write(
        "INSERT INTO orchestrations (id, hub, instance_id, execution_id, name, version, status, created, updated,"
        " scheduled, parent, parent_instance, parent_execution, parent_task, parent_name, parent_version)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        it.id, hub, it.instance_id, it.execution_id, it.name, it.version, it.status, it.created, it.updated,
        it.scheduled, *_parent_values(parent),
    )  # fmt: skip
    write_payload(changes, it)


def _parent_values(parent: Parent | None) -> Row:
    if parent is None:
        return (None,) * 6
    return (parent.id, parent.instance_id, parent.execution_id, parent.task_id, parent.name, parent.version)


def write_payload(changes: Changes, orchestration: Orchestration) -> None:
    """What it was started with; its output and failure are cleared."""
    start = orchestration.start
    assert start is not None, "loaded before it is written"
    changes.write(
        "INSERT OR REPLACE INTO payloads (id, input, tags, trace, scheduled) VALUES (?, ?, ?, ?, ?)",
        orchestration.id,
        start.input,
        json.dumps(dict(start.tags)) if start.tags else None,
        start.trace or None,
        start.scheduled,
    )


def update_orchestration(changes: Changes, orchestration: Orchestration) -> None:
    """All that changes at an episode."""
    it = orchestration
    changes.write(
        "UPDATE orchestrations SET execution_id = ?, version = ?, status = ?, updated = ?, completed = ?,"
        " scheduled = ?, custom_status = ?, trace = ? WHERE id = ?",
        it.execution_id, it.version, it.status, it.updated, it.completed, it.scheduled, it.custom_status,
        it.trace or None, it.id,
    )  # fmt: skip


def update_parent(changes: Changes, orchestration: Orchestration) -> None:
    """Another execution waits for it."""
    changes.write(
        "UPDATE orchestrations SET parent = ?, parent_instance = ?, parent_execution = ?, parent_task = ?,"
        " parent_name = ?, parent_version = ? WHERE id = ?",
        *_parent_values(orchestration.parent),
        orchestration.id,
    )


def update_outcome(changes: Changes, orchestration: Orchestration) -> None:
    """What it came to."""
    changes.write(
        "UPDATE payloads SET output = ?, failure = ? WHERE id = ?",
        orchestration.output,
        orchestration.failure,
        orchestration.id,
    )


def delete_orchestration(changes: Changes, row: int) -> None:
    """The instance and everything about it."""
    changes.write("DELETE FROM orchestrations WHERE id = ?", row)
    changes.write("DELETE FROM payloads WHERE id = ?", row)
    delete_history(changes, row)
    delete_work(changes, row)


def insert_ending(changes: Changes, hub: int, row: int, output: str | None) -> None:
    """It was terminated with all below it, which is still to be ended."""
    changes.write("INSERT OR REPLACE INTO endings (orchestration, hub, output) VALUES (?, ?, ?)", row, hub, output)


def delete_ending(changes: Changes, row: int) -> None:
    """All below it has ended."""
    changes.write("DELETE FROM endings WHERE orchestration = ?", row)


LARGEST_CHUNK: Final = 2**18
"""Bytes of a history in one row. SQLite reads a whole row to find its place in a table without rowids."""


def append_history(changes: Changes, rows: Callable[[], int], orchestration: int, events: bytes) -> None:
    """The events of one episode, in as many rows as they take, of which `rows` gives the ids."""
    whole = memoryview(events)
    changes.heavy = changes.heavy or len(events) > LARGEST_CHUNK
    for at in range(0, len(events), LARGEST_CHUNK):
        changes.write(
            "INSERT INTO histories (id, orchestration, events) VALUES (?, ?, ?)",
            rows(),
            orchestration,
            events if len(events) <= LARGEST_CHUNK else whole[at : at + LARGEST_CHUNK],
        )


def delete_history(changes: Changes, orchestration: int) -> None:
    """All of it; a new one begins."""
    changes.write("DELETE FROM histories WHERE orchestration = ?", orchestration)


def delete_work(changes: Changes, orchestration: int) -> None:
    """What waits for an execution that is over: messages, activities, timers."""
    changes.write("DELETE FROM inbox WHERE orchestration = ?", orchestration)
    changes.write("DELETE FROM activities WHERE orchestration = ?", orchestration)
    changes.write("DELETE FROM timers WHERE orchestration = ?", orchestration)


def insert_message(changes: Changes, orchestration: int, message: Message) -> None:
    """Something to tell an orchestration."""
    changes.write(
        "INSERT INTO inbox (id, orchestration, kind, event) VALUES (?, ?, ?, ?)",
        message.id,
        orchestration,
        MESSAGE_NUMBERS[message.kind],
        message.event,
    )


def delete_messages(changes: Changes, orchestration: int, up_to: int) -> None:
    """It was told, up to this message."""
    changes.write("DELETE FROM inbox WHERE orchestration = ? AND id <= ?", orchestration, up_to)


def insert_activity(changes: Changes, activity: Activity) -> None:
    """An activity was scheduled."""
    changes.write(
        "INSERT INTO activities (id, orchestration, task, name, version, request) VALUES (?, ?, ?, ?, ?, ?)",
        activity.id,
        activity.orchestration,
        activity.task_id,
        activity.name,
        activity.version,
        activity.request,
    )


def delete_activity(changes: Changes, activity: Activity) -> None:
    """It was answered."""
    changes.write("DELETE FROM activities WHERE orchestration = ? AND id = ?", activity.orchestration, activity.id)


def insert_timer(changes: Changes, row: int, hub: int, due: int, orchestration: int, event: bytes) -> None:
    """An orchestration's timer."""
    changes.write(
        "INSERT INTO timers (id, hub, due, kind, orchestration, event) VALUES (?, ?, ?, ?, ?, ?)",
        row, hub, due, TIMER_FIRES, orchestration, event,
    )  # fmt: skip


def insert_scheduled_start(changes: Changes, row: int, hub: int, due: int, orchestration: int) -> None:
    """An orchestration that may start later."""
    changes.write(
        "INSERT INTO timers (id, hub, due, kind, orchestration) VALUES (?, ?, ?, ?, ?)",
        row, hub, due, TIMER_STARTS, orchestration,
    )  # fmt: skip


def insert_delayed_operation(
    changes: Changes, row: int, hub: int, due: int, entity_id: str, operation: Operation
) -> None:
    """An operation that an entity gets later."""
    changes.write(
        "INSERT INTO timers (id, hub, due, kind, event, entity, request, caller, caller_instance, caller_execution)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        row, hub, due, TIMER_TELLS, operation.event, entity_id, operation.request_id, operation.caller,
        operation.caller_instance, operation.caller_execution,
    )  # fmt: skip


def delete_timer(changes: Changes, row: int) -> None:
    """It fired."""
    changes.write("DELETE FROM timers WHERE id = ?", row)


def write_entity(changes: Changes, hub: int, entity: Entity) -> None:
    """An entity's state and lock."""
    lock = entity.lock
    changes.write(
        "INSERT INTO entities (id, hub, entity_id, state, modified, section, holder, holder_instance)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET state = excluded.state,"
        " modified = excluded.modified, section = excluded.section, holder = excluded.holder,"
        " holder_instance = excluded.holder_instance",
        entity.id, hub, entity.entity_id, entity.state, entity.modified,
        *((None, None, None) if lock is None else (lock.section, lock.holder, lock.holder_instance)),
    )  # fmt: skip


def delete_entity(changes: Changes, row: int) -> None:
    """Nothing is left of it."""
    changes.write("DELETE FROM entities WHERE id = ?", row)


def insert_operation(changes: Changes, entity: int, operation: Operation) -> None:
    """An operation for an entity's mailbox."""
    changes.write(
        "INSERT INTO operations (id, entity, event, request, caller, caller_instance, caller_execution)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)",
        operation.id, entity, operation.event, operation.request_id, operation.caller, operation.caller_instance,
        operation.caller_execution,
    )  # fmt: skip


def delete_operation(changes: Changes, entity: int, row: int) -> None:
    """It was carried out."""
    changes.write("DELETE FROM operations WHERE entity = ? AND id = ?", entity, row)


def insert_lock_request(changes: Changes, hub: int, request: LockRequest) -> None:
    """Somebody waits for a lock."""
    changes.write(
        "INSERT INTO lock_requests (id, hub, section, holder, holder_instance, holder_execution, entities)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)",
        request.id, hub, request.section, request.holder, request.holder_instance, request.holder_execution,
        json.dumps(request.entities),
    )  # fmt: skip


def delete_lock_request(changes: Changes, row: int) -> None:
    """It was granted, or nobody waits any more."""
    changes.write("DELETE FROM lock_requests WHERE id = ?", row)


def insert_signal(changes: Changes, hub: int, request_id: str, at: int) -> None:
    """A client's signal was taken."""
    changes.write("INSERT OR IGNORE INTO signals (hub, request, at) VALUES (?, ?, ?)", hub, request_id, at)


def delete_signals(changes: Changes, before: int) -> None:
    """Signals of so long ago are not sent again."""
    changes.write("DELETE FROM signals WHERE at < ?", before)


def write_hosted(changes: Changes, hub: int, kind: str, name: str, at: int) -> None:
    """A worker that takes this name was connected."""
    changes.write("INSERT OR REPLACE INTO hosted (hub, kind, name, at) VALUES (?, ?, ?, ?)", hub, kind, name, at)


def delete_hosted(changes: Changes, hub: int, before: int) -> None:
    """Nobody has taken these for long."""
    changes.write("DELETE FROM hosted WHERE hub = ? AND at < ?", hub, before)


def touch(changes: Changes, at: int) -> None:
    """Write something, to see whether that is possible."""
    changes.write("INSERT OR REPLACE INTO signals (hub, request, at) VALUES (0, 'touch', ?)", at)


# --- reading -------------------------------------------------------------------------------------------------

ORCHESTRATION_COLUMNS: Final = (
    "o.id, o.instance_id, o.execution_id, o.name, o.version, o.status, o.created, o.updated, o.completed,"
    " o.scheduled, o.custom_status, o.trace, o.parent, o.parent_instance, o.parent_execution, o.parent_task,"
    " o.parent_name, o.parent_version"
)
PAYLOAD_COLUMNS: Final = "p.input, p.output, p.failure, p.tags, p.trace, p.scheduled"


def read_orchestration(row: Row) -> Orchestration:
    """From `ORCHESTRATION_COLUMNS`."""
    (id_, instance_id, execution_id, name, version, status, created, updated, completed, scheduled, custom, trace,
     *parent) = row  # fmt: skip
    return Orchestration(
        id=id_,
        instance_id=instance_id,
        execution_id=execution_id,
        name=name,
        version=version,
        status=status,
        created=created,
        updated=updated,
        completed=completed,
        scheduled=scheduled,
        custom_status=custom,
        trace=trace or b"",
        parent=None if parent[0] is None else _read_parent(parent),
    )


def _read_parent(values: list[Any]) -> Parent:
    id_, instance_id, execution_id, task_id, name, version = values
    return Parent(
        id=id_, instance_id=instance_id, execution_id=execution_id, task_id=task_id, name=name, version=version
    )


def read_payload(orchestration: Orchestration, row: Row) -> None:
    """From `PAYLOAD_COLUMNS`, into the record."""
    input_, output, failure, tags, trace, scheduled = row
    orchestration.start = Start(
        name=orchestration.name,
        version=orchestration.version,
        input=input_,
        tags=json.loads(tags) if tags else {},
        trace=trace or b"",
        scheduled=scheduled,
    )
    orchestration.output = output
    orchestration.failure = failure


ACTIVITY_COLUMNS: Final = "a.id, a.orchestration, o.instance_id, a.task, a.name, a.version, a.request"


def read_activity(row: Row) -> Activity:
    """From `ACTIVITY_COLUMNS`."""
    id_, orchestration, instance_id, task, name, version, request = row
    return Activity(
        id=id_,
        orchestration=orchestration,
        instance_id=instance_id,
        task_id=task,
        name=name,
        version=version,
        request=request,
    )


MESSAGE_COLUMNS: Final = "id, kind, event"


def read_messages(rows: Iterable[Sequence[Any]]) -> deque[Message]:
    """From `MESSAGE_COLUMNS`."""
    found: deque[Message] = deque()
    for id_, kind, event in rows:
        found.append(Message(id_, MESSAGE_KINDS[int(kind)], event))
    return found


ENTITY_COLUMNS: Final = "id, entity_id, state, modified, section, holder, holder_instance"


def read_entity(row: Row) -> Entity:
    """From `ENTITY_COLUMNS`."""
    id_, entity_id, state, modified, section, holder, holder_instance = row
    lock = None if section is None else Lock(section=section, holder=holder, holder_instance=holder_instance)
    return Entity(id=id_, entity_id=entity_id, state=state, modified=modified, lock=lock, stored=True)


OPERATION_COLUMNS: Final = "id, event, request, caller, caller_instance, caller_execution"


def read_operation(row: Row) -> Operation:
    """From `OPERATION_COLUMNS`."""
    id_, event, request_id, caller, caller_instance, caller_execution = row
    return Operation(
        id=id_,
        event=event,
        request_id=request_id,
        caller=caller,
        caller_instance=caller_instance,
        caller_execution=caller_execution,
    )


def read_lock_request(row: Row) -> LockRequest:
    """From id, section, holder, holder_instance, holder_execution, entities."""
    id_, section, holder, holder_instance, holder_execution, entities = row
    return LockRequest(
        id=id_,
        section=section,
        holder=holder,
        holder_instance=holder_instance,
        holder_execution=holder_execution,
        entities=tuple(json.loads(entities)),
    )
