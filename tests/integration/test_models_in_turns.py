"""Model calls in a turn: retries by durable timers, typed answers with one repair, and limits."""

from __future__ import annotations

import dataclasses
import json
import time
from datetime import timedelta
from typing import Any

import anyio
import attrs
import pytest
from pydantic import BaseModel
from typing_extensions import TypedDict

from dafx_actors import Limits, ModelReply, RetryPolicy
from dafx_actors.errors import InvalidAnswer, ModelError, TurnDeadlineExceeded, TurnLimitExceeded
from dafx_actors.models.openai import OpenAIChatModel
from dafx_actors.testing import ScriptedModel
from dafx_actors.transcript import (
    ChatMessage,
    FunctionResultContent,
    TextContent,
    TextReasoningContent,
    UsageStats,
)
from tests.integration.conftest import Hosting
from tests.integration.turns import agent, asks, in_state, is_balanced, sdk, using
from tests.provider import Refusal, provider

pytestmark = pytest.mark.anyio

SOON = RetryPolicy(first_retry_interval=timedelta(milliseconds=10), max_number_of_attempts=4)
BUSY = ModelError("rate_limit", "slow down", status=429)


# --- Retries ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("durability", ["step", "turn"])
@pytest.mark.parametrize("kind", ["rate_limit", "server_error", "timeout", "connection", "bad_response"])
async def test_what_may_go_better_is_tried_again(hosting: Hosting, kind: Any, durability: str) -> None:
    model = ScriptedModel(ModelError(kind, "first"), ModelError(kind, "second"), "At last.")
    async with hosting(agent(model, retry=SOON, durability=durability)) as client:
        worker = client.get_agent("Worker")
        answer = await worker.run("Hello", correlation_id="t1")
        response = (await worker.get_transcript(answer.thread)).response("t1")
    assert answer.text == "At last."
    assert response is not None
    retries = response.extra["dafx"]["retries"]
    assert [(each["step"], each["attempt"], each["error"]) for each in retries] == [
        (1, 1, "ModelError"),
        (1, 2, "ModelError"),
    ]
    assert kind in retries[0]["message"]


@pytest.mark.parametrize("kind", ["bad_request", "authentication", "content_filter", "context_length", "not_found"])
async def test_what_cannot_go_better_fails_at_once(hosting: Hosting, kind: Any) -> None:
    model = ScriptedModel(ModelError(kind, "no", status=400))
    async with hosting(agent(model, retry=SOON)) as client:
        with pytest.raises(ModelError) as caught:
            await client.get_agent("Worker").run("Hello")
    assert (caught.value.kind, caught.value.attempts, len(model.requests)) == (kind, 1, 1)


@pytest.mark.parametrize("durability", ["step", "turn"])
async def test_attempts_are_bounded_and_counted(hosting: Hosting, durability: str) -> None:
    model = ScriptedModel(*[BUSY] * 4, "Too late.")
    async with hosting(agent(model, retry=SOON, durability=durability)) as client:
        with pytest.raises(ModelError, match="tried 4 times") as caught:
            await client.get_agent("Worker").run("Hello")
    assert (caught.value.attempts, len(model.requests)) == (4, 4)


async def test_attempts_are_bounded_by_time(hosting: Hosting) -> None:
    policy = RetryPolicy(
        first_retry_interval=timedelta(hours=1), max_number_of_attempts=9, retry_timeout=timedelta(minutes=1)
    )
    async with hosting(agent(ScriptedModel(BUSY), retry=policy)) as client:
        with pytest.raises(ModelError, match="tried once"):
            await client.get_agent("Worker").run("Hello")


async def test_retry_after_is_honoured_by_a_durable_timer_that_holds_no_worker(hosting: Hosting, endpoint: str) -> None:
    asked: list[float] = []

    def busy_at_first(_: Any) -> Any:
        asked.append(time.monotonic())
        return attrs.evolve(BUSY, retry_after=0.7) if len(asked) == 1 else "At last."

    model = ScriptedModel(busy_at_first)
    async with hosting(agent(model, retry=SOON)) as client, sdk(endpoint) as operator:
        handle = await client.get_agent("Worker").start("Hello")
        status = await in_state(handle, "retrying", "completed")
        await handle
        history = await operator.get_orchestration_history(str(handle))
    timers = [each for each in history if type(each).__name__ == "TimerCreatedEvent"]
    assert status.state == "completed" or (status.attempt, "slow down" in (status.error or "")) == (1, True)
    assert len(timers) == 1
    assert asked[1] - asked[0] >= 0.7


async def test_the_providers_refusals_are_typed_retried_and_never_by_its_package(hosting: Hosting) -> None:
    with provider() as openai:
        url = openai.environment["OPENAI_BASE_URL"]
        model: Any = OpenAIChatModel("scripted", base_url=url, api_key="for-tests", keep_alive=False)
        openai.answers = [Refusal(429, "rate_limit_exceeded", {"Retry-After": "0.2"}), Refusal(503), Refusal(500)]
        async with hosting(agent(model, retry=SOON)) as client:
            answer = await client.get_agent("Worker").run("Hello")
            assert (answer.text, len(openai.requests)) == ("Answer to: Hello", 4)
            openai.answers = [Refusal(401, "invalid_api_key")]
            with pytest.raises(ModelError) as caught:
                await client.get_agent("Worker").run("Hello")
        assert (caught.value.kind, len(openai.requests)) == ("authentication", 5)


