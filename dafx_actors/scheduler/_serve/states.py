"""What clients are shown of orchestrations and entities."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dafx_actors.scheduler._ground.proto import pb, text, timestamp

if TYPE_CHECKING:
    from dafx_actors.scheduler._ground.records import Entity, Orchestration


def instance_response(it: Orchestration, *, payloads: bool) -> pb.GetInstanceResponse:
    """An orchestration that was found, and whose payload was loaded."""
    return pb.GetInstanceResponse(exists=True, orchestrationState=state(it, payloads=payloads))


def state(it: Orchestration, *, payloads: bool) -> pb.OrchestrationState:
    """An orchestration whose payload was loaded, with or without input and output."""
    assert it.start is not None, "loaded"
    shown = pb.OrchestrationState(
        instanceId=it.instance_id,
        name=it.name,
        version=text(it.version),
        orchestrationStatus=it.status,  # type: ignore[arg-type]  # an int, as protobuf takes it
        createdTimestamp=timestamp(it.created),
        lastUpdatedTimestamp=timestamp(it.updated),
        customStatus=text(it.custom_status),
        executionId=text(it.execution_id),
        tags=it.start.tags,
        input=text(it.start.input if payloads else None),
        output=text(it.output if payloads else None),
    )
    if it.failure is not None:
        shown.failureDetails.ParseFromString(it.failure)
    if it.completed is not None:
        shown.completedTimestamp.CopyFrom(timestamp(it.completed))
    if it.start.scheduled is not None:
        shown.scheduledStartTimestamp.CopyFrom(timestamp(it.start.scheduled))
    if it.parent is not None:
        shown.parentInstanceId.value = it.parent.instance_id
    return shown


def entity_metadata(entity: Entity, backlog: int, *, state: bool) -> pb.EntityMetadata:
    """An entity, with or without its state."""
    return pb.EntityMetadata(
        instanceId=entity.entity_id,
        lastModifiedTime=timestamp(entity.modified),
        backlogQueueSize=backlog,
        lockedBy=text(None if entity.lock is None else entity.lock.holder_instance),
        serializedState=text(entity.state if state else None),
    )
