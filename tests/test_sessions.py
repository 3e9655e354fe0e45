"""Orchestrations that are kept between their episodes: they do what a replay does, and are replayed in all doubt."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from datetime import datetime, timedelta
from operator import attrgetter
from pathlib import Path
from typing import Any, ClassVar

import pytest
from durabletask import task
from durabletask.internal import orchestrator_service_pb2 as pb
from durabletask.worker import TaskHubGrpcWorker

from dafx_actors import (
    DurableAIAgentClient,
    DurableAIAgentWorker,
    OrchestrationContext,
    durable_agent,
    orchestrator,
    when_all,
)
from dafx_actors._durable.private import PrivateWorker
from dafx_actors.errors import NotDurableError
from dafx_actors.scheduler import EmbeddedScheduler
from dafx_actors.testing import AgentHost, History, ScriptedModel
from dafx_actors.worker import _replay as replaying
from dafx_actors.worker import _sessions as sessions_module
from dafx_actors.worker._sessions import Sessions
from tests.histories.runs import FOLDER, HOSTED
from tests.scheduler.bench import QUIET

BEGUN = datetime(2026, 1, 1)


# --- Beside a replay ----------------------------------------------------------------------------------------------


class Scheduler:
    """Sends episodes of one orchestration and keeps its history, as far as this needs one."""

    made: ClassVar[list[Scheduler]] = []

    def __init__(self, *functions: Callable[..., Any], most: int = 10) -> None:
        self.worker = TaskHubGrpcWorker(logger=QUIET)
        for function in functions:
            self.worker.add_orchestrator(function)
        self.sessions = Sessions(PrivateWorker(self.worker), most)
        self.past: list[pb.HistoryEvent] = []
        self._episodes = 0
        self.made.append(self)

    @property
    def kept(self) -> list[str]:
        return list(self.sessions._kept)

    def begins(self, name: str, instance_id: str = "i") -> pb.OrchestratorResponse:
        instance = pb.OrchestrationInstance(instanceId=instance_id)
        started = pb.ExecutionStartedEvent(name=name, orchestrationInstance=instance)
        return self.tells(pb.HistoryEvent(eventId=-1, executionStarted=started), instance_id=instance_id)

    def tells(self, *new: pb.HistoryEvent, instance_id: str = "i", forget: bool = False) -> pb.OrchestratorResponse:
        """An episode, and with `forget` one whose answer never arrives."""
        self._episodes += 1
        now = pb.HistoryEvent(eventId=-1, orchestratorStarted=pb.OrchestratorStartedEvent())
        now.timestamp.FromDatetime(BEGUN + timedelta(seconds=self._episodes))
        request = pb.OrchestratorRequest(instanceId=instance_id, pastEvents=self.past, newEvents=[now, *new])
        answers: list[pb.OrchestratorResponse] = []

        class Stub:
            CompleteOrchestratorTask = staticmethod(answers.append)
            AbandonTaskOrchestratorWorkItem = staticmethod(answers.append)

        self.sessions.run(request, Stub(), "token")
        (answer,) = answers
        assert answer.completionToken == "token"
        if not forget:
            self.past += [now, *new, *map(confirmed, answer.actions)]
        return answer


def confirmed(action: pb.OrchestratorAction) -> pb.HistoryEvent:
    """What the history holds of an action."""
    kind = action.WhichOneof("orchestratorActionType")
    if kind == "scheduleTask":
        return pb.HistoryEvent(eventId=action.id, taskScheduled=pb.TaskScheduledEvent(name=action.scheduleTask.name))
    if kind == "createTimer":
        created = pb.TimerCreatedEvent(fireAt=action.createTimer.fireAt)
        return pb.HistoryEvent(eventId=action.id, timerCreated=created)
    assert kind == "completeOrchestration", kind
    return pb.HistoryEvent(eventId=action.id, executionCompleted=pb.ExecutionCompletedEvent())


def completed(number: int, result: str) -> pb.HistoryEvent:
    done = pb.TaskCompletedEvent(taskScheduledId=number)
    done.result.value = result
    return pb.HistoryEvent(eventId=-1, taskCompleted=done)


def ended(answer: pb.OrchestratorResponse) -> str:
    """The result that an orchestration ended with."""
    (action,) = answer.actions
    assert action.completeOrchestration.orchestrationStatus == pb.ORCHESTRATION_STATUS_COMPLETED, action
    return action.completeOrchestration.result.value


beginnings: list[int] = []
"""One for each time that `adding` ran from its start."""
endings: list[int] = []
"""The thread on which each of them ended."""


@pytest.fixture(autouse=True)
def _counted() -> Generator[None]:
    beginnings.clear()
    endings.clear()
    yield
    while Scheduler.made:
        Scheduler.made.pop().sessions.drop_all()


@orchestrator
async def adding(context: OrchestrationContext) -> int:
    beginnings.append(len(beginnings))
    try:
        first: int = await context.call_activity("one")
        context.set_custom_status({"first": first})
        others: list[int] = await when_all([context.call_activity("two"), context.call_activity("three")])
        return sum(others, first)
    finally:
        endings.append(threading.get_ident())


def test_an_orchestration_goes_on_where_it_is() -> None:
    scheduler = Scheduler(adding)
    scheduler.begins("adding")
    second = scheduler.tells(completed(1, "1"))
    assert [action.scheduleTask.name for action in second.actions] == ["two", "three"]
    assert second.customStatus.value == '{"first": 1}'
    assert scheduler.tells(completed(3, "3")).customStatus.value == '{"first": 1}'
    assert ended(scheduler.tells(completed(2, "2"))) == "6"
    assert len(beginnings) == 1
    assert len(endings) == 1
    assert scheduler.kept == []


def test_without_sessions_it_is_replayed_each_time() -> None:
    scheduler = Scheduler(adding, most=0)
    scheduler.begins("adding")
    for number in (1, 3):
        scheduler.tells(completed(number, str(number)))
    assert ended(scheduler.tells(completed(2, "2"))) == "6"
    assert len(beginnings) == len(endings) == 4


@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.json")), ids=attrgetter("stem"))
def test_a_recorded_history_is_gone_on_with_as_it_is_replayed(file: Path) -> None:
    history = History.load(file)
    worker = replaying._worker(history, HOSTED)
    sessions = Sessions(PrivateWorker(worker), 10)
    episodes = list(replaying._episodes(history))
    replayed, gone_on = (
        list(answers(history, episodes, execute)) for execute in (worker._execute_orchestrator, sessions.run)
    )
    assert [answer.actions for answer in gone_on] == [answer.actions for answer in replayed]
    assert [answer.customStatus for answer in gone_on] == [answer.customStatus for answer in replayed]
    assert not sessions._kept


def answers(
    history: History, episodes: Sequence[tuple[list[pb.HistoryEvent], list[pb.HistoryEvent]]], execute: Any
) -> Iterator[pb.OrchestratorResponse]:
    past: list[pb.HistoryEvent] = []
    for told, done in episodes:
        found: list[pb.OrchestratorResponse] = []

        class Stub:
            CompleteOrchestratorTask = staticmethod(found.append)
            AbandonTaskOrchestratorWorkItem = staticmethod(found.append)

        execute(pb.OrchestratorRequest(instanceId=history.instance_id, pastEvents=past, newEvents=told), Stub(), "")
        for answer in found:
            for action in answer.actions:
                if action.HasField("completeOrchestration"):  # a replay has come there by another way
                    action.completeOrchestration.failureDetails.ClearField("stackTrace")
        yield from found
        past += [*told, *done]


# --- In doubt -----------------------------------------------------------------------------------------------------


def test_an_episode_that_comes_again_is_replayed() -> None:
    """Its answer was lost, or refused: what the session has done since then has not happened."""
    scheduler = Scheduler(adding)
    scheduler.begins("adding")
    scheduler.tells(completed(1, "100"), forget=True)
    scheduler.tells(completed(1, "1"))
    assert len(beginnings) == 2
    assert ended(scheduler.tells(completed(2, "2"), completed(3, "3"))) == "6"


def test_an_orchestration_that_another_worker_took_on_is_replayed() -> None:
    """It was given the same, at another time; what it then did may be what the session knows, or not."""
    scheduler = Scheduler(adding)
    scheduler.begins("adding")
    other = Scheduler(adding)
    other.past = list(scheduler.past)
    scheduler.tells(completed(1, "100"), forget=True)
    other._episodes = 7
    other.tells(completed(1, "1"))
    scheduler.past = other.past
    assert ended(scheduler.tells(completed(2, "2"), completed(3, "3"))) == "6"


def test_what_another_worker_did_in_between_is_caught_up_with() -> None:
    scheduler = Scheduler(adding)
    scheduler.begins("adding")
    other = Scheduler(adding)
    other.past, other._episodes = list(scheduler.past), 1
    other.tells(completed(1, "1"))
    other.tells(completed(2, "2"))
    scheduler.past, scheduler._episodes = other.past, 3
    before = len(beginnings)
    assert ended(scheduler.tells(completed(3, "3"))) == "6"
    assert len(beginnings) == before


def test_a_history_that_the_code_does_not_make_fails_as_in_a_replay() -> None:
    scheduler = Scheduler(adding)
    scheduler.begins("adding")
    scheduler.past[-1].taskScheduled.name = "another"
    answer = scheduler.tells(completed(1, "1"))
    (action,) = answer.actions
    assert action.completeOrchestration.failureDetails.errorType.endswith("NonDeterminismError")
    assert len(beginnings) == 2
    assert scheduler.kept == []


def test_an_instance_id_that_is_used_again_begins_anew() -> None:
    scheduler = Scheduler(adding)
    scheduler.begins("adding")
    scheduler.past = []
    scheduler.begins("adding")
    scheduler.tells(completed(1, "1"))
    assert len(beginnings) == 2
    assert ended(scheduler.tells(completed(2, "2"), completed(3, "3"))) == "6"


def test_an_orchestration_that_is_suspended_is_replayed() -> None:
    """What happens meanwhile is in durabletask's books, and not in the orchestration."""
    scheduler = Scheduler(adding)
    scheduler.begins("adding")
    scheduler.sessions.drop_all()
    suspended = pb.HistoryEvent(eventId=-1, executionSuspended=pb.ExecutionSuspendedEvent())
    resumed = pb.HistoryEvent(eventId=-1, executionResumed=pb.ExecutionResumedEvent())
    assert not scheduler.tells(suspended, completed(1, "1")).actions
    assert scheduler.kept == []
    assert len(scheduler.tells(resumed).actions) == 2
    assert ended(scheduler.tells(completed(2, "2"), completed(3, "3"))) == "6"


