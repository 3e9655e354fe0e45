"""Cancel and deadlines: a turn stops before its next step, and its thread goes on as if it had never been cut off."""

from __future__ import annotations

import os
from collections.abc import Generator
from datetime import timedelta
from typing import Any

import anyio
import pytest

from dafx_actors import DurableAIAgentClient, Limits, RetryPolicy, as_tool, tool
from dafx_actors._json.books import CancelMark
from dafx_actors._json.operations import Cancel, Cancelled
from dafx_actors.errors import (
    ModelError,
    ThreadBusy,
    TurnCancelled,
    TurnDeadlineExceeded,
    TurnLimitExceeded,
    TurnNotFound,
)
from dafx_actors.models.openai import OpenAIChatModel
from dafx_actors.testing import ScriptedModel
from dafx_actors.worker import _gate as _seam
from tests.integration import races
from tests.integration.conftest import Hosting
from tests.integration.test_robustness import Held
from tests.integration.turns import (
    agent,
    asked_of,
    asks,
    in_state,
    is_balanced,
    key_of,
    program,
    results_in,
    using,
)
from tests.provider import Calls, Hold, Provider, provider, unbalanced

pytestmark = pytest.mark.anyio


@pytest.fixture
def openai() -> Generator[Provider]:
    with provider() as running:
        yield running


def model_of(openai: Provider) -> OpenAIChatModel:
    url = openai.environment["OPENAI_BASE_URL"]
    return OpenAIChatModel("scripted", base_url=url, api_key="for-tests", keep_alive=False)


class Busy:
    """A tool that is in the middle of something until it is let go."""

    def __init__(self) -> None:
        self.begun = anyio.Event()
        self.release = anyio.Event()
        self.acted: list[str] = []

    async def work(self) -> str:
        self.begun.set()
        await self.release.wait()
        self.acted.append("work")
        return "worked"

    @tool(parallel=False)
    async def after(self) -> str:
        self.acted.append("after")
        return "after"


async def test_a_turn_that_waits_in_line_is_cancelled_at_once(hosting: Hosting) -> None:
    held = Held()
    async with hosting(agent(held.model)) as client:
        worker = client.get_agent("Worker")
        first = await worker.start("First", thread="here")
        await held.called.wait()
        second = await worker.start("Second", thread="here")
        await in_state(second, "queued")
        assert await second.cancel("not needed", by="ana")
        with pytest.raises(TurnCancelled) as caught:
            await second
        held.release.set()
        assert (await first).text == "First (2 messages)"
        assert (await worker.run("Third", thread="here")).text == "Third (6 messages)"
        transcript = await worker.get_transcript("here")
    assert (caught.value.by, caught.value.reason) == ("ana", "not needed")
    assert len(held.model.requests) == 2
    assert transcript.response(second.correlation_id) is not None


async def test_a_cancellation_may_arrive_before_the_turn_begins(hosting: Hosting) -> None:
    async with hosting(agent(ScriptedModel())) as client:
        worker = client.get_agent("Worker")
        early = Cancel(turn="t1", mark=CancelMark.of(by="ana", reason="early"))
        outcome = await client._executor.tell(worker.get_thread("here"), early)
        with pytest.raises(TurnCancelled, match="early"):
            await worker.run("Hello", thread="here", correlation_id="t1")
    assert outcome == Cancelled("t1", early.mark)


async def test_a_model_call_on_its_way_is_aborted(hosting: Hosting, openai: Provider) -> None:
    openai.answers = [Hold()]
    async with hosting(agent(model_of(openai))) as client:
        worker = client.get_agent("Worker")
        handle = await worker.start("Hello", thread="here")
        await anyio.to_thread.run_sync(openai.held.wait, 60)
        assert await handle.cancel("enough")
        with pytest.raises(TurnCancelled, match="enough"):
            await handle
        assert await anyio.to_thread.run_sync(openai.hung_up.wait, 60)
        assert (await worker.run("Again", thread="here")).text == "Answer to: Again"


