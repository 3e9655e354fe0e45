"""How a worker takes its work: by either line, within its limits, and without one thing standing in another's way."""

from __future__ import annotations

import functools
import sys
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextvars import ContextVar
from typing import Any

import anyio
import anyio.to_thread
import grpc
import pytest
from durabletask import task
from durabletask.client import TaskHubGrpcClient
from durabletask.serialization import JsonDataConverter
from durabletask.testing import create_test_backend
from durabletask.worker import ConcurrencyOptions, TaskHubGrpcWorker

from dafx_actors import (
    DurableAIAgentClient,
    DurableAIAgentWorker,
    OrchestrationContext,
    Turn,
    durable_agent,
    orchestrator,
    when_all,
)
from dafx_actors.scheduler import EmbeddedScheduler
from dafx_actors.testing import ScriptedModel
from dafx_actors.worker._lines import BundleLine, CallLine
from dafx_actors.worker._loop import AgentLoop
from tests.conftest import free_port
from tests.scheduler.bench import QUIET

pytestmark = pytest.mark.anyio


class Looking(grpc.UnaryUnaryClientInterceptor):
    """A user's own interceptor."""

    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()

    def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        self.seen[client_call_details.method.rsplit("/", 1)[-1]] += 1
        return continuation(client_call_details, request)


@pytest.fixture
async def scheduler() -> AsyncIterator[EmbeddedScheduler]:
    async with EmbeddedScheduler() as running:
        yield running


@pytest.fixture(params=["bundles", "calls"])
def interceptors(request: pytest.FixtureRequest) -> list[Any]:
    """That have a worker use one line, or the other."""
    return [] if request.param == "bundles" else [Looking()]


def wrapped(scheduler: EmbeddedScheduler, interceptors: list[Any], **limits: int) -> DurableAIAgentWorker:
    inner = TaskHubGrpcWorker(
        host_address=scheduler.endpoint,
        interceptors=interceptors,
        concurrency_options=ConcurrencyOptions(**limits),
        logger=QUIET,
    )
    return DurableAIAgentWorker(inner)


@durable_agent(model=ScriptedModel(lambda request: request.messages[-1].text.upper()))
class Echo:
    instructions = "You repeat what you are told."


async def echoes(scheduler: EmbeddedScheduler, *texts: str) -> list[str]:
    async with DurableAIAgentClient.connect(scheduler.endpoint) as client:
        return [(await client.get_agent(Echo).run(text, timeout=60)).text for text in texts]


class Crowd:
    """Counts who is inside at once; they leave together, as soon as so many have come."""

    def __init__(self, expected: int) -> None:
        self.most = 0
        self._inside = 0
        self._lock = threading.Lock()
        self._full = threading.Event()
        self._expected = expected

    def enter(self) -> None:
        with self._lock:
            self._inside += 1
            self.most = max(self.most, self._inside)
            if self._inside == self._expected:
                self._full.set()

    def leave(self) -> None:
        with self._lock:
            self._inside -= 1
            self._full.clear()

    @property
    def is_full(self) -> bool:
        return self._inside >= self._expected


@pytest.mark.parametrize("is_async", [True, False], ids=["async", "sync"])
async def test_a_limit_holds_for_activities(
    scheduler: EmbeddedScheduler, interceptors: list[Any], is_async: bool
) -> None:
    crowd, gate = Crowd(3), threading.Event()

    async def asynchronous(number: int) -> int:
        crowd.enter()
        await anyio.to_thread.run_sync(gate.wait, 30)
        crowd.leave()
        return number

    def synchronous(number: int) -> int:
        crowd.enter()
        gate.wait(30)
        crowd.leave()
        return number

    activity: Any = asynchronous if is_async else synchronous

    @orchestrator
    async def fan_out(context: OrchestrationContext, count: int) -> list[int]:
        numbers: list[int] = await when_all([context.call_activity(activity, input=n) for n in range(count)])
        return numbers

    worker = wrapped(scheduler, interceptors, maximum_concurrent_activity_work_items=3)
    worker.add_activity(activity)
    worker.add_orchestrator(fan_out)
    async with worker, DurableAIAgentClient.connect(scheduler.endpoint) as client:
        handle = await client.schedule_new_orchestration(fan_out, input=9)
        with anyio.fail_after(30):
            while not crowd.is_full:
                await anyio.sleep(0.01)
        gate.set()
        assert await handle == list(range(9))
    assert crowd.most == 3


