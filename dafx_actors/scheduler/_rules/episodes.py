"""What an orchestration's episode does: rules without I/O.

An orchestration moves in *episodes*. The scheduler hands a worker the history and what is new; the worker replays the
code and answers with actions. `new_events` says what an episode is given, `judge` what an answer changes: which
events join the history, which effects the rest of the scheduler must carry out, and how the episode leaves the
orchestration. Nothing here reads a clock or a store, so the same arguments give the same verdict.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, TypeAlias

import attrs

from dafx_actors.scheduler._ground import events as _events
from dafx_actors.scheduler._ground.proto import Status, frame_past, micros, pb, serialize, stamp, text, text_of
from dafx_actors.scheduler._ground.records import Start

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from dafx_actors.scheduler._ground.records import Message, MessageKind, Orchestration


@attrs.frozen(kw_only=True)
class RunActivity:
    """Queue an activity."""

    task_id: int
    name: str
    version: str | None
    request: bytes
    """A serialized `ActivityRequest`."""


@attrs.frozen(kw_only=True)
class StartTimer:
    """Deliver `event` (a serialized `timerFired` without its timestamp) at `due`."""

    due: int
    event: bytes


@attrs.frozen(kw_only=True)
class StartChild:
    """Start a child orchestration, whose end is reported under `task_id`."""

    task_id: int
    instance_id: str
    start: Start


@attrs.frozen(kw_only=True)
class SendEvent:
    """Raise an event at another orchestration, if it is there."""

    instance_id: str
    event: bytes


@attrs.frozen(kw_only=True)
class Terminate:
    """End another orchestration."""

    instance_id: str
    output: str | None
    recurse: bool


@attrs.frozen(kw_only=True)
class TellEntity:
    """Put an operation into an entity's mailbox, at `due` if that is given."""

    entity_id: str
    request_id: str
    event: bytes
    called: bool
    """Whether the orchestration waits for an answer."""
    due: int | None = None


@attrs.frozen(kw_only=True)
class RequestLock:
    """Ask to hold all these entities at once."""

    section: str
    entities: tuple[str, ...]


@attrs.frozen(kw_only=True)
class ReleaseLock:
    """Let go of one entity."""

    section: str
    entity_id: str


Effect: TypeAlias = (
    RunActivity | StartTimer | StartChild | SendEvent | Terminate | TellEntity | RequestLock | ReleaseLock
)


@attrs.frozen(kw_only=True)
class Waits:
    """The orchestration goes on when something happens."""


@attrs.frozen(kw_only=True)
class Ended:
    """The orchestration is over."""

    status: int
    output: str | None
    failure: bytes | None
    event: bytes | None = None
    """What the history says of it, where that was made before, since it is large."""
    report: bytes | None = None
    """The event that its parent is told, made before where it is large."""


@attrs.frozen(kw_only=True)
class Continued:
    """A new execution begins with an empty history."""

    input: str | None
    version: str | None
    """None: as before."""
    carried: tuple[bytes, ...]
    """Events that the worker had not consumed."""


@attrs.frozen(kw_only=True)
class Rewound:
    """The history is replaced by one without the failures."""

    history: bytes
    execution_id: str
    unfinished: tuple[tuple[int, str, Start], ...]
    """Children without an answer in that history: task id, instance id, how they were started."""
    reason: str | None


Conclusion: TypeAlias = Waits | Ended | Continued | Rewound


@attrs.frozen(kw_only=True)
class Verdict:
    """All that a worker's answer changes."""

    confirmations: tuple[bytes, ...]
    """The events that replay will look for, one for each action, in their order."""
    effects: tuple[Effect, ...]
    conclusion: Conclusion
    custom_status: str | None
    trace: bytes


_Action: TypeAlias = Callable[["Orchestration", "pb.OrchestratorAction", int], "tuple[bytes, Effect]"]


