"""Orchestrations through the public SDK's client and worker."""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import anyio
import anyio.lowlevel
import grpc.aio
import pytest
from durabletask import history, task
from durabletask.client import OrchestrationStatus
from durabletask.internal import orchestrator_service_pb2 as pb

from tests.scheduler.bench import PATIENCE, Bench, Steps

pytestmark = pytest.mark.anyio


def do_add(_: task.ActivityContext, pair: list[int]) -> int:
    return sum(pair)


def do_fail(_: task.ActivityContext, text: str) -> None:
    raise ValueError(text)


def one(context: task.OrchestrationContext, number: int) -> Steps:
    return (yield context.call_activity(do_add, input=[number, 1]))


def waits(context: task.OrchestrationContext, _: object) -> Steps:
    return (yield context.wait_for_external_event("go"))


async def test_an_activity(bench: Bench) -> None:
    await bench.worker(one, do_add)
    state = await bench.run(one, 41)
    assert state.runtime_status is OrchestrationStatus.COMPLETED
    assert state.serialized_output == "42"
    assert state.serialized_input == "41"


async def test_a_history_reads_as_the_sdks_expect(bench: Bench) -> None:
    """Twelve events, no bookends at a turn's end, one start, one end, a time on each."""

    def child(_: task.OrchestrationContext, __: object) -> str:
        return "done"

    def parent(context: task.OrchestrationContext, _: object) -> Steps:
        yield context.call_activity(do_add, input=[1, 2])
        yield context.create_timer(timedelta(milliseconds=10))
        return (yield context.call_sub_orchestrator(child))

    await bench.worker(parent, child, do_add)
    state = await bench.run(parent)
    events = await bench.client.get_orchestration_history(state.instance_id)
    assert [type(event) for event in events] == [
        history.OrchestratorStartedEvent,
        history.ExecutionStartedEvent,
        history.TaskScheduledEvent,
        history.OrchestratorStartedEvent,
        history.TaskCompletedEvent,
        history.TimerCreatedEvent,
        history.OrchestratorStartedEvent,
        history.TimerFiredEvent,
        history.SubOrchestrationInstanceCreatedEvent,
        history.OrchestratorStartedEvent,
        history.SubOrchestrationInstanceCompletedEvent,
        history.ExecutionCompletedEvent,
    ]
    times = [event.timestamp for event in events if isinstance(event, history.OrchestratorStartedEvent)]
    assert times == sorted(times)
    assert all(event.timestamp > datetime(2020, 1, 1, tzinfo=UTC) for event in events)


async def test_many_activities_at_once(bench: Bench) -> None:
    def fan_out(context: task.OrchestrationContext, count: int) -> Steps:
        sums = yield task.when_all([context.call_activity(do_add, input=[n, n]) for n in range(count)])
        return sum(sums)

    await bench.worker(fan_out, do_add)
    state = await bench.run(fan_out, 200)
    assert state.serialized_output == str(2 * sum(range(200)))


async def test_a_failure_keeps_its_details(bench: Bench) -> None:
    def fails(context: task.OrchestrationContext, _: object) -> Steps:
        yield context.call_activity(do_fail, input="out of tea")

    await bench.worker(fails, do_fail)
    state = await bench.run(fails)
    assert state.runtime_status is OrchestrationStatus.FAILED
    assert state.failure_details is not None
    assert "out of tea" in state.failure_details.message


async def test_a_failure_without_a_text_is_a_failure(bench: Bench) -> None:
    def do_raise(_: task.ActivityContext, __: object) -> None:
        raise ValueError

    def fails(context: task.OrchestrationContext, _: object) -> Steps:
        try:
            yield context.call_activity(do_raise)
        except task.TaskFailedError:
            return "caught"
        return "nothing raised"

    await bench.worker(fails, do_raise)
    assert (await bench.run(fails)).serialized_output == '"caught"'


async def test_retries_of_a_child_see_its_own_error(bench: Bench) -> None:
    """The type of a child's error decides about retries, and every attempt has the same instance id."""
    attempts: list[str] = []

    def child(context: task.OrchestrationContext, _: object) -> str:
        attempts.append(context.instance_id)
        if len(attempts) < 3:
            raise ConnectionError("try again")
        return "finally"

    def parent(context: task.OrchestrationContext, _: object) -> Steps:
        policy = task.RetryPolicy(first_retry_interval=timedelta(milliseconds=10), max_number_of_attempts=5)
        return (yield context.call_sub_orchestrator(child, retry_policy=policy))

    await bench.worker(parent, child)
    assert (await bench.run(parent)).serialized_output == '"finally"'
    assert len(attempts) == 3
    assert len(set(attempts)) == 1


