"""An orchestration whose code was changed while it ran does not take the answer to one question for that to another.

Each is run by a worker until it waits, and goes on with another worker's code of the same name. What it then asks is
held against its history: it goes on if that asks the same, and ends as `OrchestrationChanged` if not.
"""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncGenerator, Callable, Generator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from durabletask import task
from durabletask.entities import EntityInstanceId
from durabletask.testing import create_test_backend
from durabletask.worker import TaskHubGrpcWorker

from dafx_actors import (
    ChatMessage,
    DurableAIAgentClient,
    DurableAIAgentOrchestrationContext,
    DurableAIAgentWorker,
    Limits,
    OrchestrationContext,
    durable_agent,
    orchestrator,
    when_all,
)
from dafx_actors._durable.asked import Asked
from dafx_actors._json.forms import in_form
from dafx_actors._json.values import dump_value
from dafx_actors.errors import OrchestrationChanged, OrchestrationFailed
from dafx_actors.orchestration._recorded import described, difference
from dafx_actors.scheduler import EmbeddedScheduler
from dafx_actors.testing import ReplayMismatch, ScriptedModel, history_of, replay
from tests.conftest import free_port
from tests.integration.turns import sdk, until

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120)]

THREADS = ("first-thread", "second-thread")
WAITS = "waits for `go`"
ACTED: dict[str, list[Any]] = {}
"""What the activity `act` was called with, by test."""


@durable_agent(name="Echo", model=lambda: ScriptedModel(*[lambda request: f"re: {request.messages[-1].text}"] * 50))
class Echo:
    instructions = "Say it again."


async def act(what: list[Any]) -> Any:
    test, value = what
    ACTED.setdefault(test, []).append(value)
    return value


async def double(number: int) -> int:
    return 2 * number


def counter(context: Any, amount: int) -> Any:
    total = context.get_state(int, 0) + (amount or 0)
    context.set_state(total)
    return total


Code = Callable[[OrchestrationContext], Any]


def named(code: Code) -> Callable[..., Any]:
    """A version of the orchestration `changing`: its code, then a wait for `go`."""

    @orchestrator
    async def changing(context: OrchestrationContext) -> Any:
        result = await code(context)
        context.set_custom_status(WAITS)
        await context.wait_for_external_event("go")
        return result

    return changing


@orchestrator
async def child(context: OrchestrationContext, number: int = 0) -> str:
    return f"child {number} is {context.instance_id}"