def _schedule_task(orchestration: Orchestration, action: pb.OrchestratorAction, at: int) -> tuple[bytes, Effect]:
    task = action.scheduleTask
    scheduled = pb.TaskScheduledEvent(name=task.name, tags=task.tags)
    # SDKs that match versions strictly ask for versioned activities but never send a version with one.
    version = text_of(task, "version") or orchestration.version
    request = pb.ActivityRequest(
        name=task.name,
        version=text(version),
        taskId=action.id,
        orchestrationInstance=pb.OrchestrationInstance(
            instanceId=orchestration.instance_id, executionId=text(orchestration.execution_id)
        ),
        tags=task.tags,
    )
    for field in ("input", "parentTraceContext"):
        if task.HasField(field):
            getattr(scheduled, field).CopyFrom(getattr(task, field))
            getattr(request, field).CopyFrom(getattr(task, field))
    if task.HasField("version"):
        scheduled.version.CopyFrom(task.version)
    effect = RunActivity(task_id=action.id, name=task.name, version=version, request=serialize(request))
    return _events.event(at, action.id, taskScheduled=scheduled), effect


def _create_timer(_: Orchestration, action: pb.OrchestratorAction, at: int) -> tuple[bytes, Effect]:
    fire_at = action.createTimer.fireAt
    fired = pb.HistoryEvent(eventId=_events.NO_ID, timerFired=pb.TimerFiredEvent(timerId=action.id, fireAt=fire_at))
    created = _events.event(at, action.id, timerCreated=pb.TimerCreatedEvent(fireAt=fire_at))
    return created, StartTimer(due=micros(fire_at), event=serialize(fired))


def _create_child(orchestration: Orchestration, action: pb.OrchestratorAction, at: int) -> tuple[bytes, Effect]:
    child = action.createSubOrchestration
    # Deterministic, so that the worker's own replay finds the child again.
    instance_id = child.instanceId or f"{orchestration.execution_id}:{action.id:04x}"
    created = pb.SubOrchestrationInstanceCreatedEvent(instanceId=instance_id, name=child.name, tags=child.tags)
    for field in ("version", "input", "parentTraceContext"):
        if child.HasField(field):
            getattr(created, field).CopyFrom(getattr(child, field))
    start = Start(
        name=child.name,
        version=text_of(child, "version"),
        input=text_of(child, "input"),
        tags=dict(child.tags),
        trace=serialize(child.parentTraceContext) if child.HasField("parentTraceContext") else b"",
    )
    event = _events.event(at, action.id, subOrchestrationInstanceCreated=created)
    return event, StartChild(task_id=action.id, instance_id=instance_id, start=start)


def _send_event(_: Orchestration, action: pb.OrchestratorAction, at: int) -> tuple[bytes, Effect]:
    sending = action.sendEvent
    target, data = sending.instance.instanceId, text_of(sending, "data")
    sent = pb.EventSentEvent(instanceId=target, name=sending.name, input=text(data))
    effect = SendEvent(instance_id=target, event=_events.event_raised(at, sending.name, data))
    return _events.event(at, action.id, eventSent=sent), effect


def _terminate(_: Orchestration, action: pb.OrchestratorAction, at: int) -> tuple[bytes, Effect]:
    ending = action.terminateOrchestration
    effect = Terminate(instance_id=ending.instanceId, output=text_of(ending, "reason"), recurse=ending.recurse)
    sent = pb.EventSentEvent(instanceId=ending.instanceId, name="terminate")
    return _events.event(at, action.id, eventSent=sent), effect


def _signal_entity(action: pb.OrchestratorAction, at: int) -> tuple[bytes, Effect]:
    signal = action.sendEntityMessage.entityOperationSignaled
    effect = TellEntity(
        entity_id=signal.targetInstanceId.value,
        request_id=signal.requestId,
        event=_events.event(at, entityOperationSignaled=signal),
        called=False,
        due=micros(signal.scheduledTime) if signal.HasField("scheduledTime") else None,
    )
    return _events.event(at, action.id, entityOperationSignaled=signal), effect


def _call_entity(action: pb.OrchestratorAction, at: int) -> tuple[bytes, Effect]:
    call = action.sendEntityMessage.entityOperationCalled
    effect = TellEntity(
        entity_id=call.targetInstanceId.value,
        request_id=call.requestId,
        event=_events.event(at, entityOperationCalled=call),
        called=True,
        due=micros(call.scheduledTime) if call.HasField("scheduledTime") else None,
    )
    return _events.event(at, action.id, entityOperationCalled=call), effect


