"""Turns that wait for a name that no worker has: they show it, and go on when it is certain that none will have it."""

from __future__ import annotations

import threading
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
from durabletask.client import OrchestrationState, TaskHubGrpcClient
from durabletask.testing import create_test_backend
from durabletask.worker import TaskHubGrpcWorker

from dafx_actors import (
    DecisionAccepted,
    DurableAIAgentClient,
    DurableAIAgentWorker,
    OrchestrationContext,
    OrchestrationHandle,
    TurnHandle,
    as_tool,
    durable_agent,
    orchestrator,
    tool,
    when_all,
)
from dafx_actors._durable.hosted_names import hosts
from dafx_actors.errors import AgentNotHosted, OrchestrationFailed
from dafx_actors.ids import turn_name
from dafx_actors.scheduler import EmbeddedScheduler
from dafx_actors.testing import ScriptedModel, call, history_of
from dafx_actors.testing._clock import HandClock
from dafx_actors.worker._work import Work
from tests.conftest import free_port
from tests.integration.turns import asked_of, sdk, tells, until

pytestmark = pytest.mark.anyio

PAY = "no worker has the tool 'pay' any more"


class Deployment:
    """A scheduler whose clock the test moves; workers of several versions come and go."""

    def __init__(self, scheduler: EmbeddedScheduler, clock: HandClock, client: DurableAIAgentClient) -> None:
        self.scheduler, self.clock, self.client = scheduler, clock, client

    @property
    def endpoint(self) -> str:
        return self.scheduler.endpoint

    @property
    def workers(self) -> int:
        return sum(len(hub.delivery.queue.workers) for hub in self.scheduler.engine.hubs.values())

    @asynccontextmanager
    async def hosting(
        self,
        *agents: object,
        orchestrators: tuple[Callable[..., Any], ...] = (),
        on_work: Callable[[Work], None] | None = None,
    ) -> AsyncGenerator[DurableAIAgentWorker]:
        inner = TaskHubGrpcWorker(host_address=self.endpoint)
        worker = DurableAIAgentWorker(inner, stop_timeout=0, on_work=on_work)
        worker.add_agent(*agents)
        for each in orchestrators:
            worker.add_orchestrator(each)
        many = self.workers
        async with worker:
            await self.connected(many + 1)
            yield worker
        await self.connected(many)

    async def connected(self, many: int) -> None:
        with anyio.fail_after(60):
            while self.workers != many:
                await anyio.sleep(0.001)

    async def settled(self) -> None:
        with anyio.fail_after(60):
            while self.scheduler.engine.under_way() or self._is_due:
                await anyio.sleep(0.001)

    async def advance(self, seconds: float) -> None:
        """Let time pass: all that is due by then happens, each thing at its time."""
        until = self.clock.time + timedelta(seconds=seconds)
        await self.settled()
        while (due := self.clock.next_alarm) is not None and due <= until:
            self.clock.move_to(max(due, self.clock.time))
            await self.settled()
        self.clock.move_to(until)
        await self.settled()

    @property
    def _is_due(self) -> bool:
        due = self.clock.next_alarm
        return due is not None and due <= self.clock.time


@pytest.fixture
async def deployment(tmp_path: Path) -> AsyncGenerator[Deployment]:
    clock = HandClock()
    async with (
        EmbeddedScheduler(tmp_path / "dafx.db", clock=clock) as scheduler,
        DurableAIAgentClient.connect(scheduler.endpoint) as client,
    ):
        yield Deployment(scheduler, clock, client)


def payer(acted: list[int], *, has_tool: bool, effect: Any = "repeatable") -> type:
    """One version of an agent: with the tool, or with another in its place."""
    model = ScriptedModel(*[lambda request: tells(request) if _is_told(request) else _ask()] * 20)

    if has_tool:

        @durable_agent(name="Payer", model=model)
        class Payer:
            instructions = "Pay."

            @tool(approval=True, effect=effect)
            def pay(self, amount: int) -> str:
                """Pay."""
                acted.append(amount)
                return "paid"

        return Payer

    @durable_agent(name="Payer", model=model)
    class Renamed:
        instructions = "Pay."

        @tool(approval=True, effect=effect)
        def pay_invoice(self, amount: int) -> str:
            """Pay."""
            return "never asked for"

    return Renamed


def _is_told(request: Any) -> bool:
    return bool(request.messages[-1].role == "tool")


def _ask() -> Any:
    return call("pay", amount=5)


