"""Tools in a turn: what the model sees of them, how they run, and what a tool may know."""

from __future__ import annotations

import threading
from datetime import timedelta
from typing import Any

import anyio
import pytest

from dafx_actors import (
    ChatMessage,
    ModelReply,
    ModelRequest,
    RetryPolicy,
    ToolContext,
    Turn,
    as_tool,
    durable_agent,
    tool,
)
from dafx_actors.models import UNPARSED_ARGUMENTS
from dafx_actors.testing import ScriptedModel
from dafx_actors.transcript import FunctionCallContent
from tests.integration.conftest import Hosting
from tests.integration.turns import (
    agent,
    asked_of,
    asks,
    in_state,
    is_balanced,
    key_of,
    results,
    results_in,
    tells,
    until,
    using,
)

pytestmark = pytest.mark.anyio


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


# --- How tools run ------------------------------------------------------------------------------------------------


async def test_a_sync_tool_runs_in_a_thread_and_does_not_hold_the_loop(hosting: Hosting) -> None:
    release = threading.Event()

    def wait() -> str:
        assert threading.current_thread() is not threading.main_thread()
        assert release.wait(60)
        return "released"

    async def let_go() -> str:
        release.set()
        return "let go"

    async with hosting(agent(using(asks(("wait", {}), ("let_go", {}))), wait, let_go)) as client:
        answer = await client.get_agent("Worker").run("Go")
    assert answer.text == "released; let go"


async def test_an_async_tool_runs_on_the_agents_loop(hosting: Hosting) -> None:
    threads: list[threading.Thread] = []

    async def where() -> None:
        threads.append(threading.current_thread())

    async with hosting(agent(using(asks(("where", {}))), where)) as client:
        await client.get_agent("Worker").run("Go")
    assert threads == [threading.main_thread()]


async def test_the_calls_of_one_answer_run_at_the_same_time(hosting: Hosting) -> None:
    together = threading.Barrier(3)

    def meet() -> str:
        together.wait(60)
        return "met"

    async with hosting(agent(using(asks(*[("meet", {})] * 3)), meet)) as client:
        answer = await client.get_agent("Worker").run("Go")
    assert answer.text == "met; met; met"


async def test_a_tool_that_is_not_parallel_runs_alone_and_in_its_place(hosting: Hosting) -> None:
    running: list[str] = []
    seen: list[tuple[str, list[str]]] = []

    @tool(parallel=False)
    async def alone() -> str:
        seen.append(("alone", list(running)))
        running.append("alone")
        await anyio.lowlevel.checkpoint()
        running.remove("alone")
        return "alone"

    async def beside(name: str) -> str:
        seen.append((name, list(running)))
        running.append(name)
        await anyio.lowlevel.checkpoint()
        running.remove(name)
        return name

    model = using(asks(("beside", {"name": "a"}), ("alone", {}), ("alone", {}), ("beside", {"name": "b"})))
    async with hosting(agent(model, alone, beside)) as client:
        answer = await client.get_agent("Worker").run("Go")
    assert seen == [("a", []), ("alone", []), ("alone", []), ("b", [])]
    assert answer.text == "a; alone; alone; b"


@pytest.mark.parametrize("durability", ["step", "turn"])
async def test_a_turn_has_as_many_rounds_as_the_model_asks_for(hosting: Hosting, durability: str) -> None:
    model = using(asks(("add", {"a": 1, "b": 2})), asks(("add", {"a": 3, "b": 4}), ("add", {"a": 5, "b": 6})))
    async with hosting(agent(model, add, durability=durability)) as client:
        worker = client.get_agent("Worker")
        answer = await worker.run("Add")
        transcript = await worker.get_transcript(answer.thread)
    assert answer.text == "7; 11"
    assert [message.role for message in answer.messages] == ["assistant", "tool", "assistant", "tool", "assistant"]
    assert answer.usage.total_tokens == 15 + 15 + model_usage(model)
    assert is_balanced(transcript)


def model_usage(model: ScriptedModel) -> int:
    """Tokens of the last call of a scripted model: a word of its texts counts as one."""
    said = " ".join(message.text for message in model.requests[-1].messages)
    return len(said.split()) + len(tells(model.requests[-1]).split())


