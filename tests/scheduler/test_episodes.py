"""The rules about orchestrations, by calling them."""

from __future__ import annotations

from typing import Any

import pytest
from durabletask.internal import orchestrator_service_pb2 as pb

from dafx_actors.scheduler._ground import events as _events
from dafx_actors.scheduler._ground.proto import Status, frame_past, history_events, micros, timestamp
from dafx_actors.scheduler._ground.records import History, Message, Orchestration, Parent, Start
from dafx_actors.scheduler._rules import episodes as _episodes

NOW = 1_700_000_000_000_000


def orchestration(**changes: Any) -> Orchestration:
    fields: dict[str, Any] = {
        "id": 1,
        "instance_id": "i",
        "execution_id": "e",
        "name": "any",
        "version": "2",
        "status": Status.RUNNING,
        "created": NOW,
        "updated": NOW,
        "start": Start(name="any", version="2", input="1", tags={"a": "b"}),
        "history": History([frame_past([_events.orchestrator_started(NOW)])]),
    }
    return Orchestration(**{**fields, **changes})


def answer(*actions: pb.OrchestratorAction, **fields: Any) -> pb.OrchestratorResponse:
    return pb.OrchestratorResponse(instanceId="i", actions=actions, **fields)


def read(event: bytes) -> pb.HistoryEvent:
    parsed: pb.HistoryEvent = pb.HistoryEvent.FromString(event)
    return parsed


def complete(status: int, **fields: Any) -> pb.OrchestratorAction:
    action: Any = pb.CompleteOrchestrationAction(orchestrationStatus=status, **fields)  # type: ignore[arg-type]
    return pb.OrchestratorAction(id=9, completeOrchestration=action)


def test_each_action_is_confirmed_in_order_under_its_id() -> None:
    target: Any = {"targetInstanceId": {"value": "@e@k"}}
    called = pb.SendEntityMessageAction(
        entityOperationCalled=pb.EntityOperationCalledEvent(requestId="r", operation="op", **target)
    )
    fire_at = timestamp(NOW + 5)
    verdict = _episodes.judge(
        orchestration(),
        answer(
            pb.OrchestratorAction(id=1, scheduleTask=pb.ScheduleTaskAction(name="act")),
            pb.OrchestratorAction(id=2, createTimer=pb.CreateTimerAction(fireAt=fire_at)),
            pb.OrchestratorAction(
                id=3, createSubOrchestration=pb.CreateSubOrchestrationAction(instanceId="c", name="child")
            ),
            pb.OrchestratorAction(id=4, sendEntityMessage=called),
        ),
        NOW,
    )
    events = [read(event) for event in verdict.confirmations]
    assert [(event.eventId, event.WhichOneof("eventType")) for event in events] == [
        (1, "taskScheduled"),
        (2, "timerCreated"),
        (3, "subOrchestrationInstanceCreated"),
        (4, "entityOperationCalled"),
    ]
    assert [type(effect).__name__ for effect in verdict.effects] == [
        "RunActivity",
        "StartTimer",
        "StartChild",
        "TellEntity",
    ]
    assert isinstance(verdict.conclusion, _episodes.Waits)


def test_an_activity_inherits_the_version_and_an_absent_input_stays_absent() -> None:
    action = pb.OrchestratorAction(id=1, scheduleTask=pb.ScheduleTaskAction(name="act", tags={"k": "v"}))
    verdict = _episodes.judge(orchestration(), answer(action), NOW)
    effect = verdict.effects[0]
    assert isinstance(effect, _episodes.RunActivity)
    request = pb.ActivityRequest.FromString(effect.request)
    assert (request.version.value, request.HasField("input"), dict(request.tags)) == ("2", False, {"k": "v"})
    assert not read(verdict.confirmations[0]).taskScheduled.HasField("version")


def test_a_timer_carries_the_moment_that_was_asked_for() -> None:
    """To the nanosecond, and it is not due before it."""
    fire_at = timestamp(NOW)
    fire_at.nanos += 1
    action = pb.OrchestratorAction(id=7, createTimer=pb.CreateTimerAction(fireAt=fire_at))
    effect = _episodes.judge(orchestration(), answer(action), NOW).effects[0]
    assert isinstance(effect, _episodes.StartTimer)
    assert effect.due == NOW + 1
    assert read(effect.event).timerFired.fireAt == fire_at


def test_an_end_keeps_absent_and_empty_apart() -> None:
    for result, expected in ((None, None), ("", "")):
        fields: dict[str, Any] = {} if result is None else {"result": {"value": result}}
        conclusion = _episodes.judge(orchestration(), answer(complete(Status.COMPLETED, **fields)), NOW).conclusion
        assert conclusion == _episodes.Ended(status=Status.COMPLETED, output=expected, failure=None)


def test_a_failure_without_a_message_is_kept() -> None:
    failed = complete(Status.FAILED, failureDetails=pb.TaskFailureDetails())
    conclusion = _episodes.judge(orchestration(), answer(failed), NOW).conclusion
    assert isinstance(conclusion, _episodes.Ended)
    assert conclusion.failure == b""


def test_events_that_are_carried_over_have_a_time() -> None:
    carried = pb.HistoryEvent(eventId=-1, eventRaised=pb.EventRaisedEvent(name="go"))
    action = complete(Status.CONTINUED_AS_NEW, carryoverEvents=[carried], newVersion={"value": "3"})
    conclusion = _episodes.judge(orchestration(), answer(action), NOW).conclusion
    assert isinstance(conclusion, _episodes.Continued)
    assert conclusion.version == "3"
    assert micros(read(conclusion.carried[0]).timestamp) == NOW