@asynccontextmanager
async def approved(deployment: Deployment, acted: list[int], **how: Any) -> AsyncGenerator[TurnHandle[None]]:
    """A turn whose call is approved while no worker has its tool any more: the new version is there alone."""
    async with deployment.hosting(payer(acted, has_tool=True, **how)):
        turn = await deployment.client.get_agent("Payer").start("Pay.")
        asked = await asked_of(deployment.client, "Payer")
    async with deployment.hosting(payer(acted, has_tool=False, **how)):
        await deployment.client.approve(asked)
        await deployment.settled()
        yield turn


async def test_a_tool_that_a_new_version_dropped_is_shown_and_then_given_up(deployment: Deployment) -> None:
    acted: list[int] = []
    async with approved(deployment, acted) as turn:
        await deployment.advance(10)
        status = await turn.status()
        assert (status.state, status.waits_for) == ("blocked", ("pay",))
        await deployment.advance(45)
        assert (await turn.status()).state == "blocked"
        await deployment.advance(25)
        assert PAY in (await turn.result(10)).text
        await deployment.client.get_agent("Payer").start("Pay.", thread=await turn.thread())
    assert acted == []


async def test_whoever_approves_a_call_whose_tool_a_new_version_dropped_is_told_so(deployment: Deployment) -> None:
    acted: list[int] = []
    async with deployment.hosting(payer(acted, has_tool=True)):
        turn = await deployment.client.get_agent("Payer").start("Pay.")
        asked = await asked_of(deployment.client, "Payer")
    async with deployment.hosting(payer(acted, has_tool=False)):
        decision = await deployment.client.approve(asked)
        assert isinstance(decision, DecisionAccepted)
        await deployment.advance(80)
        answer = await turn.result(10)
    assert decision.note.startswith("the agent has no tool 'pay' any more: unless a worker comes that has it, ")
    assert PAY in answer.text
    assert acted == []


async def test_of_a_call_that_may_act_once_it_is_known_that_it_was_not_made(deployment: Deployment) -> None:
    acted: list[int] = []
    async with approved(deployment, acted, effect="once") as turn:
        await deployment.advance(80)
        assert (await turn.result(10)).text == f"Error: {PAY}; the call was not made"
    assert acted == []


async def test_a_worker_that_comes_back_in_time_makes_the_call(deployment: Deployment) -> None:
    acted: list[int] = []
    async with approved(deployment, acted) as turn:
        await deployment.advance(58)
        assert (await turn.status()).state == "blocked"
        async with deployment.hosting(payer(acted, has_tool=True)):
            assert (await turn.result(30)).text == "paid"
    assert acted == [5]


async def test_nothing_is_given_up_while_all_workers_are_away(deployment: Deployment) -> None:
    acted: list[int] = []
    async with approved(deployment, acted) as turn:
        await deployment.advance(30)
    await deployment.advance(3600)
    async with deployment.hosting(payer(acted, has_tool=False)):
        await deployment.advance(30)
        assert (await turn.status()).state == "blocked"
        async with deployment.hosting(payer(acted, has_tool=True)):
            assert (await turn.result(30)).text == "paid"
    assert acted == [5]


@pytest.mark.parametrize("at", ["before it is on record", "after it is on record"])
async def test_a_rollback_in_the_very_moment_acts_or_is_told_gone_and_never_both(
    deployment: Deployment, at: str
) -> None:
    acted: list[int] = []
    reached, may_go = anyio.Event(), anyio.Event()
    recorded = False

    def on_work(work: Work) -> None:
        nonlocal recorded
        is_moment = (work.kind, work.name) == ("thread", "giveUp") if at.startswith("before") else recorded
        recorded = recorded or (work.kind, work.name) == ("thread", "giveUp")
        if is_moment and not reached.is_set() and (at.startswith("before") or work.kind == "probe"):
            anyio.from_thread.run_sync(reached.set, token=token)
            anyio.from_thread.run(may_go.wait, token=token)

    token = anyio.lowlevel.current_token()
    async with deployment.hosting(payer(acted, has_tool=True)):
        turn = await deployment.client.get_agent("Payer").start("Pay.")
        asked = await asked_of(deployment.client, "Payer")
    text = ""
    async with deployment.hosting(payer(acted, has_tool=False), on_work=on_work), anyio.create_task_group() as tasks:
        await deployment.client.approve(asked)
        tasks.start_soon(deployment.advance, 70)
        with anyio.fail_after(60):
            await reached.wait()
        async with deployment.hosting(payer(acted, has_tool=True)):
            queue = deployment.scheduler.engine.hub("default").delivery.queue
            with anyio.fail_after(60):
                while any("pay" in lane.name for lane in queue.waiting("activity")):
                    await anyio.sleep(0.001)
                while at.startswith("before") and not acted:
                    await anyio.sleep(0.001)
            may_go.set()
            text = (await turn.result(30)).text
    if at.startswith("before"):
        assert (acted, text) == ([5], "paid")
    else:
        assert acted == []
        assert "given up" in text


