"""Coroutines as orchestrations, run by durabletask's own worker against its own in-memory backend, over a socket.

That backend hands an orchestration out again for each thing that happens to it. Each test runs with every `await`
replayed, and with orchestrations kept between their episodes.
"""

from __future__ import annotations

import asyncio
import contextvars
import gc
import logging
import socket
import threading
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

import anyio
import attrs
import pytest
from durabletask import task
from durabletask.client import AsyncTaskHubGrpcClient
from durabletask.testing import create_test_backend
from durabletask.worker import TaskHubGrpcWorker

from dafx_actors import (
    DurableAIAgentClient,
    DurableAIAgentOrchestrationContext,
    DurableAIAgentWorker,
    DurableTask,
    OrchestrationContext,
    OrchestrationHandle,
    durable_agent,
    orchestrator,
    when_all,
    when_any,
)
from dafx_actors.errors import (
    ConfigurationError,
    ModelError,
    NotDurableError,
    OrchestrationFailed,
    ThreadBusy,
)
from dafx_actors.testing import ScriptedModel
from tests.conftest import free_port

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]
SOON = timedelta(milliseconds=1)
NEVER = timedelta(days=1)


@pytest.fixture
def port() -> Generator[int]:
    port = free_port()
    backend = create_test_backend(port=port)
    yield port
    backend.stop()


class Run(Protocol):
    """Runs an orchestration to its end."""

    async def __call__(
        self,
        orchestration: Callable[..., Any],
        input: Any = None,
        *,
        activities: tuple[Callable[..., Any], ...] = (),
        others: tuple[Callable[..., Any], ...] = (),
        agents: tuple[object, ...] = (),
    ) -> Any: ...


class Host(Protocol):
    """Hosts orchestrations and what they call, and gives a client."""

    def __call__(
        self, *orchestrations: Callable[..., Any], activities: tuple[Callable[..., Any], ...] = (), agents: Any = ()
    ) -> AbstractAsyncContextManager[DurableAIAgentClient]: ...


@pytest.fixture(params=[0, 100], ids=["replayed", "kept"])
def extended_sessions(request: pytest.FixtureRequest) -> int:
    kept: int = request.param
    return kept


replayed = pytest.mark.parametrize("extended_sessions", [0], ids=["replayed"])
"""For what is about replays."""


@pytest.fixture
def host(port: int, extended_sessions: int) -> Host:
    @asynccontextmanager
    async def hosting(
        *orchestrations: Callable[..., Any], activities: tuple[Callable[..., Any], ...] = (), agents: Any = ()
    ) -> AsyncGenerator[DurableAIAgentClient]:
        inner = TaskHubGrpcWorker(host_address=f"localhost:{port}")
        worker = DurableAIAgentWorker(inner, extended_sessions=extended_sessions)
        worker.add_agent(*agents)
        for each in orchestrations:
            worker.add_orchestrator(each)
        for each in activities:
            worker.add_activity(each)
        client = AsyncTaskHubGrpcClient(host_address=f"localhost:{port}")
        async with worker:
            yield DurableAIAgentClient(client)
        await client.close()

    return hosting


@pytest.fixture
def run(host: Host) -> Run:
    async def to_the_end(
        orchestration: Callable[..., Any],
        input: Any = None,
        *,
        activities: tuple[Callable[..., Any], ...] = (),
        others: tuple[Callable[..., Any], ...] = (),
        agents: tuple[object, ...] = (),
    ) -> Any:
        async with host(orchestration, *others, activities=activities, agents=agents) as client:
            handle: OrchestrationHandle[Any] = await client.schedule_new_orchestration(orchestration, input=input)
            return await handle.result(timeout=30)

    return to_the_end


def double(number: int) -> int:
    return number * 2


def boom(text: str) -> None:
    raise ValueError(text)


# --- Awaiting -----------------------------------------------------------------------------------------------------


async def test_it_returns_what_the_coroutine_returns(run: Run) -> None:
    @orchestrator
    async def plain(context: OrchestrationContext) -> str:
        return "done"

    assert await run(plain) == "done"


async def test_an_activity_is_awaited(run: Run) -> None:
    @orchestrator
    async def doubling(context: OrchestrationContext, number: int) -> int:
        first = await context.call_activity(double, input=number)
        return int(await context.call_activity("double", input=first))

    assert await run(doubling, 5, activities=(double,)) == 20


async def test_a_first_awaited_task_that_is_complete_already_goes_on_at_once(run: Run) -> None:
    @orchestrator
    async def empty_first(context: OrchestrationContext) -> list[Any]:
        nothing: list[Any] = await when_all([])
        return [*nothing, await context.call_activity(double, input=1)]

    assert await run(empty_first, activities=(double,)) == [2]


async def test_nothing_to_wait_for_is_complete_in_durabletasks_own_words_too(run: Run) -> None:
    @orchestrator
    def empty_first(context: OrchestrationContext) -> Generator[Any, Any, list[Any]]:
        nothing = yield task.when_all([])
        return [nothing, (yield when_all([]))]

    assert await run(empty_first) == [[], []]


