"""The private names of durabletask that this package leans on. Where one of these fails, durabletask has changed.

All of them go through `dafx_actors._durable.private`; nobody else may read one.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from durabletask.azuremanaged.client import AsyncDurableTaskSchedulerClient, DurableTaskSchedulerClient
from durabletask.client import TaskHubGrpcClient
from durabletask.grpc_options import GrpcChannelOptions
from durabletask.internal import orchestrator_service_pb2 as pb
from durabletask.serialization import JsonDataConverter
from durabletask.worker import ConcurrencyOptions, TaskHubGrpcWorker

from dafx_actors import DurableAIAgentWorker
from dafx_actors._durable import private as door
from dafx_actors._durable.connect import Address, address_of, reader_of
from dafx_actors._durable.hosted_names import hosts
from dafx_actors._durable.private import FOR_SESSIONS, NEEDED, PrivateWorker
from dafx_actors.errors import IncompatibleDurableTask
from dafx_actors.worker._intake import Intake, Pool

READ = ["host_address", "secure_channel", "interceptors", "channel", "channel_options", "payload_store"]
READER = "reader_of() reads threads with a client made from these: agents would read no thread without it"
WATCH = "EndWatch tells a worker that the turn of a step has ended: without it model calls run on after a cancel"
POOL = "the intake has durabletask wait for its work by this pool: without it `worker.stop()` leaves work behind"
INTAKE = "the intake takes the work of a worker: without it each item costs three times as much, or nothing is done"


class Marking(grpc.UnaryUnaryClientInterceptor):
    def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return continuation(client_call_details, request)


def private(worker: TaskHubGrpcWorker | TaskHubGrpcClient, name: str) -> Any:
    return getattr(worker, f"_{name}")


@pytest.mark.parametrize("name", [*READ, "data_converter", "owns_channel"])
def test_a_worker_keeps_its_settings_under_these_names(name: str) -> None:
    assert hasattr(TaskHubGrpcWorker(), f"_{name}"), f"durabletask's worker has no `_{name}` any more. {READER}."


def test_the_end_of_a_turn_is_waited_for_by_these_names() -> None:
    shared = importlib.import_module("durabletask.internal.shared")
    messages = importlib.import_module("durabletask.internal.orchestrator_service_pb2")
    stubs = importlib.import_module("durabletask.internal.orchestrator_service_pb2_grpc")
    assert list(inspect.signature(shared.get_grpc_channel).parameters) == [
        "host_address",
        "secure_channel",
        "interceptors",
        "channel_options",
    ], WATCH
    assert messages.GetInstanceRequest(instanceId="i", getInputsAndOutputs=False).instanceId == "i", WATCH
    with grpc.insecure_channel("localhost:1") as channel:
        assert hasattr(stubs.TaskHubSidecarServiceStub(channel).WaitForInstanceCompletion, "future"), WATCH


@pytest.mark.parametrize("name", [*READ, "data_converter"])
def test_a_client_takes_these_settings(name: str) -> None:
    assert name in inspect.signature(TaskHubGrpcClient).parameters, f"a client takes no `{name}` any more. {READER}."


def test_the_reader_has_the_workers_settings() -> None:
    converter = JsonDataConverter()
    interceptor = Marking()
    options = GrpcChannelOptions(max_receive_message_length=5_000_000)
    worker = TaskHubGrpcWorker(
        host_address="localhost:1", interceptors=[interceptor], channel_options=options, data_converter=converter
    )
    reader = reader_of(PrivateWorker(worker))
    try:
        assert interceptor in private(reader, "interceptors"), READER
        assert private(reader, "data_converter") is converter, READER
        assert private(reader, "channel_options") is options, READER
        assert private(reader, "channel") is not private(worker, "channel"), READER
        assert hasattr(private(reader, "channel"), "unary_unary"), "_hosted_names asks the scheduler over it"
    finally:
        reader.close()


def test_the_reader_shares_a_channel_that_the_worker_was_given_and_leaves_it_open() -> None:
    with grpc.insecure_channel("localhost:1") as channel:
        worker = TaskHubGrpcWorker(channel=channel)
        assert not private(worker, "owns_channel"), READER
        reader = reader_of(PrivateWorker(worker))
        assert private(reader, "channel") is channel or not private(reader, "owns_channel"), READER
        reader.close()
        channel.unary_unary("/still/open")  # raises ValueError on a closed channel


@pytest.mark.anyio
async def test_a_wrapped_client_tells_where_it_is_connected_to() -> None:
    where = "address_of() names endpoint and task hub in errors: without these they say `the client's endpoint`"
    sync = DurableTaskSchedulerClient(
        host_address="http://h:1", taskhub="hub", token_credential=None, secure_channel=False
    )
    asynchronous = AsyncDurableTaskSchedulerClient(
        host_address="http://h:1", taskhub="hub", token_credential=None, secure_channel=False
    )
    assert [address_of(sync), address_of(asynchronous)] == [Address("h:1", "hub")] * 2, where
    sync.close()
    await asynchronous.close()
    with grpc.insecure_channel("h:1") as channel:
        given = TaskHubGrpcClient(channel=channel)
        assert address_of(given) == Address("the client's endpoint", "default"), where
        given.close()


def manager_of(worker: TaskHubGrpcWorker) -> Any:
    assert hasattr(worker, "_async_worker_manager"), f"there is no `_async_worker_manager` any more. {POOL}."
    return private(worker, "async_worker_manager")


def test_a_worker_that_takes_its_own_work_stops_at_once_or_after_a_second() -> None:
    queues = "PrivateWorker.leave_queues() has a worker stop at once by this: without it each stop takes a second more"
    worker = TaskHubGrpcWorker()
    manager = manager_of(worker)
    assert hasattr(manager, "_consume_queue"), queues
    PrivateWorker(worker).leave_queues()

    async def begin_and_stop() -> None:
        running = asyncio.create_task(manager.run())
        await asyncio.sleep(0)
        manager.shutdown()
        async with asyncio.timeout(30):
            await running

    asyncio.run(begin_and_stop())
    assert manager._shutdown, queues


def test_a_worker_without_that_name_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = TaskHubGrpcWorker()
    monkeypatch.delattr(type(manager_of(worker)), "_consume_queue")
    PrivateWorker(worker).leave_queues()
    assert "shutdown" not in vars(manager_of(worker))


def test_a_worker_shuts_this_pool_down_when_it_has_stopped() -> None:
    manager = manager_of(TaskHubGrpcWorker())
    assert isinstance(manager.thread_pool, ThreadPoolExecutor), POOL
    manager.thread_pool.shutdown()
    shut = threading.Event()
    manager.prepare_for_run()
    manager.thread_pool = Pool(1, lambda: None, shut.set)
    manager.shutdown()
    asyncio.run(manager.run())
    assert shut.is_set(), POOL


@pytest.mark.parametrize(
    ("does", "takes"),
    [
        ("execute_orchestrator", ["req", "stub", "completionToken"]),
        ("execute_activity", ["req", "stub", "completionToken"]),
        ("execute_entity_batch", ["req", "stub", "completionToken"]),
        ("cancel_orchestrator", ["req", "stub", "completionToken"]),
        ("cancel_activity", ["req", "stub", "completionToken"]),
        ("cancel_entity_batch", ["req", "stub", "completionToken"]),
    ],
)
def test_a_worker_does_what_is_in_an_item(does: str, takes: list[str]) -> None:
    worker = TaskHubGrpcWorker()
    assert hasattr(worker, f"_{does}"), f"there is no `_{does}` any more. {INTAKE}."
    assert list(inspect.signature(private(worker, does)).parameters) == takes, INTAKE


def test_an_orchestration_that_durabletask_has_begun_is_gone_on_with_by_these_names() -> None:
    """What they do is tested beside a replay, in `tests/test_sessions.py`."""
    session = "an orchestration is kept by this: without it each episode replays all that were before"
    module: Any = importlib.import_module("durabletask.worker")
    executor = module._OrchestrationExecutor
    assert {"data_converter", "maximum_timer_interval", "exception_properties_provider"} < {
        *inspect.signature(executor).parameters
    }, session
    assert list(inspect.signature(executor.process_event).parameters) == ["self", "ctx", "event"], session
    worker = TaskHubGrpcWorker()
    for name in ("registry", "logger", "data_converter", "exception_properties_provider", "payload_store"):
        assert hasattr(worker, f"_{name}"), f"there is no `_{name}` any more: {session}"
    assert private(worker, "registry").versioning is None, session
    assert isinstance(worker.maximum_timer_interval, timedelta), session
    contexts: list[Any] = []

    def orchestration(context: Any, _: Any) -> None:
        contexts.append(context)

    worker.add_orchestrator(orchestration)
    started = pb.HistoryEvent(executionStarted=pb.ExecutionStartedEvent(name="orchestration"))
    made = executor(private(worker, "registry"), private(worker, "logger"), JsonDataConverter())
    made.execute("i", [], [started])
    for name in ("_is_replaying", "_encoded_custom_status", "set_failed", "get_actions"):
        assert hasattr(contexts[0], name), f"a context has no `{name}` any more: {session}"
    assert hasattr(made, "_orchestration_name"), session


def test_what_an_orchestration_asks_is_looked_at_by_these_names() -> None:
    """How it is looked at is tested in `tests/test_changed_orchestrations.py`."""
    looking = "what is asked is held against the history by this: without it only its name is"
    contexts: list[Any] = []

    def orchestration(context: Any, _: Any) -> None:
        assert door.on_confirmed(context, lambda number, action: None), looking
        contexts.append(context)
        context.create_timer(timedelta(days=1))

    worker = TaskHubGrpcWorker()
    worker.add_orchestrator(orchestration)
    started = pb.HistoryEvent(executionStarted=pb.ExecutionStartedEvent(name="orchestration"))
    module: Any = importlib.import_module("durabletask.worker")
    made = module._OrchestrationExecutor(private(worker, "registry"), private(worker, "logger"), JsonDataConverter())
    made.execute("i", [], [started])
    assert [*contexts[0]._pending_actions] == [1, 2], looking
    assert contexts[0]._is_complete is True, looking
    assert not door.on_confirmed(contexts[0], lambda number, action: None)
    door.drop_asked(contexts[0])
    assert (contexts[0].get_actions(), contexts[0]._is_complete) == ([], False)


def test_a_worker_passes_its_stream_through_the_interceptors_that_it_has_when_it_starts() -> None:
    """Also where it was given a channel: then through that."""
    worker = TaskHubGrpcWorker()
    DurableAIAgentWorker(worker)
    assert isinstance(private(worker, "interceptors")[0], Intake), INTAKE
    with grpc.insecure_channel("localhost:1") as channel:
        given = TaskHubGrpcWorker(channel=channel)
        DurableAIAgentWorker(given)
        assert private(given, "channel") is not channel, INTAKE


@pytest.mark.parametrize("kind", ["activity", "orchestration"])
def test_the_limits_that_durabletask_sets_are_those_that_we_take_for_unset(kind: str) -> None:
    default = getattr(ConcurrencyOptions(), f"maximum_concurrent_{kind}_work_items")
    assert default == 100 * (os.cpu_count() or 1), "then a worker keeps this limit instead of its own default"


def test_only_as_many_orchestrations_step_at_once_as_is_of_use() -> None:
    """Unless the worker was given a limit of its own; what is more waits in the scheduler, which is fair."""
    worker = TaskHubGrpcWorker()
    default = worker.concurrency_options.maximum_concurrent_orchestration_work_items
    DurableAIAgentWorker(worker)
    assert (default, worker.concurrency_options.maximum_concurrent_orchestration_work_items) == (
        100 * (os.cpu_count() or 1),
        16,
    )
    worker = TaskHubGrpcWorker(concurrency_options=ConcurrencyOptions(maximum_concurrent_orchestration_work_items=7))
    DurableAIAgentWorker(worker)
    assert worker.concurrency_options.maximum_concurrent_orchestration_work_items == 7


def test_a_limit_that_the_user_set_is_kept() -> None:
    given = ConcurrencyOptions(maximum_concurrent_activity_work_items=7)
    worker = TaskHubGrpcWorker(concurrency_options=given)
    DurableAIAgentWorker(worker)
    assert worker.concurrency_options.maximum_concurrent_activity_work_items == 7
    worker = TaskHubGrpcWorker()
    DurableAIAgentWorker(worker, max_concurrent_steps=1500)
    assert worker.concurrency_options.maximum_concurrent_activity_work_items == 1500


def test_a_worker_runs_an_episode_and_gives_its_answer_to_a_stub() -> None:
    episode = "replay() runs recorded episodes by this: without it no history can be replayed"
    worker = TaskHubGrpcWorker()
    assert hasattr(worker, "_execute_orchestrator"), f"there is no `_execute_orchestrator` any more. {episode}."
    assert list(inspect.signature(private(worker, "execute_orchestrator")).parameters) == [
        "req",
        "stub",
        "completionToken",
    ], episode

    def trivial(context: Any, _: Any) -> int:
        return 1

    worker.add_orchestrator(trivial)
    now = pb.HistoryEvent(orchestratorStarted=pb.OrchestratorStartedEvent())
    started = pb.HistoryEvent(executionStarted=pb.ExecutionStartedEvent(name="trivial"))
    answers: list[pb.OrchestratorResponse] = []

    class Stub:
        CompleteOrchestratorTask = staticmethod(answers.append)

    request = pb.OrchestratorRequest(instanceId="i", newEvents=[now, started])
    private(worker, "execute_orchestrator")(request, Stub(), "")
    assert [action.WhichOneof("orchestratorActionType") for action in answers[0].actions] == [
        "completeOrchestration"
    ], episode


# --- Without one of them ------------------------------------------------------------------------------------------


def without(name: str) -> TaskHubGrpcWorker:
    """A worker that lacks a name, as one of another version might."""

    class Other(TaskHubGrpcWorker):
        has_all = True

        def __getattribute__(self, asked: str) -> Any:
            if asked == f"_{name}" and not super().__getattribute__("has_all"):
                raise AttributeError(asked)
            return super().__getattribute__(asked)

    other = Other()
    other.has_all = False
    return other


@pytest.mark.parametrize("name", NEEDED)
def test_a_worker_that_lacks_a_name_is_refused_by_that_name(name: str) -> None:
    with pytest.raises(IncompatibleDurableTask, match=f"_{name}") as caught:
        DurableAIAgentWorker(without(name))
    assert caught.value.missing == (f"_{name}",)
    assert door.installed() in str(caught.value)


@pytest.mark.parametrize("name", FOR_SESSIONS)
def test_without_what_keeps_orchestrations_they_are_replayed(name: str) -> None:
    private_worker = PrivateWorker(without(name))
    assert not private_worker.can_keep_orchestrations
    assert private_worker.executor_for("order") is None
    assert PrivateWorker(TaskHubGrpcWorker()).executor_for("order") is not None


@pytest.mark.parametrize("name", ["_OrchestrationExecutor", "process_event"])
def test_without_durabletasks_executor_they_are_replayed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = importlib.import_module("durabletask.worker")
    owner = module._OrchestrationExecutor if name == "process_event" else module
    monkeypatch.delattr(owner, name)
    assert PrivateWorker(TaskHubGrpcWorker()).executor_for("order") is None


@pytest.mark.parametrize("name", door.OF_CONTEXTS)
def test_without_what_is_read_of_a_context_it_is_replayed(name: str) -> None:
    class Context:
        _is_replaying = True
        _encoded_custom_status = None
        set_failed = get_actions = None

    assert door.can_go_on(Context())
    delattr(Context, name)
    assert not door.can_go_on(Context())


@pytest.mark.parametrize("found", ["1.11.0", "1.13.0", "2.0.0"])
def test_another_version_is_refused_by_name(found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda package: found)
    with pytest.raises(IncompatibleDurableTask, match=rf"{found}.*1\.12"):
        DurableAIAgentWorker(TaskHubGrpcWorker())


def test_a_client_without_a_channel_cannot_tell_who_hosts_what() -> None:
    class Bare:
        pass

    bare: Any = Bare()
    assert hosts(bare, {"dafx-Joker.model"}, [("activity", "dafx-Joker.model"), ("activity", "other")]) == {
        "dafx-Joker.model": True,
        "other": False,
    }
    assert address_of(bare) == Address("the client's endpoint", "default")


def test_nobody_else_reads_what_is_private() -> None:
    """ruff says where a private name is read (SLF001); only the door may be silent about it."""
    package = Path(door.__file__).parents[1]
    silent = [file for file in package.rglob("*.py") if "SLF001" in file.read_text()]
    assert silent == []