async def test_an_orchestrator_that_blocks_holds_up_no_agent(
    scheduler: EmbeddedScheduler, interceptors: list[Any]
) -> None:
    """It should not, but users' code may; agents' own orchestrations never do, and run in place."""
    blocked, go_on = threading.Event(), threading.Event()

    @orchestrator
    async def blocks(context: OrchestrationContext) -> str:
        blocked.set()
        assert go_on.wait(60)
        return "at last"

    worker = wrapped(scheduler, interceptors)
    worker.add_agent(Echo)
    worker.add_orchestrator(blocks)
    async with worker, DurableAIAgentClient.connect(scheduler.endpoint) as client:
        handle = await client.schedule_new_orchestration(blocks)
        await anyio.to_thread.run_sync(blocked.wait, 30)
        assert await echoes(scheduler, "one", "two") == ["ONE", "TWO"]
        go_on.set()
        assert await handle == "at last"


async def test_turns_in_one_operation_wait_together_and_hold_no_threads(
    scheduler: EmbeddedScheduler,
) -> None:
    """More than the operations that durabletask runs at once by default."""
    count, inside, all_inside = 250, 0, anyio.Event()

    @durable_agent(durability="turn")
    class Patient:
        async def respond(self, turn: Turn) -> str:
            nonlocal inside
            inside += 1
            if inside == count:
                all_inside.set()
            await all_inside.wait()
            return turn.text

    worker = wrapped(scheduler, [])
    worker.add_agent(Patient)
    async with worker, DurableAIAgentClient.connect(scheduler.endpoint) as client:
        turns = [await client.get_agent(Patient).start(f"{number}") for number in range(count)]
        with anyio.fail_after(60):
            await all_inside.wait()
        threads = sum(thread.name.startswith("dafx-work") for thread in threading.enumerate())
        assert [(await turn).text for turn in turns] == [f"{number}" for number in range(count)]
    assert threads < count / 10


async def test_turns_in_one_operation_that_come_together_are_taken_in_their_order(
    scheduler: EmbeddedScheduler, interceptors: list[Any]
) -> None:
    """Operations of one entity that wait come as one piece of work, which needs a thread."""
    begun, go_on = anyio.Event(), anyio.Event()

    @durable_agent(durability="turn")
    class Patient:
        async def respond(self, turn: Turn) -> str:
            begun.set()
            await go_on.wait()
            return f"{turn.text} after {len(turn.messages) - 1}"

    worker = wrapped(scheduler, interceptors)
    worker.add_agent(Patient)
    async with worker, DurableAIAgentClient.connect(scheduler.endpoint) as client:
        patient = client.get_agent(Patient)
        thread = patient.get_new_thread()
        turns = [await patient.start("first", thread=thread)]
        await begun.wait()
        turns += [await patient.start(text, thread=thread) for text in ("second", "third")]

        def waiting() -> int:
            entity = scheduler.engine.hub("default").entities.find(str(thread.entity_id))
            return 0 if entity is None else len(entity.mailbox)

        with anyio.fail_after(30):
            while waiting() < 3:
                await anyio.sleep(0.01)
        go_on.set()
        texts = [(await turn).text for turn in turns]
    assert texts == ["first after 0", "second after 2", "third after 4"]


async def test_users_interceptors_see_every_answer(scheduler: EmbeddedScheduler) -> None:
    """So a worker that has some speaks the protocol in which each answer is a call."""
    looking = Looking()
    async with worker_of(wrapped(scheduler, [looking])):
        await echoes(scheduler, "one")
    assert looking.seen["CompleteActivityTask"] == 1
    assert looking.seen["CompleteEntityTask"] >= 2
    assert looking.seen["CompleteOrchestratorTask"] >= 2


def worker_of(worker: DurableAIAgentWorker) -> DurableAIAgentWorker:
    worker.add_agent(Echo)
    return worker


@pytest.mark.parametrize("kind", [BundleLine, CallLine])
async def test_a_worker_uses_the_line_that_it_can(
    scheduler: EmbeddedScheduler, monkeypatch: pytest.MonkeyPatch, kind: type[Any]
) -> None:
    made: list[type[Any]] = []

    def noting(line: type[Any]) -> Callable[..., None]:
        first = line.__init__

        def init(self: Any, *args: Any, **kwargs: Any) -> None:
            made.append(line)
            first(self, *args, **kwargs)

        return init

    for line in (BundleLine, CallLine):
        monkeypatch.setattr(line, "__init__", noting(line))
    async with worker_of(wrapped(scheduler, [] if kind is BundleLine else [Looking()])):
        await echoes(scheduler, "one")
    assert made[0] is kind, "which makes the other for what is too large for a bundle"


async def test_a_worker_that_is_started_again_takes_work_again(
    scheduler: EmbeddedScheduler, interceptors: list[Any]
) -> None:
    """By its own `start` and `stop`, and by those of the durabletask worker that it wraps."""
    worker = worker_of(wrapped(scheduler, interceptors))
    inner: Any = worker._worker
    for starts, stops in [(worker.start, worker.stop), (inner.start, inner.stop), (worker.start, inner.stop)]:
        starts()
        try:
            assert await echoes(scheduler, "again") == ["AGAIN"]
        finally:
            await anyio.to_thread.run_sync(stops)
    await anyio.to_thread.run_sync(worker.stop)


