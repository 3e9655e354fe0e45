"""What each call of `TaskHubSidecarService` means, apart from gRPC.

One function for each unary call, in the table `UNARY`: it is given the task hub and the request, and returns the
reply once all that it promises is on disk. It raises `Refused` with the status that the caller shall get.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import attrs

from dafx_actors.errors import SchedulerDatabaseError, SchedulerWriteFailed
from dafx_actors.scheduler._ground import events as _events
from dafx_actors.scheduler._ground.proto import LARGE, Status, micros, pb, serialize, text_of
from dafx_actors.scheduler._ground.records import Activity, Entity, Orchestration, Start
from dafx_actors.scheduler._hub import large_answers as _large_answers
from dafx_actors.scheduler._hub.hub import Refused, Superseded, TaskHub
from dafx_actors.scheduler._hub.large_answers import MANY_ACTIONS, MOST_ACTIONS
from dafx_actors.scheduler._rules.episodes import InvalidAnswer
from dafx_actors.scheduler._serve import states as _states

if TYPE_CHECKING:
    from dafx_actors.scheduler._ground.records import WorkKind
    from dafx_actors.scheduler._rules.dispatch import Work
    from dafx_actors.scheduler.storage.committer import Changes

T = TypeVar("T")
Handler: TypeAlias = Callable[[TaskHub, Any], Awaitable[Any]]

# --- starting and waiting ------------------------------------------------------------------------------------------


def _make_room(hub: TaskHub, changes: Changes, request: pb.CreateInstanceRequest, instance_id: str) -> None:
    """Remove the instance that has this id, if the caller's policy allows that."""
    replaceable: set[int] = set()
    if request.HasField("orchestrationIdReusePolicy"):
        replaceable = {int(status) for status in request.orchestrationIdReusePolicy.replaceableStatus}
    if replaceable & Status.LIVE and Status.TERMINATED not in replaceable:
        raise Refused(
            "INVALID_ARGUMENT",
            "Invalid reusable statuses: cannot exclude 'Terminated' while also allowing reuse of running instances",
        )
    existing = hub.orchestrations.find(instance_id)
    if existing is None:
        return
    if existing.status not in replaceable:
        status = Status.NAMES[existing.status]
        raise Refused(
            "ALREADY_EXISTS", f"An orchestration with the instance id {instance_id!r} already exists; it is {status}."
        )
    if not existing.ended:
        hub.orchestrations.terminate(changes, existing, None, recurse=False)
    hub.orchestrations.delete(changes, existing)


size: ContextVar[int] = ContextVar("dafx_scheduler_size", default=0)
"""Bytes of the request that is carried out. To ask protobuf takes as long as to write it."""


async def _beside(make: Callable[[], T]) -> T:
    """What is made of a request, apart from anything else."""
    return make() if size.get() < LARGE else await asyncio.to_thread(make)


async def _shown(hub: TaskHub, it: Orchestration, *, payloads: bool) -> pb.GetInstanceResponse | bytes:
    """What a client is shown of an orchestration; serialized where that takes long."""
    if not payloads:
        return _states.instance_response(hub.store.outline(it), payloads=False)
    await hub.store.warm(it, payload=True)
    hub.store.load_payload(it)
    assert it.start is not None, "loaded"
    if len(it.start.input or "") + len(it.output or "") < LARGE:
        return _states.instance_response(it, payloads=True)
    copied = attrs.evolve(it)  # It may change meanwhile.
    return await asyncio.to_thread(lambda: serialize(_states.instance_response(copied, payloads=True)))


def _start_in(request: pb.CreateInstanceRequest) -> Start:
    return Start(
        name=request.name,
        version=text_of(request, "version"),
        input=text_of(request, "input"),
        tags=dict(request.tags),
        trace=serialize(request.parentTraceContext) if request.HasField("parentTraceContext") else b"",
        # At least one SDK always sends it, and means "now" by the epoch.
        scheduled=(micros(request.scheduledStartTimestamp) or None)
        if request.HasField("scheduledStartTimestamp")
        else None,
    )


