"""Who gets which work: through the public SDK's worker, and by hand where it would not misbehave."""

from __future__ import annotations

import threading
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import grpc.aio
import pytest
from durabletask import task
from durabletask.azuremanaged.client import AsyncDurableTaskSchedulerClient
from durabletask.azuremanaged.worker import DurableTaskSchedulerWorker
from durabletask.entities import EntityInstanceId
from durabletask.grpc_options import GrpcWorkerResiliencyOptions
from durabletask.internal import orchestrator_service_pb2 as pb
from durabletask.worker import ActivityWorkItemFilter, OrchestrationWorkItemFilter, WorkItemFilters

from dafx_actors.scheduler import Patience
from dafx_actors.scheduler._ground.records import Lock
from dafx_actors.scheduler.storage import tables
from tests.scheduler.bench import PATIENCE, QUIET, Bench, RawWorker, Steps
from tests.scheduler.test_entities import COUNTER, Counter, calls
from tests.scheduler.test_rules import HandClock

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.anyio


def do_work(_: task.ActivityContext, number: int) -> int:
    return number


def one(context: task.OrchestrationContext, number: int) -> Steps:
    return (yield context.call_activity(do_work, input=number))


def do_swallow(_: task.ActivityContext, text: str) -> int:
    return len(text)


def large(context: task.OrchestrationContext, text: str) -> Steps:
    return (yield context.call_activity(do_swallow, input=text))


def sleeps_for_a_day(context: task.OrchestrationContext, _: object) -> Steps:
    yield context.create_timer(timedelta(days=1))
    return "morning"


def other(_: task.OrchestrationContext, __: object) -> str:
    return "other"


def complete(item: Any) -> pb.OrchestratorResponse:
    """The answer of an orchestration that is over at once."""
    end = pb.CompleteOrchestrationAction(orchestrationStatus=pb.ORCHESTRATION_STATUS_COMPLETED)
    return pb.OrchestratorResponse(
        instanceId=item.orchestratorRequest.instanceId,
        completionToken=item.completionToken,
        actions=[pb.OrchestratorAction(id=0, completeOrchestration=end)],
    )


async def test_a_worker_that_does_not_read_its_stream_keeps_nothing(tmp_path: Path) -> None:
    """Neither what it was sent, nor what waits for it: another worker gets all of it."""
    patience = Patience(orchestration=0.3, activity=0.3, entity=0.3, every=0.1)
    async with Bench(tmp_path / "dafx.db", patience=patience) as bench:
        stub = await bench.stub()
        wedged = stub.GetWorkItems(pb.GetWorkItemsRequest())
        hub = bench.scheduler.engine.hub("default")
        while not hub.delivery.queue.workers:
            await anyio.lowlevel.checkpoint()
        ids = [await bench.client.schedule_new_orchestration(other, input="x" * 50_000) for _ in range(60)]
        await bench.worker(other)
        for instance_id in ids:
            assert (await bench.end_of(instance_id)).serialized_output == '"other"'
        wedged.cancel()


async def test_work_of_a_worker_that_leaves_is_handed_out_again(bench: Bench) -> None:
    """At once, under a new token; the old token is refused, whatever it answers."""
    stub = await bench.stub()
    first = RawWorker(stub)
    instance_id = await bench.client.schedule_new_orchestration("any")
    item = await first.take()
    first.leave()
    second = RawWorker(stub)
    again = await second.take()
    assert again.orchestratorRequest.instanceId == instance_id
    assert again.completionToken != item.completionToken
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.CompleteOrchestratorTask(complete(item))
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    state = await bench.client.get_orchestration_state(instance_id)
    assert state is not None
    assert state.runtime_status.name == "PENDING"
    await stub.CompleteOrchestratorTask(complete(again))
    assert (await bench.end_of(instance_id)).runtime_status.name == "COMPLETED"
    with pytest.raises(grpc.aio.AioRpcError):
        await stub.CompleteOrchestratorTask(complete(again))


