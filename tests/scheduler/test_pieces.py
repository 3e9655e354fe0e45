"""Nobody holds the scheduler's event loop for long: what one call asks for is done in pieces, or on a thread."""

from __future__ import annotations

import asyncio
import gc
import sqlite3
import threading
import time
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from durabletask.internal import orchestrator_service_pb2 as pb
from durabletask.internal import orchestrator_service_pb2_grpc as stubs

from dafx_actors._durable.bundles import ANSWERS, CONNECT, MOST_PIECES, REFUSED, SERVICE, Piece, kind_of, pack, unpack
from dafx_actors.errors import SchedulerError
from dafx_actors.scheduler import EmbeddedScheduler
from dafx_actors.scheduler._hub import endings as _endings
from dafx_actors.scheduler._hub.engine import MOST_HUBS
from dafx_actors.scheduler._serve.pages import MOST_IDS
from dafx_actors.scheduler.storage.database import connect
from tests.scheduler.ticks import watched

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

UNLIMITED = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
ROOT = 1_000_000
TERMINATED = 5


@pytest.fixture(autouse=True)
def _uncollected() -> Generator[None]:
    """The collector would look through all that the test's process holds, on whichever thread it runs."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def family(path: Path, width: int) -> None:
    """A running orchestration with so many children, and one grandchild below the first."""
    now = time.time_ns() // 1_000
    insert = (
        "INSERT INTO orchestrations (id, hub, instance_id, execution_id, name, status, created, updated, parent,"
        " parent_instance, parent_execution, parent_task, parent_name) VALUES (?, 1, ?, 'x', 'any', 0, ?, ?, ?, ?, 'x',"
        " 1, 'any')"
    )
    rows: list[tuple[Any, ...]] = [(ROOT, "root", now, now, None, None)]
    rows += [(ROOT + 1 + n, f"c{n}", now, now, ROOT, "root") for n in range(width)]
    rows += [(ROOT * 2, "grandchild", now, now, ROOT + 1, "c0")]
    with closing(connect(str(path), synchronous="normal")) as connection:
        connection.execute("BEGIN")
        connection.execute("INSERT INTO hubs VALUES (1, 'default')")
        connection.executemany(insert, rows)
        connection.executemany("INSERT INTO payloads (id) VALUES (?)", [(row[0],) for row in rows])
        connection.execute("UPDATE ids SET next = 100000000")
        connection.execute("COMMIT")


def stub_of(scheduler: EmbeddedScheduler) -> Any:
    channel = grpc.insecure_channel(scheduler.endpoint[7:], UNLIMITED)
    return stubs.TaskHubSidecarServiceStub(channel)  # type: ignore[no-untyped-call]


def statuses(path: Path) -> dict[int, int]:
    with closing(sqlite3.connect(path)) as connection:
        return dict(connection.execute("SELECT status, count(*) FROM orchestrations GROUP BY status").fetchall())


def test_ten_thousand_children_are_terminated_and_purged_in_pieces(tmp_path: Path) -> None:
    """And when it is acknowledged, all of them have ended."""
    path = tmp_path / "dafx.db"
    family(path, 10_000)
    with EmbeddedScheduler(path, synchronous="normal").on_a_thread() as scheduler:
        stub = stub_of(scheduler)
        with watched(scheduler) as held:
            stub.TerminateInstance(pb.TerminateRequest(instanceId="root", recursive=True), timeout=100)
            assert statuses(path) == {TERMINATED: 10_002}
            asked = pb.PurgeInstancesRequest(instanceId="root", recursive=True)
            assert stub.PurgeInstances(asked, timeout=100).deletedInstanceCount == 10_002
        assert not held.too_long()


def test_a_terminate_that_was_cut_off_goes_on_at_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The root ended, the scheduler stopped: what was not acknowledged is done all the same, and leaves no mark."""
    path = tmp_path / "dafx.db"
    family(path, 120)
    with monkeypatch.context() as patched:

        async def never(*_: object) -> list[int]:
            raise SchedulerError

        patched.setattr(_endings.Endings, "_end_children", never)
        with EmbeddedScheduler(path).on_a_thread() as scheduler, pytest.raises(grpc.RpcError):
            stub_of(scheduler).TerminateInstance(pb.TerminateRequest(instanceId="root", recursive=True), timeout=30)
    assert statuses(path) == {0: 121, TERMINATED: 1}
    with EmbeddedScheduler(path).on_a_thread() as scheduler:
        for instance_id in ("c0", "c119", "grandchild"):
            ended = stub_of(scheduler).WaitForInstanceCompletion(
                pb.GetInstanceRequest(instanceId=instance_id), timeout=30
            )
            assert ended.orchestrationState.orchestrationStatus == TERMINATED
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT count(*) FROM endings").fetchone() == (0,)