@pytest.mark.parametrize("has_parent", [False, True])
async def test_a_child_does_not_take_the_place_of_what_somebody_else_has_started(
    bench: Bench, has_parent: bool
) -> None:
    def child(_: task.OrchestrationContext, text: str) -> str:
        return text

    def parent(context: task.OrchestrationContext, text: str) -> Steps:
        try:
            return (yield context.call_sub_orchestrator(child, input=text, instance_id="the-child"))
        except task.TaskFailedError as error:
            return error.details.error_type

    await bench.worker(parent, child)
    if has_parent:
        await bench.run(parent, input="theirs")
    else:
        await bench.client.schedule_new_orchestration(child, input="theirs", instance_id="the-child")
        await bench.end_of("the-child")
    state = await bench.run(parent, input="mine")
    assert state.serialized_output == '"OrchestrationAlreadyExists"'
    assert (await bench.end_of("the-child")).serialized_output == '"theirs"'


async def test_events_keep_their_order_and_their_names(bench: Bench) -> None:
    def collects(context: task.OrchestrationContext, count: int) -> Steps:
        found = []
        for _ in range(count):
            found.append((yield context.wait_for_external_event("Next")))
        return found

    await bench.worker(collects)
    instance_id = await bench.client.schedule_new_orchestration(collects, input=20)
    for number in range(20):
        await bench.client.raise_orchestration_event(instance_id, "nExT", data=number)
    assert (await bench.end_of(instance_id)).serialized_output == str(list(range(20)))


async def test_an_event_for_nobody(bench: Bench) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await bench.client.raise_orchestration_event("nobody", "go")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    await bench.worker(one, do_add)
    state = await bench.run(one, 1)
    await bench.client.raise_orchestration_event(state.instance_id, "too late")


async def test_an_orchestration_sends_events(bench: Bench) -> None:
    def sends(context: Any, target: str) -> str:
        context.send_event(target, "go", data="hello")
        context.send_event("nobody", "go", data="dropped")
        return "sent"

    await bench.worker(waits, sends)
    target = await bench.client.schedule_new_orchestration(waits)
    assert (await bench.run(sends, target)).serialized_output == '"sent"'
    assert (await bench.end_of(target)).serialized_output == '"hello"'


async def test_a_timer_fires_not_before_its_time(bench: Bench) -> None:
    def sleeps(context: task.OrchestrationContext, _: object) -> Steps:
        before = context.current_utc_datetime
        yield context.create_timer(timedelta(milliseconds=300))
        return (context.current_utc_datetime - before).total_seconds()

    await bench.worker(sleeps)
    assert float((await bench.run(sleeps)).serialized_output or "0") >= 0.3


async def test_continue_as_new_starts_afresh(bench: Bench) -> None:
    """A new execution has a new history, gets the events that it was not told, and none of the old one's timers."""
    executions: list[int] = []

    def loops(context: Any, number: int) -> Steps:
        executions.append(number)
        # Of the same id in every execution: an old one that fires would complete a new one at once.
        late = context.create_timer(timedelta(milliseconds=150 if number == 0 else 700))
        go = context.wait_for_external_event("go")
        first = yield task.when_any([late, go])
        if number == 0:
            assert first is go
            context.continue_as_new(1, save_events=True)
            return None
        return ["event" if first is go else "timer", number]

    await bench.worker(loops)
    instance_id = await bench.client.schedule_new_orchestration(loops, input=0)
    started = time.monotonic()
    await bench.client.raise_orchestration_event(instance_id, "go")
    state = await bench.end_of(instance_id)
    assert state.serialized_output == '["timer", 1]'
    assert time.monotonic() - started > 0.65
    assert state.serialized_input == "1"
    events = await bench.client.get_orchestration_history(instance_id)
    assert sum(isinstance(event, history.ExecutionStartedEvent) for event in events) == 1