# --- What the model sees ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("durability", ["step", "turn"])
async def test_what_goes_wrong_is_told_to_the_model_which_corrects_it(hosting: Hosting, durability: str) -> None:
    def fail() -> None:
        raise KeyError("the key")

    unparsed = FunctionCallContent("call-9", "add", extra={UNPARSED_ARGUMENTS: '{"a": 1,'})
    broken = ModelReply(message=ChatMessage("assistant", (unparsed,)), finish_reason="tool_calls")
    wrong = asks(("add", {"a": "one", "b": 2}), ("multiply", {"a": 1}), ("fail", {}), ("add", {}))
    model = using(wrong, broken, asks(("add", {"a": 1, "b": 2})))
    async with hosting(agent(model, add, fail, durability=durability)) as client:
        answer = await client.get_agent("Worker").run("Add")
    invalid, unknown, raised, missing = results(model.requests[1])
    assert "`a`: input should be a valid integer" in invalid
    assert "there is no tool 'multiply'; there are add, fail" in unknown
    assert raised == "Error: KeyError: 'the key'"
    assert "`a`" in missing
    assert "`b`" in missing
    assert "no JSON object" in results(model.requests[2])[0]
    assert answer.text == "3"


async def test_what_went_wrong_is_marked_in_the_transcript(hosting: Hosting) -> None:
    model = using(asks(("add", {"a": 1, "b": 2}), ("multiply", {})))
    async with hosting(agent(model, add)) as client:
        worker = client.get_agent("Worker")
        answer = await worker.run("Add", thread="here", correlation_id="t1")
        found = results_in(await worker.get_transcript(answer.thread))
    assert [each.extra["dafx"] for each in found] == [
        {"key": key_of("t1")},
        {"key": key_of("t1", index=1), "failed": True},
    ]


@pytest.mark.parametrize("ids", ["", "call"])
async def test_a_model_may_give_every_call_the_same_id(hosting: Hosting, ids: str) -> None:
    twice = [asks(("add", {"a": n, "b": 0}), ("add", {"a": n, "b": 1}), ids=ids or "x") for n in (1, 5)]
    model = using(*twice)
    async with hosting(agent(model, add)) as client:
        answer = await client.get_agent("Worker").run("Add")
    assert results(model.requests[1]) == [1, 2]
    assert answer.text == "5; 6"


async def test_a_result_that_json_cannot_hold_is_an_error_that_the_model_sees(hosting: Hosting) -> None:
    def bad() -> Any:
        return {"it": object()}

    def worse() -> Any:
        return float("nan")

    def annotated() -> int:
        return "text"  # type: ignore[return-value]

    model = using(asks(("bad", {}), ("worse", {}), ("annotated", {})))
    async with hosting(agent(model, bad, worse, annotated)) as client:
        answer = await client.get_agent("Worker").run("Go")
    first, second, third = results(model.requests[1])
    assert "cannot be stored" in first
    assert "JSON has no nan" in second
    assert "does not fit int" in third
    assert answer.text


async def test_a_megabyte_of_result_goes_through(hosting: Hosting) -> None:
    def much() -> str:
        return "x" * 1_000_000

    async with hosting(agent(ScriptedModel(asks(("much", {})), lambda r: str(len(results(r)[0]))), much)) as client:
        answer = await client.get_agent("Worker").run("Go")
    assert answer.text == "1000000"


@pytest.mark.parametrize("durability", ["step", "turn"])
async def test_tool_choice_is_for_the_first_call_only(hosting: Hosting, durability: str) -> None:
    model = using(asks(("add", {"a": 1, "b": 2})))
    async with hosting(agent(model, add, durability=durability)) as client:
        await client.get_agent("Worker").run("Add", tool_choice="required")
    assert [request.tool_choice for request in model.requests] == ["required", None]
    assert [[each.name for each in request.tools] for request in model.requests] == [["add"], ["add"]]


@pytest.mark.parametrize("durability", ["step", "turn"])
async def test_tools_can_be_switched_off_for_a_request(hosting: Hosting, durability: str) -> None:
    called: list[int] = []

    def note() -> None:
        called.append(1)

    model = using(asks(("note", {})))
    async with hosting(agent(model, note, durability=durability)) as client:
        answer = await client.get_agent("Worker").run("Go", enable_tool_calls=False, tool_choice="required")
    assert answer.text == "Error: there is no tool 'note'; there are none"
    assert ([request.tools for request in model.requests], called) == ([(), ()], [])
    assert model.requests[0].tool_choice is None


