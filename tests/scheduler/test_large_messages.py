"""Messages of tens of megabytes: made and taken apart beside the loop, and whole."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import grpc
import pytest
from durabletask.internal import orchestrator_service_pb2 as pb

from dafx_actors.scheduler import EmbeddedScheduler
from dafx_actors.scheduler._ground import proto as _proto
from dafx_actors.scheduler._ground.proto import LARGE
from dafx_actors.scheduler._ground.records import History
from dafx_actors.scheduler._hub import entities as _entities
from dafx_actors.scheduler._hub import orchestrations as _orchestrations
from dafx_actors.scheduler._rules import episodes as _episodes
from dafx_actors.scheduler.storage import store
from dafx_actors.scheduler.storage.database import read_failed
from dafx_actors.scheduler.storage.tables import LARGEST_CHUNK
from tests.scheduler.test_pieces import stub_of
from tests.scheduler.ticks import watched

SIZE = 30_000_000
TEXT = "xyz" * (SIZE // 3)


def items_of(stub: Any, **filters: Any) -> Any:
    return stub.GetWorkItems(pb.GetWorkItemsRequest(workItemFilters=pb.WorkItemFilters(**filters)))


def turns_of(stub: Any) -> Any:
    return items_of(stub, orchestrations=[pb.OrchestrationFilter(name="any")])


def take(items: Any, kind: str = "orchestratorRequest") -> Any:
    return next(item for item in items if item.HasField(kind))


def schedules(item: Any, input: str) -> pb.OrchestratorResponse:
    answer = pb.OrchestratorResponse(instanceId="one", completionToken=item.completionToken)
    action = answer.actions.add(id=1)
    action.scheduleTask.name, action.scheduleTask.input.value = "act", input
    return answer


def ends(item: Any, output: str) -> pb.OrchestratorResponse:
    answer = pb.OrchestratorResponse(instanceId="one", completionToken=item.completionToken)
    action = answer.actions.add(id=2)
    action.completeOrchestration.orchestrationStatus = pb.ORCHESTRATION_STATUS_COMPLETED
    action.completeOrchestration.result.value = output
    return answer


def until(fact: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not fact():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def started(stub: Any, input: str = TEXT) -> None:
    stub.StartInstance(pb.CreateInstanceRequest(name="any", instanceId="one", input={"value": input}), timeout=60)


@pytest.mark.parametrize("heaviest", [0, 2**40], ids=["from-disk", "from-memory"])
def test_an_orchestration_with_large_values_holds_nobody_up_and_keeps_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, heaviest: int
) -> None:
    """From its start to its end, and read again: what is left on the loop is what gRPC and SQLite do with one value."""
    monkeypatch.setattr(_orchestrations, "_HEAVIEST_IDLE", heaviest)
    path = tmp_path / "dafx.db"
    with EmbeddedScheduler(path, synchronous="normal").on_a_thread() as scheduler:
        stub = stub_of(scheduler)
        with watched(scheduler) as held:
            started(stub)
            turns, activities = turns_of(stub), items_of(stub, activities=[pb.ActivityFilter(name="act")])
            first = take(turns)
            stub.CompleteOrchestratorTask(schedules(first, TEXT), timeout=60)
            activity = take(activities, "activityRequest")
            done = pb.ActivityResponse(instanceId="one", taskId=1, completionToken=activity.completionToken)
            done.result.value = TEXT
            stub.CompleteActivityTask(done, timeout=60)
            second = take(turns)
            stub.CompleteOrchestratorTask(ends(second, TEXT), timeout=60)
            ended = stub.WaitForInstanceCompletion(
                pb.GetInstanceRequest(instanceId="one", getInputsAndOutputs=True), timeout=60
            )
        assert not held.too_long(times=2)
        history = list(stub.StreamInstanceHistory(pb.StreamInstanceHistoryRequest(instanceId="one"), timeout=60))
    assert first.orchestratorRequest.newEvents[1].executionStarted.input.value == TEXT
    assert activity.activityRequest.input.value == TEXT
    past, new = second.orchestratorRequest.pastEvents, second.orchestratorRequest.newEvents
    assert [event.WhichOneof("eventType") for event in past] == [
        "orchestratorStarted",
        "executionStarted",
        "taskScheduled",
    ]
    assert new[-1].taskCompleted.result.value == TEXT
    state = ended.orchestrationState
    assert (state.input.value, state.output.value) == (TEXT, TEXT)
    events = [event for chunk in history for event in chunk.events]
    assert events[-1].executionCompleted.result.value == TEXT
    assert len(events) == 6
    with closing(sqlite3.connect(path)) as connection:
        [(longest,)] = connection.execute("SELECT max(length(events)) FROM histories")
    assert longest == LARGEST_CHUNK


@pytest.mark.parametrize("heaviest", [0, 2**40], ids=["from-disk", "from-memory"])
def test_an_entity_with_a_large_state_holds_nobody_up_and_keeps_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, heaviest: int
) -> None:
    monkeypatch.setattr(_entities, "_HEAVIEST_IDLE", heaviest)
    with EmbeddedScheduler(tmp_path / "dafx.db", synchronous="normal").on_a_thread() as scheduler:
        stub = stub_of(scheduler)
        batches = items_of(stub, entities=[pb.EntityFilter(name="e")])
        signal = pb.SignalEntityRequest(instanceId="@e@k", name="go", requestId="1", input={"value": TEXT})
        with watched(scheduler) as held:
            for number in ("1", "2"):
                signal.requestId = number
                stub.SignalEntity(signal, timeout=60)
                item = take(batches, "entityRequestV2")
                result = pb.EntityBatchResult(completionToken=item.completionToken, entityState={"value": TEXT})
                result.results.add().success.SetInParent()
                stub.CompleteEntityTask(result, timeout=60)
            found = stub.GetEntity(pb.GetEntityRequest(instanceId="@e@k", includeState=True), timeout=60)
        assert not held.too_long(times=2)
    assert item.entityRequestV2.entityState.value == TEXT
    assert item.entityRequestV2.operationRequests[0].entityOperationSignaled.input.value == TEXT
    assert found.entity.serializedState.value == TEXT


class Held:
    """Holds what is made on threads until it may go on."""

    def __init__(self, make: Callable[..., bytes]) -> None:
        self._make = make
        self.begun, self.may_end, self.count = threading.Event(), threading.Event(), 0

    def __call__(self, *args: Any, **how: Any) -> bytes:
        self.count += 1
        if self.count == 1:
            self.begun.set()
            assert self.may_end.wait(60)
        return self._make(*args, **how)


@pytest.fixture
def making(monkeypatch: pytest.MonkeyPatch) -> Held:
    held = Held(_proto.orchestrator_item)
    monkeypatch.setattr(_orchestrations, "orchestrator_item", held)
    return held


def test_a_turn_whose_worker_leaves_while_it_is_made_goes_to_another(tmp_path: Path, making: Held) -> None:
    """And what was made for the one that left does not get into the other's turn."""
    with EmbeddedScheduler(tmp_path / "dafx.db").on_a_thread() as scheduler:
        stub = stub_of(scheduler)
        started(stub, "x" * LARGE)
        leaves = turns_of(stub)
        assert making.begun.wait(60)
        leaves.cancel()
        others = turns_of(stub)
        item = take(others)
        making.may_end.set()
        stub.CompleteOrchestratorTask(ends(item, "done"), timeout=60)
        ended = stub.WaitForInstanceCompletion(pb.GetInstanceRequest(instanceId="one"), timeout=60)
        assert ended.orchestrationState.orchestrationStatus == pb.ORCHESTRATION_STATUS_COMPLETED
        chunks = list(stub.StreamInstanceHistory(pb.StreamInstanceHistoryRequest(instanceId="one"), timeout=60))
    assert [event.WhichOneof("eventType") for chunk in chunks for event in chunk.events] == [
        "orchestratorStarted",
        "executionStarted",
        "executionCompleted",
    ]