async def start_instance(hub: TaskHub, request: pb.CreateInstanceRequest) -> pb.CreateInstanceResponse:
    """StartInstance."""
    instance_id = request.instanceId or uuid.uuid4().hex
    start = await _beside(lambda: _start_in(request))
    if not start.name:
        raise Refused("INVALID_ARGUMENT", "An orchestration needs a name.")
    with hub.changing() as changes:
        _make_room(hub, changes, request, instance_id)
        hub.orchestrations.create(changes, instance_id, start)
    await changes.committed()
    return pb.CreateInstanceResponse(instanceId=instance_id)


async def get_instance(hub: TaskHub, request: pb.GetInstanceRequest) -> pb.GetInstanceResponse | bytes:
    """GetInstance."""
    it = hub.orchestrations.find(request.instanceId)
    if it is None:
        return pb.GetInstanceResponse(exists=False)
    reply = await _shown(hub, it, payloads=request.getInputsAndOutputs)
    hub.orchestrations.rest(it)
    await hub.on_disk(it)
    return reply


async def wait_for_start(hub: TaskHub, request: pb.GetInstanceRequest) -> pb.GetInstanceResponse | bytes:
    """WaitForInstanceStart."""
    it = await hub.wait(request.instanceId, ended=False)
    return await _shown(hub, it, payloads=request.getInputsAndOutputs)


async def wait_for_completion(hub: TaskHub, request: pb.GetInstanceRequest) -> pb.GetInstanceResponse | bytes:
    """WaitForInstanceCompletion."""
    it = await hub.wait(request.instanceId, ended=True)
    return await _shown(hub, it, payloads=request.getInputsAndOutputs)


# --- steering ------------------------------------------------------------------------------------------------------


async def raise_event(hub: TaskHub, request: pb.RaiseEventRequest) -> pb.RaiseEventResponse:
    """RaiseEvent."""
    hub.existing(request.instanceId)
    now = hub.clock.now()
    event = await _beside(lambda: _events.event_raised(now, request.name, text_of(request, "input")))
    it = hub.existing(request.instanceId)
    with hub.changing() as changes:
        hub.orchestrations.tell(changes, it, "event", event)
    await changes.committed()
    return pb.RaiseEventResponse()


async def _warmed(hub: TaskHub, instance_id: str) -> Orchestration | None:
    """The orchestration, if there is one, with what it was started with and what it came to, where that is large."""
    it = hub.orchestrations.find(instance_id)
    if it is not None and it.start is None:
        await hub.store.warm(it, payload=True)
        it = hub.orchestrations.find(instance_id)
    return it


async def terminate(hub: TaskHub, request: pb.TerminateRequest) -> pb.TerminateResponse:
    """TerminateInstance."""
    it = await _warmed(hub, request.instanceId)
    if it is not None:
        with hub.changing() as changes:
            hub.orchestrations.terminate(changes, it, text_of(request, "output"), recurse=request.recursive)
        await changes.committed()
        await hub.endings.done(it.id)
    return pb.TerminateResponse()


async def suspend(hub: TaskHub, request: pb.SuspendRequest) -> pb.SuspendResponse:
    """SuspendInstance."""
    it = hub.existing(request.instanceId)
    with hub.changing() as changes:
        hub.orchestrations.suspend(changes, it, text_of(request, "reason"))
    await changes.committed()
    return pb.SuspendResponse()


async def resume(hub: TaskHub, request: pb.ResumeRequest) -> pb.ResumeResponse:
    """ResumeInstance."""
    it = hub.existing(request.instanceId)
    with hub.changing() as changes:
        hub.orchestrations.resume(changes, it, text_of(request, "reason"))
    await changes.committed()
    return pb.ResumeResponse()