async def test_an_agents_own_code_may_ask_for_tools(hosting: Hosting) -> None:
    @durable_agent
    class Direct:
        async def respond(self, turn: Turn) -> ChatMessage | str:
            if turn.messages[-1].role == "user":
                return asks(("add", {"a": 20, "b": 22})).message
            return f"It is {turn.messages[-1].contents[0].result}."  # type: ignore[union-attr]

        @tool
        async def add(self, a: int, b: int) -> int:
            return a + b

    async with hosting(Direct) as client:
        answer = await client.get_agent(Direct).run("Add")
    assert answer.text == "It is 42."


# --- What a tool may know -----------------------------------------------------------------------------------------


async def test_a_tool_knows_its_thread_its_turn_and_what_was_said(hosting: Hosting) -> None:
    seen: list[ToolContext] = []
    said: list[list[str]] = []

    def look(context: ToolContext) -> None:
        said.append([message.text for message in context.transcript])
        seen.append(context)

    model = using("Hello.", asks(("look", {})), asks(("look", {})))
    async with hosting(agent(model, look)) as client:
        worker = client.get_agent("Worker")
        thread = worker.get_new_thread()
        await worker.run("First", thread=thread)
        await worker.run("Second", thread=thread, correlation_id="second")
    assert said == [["First", "Hello.", "Second", ""], ["First", "Hello.", "Second", "", "", ""]]
    assert [(each.thread, each.correlation_id, each.call_id, each.attempt) for each in seen] == [
        (thread, "second", "call-0", 1)
    ] * 2
    assert [each.idempotency_key for each in seen] == [key_of("second", step, thread=thread) for step in (1, 2)]


async def test_progress_is_seen_while_the_tool_runs(hosting: Hosting) -> None:
    release = anyio.Event()

    async def work(context: ToolContext) -> str:
        for done in range(3):
            context.report_progress({"done": done})
        await release.wait()
        return "done"

    async with hosting(agent(using(asks(("work", {}))), work)) as client:
        handle = await client.get_agent("Worker").start("Go", thread="here", correlation_id="t1")

        async def reported() -> bool:
            return (await handle.status()).progress == {key_of("t1"): {"done": 2}}

        await until(reported)
        assert (await handle.status()).state == "running"
        release.set()
        answer = await handle
        ended = await handle.status()
    assert (answer.text, ended.state, ended.progress) == ("done", "completed", {})


# --- Time-outs and retries ----------------------------------------------------------------------------------------

SOON = RetryPolicy(first_retry_interval=timedelta(milliseconds=10), max_number_of_attempts=3)


async def test_a_tool_that_fails_is_tried_again_with_the_same_key(hosting: Hosting) -> None:
    seen: list[tuple[int, str]] = []

    @tool(retry=SOON)
    async def flaky(context: ToolContext) -> str:
        seen.append((context.attempt, context.idempotency_key))
        if len(seen) < 3:
            raise ConnectionError("not yet")
        return "at last"

    async with hosting(agent(using(asks(("flaky", {}))), flaky)) as client:
        answer = await client.get_agent("Worker").run("Go", thread="here", correlation_id="t1")
    assert answer.text == "at last"
    assert seen == [(attempt, key_of("t1")) for attempt in (1, 2, 3)]


async def test_the_retries_of_a_tool_are_bounded_and_mistakes_are_not_retried(hosting: Hosting) -> None:
    calls: list[str] = []

    @tool(retry=SOON)
    def always() -> None:
        calls.append("always")
        raise OSError("never")

    @tool(retry=SOON)
    def strict(number: int) -> None:
        calls.append("strict")

    model = using(asks(("always", {}), ("strict", {"number": "x"})))
    async with hosting(agent(model, always, strict)) as client:
        answer = await client.get_agent("Worker").run("Go")
    assert calls == ["always"] * 3
    assert answer.text.startswith("Error: OSError: never; Error: The arguments do not fit")


async def test_a_tool_has_a_time_limit_per_attempt(hosting: Hosting) -> None:
    release = threading.Event()
    begun: list[int] = []

    @tool(timeout=0.05, retry=SOON)
    async def slow(context: ToolContext) -> str:
        begun.append(context.attempt)
        if context.attempt < 3:
            await anyio.sleep_forever()
        return "quick"

    @tool(timeout=timedelta(seconds=0.05))
    def blocks() -> None:
        release.wait(60)

    async with hosting(agent(using(asks(("slow", {}), ("blocks", {}))), slow, blocks)) as client:
        try:
            answer = await client.get_agent("Worker").run("Go")
        finally:
            release.set()
    assert begun == [1, 2, 3]
    assert answer.text == "quick; Error: TimeoutError: blocks did not finish within 0.05 s"