def test_a_terminate_that_is_sent_again_ends_what_is_left(tmp_path: Path) -> None:
    path = tmp_path / "dafx.db"
    family(path, 3)
    with EmbeddedScheduler(path).on_a_thread() as scheduler:
        stub = stub_of(scheduler)
        stub.TerminateInstance(pb.TerminateRequest(instanceId="root", recursive=False), timeout=30)
        assert statuses(path) == {0: 4, TERMINATED: 1}
        for _ in range(2):
            stub.TerminateInstance(pb.TerminateRequest(instanceId="root", recursive=True), timeout=30)
            assert statuses(path) == {TERMINATED: 5}


def test_a_purge_by_very_many_ids_is_refused_before_it_takes_long(tmp_path: Path) -> None:
    with EmbeddedScheduler(tmp_path / "dafx.db").on_a_thread() as scheduler:
        stub, request = stub_of(scheduler), pb.PurgeInstancesRequest()
        request.instanceBatch.instanceIds.extend(f"{number:x}" for number in range(MOST_IDS))
        with watched(scheduler) as held:
            assert stub.PurgeInstances(request, timeout=100).deletedInstanceCount == 0
            request.instanceBatch.instanceIds.extend(f"{number:x}" for number in range(1_000_000 - MOST_IDS))
            with pytest.raises(grpc.RpcError) as caught:
                stub.PurgeInstances(request, timeout=100)
        error: Any = caught.value
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert f"{MOST_IDS:,}" in error.details()
        assert not held.too_long()


@pytest.mark.parametrize("pieces", [MOST_PIECES, 500_000])
def test_a_bundle_of_empty_pieces_holds_nobody_up(tmp_path: Path, pieces: int) -> None:
    """As many as a bundle may have are each refused; more are refused together."""
    bundle = pack(Piece(kind_of(ANSWERS[1]), number) for number in range(pieces))
    connects = pack([Piece(CONNECT, payload=pb.GetWorkItemsRequest().SerializeToString())])
    with EmbeddedScheduler(tmp_path / "dafx.db").on_a_thread() as scheduler:
        channel = grpc.insecure_channel(scheduler.endpoint[7:], UNLIMITED)
        stream: Any = channel.stream_stream(f"/{SERVICE}/Connect")
        answered = 0
        with watched(scheduler) as held:
            call = stream(iter([connects, bundle]), timeout=100)
            try:
                for message in call:
                    answered += sum(piece.kind == REFUSED for piece in unpack(message))
            except grpc.RpcError:
                assert pieces > MOST_PIECES
                assert call.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert pieces > MOST_PIECES or answered == pieces
        assert not held.too_long()


def test_timers_that_are_due_together_fire_in_pieces(tmp_path: Path) -> None:
    """As after a pause of the scheduler."""
    path = tmp_path / "dafx.db"
    with closing(connect(str(path), synchronous="normal")) as connection:
        connection.execute("BEGIN")
        connection.execute("INSERT INTO hubs VALUES (1, 'default')")
        connection.executemany(
            "INSERT INTO timers (id, hub, due, kind, event, entity, request) VALUES (?, 1, 0, 2, x'', ?, '')",
            [(row, f"@e@{row}") for row in range(1, 5_001)],
        )
        connection.execute("UPDATE ids SET next = 1000000")
        connection.execute("COMMIT")
    with EmbeddedScheduler(path, synchronous="normal").on_a_thread() as scheduler:
        with watched(scheduler) as held:
            hub = scheduler.engine.hub("default")
            while sum(hub.delivery.queue.waiting("entity").values()) < 5_000:
                time.sleep(0.01)
        assert not held.too_long()
        assert len(scheduler.engine.timers) == 0


@pytest.mark.parametrize("size", [30_000_000])
def test_large_requests_are_taken_apart_beside_the_loop(tmp_path: Path, size: int) -> None:
    with EmbeddedScheduler(tmp_path / "dafx.db", synchronous="normal").on_a_thread() as scheduler:
        stub = stub_of(scheduler)
        stub.StartInstance(pb.CreateInstanceRequest(name="any", instanceId="one"), timeout=30)
        text = "x" * size
        raised = pb.RaiseEventRequest(instanceId="one", name="go", input={"value": text})
        signal = pb.SignalEntityRequest(instanceId="@e@k", name="go", input={"value": text}, requestId="1")
        start = pb.CreateInstanceRequest(name="any", instanceId="two", input={"value": text})
        with watched(scheduler) as held:
            stub.RaiseEvent(raised, timeout=100)
            stub.SignalEntity(signal, timeout=100)
            stub.StartInstance(start, timeout=100)
        # What is left on the loop is gRPC's own: a copy of the message.
        assert not held.too_long(times=4)
        found = stub.GetInstance(pb.GetInstanceRequest(instanceId="two", getInputsAndOutputs=True), timeout=100)
        assert found.orchestrationState.input.value == text