def test_an_orchestration_that_is_suspended_while_it_is_kept_goes_on_when_it_is_resumed() -> None:
    scheduler = Scheduler(adding)
    scheduler.begins("adding")
    suspended = pb.HistoryEvent(eventId=-1, executionSuspended=pb.ExecutionSuspendedEvent())
    resumed = pb.HistoryEvent(eventId=-1, executionResumed=pb.ExecutionResumedEvent())
    assert not scheduler.tells(suspended, completed(1, "1")).actions
    assert len(scheduler.tells(resumed).actions) == 2
    assert ended(scheduler.tells(completed(2, "2"), completed(3, "3"))) == "6"


def test_one_that_fails_ends() -> None:
    scheduler = Scheduler(adding)
    scheduler.begins("adding")
    (action,) = scheduler.tells(completed(1, '"text"')).actions[:1]
    assert action.WhichOneof("orchestratorActionType") == "scheduleTask"
    (action,) = scheduler.tells(completed(2, "2"), completed(3, "3")).actions
    assert action.completeOrchestration.failureDetails.errorType.endswith("TypeError")
    assert scheduler.kept == []


def test_one_that_was_terminated_ends() -> None:
    scheduler = Scheduler(adding)
    scheduler.begins("adding")
    terminated = pb.HistoryEvent(eventId=-1, executionTerminated=pb.ExecutionTerminatedEvent())
    (action,) = scheduler.tells(terminated).actions
    assert action.completeOrchestration.orchestrationStatus == pb.ORCHESTRATION_STATUS_TERMINATED
    assert scheduler.kept == []
    assert endings == [threading.get_ident()]