@pytest.mark.parametrize(
    "action",
    [
        pb.OrchestratorAction(id=1),
        pb.OrchestratorAction(id=1, sendEntityMessage=pb.SendEntityMessageAction()),
        complete(Status.RUNNING),
    ],
    ids=["nothing", "no message", "not an end"],
)
def test_an_answer_that_makes_no_sense(action: pb.OrchestratorAction) -> None:
    with pytest.raises(_episodes.InvalidAnswer):
        _episodes.judge(orchestration(), answer(action), NOW)


def test_a_rewound_history_says_which_children_are_unfinished() -> None:
    created = pb.SubOrchestrationInstanceCreatedEvent
    action = pb.RewindOrchestrationAction(
        newHistory=[
            pb.HistoryEvent(
                executionStarted=pb.ExecutionStartedEvent(
                    orchestrationInstance=pb.OrchestrationInstance(instanceId="i", executionId={"value": "new"})
                )
            ),
            pb.HistoryEvent(eventId=1, subOrchestrationInstanceCreated=created(instanceId="a", name="child")),
            pb.HistoryEvent(eventId=2, subOrchestrationInstanceCreated=created(instanceId="b", name="child")),
            pb.HistoryEvent(
                subOrchestrationInstanceCompleted=pb.SubOrchestrationInstanceCompletedEvent(taskScheduledId=1)
            ),
            pb.HistoryEvent(executionRewound=pb.ExecutionRewoundEvent(reason={"value": "why"})),
        ]
    )
    verdict = _episodes.judge(orchestration(), answer(pb.OrchestratorAction(id=-1, rewindOrchestration=action)), NOW)
    conclusion = verdict.conclusion
    assert isinstance(conclusion, _episodes.Rewound)
    assert (conclusion.execution_id, conclusion.reason) == ("new", "why")
    assert [(task, name) for task, name, _ in conclusion.unfinished] == [(2, "b")]
    assert len(history_events(conclusion.history)) == 5


def test_a_first_episode_begins_with_the_start_and_names_the_parent() -> None:
    parent = Parent(id=2, instance_id="p", execution_id="pe", task_id=4, name="boss", version=None)
    it = orchestration(status=Status.PENDING, history=bytearray(), parent=parent)
    it.inbox.append(Message(1, "event", _events.event_raised(NOW, "go", None)))
    at, events, taken = _episodes.new_events(it, NOW + 10)
    first, second, third = map(read, events)
    assert (at, taken) == (NOW + 10, 1)
    assert first.HasField("orchestratorStarted")
    assert second.executionStarted.parentInstance.taskScheduledId == 4
    assert second.executionStarted.orchestrationInstance.executionId.value == "e"
    assert third.eventRaised.name == "go"
    assert {event.eventId for event in (first, second, third)} == {-1}


def test_the_clock_of_an_orchestration_never_goes_back() -> None:
    at, _, _ = _episodes.new_events(orchestration(updated=NOW + 100), NOW)
    assert at == NOW + 100


def test_a_nudge_makes_an_episode_without_an_event() -> None:
    it = orchestration()
    it.inbox.append(Message(1, "nudge", b""))
    assert _episodes.ready(it, NOW)
    _, events, taken = _episodes.new_events(it, NOW)
    assert (len(events), taken) == (1, 1)


def test_a_rewind_comes_alone() -> None:
    it = orchestration()
    it.inbox.extend([Message(1, "rewind", _events.execution_rewound(NOW, None)), Message(2, "event", b"\x08\x01")])
    _, events, taken = _episodes.new_events(it, NOW)
    assert (len(events), taken) == (2, 1)


SUSPEND, RESUME, EVENT = (Message(n, kind, b"x") for n, kind in ((1, "suspend"), (2, "resume"), (3, "event")))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("status", "inbox", "expected"),
    [
        (Status.PENDING, [], True),
        (Status.RUNNING, [], False),
        (Status.RUNNING, [EVENT], True),
        (Status.RUNNING, [SUSPEND], True),
        (Status.SUSPENDED, [EVENT], False),
        (Status.SUSPENDED, [EVENT, RESUME], True),
        (Status.SUSPENDED, [RESUME, SUSPEND], False),
        (Status.COMPLETED, [EVENT], False),
    ],
)
def test_who_has_an_episode_to_take(status: int, inbox: list[Message], expected: bool) -> None:
    it = orchestration(status=status)
    it.inbox.extend(inbox)
    assert _episodes.ready(it, NOW) is expected
    it.lease = "out"
    assert not _episodes.ready(it, NOW)


def test_a_scheduled_start_waits_for_its_time() -> None:
    it = orchestration(status=Status.PENDING, scheduled=NOW + 1)
    assert not _episodes.ready(it, NOW)
    assert _episodes.ready(it, NOW + 1)


@pytest.mark.parametrize(
    ("before", "told", "after"),
    [
        (Status.PENDING, [], Status.RUNNING),
        (Status.RUNNING, [SUSPEND], Status.SUSPENDED),
        (Status.SUSPENDED, [RESUME], Status.RUNNING),
        (Status.RUNNING, [SUSPEND, RESUME], Status.RUNNING),
        (Status.PENDING, [SUSPEND], Status.SUSPENDED),
    ],
)
def test_status_after_an_episode(before: int, told: list[Message], after: int) -> None:
    assert _episodes.status_after(orchestration(status=before), told) == after
