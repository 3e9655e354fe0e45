"""History events, as bytes.

Only events that answer for an action carry that action's id; all others carry -1, since at least one SDK expects
ids of 0 and above to rise. Every event has a timestamp.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dafx_actors.scheduler._ground.proto import pb, serialize, text, timestamp

if TYPE_CHECKING:
    from dafx_actors.scheduler._ground.records import Parent, Start

NO_ID = -1


def event(at: int, event_id: int = NO_ID, **kind: Any) -> bytes:
    """One serialized `HistoryEvent`; `kind` is its `eventType` and content."""
    return serialize(pb.HistoryEvent(eventId=event_id, timestamp=timestamp(at), **kind))


def orchestrator_started(at: int) -> bytes:
    """The first event of every episode; its time is the orchestration's clock."""
    return event(at, orchestratorStarted=pb.OrchestratorStartedEvent())


def execution_started(at: int, instance_id: str, execution_id: str, start: Start, parent: Parent | None) -> bytes:
    """The second event of an execution's first episode."""
    started = pb.ExecutionStartedEvent(
        name=start.name,
        version=text(start.version),
        input=text(start.input),
        orchestrationInstance=pb.OrchestrationInstance(instanceId=instance_id, executionId=text(execution_id)),
        tags=start.tags,
    )
    if start.trace:
        started.parentTraceContext.ParseFromString(start.trace)
    if start.scheduled is not None:
        started.scheduledStartTimestamp.CopyFrom(timestamp(start.scheduled))
    if parent is not None:
        started.parentInstance.CopyFrom(
            pb.ParentInstanceInfo(
                taskScheduledId=parent.task_id,
                name=text(parent.name),
                version=text(parent.version),
                orchestrationInstance=pb.OrchestrationInstance(
                    instanceId=parent.instance_id, executionId=text(parent.execution_id)
                ),
            )
        )
    return event(at, executionStarted=started)


def execution_completed(at: int, status: int, output: str | None, failure: bytes | None) -> bytes:
    """The last event of a history."""
    completed = pb.ExecutionCompletedEvent(orchestrationStatus=status, result=text(output))  # type: ignore[arg-type]  # an int, as protobuf takes it
    if failure is not None:
        completed.failureDetails.ParseFromString(failure)
    return event(at, executionCompleted=completed)


def execution_terminated(at: int, output: str | None, recurse: bool) -> bytes:
    """Somebody ended the orchestration from outside."""
    return event(at, executionTerminated=pb.ExecutionTerminatedEvent(input=text(output), recurse=recurse))


def execution_suspended(at: int, reason: str | None) -> bytes:
    """From here on events wait."""
    return event(at, executionSuspended=pb.ExecutionSuspendedEvent(input=text(reason)))


def execution_resumed(at: int, reason: str | None) -> bytes:
    """Events that waited are delivered."""
    return event(at, executionResumed=pb.ExecutionResumedEvent(input=text(reason)))


def execution_rewound(
    at: int, reason: str | None, *, parent_execution_id: str | None = None, instance_id: str | None = None
) -> bytes:
    """A failed orchestration is to go on from before its failure."""
    rewound = pb.ExecutionRewoundEvent(
        reason=text(reason), parentExecutionId=text(parent_execution_id), instanceId=text(instance_id)
    )
    return event(at, executionRewound=rewound)


def event_raised(at: int, name: str, input: str | None) -> bytes:
    """An external event."""
    return event(at, eventRaised=pb.EventRaisedEvent(name=name, input=text(input)))


def task_completed(at: int, task_id: int, result: str | None) -> bytes:
    """An activity's result."""
    return event(at, taskCompleted=pb.TaskCompletedEvent(taskScheduledId=task_id, result=text(result)))


def task_failed(at: int, task_id: int, failure: pb.TaskFailureDetails) -> bytes:
    """An activity's failure."""
    return event(at, taskFailed=pb.TaskFailedEvent(taskScheduledId=task_id, failureDetails=failure))


def activity_answered(at: int, task_id: int, answer: pb.ActivityResponse) -> bytes:
    """What a worker answered for an activity."""
    if answer.HasField("failureDetails"):
        return task_failed(at, task_id, answer.failureDetails)
    return task_completed(at, task_id, answer.result.value if answer.HasField("result") else None)


def child_completed(at: int, task_id: int, result: str | None) -> bytes:
    """A child orchestration's result."""
    completed = pb.SubOrchestrationInstanceCompletedEvent(taskScheduledId=task_id, result=text(result))
    return event(at, subOrchestrationInstanceCompleted=completed)


def child_failed(at: int, task_id: int, failure: bytes) -> bytes:
    """A child orchestration's failure; its details unchanged, since their type decides about retries."""
    failed = pb.SubOrchestrationInstanceFailedEvent(
        taskScheduledId=task_id, failureDetails=pb.TaskFailureDetails.FromString(failure)
    )
    return event(at, subOrchestrationInstanceFailed=failed)


def operation_completed(at: int, request_id: str, output: str | None) -> bytes:
    """An entity's answer to a call."""
    completed = pb.EntityOperationCompletedEvent(requestId=request_id, output=text(output))
    return event(at, entityOperationCompleted=completed)


def operation_failed(at: int, request_id: str, failure: pb.TaskFailureDetails) -> bytes:
    """An entity's operation failed."""
    failed = pb.EntityOperationFailedEvent(requestId=request_id, failureDetails=failure)
    return event(at, entityOperationFailed=failed)


def lock_granted(at: int, section: str) -> bytes:
    """An orchestration now holds the entities that it asked for."""
    return event(at, entityLockGranted=pb.EntityLockGrantedEvent(criticalSectionId=section))


def failure(error_type: str, message: str) -> bytes:
    """Serialized `TaskFailureDetails` for what failed in the scheduler itself, and may be tried again."""
    return serialize(pb.TaskFailureDetails(errorType=error_type, errorMessage=message))