async def test_tokens_of_an_earlier_run_are_refused(tmp_path: Path) -> None:
    async with Bench(tmp_path / "dafx.db") as bench:
        worker = RawWorker(await bench.stub())
        instance_id = await bench.client.schedule_new_orchestration("any")
        old = await worker.take()
    async with Bench(tmp_path / "dafx.db") as bench:
        stub = await bench.stub()
        again = await RawWorker(stub).take()
        assert again.orchestratorRequest.instanceId == instance_id
        with pytest.raises(grpc.aio.AioRpcError):
            await stub.CompleteOrchestratorTask(complete(old))
        await stub.CompleteOrchestratorTask(complete(again))
        await bench.end_of(instance_id)


async def test_a_worker_that_holds_work_for_too_long_loses_it(tmp_path: Path) -> None:
    patience = Patience(orchestration=0.2, every=0.05)
    async with Bench(tmp_path / "dafx.db", patience=patience) as bench:
        stub = await bench.stub()
        worker = RawWorker(stub)
        instance_id = await bench.client.schedule_new_orchestration("any")
        item = await worker.take()
        again = await worker.take()
        assert again.orchestratorRequest.instanceId == instance_id
        with pytest.raises(grpc.aio.AioRpcError):
            await stub.CompleteOrchestratorTask(complete(item))
        await stub.CompleteOrchestratorTask(complete(again))


async def test_an_answer_for_what_nobody_needs_any_more_is_no_error(bench: Bench) -> None:
    stub = await bench.stub()
    worker = RawWorker(stub)
    instance_id = await bench.client.schedule_new_orchestration("any")
    item = await worker.take()
    await bench.client.terminate_orchestration(instance_id)
    await stub.CompleteOrchestratorTask(complete(item))
    assert (await bench.end_of(instance_id)).runtime_status.name == "TERMINATED"