async def test_events_survive_continue_as_new_in_order(bench: Bench) -> None:
    def collects(context: Any, found: list[int]) -> Steps:
        number = yield context.wait_for_external_event("next")
        if number == -1:
            return found
        context.continue_as_new([*found, number], save_events=True)
        return None

    await bench.worker(collects)
    instance_id = await bench.client.schedule_new_orchestration(collects, input=[])
    for number in [*range(30), -1]:
        await bench.client.raise_orchestration_event(instance_id, "next", data=number)
    assert (await bench.end_of(instance_id)).serialized_output == str(list(range(30)))


async def test_suspended_orchestrations_wait(bench: Bench) -> None:
    await bench.worker(waits)
    instance_id = await bench.client.schedule_new_orchestration(waits)
    await bench.client.wait_for_orchestration_start(instance_id, timeout=PATIENCE)
    await bench.client.suspend_orchestration(instance_id, reason="lunch")
    await bench.client.suspend_orchestration(instance_id)
    await until(bench, instance_id, OrchestrationStatus.SUSPENDED)
    await bench.client.raise_orchestration_event(instance_id, "go", data=7)
    state = await bench.client.get_orchestration_state(instance_id)
    assert state is not None
    assert state.runtime_status is OrchestrationStatus.SUSPENDED
    await bench.client.resume_orchestration(instance_id)
    await bench.client.resume_orchestration(instance_id)
    assert (await bench.end_of(instance_id)).serialized_output == "7"