class Deployed:
    """A scheduler on which versions follow each other."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint

    def worker(self, version: Callable[..., Any]) -> DurableAIAgentWorker:
        inner = TaskHubGrpcWorker(host_address=self.endpoint.removeprefix("http://"))
        worker = DurableAIAgentWorker(inner)
        worker.add_agent(Echo)
        versions: list[Callable[..., Any]] = [version, child]
        for each in versions:
            worker.add_orchestrator(each) if hasattr(each, "__dafx_orchestrator__") else inner.add_orchestrator(each)
        for activity in (act, double):
            worker.add_activity(activity)
        inner.add_entity(counter)
        return worker

    async def run(self, old: Callable[..., Any], new: Callable[..., Any]) -> Any:
        """Begin with one version, and end with another: the result."""
        async with DurableAIAgentClient.connect(self.endpoint) as client:
            async with self.worker(old):
                handle = await client.schedule_new_orchestration("changing")

                async def waits() -> bool:
                    return bool(await handle.custom_status() == WAITS)

                await until(waits)
                async with sdk(self.endpoint) as durabletask:
                    self.history = await history_of(durabletask, handle.instance_id)
            await handle.raise_event("go")
            async with self.worker(new):
                return await handle.result(60)


@pytest.fixture(params=["embedded", "durabletask"])
async def deployed(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncGenerator[Deployed]:
    if request.param == "embedded":
        async with EmbeddedScheduler(tmp_path / "dafx.db") as scheduler:
            yield Deployed(scheduler.endpoint)
        return
    port = free_port()
    backend = create_test_backend(port=port)
    yield Deployed(f"http://127.0.0.1:{port}")
    backend.stop()


# --- What is another question -------------------------------------------------------------------------------------


def ask(*questions: Any, **how: Any) -> Code:
    async def code(context: OrchestrationContext) -> list[str]:
        answers = await when_all([context.get_agent(Echo).run(question, **how) for question in questions])
        return [answer.text for answer in answers]

    return code


def ask_in(*threads: str) -> Code:
    async def code(context: OrchestrationContext) -> list[str]:
        answers = [await context.get_agent(Echo).run("Hello", thread=thread) for thread in threads]
        return [str(answer.thread) for answer in answers]

    return code


def ask_the_peer(*questions: str) -> Code:
    async def code(context: OrchestrationContext) -> list[str]:
        peer = context.get_agent(Echo, hosted_by_peer=True)
        return [(await peer.run(question)).text for question in questions]

    return code


def call(*inputs: Any) -> Code:
    async def code(context: OrchestrationContext) -> list[Any]:
        return await when_all([context.call_activity(double, input=each) for each in inputs])

    return code


def start(*inputs: Any) -> Code:
    async def code(context: OrchestrationContext) -> list[Any]:
        return await when_all([context.call_sub_orchestrator(child, input=each) for each in inputs])

    return code


def start_as(*instances: str) -> Code:
    async def code(context: OrchestrationContext) -> list[Any]:
        return await when_all([context.call_sub_orchestrator(child, instance_id=each) for each in instances])

    return code


def count(*calls: tuple[str, int]) -> Code:
    async def code(context: OrchestrationContext) -> list[Any]:
        return [await context.call_entity(EntityInstanceId("counter", key), "add", amount) for key, amount in calls]

    return code


def signal(*calls: tuple[str, int]) -> Code:
    async def code(context: OrchestrationContext) -> None:
        for key, amount in calls:
            context.signal_entity(EntityInstanceId("counter", key), "add", amount)
        await context.call_activity(double, input=1)

    return code


def mapped(*questions: str) -> Code:
    async def code(context: OrchestrationContext) -> list[str]:
        answers = await context.map(lambda each: context.get_agent(Echo).run(each), questions, width=2)
        return [answer.text for answer in answers]

    return code


def as_generator(*inputs: int) -> Callable[..., Any]:
    @orchestrator
    def changing(context: OrchestrationContext) -> Generator[Any, Any, list[int]]:
        result = yield when_all([context.call_activity(double, input=each) for each in inputs])
        context.set_custom_status(WAITS)
        yield context.wait_for_external_event("go")
        return result  # type: ignore[no-any-return]

    return changing


def as_durabletasks_own(*questions: str) -> Callable[..., Any]:
    def changing(durable: task.OrchestrationContext, _: Any) -> Generator[Any, Any, list[str]]:
        agent = DurableAIAgentOrchestrationContext(durable).get_agent(Echo)
        answers = yield task.when_all([agent.run(question) for question in questions])
        durable.set_custom_status(WAITS)
        yield durable.wait_for_external_event("go")
        return [answer.text for answer in answers]

    return changing


SWAPPED: dict[str, tuple[Any, Any, str, str]] = {
    "questions": (named(ask("x", "y")), named(ask("y", "x")), 'agent Echo with "x"', 'agent Echo with "y"'),
    "threads": (
        named(ask_in(*THREADS)),
        named(ask_in(*THREADS[::-1])),
        'agent Echo with "Hello" in thread first-thread',
        'agent Echo with "Hello" in thread second-thread',
    ),
    "questions of a map": (
        named(mapped("x", "y", "z")),
        named(mapped("x", "z", "y")),
        'agent Echo with "y"',
        'agent Echo with "z"',
    ),
    "the peer's questions": (
        named(ask_the_peer("x", "y")),
        named(ask_the_peer("y", "x")),
        "call run of @dafx-echo@",
        "call run of @dafx-echo@",
    ),
    "inputs of activities": (named(call(1, 2)), named(call(2, 1)), "activity double with 1", "activity double with 2"),
    "inputs of orchestrations": (
        named(start(1, 2)),
        named(start(2, 1)),
        "orchestration child with 1",
        "orchestration child with 2",
    ),
    "ids of orchestrations": (
        named(start_as("p", "q")),
        named(start_as("q", "p")),
        "orchestration p",
        "orchestration q",
    ),
    "inputs of entities": (
        named(count(("a", 1), ("a", 2))),
        named(count(("a", 2), ("a", 1))),
        "call add of @counter@a with 1",
        "call add of @counter@a with 2",
    ),
    "entities": (
        named(count(("a", 1), ("b", 1))),
        named(count(("b", 1), ("a", 1))),
        "call add of @counter@a with 1",
        "call add of @counter@b with 1",
    ),
    "who is signalled": (
        named(signal(("a", 1), ("b", 1))),
        named(signal(("b", 1), ("a", 1))),
        "signal add to @counter@a",
        "signal add to @counter@b",
    ),
    "a generator": (as_generator(1, 2), as_generator(2, 1), "activity double with 1", "activity double with 2"),
    "durabletask's own": (
        as_durabletasks_own("x", "y"),
        as_durabletasks_own("y", "x"),
        'agent Echo with "x"',
        'agent Echo with "y"',
    ),
    "another name": (named(call(1)), named(start(1)), "activity double with 1", "orchestration child with 1"),
    "one less": (named(ask("x", "y")), named(ask("x")), 'agent Echo with "y"', "nothing"),
}


@pytest.mark.parametrize("what", SWAPPED)
async def test_what_was_swapped_is_never_exchanged_in_silence(deployed: Deployed, what: str) -> None:
    old, new, then, now = SWAPPED[what]
    with pytest.raises(OrchestrationFailed) as caught:
        await deployed.run(old, new)
    error = caught.value.__cause__
    assert isinstance(error, OrchestrationChanged)
    assert error.orchestration == "changing"
    assert error.then.startswith(then)
    assert error.now.startswith(now)
    assert caught.value.error_type == "OrchestrationChanged"


@pytest.mark.parametrize(
    "what", [what for what in SWAPPED if what not in ("durabletask's own", "ids of orchestrations")]
)
async def test_a_recorded_history_finds_it_before_it_is_deployed(tmp_path: Path, what: str) -> None:
    old, new, *_ = SWAPPED[what]
    async with EmbeddedScheduler(tmp_path / "dafx.db") as scheduler:
        deployed = Deployed(scheduler.endpoint)
        await deployed.run(old, old)
    replay(deployed.history, old)
    with pytest.raises(ReplayMismatch):
        replay(deployed.history, new)


# --- What asks the same -------------------------------------------------------------------------------------------


def sleeping(seconds: float) -> Code:
    async def code(context: OrchestrationContext) -> int:
        pause = context.sleep(seconds)
        result = await context.call_activity(double, input=1)
        await pause
        return result

    return code


def noted(**note: Any) -> Code:
    async def code(context: OrchestrationContext) -> Any:
        return await context.call_activity("act", input=["noted", note])

    return code


def shifted(*, more: bool) -> Code:
    async def code(context: OrchestrationContext) -> str:
        if more:
            context.new_uuid()
        return (await context.get_agent(Echo).run("x")).text

    return code


SAME: dict[str, tuple[Code, Code, Any]] = {
    "options and limits": (
        ask("x", options={"temperature": 1}),
        ask("x", limits=Limits(steps=7), enable_tool_calls=False, options={"temperature": 0}),
        ["re: x"],
    ),
    "a message, and its text": (ask("x"), ask(ChatMessage("user", "x")), ["re: x"]),
    "ids that the context makes": (shifted(more=False), shifted(more=True), "re: x"),
    "another pause": (sleeping(0.001), sleeping(0.002), 2),
    "a field with a default": (noted(order=1), noted(order=1, gift=False), ["noted", {"order": 1}]),
    "one more at its end": (ask("x"), ask("x", "y"), ["re: x", "re: y"]),
}


@pytest.mark.parametrize("what", SAME)
async def test_what_asks_the_same_goes_on(deployed: Deployed, what: str) -> None:
    old, new, result = SAME[what]
    if what == "a field with a default":
        result = result[1]
    assert await deployed.run(named(old), named(new)) == result


async def test_nothing_is_done_again_when_it_ends_so(deployed: Deployed, request: pytest.FixtureRequest) -> None:
    """What the changed code asks was asked before, in another order: durabletask would have it done once more."""
    test = request.node.name

    def acting(*values: str) -> Code:
        async def code(context: OrchestrationContext) -> list[str]:
            acted: list[str] = await when_all([context.call_activity(act, input=[test, value]) for value in values])
            return acted

        return code

    with pytest.raises(OrchestrationFailed):
        await deployed.run(named(acting("a", "b", "c")), named(acting("b", "c", "d")))
    assert await deployed.run(named(acting("e")), named(acting("e"))) == ["e"]
    assert sorted(ACTED[test]) == ["a", "b", "c", "e"]


@pytest.mark.parametrize("how", ["returns", "raises", "continues as new"])
async def test_code_that_ends_where_its_history_goes_on_fails_and_does_not_hang(deployed: Deployed, how: str) -> None:
    @orchestrator
    async def changing(context: OrchestrationContext) -> Any:
        await context.call_activity(double, input=1)
        if how == "raises":
            raise ValueError("changed")
        if how == "continues as new":
            context.continue_as_new(None)

    async def longer(context: OrchestrationContext) -> Any:
        await context.call_activity(double, input=1)
        return await context.call_activity(double, input=2)

    with pytest.raises(OrchestrationFailed) as caught:
        await deployed.run(named(longer), changing)
    error = caught.value.__cause__
    assert isinstance(error, OrchestrationChanged)
    assert (error.step, error.then) == (2, "activity double with 2")
    assert error.now == ("its end, with ValueError: changed" if how == "raises" else "its end")


async def test_the_code_cannot_catch_it_and_go_on(deployed: Deployed) -> None:
    async def old(context: OrchestrationContext) -> Any:
        return [await context.call_activity(double, input=1), await context.call_activity(double, input=2)]

    async def new(context: OrchestrationContext) -> Any:
        try:
            return [await context.call_activity(double, input=2), await context.call_activity(double, input=1)]
        except Exception:
            return "went on"

    with pytest.raises(OrchestrationFailed, match="OrchestrationChanged"):
        await deployed.run(named(old), named(new))


REWORDED: dict[str, tuple[Code, Code, Any]] = {
    "a question": (ask("x", "y"), ask("x?", "y"), ["re: x", "re: y"]),
    "the input of an activity": (call(1), call(2), [2]),
}


@pytest.mark.parametrize("what", REWORDED)
async def test_what_is_asked_in_other_words_keeps_its_answer_and_is_told(
    deployed: Deployed, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    old, new, result = REWORDED[what]
    assert await deployed.run(named(old), named(new)) == result
    told = [record.getMessage() for record in caplog.records if "keeps the answer" in record.getMessage()]
    assert len(told) == 1, "once, and not at each replay"
    # Before it is deployed, a recorded history finds it.
    with pytest.raises(ReplayMismatch):
        replay(deployed.history, named(new))


async def test_another_thread_that_the_code_names_is_not_the_same_question(deployed: Deployed) -> None:
    with pytest.raises(OrchestrationFailed, match="OrchestrationChanged"):
        await deployed.run(named(ask_in("first-thread")), named(ask_in("third-thread")))


async def test_an_orchestration_above_is_told_which_error_it_was(deployed: Deployed) -> None:
    @orchestrator
    async def changing(context: OrchestrationContext) -> str:
        try:
            await context.call_sub_orchestrator("failing")
        except OrchestrationChanged as error:
            return error.now
        return "nothing"

    @orchestrator
    async def failing(context: OrchestrationContext) -> None:
        raise OrchestrationChanged("failing", 1, "this", "that")

    worker = deployed.worker(changing)
    worker.add_orchestrator(failing)
    async with DurableAIAgentClient.connect(deployed.endpoint) as client, worker:
        assert await (await client.schedule_new_orchestration("changing")) == "that"


# --- Two inputs ---------------------------------------------------------------------------------------------------

MOMENT = datetime(2030, 1, 1, 12, tzinfo=timezone(timedelta(hours=2)))


def earlier(value: Any) -> Any:
    with in_form(1):
        return dump_value(value)


@pytest.mark.parametrize(
    ("then", "now"),
    [
        ({"a": 1}, {"a": 1, "b": 2}),
        ({"a": 1, "b": 2}, {"a": 1}),
        ({}, {"a": 1}),
        ([{"a": 1}], [{"a": 1, "b": 2}]),
        (1, 1.0),
        (["a", "b"], ["b", "a"]),
        (earlier(b"bytes"), dump_value(b"bytes")),
        (earlier(MOMENT), dump_value(MOMENT)),
        (dump_value(MOMENT), dump_value(MOMENT.astimezone(UTC))),
        (None, None),
    ],
)
def test_two_versions_may_write_the_same(then: Any, now: Any) -> None:
    assert difference(_activity(then), _activity(now)) is None


@pytest.mark.parametrize(
    ("then", "now"),
    [
        ("x", "y"),
        ("x", None),
        ({"a": 1}, {"a": 2}),
        ({"a": 1}, {"b": 1}),
        ({"a": {"b": [1]}}, {"a": {"b": [2]}}),
        ([1], [1, 1]),
        (1, True),
        (0, ""),
        ("1", 1),
        (base64.b64encode(b"one").decode(), base64.b64encode(b"two").decode()),
        ("2030-01-01", "2030-01-02"),
    ],
)
def test_what_is_not_the_same_is_told(then: Any, now: Any) -> None:
    assert difference(_activity(then), _activity(now)) is not None


def _activity(value: Any) -> Asked:
    return Asked("activity", "a", sent=json.dumps(value))


def test_where_a_history_does_not_say_what_was_asked_the_name_is_compared() -> None:
    asked = Asked("activity", "a", sent="1")
    assert difference(Asked("activity", "a"), asked) is None
    assert difference(Asked("activity", "b"), asked) == ("activity b", "activity a with 1")


def test_of_a_long_question_the_part_is_shown_that_differs() -> None:
    then, now = [Asked("activity", "a", sent=f'"{"x" * 500}{end}{"x" * 500}"') for end in ("then", "now")]
    assert [len(words) < 160 for words in (described(then, now), described(now, then))] == [True, True]
    assert "then" in described(then, now)
    assert "now" in described(now, then)
    assert described(then).endswith("xxx...")