async def test_watching_for_the_end_of_a_turn_does_not_hold_the_loop(
    hosting: Hosting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Model calls are watched once they take a while; durabletask's own way to begin that waits for its end."""
    monkeypatch.setattr(_seam, "_WATCH_AFTER", 0.0)
    release = anyio.Event()

    async def script(request: Any) -> str:
        text = str(request.messages[-1].text)
        if text == "slow":
            await release.wait()
        return text

    async with hosting(agent(ScriptedModel(script))) as client:
        worker = client.get_agent("Worker")
        slow = [await worker.start("slow") for _ in range(3)]
        assert [(await worker.run("quick")).text for _ in range(3)] == ["quick"] * 3
        release.set()
        assert [(await each).text for each in slow] == ["slow"] * 3


HOSTS = """
import sys
from dafx_actors import DurableAIAgentWorker, durable_agent

@durable_agent
class Worker:
    instructions = "Answer."

worker = DurableAIAgentWorker.connect(sys.argv[1])
worker.add_agent(Worker)
worker.start()
print("ready", flush=True)
sys.stdin.read()
"""

CANCELS = """
import sys
import anyio
from dafx_actors import DurableAIAgentClient

async def main():
    print("ready", flush=True)
    async with DurableAIAgentClient.connect(sys.argv[1]) as client:
        sys.exit(0 if await client.get_agent("Worker").get_turn("t1").cancel("enough", by="elsewhere") else 3)

anyio.run(main)
"""


async def test_another_process_cancels_and_the_workers_process_aborts_its_request(
    endpoint: str, openai: Provider
) -> None:
    openai.answers = [Hold()]
    environment = {**os.environ, **openai.environment}
    async with program(HOSTS, endpoint, env=environment), DurableAIAgentClient.connect(endpoint) as client:
        handle = await client.get_agent("Worker").start("Hello", correlation_id="t1")
        await anyio.to_thread.run_sync(openai.held.wait, 60)
        async with program(CANCELS, endpoint) as process:
            assert await process.wait() == 0
        with pytest.raises(TurnCancelled) as caught:
            await handle
        assert await anyio.to_thread.run_sync(openai.hung_up.wait, 60)
    assert caught.value.by == "elsewhere"


async def test_a_running_tool_is_left_to_finish_and_its_result_is_not_used(hosting: Hosting, openai: Provider) -> None:
    busy = Busy()
    openai.answers = [Calls([("work", {}), ("after", {})])]
    async with hosting(agent(model_of(openai), busy.work, busy.after)) as client:
        worker = client.get_agent("Worker")
        handle = await worker.start("Go", thread="here")
        await busy.begun.wait()
        assert await handle.cancel("enough", by="ana")
        with pytest.raises(TurnCancelled):
            await handle
        busy.release.set()
        # The next turn in the thread is taken by a provider that refuses a call without its result.
        answer = await worker.run("Next", thread="here")
        transcript = await worker.get_transcript("here")
    assert answer.text == "Answer to: Next"
    assert is_balanced(transcript)
    results = results_in(transcript)
    told = sorted(str(each.result) for each in results)
    assert "the call was not made" in told[0]
    assert "may have acted" in told[1]
    assert "after" not in busy.acted
    assert all(unbalanced(each["messages"]) is None for each in openai.requests)


async def test_a_turn_is_cancelled_while_it_waits_for_approval(hosting: Hosting) -> None:
    acted: list[str] = []

    @tool(approval=True)
    def pay() -> None:
        acted.append("paid")

    async with hosting(agent(using(asks(("pay", {})), "Hello."), pay)) as client:
        worker = client.get_agent("Worker")
        handle = await worker.start("Pay", thread="here")
        await asked_of(client)
        assert await handle.cancel()
        with pytest.raises(TurnCancelled):
            await handle
        assert await client.pending_approvals("Worker") == []
        assert (await worker.run("Next", thread="here")).text == "Hello."
        assert is_balanced(await worker.get_transcript("here"))
    assert acted == []


async def test_a_turn_is_cancelled_between_two_attempts_of_its_model(hosting: Hosting) -> None:
    later = RetryPolicy(first_retry_interval=timedelta(hours=1), max_number_of_attempts=2)
    model = ScriptedModel(ModelError("rate_limit", "slow down"))
    async with hosting(agent(model, retry=later)) as client:
        handle = await client.get_agent("Worker").start("Hello")
        await in_state(handle, "retrying")
        assert await handle.cancel()
        with pytest.raises(TurnCancelled):
            await handle
    assert len(model.requests) == 1


async def test_cancelling_twice_and_after_the_end(hosting: Hosting) -> None:
    held = Held()
    async with hosting(agent(held.model)) as client:
        worker = client.get_agent("Worker")
        handle = await worker.start("Hello")
        await held.called.wait()
        assert [await handle.cancel("enough", by="ana") for _ in range(2)] == [True, True]
        await in_state(handle, "cancelled")
        # The same once more is fine, as where the first acknowledgement was lost; another one came too late.
        assert await handle.cancel("enough", by="ana")
        assert not await handle.cancel("another", by="bob")
        held.release.set()
        ended = await worker.start("Again")
        await ended
        assert not await ended.cancel()
        with pytest.raises(TurnNotFound):
            await worker.get_turn("unheard-of").cancel()


async def test_what_its_thread_never_knew_cannot_be_cancelled(hosting: Hosting) -> None:
    held = Held()
    async with hosting(agent(held.model, overlap="reject")) as client:
        worker = client.get_agent("Worker")
        await worker.start("First", thread="here")
        await held.called.wait()
        rejected = await worker.start("Second", thread="here")
        with pytest.raises(ThreadBusy):
            await rejected
        assert not await rejected.cancel()
        held.release.set()


# --- Deadlines ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("durability", ["step", "turn"])
async def test_a_deadline_stops_a_model_call(hosting: Hosting, durability: str) -> None:
    held = Held()
    async with hosting(agent(held.model, durability=durability)) as client:
        worker = client.get_agent("Worker")
        with pytest.raises(TurnDeadlineExceeded) as caught:
            await worker.run("Hello", thread="here", timeout=0.3, cancel_on_timeout=True)
        held.release.set()
        assert (await worker.run("Next", thread="here")).text == "Next (4 messages)"
    assert caught.value.seconds == 0.3


async def test_a_deadline_counts_while_the_turn_waits_in_line(hosting: Hosting) -> None:
    held = Held()
    async with hosting(agent(held.model)) as client:
        worker = client.get_agent("Worker")
        first = await worker.start("First", thread="here")
        await held.called.wait()
        with pytest.raises(TurnDeadlineExceeded):
            await worker.run("Second", thread="here", timeout=0.3, cancel_on_timeout=True)
        held.release.set()
        assert (await first).text == "First (2 messages)"
        assert (await worker.run("Third", thread="here")).text == "Third (6 messages)"


async def test_a_deadline_stops_waiting_for_approval_and_leaves_the_agents_limits(hosting: Hosting) -> None:
    @tool(approval=True)
    def pay() -> None: ...

    def add(a: int) -> int:
        return a

    model = using(asks(("pay", {})), asks(*[("add", {"a": 1})] * 3))
    async with hosting(agent(model, pay, add, limits=Limits(steps=3))) as client:
        worker = client.get_agent("Worker")
        with pytest.raises(TurnDeadlineExceeded):
            await worker.run("Pay", timeout=0.3, cancel_on_timeout=True)
        with pytest.raises(TurnLimitExceeded):
            await worker.run("Add", timeout=60, cancel_on_timeout=True)


async def test_a_deadline_reaches_a_running_tools_inner_turn(hosting: Hosting) -> None:
    held = Held()
    inner = agent(held.model, name="Inner")
    outer = agent(using(asks(("Inner", {"request": "Hello"}))), as_tool(inner))
    async with hosting(inner, outer) as client:
        turn, seconds = "", 0.5
        while not held.called.is_set():  # a machine that does other things, too
            turn, seconds = f"t{seconds}", seconds * 4
            with pytest.raises(TurnDeadlineExceeded):
                await client.get_agent("Worker").run(
                    "Go", thread="here", correlation_id=turn, timeout=seconds, cancel_on_timeout=True
                )
        # By the turn above, or by the time that this left it, whichever comes first.
        await in_state(client.get_agent("Inner").get_turn(key_of(turn)), "cancelled", "failed")
        held.release.set()


async def test_a_deadline_must_lie_ahead(hosting: Hosting) -> None:
    async with hosting(agent(ScriptedModel())) as client:
        with pytest.raises(ValueError, match="timeout"):
            await client.get_agent("Worker").run("Hello", timeout=0, cancel_on_timeout=True)


async def test_a_tool_does_not_act_after_the_acknowledgement_of_a_cancel() -> None:
    """The short form of `python -m tests.integration.races`."""
    report = await races.run(races=60, seed=1)
    assert report.races == 60
    assert not report.read_after, report
    assert not report.unbalanced, report