def test_a_call_without_the_token_is_refused_unread(tmp_path: Path) -> None:
    """Of a message that could not even be received, the token is still the reason."""
    with EmbeddedScheduler(
        tmp_path / "dafx.db", token="secret", max_message_bytes=1_000_000
    ).on_a_thread() as scheduler:
        stub = stub_of(scheduler)
        large = pb.CreateInstanceRequest(name="any", input={"value": "x" * 30_000_000})
        for metadata in ((), (("authorization", "Bearer wrong"),)):
            with pytest.raises(grpc.RpcError) as caught:
                stub.StartInstance(large, timeout=30, metadata=metadata)
            refused: Any = caught.value
            assert refused.code() is grpc.StatusCode.UNAUTHENTICATED
        with pytest.raises(grpc.RpcError) as caught:
            stub.StartInstance(large, timeout=30, metadata=(("authorization", "Bearer secret"),))
        refused = caught.value
        assert refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_task_hubs_are_made_by_their_first_write_and_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dafx_actors.scheduler._hub.engine.MOST_HUBS", 3)
    assert MOST_HUBS >= 100
    with EmbeddedScheduler(tmp_path / "dafx.db").on_a_thread() as scheduler:
        stub = stub_of(scheduler)
        for number in range(50):
            stub.GetInstance(pb.GetInstanceRequest(instanceId="one"), metadata=[("taskhub", f"read{number}")])
        gc.collect()
        assert len(scheduler.engine.hubs) <= 16
        for number in range(3):
            stub.StartInstance(pb.CreateInstanceRequest(name="any"), metadata=[("taskhub", f"written{number}")])
        with pytest.raises(grpc.RpcError) as caught:
            stub.StartInstance(pb.CreateInstanceRequest(name="any"), metadata=[("taskhub", "one more")])
        refused: Any = caught.value
        assert refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        with pytest.raises(grpc.RpcError) as caught:
            stub.GetInstance(pb.GetInstanceRequest(instanceId="one"), metadata=[("taskhub", "x" * 101)])
        refused = caught.value
        assert refused.code() is grpc.StatusCode.INVALID_ARGUMENT
        gc.collect()
        assert [name for _, name in scheduler.engine.store.hubs()] == ["written0", "written1", "written2"]


# --- One answer that asks for very much ---------------------------------------------------------------------------


_KEPT_IN = {
    "activities": "activities",
    "timers": "timers",
    "children": "orchestrations WHERE parent IS NOT NULL",
    "events": "inbox",
    "signals": "operations",
}


def _asking(kind: str, action: Any, number: int) -> None:
    action.id = number
    if kind == "activities":
        action.scheduleTask.name = "act"
    elif kind == "timers":
        action.createTimer.fireAt.FromSeconds(4_000_000_000 + number)
    elif kind == "children":
        action.createSubOrchestration.name, action.createSubOrchestration.instanceId = "child", f"c{number}"
    elif kind == "events":
        action.sendEvent.instance.instanceId, action.sendEvent.name = "other", "go"
    else:
        signal = action.sendEntityMessage.entityOperationSignaled
        signal.requestId, signal.operation, signal.targetInstanceId.value = f"{number}", "add", f"@e@{number}"


class _Turn:
    """An orchestration whose turn this test holds, and answers for by hand."""

    def __init__(self, scheduler: EmbeddedScheduler, instance_id: str = "one") -> None:
        self.stub, self.scheduler, self.instance_id = stub_of(scheduler), scheduler, instance_id
        for each in (instance_id, "other"):
            self.stub.StartInstance(pb.CreateInstanceRequest(name=each, instanceId=each), timeout=30)
        filters = pb.WorkItemFilters(orchestrations=[pb.OrchestrationFilter(name=instance_id)])
        self.items = self.stub.GetWorkItems(pb.GetWorkItemsRequest(workItemFilters=filters))

    def take(self) -> Any:
        return next(item for item in self.items if item.HasField("orchestratorRequest"))

    def answer(self, item: Any, kind: str, many: int) -> Any:
        answer = pb.OrchestratorResponse(instanceId=self.instance_id, completionToken=item.completionToken)
        for number in range(1, many + 1):
            _asking(kind, answer.actions.add(), number)
        return answer