def test_an_orchestration_that_is_terminated_while_its_turn_is_made_is_over(tmp_path: Path, making: Held) -> None:
    with EmbeddedScheduler(tmp_path / "dafx.db").on_a_thread() as scheduler:
        stub = stub_of(scheduler)
        started(stub, "x" * LARGE)
        items = turns_of(stub)
        assert making.begun.wait(60)
        stub.TerminateInstance(pb.TerminateRequest(instanceId="one"), timeout=60)
        making.may_end.set()
        item = take(items)
        # Nobody needs the answer any more, and nobody is told off for it.
        stub.CompleteOrchestratorTask(ends(item, "done"), timeout=60)
        ended = stub.WaitForInstanceCompletion(pb.GetInstanceRequest(instanceId="one"), timeout=60)
    assert ended.orchestrationState.orchestrationStatus == pb.ORCHESTRATION_STATUS_TERMINATED


def test_a_large_turn_that_cannot_be_made_waits_and_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Until something happens to it; the worker keeps its stream."""
    make, failures = _proto.orchestrator_item, iter([ValueError("damaged")])

    def unlucky(**how: Any) -> bytes:
        for error in failures:
            raise error
        return make(**how)

    monkeypatch.setattr(_orchestrations, "orchestrator_item", unlucky)
    with EmbeddedScheduler(tmp_path / "dafx.db").on_a_thread() as scheduler:
        stub = stub_of(scheduler)
        items = turns_of(stub)
        started(stub, "x" * LARGE)
        until(lambda: "cannot be handed out" in caplog.text)
        stub.StartInstance(pb.CreateInstanceRequest(name="any", instanceId="two"), timeout=60)
        assert take(items).orchestratorRequest.instanceId == "two"
        stub.RaiseEvent(pb.RaiseEventRequest(instanceId="one", name="go"), timeout=60)
        item = take(items)
        assert [event.WhichOneof("eventType") for event in item.orchestratorRequest.newEvents] == [
            "orchestratorStarted",
            "executionStarted",
            "eventRaised",
        ]


@pytest.mark.parametrize(
    ("where", "error", "code"),
    [
        ((_episodes, "record_of"), ValueError("odd"), "UNKNOWN"),
        ((store.Store, "warm"), read_failed("dafx.db", sqlite3.OperationalError("unable to open")), "UNAVAILABLE"),
    ],
    ids=["odd", "unreadable"],
)
def test_a_large_answer_that_cannot_be_used_is_asked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: tuple[Any, str], error: Exception, code: str
) -> None:
    """What fails before anything is changed does not leave the turn with a worker that has answered."""
    with EmbeddedScheduler(tmp_path / "dafx.db").on_a_thread() as scheduler:
        stub = stub_of(scheduler)
        started(stub, "x" * LARGE)
        turns = turns_of(stub)
        answer = ends(take(turns), "done")
        with monkeypatch.context() as patched:
            patched.setattr(*where, _raises(error))
            with pytest.raises(grpc.RpcError) as caught:
                stub.CompleteOrchestratorTask(answer, timeout=60)
        refused: Any = caught.value
        assert refused.code().name == code
        stub.CompleteOrchestratorTask(ends(take(turns), "done"), timeout=60)
        ended = stub.WaitForInstanceCompletion(pb.GetInstanceRequest(instanceId="one"), timeout=60)
    assert ended.orchestrationState.orchestrationStatus == pb.ORCHESTRATION_STATUS_COMPLETED


def _raises(error: Exception) -> Callable[..., Any]:
    def failing(*_: object, **__: object) -> Any:
        raise error

    return failing


def test_a_history_is_whole_whatever_its_parts() -> None:
    chunks = [b"a", b"b" * 10, b"c" * LARGE, b"d", b"", b"e" * (LARGE + 1), b"f" * LARGE, b"g", b"h"]
    history = History(chunks)
    assert history.joined() == b"".join(chunks)
    assert len(history) == len(history.joined())
    assert len(history.parts) == 6
    assert not History()
    assert history.parts[1] is chunks[2], "what is large is not copied"
