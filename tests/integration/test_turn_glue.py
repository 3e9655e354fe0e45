"""What holds a turn's steps together: each a small thing, of which nothing else tells when it is not so."""

from __future__ import annotations

from typing import Any

import anyio
import anyio.from_thread
import anyio.lowlevel
import pytest
from durabletask.worker import TaskHubGrpcWorker

from dafx_actors import Approval, DurableAIAgentClient, DurableAIAgentWorker, Limits, as_tool, tool
from dafx_actors.errors import ApprovalExpired, TurnCancelled, TurnDeadlineExceeded, TurnTerminated
from dafx_actors.scheduler import EmbeddedScheduler
from dafx_actors.testing import AgentHost, ScriptedModel
from dafx_actors.worker._work import Work
from tests.integration.conftest import Hosting
from tests.integration.test_overlap import Steered, start, told
from tests.integration.test_robustness import Held
from tests.integration.turns import agent, asked_of, asks, in_state, key_of, results_in, sdk, until, using

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
            await client.get_agent("Worker").run("Go", thread="here", correlation_id="t1")
        await in_state(client.get_agent("Inner").get_turn(key_of("t1")), "cancelled")
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
        assert (await worker.run("Next", thread="here")).text.startswith("Next")


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


async def test_a_turn_that_joined_another_hears_of_its_end() -> None:
    """By a word, and not when it looks again: the clock of this test stands still."""
    steered = Steered()
    async with AgentHost(agent(steered.model, steered.work, overlap="steer")) as host:
        first = await start(host.client, "first")
        await steered.begun.wait()
        second = await start(host.client, "second")
        await told(host.client, "steered", "second")
        steered.release.set()
        with anyio.fail_after(30):
            assert (await first).text == (await second).text


async def test_a_knock_at_a_turn_that_waits_in_line_makes_it_ask_once() -> None:
    """Anybody can raise the event that tells of a grant; the thread says who is active."""
    held = Held()
    async with AgentHost(agent(held.model)) as host, sdk(host.endpoint) as operator:
        await start(host.client, "first")
        await held.called.wait()
        second = await start(host.client, "second")
        await in_state(second, "queued")

        async def questions() -> int:
            history = await operator.get_orchestration_history(str(second))
            return sum(type(event).__name__ == "EntityOperationCalledEvent" for event in history)

        before = await questions()
        await operator.raise_orchestration_event(str(second), "granted")

        async def asked_again() -> bool:
            return await questions() > before

        await until(asked_again)
        asked = before
        while asked != (asked := await questions()):
            await anyio.sleep(0.2)
        held.release.set()
        assert (await second).text == "second (4 messages)"
    assert asked == before + 1


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


async def test_a_turn_that_was_stopped_while_its_calls_were_put_on_record_makes_none_of_them() -> None:
    """Stopped by the word alone, of which the thread knows nothing: only the turn itself can heed it."""
    acted: list[str] = []
    recording, may_record = anyio.Event(), anyio.Event()
    token = anyio.lowlevel.current_token()

    @tool
    def pay(note: str) -> str:
        acted.append("paid")
        return "paid"

    def on_work(work: Work) -> None:
        if (work.kind, work.name) == ("thread", "record") and not recording.is_set():
            anyio.from_thread.run_sync(recording.set, token=token)
            anyio.from_thread.run(may_record.wait, token=token)

    async with EmbeddedScheduler() as scheduler, sdk(scheduler.endpoint) as operator:
        worker = DurableAIAgentWorker(TaskHubGrpcWorker(host_address=scheduler.endpoint), on_work=on_work)
        # So large that it is told the thread by itself, and not together with the call.
        worker.add_agent(agent(using(asks(("pay", {"note": "x" * 70_000}))), pay))
        async with worker, DurableAIAgentClient.connect(scheduler.endpoint) as client:
            turn = await client.get_agent("Worker").start("Go")
            await recording.wait()
            await operator.raise_orchestration_event(turn.correlation_id, "cancel", data={"reason": "enough"})
            may_record.set()
            with pytest.raises(TurnCancelled, match="enough"):
                await turn
            history = await operator.get_orchestration_history(turn.correlation_id)
    assert acted == []
    assert not [event for event in history if "tool.pay" in getattr(event, "name", "")]
