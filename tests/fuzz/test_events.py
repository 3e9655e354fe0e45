"""Events that a stranger raises for a turn, and orchestrations of ours that a stranger starts, with any data."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Awaitable, Callable, Generator
from pathlib import Path
from typing import Any

import anyio
import anyio.from_thread
import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dafx_actors import (
    Approval,
    DurableAIAgentClient,
    DurableAIAgentWorker,
    ModelReply,
    TurnHandle,
    durable_agent,
    tool,
)
from dafx_actors.decisions import PendingApproval
from dafx_actors.errors import OrchestrationFailed, TurnCancelled
from dafx_actors.ids import tell_name, turn_name
from dafx_actors.models import ModelRequest
from dafx_actors.scheduler import EmbeddedScheduler
from dafx_actors.testing import ScriptedModel
from dafx_actors.transcript import ChatMessage, FunctionCallContent
from tests.fuzz.inputs import examples, json_values

PATIENCE = 30.0


def sign_then_answer(request: ModelRequest) -> ModelReply:
    if request.messages[-1].role == "user":
        return ModelReply(message=ChatMessage("assistant", (FunctionCallContent("call_0", "sign", {}),)))
    (result,) = request.messages[-1].contents
    return ModelReply(message=ChatMessage("assistant", f"{getattr(result, 'result', None)}"))


@durable_agent(model=ScriptedModel(sign_then_answer))
class Notary:
    instructions = "You are a notary."

    @tool(approval=Approval())
    def sign(self) -> str:
        return "signed"


@attrs.frozen
class Office:
    """A scheduler, a worker and a client, on an event loop of their own."""

    portal: anyio.from_thread.BlockingPortal
    client: DurableAIAgentClient
    numbers: itertools.count[int] = attrs.field(factory=itertools.count)

    def run(self, function: Callable[..., Awaitable[Any]], *args: Any) -> Any:
        async def in_time() -> Any:
            with anyio.fail_after(PATIENCE):
                return await function(*args)

        return self.portal.call(in_time)

    async def start(self, thread: str, number: int) -> TurnHandle[None]:
        agent = self.client.get_agent(Notary)
        return await agent.start(f"Request {number}", thread=thread, correlation_id=f"{thread}.{number}")

    async def asked(self, thread: str, number: int) -> PendingApproval:
        while True:
            for approval in await self.client.pending_approvals(Notary, thread):
                if approval.correlation_id == f"{thread}.{number}":
                    return approval
            await anyio.sleep(0.01)

    async def raise_events(self, turn: str, events: list[tuple[str, Any]]) -> None:
        stranger = self.client.get_orchestration(turn)
        for name, data in events:
            await stranger.raise_event(name, data)


@pytest.fixture(scope="module")
def office(tmp_path_factory: pytest.TempPathFactory) -> Generator[Office]:
    folder: Path = tmp_path_factory.mktemp("office")
    with EmbeddedScheduler(folder / "dafx.db").on_a_thread() as scheduler:
        worker = DurableAIAgentWorker.connect(scheduler.endpoint)
        worker.add_agent(Notary)
        with (
            anyio.from_thread.start_blocking_portal() as portal,
            portal.wrap_async_context_manager(worker),
            portal.wrap_async_context_manager(portal.call(functools.partial(in_loop, scheduler.endpoint))) as client,
        ):
            yield Office(portal, client)


async def in_loop(endpoint: str) -> DurableAIAgentClient:
    return DurableAIAgentClient.connect(endpoint)


odd = json_values | st.fixed_dictionaries(
    {}, optional={"granted": json_values, "action": st.sampled_from(["approve", "retry", 1]), "arguments": json_values}
)
some_events = st.lists(st.tuples(st.sampled_from(["granted", "decision", "?"]), odd), min_size=1, max_size=4)


@examples(8)
@given(first=some_events, second=some_events)
def test_odd_events_neither_end_nor_hold_a_turn(
    office: Office, first: list[tuple[str, Any]], second: list[tuple[str, Any]]
) -> None:
    thread = f"t{next(office.numbers)}"

    async def scene() -> list[str]:
        turns = [await office.start(thread, 0)]
        asked = await office.asked(thread, 0)  # so the other one waits in line
        turns.append(await office.start(thread, 1))
        for turn, events in zip(turns, (first, second), strict=True):
            named = [(f"decision.{asked.key}" if name == "decision" else name, data) for name, data in events]
            await office.raise_events(turn.correlation_id, named)
        await office.client.approve(asked)
        answers = [(await turns[0]).text]
        second_asked = await office.asked(thread, 1)
        await office.client.approve(second_asked)
        return [*answers, (await turns[1]).text]

    assert office.run(scene) == ["signed", "signed"]


@examples(8)
@given(data=json_values, waits=st.booleans())
def test_an_event_cancel_cancels_whatever_comes_with_it(office: Office, data: Any, waits: bool) -> None:
    thread = f"t{next(office.numbers)}"

    async def scene() -> str:
        turns = [await office.start(thread, 0)]
        asked = await office.asked(thread, 0)  # so the other one waits in line
        turns.append(await office.start(thread, 1))
        await office.raise_events(turns[waits].correlation_id, [("cancel", data)])
        with pytest.raises(TurnCancelled):
            await turns[waits]
        await office.client.approve(asked if waits else await office.asked(thread, 1))
        answer = await turns[not waits]
        transcript = await office.client.get_agent(Notary).get_transcript(thread)
        ended = transcript.response(turns[waits].correlation_id)
        assert ended is not None
        assert ended.error is not None
        assert ended.error.error_code == "TurnCancelled"
        return answer.text

    assert office.run(scene) == "signed"


@examples(15)
@given(name=st.sampled_from([turn_name("Notary"), tell_name("Notary")]), data=odd | st.just({"thread": "t"}))
def test_orchestrations_of_ours_that_are_started_with_anything_end_with_a_reason(
    office: Office, name: str, data: Any
) -> None:
    async def scene() -> None:
        started = await office.client.schedule_new_orchestration(name, input=data)
        with contextlib.suppress(OrchestrationFailed):
            await started
        state = await started.state()
        assert state is not None
        if state.failure_details is not None:
            assert state.failure_details.error_type.endswith(("ValueError", "InvalidThreadId"))

    office.run(scene)