async def test_results_of_when_all_stand_in_the_order_given(run: Run) -> None:
    @orchestrator
    async def fan_out(context: OrchestrationContext) -> list[int]:
        return await when_all([context.call_activity(double, input=n) for n in range(10)])

    assert await run(fan_out, activities=(double,)) == [0, 2, 4, 6, 8, 10, 12, 14, 16, 18]


async def test_a_task_can_be_awaited_twice_and_after_others(run: Run) -> None:
    @orchestrator
    async def again(context: OrchestrationContext) -> list[int]:
        first, second = (context.call_activity(double, input=n) for n in (1, 2))
        return [await second, await first, await second]

    assert await run(again, activities=(double,)) == [4, 2, 4]


async def test_coroutines_run_side_by_side(run: Run) -> None:
    """Each waits for an event that another one raises: in a row they would wait for ever."""

    async def pass_on(context: OrchestrationContext, mine: str, following: str) -> str:
        context.send_event(context.instance_id, following, data=mine)
        return str(await context.wait_for_external_event(mine))

    @orchestrator
    async def ring(context: OrchestrationContext) -> list[str]:
        return await when_all([pass_on(context, *names) for names in (("a", "b"), ("b", "c"), ("c", "a"))])

    assert await run(ring) == ["c", "a", "b"]


async def test_nested_coroutines_may_nest_further(run: Run) -> None:
    async def quadruple(context: OrchestrationContext, number: int) -> int:
        twice = await context.call_activity(double, input=number)
        return int(await context.call_activity(double, input=twice))

    async def total(context: OrchestrationContext, numbers: list[int]) -> int:
        return sum(await when_all([quadruple(context, number) for number in numbers]))

    @orchestrator
    async def all_of_it(context: OrchestrationContext) -> list[int]:
        return await when_all([total(context, [1, 2]), total(context, [3]), total(context, [])])

    assert await run(all_of_it, activities=(double,)) == [12, 12, 0]


async def test_a_decorated_orchestration_can_be_called_as_the_function_it_is(run: Run) -> None:
    @orchestrator
    async def inner(context: OrchestrationContext, number: int = 7) -> int:
        return int(await context.call_activity(double, input=number))

    @orchestrator
    async def outer(context: OrchestrationContext) -> list[int]:
        return [await inner(context, 1), await inner(context, number=2), await inner(context)]

    assert await run(outer, activities=(double,)) == [2, 4, 14]


async def test_an_input_with_a_default_may_be_left_out(run: Run) -> None:
    @orchestrator
    async def greet(context: OrchestrationContext, name: str = "you") -> str:
        return f"Hello, {name}"

    assert await run(greet) == "Hello, you"


# --- Errors -------------------------------------------------------------------------------------------------------


async def test_an_activitys_failure_is_raised_at_the_await(run: Run) -> None:
    @orchestrator
    async def careful(context: OrchestrationContext) -> str:
        try:
            await context.call_activity(boom, input="no luck")
        except task.TaskFailedError as error:
            return error.details.message
        return "no error"

    assert await run(careful, activities=(boom,)) == "no luck"


async def test_a_result_that_does_not_fit_is_an_error_at_the_await(run: Run) -> None:
    def liar() -> Any:
        return "text"

    @orchestrator
    async def strict(context: OrchestrationContext) -> str:
        try:
            return str(await context.call_activity(liar, return_type=int))
        except ValueError as error:
            return str(error)

    assert await run(strict, activities=(liar,)) == "'text' does not fit int: expected int, found 'text'"


async def test_the_first_failure_comes_out_of_when_all_when_all_have_ended(run: Run) -> None:
    async def failing(context: OrchestrationContext) -> None:
        await context.call_activity(boom, input="inner")

    @orchestrator
    async def together(context: OrchestrationContext) -> list[Any]:
        slow = context.wait_for_external_event("go")
        mixed: list[Any] = [failing(context), slow]
        both = when_all(mixed)
        context.send_event(context.instance_id, "go")
        try:
            await both
        except task.TaskFailedError as error:
            return [error.details.message, slow.is_complete]
        return []

    assert await run(together, activities=(boom,)) == ["inner", True]


async def test_an_exception_of_a_coroutine_is_the_same_object_where_it_is_awaited(run: Run) -> None:
    class Odd(Exception):
        pass

    async def odd() -> None:
        raise Odd("seen")

    @orchestrator
    async def catching(context: OrchestrationContext) -> str:
        for attempt in (odd(), when_all([odd()]), context.create_task(odd())):
            try:
                await attempt
            except Odd:
                continue
            return "not caught"
        return "caught"

    assert await run(catching) == "caught"


async def test_an_uncaught_error_fails_the_orchestration(run: Run) -> None:
    @orchestrator
    async def failing(context: OrchestrationContext) -> None:
        raise RuntimeError("on purpose")

    with pytest.raises(OrchestrationFailed, match="RuntimeError: on purpose"):
        await run(failing)


async def test_a_typed_error_crosses_orchestrations_and_reaches_the_client(run: Run) -> None:
    @orchestrator
    async def child(context: OrchestrationContext) -> None:
        raise ThreadBusy("Joker", "t1", "c1")

    @orchestrator
    async def parent(context: OrchestrationContext) -> str:
        try:
            await context.call_sub_orchestrator(child)
        except ThreadBusy as error:
            raise ModelError("timeout", f"{error.agent}/{error.thread_id}/{error.active}") from error
        return "no error"

    with pytest.raises(OrchestrationFailed) as caught:
        await run(parent, others=(child,))
    assert isinstance(caught.value.__cause__, ModelError)
    assert (caught.value.__cause__.kind, caught.value.__cause__.message) == ("timeout", "Joker/t1/c1")


