"""What is larger than a message may be, or than a result may: a failure by name, at once, and never a repeat."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from typing import Any, cast

import pytest
from durabletask.task import RetryPolicy
from durabletask.worker import TaskHubGrpcWorker

from dafx_actors import (
    DurableAIAgentClient,
    DurableAIAgentWorker,
    ModelRequest,
    OrchestrationContext,
    ToolContext,
    as_tool,
    durable_agent,
    orchestrator,
    tool,
)
from dafx_actors.errors import ConfigurationError, MessageTooLarge, OrchestrationFailed, ResultNotKept, ValueMismatch
from dafx_actors.scheduler import EmbeddedScheduler
from dafx_actors.testing import ScriptedModel
from tests.integration.conftest import Hosting
from tests.integration.test_intake import Looking
from tests.integration.turns import agent, asked_of, asks, results, results_in, tells, using
from tests.scheduler.bench import QUIET

pytestmark = pytest.mark.anyio

LIMIT = 2 * 2**20
"""Bytes of a message, in place of 64 MiB."""
TOO_LARGE = LIMIT + 2**19
PART = 900_000
"""Bytes: two of them fit into a message, and three do not."""
AT_ONCE = RetryPolicy(first_retry_interval=timedelta(milliseconds=1), max_number_of_attempts=3)


@pytest.fixture
async def scheduler() -> AsyncIterator[EmbeddedScheduler]:
    async with EmbeddedScheduler(max_message_bytes=LIMIT) as running:
        yield running


@pytest.fixture(params=["bundles", "calls"])
def worker(request: pytest.FixtureRequest, scheduler: EmbeddedScheduler) -> DurableAIAgentWorker:
    looking = [Looking()] if request.param == "calls" else None
    return DurableAIAgentWorker(
        TaskHubGrpcWorker(host_address=scheduler.endpoint, interceptors=looking, logger=QUIET), extended_sessions=0
    )


def said(request: ModelRequest) -> str:
    """A model that says as many letters as it is told."""
    text = request.messages[-1].text
    return "x" * int(text) if text.isdigit() else "ok"


async def test_a_models_answer(scheduler: EmbeddedScheduler, worker: DurableAIAgentWorker) -> None:
    model = ScriptedModel(said)
    worker.add_agent(agent(model))
    async with worker, DurableAIAgentClient.connect(scheduler.endpoint) as client:
        talker = client.get_agent("Worker")
        thread = talker.get_new_thread()
        with pytest.raises(MessageTooLarge) as caught:
            await talker.run(str(TOO_LARGE), thread=thread)
        assert (await talker.run("hi", thread=thread)).text == "ok"
    assert (caught.value.what, caught.value.limit) == ("activity 'dafx-Worker.model'", LIMIT)
    assert TOO_LARGE < caught.value.size < TOO_LARGE + 1000
    assert len(model.requests) == 2


async def test_a_thread_that_cannot_hold_an_answer_besides_what_it_has(
    scheduler: EmbeddedScheduler, worker: DurableAIAgentWorker
) -> None:
    worker.add_agent(agent(ScriptedModel(said)))
    async with worker, DurableAIAgentClient.connect(scheduler.endpoint) as client:
        talker = client.get_agent("Worker")
        thread = talker.get_new_thread()
        for _ in range(2):
            await talker.run(str(PART // 2), thread=thread)
        with pytest.raises(MessageTooLarge, match=f"entity '@dafx-worker@{thread.thread_id}', with its state"):
            await talker.run(str(PART), thread=thread)
        assert (await talker.run("hi", thread=thread)).text == "ok"
        transcript = await talker.get_transcript(thread)
    assert [message.text for message in transcript][-2:] == ["hi", "ok"]


async def test_a_turn_of_one_operation(scheduler: EmbeddedScheduler, worker: DurableAIAgentWorker) -> None:
    model = ScriptedModel(said)
    worker.add_agent(agent(model, durability="turn"))
    async with worker, DurableAIAgentClient.connect(scheduler.endpoint) as client:
        talker = client.get_agent("Worker")
        thread = talker.get_new_thread()
        with pytest.raises(MessageTooLarge):
            await talker.run(str(TOO_LARGE), thread=thread)
        assert (await talker.run("hi", thread=thread)).text == "ok"
    assert len(model.requests) == 2


async def test_results_that_the_thread_cannot_hold_together(
    scheduler: EmbeddedScheduler, worker: DurableAIAgentWorker
) -> None:
    """What acted is told as having acted, also where what it gave is lost."""
    acted: list[int] = []

    def fetch(part: int) -> str:
        acted.append(part)
        return "x" * PART

    model = ScriptedModel(*[asks(("fetch", {"part": part})) for part in range(3)], "never", "ok")
    worker.add_agent(agent(model, fetch))
    async with worker, DurableAIAgentClient.connect(scheduler.endpoint) as client:
        fetcher = client.get_agent("Worker")
        thread = fetcher.get_new_thread()
        with pytest.raises(MessageTooLarge):
            await fetcher.run("Go", thread=thread)
        told = results_in(await fetcher.get_transcript(thread))
    assert acted == [0, 1, 2]
    assert [len(str(each.result)) for each in told[:2]] == [PART, PART]
    assert "'fetch' was made, and it has acted" in told[2].result
    assert told[2].extra["dafx"]["unkept"]


async def test_results_that_one_message_cannot_hold_together(
    scheduler: EmbeddedScheduler, worker: DurableAIAgentWorker
) -> None:
    acted: list[int] = []

    def fetch(part: int) -> str:
        acted.append(part)
        return "x" * PART

    model = ScriptedModel(asks(*[("fetch", {"part": part}) for part in range(3)]), "ok")
    worker.add_agent(agent(model, fetch))
    async with worker, DurableAIAgentClient.connect(scheduler.endpoint) as client:
        fetcher = client.get_agent("Worker")
        thread = fetcher.get_new_thread()
        with pytest.raises(MessageTooLarge, match=r"orchestration 'dafx-Worker.turn'"):
            await fetcher.run("Go", thread=thread)
        assert (await fetcher.run("And on", thread=thread)).text == "ok"
    assert sorted(acted) == [0, 1, 2]


@pytest.mark.parametrize("is_async", [True, False], ids=["async", "sync"])
async def test_what_an_activity_or_an_orchestration_gives(
    scheduler: EmbeddedScheduler, worker: DurableAIAgentWorker, is_async: bool
) -> None:
    runs: Counter[str] = Counter()

    async def asynchronous(size: int) -> str:
        runs["all"] += 1
        return "x" * size

    def synchronous(size: int) -> str:
        runs["all"] += 1
        return "x" * size

    activity: Callable[..., Any] = asynchronous if is_async else synchronous

    @orchestrator
    async def catches(context: OrchestrationContext, size: int) -> list[Any]:
        try:
            return [await context.call_activity(activity, input=size, retry_policy=AT_ONCE)]
        except MessageTooLarge as error:
            return [error.what, error.limit]

    @orchestrator
    async def gives(context: OrchestrationContext, size: int) -> str:
        return "x" * size

    worker.add_activity(activity)
    worker.add_orchestrator(catches)
    worker.add_orchestrator(gives)
    async with worker, DurableAIAgentClient.connect(scheduler.endpoint) as client:
        seen = await (await client.schedule_new_orchestration(catches, input=TOO_LARGE)).result(timeout=30)
        with pytest.raises(OrchestrationFailed, match="MessageTooLarge: The answer of orchestration 'gives'"):
            await (await client.schedule_new_orchestration(gives, input=TOO_LARGE)).result(timeout=30)
    assert seen == [f"activity {activity.__name__!r}", LIMIT]
    assert runs["all"] == 1


@pytest.mark.parametrize("endpoint", ["durabletask"], indirect=True)
async def test_another_scheduler_with_a_limit_of_its_own(hosting: Hosting) -> None:
    async with hosting(agent(ScriptedModel(said))) as client:
        with pytest.raises(MessageTooLarge) as caught:
            await client.get_agent("Worker").run(str(5 * 2**20))
    assert caught.value.limit == 4 * 2**20


# --- Results of tools ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("of_tool", "of_agent"), [(None, None), (1000, None), (None, 1000), (1000, 10)])
async def test_a_result_has_a_bound(hosting: Hosting, of_tool: int | None, of_agent: int | None) -> None:
    most = of_tool or of_agent or 2**20
    acted: list[int] = []

    @tool(effect="once", max_result_bytes=of_tool)
    def fetch(size: int) -> str:
        acted.append(size)
        return "é" + "x" * (size - 4)  # two bytes, and two quotation marks

    model = ScriptedModel(asks(("fetch", {"size": most}), ("fetch", {"size": most + 2})), "Fetched.")
    bound: dict[str, Any] = {} if of_agent is None else {"max_result_bytes": of_agent}
    async with hosting(agent(model, fetch, **bound)) as client:
        fetcher = client.get_agent("Worker")
        thread = fetcher.get_new_thread()
        await fetcher.run("Go", thread=thread)
        fits, larger = results_in(await fetcher.get_transcript(thread))
    assert len(fits.result) == most - 3
    assert f"has {most + 2:,} bytes, and may have {most:,}" in larger.result
    assert "failed" not in larger.extra["dafx"]
    assert sorted(acted) == [most, most + 2]


async def test_a_progress_has_the_bound_of_a_result(hosting: Hosting) -> None:
    def work(context: ToolContext) -> str:
        with pytest.raises(ValueMismatch, match=r"has 1,001 bytes as JSON, and may have 1,000"):
            context.report_progress("x" * 999)
        context.report_progress("x" * 998)
        return "worked"

    async with hosting(agent(using(asks(("work", {}))), work, max_result_bytes=1000)) as client:
        assert (await client.get_agent("Worker").run("Go")).text == "worked"


@pytest.mark.parametrize("given", [0, -1, True, 1.5, "1 MiB"])
def test_a_bound_is_a_number_of_bytes(given: Any) -> None:
    with pytest.raises(ConfigurationError, match="`max_result_bytes` is a whole number above 0"):
        durable_agent(max_result_bytes=given)(type("Agent", (), {"instructions": ""}))

    @tool(max_result_bytes=given)
    def fetch() -> None: ...

    worker = DurableAIAgentWorker(TaskHubGrpcWorker())
    with pytest.raises(ConfigurationError, match="`max_result_bytes` is a whole number above 0"):
        worker.add_agent(agent(ScriptedModel(), fetch))


class Odd:
    def __repr__(self) -> str:
        raise KeyError("no text")


def endless() -> list[Any]:
    made: list[Any] = []
    made.append(made)
    return made


UNKEPT: dict[str, Callable[[], Any]] = {
    "an object": object,
    "one without a text": Odd,
    "itself": endless,
    "not a number": lambda: float("nan"),
    "too many digits": lambda: 10**5000,
    "none": lambda: None,
}


@pytest.mark.parametrize("kind", UNKEPT)
@pytest.mark.parametrize("durability", ["step", "turn"])
async def test_a_tool_that_acted_counts_as_made_whatever_it_gave(hosting: Hosting, kind: str, durability: str) -> None:
    acted: Counter[str] = Counter()

    @tool(retry=AT_ONCE)
    async def pay() -> list[Any]:
        acted["pay"] += 1
        return cast("list[Any]", UNKEPT[kind]())

    @tool(effect="once")
    def charge() -> list[Any]:
        acted["charge"] += 1
        return cast("list[Any]", UNKEPT[kind]())

    tools = [pay] if durability == "turn" else [pay, charge]
    model = ScriptedModel(asks(*[(each.__name__, {}) for each in tools]), tells)
    async with hosting(agent(model, *tools, durability=durability)) as client:
        text = (await client.get_agent("Worker").run("Go")).text
    assert text.count("was made, and it has acted; its result could not be kept") == len(tools)
    assert "Error" not in text.replace("RecursionError", "").replace("KeyError", "")
    assert acted == {each.__name__: 1 for each in tools}
    assert not [result for result in results(model.requests[-1]) if str(result).startswith("Error")]


async def test_an_activity_that_acted_is_not_made_again_for_its_result(hosting: Hosting) -> None:
    acted: Counter[str] = Counter()

    async def pay() -> list[int]:
        acted["pay"] += 1
        return object()  # type: ignore[return-value]

    @orchestrator
    async def pays(context: OrchestrationContext) -> str:
        try:
            await context.call_activity(pay, retry_policy=AT_ONCE)
        except ResultNotKept as error:
            return error.name
        return ""

    async with hosting(orchestrators=(pays,), activities=(pay,)) as client:
        assert await (await client.schedule_new_orchestration(pays)) == "pay"
    assert acted["pay"] == 1


async def test_a_person_says_what_became_of_a_once_call_whose_step_failed_as_a_whole(
    scheduler: EmbeddedScheduler, worker: DurableAIAgentWorker
) -> None:
    acted: list[int] = []

    @tool(effect="once", max_result_bytes=2 * TOO_LARGE)
    def pay() -> str:
        acted.append(1)
        return "x" * TOO_LARGE

    model = using(asks(("pay", {})))
    worker.add_agent(agent(model, pay))
    async with worker, DurableAIAgentClient.connect(scheduler.endpoint) as client:
        handle = await client.get_agent("Worker").start("Go")
        await client.resolve(await asked_of(client, kind="outcome"), "result", result="paid")
        assert (await handle).text == "paid"
    assert acted == [1]


async def test_a_call_of_another_tool_whose_step_failed_as_a_whole_was_made(
    scheduler: EmbeddedScheduler, worker: DurableAIAgentWorker
) -> None:
    acted: list[int] = []

    @tool(retry=AT_ONCE, max_result_bytes=2 * TOO_LARGE)
    def fetch() -> str:
        acted.append(1)
        return "x" * TOO_LARGE

    worker.add_agent(agent(using(asks(("fetch", {}))), fetch))
    async with worker, DurableAIAgentClient.connect(scheduler.endpoint) as client:
        answer = await client.get_agent("Worker").run("Go")
    assert answer.text.startswith("The call of 'fetch' was made, and it has acted")
    assert acted == [1]


async def test_an_answer_of_an_agent_that_is_too_large_for_a_result_is_said_to_be(hosting: Hosting) -> None:
    answers = iter(["a" * 1_001, "b" * 1_000])
    expert = ScriptedModel(lambda _: next(answers))

    @durable_agent(model=expert)
    class Expert:
        """Knows things."""

        instructions = "You know things."

    ask = asks(("Expert", {"request": "Well?"}))

    @durable_agent(model=using(ask, ask), max_result_bytes=1_000)
    class Worker:
        instructions = "Ask."
        tools = (as_tool(Expert),)

    async with hosting(Worker, Expert) as client:
        worker = client.get_agent(Worker)
        await worker.run("Go", thread="here")
        first, second = results_in(await worker.get_transcript("here"))
    assert "'Expert' has answered; the answer has 1,001 bytes, a result may have 1,000" in str(first)
    assert second.result == "b" * 1_000