async def restart(hub: TaskHub, request: pb.RestartInstanceRequest) -> pb.RestartInstanceResponse:
    """RestartInstance."""
    await _warmed(hub, request.instanceId)
    it = hub.existing(request.instanceId)
    instance_id = uuid.uuid4().hex if request.restartWithNewInstanceId else it.instance_id
    if not it.ended and instance_id == it.instance_id:
        raise Refused(
            "FAILED_PRECONDITION",
            f"The orchestration {it.instance_id!r} is {Status.NAMES[it.status]}. Under its own instance id it can be "
            "restarted when it has ended.",
        )
    hub.store.load_payload(it)
    assert it.start is not None, "loaded"
    start = Start(name=it.name, version=it.version, input=it.start.input, tags=it.start.tags, trace=it.start.trace)
    with hub.changing() as changes:
        if instance_id == it.instance_id:
            hub.orchestrations.delete(changes, it)
        hub.orchestrations.create(changes, instance_id, start)
    await changes.committed()
    return pb.RestartInstanceResponse(instanceId=instance_id)


async def rewind(hub: TaskHub, request: pb.RewindInstanceRequest) -> pb.RewindInstanceResponse:
    """RewindInstance."""
    await _warmed(hub, request.instanceId)
    it = hub.existing(request.instanceId)
    if it.status != Status.FAILED:
        raise Refused(
            "FAILED_PRECONDITION",
            f"The orchestration {it.instance_id!r} is {Status.NAMES[it.status]}; only a failed one can be rewound.",
        )
    with hub.changing() as changes:
        hub.rewinding.request(changes, it, text_of(request, "reason"))
    await changes.committed()
    return pb.RewindInstanceResponse()


# --- entities ------------------------------------------------------------------------------------------------------


def _signal_in(request: pb.SignalEntityRequest, now: int) -> bytes:
    signaled = pb.EntityOperationSignaledEvent(requestId=request.requestId, operation=request.name)
    signaled.targetInstanceId.value = request.instanceId
    if request.HasField("input"):
        signaled.input.CopyFrom(request.input)
    if request.HasField("scheduledTime"):
        signaled.scheduledTime.CopyFrom(request.scheduledTime)
    return _events.event(now, entityOperationSignaled=signaled)


async def signal_entity(hub: TaskHub, request: pb.SignalEntityRequest) -> pb.SignalEntityResponse:
    """SignalEntity."""
    due = micros(request.scheduledTime) if request.HasField("scheduledTime") else None
    now = hub.clock.now()
    event = await _beside(lambda: _signal_in(request, now))
    with hub.changing() as changes:
        hub.signal(changes, request, event, due)
    await changes.committed()
    return pb.SignalEntityResponse()


async def get_entity(hub: TaskHub, request: pb.GetEntityRequest) -> pb.GetEntityResponse | bytes:
    """GetEntity."""
    entity = hub.entities.find(request.instanceId)
    if entity is None:
        return pb.GetEntityResponse(exists=False)
    reply = pb.GetEntityResponse(exists=False)
    if entity.state is not None:
        state = request.includeState
        if state and len(entity.state) >= LARGE:
            copied, backlog = attrs.evolve(entity), len(entity.mailbox)  # It may change meanwhile.
            found = await asyncio.to_thread(
                lambda: serialize(
                    pb.GetEntityResponse(exists=True, entity=_states.entity_metadata(copied, backlog, state=True))
                )
            )
            await hub.store.committer.reached(copied.dirty)
            return found
        metadata = _states.entity_metadata(entity, len(entity.mailbox), state=state)
        reply = pb.GetEntityResponse(exists=True, entity=metadata)
    await hub.on_disk(entity)
    return reply


# --- workers -------------------------------------------------------------------------------------------------------


TOO_LATE = (
    "This answer came too late and was not used: the work was handed out again since, because its worker was "
    "disconnected, took too long, or because the scheduler was restarted."
)


