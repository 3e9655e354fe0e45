"""What happens to entities: rules without I/O.

An entity has a mailbox of operations and works on one batch of them at a time, in their order of arrival. An
orchestration may lock several entities. Its request has a place in line, like an operation: it is granted when
everything that came before it to any of these entities has run, none of them is locked, and no earlier request
waits for one of them. All are locked at one stroke, so nobody holds some and waits for others (no deadlock); the
line is kept, so nobody is overtaken for ever (no starvation). While an entity is locked only calls of the holder
run; all else waits.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, TypeAlias

import attrs

from dafx_actors.scheduler._ground import events as _events
from dafx_actors.scheduler._ground.proto import micros, pb, serialize, text, text_of
from dafx_actors.scheduler._ground.records import Start

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from dafx_actors.scheduler._ground.records import Entity, LockRequest, Operation

LONGEST_ID = 100
"""Characters in an entity's id, as on the hosted scheduler."""

LARGEST_BATCH = 200
"""Operations that are given to a worker at once."""

HEAVIEST_BATCH = 2**20
"""Bytes of operations that are given to a worker at once, unless one alone has more: they are one message."""


@attrs.frozen(kw_only=True)
class Answer:
    """What an operation came to, for the orchestration that called it."""

    operation: Operation
    event: bytes


@attrs.frozen(kw_only=True)
class Signal:
    """An operation that the entity sends to an entity, perhaps itself, at `due` if that is given."""

    entity_id: str
    event: bytes
    request_id: str
    due: int | None


@attrs.frozen(kw_only=True)
class StartOrchestration:
    """An orchestration that the entity starts, unless there is one of that id."""

    instance_id: str
    start: Start


EntityEffect: TypeAlias = Signal | StartOrchestration


@attrs.frozen(kw_only=True)
class BatchVerdict:
    """All that a worker's answer to a batch changes."""

    done: tuple[Operation, ...]
    """Operations that leave the mailbox. The rest of the batch is run again."""
    state: str | None
    answers: tuple[Answer, ...]
    effects: tuple[EntityEffect, ...]


def problem_with(entity_id: str) -> str | None:
    """Why this cannot be an entity's id, or None where it can."""
    if len(entity_id) > LONGEST_ID:
        return f"the length of an entity's id is limited to {LONGEST_ID} characters; this one has {len(entity_id)}"
    name, at, key = entity_id[1:].partition("@")
    if not (entity_id.startswith("@") and name and at and key):
        return f"{entity_id!r} is not the id of an entity; it should look like '@name@key'"
    return None


def name_of(entity_id: str) -> str:
    """The name that workers register, in lower case."""
    return entity_id[1:].partition("@")[0].lower()


def runnable(entity: Entity) -> tuple[Operation, ...]:
    """The next batch; empty if the entity has nothing to do now."""
    if entity.lease is not None:
        return ()
    operations: Iterable[Operation] = entity.mailbox
    if entity.lock is not None:
        holder = entity.lock.holder
        operations = (operation for operation in operations if operation.caller == holder)
    batch: list[Operation] = []
    weight = 0
    for operation in islice(operations, LARGEST_BATCH):
        weight += len(operation.event)
        if batch and weight > HEAVIEST_BATCH:
            break
        batch.append(operation)
    return tuple(batch)


def _signal(action: pb.SendSignalAction, at: int, new_id: Callable[[], str]) -> Signal:
    request_id = new_id()
    signaled = pb.EntityOperationSignaledEvent(
        requestId=request_id, operation=action.name, targetInstanceId=text(action.instanceId)
    )
    if action.HasField("input"):
        signaled.input.CopyFrom(action.input)
    due = None
    if action.HasField("scheduledTime"):
        signaled.scheduledTime.CopyFrom(action.scheduledTime)
        due = micros(action.scheduledTime)
    event = _events.event(at, entityOperationSignaled=signaled)
    return Signal(entity_id=action.instanceId, event=event, request_id=request_id, due=due)


def _start(action: pb.StartNewOrchestrationAction, new_id: Callable[[], str]) -> StartOrchestration:
    start = Start(
        name=action.name,
        version=text_of(action, "version"),
        input=text_of(action, "input"),
        trace=serialize(action.parentTraceContext) if action.HasField("parentTraceContext") else b"",
        scheduled=micros(action.scheduledTime) if action.HasField("scheduledTime") else None,
    )
    return StartOrchestration(instance_id=action.instanceId or new_id(), start=start)


def _effects(result: pb.EntityBatchResult, at: int, new_id: Callable[[], str]) -> Iterable[EntityEffect]:
    for action in result.actions:
        kind = action.WhichOneof("operationActionType")
        if kind == "sendSignal":
            yield _signal(action.sendSignal, at, new_id)
        elif kind == "startNewOrchestration":
            yield _start(action.startNewOrchestration, new_id)


def _answer(operation: Operation, result: pb.OperationResult, at: int) -> Answer:
    if result.HasField("failure"):
        event = _events.operation_failed(at, operation.request_id, result.failure.failureDetails)
    else:
        event = _events.operation_completed(at, operation.request_id, text_of(result.success, "result"))
    return Answer(operation=operation, event=event)


def settle(
    batch: tuple[Operation, ...], result: pb.EntityBatchResult, at: int, new_id: Callable[[], str]
) -> BatchVerdict:
    """What a worker's answer to a batch changes.

    A batch that failed as a whole must not come here: nothing of it was done, and it is run again.
    """
    done = batch[: len(result.results)]
    answers = tuple(
        _answer(operation, outcome, at)
        for operation, outcome in zip(done, result.results, strict=False)
        if operation.caller is not None
    )
    return BatchVerdict(
        done=done,
        # An empty string means that the state was deleted; "0", "false", "null" and '""' are states.
        state=text_of(result, "entityState") or None,
        answers=answers,
        effects=tuple(_effects(result, at, new_id)),
    )


def grants(requests: Iterable[LockRequest], entity: Callable[[str], Entity | None]) -> list[LockRequest]:
    """The requests, in their order, that can be granted now.

    Args:
        requests: everyone who waits, in order of arrival.
        entity: looks one up; None where nothing is known of it, so that it is free.
    """
    granted: list[LockRequest] = []
    taken: set[str] = set()
    for request in requests:
        free = taken.isdisjoint(request.entities) and all(
            _free_for(request, entity(entity_id)) for entity_id in request.entities
        )
        taken.update(request.entities)
        if free:
            granted.append(request)
    return granted


def _free_for(request: LockRequest, entity: Entity | None) -> bool:
    if entity is None:
        return True
    if entity.lock is not None:
        return False
    return not entity.mailbox or entity.mailbox[0].id > request.id