def _request_lock(action: pb.OrchestratorAction, at: int) -> tuple[bytes, Effect]:
    request = action.sendEntityMessage.entityLockRequested
    effect = RequestLock(section=request.criticalSectionId, entities=tuple(request.lockSet))
    return _events.event(at, action.id, entityLockRequested=request), effect


def _release_lock(action: pb.OrchestratorAction, at: int) -> tuple[bytes, Effect]:
    unlock = action.sendEntityMessage.entityUnlockSent
    effect = ReleaseLock(section=unlock.criticalSectionId, entity_id=unlock.targetInstanceId.value)
    return _events.event(at, action.id, entityUnlockSent=unlock), effect


_ENTITY_MESSAGES: Mapping[str, Callable[[pb.OrchestratorAction, int], tuple[bytes, Effect]]] = {
    "entityOperationSignaled": _signal_entity,
    "entityOperationCalled": _call_entity,
    "entityLockRequested": _request_lock,
    "entityUnlockSent": _release_lock,
}


def _send_entity_message(_: Orchestration, action: pb.OrchestratorAction, at: int) -> tuple[bytes, Effect]:
    kind = action.sendEntityMessage.WhichOneof("EntityMessageType")
    try:
        message = _ENTITY_MESSAGES[kind or ""]
    except KeyError:
        raise InvalidAnswer(f"action {action.id} is an entity message of the unknown kind {kind!r}") from None
    return message(action, at)


_ACTIONS: Mapping[str, _Action] = {
    "scheduleTask": _schedule_task,
    "createTimer": _create_timer,
    "createSubOrchestration": _create_child,
    "sendEvent": _send_event,
    "terminateOrchestration": _terminate,
    "sendEntityMessage": _send_entity_message,
}


class InvalidAnswer(ValueError):
    """A worker's answer that no rule covers. Nothing was changed by it."""


def _completed(action: pb.OrchestratorAction, at: int) -> Conclusion:
    complete = action.completeOrchestration
    status = int(complete.orchestrationStatus)
    output = text_of(complete, "result")
    if status == Status.CONTINUED_AS_NEW:
        carried = tuple(
            serialize(event) if event.timestamp.seconds > 0 else stamp(serialize(event), at)
            for event in complete.carryoverEvents
        )
        return Continued(input=output, version=text_of(complete, "newVersion"), carried=carried)
    if status not in Status.ENDED:
        raise InvalidAnswer(f"an orchestration cannot complete with status {status}")
    failure = serialize(complete.failureDetails) if complete.HasField("failureDetails") else None
    return Ended(status=status, output=output, failure=failure)


def _rewound(action: pb.OrchestratorAction) -> Rewound:
    events = action.rewindOrchestration.newHistory
    execution_id, reason = "", None
    children: dict[int, pb.SubOrchestrationInstanceCreatedEvent] = {}
    for event in events:
        kind = event.WhichOneof("eventType")
        if kind == "executionStarted":
            execution_id = event.executionStarted.orchestrationInstance.executionId.value
        elif kind == "executionRewound":
            reason = text_of(event.executionRewound, "reason")
        elif kind == "subOrchestrationInstanceCreated":
            children[event.eventId] = event.subOrchestrationInstanceCreated
        elif kind == "subOrchestrationInstanceCompleted":
            children.pop(event.subOrchestrationInstanceCompleted.taskScheduledId, None)
    return Rewound(
        history=frame_past(serialize(event) for event in events),
        execution_id=execution_id,
        reason=reason,
        unfinished=tuple(
            (
                task_id,
                child.instanceId,
                Start(
                    name=child.name,
                    version=text_of(child, "version"),
                    input=text_of(child, "input"),
                    tags=dict(child.tags),
                ),
            )
            for task_id, child in children.items()
        ),
    )


def judge(orchestration: Orchestration, answer: pb.OrchestratorResponse, at: int) -> Verdict:
    """What this answer of a worker changes.

    Raises:
        InvalidAnswer: it contains what no rule covers.
    """
    confirmations: list[bytes] = []
    effects: list[Effect] = []
    conclusion: Conclusion = Waits()
    for action in answer.actions:
        kind = action.WhichOneof("orchestratorActionType") or ""
        if kind == "completeOrchestration":
            conclusion = _completed(action, at)
        elif kind == "rewindOrchestration":
            conclusion = _rewound(action)
        elif kind in _ACTIONS:
            confirmation, effect = _ACTIONS[kind](orchestration, action, at)
            confirmations.append(confirmation)
            effects.append(effect)
        else:
            raise InvalidAnswer(f"action {action.id} is of the unknown kind {kind!r}")
    return Verdict(
        confirmations=tuple(confirmations),
        effects=tuple(effects),
        conclusion=conclusion,
        custom_status=text_of(answer, "customStatus"),
        trace=serialize(answer.orchestrationTraceContext) if answer.HasField("orchestrationTraceContext") else b"",
    )