async def test_an_answer_of_the_wrong_kind_is_refused_and_changes_nothing(bench: Bench) -> None:
    """The work stays with its worker, whose own answer still counts."""
    stub = await bench.stub()
    worker = RawWorker(stub)
    instance_id = await bench.client.schedule_new_orchestration("any")
    item = await worker.take()
    token = item.completionToken
    for call in (
        stub.CompleteActivityTask(pb.ActivityResponse(completionToken=token)),
        stub.CompleteEntityTask(pb.EntityBatchResult(completionToken=token)),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    await stub.AbandonTaskActivityWorkItem(pb.AbandonActivityTaskRequest(completionToken=token))
    await stub.CompleteOrchestratorTask(complete(item))
    assert (await bench.end_of(instance_id)).runtime_status.name == "COMPLETED"


async def test_abandoned_work_is_handed_out_again(bench: Bench) -> None:
    stub = await bench.stub()
    worker = RawWorker(stub)
    instance_id = await bench.client.schedule_new_orchestration("any")
    item = await worker.take()
    await stub.AbandonTaskOrchestratorWorkItem(pb.AbandonOrchestrationTaskRequest(completionToken=item.completionToken))
    again = await worker.take()
    schedule = pb.OrchestratorAction(id=1, scheduleTask=pb.ScheduleTaskAction(name="activity"))
    await stub.CompleteOrchestratorTask(
        pb.OrchestratorResponse(instanceId=instance_id, completionToken=again.completionToken, actions=[schedule])
    )
    activity = await worker.take()
    assert activity.activityRequest.name == "activity"
    assert not activity.activityRequest.HasField("input")
    assert activity.activityRequest.orchestrationInstance.instanceId == instance_id
    await stub.AbandonTaskActivityWorkItem(pb.AbandonActivityTaskRequest(completionToken=activity.completionToken))
    # One that gives a step back is about to stop: another is given it, and the first no other for a while.
    second = RawWorker(stub)
    assert (await second.take()).activityRequest.taskId == 1
    resting = [each.resting for each in bench.scheduler.engine.hub("default").delivery.queue.workers]
    assert resting == [{"activity"}, set()]


async def test_an_answer_that_makes_no_sense_is_refused_and_changes_nothing(bench: Bench) -> None:
    stub = await bench.stub()
    worker = RawWorker(stub)
    instance_id = await bench.client.schedule_new_orchestration("any")
    item = await worker.take()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.CompleteOrchestratorTask(
            pb.OrchestratorResponse(
                instanceId=instance_id, completionToken=item.completionToken, actions=[pb.OrchestratorAction(id=3)]
            )
        )
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    await stub.CompleteOrchestratorTask(complete(await worker.take()))
    await bench.end_of(instance_id)


async def test_limits_are_kept_and_the_least_loaded_gets_more(bench: Bench) -> None:
    stub = await bench.stub()
    small = RawWorker(stub, maxConcurrentOrchestrationWorkItems=2)
    large = RawWorker(stub, maxConcurrentOrchestrationWorkItems=5)
    ids = {await bench.client.schedule_new_orchestration("any", instance_id=f"i{n}") for n in range(10)}
    first = [await small.take(), await small.take()]
    rest = [await large.take() for _ in range(5)]
    queue = bench.scheduler.engine.hub("default").delivery.queue
    assert sum(queue.waiting("orchestration").values()) == 3
    assert sorted(worker.load["orchestration"] for worker in queue.workers) == [2, 5]
    await stub.CompleteOrchestratorTask(complete(first[0]))
    third = await small.take()
    seen = {item.orchestratorRequest.instanceId for item in [*first, *rest, third]}
    assert len(seen) == 8
    assert seen <= ids


async def test_filters(bench: Bench) -> None:
    """Each worker gets only what it asked for; what nobody takes stays pending and is in nobody's way."""
    waiting = await bench.client.schedule_new_orchestration("nobody takes this")
    filters = WorkItemFilters(
        orchestrations=[OrchestrationWorkItemFilter("one")], activities=[ActivityWorkItemFilter("do_work")]
    )
    first = await bench.worker(one, do_work, filters=True)
    assert first is not None
    await bench.worker(other, filters=True)
    assert (await bench.run(one, 3)).serialized_output == "3"
    assert (await bench.run(other)).serialized_output == '"other"'
    state = await bench.client.get_orchestration_state(waiting)
    assert state is not None
    assert state.runtime_status.name == "PENDING"
    assert filters.entities == []


async def test_an_activity_has_the_version_of_its_orchestration(bench: Bench) -> None:
    """SDKs that match strictly ask for versioned activities, and send none with one."""
    stub = await bench.stub()
    only = pb.WorkItemFilters(
        orchestrations=[pb.OrchestrationFilter(name="any", versions=["2"])],
        activities=[pb.ActivityFilter(name="activity", versions=["2"])],
    )
    worker = RawWorker(stub, workItemFilters=only)
    await bench.client.schedule_new_orchestration("any", version="1")
    instance_id = await bench.client.schedule_new_orchestration("any", version="2")
    item = await worker.take()
    assert item.orchestratorRequest.instanceId == instance_id
    schedule = pb.OrchestratorAction(id=1, scheduleTask=pb.ScheduleTaskAction(name="activity"))
    await stub.CompleteOrchestratorTask(
        pb.OrchestratorResponse(instanceId=instance_id, completionToken=item.completionToken, actions=[schedule])
    )
    assert (await worker.take()).activityRequest.version.value == "2"


async def test_queued_activities_of_an_ended_orchestration_are_dropped(bench: Bench) -> None:
    stub = await bench.stub()
    worker = RawWorker(stub, maxConcurrentActivityWorkItems=1)
    instance_id = await bench.client.schedule_new_orchestration("any")
    item = await worker.take()
    schedule = [pb.OrchestratorAction(id=n, scheduleTask=pb.ScheduleTaskAction(name="activity")) for n in range(1, 4)]
    await stub.CompleteOrchestratorTask(
        pb.OrchestratorResponse(instanceId=instance_id, completionToken=item.completionToken, actions=schedule)
    )
    held = await worker.take()
    queue = bench.scheduler.engine.hub("default").delivery.queue
    assert sum(queue.waiting("activity").values()) == 2
    await bench.client.terminate_orchestration(instance_id)
    assert sum(queue.waiting("activity").values()) == 0
    await stub.CompleteActivityTask(
        pb.ActivityResponse(instanceId=instance_id, taskId=1, completionToken=held.completionToken)
    )
    assert queue.workers[0].load["activity"] == 0


async def test_an_entity_is_not_frozen_by_a_worker_that_disappears(bench: Bench) -> None:
    stub = await bench.stub()
    first = RawWorker(stub)
    await bench.client.signal_entity(EntityInstanceId("e", "k"), "op")
    await first.take()
    first.leave()
    again = await RawWorker(stub).take()
    assert again.entityRequestV2.operationRequests[0].entityOperationSignaled.operation == "op"


async def test_idle_streams_are_pinged(tmp_path: Path) -> None:
    async with Bench(tmp_path / "dafx.db", ping_every=0.05) as bench:
        stub = await bench.stub()
        call = stub.GetWorkItems(pb.GetWorkItemsRequest())
        async for item in call:
            assert item.HasField("healthPing")
            break
        call.cancel()


async def test_task_hubs_know_nothing_of_one_another(bench: Bench) -> None:
    await bench.worker(one, do_work, hub="blue")
    red = await bench.client.schedule_new_orchestration(one, input=1, instance_id="same")
    async with bench.new_client("blue") as blue:
        await blue.schedule_new_orchestration(one, input=2, instance_id="same")
        state = await blue.wait_for_orchestration_completion("same", timeout=PATIENCE)
        assert state is not None
        assert state.serialized_output == "2"
    state = await bench.client.get_orchestration_state(red)
    assert state is not None
    assert state.runtime_status.name == "PENDING"


async def test_a_thousand_waiting_clients(bench: Bench) -> None:
    """They wait by pushes: none is lost, and the scheduler answers others meanwhile."""
    go = threading.Event()

    def do_wait(_: task.ActivityContext, __: object) -> None:
        go.wait(PATIENCE)

    def gate(context: task.OrchestrationContext, _: object) -> Steps:
        yield context.call_activity(do_wait)

    await bench.worker(gate, do_wait, other)
    instance_id = await bench.client.schedule_new_orchestration(gate)
    ended: list[str] = []

    async def wait() -> None:
        ended.append((await bench.end_of(instance_id)).runtime_status.name)

    hub = bench.scheduler.engine.hub("default")
    async with anyio.create_task_group() as tasks:
        for _ in range(1_000):
            tasks.start_soon(wait)
        while len(hub.waiters) < 1_000:
            await anyio.lowlevel.checkpoint()
        assert (await bench.run(other)).serialized_output == '"other"'
        go.set()
    assert ended == ["COMPLETED"] * 1_000


async def test_a_burst_of_two_thousand_calls(bench: Bench) -> None:
    """gRPC's own limits on pending requests would cancel some of them."""
    stub = await bench.stub()
    calls = [stub.StartInstance(pb.CreateInstanceRequest(name="any", instanceId=f"b{n}")) for n in range(2_000)]
    for call in calls:
        await call


async def test_a_message_that_no_worker_can_receive_fails_its_orchestration(bench: Bench) -> None:
    """Else every worker would lose its connection over it, and all its other work each time."""
    quickly = GrpcWorkerResiliencyOptions(reconnect_backoff_base_seconds=0.05, reconnect_backoff_cap_seconds=0.1)
    await bench.worker(one, do_work, large, do_swallow, resiliency_options=quickly)
    instance_id = await bench.client.schedule_new_orchestration("one", input="x" * 5_000_000)
    state = await bench.client.wait_for_orchestration_completion(instance_id, fetch_payloads=False, timeout=PATIENCE)
    assert state is not None
    assert state.runtime_status.name == "FAILED"
    assert state.failure_details is not None
    assert state.failure_details.error_type == "MessageTooLarge"
    assert "max_receive_message_length" in state.failure_details.message
    assert (await bench.run(one, 1)).serialized_output == "1"


async def test_an_operation_that_no_worker_can_receive_fails_and_its_entity_goes_on(bench: Bench) -> None:
    """Else the entity would be frozen, and would take down the connection of one worker after the other."""
    quickly = GrpcWorkerResiliencyOptions(reconnect_backoff_base_seconds=0.05, reconnect_backoff_cap_seconds=0.1)
    await bench.worker(calls, Counter, resiliency_options=quickly)
    await bench.client.signal_entity(COUNTER, "append", "x" * 5_000_000)
    assert (await bench.run(calls, 5)).serialized_output == "5"


async def test_operations_that_are_large_together_come_in_several_batches(bench: Bench) -> None:
    for number in range(12):
        await bench.client.signal_entity(COUNTER, "append", f"{number}" + "x" * 400_000)
    worker = RawWorker(await bench.stub())
    found: list[str] = []
    while len(found) < 12:
        item = await worker.take()
        assert item.ByteSize() < 2**20
        operations = item.entityRequestV2.operationRequests
        found += [operation.entityOperationSignaled.input.value for operation in operations]
        done = pb.OperationResult(success=pb.OperationResultSuccess())
        result = pb.EntityBatchResult(results=[done] * len(operations), completionToken=item.completionToken)
        await worker.stub.CompleteEntityTask(result)
    assert [text.strip('x"') for text in found] == [str(number) for number in range(12)]


async def test_a_clock_that_is_moved_by_hand(tmp_path: Path) -> None:
    """All times come from one clock: a timer of a day fires when that clock has moved by a day."""
    clock = HandClock()
    async with Bench(tmp_path / "dafx.db", clock=clock) as bench:
        await bench.worker(sleeps_for_a_day)
        instance_id = await bench.client.schedule_new_orchestration(sleeps_for_a_day)
        await bench.client.wait_for_orchestration_start(instance_id, timeout=PATIENCE)
        assert len(bench.scheduler.engine.timers) == 1
        clock.move(clock.now() + 86_400 * 1_000_000)
        assert (await bench.end_of(instance_id)).serialized_output == '"morning"'


async def test_a_lock_whose_holder_is_gone_can_be_released(bench: Bench) -> None:
    """It cannot come about by itself; a file may have been repaired by hand."""
    hub = bench.scheduler.engine.hub("default")
    await bench.client.signal_entity(EntityInstanceId("e", "k"), "op")
    entity = hub.entities.find("@e@k")
    assert entity is not None
    with hub.changing() as changes:
        entity.lock = Lock(section="s", holder=12345, holder_instance="gone")
        tables.write_entity(changes, hub.id, entity)
    await changes.committed()
    db = bench.db
    await bench.__aexit__(None, None, None)
    async with Bench(db) as again:
        worker = RawWorker(await again.stub())
        assert (await again.client.clean_entity_storage()).orphaned_locks_released == 1
        assert (await worker.take()).entityRequestV2.instanceId == "@e@k"


async def test_clients_and_workers_of_the_hosted_scheduler(bench: Bench) -> None:
    """The same program runs on the hosted scheduler and here; they send a task hub, and nothing of their own."""
    settings: Any = {
        "host_address": bench.scheduler.endpoint,
        "taskhub": "hosted",
        "token_credential": None,
        "secure_channel": False,
        "logger": QUIET,
    }
    worker: Any = DurableTaskSchedulerWorker(**settings)
    worker.add_orchestrator(one)
    worker.add_activity(do_work)
    worker.use_work_item_filters()
    worker.start()
    try:
        async with AsyncDurableTaskSchedulerClient(**settings) as client:
            instance_id = await client.schedule_new_orchestration(one, input=6)
            state = await client.wait_for_orchestration_completion(instance_id, timeout=PATIENCE)
            assert state is not None
            assert state.serialized_output == "6"
        assert bench.scheduler.engine.hub("hosted").delivery.queue.workers[0].name
    finally:
        await anyio.to_thread.run_sync(worker.stop)


async def test_giving_back_what_was_handed_out_again_is_no_error(bench: Bench) -> None:
    stub = await bench.stub()
    for call, request in (
        (stub.AbandonTaskOrchestratorWorkItem, pb.AbandonOrchestrationTaskRequest),
        (stub.AbandonTaskActivityWorkItem, pb.AbandonActivityTaskRequest),
        (stub.AbandonTaskEntityWorkItem, pb.AbandonEntityTaskRequest),
    ):
        await call(request(completionToken="old"))