async def test_of_two_workers_either_may_begin_a_turn(scheduler: EmbeddedScheduler, interceptors: list[Any]) -> None:
    """The first model step finds what another worker has granted by reading it."""
    texts = [f"text {number}" for number in range(12)]
    async with (
        worker_of(wrapped(scheduler, interceptors)),
        worker_of(wrapped(scheduler, interceptors)),
        DurableAIAgentClient.connect(scheduler.endpoint) as client,
    ):
        turns = [await client.get_agent(Echo).start(text) for text in texts]
        assert [(await turn).text for turn in turns] == [text.upper() for text in texts]


async def test_an_activity_that_fails_says_how(scheduler: EmbeddedScheduler, interceptors: list[Any]) -> None:
    async def fails(_: str) -> str:
        raise LookupError("there is none")

    @orchestrator
    async def asks(context: OrchestrationContext) -> str:
        try:
            return await context.call_activity(fails, input="x")
        except task.TaskFailedError as error:
            return f"{error.details.error_type}: {error.details.message}"

    worker = wrapped(scheduler, interceptors)
    worker.add_activity(fails)
    worker.add_orchestrator(asks)
    async with worker, DurableAIAgentClient.connect(scheduler.endpoint) as client:
        said = await (await client.schedule_new_orchestration(asks))
    assert said == "builtins.LookupError: there is none"


@pytest.mark.parametrize("is_async", [True, False], ids=["async", "sync"])
async def test_what_was_done_counts_when_the_stream_it_came_on_has_ended(is_async: bool) -> None:
    """Backends end streams now and then; one that takes the answer all the same does not have it done again."""
    port, begun, go_on, runs = free_port(), threading.Event(), threading.Event(), Counter[str]()

    async def asynchronous(_: str) -> str:
        runs["all"] += 1
        begun.set()
        await anyio.to_thread.run_sync(go_on.wait, 60)
        return "done"

    def synchronous(_: str) -> str:
        runs["all"] += 1
        begun.set()
        go_on.wait(60)
        return "done"

    activity: Any = asynchronous if is_async else synchronous

    @orchestrator
    async def asks(context: OrchestrationContext) -> str:
        answer: str = await context.call_activity(activity, input="x")
        return answer

    backend = create_test_backend(port=port)
    try:
        worker = DurableAIAgentWorker.connect(f"http://127.0.0.1:{port}")
        worker.add_activity(activity)
        worker.add_orchestrator(asks)
        async with worker, DurableAIAgentClient.connect(f"http://127.0.0.1:{port}") as client:
            handle = await client.schedule_new_orchestration(asks)
            assert await anyio.to_thread.run_sync(begun.wait, 30)
            line = worker._intake._line
            assert isinstance(line, CallLine)
            line.hang_up()
            with anyio.fail_after(30):
                while worker._intake._line is line:
                    await anyio.sleep(0.01)
            go_on.set()
            assert await handle == "done"
    finally:
        backend.stop()
    assert runs["all"] == 1


class Reversing(JsonDataConverter):
    """A user's own converter, as one that encrypts would be."""

    def serialize(self, value: Any) -> str | None:
        text = super().serialize(value)
        return text and text[::-1]

    def deserialize(self, data: str | None, target_type: Any = None) -> Any:
        return super().deserialize(data and data[::-1], target_type)


@pytest.mark.parametrize("is_async", [True, False], ids=["async", "sync"])
async def test_the_converter_of_a_wrapped_worker_converts(
    scheduler: EmbeddedScheduler, interceptors: list[Any], is_async: bool
) -> None:
    async def asynchronous(text: str) -> str:
        return f"{text}!"

    def synchronous(text: str) -> str:
        return f"{text}!"

    activity: Any = asynchronous if is_async else synchronous

    @orchestrator
    async def asks(context: OrchestrationContext, text: str) -> str:
        answer: str = await context.call_activity(activity, input=text)
        return answer

    inner = TaskHubGrpcWorker(
        host_address=scheduler.endpoint, interceptors=interceptors, data_converter=Reversing(), logger=QUIET
    )
    worker = DurableAIAgentWorker(inner)
    worker.add_activity(activity)
    worker.add_orchestrator(asks)
    async with worker:
        client = TaskHubGrpcClient(host_address=scheduler.endpoint, data_converter=Reversing())
        try:
            start = functools.partial(client.schedule_new_orchestration, "asks", input="abc")
            instance_id = await anyio.to_thread.run_sync(start)
            wait = functools.partial(client.wait_for_orchestration_completion, instance_id, timeout=30)
            state = await anyio.to_thread.run_sync(wait)
        finally:
            client.close()
    assert state is not None
    assert state.get_output() == "abc!"