async def test_a_typed_error_crosses_activities(run: Run) -> None:
    async def busy() -> None:
        raise ThreadBusy("Joker", "t1", "c1")

    @orchestrator
    async def catching(context: OrchestrationContext) -> str:
        try:
            await context.call_activity(busy)
        except ThreadBusy as error:
            return error.active
        return "no error"

    assert await run(catching, activities=(busy,)) == "c1"


async def test_an_agents_error_is_caught_and_another_agent_asked(run: Run) -> None:
    @durable_agent(model=ScriptedModel(ModelError("authentication", "who are you?")))
    class First:
        instructions = "x"

    @durable_agent(model=ScriptedModel("Hello"))
    class Second:
        instructions = "x"

    @orchestrator
    async def fall_back(context: OrchestrationContext) -> str:
        try:
            answer = await context.get_agent(First).run("Hi")
        except ModelError as error:
            answer = await context.get_agent("Second").run(f"Hi after {error.kind}")
        return answer.text

    assert await run(fall_back, agents=(First, Second)) == "Hello"


# --- What cannot be replayed --------------------------------------------------------------------------------------


async def sleep_with_asyncio() -> None:
    await asyncio.sleep(1)


async def sleep_for_no_time() -> None:
    await asyncio.sleep(0)


async def sleep_with_anyio() -> None:
    await anyio.sleep(1)


async def wait_for() -> None:
    event = asyncio.Event().wait()
    try:
        await asyncio.wait_for(event, 1)
    finally:
        event.close()


async def read_a_socket() -> None:
    with socket.socket() as unconnected:
        await asyncio.get_running_loop().sock_recv(unconnected, 1)


async def await_a_future() -> None:
    loop = asyncio.new_event_loop()
    try:
        await loop.create_future()
    finally:
        loop.close()


async def make_a_future() -> None:
    await asyncio.Future()


async def time_out() -> None:
    async with asyncio.timeout(1):
        await sleep_with_asyncio()


async def time_out_with_anyio() -> None:
    with anyio.fail_after(1):
        await sleep_with_anyio()


async def a_task_group() -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(sleep_with_asyncio())


async def a_task_group_of_anyio() -> None:
    async with anyio.create_task_group():
        pass


async def take_from_a_queue() -> None:
    await asyncio.Queue[int]().get()


async def wait_for_an_event() -> None:
    await asyncio.Event().wait()


async def run_another_loop() -> None:
    coroutine = sleep_for_no_time()
    try:
        asyncio.run(coroutine)
    finally:
        coroutine.close()


async def open_a_connection() -> None:
    await anyio.connect_tcp("127.0.0.1", 1)