@pytest.mark.parametrize("kind", _KEPT_IN)
def test_an_answer_that_asks_for_ten_thousand_things_holds_nobody_up(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "dafx.db"
    with EmbeddedScheduler(path, synchronous="normal").on_a_thread() as scheduler:
        turn = _Turn(scheduler)
        answer = turn.answer(turn.take(), kind, 10_000)
        with watched(scheduler) as held:
            turn.stub.CompleteOrchestratorTask(answer, timeout=100)
        hub = scheduler.engine.hub("default")
        with closing(sqlite3.connect(path)) as connection:
            [(rows,)] = connection.execute(f"SELECT count(*) FROM {_KEPT_IN[kind]}")
        assert rows == 10_000
        if kind in {"activities", "signals"}:
            waiting = hub.delivery.queue.waiting("activity" if kind == "activities" else "entity")
            assert sum(waiting.values()) == 10_000
        # It goes on: another turn, and an end that drops what was asked for.
        turn.stub.RaiseEvent(pb.RaiseEventRequest(instanceId="one", name="go"), timeout=30)
        assert len(turn.take().orchestratorRequest.pastEvents) >= 10_000
        with watched(scheduler) as ending:
            turn.stub.TerminateInstance(pb.TerminateRequest(instanceId="one", recursive=True), timeout=100)
        assert not held.too_long()
        assert not ending.too_long()


def test_an_answer_that_asks_for_too_much_fails_its_orchestration_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dafx_actors.scheduler._serve.requests.MOST_ACTIONS", 500)
    with EmbeddedScheduler(tmp_path / "dafx.db").on_a_thread() as scheduler:
        turn = _Turn(scheduler)
        turn.stub.CompleteOrchestratorTask(turn.answer(turn.take(), "activities", 501), timeout=30)
        ended = turn.stub.WaitForInstanceCompletion(pb.GetInstanceRequest(instanceId="one"), timeout=30)
        assert "501 things at once; it may ask for 500" in ended.orchestrationState.failureDetails.errorMessage
        assert not scheduler.engine.hub("default").delivery.queue.waiting("activity")


def test_an_orchestration_that_is_ended_between_two_pieces_starts_nothing_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dafx_actors.scheduler._hub.large_answers._LONGEST_PIECE", 0.0)
    path = tmp_path / "dafx.db"
    with EmbeddedScheduler(path).on_a_thread() as scheduler:
        turn = _Turn(scheduler)
        orchestrations = scheduler.engine.hub("default").orchestrations
        ends = threading.Event()
        carry_out = orchestrations.carry_out

        def carried_out(changes: Any, it: Any, effect: Any) -> None:
            carry_out(changes, it, effect)
            if not ends.is_set():
                ends.set()
                asyncio.get_running_loop().call_soon(terminate)

        def terminate() -> None:
            hub = scheduler.engine.hub("default")
            it = hub.orchestrations.find("one")
            assert it is not None
            with hub.changing() as changes:
                hub.orchestrations.terminate(changes, it, "enough", recurse=False)

        monkeypatch.setattr(orchestrations, "carry_out", carried_out)
        turn.stub.CompleteOrchestratorTask(turn.answer(turn.take(), "activities", 1_000), timeout=30)
        ended = turn.stub.GetInstance(pb.GetInstanceRequest(instanceId="one"), timeout=30)
        assert ended.orchestrationState.orchestrationStatus == TERMINATED
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT count(*) FROM activities").fetchone() == (0,)


def test_what_is_written_in_pieces_is_written_as_a_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another request fails half-way between two pieces: memory is read again, and the turn is handed out again."""
    monkeypatch.setattr("dafx_actors.scheduler._hub.large_answers._LONGEST_PIECE", 0.0)
    path = tmp_path / "dafx.db"
    with EmbeddedScheduler(path).on_a_thread() as scheduler:
        turn = _Turn(scheduler)
        orchestrations = scheduler.engine.hub("default").orchestrations
        many, carry_out = [0], orchestrations.carry_out

        def carried_out(changes: Any, it: Any, effect: Any) -> None:
            many[0] += 1
            if many[0] == 500:
                asyncio.get_running_loop().call_soon(fails)
            carry_out(changes, it, effect)

        def fails() -> None:
            hub = scheduler.engine.hub("default")
            with suppress(ZeroDivisionError), hub.changing() as changes:
                changes.write("DELETE FROM orchestrations")
                raise ZeroDivisionError

        monkeypatch.setattr(orchestrations, "carry_out", carried_out)
        with pytest.raises(grpc.RpcError):
            turn.stub.CompleteOrchestratorTask(turn.answer(turn.take(), "activities", 1_000), timeout=30)
        with closing(sqlite3.connect(path)) as connection:
            assert connection.execute("SELECT count(*) FROM activities").fetchone() == (0,)
        again = turn.take()
        turn.stub.CompleteOrchestratorTask(turn.answer(again, "activities", 1_000), timeout=30)
        with closing(sqlite3.connect(path)) as connection:
            assert connection.execute("SELECT count(*) FROM activities").fetchone() == (1_000,)