# --- Typed answers ------------------------------------------------------------------------------------------------


class Pydantic(BaseModel):
    city: str
    celsius: float


@attrs.frozen
class Attrs:
    city: str
    celsius: float


@dataclasses.dataclass
class Data:
    city: str
    celsius: float


class Typed(TypedDict):
    city: str
    celsius: float


GOOD, BAD = '{"city": "Oslo", "celsius": -3.5}', '{"city": "Oslo", "celsius": "cold"}'


@pytest.mark.parametrize("durability", ["step", "turn"])
@pytest.mark.parametrize("kind", [Pydantic, Attrs, Data, Typed])
async def test_an_answer_that_does_not_fit_is_repaired(hosting: Hosting, kind: Any, durability: str) -> None:
    model = ScriptedModel(BAD, GOOD)
    async with hosting(agent(model, durability=durability)) as client:
        answer = await client.get_agent("Worker").run("Weather?", response_format=kind)
    assert answer.value == kind(city="Oslo", celsius=-3.5)
    mistake = "$.celsius: 'cold' is not of type 'number'"
    assert [message.text for message in model.requests[1].messages[-2:]] == [
        BAD,
        f"Your answer does not fit the JSON schema: {mistake}. Answer again, with JSON only.",
    ]


async def test_an_answer_is_repaired_once(hosting: Hosting) -> None:
    model = ScriptedModel("It is cold.", BAD, GOOD)
    async with hosting(agent(model)) as client:
        worker = client.get_agent("Worker")
        thread = worker.get_new_thread()
        with pytest.raises(InvalidAnswer) as caught:
            await worker.run("Weather?", response_format=Pydantic, thread=thread)
        again = await worker.run("Weather?", response_format=Pydantic, thread=thread)
    assert caught.value.text == BAD
    assert "celsius" in caught.value.reason
    assert again.value == Pydantic(city="Oslo", celsius=-3.5)


async def test_a_json_schema_is_held_to(hosting: Hosting) -> None:
    schema = {"type": "array", "items": {"type": "integer"}, "maxItems": 2}
    model = ScriptedModel("[1, 2, 3]", '[1, "2"]', "[1, 2]")
    async with hosting(agent(model)) as client:
        worker = client.get_agent("Worker")
        with pytest.raises(InvalidAnswer):
            await worker.run("Count", response_format=schema)
        assert (await worker.run("Count", response_format=schema)).value == [1, 2]


# --- Limits -------------------------------------------------------------------------------------------------------


def add(a: int) -> int:
    return a


@pytest.mark.parametrize("durability", ["step", "turn"])
@pytest.mark.parametrize("by", ["agent", "request"])
async def test_a_turn_takes_so_many_steps_at_most(hosting: Hosting, by: str, durability: str) -> None:
    calls = [asks(("add", {"a": n})) for n in range(3)]
    limits = Limits(steps=5)
    model = ScriptedModel(*calls, "Hello.")
    how: Any = {"limits": limits} if by == "agent" else {}
    asked: Any = {} if how else {"limits": limits}
    async with hosting(agent(model, add, durability=durability, **how)) as client:
        worker = client.get_agent("Worker")
        with pytest.raises(TurnLimitExceeded) as caught:
            await worker.run("Add", thread="here", **asked)
        transcript = await worker.get_transcript("here")
        assert (await worker.run("Hi", thread="here")).text == "Hello."
    assert (caught.value.limit, caught.value.most, caught.value.needed) == ("steps", 5, 7)
    assert is_balanced(transcript)
    assert len(model.requests) == 4


async def test_a_turn_takes_so_many_tokens_at_most(hosting: Hosting) -> None:
    model = using(asks(("add", {"a": 1})), asks(("add", {"a": 2})))
    async with hosting(agent(model, add, limits=Limits(tokens=20))) as client:
        worker = client.get_agent("Worker")
        with pytest.raises(TurnLimitExceeded) as caught:
            await worker.run("Add", thread="here")
        transcript = await worker.get_transcript("here")
    assert (caught.value.limit, caught.value.most, caught.value.needed) == ("tokens", 20, 30)
    assert is_balanced(transcript)
    failed = transcript.entries[-1]
    assert getattr(failed, "usage", None) == UsageStats(20, 10, 30)


@pytest.mark.parametrize("by", ["agent", "request"])
async def test_a_turn_takes_so_many_seconds_at_most(hosting: Hosting, by: str) -> None:
    async def hang(_: Any) -> str:
        await anyio.sleep_forever()
        return ""

    limits = Limits(seconds=0.3)
    how: Any = {"limits": limits} if by == "agent" else {}
    asked: Any = {} if how else {"limits": limits}
    async with hosting(agent(ScriptedModel(hang), **how)) as client:
        with pytest.raises(TurnDeadlineExceeded):
            await client.get_agent("Worker").run("Go", **asked)


