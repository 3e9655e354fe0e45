"""A turn that failed goes on once its cause is gone: what was done is not done again."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import anyio
import pytest

from dafx_actors import Limits, ModelRequest, ToolContext, TurnHandle, as_tool, tool
from dafx_actors.errors import (
    ModelError,
    ModelNotConfigured,
    RetryRefused,
    TurnCancelled,
    TurnNotFound,
    TurnTerminated,
)
from dafx_actors.testing import AgentHost, ScriptedModel, call
from dafx_actors.testing._faults import Fault
from tests.integration.conftest import Hosting
from tests.integration.test_robustness import Held
from tests.integration.turns import agent, asked_of, asks, is_balanced, key_of, results, sdk

pytestmark = pytest.mark.anyio


class Provider:
    """Pays as it is asked to; refuses after that, until its quota is there."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error or ModelError("authentication", "the key is wrong", status=401)
        self.works = False
        self.asked: list[int] = []
        self.model = ScriptedModel(self.answer)

    def answer(self, request: ModelRequest) -> Any:
        self.asked.append(len(request.messages))
        if not results(request):
            return asks(("pay", {"amount": 950}))
        if not self.works:
            raise self.error
        return f"It is {results(request)[0]}."


@pytest.mark.parametrize("durability", ["step", "turn"])
@pytest.mark.parametrize("effect", ["repeatable", "once"])
async def test_what_was_made_is_not_made_again(hosting: Hosting, durability: Any, effect: Any) -> None:
    if (durability, effect) == ("turn", "once"):
        pytest.skip("a whole turn has no such tools")
    provider, paid = Provider(), list[int]()

    @tool(effect=effect)
    def pay(amount: int) -> str:
        paid.append(amount)
        return "paid"

    async with hosting(agent(provider.model, pay, durability=durability)) as client:
        worker = client.get_agent("Worker")
        turn: TurnHandle[None] = await worker.start("Pay the bill.", thread="here", correlation_id="c1")
        with pytest.raises(ModelError):
            await turn
        assert (await turn.status()).state == "failed"
        provider.works = True
        assert await client.get_agent("Worker").get_turn("c1").retry()
        answer = await turn
        transcript = await worker.get_transcript("here")
        status = await turn.status()
        with pytest.raises(RetryRefused, match="answered"):
            await turn.retry()
        again = await worker.run("Pay the bill.", thread="here", correlation_id="c1")
    assert (answer.text, paid, again.text) == ("It is paid.", [950], "It is paid.")
    assert provider.asked[-1] == provider.asked[-2] == 4
    assert status.state == "completed"
    assert is_balanced(transcript)
    assert [type(entry).__name__ for entry in transcript.entries] == ["Request", "Response"]
    assert answer.usage is not None
    assert answer.usage.total_tokens > 15


async def test_a_retry_may_call_tools_of_its_own_each_under_a_key_of_its_own(hosting: Hosting) -> None:
    keys: list[str] = []
    fails = [True]

    def script(request: ModelRequest) -> Any:
        made = sum(message.role == "tool" for message in request.messages)
        if made == 1 and fails[0]:
            raise ModelError("bad_request", "not now")
        return asks(("note", {"n": made})) if made < 3 else "All noted."

    @tool(effect="once")
    def note(n: int, context: ToolContext) -> int:
        keys.append(context.idempotency_key)
        return n

    async with hosting(agent(ScriptedModel(script), note)) as client:
        turn: TurnHandle[None] = await client.get_agent("Worker").start("Note.", thread="here")
        with pytest.raises(ModelError):
            await turn
        fails.clear()
        fails.append(False)
        assert await turn.retry()
        assert (await turn).text == "All noted."
    assert len(set(keys)) == len(keys) == 3


