"""The rules about entities, filters, queues, timers and bytes, by calling them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import pytest
from durabletask.internal import orchestrator_service_pb2 as pb
from hypothesis import given
from hypothesis import strategies as st

from dafx_actors.scheduler._ground.clock import SECOND
from dafx_actors.scheduler._ground.ids import Ids
from dafx_actors.scheduler._ground.pacing import LONGEST, MANY, Pace
from dafx_actors.scheduler._ground.proto import (
    activity_item,
    entity_item,
    frame_past,
    history_events,
    micros,
    orchestrator_item,
    timestamp,
)
from dafx_actors.scheduler._ground.records import Activity, Entity, Lock, LockRequest, Operation
from dafx_actors.scheduler._hub.delivery import Delivery
from dafx_actors.scheduler._hub.idle import IdleCache
from dafx_actors.scheduler._hub.timers import Timers
from dafx_actors.scheduler._rules import batches as _batches
from dafx_actors.scheduler._rules.dispatch import Work, Worker, WorkQueue
from dafx_actors.scheduler._rules.filters import Filters, Lane, read_filters

NOW = 1_700_000_000_000_000

# --- entities --------------------------------------------------------------------------------------------------------


def operation(number: int, caller: int | None = None) -> Operation:
    return Operation(id=number, event=b"", request_id=f"r{number}", caller=caller, caller_execution="e")


def entity(*operations: Operation, **fields: Any) -> Entity:
    return Entity(id=1, entity_id="@e@k", mailbox=deque(operations), **fields)


def request(number: int, *entities: str) -> LockRequest:
    return LockRequest(
        id=number, section=f"s{number}", holder=number, holder_instance="i", holder_execution="e", entities=entities
    )


LOCK = Lock(section="s", holder=7, holder_instance="i")


def test_a_batch_is_what_waits_in_order() -> None:
    assert [op.id for op in _batches.runnable(entity(operation(1), operation(2, 5)))] == [1, 2]
    assert not _batches.runnable(entity(operation(1), lease="out"))


def test_a_locked_entity_runs_only_its_holders_calls() -> None:
    locked = entity(operation(1), operation(2, 7), operation(3, 8), operation(4, 7), lock=LOCK)
    assert [op.id for op in _batches.runnable(locked)] == [2, 4]


def test_a_lock_waits_for_what_came_before_it_and_not_for_what_came_after() -> None:
    known = {"@e@a": entity(operation(1)), "@e@b": entity(operation(9))}
    assert _batches.grants([request(5, "@e@a")], known.get) == []
    assert [it.id for it in _batches.grants([request(5, "@e@b")], known.get)] == [5]
    assert [it.id for it in _batches.grants([request(5, "@e@unknown")], known.get)] == [5]


def test_nobody_overtakes_an_earlier_request_for_the_same_entity() -> None:
    known = {"@e@a": entity(lock=LOCK)}
    waiting = [request(5, "@e@a", "@e@b"), request(6, "@e@b"), request(7, "@e@c")]
    assert [it.id for it in _batches.grants(waiting, known.get)] == [7]
    assert [it.id for it in _batches.grants(waiting, lambda _: None)] == [5, 7]


def test_a_batch_settles_what_has_a_result() -> None:
    batch = (operation(1, 7), operation(2), operation(3, 7))
    failed = pb.OperationResult(failure=pb.OperationResultFailure(failureDetails={"errorType": "X"}))
    result = pb.EntityBatchResult(results=[failed, pb.OperationResult()], entityState={"value": "false"})
    verdict = _batches.settle(batch, result, NOW, lambda: "id")
    assert [op.id for op in verdict.done] == [1, 2]
    assert verdict.state == "false"
    event = pb.HistoryEvent.FromString(verdict.answers[0].event)
    assert event.entityOperationFailed.failureDetails.errorType == "X"
    assert len(verdict.answers) == 1


@pytest.mark.parametrize("raw", [{}, {"entityState": {"value": ""}}])
def test_no_state_and_an_empty_one_delete_it(raw: dict[str, Any]) -> None:
    assert _batches.settle((), pb.EntityBatchResult(**raw), NOW, lambda: "id").state is None


@pytest.mark.parametrize(
    ("entity_id", "fine"),
    [("@e@k", True), ("@e@" + "k" * 97, True), ("@e@" + "k" * 98, False), ("e@k", False), ("@e@", False), ("", False)],
)
def test_ids_of_entities(entity_id: str, fine: bool) -> None:
    assert (_batches.problem_with(entity_id) is None) is fine


# --- filters ---------------------------------------------------------------------------------------------------------


def test_without_filters_a_worker_takes_everything() -> None:
    assert read_filters(pb.GetWorkItemsRequest()).take(Lane(kind="activity", name="any", version="9"))


def test_filters_by_name_and_version() -> None:
    wanted = pb.WorkItemFilters(
        orchestrations=[pb.OrchestrationFilter(name="o", versions=["1", ""]), pb.OrchestrationFilter(name="p")],
        entities=[pb.EntityFilter(name="MiXeD")],
    )
    filters = read_filters(pb.GetWorkItemsRequest(workItemFilters=wanted))
    takes = {
        lane: filters.take(lane)
        for lane in (
            Lane(kind="orchestration", name="o", version="1"),
            Lane(kind="orchestration", name="o"),
            Lane(kind="orchestration", name="o", version="2"),
            Lane(kind="orchestration", name="p", version="2"),
            Lane(kind="orchestration", name="O", version="1"),
            Lane(kind="activity", name="o", version="1"),
            Lane(kind="entity", name="mixed"),
        )
    }
    assert list(takes.values()) == [True, True, False, True, False, False, True]
    assert filters.of("orchestration") == ("o", "p")


# --- queues ----------------------------------------------------------------------------------------------------------

LANE = Lane(kind="activity", name="a")


def work(number: int, group: int = 0, lane: Lane = LANE) -> Work:
    subject = Activity(
        id=number, orchestration=group, instance_id="i", task_id=1, name=lane.name, version=None, request=b""
    )
    return Work(lane=lane, subject=subject, since=number, group=group)


def worker(limit: int = 0, filters: Filters | None = None) -> Worker:
    return Worker(filters=filters or Filters(), limits={"orchestration": limit, "activity": limit, "entity": limit})


def ids(one: Worker) -> list[int]:
    return [item.subject.id for item in one.outbox]


def test_the_least_loaded_worker_gets_more_and_equals_take_turns() -> None:
    queue, first, second = WorkQueue(), worker(), worker()
    queue.connect(first)
    queue.connect(second)
    for number in range(6):
        queue.add(work(number))
    assert ids(first) == [0, 2, 4]
    queue.release(second, "activity")
    queue.release(second, "activity")
    queue.add(work(6))
    queue.add(work(7))
    assert ids(second) == [1, 3, 5, 6, 7]


def test_a_limit_is_kept_and_what_waits_follows_in_order() -> None:
    queue, only = WorkQueue(), worker(limit=2)
    queue.connect(only)
    for number in range(5):
        queue.add(work(number))
    assert ids(only) == [0, 1]
    queue.add(work(9), front=True)
    queue.release(only, "activity")
    queue.release(only, "activity")
    assert ids(only) == [0, 1, 9, 2]
    assert queue.oldest("activity") == 3


def test_what_nobody_wants_is_in_nobodys_way() -> None:
    queue = WorkQueue()
    queue.add(work(1, lane=Lane(kind="activity", name="unwanted")))
    queue.add(work(2))
    names: Any = {"orchestration": {}, "activity": {"a": frozenset()}, "entity": {}}
    one = worker(filters=Filters(names=names))
    queue.connect(one)
    assert ids(one) == [2]
    assert list(queue.waiting("activity").values()) == [1]


def test_orchestrations_take_turns_in_a_lane() -> None:
    queue = WorkQueue()
    for number in range(4):
        queue.add(work(number, group=1))
    queue.add(work(10, group=2))
    one = worker(limit=3)
    queue.connect(one)
    assert ids(one) == [0, 10, 1]


def test_dropped_work_is_not_handed_out() -> None:
    queue, gone, kept = WorkQueue(), work(1), work(2)
    queue.add(gone)
    queue.add(kept)
    queue.drop(gone)
    queue.drop(gone)
    assert list(queue.waiting("activity").values()) == [1]
    one = worker()
    queue.connect(one)
    assert ids(one) == [2]
    assert queue.oldest("activity") is None


def test_while_paused_nothing_is_handed_out() -> None:
    queue, one = WorkQueue(), worker()
    queue.connect(one)
    queue.paused = True
    queue.add(work(1))
    assert not one.outbox
    queue.resume()
    assert ids(one) == [1]


def handing_out(clock: HandClock, *workers: Worker) -> Delivery:
    delivery = Delivery(clock, Ids(1), lambda _, token: token.encode())
    for one in workers:
        delivery.queue.connect(one)
    return delivery


def token_of(item: Any) -> str:
    """The token of a work item that `handing_out` has made."""
    assert isinstance(item, bytes)
    return item.decode()


def before(clock: HandClock) -> dict[Any, int]:
    return dict.fromkeys(("orchestration", "activity", "entity"), clock.now())


def test_what_a_worker_was_not_sent_is_taken_back_as_well() -> None:
    """Patience counts from the assignment: a worker that does not read its stream is sent nothing."""
    clock, wedged, other = HandClock(), worker(), worker()
    delivery = handing_out(clock, wedged)
    for number in range(5):
        delivery.offer(work(number).subject, LANE)
    assert delivery.take(wedged) is not None
    assert delivery.overdue(before(clock)) == []
    clock.move(NOW + SECOND)
    late = delivery.overdue(before(clock))
    assert sorted(item.subject.id for item in late) == [0, 1, 2, 3, 4]
    assert (wedged.is_late, wedged.load["activity"], len(wedged.outbox)) == (True, 0, 0)
    delivery.queue.connect(other)
    for item in late:
        delivery.again(item)
    assert (len(other.outbox), len(wedged.outbox)) == (5, 0), "whoever answers goes before whoever does not"


def test_a_late_worker_is_offered_one_item_at_a_time_until_it_answers() -> None:
    clock, only = HandClock(), worker()
    delivery = handing_out(clock, only)
    for number in range(4):
        delivery.offer(work(number).subject, LANE)
    clock.move(NOW + SECOND)
    for item in delivery.overdue(before(clock)):
        delivery.again(item)
    assert (only.is_late, len(only.outbox)) == (True, 1)
    token = delivery.take(only)
    assert isinstance(token, bytes)
    assert not only.outbox
    assert delivery.answered(token.decode(), "activity") is not None
    assert (only.is_late, len(only.outbox)) == (False, 3)


def test_a_worker_that_answers_in_between_is_not_late() -> None:
    """It has much to do, and does it."""
    clock, busy = HandClock(), worker()
    delivery = handing_out(clock, busy)
    for number in range(3):
        delivery.offer(work(number).subject, LANE)
    token = delivery.take(busy)
    assert isinstance(token, bytes)
    clock.move(NOW + SECOND)
    assert delivery.answered(token.decode(), "activity") is not None
    assert len(delivery.overdue(before(clock))) == 2
    assert not busy.is_late


def test_answers_on_a_stream_count_for_its_own_work_only() -> None:
    clock, first, second = HandClock(), worker(), worker()
    delivery = handing_out(clock, first, second)
    delivery.offer(work(1).subject, LANE)
    token = delivery.take(first)
    assert isinstance(token, bytes)
    assert delivery.is_with(first, token.decode())
    assert not delivery.is_with(second, token.decode())
    assert not delivery.is_with(first, "another")


def test_a_completion_token_cannot_be_guessed() -> None:
    ids = Ids(1)
    tokens = {ids.token() for _ in range(1_000)}
    assert len(tokens) == 1_000
    digits = [token.replace("-", "") for token in tokens]
    assert {len(bytes.fromhex(token)) for token in digits} == {16}
    assert all(len({token[at] for token in digits}) == 16 for at in range(32)), "no part of them stays the same"


@given(st.lists(st.tuples(st.sampled_from(["add", "release", "drop"]), st.integers(0, 3)), max_size=60))
def test_no_work_is_lost_or_given_twice(steps: list[tuple[str, int]]) -> None:
    """Whatever happens, each piece of work is with one worker, or waits, or was dropped."""
    queue, workers = WorkQueue(), [worker(limit=1), worker(limit=2)]
    for one in workers:
        queue.connect(one)
    added: list[Work] = []
    for what, number in steps:
        if what == "add":
            added.append(work(len(added), group=number))
            queue.add(added[-1])
        elif what == "release" and workers[number % 2].load["activity"]:
            queue.release(workers[number % 2], "activity")
        elif what == "drop" and added:
            queue.drop(added[number % len(added)])
    given_out = [item for one in workers for item in one.outbox]
    assert len(given_out) == len(set(map(id, given_out)))
    waiting = sum(queue.waiting("activity").values())
    dropped_waiting = sum(item.dropped and item.worker is None for item in added)
    assert len(given_out) + waiting + dropped_waiting == len(added)
    assert all(one.load["activity"] <= one.limits["activity"] for one in workers)


# --- timers ----------------------------------------------------------------------------------------------------------


class HandClock:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.time = NOW
        self.alarms: list[Any] = []

    def now(self) -> int:
        return self.time

    def alarm(self, due: int, ring: Any) -> Any:
        entry = [due, ring]
        self.alarms.append(entry)
        clock = self

        class Handle:
            def cancel(self) -> None:
                if entry in clock.alarms:
                    clock.alarms.remove(entry)

        return Handle()

    def move(self, to: int) -> None:
        self.time = to
        for entry in [entry for entry in self.alarms if entry[0] <= to]:
            self.alarms.remove(entry)
            entry[1]()


def test_timers_fire_in_order_and_with_one_alarm() -> None:
    clock, fired = HandClock(), []
    timers = Timers(clock, lambda due: fired.append([timer[1] for timer in due]))
    for row, due in ((1, 30), (2, 10), (3, 20), (4, 10)):
        timers.add((NOW + due, row, 1, 0, row, None))
        assert len(clock.alarms) == 1
    timers.cancel({3})
    assert len(timers) == 3
    clock.move(NOW + 9)
    assert fired == []
    clock.move(NOW + 25)
    assert fired == [[2, 4]]
    clock.move(NOW + 30)
    assert fired == [[2, 4], [1]]
    assert not clock.alarms


def test_a_timer_that_was_cancelled_before_it_was_added_counts_for_nothing() -> None:
    timers = Timers(HandClock(), lambda _: None)
    timers.cancel({1, 2, 3})
    assert len(timers) == 0
    timers.add((NOW + 1, 4, 1, 0, 4, None))
    assert len(timers) == 1


def test_many_cancelled_timers_do_not_stay_in_memory() -> None:
    timers = Timers(HandClock(), lambda _: None)
    timers.replace(1, [(NOW + row, row, 1, 0, row, None) for row in range(5_000)])
    timers.cancel(set(range(4_000)))
    assert len(timers) == len(timers._heap) == 1_000
    timers.replace(2, [(NOW, 9_000, 2, 0, 1, None)])
    timers.replace(1, [])
    assert len(timers) == 1


# --- handing out -----------------------------------------------------------------------------------------------------


def test_a_worker_that_gives_a_step_back_is_given_no_more_for_a_while_and_that_is_no_failure() -> None:
    clock, leaving, other = HandClock(), worker(), worker()
    delivery = handing_out(clock, leaving)
    for number in range(2):
        delivery.offer(work(number).subject, LANE)
    back = None
    for _ in range(2):
        token = token_of(delivery.take(leaving))
        delivery.given_back(token, "activity")
        back = delivery.answered(token, "activity")
        assert back is not None
        delivery.again(back)
    assert (delivery.take(leaving), [*leaving.outbox], back and back.attempts) == (None, [], 0)
    delivery.queue.connect(other)
    assert len(other.outbox) == 2
    delivery.offer(work(2).subject, LANE)
    clock.move(NOW + 10 * SECOND)
    for number in range(3, 5):
        delivery.offer(work(number).subject, LANE)
    assert (len(other.outbox), len(leaving.outbox)) == (3, 2)


def test_an_orchestration_that_is_given_back_may_come_again_at_once() -> None:
    """durabletask gives back those of other versions, and is none that stops."""
    clock, one = HandClock(), worker()
    delivery = handing_out(clock, one)
    delivery.given_back("nothing is out under this", "activity")
    delivery.offer(work(0).subject, LANE)
    delivery.given_back(token_of(delivery.take(one)), "orchestration")
    assert one.resting == set()


def test_answers_are_about_to_come_when_much_was_given_just_now() -> None:
    clock, one = HandClock(), worker()
    delivery = Delivery(clock, Ids(1), lambda _, token: token.encode())
    delivery.queue.connect(one)
    for number in range(8):
        assert not delivery.crowded()
        item = work(number)
        delivery.offer(item.subject, item.lane)
        assert delivery.take(one) is not None
    assert delivery.crowded()
    clock.move(NOW + SECOND)
    assert not delivery.crowded(), "what takes so long may take longer"


# --- memory and bytes ------------------------------------------------------------------------------------------------


def test_idle_records_are_forgotten_by_number_and_by_weight() -> None:
    forgotten: list[int] = []
    later: list[Callable[[], None]] = []
    cache = IdleCache[int](forgotten.append, most=3, heaviest=100, soon=later.append)
    for key in (1, 2, 3):
        cache.put(key, 10)
    cache.put(1, 10)
    cache.put(4, 10)
    cache.put(6, 10)
    assert not forgotten, "whoever looked one up is not done with it"
    later.pop()()
    assert forgotten == [2, 3]
    cache.take(1)
    cache.put(5, 95)
    later.pop()()
    assert forgotten == [2, 3, 4, 6]
    assert not later


@given(st.integers(0, 4_000_000_000_000_000))
def test_times_survive_the_wire(at: int) -> None:
    assert micros(timestamp(at)) == at


@given(st.lists(st.binary(max_size=300), max_size=5), st.text(max_size=200))
def test_assembled_work_items_are_what_protobuf_reads(payloads: list[bytes], text: str) -> None:
    events = [
        pb.HistoryEvent(eventId=n, eventRaised=pb.EventRaisedEvent(name="x" * len(payload)))
        for n, payload in enumerate(payloads)
    ]
    raw = [event.SerializeToString() for event in events]
    past = frame_past(raw)
    assert list(history_events(past)) == events
    item = pb.WorkItem.FromString(
        orchestrator_item(token="t", instance_id=text, execution_id="e", past=[past], new=raw, trace=b"")
    )
    assert item.completionToken == "t"
    request = item.orchestratorRequest
    assert (request.instanceId, request.executionId.value) == (text, "e")
    assert list(request.pastEvents) == list(request.newEvents) == events
    batch = pb.WorkItem.FromString(entity_item(token="t", entity_id="@e@k", state=text, operations=raw))
    assert batch.entityRequestV2.entityState.value == text
    assert list(batch.entityRequestV2.operationRequests) == events
    activity = pb.ActivityRequest(name=text)
    item = pb.WorkItem.FromString(activity_item(token="t", request=activity.SerializeToString()))
    assert item.activityRequest == activity


def test_an_orchestration_that_waits_for_much_rests_as_long_as_its_turn_took() -> None:
    pace = Pace(awaited=MANY + 1, given=10.0)
    assert pace.rest(10.0) == 0, "before its first turn"
    pace.turned(10.05)
    assert pace.rest(10.06) == pytest.approx(0.04)
    assert pace.rest(10.2) == 0
    pace.given = 11.0
    pace.turned(14.0)
    assert pace.rest(14.0) == pytest.approx(LONGEST)
    pace.answered()
    assert pace.rest(14.0) == pytest.approx(LONGEST)
    pace.answered()
    assert pace.rest(14.0) == 0, "the last answers come without a rest"


def test_more_answers_than_are_known_of_do_no_harm() -> None:
    """After a restart nobody knows how many are to come."""
    pace = Pace()
    pace.answered()
    assert pace.awaited == 0
