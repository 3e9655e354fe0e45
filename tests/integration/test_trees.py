"""Agents that use agents: their limits, their cancellation and their names are those of one tree."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import anyio
import pytest

from dafx_actors import (
    ChatMessage,
    DurableAIAgentClient,
    DurableAIAgentWorker,
    Limits,
    ModelReply,
    ModelRequest,
    ToolContext,
    Turn,
    UsageStats,
    as_tool,
    tool,
)
from dafx_actors._json.document import Outline
from dafx_actors.errors import TurnCancelled, TurnDeadlineExceeded, TurnLimitExceeded
from dafx_actors.handles import TurnHandle
from dafx_actors.scheduler import EmbeddedScheduler
from dafx_actors.testing import AgentHost, ScriptedModel
from dafx_actors.transcript import FunctionCallContent
from tests.histories import nested
from tests.integration.conftest import Hosting
from tests.integration.turns import agent, asks, in_state, is_balanced, results, sdk, tells, using

pytestmark = pytest.mark.anyio


def answer(text: str = "found", tokens: int = 0) -> ModelReply:
    usage = UsageStats(tokens, 0, tokens) if tokens else None
    return ModelReply(message=ChatMessage("assistant", text), usage=usage, finish_reason="stop")


def again(name: str) -> ModelReply:
    """A model that never has enough of another agent."""
    call = FunctionCallContent("c", name, {"request": "go on"})
    return ModelReply(message=ChatMessage("assistant", [call]), usage=UsageStats(10, 5, 15), finish_reason="tool_calls")


def forever(*names: str) -> ScriptedModel:
    turns: Iterator[str] = iter(names * 1000)
    return ScriptedModel(lambda _: again(next(turns)))


# --- Limits -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("limits", "most"), [(Limits(steps=9), 9), (Limits(tokens=100), 7), (Limits(depth=3), 40)])
async def test_agents_that_use_each_other_for_ever_end_at_the_limit_of_the_first(
    hosting: Hosting, limits: Limits, most: int
) -> None:
    ping, pong = forever("Pong"), forever("Ping")
    one = agent(ping, as_tool("Pong"), name="Ping", limits=Limits(steps=40))
    other = agent(pong, as_tool("Ping"), name="Pong", limits=Limits(steps=40))
    async with hosting(one, other) as client:
        with pytest.raises(TurnLimitExceeded):
            await client.get_agent("Ping").run("Go", limits=limits)
    assert 2 <= len(ping.requests) + len(pong.requests) <= most


async def test_eight_agents_may_stand_one_below_the_other_and_the_next_call_is_refused_in_words(
    hosting: Hosting,
) -> None:
    asked: list[str] = []

    def deeper(request: ModelRequest) -> Any:
        if told := results(request):
            return str(told[0])
        asked.append("down")
        return asks(("Down", {"request": "deeper"}))

    async with hosting(agent(ScriptedModel(deeper), as_tool("Down"), name="Down")) as client:
        deepest = await client.get_agent("Down").run("Go")
        assert (len(asked), "any deeper" in deepest.text) == (9, True)
        asked.clear()
        flat = await client.get_agent("Down").run("Go", limits=Limits(depth=0))
        assert (len(asked), "any deeper" in flat.text) == (1, True)


async def test_what_agents_took_counts_in_the_turn_that_used_them_also_where_they_failed(hosting: Hosting) -> None:
    def reply(request: ModelRequest) -> Any:
        if "fail" in request.messages[-1].text:
            return asks(("nothing", {}), ("nothing", {}))
        return answer(tokens=1000)

    inner = agent(ScriptedModel(reply), name="Inner", limits=Limits(steps=2))
    calls = asks(("Inner", {"request": "look"}), ("Inner", {"request": "fail"}))
    model = ScriptedModel(calls, lambda request: answer(tells(request), tokens=1))
    async with hosting(inner, agent(model, as_tool(inner))) as client:
        response = await client.get_agent("Worker").run("Go")
        transcript = await client.get_agent("Worker").get_transcript(response.thread)
    assert "at its limit of 2 steps" in response.text
    assert "{" not in response.text
    assert response.usage.total_tokens == 15 + 1000 + 15 + 1
    # Two model calls and two calls; a model call of each inner turn.
    stored = transcript.response(response.correlation_id)
    assert stored is not None
    assert stored.extra["dafx"]["steps"] == 6


async def test_agents_at_the_same_time_share_what_is_left(hosting: Hosting) -> None:
    inner = ScriptedModel(lambda _: answer(tokens=100))
    model = using(asks(*[("Inner", {"request": f"part {number}"}) for number in range(4)]))
    async with hosting(agent(inner, name="Inner"), agent(model, as_tool("Inner"))) as client:
        response = await client.get_agent("Worker").run("Go", limits=Limits(steps=8))
        assert response.text.count("found") == 2
        assert response.text.count("nothing is left for it of the steps") == 2
        assert len(inner.requests) == 2


async def test_a_request_cannot_lift_what_the_author_wrote(hosting: Hosting) -> None:
    unwritten, written = forever("nothing"), forever("nothing")
    async with hosting(agent(written, name="Bound", limits=Limits(steps=5)), agent(unwritten, name="Free")) as client:
        for name, most in (("Bound", 5), ("Free", 130)):
            with pytest.raises(TurnLimitExceeded) as caught:
                await client.get_agent(name).run("Go", limits=Limits(steps=130))
            assert caught.value.most == most
        with pytest.raises(TurnLimitExceeded) as caught:
            await client.get_agent("Bound").run("Go", limits=Limits(steps=3))
    assert caught.value.most == 3


@pytest.mark.parametrize("durability", ["step", "turn"])
async def test_a_request_cannot_lift_the_time_that_the_author_wrote(hosting: Hosting, durability: Any) -> None:
    async def never(_: ModelRequest) -> str:
        await anyio.sleep_forever()
        raise AssertionError

    bound = agent(ScriptedModel(never), limits=Limits(seconds=0.2), durability=durability)
    async with hosting(bound) as client:
        with pytest.raises(TurnDeadlineExceeded, match=r"0\.2"):
            await client.get_agent("Worker").run("Go", limits=Limits(seconds=3600))


# --- Cancel -------------------------------------------------------------------------------------------------------


class Below:
    """What happens in the agent at the bottom, which is held in the middle of something."""

    def __init__(self) -> None:
        self.held = anyio.Event()
        self.go = anyio.Event()
        self.acted: list[str] = []
        self.model = ScriptedModel(asks(("gate", {}), ("act", {}), ("pay", {})), tells)

    async def _wait(self) -> None:
        self.held.set()
        await self.go.wait()

    def agent(self, kind: str) -> type:
        below = self

        @tool(parallel=False)
        async def gate() -> str:
            await below._wait()
            return "open"

        @tool(parallel=False)
        async def act() -> str:
            below.acted.append("act")
            return "acted"

        @tool(parallel=False, effect="once")
        async def pay() -> str:
            below.acted.append("pay")
            return "paid"

        async def instructions(self: Any, turn: Turn) -> str:
            if kind == "model":
                await below._wait()
            return "Do as you are told."

        tools = [gate, act] if kind == "whole" else [gate, act, pay]
        made = agent(below.model, *tools, name="Below", durability="turn" if kind == "whole" else "step")
        made.instructions = instructions  # type: ignore[attr-defined]
        return made


@pytest.mark.parametrize(("kind", "replies"), [("model", 0), ("tools", 1), ("whole", 1)])
async def test_nothing_of_the_tree_begins_after_a_cancel_though_nobody_passes_it_on(
    hosting: Hosting, endpoint: str, kind: str, replies: int
) -> None:
    below = Below()
    middle = agent(using(asks(("Below", {"request": "go"}))), as_tool("Below"), name="Middle")
    top = ScriptedModel(asks(("Middle", {"request": "go"})), tells)
    async with (
        hosting(agent(top, as_tool("Middle")), middle, below.agent(kind)) as client,
        sdk(endpoint) as operator,
    ):
        handle = await client.get_agent("Worker").start("Go", correlation_id="top")
        await below.held.wait()
        await operator.suspend_orchestration("top")
        await in_state(handle, "suspended")
        assert await handle.cancel("enough", by="ana")
        below.go.set()
        middle_turn, below_turn = await children(client, handle)
        for turn in (below_turn, middle_turn):
            status = await in_state(turn, "cancelled")
            assert "enough" in (status.error or "")
        await operator.resume_orchestration("top")
        with pytest.raises(TurnCancelled, match="enough"):
            await handle
        transcript = await client.get_agent("Below").get_transcript(await below_turn.thread())
    assert (len(below.model.requests), below.acted, len(top.requests)) == (replies, [], 1)
    assert is_balanced(transcript)


async def children(client: DurableAIAgentClient, handle: TurnHandle[Any]) -> list[TurnHandle[Any]]:
    """The turns below a turn, one below the other."""
    found: list[TurnHandle[Any]] = []
    thread = await handle.thread()
    while True:
        document = await client._executor.document(thread)
        below = [child.raw for child in Outline.of(document).children]
        if not below:
            return found
        found.append(client.get_agent(below[0]["agent"]).get_turn(below[0]["correlationId"]))
        thread = await found[-1].thread()


async def test_nothing_of_the_tree_begins_when_its_time_is_over() -> None:
    below = Below()
    top = agent(using(asks(("Below", {"request": "go"}))), as_tool("Below"), limits=Limits(seconds=60))
    async with AgentHost(top, below.agent("model")) as host:
        handle = await host.client.get_agent("Worker").start("Go")
        await below.held.wait()
        host._clock.move_to(host.now + timedelta(seconds=61))  # not `advance`, which waits until all is quiet
        with pytest.raises(TurnDeadlineExceeded):
            await handle
        below.go.set()
        await host.settled()
    assert len(below.model.requests) == 0


# --- Circles ------------------------------------------------------------------------------------------------------


async def test_a_circle_over_several_workers_is_refused_at_the_call(endpoint: str) -> None:
    def to(other: str) -> ScriptedModel:
        return ScriptedModel(lambda request: tells(request) if results(request) else asks((other, {"request": "x"})))

    names = ["Writer", "Editor", "Reviewer"]
    workers: list[DurableAIAgentWorker] = []
    for name, other in zip(names, [*names[1:], names[0]], strict=True):
        worker = DurableAIAgentWorker.connect(endpoint)
        worker.add_agent(agent(to(other), as_tool(other, new_thread=False), name=name))
        workers.append(worker)
    async with workers[0], workers[1], workers[2], DurableAIAgentClient.connect(endpoint) as client:
        response = await client.get_agent("Writer").run("Go", thread="here")
        assert "agent 'Writer' waits, in this conversation" in response.text
        assert await client.pending_approvals("Writer", "here") == []
        assert len((await client.get_agent("Writer").get_transcript("here")).entries) == 2


# --- Names of calls -----------------------------------------------------------------------------------------------


async def test_an_id_that_somebody_picks_stands_in_no_calls_place(hosting: Hosting) -> None:
    inner = agent(ScriptedModel(lambda request: request.messages[-1].text), name="Inner")
    model = ScriptedModel(lambda request: tells(request) if results(request) else asks(("Inner", {"request": "mine"})))
    async with hosting(inner, agent(model, as_tool(inner))) as client:
        theirs = await client.get_agent("Inner").run("theirs", thread="theirs", correlation_id="order.1.0")
        response = await client.get_agent("Worker").run("Go", correlation_id="order")
        assert response.text == "mine"
        kept = client.get_agent("Inner").get_turn("order.1.0")
        assert (str(await kept.thread()), (await kept).text) == ("theirs", theirs.text)


@pytest.mark.parametrize("durability", ["step", "turn"])
async def test_no_two_calls_have_one_idempotency_key(hosting: Hosting, durability: Any) -> None:
    keys: list[str] = []

    @tool
    async def pay(context: ToolContext) -> str:
        keys.append(context.idempotency_key)
        return "paid"

    model = ScriptedModel(lambda request: tells(request) if results(request) else asks(("pay", {}), ("pay", {})))
    long = "customer-4711-" + "o" * 60
    async with hosting(agent(model, pay, durability=durability)) as client:
        for turn in (long, hashlib.sha256(long.encode()).hexdigest()[:32]):
            await client.get_agent("Worker").run("Pay", correlation_id=turn)
    assert len(set(keys)) == 4


async def test_a_tree_that_was_begun_before_an_upgrade_ends_under_the_names_and_limits_of_then(tmp_path: Path) -> None:
    nested.ACTED.clear()
    nested.restore(tmp_path / "dafx.db")
    async with EmbeddedScheduler(db=tmp_path / "dafx.db") as scheduler:
        worker = DurableAIAgentWorker.connect(endpoint=scheduler.endpoint)
        worker.add_agent(nested.Boss, nested.Clerk)
        async with worker, DurableAIAgentClient.connect(endpoint=scheduler.endpoint) as client:
            boss = client.get_agent(nested.Boss)
            thread = boss.get_thread(nested.THREADS["order"])
            [waits] = await client.pending_approvals(nested.Boss, thread)
            await client.approve(waits, by="ana")
            for turn in ("pay", "order"):
                response = await boss.get_turn(turn)
                assert (response.text, response.usage.total_tokens < 84) == ("Done.", True)
                assert (await client.get_agent(nested.Clerk).get_turn(f"{turn}.1.0")).text == "Done."
            assert sorted(nested.ACTED) == [("order", "order.1.0.1.0"), ("pay", "pay.1.0.1.0")]
            # What begins now is held to the limits of now: nothing is left for the call below.
            await boss.run("pay", thread=nested.THREADS["pay"])
            assert len(nested.ACTED) == 2