def _held(hub: TaskHub, token: str, kind: WorkKind) -> Work | None:
    try:
        return hub.answered(token, kind)
    except Superseded:
        raise Refused("FAILED_PRECONDITION", TOO_LATE) from None


@contextmanager
def _given_back(hub: TaskHub, work: Work) -> Generator[None]:
    """An answer that cannot be used, since something cannot be read for a moment or fails, leaves its work."""
    loaded = hub.loaded
    try:
        yield
    except (InvalidAnswer, SchedulerDatabaseError, SchedulerWriteFailed):
        raise  # which is seen to elsewhere, or for which everything waits
    except Exception:
        if hub.loaded == loaded:  # else all of it was read again from the store
            hub.again(work)
        raise


async def complete_orchestrator(hub: TaskHub, request: pb.OrchestratorResponse) -> pb.CompleteTaskResponse:
    """CompleteOrchestratorTask."""
    work = _held(hub, request.completionToken, "orchestration")
    if work is not None:
        is_heavy = _is_heavy(hub, work, request)
        if is_heavy:
            # Not cut off with its call: half of it may be there.
            await asyncio.shield(asyncio.create_task(_turned(hub, work, request, is_heavy=True)))
        else:
            await _turned(hub, work, request, is_heavy=False)
    return pb.CompleteTaskResponse()


def _is_heavy(hub: TaskHub, work: Work, request: pb.OrchestratorResponse) -> bool:
    """Whether to use an answer would hold the loop: it says much, its episode was told much, or much is to be read."""
    it = work.subject
    assert isinstance(it, Orchestration), "by its kind"
    if len(request.actions) > MANY_ACTIONS or size.get() >= LARGE or sum(map(len, it.told)) >= LARGE:
        return True
    ends = bool(request.actions) and request.actions[-1].HasField("completeOrchestration")
    return ends and hub.store.is_large(it, payload=True)


async def _turned(hub: TaskHub, work: Work, request: pb.OrchestratorResponse, *, is_heavy: bool) -> None:
    it, many = work.subject, len(request.actions)
    assert isinstance(it, Orchestration), "by its kind"
    try:
        with _given_back(hub, work):
            if many <= MOST_ACTIONS and is_heavy:
                await _large_answers.turned(hub, it, request)
                return
            with hub.changing() as changes:
                if many > MOST_ACTIONS:
                    failure = pb.TaskFailureDetails(errorType="TooManyActions", isNonRetriable=True)
                    failure.errorMessage = (
                        f"The orchestration asked for {many:,} things at once; it may ask for {MOST_ACTIONS:,}. "
                        "Nothing of it was done. Ask for less at a time, and wait for that before you ask for more."
                    )
                    hub.orchestrations.fail(changes, it, failure)
                else:
                    hub.orchestrations.turned(changes, it, request)
            await changes.committed()
    except InvalidAnswer as error:
        hub.again(work)
        raise Refused("INVALID_ARGUMENT", f"The episode of {it.instance_id!r} was not used: {error}.") from error


async def complete_activity(hub: TaskHub, request: pb.ActivityResponse) -> pb.CompleteTaskResponse:
    """CompleteActivityTask."""
    now, token = hub.clock.now(), request.completionToken
    out = hub.delivery.held_under(token, "activity")
    task_id = out.subject.task_id if out is not None and isinstance(out.subject, Activity) else request.taskId
    event = await _beside(lambda: _events.activity_answered(now, task_id, request))
    work = _held(hub, token, "activity")
    if work is not None:
        activity = work.subject
        assert isinstance(activity, Activity), "by its kind"
        with _given_back(hub, work), hub.changing() as changes:
            hub.orchestrations.activity_answered(changes, activity, event)
        await changes.committed()
    return pb.CompleteTaskResponse()