async def test_durabletasks_own_stop_waits_for_steps(scheduler: EmbeddedScheduler, interceptors: list[Any]) -> None:
    begun, go_on, ended = threading.Event(), threading.Event(), threading.Event()

    async def slow(_: str) -> str:
        begun.set()
        await anyio.to_thread.run_sync(go_on.wait, 60)
        ended.set()
        return "done"

    @orchestrator
    async def asks(context: OrchestrationContext) -> str:
        return await context.call_activity(slow, input="x")

    worker = wrapped(scheduler, interceptors)
    worker.add_activity(slow)
    worker.add_orchestrator(asks)
    inner: Any = worker._worker
    inner.start()
    async with DurableAIAgentClient.connect(scheduler.endpoint) as client:
        await client.schedule_new_orchestration(asks)
        assert await anyio.to_thread.run_sync(begun.wait, 30)
        async with anyio.create_task_group() as group:
            group.start_soon(anyio.to_thread.run_sync, inner.stop)
            with anyio.fail_after(30):
                while not worker._intake._is_closing:
                    await anyio.sleep(0.01)
            assert inner._is_running
            go_on.set()
        assert ended.is_set()
    await anyio.to_thread.run_sync(worker.stop)


async def test_an_activity_that_exits_ends_nothing_but_itself(
    scheduler: EmbeddedScheduler, interceptors: list[Any]
) -> None:
    """The loop of all agents would end with it."""

    async def leaves(_: str) -> str:
        sys.exit(3)

    @orchestrator
    async def asks(context: OrchestrationContext) -> str:
        try:
            return await context.call_activity(leaves, input="x")
        except task.TaskFailedError as error:
            return error.details.message

    worker = worker_of(wrapped(scheduler, interceptors))
    worker.add_activity(leaves)
    worker.add_orchestrator(asks)
    worker.start()
    try:
        async with DurableAIAgentClient.connect(scheduler.endpoint) as client:
            said = await (await client.schedule_new_orchestration(asks))
        assert "sys.exit(3)" in said
        assert await echoes(scheduler, "and on") == ["AND ON"]
    finally:
        await anyio.to_thread.run_sync(worker.stop)


def test_a_step_does_not_see_the_context_that_it_was_begun_in() -> None:
    """The end of one step may begin the next."""
    tenant: ContextVar[str] = ContextVar("tenant", default="nobody's")
    tenant.set("another step's")
    seen: list[str] = []
    over = threading.Event()

    async def step() -> None:
        seen.append(tenant.get())
        over.set()

    loop = AgentLoop()
    try:
        loop.begin(step, lambda _: None)
        assert over.wait(30)
    finally:
        loop.stop()
    assert seen == ["nobody's"]


async def test_what_is_too_large_fails_alone() -> None:
    """Answers travel together, but one that the scheduler cannot take must not have the others done again and again."""
    runs = Counter[str]()

    async def gives(size: int) -> str:
        runs[f"{size}"] += 1
        return "x" * size

    @orchestrator
    async def asks(context: OrchestrationContext, sizes: list[int]) -> int:
        return sum(len(text) for text in await when_all([context.call_activity(gives, input=size) for size in sizes]))

    async with EmbeddedScheduler(max_message_bytes=3 * 2**20) as scheduler:
        worker = wrapped(scheduler, [])
        worker.add_activity(gives)
        worker.add_orchestrator(asks)
        async with worker, DurableAIAgentClient.connect(scheduler.endpoint) as client:
            sizes = [250_000] * 9
            assert await (await client.schedule_new_orchestration(asks, input=sizes)) == sum(sizes)
            poison = await client.schedule_new_orchestration(asks, input=[4_000_000])
            with anyio.fail_after(30):
                while not runs["4000000"]:
                    await anyio.sleep(0.01)
            assert await (await client.schedule_new_orchestration(asks, input=[1, 2_000_000])) == 2_000_001
            await poison.terminate()
    assert runs == Counter({"250000": 9, "1": 1, "2000000": 1, "4000000": runs["4000000"]})


def test_the_word_that_nobody_waits_is_kept_until_somebody_asks() -> None:
    """It may come while a step still waits in line, or reads."""
    heard: list[bool] = []
    with grpc.insecure_channel("localhost:1") as channel:
        line = BundleLine(channel)
        line.hold("t1")
        line.hold("t2")
        watch = line.watch("t1")
        assert watch is not None
        line._unwanted("t1")
        watch(heard.append)
        assert heard == [True]
        other = line.watch("t2")
        assert other is not None
        stop = other(heard.append)
        line.close()
        assert heard == [True, True], "no answer counts when the line is over"
        assert line.is_over
        stop()
        line.release("t1")
        line.release("t2")
        assert not line._held
