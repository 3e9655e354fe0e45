"""A conversation goes on while a call waits for a person."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from dafx_actors import ModelRequest, TurnHandle, tool
from dafx_actors.errors import TurnTerminated
from dafx_actors.testing import ScriptedModel
from dafx_actors.transcript import FunctionCallContent, FunctionResultContent
from tests.integration.conftest import Hosting
from tests.integration.test_robustness import Held
from tests.integration.turns import agent, asked_of, asks, in_state, is_balanced, results, sdk

pytestmark = pytest.mark.anyio


class Office:
    """An agent that pays when a person agrees, and can look things up meanwhile."""

    def __init__(self) -> None:
        self.paid: list[int] = []
        self.requests: list[ModelRequest] = []

        @tool(approval=True)
        def pay(amount: int) -> str:
            self.paid.append(amount)
            return "paid"

        @tool
        def book() -> str:
            self.paid.append(-1)
            return "booked"

        @tool(effect="none")
        def look_up(what: str) -> str:
            return f"{what} is fine"

        self.agent = agent(ScriptedModel(self.answer), pay, book, look_up, overlap="beside")

    def answer(self, request: ModelRequest) -> Any:
        self.requests.append(request)
        said, made = request.messages[-1].text, results(request)
        if said == "Pay 5.":
            return asks(("pay", {"amount": 5}))
        if said == "And the order?":
            return asks(("look_up", {"what": "the order"}))
        if said == "Book it.":
            return asks(("book", {}), ids="c-9")
        return str(made[-1]) if made else f"You said: {said}"


def balanced(request: ModelRequest) -> bool:
    """Whether a provider would take it: each call has one result, right behind it."""
    opened: list[str] = []
    for message in request.messages:
        answered = [each.call_id for each in message.contents if isinstance(each, FunctionResultContent)]
        assert sorted(answered) == sorted(opened)
        opened = [each.call_id for each in message.contents if isinstance(each, FunctionCallContent)]
    return not opened


async def test_it_is_answered_with_tools_without_effect_and_the_other_hears_of_it(hosting: Hosting) -> None:
    office = Office()
    async with hosting(office.agent) as client:
        worker = client.get_agent("Worker")
        first: TurnHandle[None] = await worker.start("Pay 5.", thread="here")
        approval = await asked_of(client, thread="here")
        second = await worker.run("And the order?", thread="here")
        third = await worker.run("Hello?", thread="here")
        assert (await first.status()).state == "waiting"
        assert office.paid == []
        await client.approve(approval)
        answer = await first
        transcript = await worker.get_transcript("here")
    assert (second.text, third.text, answer.text) == ("the order is fine", "You said: Hello?", "paid")
    assert office.paid == [5]
    assert all(map(balanced, office.requests))
    assert is_balanced(transcript)
    waits = [each for request in office.requests[1:3] for each in request.messages]
    assert any("waits for a person" in str(content) for message in waits for content in message.contents)
    # The first turn has seen what was said meanwhile.
    assert [message.text for message in office.requests[-1].messages if message.role == "user"] == [
        "And the order?",
        "Hello?",
        "Pay 5.",
    ]


async def test_what_has_an_effect_is_not_called_meanwhile(hosting: Hosting) -> None:
    office = Office()
    async with hosting(office.agent) as client:
        worker = client.get_agent("Worker")
        first: TurnHandle[None] = await worker.start("Pay 5.", thread="here")
        approval = await asked_of(client, thread="here")
        answer = await worker.run("Book it.", thread="here")
        offered = office.requests[-1].tools
        await client.deny(approval)
        await first
        later = await worker.run("Book it.", thread="here")
    assert "while another call waits for a person" in answer.text
    assert [each.name for each in offered] == ["look_up"]
    assert (later.text, office.paid) == ("booked", [-1])


async def test_what_came_while_the_model_was_asked_begins_as_soon_as_a_person_is_waited_for(hosting: Hosting) -> None:
    held, office = Held(), Office()

    async def script(request: ModelRequest) -> Any:
        if request.messages[-1].text == "Pay 5.":
            await held.model.complete(request)
        return office.answer(request)

    office.agent = agent(ScriptedModel(script), *office.agent.tools, overlap="beside")  # type: ignore[attr-defined]
    async with hosting(office.agent) as client:
        worker = client.get_agent("Worker")
        first: TurnHandle[None] = await worker.start("Pay 5.", thread="here")
        await held.called.wait()
        second: TurnHandle[None] = await worker.start("Hello?", thread="here")
        await in_state(second, "queued")
        held.release.set()
        # Long before it would look again by itself.
        with anyio.fail_after(30):
            assert (await second).text == "You said: Hello?"
        await client.approve(await asked_of(client, thread="here"))
        assert (await first).text == "paid"


async def test_a_turn_that_died_while_it_waited_is_found_by_the_next_request(hosting: Hosting) -> None:
    office = Office()
    async with hosting(office.agent) as client:
        worker = client.get_agent("Worker")
        first: TurnHandle[None] = await worker.start("Pay 5.", thread="here", correlation_id="c1")
        await asked_of(client, thread="here")
        async with sdk(client._backend.where.endpoint) as operator:
            await operator.terminate_orchestration("c1", output="by an operator")
        with pytest.raises(TurnTerminated):
            await first
        assert (await worker.run("Hello?", thread="here")).text == "You said: Hello?"
        assert not await client.pending_approvals("Worker", "here")
        assert (await worker.run("Book it.", thread="here")).text == "booked"


async def test_decided_while_the_other_is_asked_both_go_on(hosting: Hosting) -> None:
    held, office = Held(), Office()

    async def script(request: ModelRequest) -> Any:
        if request.messages[-1].text == "Hello?":
            await held.model.complete(request)
        return office.answer(request)

    office.agent = agent(ScriptedModel(script), *office.agent.tools, overlap="beside")  # type: ignore[attr-defined]
    async with hosting(office.agent) as client:
        worker = client.get_agent("Worker")
        first: TurnHandle[None] = await worker.start("Pay 5.", thread="here")
        approval = await asked_of(client, thread="here")
        second: TurnHandle[None] = await worker.start("Hello?", thread="here")
        await held.called.wait()
        await client.approve(approval)
        assert (await first).text == "paid"
        held.release.set()
        assert (await second).text == "You said: Hello?"
        assert (await worker.run("Book it.", thread="here")).text == "booked"
        assert is_balanced(await worker.get_transcript("here"))
    assert all(map(balanced, office.requests))