async def test_a_mistake_of_configuration_is_retried_by_the_same_run(hosting: Hosting) -> None:
    replies: list[Any] = [ModelError("authentication", "the key is wrong", status=401), "Hello."]
    async with hosting(agent(ScriptedModel(lambda _: replies.pop(0)))) as client:
        worker = client.get_agent("Worker")
        with pytest.raises(ModelError):
            await worker.run("Hi.", thread="here", correlation_id="c1")
        answer = await worker.run("Hi.", thread="here", correlation_id="c1")
        transcript = await worker.get_transcript("here")
    assert (answer.text, replies) == ("Hello.", [])
    assert [message.text for message in transcript] == ["Hi.", "Hello."]


async def test_what_was_paid_for_is_not_retried_by_the_same_run(hosting: Hosting) -> None:
    provider = Provider()

    @tool
    def pay(amount: int) -> str:
        return "paid"

    async with hosting(agent(provider.model, pay)) as client:
        worker = client.get_agent("Worker")
        for _ in range(2):
            with pytest.raises(ModelError):
                await worker.run("Pay.", thread="here", correlation_id="c1")
    assert len(provider.asked) == 2


async def test_a_model_that_was_missing(hosting: Hosting, monkeypatch: pytest.MonkeyPatch) -> None:
    model = ScriptedModel("Here I am.")
    there: list[bool] = []

    def make() -> ScriptedModel:
        if not there:
            raise ModelNotConfigured("no model is configured")
        return model

    async with hosting(agent(make)) as client:  # type: ignore[arg-type]
        turn: TurnHandle[None] = await client.get_agent("Worker").start("Hi.", correlation_id="c1")
        with pytest.raises(ModelNotConfigured):
            await turn
        there.append(True)
        assert await turn.retry()
        assert (await turn).text == "Here I am."


async def test_it_waits_for_the_turn_that_runs_and_can_be_cancelled_then(hosting: Hosting) -> None:
    held, broken = Held(), [True]

    async def script(request: ModelRequest) -> Any:
        if request.messages[-1].text == "first":
            if broken:
                raise ModelError("bad_request", "no")
            return "first, at last"
        return await held.model.complete(request)

    async with hosting(agent(ScriptedModel(script))) as client:
        worker = client.get_agent("Worker")
        first: TurnHandle[None] = await worker.start("first", thread="here")
        with pytest.raises(ModelError):
            await first
        second: TurnHandle[None] = await worker.start("second", thread="here")
        await held.called.wait()
        broken.clear()
        assert await first.retry()
        with anyio.fail_after(60):
            while (await first.status()).state != "queued":
                await anyio.sleep(0.01)
        assert not await first.retry()
        cancelled = await first.cancel("never mind", by="Ann")
        with pytest.raises(TurnCancelled, match="never mind"):
            await first
        held.release.set()
        await second
        with pytest.raises(RetryRefused, match="cancelled"):
            await first.retry()
        transcript = await worker.get_transcript("here")
    assert cancelled
    assert [type(entry).__name__ for entry in transcript.entries] == ["Request", "Response", "Request", "Response"]


async def test_it_waits_for_the_turn_that_runs_and_goes_on_then(hosting: Hosting) -> None:
    held, broken = Held(), [True]

    async def script(request: ModelRequest) -> Any:
        if request.messages[-1].text == "first":
            if broken:
                raise ModelError("bad_request", "no")
            return "first, at last"
        return await held.model.complete(request)

    async with hosting(agent(ScriptedModel(script))) as client:
        worker = client.get_agent("Worker")
        first: TurnHandle[None] = await worker.start("first", thread="here")
        with pytest.raises(ModelError):
            await first
        second: TurnHandle[None] = await worker.start("second", thread="here")
        await held.called.wait()
        broken.clear()
        assert await first.retry()
        held.release.set()
        await second
        assert (await first).text == "first, at last"


