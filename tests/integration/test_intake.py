"""How a worker takes its work: by either line, within its limits, and without one thing standing in another's way."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any

import anyio
import anyio.to_thread
import grpc
import pytest
from durabletask import task
from durabletask.testing import create_test_backend
from durabletask.worker import ConcurrencyOptions, TaskHubGrpcWorker

from dafx_actors import (
    DurableAIAgentClient,
    DurableAIAgentWorker,
    OrchestrationContext,
    durable_agent,
    orchestrator,
    when_all,
)
from dafx_actors._lines import Bundles, Calls
from dafx_actors.scheduler import EmbeddedScheduler
from dafx_actors.testing import ScriptedModel
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

    activity: Callable[..., Any] = asynchronous if is_async else synchronous

    @orchestrator
    async def fan_out(context: OrchestrationContext, count: int) -> list[int]:
        return await when_all([context.call_activity(activity, input=number) for number in range(count)])

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


@pytest.mark.parametrize("kind", [Bundles, Calls])
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

    for line in (Bundles, Calls):
        monkeypatch.setattr(line, "__init__", noting(line))
    async with worker_of(wrapped(scheduler, [] if kind is Bundles else [Looking()])):
        await echoes(scheduler, "one")
    assert made == [kind]


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

    activity: Callable[..., Any] = asynchronous if is_async else synchronous

    @orchestrator
    async def asks(context: OrchestrationContext) -> str:
        return await context.call_activity(activity, input="x")

    backend = create_test_backend(port=port)
    try:
        worker = DurableAIAgentWorker.connect(f"http://127.0.0.1:{port}")
        worker.add_activity(activity)
        worker.add_orchestrator(asks)
        async with worker, DurableAIAgentClient.connect(f"http://127.0.0.1:{port}") as client:
            handle = await client.schedule_new_orchestration(asks)
            assert await anyio.to_thread.run_sync(begun.wait, 30)
            line = worker._intake._line
            assert isinstance(line, Calls)
            line.hang_up()
            with anyio.fail_after(30):
                while worker._intake._line is line:
                    await anyio.sleep(0.01)
            go_on.set()
            assert await handle == "done"
    finally:
        backend.stop()
    assert runs["all"] == 1
