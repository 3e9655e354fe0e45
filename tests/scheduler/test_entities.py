"""Entities through the public SDK's client and worker."""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import anyio
import grpc.aio
import pytest
from durabletask import task
from durabletask.client import EntityQuery, OrchestrationStatus
from durabletask.entities import DurableEntity, EntityInstanceId
from durabletask.internal import orchestrator_service_pb2 as pb

from tests.scheduler.bench import PATIENCE, Bench, RawWorker, Steps

pytestmark = pytest.mark.anyio

COUNTER = EntityInstanceId("counter", "a")


class Counter(DurableEntity):
    """Counts, keeps a journal, and does what the tests ask of an entity."""

    def add(self, amount: int) -> int:
        total = self.get_state(int, 0) + amount
        self.set_state(total)
        return total

    def get(self) -> int:
        return self.get_state(int, 0)

    def drop(self, _: object = None) -> None:
        self.set_state(None)

    def fail(self, _: object = None) -> None:
        self.set_state(999)
        raise ValueError("no")

    def append(self, item: Any) -> None:
        self.set_state([*self.get_state(list, []), item])

    def tell(self, other: str) -> None:
        self.entity_context.signal_entity(EntityInstanceId.parse(other), "add", 1)

    def start(self, name: str) -> str:
        return self.entity_context.schedule_new_orchestration(name, instance_id="from-entity")


def calls(context: task.OrchestrationContext, amount: int) -> Steps:
    return (yield context.call_entity(COUNTER, "add", amount))


async def state_of(bench: Bench, entity: EntityInstanceId, expected: str | None) -> None:
    """Wait until an entity has this state."""
    deadline = time.monotonic() + PATIENCE
    found = None
    while time.monotonic() < deadline:
        found = await bench.client.get_entity(entity)
        state = None if found is None else found.get_state()
        if state == expected:
            return
    raise AssertionError(f"{entity} has state {found and found.get_state()!r}, not {expected!r}")


async def test_signals_in_order(bench: Bench) -> None:
    await bench.worker(Counter)
    assert await bench.client.get_entity(COUNTER) is None
    for number in range(50):
        await bench.client.signal_entity(COUNTER, "append", number)
    await state_of(bench, COUNTER, str(list(range(50))))


async def test_a_call_has_an_answer_and_a_failure_is_rolled_back(bench: Bench) -> None:
    def fails(context: task.OrchestrationContext, _: object) -> Steps:
        yield context.call_entity(COUNTER, "add", 4)
        try:
            yield context.call_entity(COUNTER, "fail")
        except task.TaskFailedError as error:
            return ["no" in str(error), (yield context.call_entity(COUNTER, "get"))]
        return "no failure"

    await bench.worker(fails, calls, Counter)
    assert (await bench.run(fails)).serialized_output == "[true, 4]"
    assert (await bench.run(calls, 3)).serialized_output == "7"


async def test_deleted_and_made_again(bench: Bench) -> None:
    await bench.worker(Counter)
    for operation, state in (("add", "1"), ("drop", None), ("add", "1")):
        await bench.client.signal_entity(COUNTER, operation, 1)
        await state_of(bench, COUNTER, state)
    await bench.client.signal_entity(COUNTER, "drop")
    await state_of(bench, COUNTER, None)
    cleaned = await bench.client.clean_entity_storage()
    assert (cleaned.empty_entities_removed, cleaned.orphaned_locks_released) == (0, 0)


async def test_a_delayed_signal(bench: Bench) -> None:
    await bench.worker(Counter)
    await bench.client.signal_entity(COUNTER, "append", 1, signal_time=datetime.now(UTC) + timedelta(seconds=3))
    await bench.client.signal_entity(COUNTER, "append", 10, signal_time=datetime(2020, 1, 1, tzinfo=UTC))
    await state_of(bench, COUNTER, "[10, 1]")


async def test_the_same_signal_again_is_not_carried_out_again(bench: Bench) -> None:
    stub = await bench.stub()
    await bench.worker(Counter)
    request = pb.SignalEntityRequest(instanceId=str(COUNTER), name="add", requestId="once")
    request.input.value = "1"
    for _ in range(3):
        await stub.SignalEntity(request)
    await bench.client.signal_entity(COUNTER, "add", 10)
    await state_of(bench, COUNTER, "11")
    await stub.SignalEntity(request)
    await bench.client.signal_entity(COUNTER, "add", 10)
    await state_of(bench, COUNTER, "21")


async def test_ids_that_cannot_be(bench: Bench) -> None:
    with pytest.raises(grpc.aio.AioRpcError, match="length") as caught:
        await bench.client.signal_entity(EntityInstanceId("counter", "x" * 200), "add", 1)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_entities_signal_and_start(bench: Bench) -> None:
    def started(_: task.OrchestrationContext, __: object) -> str:
        return "by an entity"

    await bench.worker(started, Counter)
    other = EntityInstanceId("counter", "other")
    await bench.client.signal_entity(COUNTER, "tell", str(other))
    await state_of(bench, other, "1")
    for _ in range(2):  # The second finds the id taken, which is no error.
        await bench.client.signal_entity(COUNTER, "start", "started")
    assert (await bench.end_of("from-entity")).serialized_output == '"by an entity"'