# --- Agents as tools ----------------------------------------------------------------------------------------------


def physicist(*replies: Any, **how: Any) -> type:
    return agent(ScriptedModel(*replies), name="Physicist", **how)


def told(request: ModelRequest) -> str:
    return f"{request.messages[-1].text} ({len(request.messages)} messages)"


@pytest.mark.parametrize(("new_thread", "seen"), [(True, 2), (False, 4)])
async def test_an_agent_may_be_a_tool(hosting: Hosting, new_thread: bool, seen: int) -> None:
    inner = physicist(told)
    once, again = asks(("Physicist", {"request": "One"})), asks(("Physicist", {"request": "Two"}))
    outer = agent(using(once, again), as_tool(inner, new_thread=new_thread))
    async with hosting(inner, outer) as client:
        worker = client.get_agent("Worker")
        thread = worker.get_new_thread()
        answer = await worker.run("Ask", thread=thread)
        same = await client.get_agent(inner).get_transcript(str(thread))
    assert answer.text == f"Two ({seen} messages)"
    assert bool(same.entries) is not new_thread


async def test_calls_of_one_inner_agent_run_in_parallel_also_in_one_thread(hosting: Hosting) -> None:
    inner = physicist(told)
    model = using(asks(("Physicist", {"request": "One"}), ("Physicist", {"request": "Two"})))
    async with hosting(inner, agent(model, as_tool(inner, new_thread=False))) as client:
        answer = await client.get_agent("Worker").run("Ask")
    assert sorted(text.split()[1] for text in answer.text.split("; ")) == ["(2", "(4"]


async def test_an_inner_agents_error_is_told_to_the_outer_model(hosting: Hosting) -> None:
    inner = physicist(KeyError("lost"))
    model = using(asks(("Physicist", {"request": "One"}), ("Physicist", {"question": "Two"})))
    async with hosting(inner, agent(model, as_tool(inner))) as client:
        answer = await client.get_agent("Worker").run("Ask")
    failed, invalid = answer.text.split("; ", 1)
    assert "of agent 'Physicist' failed with KeyError" in failed
    assert "`request`" in invalid


async def test_an_inner_agents_approval_is_found_through_the_outer_thread(hosting: Hosting) -> None:
    paid: list[int] = []

    @tool(approval=True)
    def pay(amount: int) -> str:
        paid.append(amount)
        return f"paid {amount}"

    inner = agent(using(asks(("pay", {"amount": 5}))), pay, name="Cashier")
    outer = agent(using(asks(("Cashier", {"request": "Pay"}))), as_tool(inner))
    async with hosting(inner, outer) as client:
        worker = client.get_agent("Worker")
        thread = worker.get_new_thread()
        handle = await worker.start("Pay", thread=thread)
        pending = await asked_of(client, "Worker", thread)
        assert (pending.tool, pending.thread.agent, paid) == ("pay", "Cashier", [])
        await client.approve(pending, by="ana")
        answer = await handle
        assert await client.pending_approvals("Worker", thread) == []
    assert (answer.text, paid) == ("paid 5", [5])


async def test_cancel_goes_down_to_the_inner_turn(hosting: Hosting) -> None:
    @tool(approval=True)
    def pay() -> str:
        return "paid"

    inner = agent(using(asks(("pay", {}))), pay, name="Cashier")
    outer = agent(using(asks(("Cashier", {"request": "Pay"}))), as_tool(inner))
    async with hosting(inner, outer) as client:
        handle = await client.get_agent("Worker").start("Pay", thread="here", correlation_id="t1")
        await asked_of(client, "Worker", await handle.thread())
        assert await handle.cancel("enough", by="ana")
        child = client.get_agent("Cashier").get_turn(key_of("t1"))
        status = await in_state(child, "cancelled")
        await in_state(handle, "cancelled")
        transcript = await client.get_agent("Cashier").get_transcript(await child.thread())
    assert "enough" in (status.error or "")
    assert is_balanced(transcript)