@pytest.mark.parametrize(
    ("awaiting", "named", "instead"),
    [
        (sleep_with_asyncio, "asyncio.tasks.sleep", "context.sleep"),
        (sleep_for_no_time, "sleep", "context.sleep"),
        (sleep_with_anyio, "anyio", "context.sleep"),
        (wait_for, "wait_for", "when_any"),
        (read_a_socket, "read_a_socket", "call_activity"),
        (await_a_future, "Future", "call_activity"),
        (make_a_future, "make_a_future", "call_activity"),
        (open_a_connection, "anyio", "call_activity"),
        (time_out, "timeout", "when_any"),
        (time_out_with_anyio, "anyio", "when_any"),
        (a_task_group, "TaskGroup", "when_all"),
        (a_task_group_of_anyio, "anyio", "when_all"),
        (take_from_a_queue, "Queue.get", "wait_for_external_event"),
        (wait_for_an_event, "Event.wait", "wait_for_external_event"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
async def test_awaiting_what_is_not_durable_says_what_and_what_to_do_instead(
    run: Run, awaiting: Callable[[], Any], named: str, instead: str
) -> None:
    @orchestrator
    async def mistaken(context: OrchestrationContext) -> str:
        await context.sleep(SOON)  # also when it is replayed
        try:
            await context.create_task(awaiting())
        except NotDurableError as error:
            return str(error)
        return "no error"

    said = await run(mistaken)
    assert named in said
    assert instead in said


async def test_after_the_mistake_the_orchestration_may_go_on(run: Run) -> None:
    @orchestrator
    async def mistaken(context: OrchestrationContext) -> list[str]:
        said: list[str] = []
        for _ in range(2):
            try:
                await asyncio.sleep(0)
            except NotDurableError as error:
                said.append(error.instead)
            await context.sleep(SOON)
        return said

    assert await run(mistaken) == ["Use `await context.sleep(seconds)`."] * 2


async def test_waiting_for_nothing_durable_side_by_side_is_a_mistake(run: Run) -> None:
    async def fine(context: OrchestrationContext) -> None:
        await context.sleep(SOON)

    @orchestrator
    async def mistaken(context: OrchestrationContext) -> list[str]:
        wrong: Any = "text"
        said: list[str] = []
        for wait in (when_all, when_any):
            try:
                await wait([wrong, fine(context)])
            except NotDurableError as error:
                said.append(error.what)
        return said

    assert await run(mistaken) == ["a str"] * 2


def test_waiting_for_any_of_nothing_would_wait_for_ever() -> None:
    with pytest.raises(ValueError, match="for ever"):
        when_any([])


def test_a_coroutine_outside_an_orchestration_is_a_mistake_and_leaves_no_warning() -> None:
    async def stray() -> None:
        pass

    with pytest.raises(NotDurableError, match=r"only inside `@orchestrator`"):
        when_all([stray(), stray()])
    gc.collect()


# --- Closing ------------------------------------------------------------------------------------------------------


@replayed
async def test_finally_runs_when_the_orchestration_is_set_aside_on_the_thread_that_ran_it(run: Run) -> None:
    threads: list[tuple[int, int]] = []

    async def nested(context: OrchestrationContext) -> None:
        ran_on = threading.get_ident()
        try:
            await context.sleep(SOON)
        finally:
            threads.append((ran_on, threading.get_ident()))

    @orchestrator
    async def with_finally(context: OrchestrationContext) -> None:
        await when_all([nested(context), nested(context)])
        await nested(context)

    await run(with_finally)
    assert len(threads) > 3
    assert all(ran_on == ended_on for ran_on, ended_on in threads)


@replayed
async def test_the_context_refuses_calls_while_it_is_set_aside(run: Run) -> None:
    refused: list[str] = []

    async def clinging(context: OrchestrationContext) -> None:
        try:
            await context.sleep(NEVER)
        finally:
            for call in (
                lambda: context.call_activity(double, input=1),
                lambda: context.sleep(1),
                lambda: context.set_custom_status("x"),
                lambda: context.new_uuid(),
                lambda: context.get_agent("Joker"),
                lambda: context.continue_as_new(1),
                lambda: context.send_event("x", "y"),
            ):
                try:
                    call()
                except NotDurableError as error:
                    refused.append(error.instead)

    @orchestrator
    async def outer(context: OrchestrationContext) -> str:
        context.create_task(clinging(context))
        await context.sleep(SOON)
        return "done"

    assert await run(outer) == "done"
    assert refused == ["Those run each time the orchestration is set aside; put the call after the `try` block."] * 14


async def test_awaiting_in_finally_leaves_nothing_behind(run: Run) -> None:
    """Python would warn of coroutines that do not end, at any time, on any thread."""

    @orchestrator
    async def stubborn(context: OrchestrationContext) -> str:
        timers = [context.sleep(NEVER) for _ in range(3)]
        try:
            await context.sleep(SOON)
        except BaseException:
            try:
                await timers[0]
            finally:
                try:
                    await timers[1]
                finally:
                    await timers[2]
            raise
        return "done"

    assert await run(stubborn) == "done"
    gc.collect()


async def test_coroutines_that_nobody_waits_for_end_with_the_orchestration(run: Run) -> None:
    ended: list[str] = []

    async def waiting(context: OrchestrationContext) -> None:
        try:
            await context.sleep(NEVER)
        finally:
            ended.append("closed")

    @orchestrator
    async def leaving(context: OrchestrationContext) -> str:
        context.create_task(waiting(context))
        await context.sleep(SOON)
        context.create_task(waiting(context))  # never begins
        return "done"

    assert await run(leaving) == "done"
    gc.collect()
    assert ended


async def test_variables_of_a_coroutine_are_its_own(run: Run) -> None:
    variable = contextvars.ContextVar("variable", default="unset")

    async def setting(context: OrchestrationContext, value: str) -> str:
        seen = variable.get()
        variable.set(value)
        await context.sleep(SOON)
        return f"{seen} then {variable.get()}"

    @orchestrator
    async def isolated(context: OrchestrationContext) -> list[str]:
        inherited = variable.get()
        variable.set("outer")
        inner = await when_all([setting(context, "a"), setting(context, "b")])
        return [inherited, *inner, variable.get()]

    assert await run(isolated) == ["unset", "outer then a", "outer then b", "outer"]


# --- The first of several -----------------------------------------------------------------------------------------


async def test_the_winner_is_the_task_that_was_given(run: Run) -> None:
    async def first(context: OrchestrationContext) -> str:
        return "coroutine"

    @orchestrator
    async def race(context: OrchestrationContext) -> list[bool]:
        def losers() -> list[Any]:
            return [context.wait_for_external_event("never"), context.sleep(NEVER)]

        won: list[bool] = []
        coroutine = context.create_task(first(context))
        won.append(await when_any([*losers(), coroutine]) is coroutine)
        timer = context.sleep(SOON)
        won.append(await when_any([*losers(), timer]) is timer)
        event = context.wait_for_external_event("soon")
        context.send_event(context.instance_id, "soon", data=1)
        won.append(await when_any([*losers(), event]) is event)
        activity = context.call_activity(double, input=1)
        won.append(await when_any([*losers(), activity]) is activity)
        won.append(await when_any([coroutine, timer]) is coroutine)
        return won

    assert await run(race, activities=(double,)) == [True] * 5


async def test_a_coroutine_given_to_when_any_is_given_back_as_its_task(run: Run) -> None:
    async def quick(context: OrchestrationContext) -> str:
        return str(await context.call_activity(double, input=21))

    @orchestrator
    async def race(context: OrchestrationContext) -> str:
        winner = await when_any([context.sleep(NEVER), quick(context)])
        return str(await winner)

    assert await run(race, activities=(double,)) == "42"


async def test_a_winner_that_failed_raises_when_it_is_awaited(run: Run) -> None:
    @orchestrator
    async def race(context: OrchestrationContext) -> str:
        winner = await when_any([context.sleep(NEVER), context.call_activity(boom, input="x")])
        try:
            await winner
        except task.TaskFailedError as error:
            return error.details.message
        return "no error"

    assert await run(race, activities=(boom,)) == "x"


async def test_a_timer_that_lost_can_be_cancelled(run: Run) -> None:
    @orchestrator
    async def race(context: OrchestrationContext) -> list[bool]:
        timer, activity = context.sleep(NEVER), context.call_activity(double, input=1)
        await when_any([timer, activity])
        cancelled = [timer.cancel(), timer.cancel(), activity.cancel()]
        try:
            await timer
        except task.TaskCancelledError:
            cancelled.append(True)
        return cancelled

    assert await run(race, activities=(double,)) == [True, False, False, True]


async def test_a_coroutine_that_gives_itself_up_goes_on(run: Run) -> None:
    @orchestrator
    async def waits(context: OrchestrationContext) -> list[bool]:
        mine: list[Any] = []

        async def inner() -> bool:
            await context.call_activity(double, input=1)
            return bool(mine[0].cancel())

        mine.append(context.create_task(inner()))
        return [await mine[0], mine[0].cancel()]

    assert await run(waits, activities=(double,)) == [False, False]


async def test_a_coroutine_that_is_given_up_ends_where_it_stands(run: Run) -> None:
    @orchestrator
    async def waits(context: OrchestrationContext) -> list[Any]:
        said: list[Any] = []

        async def below() -> None:
            try:
                await context.sleep(NEVER)
            finally:
                said.append("below")

        async def inner() -> None:
            try:
                await when_any([below(), context.sleep(NEVER)])
            finally:
                said.append("inner")

        async def never_begun() -> None:
            said.append("begun")

        loser = context.create_task(inner())
        await context.call_activity(double, input=1)
        said.append(loser.cancel())
        said.append(loser.cancel())
        unborn = context.create_task(never_begun())
        said.append(unborn.cancel())
        for each in (loser, unborn):
            try:
                await each
            except task.TaskCancelledError:
                said.append("given up")
        await context.call_activity(double, input=1)
        return said

    seen = await run(waits, activities=(double,))
    assert sorted(map(str, seen[:2])) == ["below", "inner"]
    assert seen[2:] == [True, False, True, "given up", "given up"]


async def test_a_call_with_a_retry_policy_that_is_given_up_is_not_made_again(run: Run) -> None:
    made: list[int] = []

    def fails(number: int) -> None:
        made.append(number)
        raise ValueError(number)

    policy = task.RetryPolicy(first_retry_interval=SOON, max_number_of_attempts=50)

    @orchestrator
    async def gives_up(context: OrchestrationContext) -> list[bool]:
        call = context.call_activity(fails, input=1, retry_policy=policy)
        await when_any([call, context.call_activity(double, input=1)])
        cancelled = [call.cancel(), call.cancel()]
        for _ in range(10):
            await context.sleep(SOON)
        return cancelled

    assert await run(gives_up, activities=(double, fails)) == [True, False]
    assert len(made) < 10


@pytest.mark.parametrize("wait", [when_all, when_any])
@pytest.mark.parametrize("kind", [set, frozenset])
async def test_what_has_no_order_is_refused(run: Run, wait: Any, kind: Any) -> None:
    async def stream(context: OrchestrationContext, number: int) -> int:
        return int(await context.call_activity(double, input=number))

    @orchestrator
    async def mixes(context: OrchestrationContext, tasks: bool) -> list[str]:
        said: list[str] = []
        for given in (
            kind(stream(context, number) for number in range(3)),
            kind(context.create_task(stream(context, number)) for number in range(3)),
            kind(),
        ):
            try:
                await wait(given)
            except NotDurableError as error:
                said.append(str(error))
        return said

    said = await run(mixes, input=True, activities=(double,))
    assert len(said) == 3
    assert all(f"a {kind.__name__}, which has no order" in each and "Give a list" in each for each in said)


async def test_the_views_of_a_dict_have_its_order(run: Run) -> None:
    @orchestrator
    async def waits(context: OrchestrationContext) -> list[list[int]]:
        calls = {number: context.call_activity(double, input=number) for number in range(5)}
        named = {context.call_activity(double, input=number): number for number in range(5)}
        return [await when_all(calls.values()), await when_all(named.keys()), await when_all(iter(calls.values()))]

    assert await run(waits, activities=(double,)) == [[0, 2, 4, 6, 8]] * 3


async def test_nothing_runs_on_when_the_first_coroutine_has_ended(host: Host) -> None:
    @orchestrator
    async def ends(context: OrchestrationContext) -> str:
        call = context.call_activity(double, input=1)

        async def beside() -> None:
            await call
            context.set_custom_status("beside")

        context.set_custom_status("begun")

        async def before() -> None:
            await call

        first = context.create_task(before())
        context.create_task(beside())
        await first

        async def late() -> None:
            context.set_custom_status("late")

        context.create_task(late())
        return "ended"

    async with host(ends, activities=(double,)) as client:
        handle = await client.schedule_new_orchestration(ends)
        assert await handle.result(timeout=30) == "ended"
        assert await handle.custom_status() == "beside"  # what was ready before it has run


def test_an_error_while_converting_is_raised_as_it_is() -> None:
    def convert(_: Any) -> Any:
        raise LookupError("convert")

    def explain(error: Exception) -> Exception:
        return RuntimeError(f"explained: {error}")

    converted, explained = DurableTask[Any](), DurableTask[Any]()
    fine, broken = task.CompletableTask[int](), task.CompletableTask[int]()
    converted.follow(fine, convert, explain)
    explained.follow(broken, convert, explain)
    fine.complete(1)
    broken.fail("no", ValueError("no"))
    with pytest.raises(LookupError, match="convert"):
        converted.get_result()
    with pytest.raises(RuntimeError, match="explained"):
        explained.get_result()


# --- Events -------------------------------------------------------------------------------------------------------


def waits_by(context: OrchestrationContext, how: str) -> Any:
    """A wait for the event `x` that can be given up."""

    async def approved() -> Any:
        return await context.wait_for_external_event("x")

    async def nested() -> Any:
        return await when_all([approved(), context.sleep(NEVER)])

    async def first_of() -> Any:
        return await when_any([context.wait_for_external_event("X", timeout=NEVER), context.sleep(NEVER)])

    async def held() -> Any:
        event = context.wait_for_external_event("x")
        await context.sleep(NEVER)
        return await event

    if how == "plain":
        return context.wait_for_external_event("x")
    if how == "timeout":
        return context.wait_for_external_event("x", timeout=NEVER)
    return context.create_task({"coroutine": approved, "nested": nested, "first": first_of, "held": held}[how]())


@pytest.mark.parametrize("how", ["plain", "timeout", "coroutine", "nested", "first", "held"])
async def test_a_wait_that_was_given_up_does_not_swallow_the_next_event(host: Host, how: str) -> None:
    @orchestrator
    async def waits(context: OrchestrationContext) -> list[Any]:
        cancelled: list[bool] = []
        for _ in range(3):
            loser = waits_by(context, how)
            await when_any([loser, context.call_activity(double, input=1)])
            cancelled.append(loser.cancel())
        kept = context.wait_for_external_event("x", timeout=30)
        context.set_custom_status("waiting")
        return [cancelled, await kept]

    async with host(waits, activities=(double,)) as client:
        handle = await client.schedule_new_orchestration(waits)
        with anyio.fail_after(30):
            while await handle.custom_status() != "waiting":
                await anyio.sleep(0.01)
        await handle.raise_event("X", 5)
        assert await handle.result(timeout=30) == [[True] * 3, 5]


async def test_a_wait_that_others_share_is_not_given_up_with_one_of_them(host: Host) -> None:
    @orchestrator
    async def waits(context: OrchestrationContext) -> Any:
        event = context.wait_for_external_event("x")

        async def shares() -> Any:
            return await event

        loser = context.create_task(shares())
        await context.call_activity(double, input=1)
        loser.cancel()
        context.set_custom_status("waiting")
        return await event

    async with host(waits, activities=(double,)) as client:
        handle = await client.schedule_new_orchestration(waits)
        with anyio.fail_after(30):
            while await handle.custom_status() != "waiting":
                await anyio.sleep(0.01)
        await handle.raise_event("x", 5)
        assert await handle.result(timeout=30) == 5


async def test_no_event_is_lost_to_a_loop_in_a_nested_coroutine(host: Host) -> None:
    async def collect(context: OrchestrationContext, count: int) -> list[int]:
        collected: list[int] = []
        while len(collected) < count:
            collected.append(await context.wait_for_external_event("number", data_type=int))
            await context.call_activity(double, input=1)
        return collected

    @orchestrator
    async def collecting(context: OrchestrationContext) -> list[list[int]]:
        return await when_all([collect(context, 6)])

    async with host(collecting, activities=(double,)) as client:
        handle = await client.schedule_new_orchestration(collecting)
        for number in range(6):
            await handle.raise_event("Number" if number % 2 else "number", number)
        assert await handle.result(timeout=30) == [[0, 1, 2, 3, 4, 5]]


async def test_an_event_that_does_not_come_in_time_is_a_timeout_and_the_next_one_is_not_lost(host: Host) -> None:
    @orchestrator
    async def waiting(context: OrchestrationContext) -> list[Any]:
        said: list[Any] = []
        try:
            await context.wait_for_external_event("go", timeout=SOON)
        except TimeoutError as error:
            said.append(str(error))
        context.set_custom_status("late")
        said.append(await context.wait_for_external_event("go", timeout=NEVER))
        return said

    async with host(waiting) as client:
        handle = await client.schedule_new_orchestration(waiting)
        with anyio.fail_after(30):
            while (state := await handle.state()) is None or state.serialized_custom_status != '"late"':
                await anyio.lowlevel.checkpoint()
        await handle.raise_event("go", 5)
        assert await handle.result(timeout=30) == ["event 'go' was not raised within 0:00:00.001000", 5]


async def test_what_comes_with_an_event_is_converted(host: Host) -> None:
    @orchestrator
    async def waiting(context: OrchestrationContext) -> str:
        try:
            await context.wait_for_external_event("go", data_type=int)
        except ValueError as error:
            return str(error)
        return "no error"

    async with host(waiting) as client:
        handle = await client.schedule_new_orchestration(waiting)
        await handle.raise_event("go", "five")
        assert await handle.result(timeout=30) == "'five' does not fit int: expected int, found 'five'"


# --- Retries ------------------------------------------------------------------------------------------------------


def policy(attempts: int, **more: Any) -> task.RetryPolicy:
    return task.RetryPolicy(first_retry_interval=SOON, max_number_of_attempts=attempts, **more)


async def test_a_failed_activity_is_called_again(run: Run) -> None:
    calls: list[int] = []

    def third_time_lucky() -> int:
        calls.append(1)
        if len(calls) < 3:
            raise ValueError("not yet")
        return len(calls)

    @orchestrator
    async def retrying(context: OrchestrationContext) -> int:
        return int(await context.call_activity(third_time_lucky, retry_policy=policy(5, backoff_coefficient=2.0)))

    assert await run(retrying, activities=(third_time_lucky,)) == 3


async def test_the_last_attempts_error_is_raised(run: Run) -> None:
    calls: list[int] = []

    def never_lucky() -> None:
        calls.append(1)
        raise ValueError(f"attempt {len(calls)}")

    @orchestrator
    async def retrying(context: OrchestrationContext) -> str:
        try:
            await context.call_activity(never_lucky, retry_policy=policy(3))
        except task.TaskFailedError as error:
            return error.details.message
        return "no error"

    assert await run(retrying, activities=(never_lucky,)) == "attempt 3"
    assert len(calls) == 3


async def test_no_attempt_begins_after_the_time_for_retries(run: Run) -> None:
    calls: list[int] = []

    def never_lucky() -> None:
        calls.append(1)
        raise ValueError("no")

    @orchestrator
    async def retrying(context: OrchestrationContext) -> str:
        waiting = policy(9, retry_timeout=timedelta(0))
        try:
            await context.call_activity(never_lucky, retry_policy=waiting)
        except task.TaskFailedError:
            return "gave up"
        return "no error"

    assert await run(retrying, activities=(never_lucky,)) == "gave up"
    assert len(calls) == 1


async def test_a_pause_that_doubles_for_ever_does_not_overflow(run: Run) -> None:
    calls: list[int] = []

    def never_lucky() -> None:
        calls.append(1)
        raise ValueError("no")

    @orchestrator
    async def retrying(context: OrchestrationContext) -> str:
        growing = policy(4, backoff_coefficient=1e30, max_retry_interval=SOON)
        try:
            await context.call_activity(never_lucky, retry_policy=growing)
        except task.TaskFailedError:
            return "gave up"
        return "no error"

    assert await run(retrying, activities=(never_lucky,)) == "gave up"
    assert len(calls) == 4


# --- Generators ---------------------------------------------------------------------------------------------------


async def test_a_generator_yields_what_a_coroutine_awaits(run: Run) -> None:
    @orchestrator
    def yielding(context: OrchestrationContext, number: int) -> Generator[Any, Any, dict[str, Any]]:
        both = yield task.when_all([context.call_activity(double, input=n) for n in (number, 2)])
        timer = context.sleep(SOON)
        winner = yield task.when_any([timer, context.sleep(NEVER)])
        try:
            yield context.call_activity(boom, input="x")
        except task.TaskFailedError as error:
            return {"both": both, "timer won": winner is timer, "error": error.details.message}
        return {}

    assert await run(yielding, 1, activities=(double, boom)) == {"both": [2, 4], "timer won": True, "error": "x"}


async def test_a_generator_that_yields_no_task_is_told_so(run: Run) -> None:
    @orchestrator
    def yielding(context: OrchestrationContext) -> Generator[Any, Any, str]:
        try:
            yield "text"
        except NotDurableError as error:
            return error.what
        return "no error"

    assert await run(yielding) == "a str"


async def test_an_undecorated_generator_on_a_plain_worker_uses_agents(port: int) -> None:
    @durable_agent(model=ScriptedModel(lambda request: request.messages[-1].text.upper()))
    class Echo:
        instructions = "x"

    def plain(durable: task.OrchestrationContext, prompt: str) -> Generator[task.Task[Any], Any, list[str]]:
        context = DurableAIAgentOrchestrationContext(durable)
        agent = context.get_agent("Echo")
        thread = agent.get_new_thread()
        first = yield agent.run(prompt, thread=thread)
        others = yield task.when_all([agent.run("b"), agent.run("c")])
        timed = yield context.sleep(SOON)
        return [first.text, *(other.text for other in others), str(timed)]

    worker = TaskHubGrpcWorker(host_address=f"localhost:{port}")
    agent_worker = DurableAIAgentWorker(worker)
    agent_worker.add_agent(Echo)
    registered: Any = plain
    worker.add_orchestrator(registered)
    client = AsyncTaskHubGrpcClient(host_address=f"localhost:{port}")
    async with agent_worker:
        handle = await DurableAIAgentClient(client).schedule_new_orchestration("plain", input="a")
        assert await handle.result(timeout=30) == ["A", "B", "C", "None"]
    await client.close()


# --- Values, status, identity -------------------------------------------------------------------------------------


@attrs.frozen
class Order:
    item: str
    count: int
    due: datetime | None = None


async def test_inputs_and_outputs_are_converted_by_their_annotations(run: Run) -> None:
    due = datetime(2025, 1, 2, tzinfo=UTC)

    def twice(order: Order) -> Order:
        return attrs.evolve(order, count=order.count * 2)

    @orchestrator
    async def ordering(context: OrchestrationContext, order: Order) -> list[Order]:
        return [order, await context.call_activity(twice, input=order)]

    given = Order("tea", 2, due)
    assert await run(ordering, given, activities=(twice,)) == [given, Order("tea", 4, due)]


async def test_an_input_that_does_not_fit_fails_the_orchestration(run: Run) -> None:
    @orchestrator
    async def ordering(context: OrchestrationContext, order: Order) -> str:
        return order.item

    with pytest.raises(OrchestrationFailed, match="does not fit Order"):
        await run(ordering, {"item": "tea", "count": "many"})


async def test_a_result_that_does_not_fit_fails_the_orchestration(run: Run) -> None:
    @orchestrator
    async def lying(context: OrchestrationContext) -> int:
        wrong: Any = "text"
        return wrong  # type: ignore[no-any-return]  # the point of this test

    with pytest.raises(OrchestrationFailed, match="does not fit int"):
        await run(lying)


async def test_a_result_that_json_cannot_hold_fails_the_orchestration(run: Run) -> None:
    @orchestrator
    async def odd(context: OrchestrationContext) -> Any:
        return object()

    with pytest.raises(OrchestrationFailed, match="cannot be stored"):
        await run(odd)


async def test_starting_as_new_begins_again_with_the_new_input(run: Run) -> None:
    @orchestrator
    async def counting(context: OrchestrationContext, number: int) -> int:
        await context.call_activity(double, input=number)
        if number < 3:
            context.continue_as_new(number + 1)
        return number

    assert await run(counting, 1, activities=(double,)) == 3


@replayed
async def test_a_status_is_shown_and_ids_and_time_are_the_same_at_every_replay(host: Host) -> None:
    seen: list[tuple[str, datetime]] = []

    @orchestrator
    async def telling(context: OrchestrationContext) -> str:
        seen.append((context.new_uuid(), context.current_utc_datetime))
        await context.sleep(SOON)
        await context.sleep(SOON)
        context.set_custom_status({"step": 2})
        return context.instance_id

    async with host(telling) as client:
        handle = await client.schedule_new_orchestration(telling, instance_id="mine")
        assert await handle.result(timeout=30) == "mine"
        state = await handle.state()
    assert state is not None
    assert state.serialized_custom_status == '{"step": 2}'
    assert len(seen) == 3
    assert len(set(seen)) == 1
    assert seen[0][1].tzinfo is not None


async def test_a_replay_safe_logger_logs_each_line_once(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("test_orchestration")

    @orchestrator
    async def logging_twice(context: OrchestrationContext) -> None:
        context.create_replay_safe_logger(logger).warning("begun")
        context.logger.warning("begun, ours")
        await context.sleep(SOON)
        await context.sleep(SOON)
        context.create_replay_safe_logger(logger).warning("done")

    with caplog.at_level(logging.WARNING):
        await run(logging_twice)
    told = [record.getMessage() for record in caplog.records if "durabletask" not in record.name]
    assert told == ["begun", "begun, ours", "done"]


async def test_sub_orchestrations_take_and_give_values(run: Run) -> None:
    @orchestrator
    async def child(context: OrchestrationContext, order: Order) -> Order:
        return attrs.evolve(order, item=f"{order.item} indeed")

    @orchestrator
    async def parent(context: OrchestrationContext) -> bool:
        given = await context.call_sub_orchestrator(child, input=Order("tea", 1))
        return bool(given == Order("tea indeed", 1))

    assert await run(parent, others=(child,)) is True


# --- Declarations -------------------------------------------------------------------------------------------------


def test_what_cannot_be_an_orchestration_is_refused_with_all_reasons() -> None:
    async def greedy(context: Any, one: Any, two: Any) -> None: ...

    async def shy() -> None: ...

    def plain(context: Any) -> None: ...

    cases: list[tuple[Callable[..., Any], str]] = [
        (greedy, "at most one input"),
        (shy, "must take the context"),
        (plain, "`async def`"),
    ]
    for wrong, reason in cases:
        with pytest.raises(ConfigurationError, match=reason):
            orchestrator(wrong)
    nameless: Callable[[Any], None] = lambda context: None  # noqa: E731
    with pytest.raises(ConfigurationError) as caught:
        orchestrator(nameless)
    assert len(caught.value.mistakes) == 2


def test_a_decorated_orchestration_keeps_its_name_and_docstring() -> None:
    @orchestrator
    async def named(context: OrchestrationContext) -> None:
        """What it does."""

    assert (named.__name__, named.__doc__, named.__module__) == ("named", "What it does.", __name__)