async def until(bench: Bench, instance_id: str, status: OrchestrationStatus) -> None:
    """Wait for a status that no call waits for."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        state = await bench.client.get_orchestration_state(instance_id)
        if state is not None and state.runtime_status is status:
            return
    raise AssertionError(f"{instance_id} did not become {status}")


async def test_terminate(bench: Bench) -> None:
    """Also of one that nobody hosts: it needs no worker."""
    instance_id = await bench.client.schedule_new_orchestration("nobody hosts this")
    await bench.client.terminate_orchestration(instance_id, output={"why": "not needed"})
    state = await bench.end_of(instance_id)
    assert state.runtime_status is OrchestrationStatus.TERMINATED
    assert state.serialized_output == '{"why": "not needed"}'
    await bench.client.terminate_orchestration(instance_id, output="again")
    await bench.client.terminate_orchestration("nobody")
    events = await bench.client.get_orchestration_history(instance_id)
    assert [type(event).__name__ for event in events[-2:]] == ["ExecutionTerminatedEvent", "ExecutionCompletedEvent"]


@pytest.mark.parametrize("recursive", [True, False])
async def test_terminate_a_family(bench: Bench, recursive: bool) -> None:
    def child(context: task.OrchestrationContext, _: object) -> Steps:
        return (yield context.wait_for_external_event("go"))

    def parent(context: task.OrchestrationContext, ids: list[str]) -> Steps:
        yield task.when_all([context.call_sub_orchestrator(child, instance_id=name) for name in ids])

    await bench.worker(parent, child)
    children = ["child-1", "child-2"]
    instance_id = await bench.client.schedule_new_orchestration(parent, input=children)
    for name in children:
        await bench.client.wait_for_orchestration_start(name, timeout=PATIENCE)
    await bench.client.terminate_orchestration(instance_id, recursive=recursive)
    assert (await bench.end_of(instance_id)).runtime_status is OrchestrationStatus.TERMINATED
    if not recursive:
        for name in children:
            await bench.client.raise_orchestration_event(name, "go")
    expected = OrchestrationStatus.TERMINATED if recursive else OrchestrationStatus.COMPLETED
    assert {(await bench.end_of(name)).runtime_status for name in children} == {expected}


async def test_a_terminated_child_is_a_failure(bench: Bench) -> None:
    def parent(context: task.OrchestrationContext, _: object) -> Steps:
        try:
            yield context.call_sub_orchestrator(waits, instance_id="the-child")
        except task.TaskFailedError as error:
            return error.details.error_type
        return "no failure"

    await bench.worker(parent, waits)
    instance_id = await bench.client.schedule_new_orchestration(parent)
    await bench.client.wait_for_orchestration_start("the-child", timeout=PATIENCE)
    await bench.client.terminate_orchestration("the-child")
    assert (await bench.end_of(instance_id)).serialized_output == '"SubOrchestrationTerminated"'


async def test_instance_ids_and_reuse_policies(bench: Bench) -> None:
    await bench.worker(waits)
    await bench.client.schedule_new_orchestration(waits, instance_id="taken")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await bench.client.schedule_new_orchestration(waits, instance_id="taken")
    assert caught.value.code() is grpc.StatusCode.ALREADY_EXISTS

    live = [pb.ORCHESTRATION_STATUS_RUNNING, pb.ORCHESTRATION_STATUS_PENDING]
    policy = pb.OrchestrationIdReusePolicy(replaceableStatus=live)
    with pytest.raises(grpc.aio.AioRpcError, match="cannot exclude 'Terminated'"):
        await bench.client.schedule_new_orchestration(waits, instance_id="taken", reuse_id_policy=policy)

    policy = pb.OrchestrationIdReusePolicy(replaceableStatus=[*live, pb.ORCHESTRATION_STATUS_TERMINATED])
    await bench.client.schedule_new_orchestration(waits, instance_id="taken", input="new", reuse_id_policy=policy)
    await bench.client.raise_orchestration_event("taken", "go", data=1)
    state = await bench.end_of("taken")
    assert (state.serialized_input, state.serialized_output) == ('"new"', "1")


async def test_a_scheduled_start_waits(bench: Bench) -> None:
    await bench.worker(one, do_add)
    start_at = datetime.now(UTC) + timedelta(milliseconds=600)
    instance_id = await bench.client.schedule_new_orchestration(one, input=1, start_at=start_at)
    state = await bench.client.get_orchestration_state(instance_id)
    assert state is not None
    assert state.runtime_status is OrchestrationStatus.PENDING
    state = await bench.end_of(instance_id)
    assert state.last_updated_at.replace(tzinfo=UTC) >= start_at


async def test_the_epoch_means_now(bench: Bench) -> None:
    """At least one SDK always sends it."""
    await bench.worker(one, do_add)
    state = await bench.run(one, 1, start_at=datetime(1970, 1, 1, tzinfo=UTC))
    assert state.runtime_status is OrchestrationStatus.COMPLETED
    events = await bench.client.get_orchestration_history(state.instance_id)
    assert events[0].timestamp > datetime(2020, 1, 1, tzinfo=UTC)


async def test_what_a_client_sees(bench: Bench) -> None:
    def reports(context: Any, _: object) -> Steps:
        context.set_custom_status({"step": 1})
        yield context.wait_for_external_event("go")
        return "end"

    stub = await bench.stub()
    await bench.worker(reports)
    instance_id = await bench.client.schedule_new_orchestration(reports, tags={"team": "tea"}, version="1.5", input=[1])
    await bench.client.wait_for_orchestration_start(instance_id, timeout=PATIENCE)
    reply = await stub.GetInstance(pb.GetInstanceRequest(instanceId=instance_id))
    state = reply.orchestrationState
    assert state.customStatus.value == '{"step": 1}'
    assert dict(state.tags) == {"team": "tea"}
    assert state.version.value == "1.5"
    assert len(state.executionId.value) == 32
    assert not state.HasField("input")
    await bench.client.raise_orchestration_event(instance_id, "go")
    await bench.end_of(instance_id)
    reply = await stub.GetInstance(pb.GetInstanceRequest(instanceId=instance_id, getInputsAndOutputs=True))
    state = reply.orchestrationState
    assert (state.input.value, state.output.value) == ("[1]", '"end"')
    assert state.HasField("completedTimestamp")
    assert not (await stub.GetInstance(pb.GetInstanceRequest(instanceId="nobody"))).exists


async def test_restart(bench: Bench) -> None:
    await bench.worker(one, do_add, waits)
    state = await bench.run(one, 5, tags={"a": "b"})
    assert await bench.client.restart_orchestration(state.instance_id) == state.instance_id
    assert (await bench.end_of(state.instance_id)).serialized_output == "6"
    other = await bench.client.restart_orchestration(state.instance_id, restart_with_new_instance_id=True)
    assert other != state.instance_id
    assert (await bench.end_of(other)).serialized_output == "6"

    running = await bench.client.schedule_new_orchestration(waits)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await bench.client.restart_orchestration(running)
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    twin = await bench.client.restart_orchestration(running, restart_with_new_instance_id=True)
    for instance_id in (running, twin):
        await bench.client.raise_orchestration_event(instance_id, "go")
        await bench.end_of(instance_id)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await bench.client.restart_orchestration("nobody")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_rewind(bench: Bench) -> None:
    """What succeeded is not run again, what failed is, in the children too; and it works twice."""
    runs: list[str] = []
    broken = threading.Event()
    broken.set()

    def do_count(_: task.ActivityContext, name: str) -> str:
        runs.append(name)
        return name

    def do_break(_: task.ActivityContext, name: str) -> str:
        runs.append(name)
        if broken.is_set():
            raise OSError("not yet")
        return name

    def child(context: task.OrchestrationContext, _: object) -> Steps:
        first = yield context.call_activity(do_count, input="child-good")
        second = yield context.call_activity(do_break, input="child-bad")
        return [first, second]

    def parent(context: task.OrchestrationContext, _: object) -> Steps:
        first = yield context.call_activity(do_count, input="good")
        second = yield context.call_sub_orchestrator(child, instance_id="the-child")
        return [first, second]

    await bench.worker(parent, child, do_count, do_break)
    state = await bench.run(parent)
    assert state.runtime_status is OrchestrationStatus.FAILED
    with pytest.raises(grpc.aio.AioRpcError):
        await bench.client.rewind_orchestration("nobody")
    await bench.client.rewind_orchestration(state.instance_id, reason="try again")
    state = await bench.end_of(state.instance_id)
    assert state.runtime_status is OrchestrationStatus.FAILED
    broken.clear()
    await bench.client.rewind_orchestration(state.instance_id, reason="and again")
    state = await bench.end_of(state.instance_id)
    assert state.runtime_status is OrchestrationStatus.COMPLETED
    assert state.serialized_output == '["good", ["child-good", "child-bad"]]'
    assert runs == ["good", "child-good", "child-bad", "child-bad", "child-bad"]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await bench.client.rewind_orchestration(state.instance_id)
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION


async def test_a_rewound_parent_restarts_a_child_that_was_purged(bench: Bench) -> None:
    broken = threading.Event()
    broken.set()

    def do_break(_: task.ActivityContext, __: object) -> str:
        if broken.is_set():
            raise OSError("not yet")
        return "fine"

    def child(context: task.OrchestrationContext, _: object) -> Steps:
        return (yield context.call_activity(do_break))

    def parent(context: task.OrchestrationContext, _: object) -> Steps:
        return (yield context.call_sub_orchestrator(child, instance_id="the-child"))

    await bench.worker(parent, child, do_break)
    state = await bench.run(parent)
    broken.clear()
    assert (await bench.client.purge_orchestration("the-child")).deleted_instance_count == 1
    await bench.client.rewind_orchestration(state.instance_id)
    assert (await bench.end_of(state.instance_id)).serialized_output == '"fine"'


async def test_waiting_for_what_does_not_exist_yet(bench: Bench) -> None:
    await bench.worker(one, do_add)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(bench.end_of, "soon")
        await bench.client.schedule_new_orchestration(one, input=1, instance_id="soon")
    with pytest.raises(TimeoutError):
        await bench.client.wait_for_orchestration_completion("never", timeout=0.05)
    while bench.scheduler.engine.hub("default").waiters:
        await anyio.lowlevel.checkpoint()  # The scheduler hears a moment later that the client has gone.


async def test_large_inputs_and_outputs(bench: Bench) -> None:
    """A result above gRPC's default limit goes from worker to scheduler; above the scheduler's it is refused."""

    def do_repeat(_: task.ActivityContext, count: int) -> int:
        return len("x" * count)

    def big(context: task.OrchestrationContext, text: str) -> Steps:
        return (yield context.call_activity(do_repeat, input=len(text)))

    await bench.worker(big, do_repeat)
    state = await bench.run(big, "x" * 3_000_000)
    assert state.serialized_output == "3000000"


async def test_a_message_above_the_limit_is_refused(tmp_path: Any) -> None:
    async with Bench(tmp_path / "dafx.db", max_message_bytes=1_000_000) as bench:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await bench.client.schedule_new_orchestration("any", input="x" * 2_000_000)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "1000000" in (caught.value.details() or "")
