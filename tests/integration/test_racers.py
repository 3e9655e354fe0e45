"""Turns that an orchestration gives up are cancelled: a racer that lost stops."""

from __future__ import annotations

from typing import Any

import pytest
from durabletask.task import TaskCancelledError

from dafx_actors import (
    DurableAIAgentClient,
    DurableAIAgentWorker,
    OrchestrationContext,
    TurnHandle,
    orchestrator,
    tool,
    when_any,
)
from dafx_actors.errors import TurnCancelled
from dafx_actors.orchestration import OrchestrationAgentExecutor
from dafx_actors.testing import AgentHost, ScriptedModel, replay
from tests.integration.test_robustness import Held
from tests.integration.turns import agent, asks, in_state, using

pytestmark = pytest.mark.anyio


@orchestrator
async def race(context: OrchestrationContext, how: str) -> list[Any]:
    """The fast one is answered, the slow one is given up; what comes after that is replayed."""
    fast, slow = context.get_agent("Fast"), context.get_agent("Slow")

    async def ask_slow() -> str:
        return (await slow.run("Hi.", correlation_id="slow")).text

    racer = context.create_task(ask_slow()) if how == "coroutine" else slow.run("Hi.", correlation_id="slow")
    winner = await when_any([fast.run("Hi."), racer])
    said, cancelled = [racer.cancel(), racer.cancel()], ""
    after = await fast.run("And now?")
    try:
        await racer
    except TaskCancelledError:
        cancelled = "cancelled"
    return [(await winner).text, after.text, *said, cancelled]  # type: ignore[attr-defined]


@pytest.mark.parametrize("sessions", [True, False])
@pytest.mark.parametrize("how", ["task", "coroutine"])
async def test_a_racer_that_lost_stops(endpoint: str, how: str, *, sessions: bool) -> None:
    held = Held()
    fast = agent(ScriptedModel(lambda request: request.messages[-1].text), name="Fast")
    worker = DurableAIAgentWorker.connect(endpoint, extended_sessions=sessions)
    worker.add_agent(fast, agent(held.model, name="Slow"))
    worker.add_orchestrator(race)
    async with DurableAIAgentClient.connect(endpoint) as client, worker:
        result = await (await client.schedule_new_orchestration(race, input=how))
        assert result == ["Hi.", "And now?", True, False, "cancelled"]
        turn: TurnHandle[None] = client.get_agent("Slow").get_turn("slow")
        status = await in_state(turn, "cancelled")
        assert "the orchestration gave it up" in str(status.error)
        with pytest.raises(TurnCancelled):
            await turn


async def test_no_tool_of_the_loser_begins_to_act() -> None:
    acted: list[str] = []

    @tool(approval=True)
    def pay() -> str:
        acted.append("paid")
        return "paid"

    slow = agent(using(asks(("pay", {}))), pay, name="Slow")
    fast = agent(ScriptedModel(lambda request: request.messages[-1].text), name="Fast")
    async with AgentHost(slow, fast, orchestrators=[race]) as host:
        handle = await host.client.schedule_new_orchestration(race, input="task")
        assert (await handle)[2:] == [True, False, "cancelled"]
        assert not await host.client.pending_approvals("Slow")
        replay(await host.history(handle), race)
    assert not acted


async def test_an_orchestration_that_an_earlier_version_began_is_replayed_as_it_went(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Earlier versions left turns to themselves: `cancel()` gave False, and nothing was sent."""

    @orchestrator
    async def left(context: OrchestrationContext) -> list[bool]:
        fast, slow = context.get_agent("Fast"), context.get_agent("Slow")
        loser = slow.run("Hi.")
        await fast.run("Hi.")
        said = [loser.cancel()]
        await fast.run("And now?")
        return [*said, loser.cancel()]

    fast = agent(ScriptedModel(lambda request: request.messages[-1].text), name="Fast")
    slow = agent(ScriptedModel("At last."), name="Slow")
    with monkeypatch.context() as earlier:
        earlier.setattr(OrchestrationAgentExecutor, "_cancel", lambda *_: False)
        async with AgentHost(fast, slow, orchestrators=[left]) as host:
            handle = await host.client.schedule_new_orchestration(left)
            assert await handle == [False, False]
            history = await host.history(handle)
    replay(history, left)