async def test_what_an_operator_ended_is_not_taken_up_again(hosting: Hosting) -> None:
    paid: list[int] = []

    @tool(approval=True)
    def pay(amount: int) -> str:
        paid.append(amount)
        return "paid"

    def script(request: ModelRequest) -> Any:
        made = results(request)
        return "Done." if made and made[-1] == "paid" else asks(("pay", {"amount": 5}))

    async with hosting(agent(ScriptedModel(script), pay)) as client:
        turn: TurnHandle[None] = await client.get_agent("Worker").start("Pay.", thread="here", correlation_id="c1")
        first = await asked_of(client, thread="here")
        async with sdk(client._backend.where.endpoint) as operator:
            await operator.terminate_orchestration("c1", output="by an operator")
        with pytest.raises(TurnTerminated):
            await turn
        with pytest.raises(RetryRefused, match="terminated"):
            await turn.retry()
    assert first.tool == "pay"
    assert not paid


async def test_what_ran_for_another_turn_is_not_retried(hosting: Hosting) -> None:
    child = agent(ScriptedModel(ModelError("bad_request", "no")), name="Child")
    parent = agent(ScriptedModel(call("Child", request="Hi."), "It failed."), as_tool(child))
    async with hosting(child, parent) as client:
        turn: TurnHandle[None] = await client.get_agent("Worker").start("Go.", thread="here", correlation_id="c1")
        assert (await turn).text == "It failed."
        with pytest.raises(RetryRefused, match="another agent"):
            await client.get_agent("Child").get_turn(key_of("c1")).retry()
        with pytest.raises(TurnNotFound):
            await client.get_agent("Worker").get_turn("nobody").retry()


async def test_an_answer_that_did_not_fit_is_asked_for_again(hosting: Hosting) -> None:
    replies: list[Any] = ["no JSON", "still none", '{"n": 1}']
    model = ScriptedModel(lambda _: replies.pop(0))
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    async with hosting(agent(model)) as client:
        turn = await client.get_agent("Worker").start("A number.", thread="here", response_format=schema)
        with pytest.raises(ValueError, match="does not fit"):
            await turn
        assert await turn.retry()
        answer = await turn
    assert answer.value == {"n": 1}
    roles = [message.role for message in model.requests[-1].messages]
    assert roles[-1] == "user"


async def test_a_deadline_begins_anew(hosting: Hosting) -> None:
    held = Held()
    async with hosting(agent(held.model)) as client:
        turn: TurnHandle[None] = await client.get_agent("Worker").start(
            "Hi.", thread="here", limits=Limits(seconds=0.5)
        )
        with pytest.raises(TimeoutError):
            await turn
        held.release.set()
        assert await turn.retry()
        assert (await turn).text == "Hi. (2 messages)"


async def test_a_crash_at_any_step_of_a_retry_repeats_nothing_that_was_recorded() -> None:
    """Each point that a retried turn passes, once: the worker dies there."""

    def hosted() -> tuple[AgentHost, list[int], Provider]:
        provider, paid = Provider(), list[int]()

        @tool(effect="once")
        def pay(amount: int) -> str:
            paid.append(amount)
            return "paid"

        return AgentHost(agent(provider.model, pay)), paid, provider

    async def retried(planned: Callable[[AgentHost], Fault | None]) -> tuple[str, list[int], list[tuple[Any, ...]]]:
        host, paid, provider = hosted()
        async with host:
            turn = await host.client.get_agent("Worker").start("Pay the bill.", thread="here")
            with pytest.raises(ModelError):
                await turn
            provider.works = True
            before = len(host.passed)
            fault = planned(host)
            assert await turn.retry()
            answer = await turn
            assert fault is None or fault.point is not None
            passed = [(point.when, point.kind, point.name) for point in host.passed[before:]]
            return answer.text, paid, passed

    text, paid, points = await retried(lambda _: None)
    assert (text, paid) == ("It is paid.", [950])
    assert len(points) > 6
    for when, kind, name in sorted(set(points)):
        plan = functools.partial(AgentHost.crash, **{when: kind}, name=name)
        assert (await retried(plan))[:2] == ("It is paid.", [950]), (when, kind, name)