def record_of(orchestration: Orchestration, verdict: Verdict, at: int) -> tuple[Verdict, bytes | None]:
    """What `Orchestrations` would make of a verdict, made before, where it takes long.

    Returns:
        The verdict with that, and what joins the history by it; None where the history is another one then.
    """
    end = verdict.conclusion
    if isinstance(end, Rewound | Continued):
        return verdict, None
    if isinstance(end, Ended):
        event = frame_past([_events.execution_completed(at, end.status, end.output, end.failure)])
        parent, report = orchestration.parent, None
        if parent is not None and end.status == Status.COMPLETED:
            report = _events.child_completed(at, parent.task_id, end.output)
        verdict = attrs.evolve(verdict, conclusion=attrs.evolve(end, event=event, report=report))
    return verdict, frame_past([*orchestration.told, *verdict.confirmations])


def suspended(status: int, inbox: Iterable[Message]) -> bool:
    """Whether an orchestration will be suspended once it was told all that waits for it."""
    answer = status == Status.SUSPENDED
    for message in inbox:
        if message.kind in {"suspend", "resume"}:
            answer = message.kind == "suspend"
    return answer


def ready(orchestration: Orchestration, now: int) -> bool:
    """Whether an orchestration has an episode to take.

    A suspended one only takes episodes that end the suspension: what else arrives would have to be buffered by every
    replay, and a suspended orchestration must not complete.
    """
    if orchestration.ended or orchestration.gone or orchestration.lease is not None:
        return False
    if orchestration.status == Status.PENDING:
        return orchestration.scheduled is None or orchestration.scheduled <= now
    if orchestration.status == Status.SUSPENDED:
        return not suspended(orchestration.status, orchestration.inbox)
    return bool(orchestration.inbox)


def _rewinding(orchestration: Orchestration) -> bool:
    return bool(orchestration.inbox) and orchestration.inbox[0].kind == "rewind"


def next_episode(orchestration: Orchestration, now: int) -> tuple[int, int]:
    """The orchestration's clock in its next episode, and how many messages of the inbox that is given."""
    at = max(now, orchestration.updated, orchestration.created)
    # The SDKs refuse a rewind that comes with anything else.
    return at, 1 if _rewinding(orchestration) else len(orchestration.inbox)


def new_events(orchestration: Orchestration, now: int) -> tuple[int, list[bytes], int]:
    """What the next episode is given.

    The history (and what the orchestration was started with) must have been loaded.

    Returns:
        The orchestration's clock in this episode, the new events, and how many messages of the inbox they hold.
    """
    at, taken = next_episode(orchestration, now)
    if _rewinding(orchestration):
        return at, [_events.orchestrator_started(at), orchestration.inbox[0].event], taken
    events = [_events.orchestrator_started(at)] if orchestration.history else first_events(orchestration, at)
    events += [message.event for message in orchestration.inbox if message.event]
    return at, events, taken


def first_events(orchestration: Orchestration, at: int) -> list[bytes]:
    """How the history of every execution begins. What it was started with must have been loaded."""
    assert orchestration.start is not None, "loaded before a first episode"
    started = _events.execution_started(
        at, orchestration.instance_id, orchestration.execution_id, orchestration.start, orchestration.parent
    )
    return [_events.orchestrator_started(at), started]


SURVIVE_CONTINUE_AS_NEW: frozenset[MessageKind] = frozenset({"event", "suspend", "resume"})
"""What else waits is an answer to the old execution, whose task ids the new one uses again."""


def status_after(orchestration: Orchestration, told: Sequence[Message]) -> int:
    """The status of an orchestration whose episode did not end it."""
    before = Status.RUNNING if orchestration.status == Status.PENDING else orchestration.status
    return Status.SUSPENDED if suspended(before, told) else Status.RUNNING