async def test_a_call_that_had_begun_when_it_was_given_up_is_waited_for(deployment: Deployment) -> None:
    acted: list[int] = []
    acting, given_up, may_end = anyio.Event(), threading.Event(), anyio.Event()
    looked = threading.Event()
    token = anyio.lowlevel.current_token()

    @durable_agent(name="Payer", model=ScriptedModel(call("pay", amount=5), tells))
    class Payer:
        instructions = "Pay."

        @tool(approval=True)
        async def pay(self, amount: int) -> str:
            """Pay."""
            acted.append(amount)
            acting.set()
            await may_end.wait()
            return "paid"

    def on_work(work: Work) -> None:
        if (work.kind, work.name) == ("thread", "giveUp"):
            anyio.from_thread.run(begin_and_wait, token=token)
            given_up.set()
        elif work.kind == "probe" and given_up.is_set():
            looked.set()

    back = anyio.Event()

    async def begin_and_wait() -> None:
        back.set()
        await acting.wait()

    async with deployment.hosting(Payer):
        turn = await deployment.client.get_agent("Payer").start("Pay.")
        asked = await asked_of(deployment.client, "Payer")
    renamed = payer(acted, has_tool=False)
    async with deployment.hosting(renamed, on_work=on_work), anyio.create_task_group() as tasks:
        await deployment.client.approve(asked)
        tasks.start_soon(deployment.advance, 70)
        with anyio.fail_after(60):
            await back.wait()
        async with deployment.hosting(Payer, on_work=on_work):
            under_way = deployment.scheduler.engine.under_way
            with anyio.fail_after(60):
                # What is left is the call that acts: the turn has looked once more, and waits for it.
                while not looked.is_set() or not all("tool.pay" in work for work in under_way()):
                    await anyio.sleep(0.001)
            assert (await turn.status()).state != "completed"
            may_end.set()
            assert (await turn.result(30)).text == "paid"
    assert acted == [5]


async def test_an_agent_that_nobody_hosts_is_shown_and_refused_and_never_runs_later(deployment: Deployment) -> None:
    late = ScriptedModel("Too late.")

    @durable_agent(model=late)
    class Expert:
        """Knows things."""

        instructions = "You know things."

    @durable_agent(model=ScriptedModel(call("Expert", request="Well?"), tells))
    class Clerk:
        instructions = "Ask."
        tools = (as_tool(Expert),)

    async with deployment.hosting(Clerk):
        turn = await deployment.client.get_agent(Clerk).start("Ask.")
        await deployment.advance(10)
        status = await turn.status()
        assert (status.state, status.waits_for) == ("blocked", ("Expert",))
        await deployment.advance(70)
        assert "no worker hosts the agent 'Expert'" in (await turn.result(10)).text
    async with deployment.hosting(Expert):
        await deployment.advance(60)
    late.assert_asked(0)


@orchestrator
async def waits_for_others(context: OrchestrationContext) -> None:
    expert = context.get_agent("Expert").run("Well?")
    await when_all([expert, context.call_activity("weigh"), context.call_sub_orchestrator("ship")])


async def test_an_orchestration_shows_what_it_waits_for_and_what_of_it_nobody_hosts(deployment: Deployment) -> None:
    @durable_agent(model=ScriptedModel("Well."))
    class Expert:
        instructions = "You know things."

    @durable_agent(model=ScriptedModel())
    class Other:
        instructions = "Do nothing."

    async with deployment.hosting(Other, orchestrators=(waits_for_others,)):
        handle = await deployment.client.schedule_new_orchestration(waits_for_others)
        await until(lambda: pending(handle, 3))
        steps = await handle.pending_steps()
        assert [(step.kind, step.name, step.is_hosted) for step in steps] == [
            ("agent", "Expert", False),
            ("activity", "weigh", False),
            ("orchestration", "ship", False),
        ]
        [child] = [each for each in await children_of(deployment.endpoint) if each.name == turn_name("Expert")]
        turn = deployment.client.get_agent("Expert").get_turn(child.instance_id)
        status = await turn.status()
        assert (status.state, status.waits_for) == ("blocked", ("Expert",))
        async with deployment.hosting(Expert):
            assert (await turn).text == "Well."
            await until(lambda: pending(handle, 2))
        await handle.terminate()
        with pytest.raises(OrchestrationFailed):
            await handle
    assert await deployment.client.get_orchestration("nobody").pending_steps() == ()


async def pending(handle: OrchestrationHandle[Any], many: int) -> bool:
    return len(await handle.pending_steps()) == many