async def test_a_hundred_calls_are_the_default_bound_for_a_model_that_never_ends(hosting: Hosting) -> None:
    model = ScriptedModel(lambda _: asks(("nothing", {})))
    async with hosting(agent(model, add)) as client:
        with pytest.raises(TurnLimitExceeded, match="100 steps"):
            await client.get_agent("Worker").run("Go")
    assert len(model.requests) == 50


async def test_a_filtered_answer_is_typed(hosting: Hosting) -> None:
    filtered = ModelReply(message=ChatMessage("assistant", "I cannot."), finish_reason="content_filter")
    async with hosting(agent(ScriptedModel(filtered))) as client:
        with pytest.raises(ModelError) as caught:
            await client.get_agent("Worker").run("Go")
    assert (caught.value.kind, caught.value.message) == ("content_filter", "I cannot.")


# --- How a reply ended --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("durability", ["step", "turn"])
@pytest.mark.parametrize("reason", ["stop", "length", "recess"])
async def test_the_finish_reason_is_in_the_response_the_transcript_and_the_status(
    hosting: Hosting, durability: str, reason: str
) -> None:
    said = ModelReply(message=ChatMessage("assistant", "The dose is 10"), finish_reason=reason)
    async with hosting(agent(ScriptedModel(said), durability=durability)) as client:
        worker = client.get_agent("Worker")
        turn = await worker.start("How much?", correlation_id="t1")
        answer = await turn
        response = (await worker.get_transcript(answer.thread)).response("t1")
        status = await turn.status()
    assert (answer.text, answer.finish_reason, status.finish_reason) == ("The dose is 10", reason, reason)
    assert response is not None
    assert response.extra["dafx"]["finishReason"] == reason


@pytest.mark.parametrize("durability", ["step", "turn"])
async def test_a_call_in_an_answer_that_was_cut_off_is_not_made(hosting: Hosting, durability: str) -> None:
    cut = attrs.evolve(asks(("add", {"a": 1})), finish_reason="length")
    model = ScriptedModel(cut, asks(("add", {"a": 7})), "Seven.")
    async with hosting(agent(model, add, durability=durability, options={"max_tokens": 9})) as client:
        worker = client.get_agent("Worker")
        answer = await worker.run("Go")
        transcript = await worker.get_transcript(answer.thread)
    assert (answer.text, answer.finish_reason) == ("Seven.", "stop")
    results = [c.result for m in transcript for c in m.contents if isinstance(c, FunctionResultContent)]
    assert "max_tokens=9" in results[0]
    assert results[1] == 7
    assert is_balanced(transcript)


@pytest.mark.parametrize("durability", ["step", "turn"])
@pytest.mark.parametrize(("reason", "kind"), [("length", "length"), ("error", "bad_response")])
async def test_a_model_that_is_cut_at_the_same_place_is_asked_twice(
    hosting: Hosting, durability: str, reason: str, kind: str
) -> None:
    model = ScriptedModel(lambda _: attrs.evolve(asks(("add", {"a": 1})), finish_reason=reason))
    async with hosting(agent(model, add, durability=durability, options={"max_tokens": 9})) as client:
        worker = client.get_agent("Worker")
        thread = worker.get_new_thread()
        with pytest.raises(ModelError, match="max_tokens=9" if reason == "length" else "broke off") as caught:
            await worker.run("Go", thread=thread)
        transcript = await worker.get_transcript(thread)
    assert (caught.value.kind, caught.value.attempts, len(model.requests)) == (kind, 2, 2)
    assert is_balanced(transcript)


# --- Nothing ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("durability", ["step", "turn"])
@pytest.mark.parametrize("contents", [(), (TextContent(""),), (TextReasoningContent("Hm."),)], ids=repr)
async def test_an_empty_answer_is_an_empty_answer(hosting: Hosting, durability: str, contents: Any) -> None:
    model = ScriptedModel(ModelReply(message=ChatMessage("assistant", contents)), "And now?")
    async with hosting(agent(model, durability=durability)) as client:
        worker = client.get_agent("Worker")
        empty = await worker.run("Go", timeout=60)
        assert (empty.text, empty.finish_reason) == ("", "stop")
        assert (await worker.run("On", thread=empty.thread)).text == "And now?"


async def test_a_request_chooses_its_model_and_the_recorded_turn_says_so(hosting: Hosting, endpoint: str) -> None:
    with provider() as server:
        url = server.environment["OPENAI_BASE_URL"]
        model = OpenAIChatModel("usual", base_url=url, api_key="key")
        async with hosting(agent(model)) as client, sdk(endpoint) as operator:
            worker = client.get_agent("Worker")
            await worker.run("Hello", correlation_id="t1", options={"model": "other"})
            await worker.run("Hello")
            recorded = await operator.get_orchestration_state("t1")
    assert [asked["model"] for asked in server.requests] == ["other", "usual"]
    assert recorded is not None
    assert recorded.serialized_input is not None
    assert json.loads(recorded.serialized_input)["request"]["options"] == {"model": "other"}
