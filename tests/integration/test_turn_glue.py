"""What holds a turn's steps together: each a small thing, of which nothing else tells when it is not so."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from dafx_actors import Approval, Limits, as_tool, tool
from dafx_actors.errors import ApprovalExpired, TurnDeadlineExceeded, TurnTerminated
from dafx_actors.testing import ScriptedModel
from tests.integration.conftest import Hosting
from tests.integration.test_robustness import Held
from tests.integration.turns import agent, asked_of, asks, in_state, results_in, sdk, using

pytestmark = pytest.mark.anyio


async def test_of_two_limits_of_time_the_earlier_counts(hosting: Hosting) -> None:
    held = Held()
    async with hosting(agent(held.model, limits=Limits(seconds=0.3))) as client:
        with anyio.fail_after(25), pytest.raises(TurnDeadlineExceeded) as caught:
            await client.get_agent("Worker").run("Go", timeout=30, cancel_on_timeout=True)
        held.release.set()
    assert caught.value.seconds == 0.3


async def test_an_approval_that_fails_the_turn_ends_the_turns_of_agents_beside_it(hosting: Hosting) -> None:
    held = Held()
    inner = agent(held.model, name="Inner")

    @tool(approval=Approval(timeout=0.5, on_timeout="fail"))
    def pay() -> str:
        return "paid"

    outer = agent(using(asks(("Inner", {"request": "Hello"}), ("pay", {}))), as_tool(inner), pay)
    async with hosting(inner, outer) as client:
        with pytest.raises(ApprovalExpired):
            await client.get_agent("Worker").run("Go", correlation_id="t1")
        await in_state(client.get_agent("Inner").get_turn("t1.1.0"), "cancelled")
        held.release.set()


# durabletask's in-memory scheduler goes on with what was terminated when the answer of a step arrives.
@pytest.mark.parametrize("endpoint", ["embedded"], indirect=True)
async def test_a_dead_turn_does_not_hold_a_thread_that_rejects(hosting: Hosting, endpoint: str) -> None:
    held = Held()
    async with hosting(agent(held.model, overlap="reject")) as client, sdk(endpoint) as operator:
        worker = client.get_agent("Worker")
        dead = await worker.start("Never answered", thread="here")
        await held.called.wait()
        await operator.terminate_orchestration(dead.correlation_id)
        with pytest.raises(TurnTerminated):
            await dead
        held.release.set()
        assert (await worker.run("Next", thread="here")).text == "Next (2 messages)"


async def test_a_deadline_of_a_call_is_not_on_record_where_another_ended_the_turn(hosting: Hosting) -> None:
    """Both are over at about the same time; the one whose turn has ended says nothing any more."""
    at_once = Approval(timeout=0.05, on_timeout="fail")
    later = Approval(timeout=0.4, on_timeout="fail")

    @tool(approval=at_once)
    def pay() -> str:
        return "paid"

    @tool(approval=later)
    def ship() -> str:
        return "shipped"

    async with hosting(agent(using(asks(("pay", {}), ("ship", {}))), pay, ship)) as client:
        worker = client.get_agent("Worker")
        with pytest.raises(ApprovalExpired) as caught:
            await worker.run("Go", thread="here")
        told = results_in(await worker.get_transcript("here"))
    assert caught.value.tool == "pay"
    decided: list[Any] = [each.extra["dafx"].get("decision") for each in told]
    assert [each["action"] for each in decided if each] == ["expire"]


async def test_an_expired_ask_is_of_no_interest_to_people(hosting: Hosting) -> None:
    @tool(approval=Approval(timeout=0.05))
    def pay() -> str:
        return "paid"

    @tool(approval=True)
    def ship() -> str:
        return "shipped"

    async with hosting(agent(ScriptedModel(asks(("pay", {}), ("ship", {})), "done"), pay, ship)) as client:
        handle = await client.get_agent("Worker").start("Go")
        while [each.tool for each in await client.pending_approvals("Worker")] != ["ship"]:
            await anyio.sleep(0.01)
        await client.approve(await asked_of(client))
        assert (await handle).text == "done"