async def test_a_critical_section_keeps_others_out(bench: Bench) -> None:
    inside = threading.Event()

    def holds(context: task.OrchestrationContext, _: object) -> Steps:
        with (yield context.lock_entities([COUNTER])):
            before = yield context.call_entity(COUNTER, "add", 100)
            inside.set()
            yield context.wait_for_external_event("leave")
            after = yield context.call_entity(COUNTER, "get")
        return [before, after]

    stub = await bench.stub()
    await bench.worker(holds, calls, Counter)
    holder = await bench.client.schedule_new_orchestration(holds)
    assert await anyio.to_thread.run_sync(inside.wait, PATIENCE)
    metadata = (await stub.GetEntity(pb.GetEntityRequest(instanceId=str(COUNTER)))).entity
    assert metadata.lockedBy.value == holder
    caller = await bench.client.schedule_new_orchestration(calls, input=1)
    await bench.client.signal_entity(COUNTER, "add", 10)
    await bench.client.wait_for_orchestration_start(caller, timeout=PATIENCE)
    await bench.client.raise_orchestration_event(holder, "leave")
    assert (await bench.end_of(holder)).serialized_output == "[100, 100]"
    assert (await bench.end_of(caller)).serialized_output in {"101", "111"}
    await state_of(bench, COUNTER, "111")


async def test_many_sections_over_two_entities_neither_mix_nor_deadlock(bench: Bench) -> None:
    one, two = EntityInstanceId("counter", "one"), EntityInstanceId("counter", "two")

    def moves(context: task.OrchestrationContext, back: bool) -> Steps:
        source, target = (two, one) if back else (one, two)
        with (yield context.lock_entities([source, target])):
            there = yield context.call_entity(target, "get")
            yield context.call_entity(source, "add", -1)
            after = yield context.call_entity(target, "add", 1)
            return after - there

    await bench.worker(moves, Counter)
    ids = [await bench.client.schedule_new_orchestration(moves, input=number % 2 == 0) for number in range(20)]
    assert {(await bench.end_of(name)).serialized_output for name in ids} == {"1"}
    await state_of(bench, one, "0")
    await state_of(bench, two, "0")


@pytest.mark.parametrize("end", ["terminate", "purge"])
async def test_a_holder_that_is_ended_leaks_no_lock(bench: Bench, end: str) -> None:
    inside = threading.Event()

    def holds(context: task.OrchestrationContext, _: object) -> Steps:
        with (yield context.lock_entities([COUNTER])):
            inside.set()
            yield context.wait_for_external_event("never")

    await bench.worker(holds, calls, Counter)
    holder = await bench.client.schedule_new_orchestration(holds)
    waiting = await bench.client.schedule_new_orchestration(holds)
    assert await anyio.to_thread.run_sync(inside.wait, PATIENCE)
    for name in (holder, waiting):
        await bench.client.terminate_orchestration(name)
        if end == "purge":
            await bench.client.purge_orchestration(name)
    assert (await bench.run(calls, 1)).serialized_output == "1"
    assert (await bench.client.clean_entity_storage()).orphaned_locks_released == 0


async def test_a_batch_that_is_half_done_is_finished_by_another(bench: Bench) -> None:
    """Fewer results than operations: the rest is given out again, in order, with the new state."""
    stub = await bench.stub()
    worker = RawWorker(stub)
    for number in range(3):
        await bench.client.signal_entity(COUNTER, "append", number)
    item = await worker.take()
    request = item.entityRequestV2
    assert not request.HasField("entityState")
    done = pb.OperationResult(success=pb.OperationResultSuccess())
    result = pb.EntityBatchResult(results=[done], completionToken=item.completionToken)
    result.entityState.value = "first"
    first = [operation.entityOperationSignaled.input.value for operation in request.operationRequests]
    await stub.CompleteEntityTask(result)
    item = await worker.take()
    rest = [operation.entityOperationSignaled.input.value for operation in item.entityRequestV2.operationRequests]
    assert item.entityRequestV2.entityState.value == "first"
    assert first[:1] + rest == ["0", "1", "2"][: 1 + len(rest)]
    await stub.CompleteEntityTask(
        pb.EntityBatchResult(completionToken=item.completionToken, failureDetails=pb.TaskFailureDetails())
    )
    again = await worker.take()
    assert again.entityRequestV2.operationRequests[0].entityOperationSignaled.input.value == rest[0]


async def test_queries(bench: Bench) -> None:
    await bench.worker(Counter)
    for number in range(12):
        entity = EntityInstanceId("counter", f"q{number:02}")
        await bench.client.signal_entity(entity, "add", number)
    await bench.client.signal_entity(EntityInstanceId("counter", "r"), "add", 1)
    await state_of(bench, EntityInstanceId("counter", "r"), "1")
    await state_of(bench, EntityInstanceId("counter", "q11"), "11")
    found = await bench.client.get_all_entities(EntityQuery(instance_id_starts_with="@counter@q", page_size=5))
    assert [str(entity.id) for entity in found] == [f"@counter@q{number:02}" for number in range(12)]
    assert found[3].get_state() == "3"
    without = await bench.client.get_all_entities(EntityQuery(include_state=False))
    assert len(without) == 13
    since = await bench.client.get_all_entities(EntityQuery(last_modified_from=found[11].last_modified))
    assert all(entity.last_modified >= found[11].last_modified for entity in since)


async def test_entities_outlive_a_restart(bench: Bench) -> None:
    await bench.worker(Counter, calls)
    assert (await bench.run(calls, 5)).serialized_output == "5"
    db = bench.db
    await bench.__aexit__(None, None, None)
    async with Bench(db) as again:
        await again.worker(Counter, calls)
        state = await again.run(calls, 5)
        assert state.runtime_status is OrchestrationStatus.COMPLETED
        assert state.serialized_output == "10"