async def complete_entity(hub: TaskHub, request: pb.EntityBatchResult) -> pb.CompleteTaskResponse:
    """CompleteEntityTask."""
    verdict = None
    if size.get() >= LARGE and (out := hub.delivery.held_under(request.completionToken, "entity")) is not None:
        entity = out.subject
        assert isinstance(entity, Entity), "by its kind"
        verdict = await asyncio.to_thread(hub.entities.judge, entity, request)
    work = _held(hub, request.completionToken, "entity")
    if work is not None:
        entity = work.subject
        assert isinstance(entity, Entity), "by its kind"
        if request.HasField("failureDetails") or not request.results:
            # The worker could not do any of it, as against an operation that failed.
            hub.again(work)
            return pb.CompleteTaskResponse()
        with _given_back(hub, work), hub.changing() as changes:
            hub.entities.settled(changes, entity, request, verdict)
        await changes.committed()
    return pb.CompleteTaskResponse()


def _abandon(hub: TaskHub, token: str, kind: WorkKind) -> None:
    # A worker that stops gives back what it has left, also what was handed out again since: then all is well.
    with suppress(Superseded):
        hub.delivery.given_back(token, kind)
        work = hub.answered(token, kind)
        if work is not None:
            hub.again(work)


async def abandon_orchestrator(
    hub: TaskHub, request: pb.AbandonOrchestrationTaskRequest
) -> pb.AbandonOrchestrationTaskResponse:
    """AbandonTaskOrchestratorWorkItem."""
    _abandon(hub, request.completionToken, "orchestration")
    return pb.AbandonOrchestrationTaskResponse()


async def abandon_activity(hub: TaskHub, request: pb.AbandonActivityTaskRequest) -> pb.AbandonActivityTaskResponse:
    """AbandonTaskActivityWorkItem."""
    _abandon(hub, request.completionToken, "activity")
    return pb.AbandonActivityTaskResponse()


async def abandon_entity(hub: TaskHub, request: pb.AbandonEntityTaskRequest) -> pb.AbandonEntityTaskResponse:
    """AbandonTaskEntityWorkItem."""
    _abandon(hub, request.completionToken, "entity")
    return pb.AbandonEntityTaskResponse()


async def create_task_hub(_: TaskHub, __: pb.CreateTaskHubRequest) -> pb.CreateTaskHubResponse:
    """CreateTaskHub: task hubs come into being when they are used."""
    return pb.CreateTaskHubResponse()


UNARY: Mapping[str, tuple[type, Handler]] = {
    "StartInstance": (pb.CreateInstanceRequest, start_instance),
    "GetInstance": (pb.GetInstanceRequest, get_instance),
    "WaitForInstanceStart": (pb.GetInstanceRequest, wait_for_start),
    "WaitForInstanceCompletion": (pb.GetInstanceRequest, wait_for_completion),
    "RaiseEvent": (pb.RaiseEventRequest, raise_event),
    "TerminateInstance": (pb.TerminateRequest, terminate),
    "SuspendInstance": (pb.SuspendRequest, suspend),
    "ResumeInstance": (pb.ResumeRequest, resume),
    "RestartInstance": (pb.RestartInstanceRequest, restart),
    "RewindInstance": (pb.RewindInstanceRequest, rewind),
    "SignalEntity": (pb.SignalEntityRequest, signal_entity),
    "GetEntity": (pb.GetEntityRequest, get_entity),
    "CompleteOrchestratorTask": (pb.OrchestratorResponse, complete_orchestrator),
    "CompleteActivityTask": (pb.ActivityResponse, complete_activity),
    "CompleteEntityTask": (pb.EntityBatchResult, complete_entity),
    "AbandonTaskOrchestratorWorkItem": (pb.AbandonOrchestrationTaskRequest, abandon_orchestrator),
    "AbandonTaskActivityWorkItem": (pb.AbandonActivityTaskRequest, abandon_activity),
    "AbandonTaskEntityWorkItem": (pb.AbandonEntityTaskRequest, abandon_entity),
    "CreateTaskHub": (pb.CreateTaskHubRequest, create_task_hub),
}