def test_what_durabletask_drives_without_us_is_not_kept() -> None:
    def plain(context: task.OrchestrationContext, _: Any) -> Generator[Any, Any, int]:
        beginnings.append(0)
        given: int = yield context.call_activity("one")
        return given

    scheduler = Scheduler(plain)
    scheduler.begins("plain")
    assert scheduler.kept == []
    assert ended(scheduler.tells(completed(1, "1"))) == "1"
    assert len(beginnings) == 2


# --- Dropped ------------------------------------------------------------------------------------------------------


def test_those_that_were_not_used_for_longest_are_dropped() -> None:
    scheduler = Scheduler(adding, most=2)
    for instance_id in "abc":
        scheduler.past = []
        scheduler.begins("adding", instance_id)
    assert scheduler.kept == ["b", "c"]
    assert len(endings) == 1


def test_those_that_were_not_used_for_a_while_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = Scheduler(adding)
    scheduler.begins("adding", "a")
    scheduler.sessions.drop_idle()
    assert scheduler.kept == ["a"]
    monkeypatch.setattr(sessions_module, "_IDLE", 0.0)
    scheduler.sessions.drop_idle()
    assert scheduler.kept == []
    assert len(endings) == 1
    assert len(scheduler.tells(completed(1, "1"), instance_id="a").actions) == 2