async def children_of(endpoint: str) -> list[OrchestrationState]:
    async with sdk(endpoint) as operator:
        return list(await operator.get_all_orchestration_states())


@orchestrator
async def asks_expert(context: OrchestrationContext, seconds: float) -> str:
    return (await context.get_agent("Expert").run("Well?", start_timeout=seconds)).text


async def test_an_orchestration_need_not_wait_for_an_agent_that_nobody_hosts(deployment: Deployment) -> None:
    late = ScriptedModel("Too late.")

    @durable_agent(model=late)
    class Expert:
        instructions = "You know things."

    @durable_agent(model=ScriptedModel())
    class Other:
        instructions = "You are there."

    async with deployment.hosting(Other, orchestrators=(asks_expert,)):
        asking = await deployment.client.schedule_new_orchestration(asks_expert, input=30.0)
        await deployment.advance(29)
        found = await asking.state()
        assert found is not None
        assert found.runtime_status.name == "RUNNING"
        await deployment.advance(2)
        with pytest.raises(OrchestrationFailed) as failed:
            await asking.result(10)
        assert isinstance(failed.value.__cause__, AgentNotHosted)
        assert str(failed.value.__cause__).startswith("No worker took the turn of agent 'Expert' within 30 s.")
    async with deployment.hosting(Expert):
        await deployment.advance(60)
    late.assert_asked(0)


@orchestrator
async def asks_support(context: OrchestrationContext) -> str:
    return (await context.get_agent("support").run("Help!", start_timeout=30)).text


async def test_a_name_that_differs_in_case_is_told_with_the_one_that_is_hosted(deployment: Deployment) -> None:
    @durable_agent(model=ScriptedModel())
    class Support:
        instructions = "You help."

    async with deployment.hosting(Support, orchestrators=(asks_support,)):
        with pytest.raises(AgentNotHosted, match=r"Hosted there: Support\. Did you mean 'Support'\?") as found:
            await deployment.client.get_agent("support").run("Help!")
        assert found.value.hosted == ("Support",)
        asking = await deployment.client.schedule_new_orchestration(asks_support)
        await deployment.advance(31)
        with pytest.raises(OrchestrationFailed) as failed:
            await asking.result(10)
    cause = failed.value.__cause__
    assert isinstance(cause, AgentNotHosted)
    assert "The orchestration's own worker hosts Support. Did you mean 'Support'?" in str(cause)


async def test_an_agent_that_is_taken_in_time_has_all_the_time_it_needs(deployment: Deployment) -> None:
    acted: list[int] = []

    @durable_agent(model=ScriptedModel(call("pay", amount=5), tells))
    class Expert:
        instructions = "You know things."

        @tool(approval=True)
        def pay(self, amount: int) -> str:
            """Pay."""
            acted.append(amount)
            return "paid"

    async with deployment.hosting(Expert, orchestrators=(asks_expert,)):
        asking = await deployment.client.schedule_new_orchestration(asks_expert, input=30.0)
        asked = await asked_of(deployment.client, "Expert")
        await deployment.advance(3600)
        await deployment.client.approve(asked)
        assert await asking.result(30) == "paid"
    assert acted == [5]


async def test_a_turn_pays_for_it_with_one_timer(deployment: Deployment) -> None:
    look = call("look", city="Oslo")

    @durable_agent(model=ScriptedModel([look, look], look, "Cold."))
    class Weather:
        instructions = "Look."

        @tool
        def look(self, city: str) -> str:
            """Look."""
            return city

    async with deployment.hosting(Weather):
        turn = await deployment.client.get_agent(Weather).start("Look.")
        assert (await turn.result(30)).text == "Cold."
        async with sdk(deployment.endpoint) as reader:
            kinds = [kind for event in (await history_of(reader, str(turn))).events for kind in event]
    assert kinds.count("timerCreated") == 1
    assert kinds.count("taskScheduled") == 6


async def test_another_scheduler_cannot_tell_and_the_worker_says_what_it_has_itself() -> None:
    port = free_port()
    backend = create_test_backend(port=port)
    reader = TaskHubGrpcClient(host_address=f"127.0.0.1:{port}")
    names = [("activity", name) for name in ("mine", "other")]
    try:
        found = await anyio.to_thread.run_sync(hosts, reader, {"mine"}, names)
        assert found == {"mine": True, "other": False}
    finally:
        reader.close()
        backend.stop()
    lost = TaskHubGrpcClient(host_address=f"127.0.0.1:{free_port()}")
    assert await anyio.to_thread.run_sync(hosts, lost, {"mine"}, names) == {"mine": True}
    lost.close()
