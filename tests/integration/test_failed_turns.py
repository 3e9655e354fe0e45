"""What a turn did before it failed is known to the next one: the model does not pay twice."""

from __future__ import annotations

from typing import Any

import pytest

from dafx_actors import DataContent, Limits, ModelRequest, durable_agent, tool
from dafx_actors.errors import ModelError, TurnCancelled, TurnLimitExceeded
from dafx_actors.testing import ScriptedModel
from dafx_actors.transcript import FunctionCallContent, Transcript
from tests.integration.conftest import Hosting
from tests.integration.turns import agent, asked_of, asks, is_balanced

pytestmark = pytest.mark.anyio

IMAGE = DataContent.from_bytes(b"\x89PNG" * 100, "image/png")


class Provider:
    """Takes no images, no large conversations, and no rude words; pays what is not paid yet."""

    def __init__(self) -> None:
        self.model = ScriptedModel(self.answer)
        self.shown: list[str] = []

    def answer(self, request: ModelRequest) -> Any:
        said = [message.text for message in request.messages]
        said += [str(content) for message in request.messages for content in message.contents]
        self.shown.append("\n".join(said))
        if any(isinstance(content, DataContent) for message in request.messages for content in message.contents):
            raise ModelError("bad_request", "this model takes no images")
        if sum(map(len, said)) > 50_000:
            raise ModelError("context_length", "this is too long")
        if any("RUDE" in text for text in said):
            raise ModelError("content_filter", "RUDE")
        if any("pay(" in text or "receipt" in text for text in said):
            return "It is paid."
        return asks(("pay", {"amount": 950}))


@pytest.mark.parametrize("durability", ["step", "turn"])
@pytest.mark.parametrize("kind", ["context_length", "bad_request", "content_filter"])
async def test_the_turn_after_one_that_was_refused_is_answered_and_does_not_pay_again(
    hosting: Hosting, kind: str, durability: Any
) -> None:
    provider, paid = Provider(), list[int]()
    gives = {"context_length": "receipt 17 " + "x" * 500_000, "bad_request": "receipt 17", "content_filter": "RUDE"}

    @tool
    def pay(amount: int) -> str:
        paid.append(amount)
        return gives[kind]

    def script(request: ModelRequest) -> Any:
        # The image: what the provider makes of it shows in the call after the tool only.
        if kind == "bad_request" and any(message.role == "tool" for message in request.messages):
            raise ModelError("bad_request", "this model takes no images")
        return provider.answer(request)

    model = ScriptedModel(script)
    async with hosting(agent(model, pay, durability=durability)) as client:
        worker = client.get_agent("Worker")
        thread = worker.get_new_thread()
        with pytest.raises(ModelError) as refused:
            await worker.run("Pay the bill.", thread=thread)
        if kind == "content_filter":
            # The result itself is what the provider does not take: it is found out once.
            with pytest.raises(ModelError):
                await worker.run("Is it paid?", thread=thread)
        with pytest.raises(ModelError, match="images"):
            await worker.run(["What is this?", IMAGE], thread=thread)
        answer = await worker.run("Is it paid?", thread=thread)
        assert is_balanced(await worker.get_transcript(thread))
    assert refused.value.kind == kind
    assert (answer.text, paid) == ("It is paid.", [950])


async def test_what_waited_for_a_person_when_its_turn_was_cancelled_is_known_not_to_have_acted(
    hosting: Hosting,
) -> None:
    seen: list[str] = []

    @tool(approval=True)
    def pay(amount: int) -> None:
        raise AssertionError("nobody approved it")

    def script(request: ModelRequest) -> Any:
        seen.extend(message.text for message in request.messages)
        return "Not paid." if len(request.messages) > 2 else asks(("pay", {"amount": 950}))

    async with hosting(agent(ScriptedModel(script), pay)) as client:
        worker = client.get_agent("Worker")
        thread = worker.get_new_thread()
        turn = await worker.start("Pay the bill.", thread=thread)
        await asked_of(client)
        assert await turn.cancel("enough", by="Ann")
        with pytest.raises(TurnCancelled):
            await turn
        assert (await worker.run("Is it paid?", thread=thread)).text == "Not paid."
    [told] = [text for text in seen if "pay(" in text]
    assert "the call was not made" in told
    assert "cancelled by Ann: enough" in told


def results_of(transcript: Transcript) -> list[str]:
    calls = [
        content for message in transcript for content in message.contents if isinstance(content, FunctionCallContent)
    ]
    assert calls
    return [str(getattr(content, "result", "")) for message in transcript for content in message.contents]


@pytest.mark.parametrize("durability", ["step", "turn"])
async def test_a_call_beyond_the_limit_is_recorded_as_not_made(hosting: Hosting, durability: Any) -> None:
    @durable_agent(model=ScriptedModel(asks(("pay", {"amount": 1}))), limits=Limits(steps=1), durability=durability)
    class Worker:
        instructions = "Pay."

        @tool
        def pay(self, amount: int) -> None:
            """Pay."""
            raise AssertionError("it is beyond the limit")

    async with hosting(Worker) as client:
        worker = client.get_agent("Worker")
        thread = worker.get_new_thread()
        with pytest.raises(TurnLimitExceeded):
            await worker.run("Pay the bill.", thread=thread)
        transcript = await worker.get_transcript(thread)
    assert any("the call was not made" in result for result in results_of(transcript))
    assert not any("may have acted" in result for result in results_of(transcript))