def test_the_context_refuses_calls_of_one_that_is_dropped() -> None:
    refused: list[NotDurableError] = []

    @orchestrator
    async def clinging(context: OrchestrationContext) -> None:
        try:
            await context.call_activity("one")
        finally:
            try:
                context.call_activity("two")
            except NotDurableError as error:
                refused.append(error)

    scheduler = Scheduler(clinging)
    scheduler.begins("clinging")
    assert not refused
    scheduler.sessions.drop_all()
    assert len(refused) == 1


# --- On a worker --------------------------------------------------------------------------------------------------


@durable_agent(model=ScriptedModel(lambda request: request.messages[-1].text.upper()))
class Echo:
    instructions = "You repeat what you are told."


@orchestrator
async def over_many(context: OrchestrationContext) -> list[str]:
    beginnings.append(0)
    agent = context.get_agent(Echo)
    answers = await when_all([agent.run(f"a{number}") for number in range(20)])
    for answer in answers[:5]:
        await agent.run(answer.text)
    return [answer.text for answer in answers]


async def over_many_on(endpoint: str, *, extended_sessions: int) -> list[str]:
    inner = TaskHubGrpcWorker(host_address=endpoint, logger=QUIET)
    worker = DurableAIAgentWorker(inner, extended_sessions=extended_sessions)
    worker.add_agent(Echo)
    worker.add_orchestrator(over_many)
    async with worker, DurableAIAgentClient.connect(endpoint) as client:
        found: list[str] = await (await client.schedule_new_orchestration(over_many))
    return found


@pytest.mark.anyio
async def test_an_orchestration_over_many_agents_runs_once() -> None:
    async with EmbeddedScheduler() as scheduler:
        assert await over_many_on(scheduler.endpoint, extended_sessions=100) == [f"A{n}" for n in range(20)]
    assert len(beginnings) == 1


@pytest.mark.anyio
@pytest.mark.parametrize("extended_sessions", [0, 2])
async def test_with_room_for_few_all_is_done_as_well(extended_sessions: int) -> None:
    async with EmbeddedScheduler() as scheduler:
        found = await over_many_on(scheduler.endpoint, extended_sessions=extended_sessions)
    assert found == [f"A{n}" for n in range(20)]
    assert len(beginnings) > 1


@pytest.mark.anyio
async def test_a_test_sees_each_replay() -> None:
    """So that an orchestration that does not do the same each time is found before a crash finds it."""
    async with AgentHost(Echo, orchestrators=[over_many]) as host:
        assert len(await (await host.client.schedule_new_orchestration(over_many))) == 20
    assert len(beginnings) > 1


@pytest.mark.anyio
async def test_a_worker_that_stops_keeps_nothing() -> None:
    @orchestrator
    async def for_ever(context: OrchestrationContext) -> None:
        try:
            await context.wait_for_external_event("never")
        finally:
            endings.append(0)

    async with EmbeddedScheduler() as scheduler:
        worker = DurableAIAgentWorker(TaskHubGrpcWorker(host_address=scheduler.endpoint, logger=QUIET))
        worker.add_orchestrator(for_ever)
        async with worker, DurableAIAgentClient.connect(scheduler.endpoint) as client:
            handle = await client.schedule_new_orchestration(for_ever)
            await client._backend._client.wait_for_orchestration_start(handle.instance_id)
            assert len(worker._intake._sessions._kept) == 1
        assert not worker._intake._sessions._kept
    assert endings == [0]
