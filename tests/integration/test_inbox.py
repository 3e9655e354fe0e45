"""The inbox: what waits for a person is found without reading every thread, and nothing else is shown."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import attrs
import pytest

from dafx_actors import DurableAIAgentClient, DurableAIAgentWorker, PendingApproval, as_tool, tool
from dafx_actors._json.asks import Asks
from dafx_actors.client._inbox import _all
from dafx_actors.decisions import InboxAsked, InboxGone
from dafx_actors.errors import ConfigurationError, DafxError, DecisionRefused, SchedulerUnreachable
from dafx_actors.ids import AgentThread, asks_id
from dafx_actors.scheduler import EmbeddedScheduler
from dafx_actors.sync import DurableAIAgentClient as SyncClient
from tests.conftest import free_port
from tests.integration.conftest import Hosting
from tests.integration.test_approvals import CASHIER
from tests.integration.test_decisions import stored
from tests.integration.turns import agent, asks, in_state, sdk, until, using, whenever_asked
from tests.scheduler.kills import Victim

pytestmark = pytest.mark.anyio


@tool(approval=True)
def pay(amount: int) -> str:
    """Pay."""
    return f"paid {amount}"


def payer(name: str = "Worker", amount: Any = 5) -> type:
    return agent(whenever_asked(("pay", {"amount": amount})), pay, name=name)


async def inbox(client: DurableAIAgentClient, agents: Any = None, **how: Any) -> list[Any]:
    return [each async for each in client.inbox(agents, **how)]


async def holds(client: DurableAIAgentClient, many: int, agents: Any = None, **how: Any) -> list[Any]:
    """What is in the inbox, as soon as it is so much."""
    found: list[Any] = []

    async def looked() -> bool:
        found[:] = await inbox(client, agents, **how)
        return len(found) == many

    await until(looked)
    return found


async def index_of(client: DurableAIAgentClient, asked: PendingApproval) -> Any:
    """What the entity holds."""
    return await client._backend.thread(asks_id(asked.thread.agent, asked.correlation_id))


async def test_what_waits_is_found_by_agent_or_over_all_and_is_gone_when_it_is_decided(hosting: Hosting) -> None:
    async with hosting(payer(), payer("Other", 7)) as client:
        turns = [
            await client.get_agent(name).start("Pay", thread=f"{name}-{number}")
            for name in ("Worker", "Other")
            for number in range(3)
        ]
        found = await holds(client, 6)
        listed = [*await client.pending_approvals("Worker"), *await client.pending_approvals("Other")]
        assert {each.correlation_id for each in found} == {turn.correlation_id for turn in turns}
        assert all(each in listed for each in found)
        assert all(each.top_thread == each.thread for each in found)
        assert {each.thread.agent for each in await inbox(client, payer())} == {"Worker"}
        assert len(await inbox(client, ["Worker", "Other"])) == 6
        assert len(await inbox(client, ["Other"])) == len(await inbox(client, "Other", verify=False)) == 3
        assert await inbox(client, "Nobody") == []
        with pytest.raises(ConfigurationError):
            client.inbox(5)
        pages = [page async for page in client.inbox().pages(size=4)]
        assert sum(len(page.items) for page in pages) == 6
        assert sorted(await inbox(client, thorough=True), key=str) == sorted(found, key=str)
        # No thread is taken for one of an agent "asks-...".
        threads = [each.thread.agent.lower() async for each in client.threads.list()]
        assert sorted(threads) == ["other"] * 3 + ["worker"] * 3
        assert {each.name for each in await client.agents() or ()} <= {"Worker", "Other"}
        for each in found:
            await client.approve(each)
            assert each not in await inbox(client)
        for turn in turns:
            assert (await turn).text.startswith("paid")
        for each in found:
            await until(lambda each=each: gone(client, each))  # type: ignore[misc]


async def gone(client: DurableAIAgentClient, asked: PendingApproval) -> bool:
    return await index_of(client, asked) is None


async def test_a_large_call_is_shown_with_all_its_arguments(hosting: Hosting) -> None:
    @tool(approval=True)
    def write(text: str) -> str:
        """Write."""
        return "written"

    large = {"text": "x" * 20_000}
    async with hosting(agent(using(asks(("write", large))), write)) as client:
        turn = await client.get_agent("Worker").start("Write")
        (asked,) = await holds(client, 1)
        assert asked.arguments == large
        assert (await inbox(client, verify=False))[0].arguments == large
        assert len(str(await index_of(client, asked))) < 2_000
        await client.approve(asked)
        await turn


async def test_the_question_of_an_agent_used_as_a_tool_names_the_thread_that_a_person_knows(hosting: Hosting) -> None:
    inner = payer("Inner")
    middle = agent(whenever_asked(("Inner", {"request": "Pay"})), as_tool(inner), name="Middle")
    top = agent(whenever_asked(("Middle", {"request": "Pay"})), as_tool(middle), name="Top")
    async with hosting(inner, middle, top) as client:
        turn = await client.get_agent("Top").start("Pay", thread="known", correlation_id="top-turn")
        (asked,) = await holds(client, 1)
        assert asked.thread.agent == "Inner"
        assert (asked.top_thread, asked.top_turn) == (AgentThread("Top", "known"), "top-turn")
        assert await client.pending_approvals("Top", "known") == [asked]
        await client.approve(asked)
        await turn
        assert await inbox(client) == []


@pytest.mark.parametrize("how", ["cancel", "delete", "reset", "signal"])
async def test_cancelled_turns_and_cleared_threads_take_their_questions_along(
    hosting: Hosting, endpoint: str, how: str
) -> None:
    async with hosting(payer()) as client, sdk(endpoint) as operator:
        worker = client.get_agent("Worker")
        turn = await worker.start("Pay", thread="here")
        (asked,) = await holds(client, 1)
        if how == "cancel":
            await turn.cancel()
        elif how == "signal":
            await operator.signal_entity(asked.thread.entity_id, "delete")
        else:
            await getattr(client.threads, how)(asked.thread)
        await until(lambda: gone(client, asked))
        assert await inbox(client) == []
        with pytest.raises(DafxError):
            await turn


async def test_what_was_told_late_is_not_shown_and_is_taken_out(
    hosting: Hosting, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with hosting(payer()) as client:
        turn = await client.get_agent("Worker").start("Pay", thread="here")
        (asked,) = await holds(client, 1)
        late = Asks.load(await index_of(client, asked))
        await client.approve(asked)
        await turn
        await until(lambda: gone(client, asked))
        entity = asks_id("Worker", asked.correlation_id)
        await client._backend.signal(entity, late.operation, late.dump())

        async def is_back() -> bool:
            return await index_of(client, asked) is not None

        await until(is_back)
        assert await inbox(client) == []
        (unverified,) = await inbox(client, verify=False)
        with pytest.raises(DecisionRefused):
            await client.deny(unverified)
        assert await is_back()  # it may be that the thread was shown as it was before
        monkeypatch.setattr("dafx_actors.client._inbox._STALE", timedelta(hours=-1))
        assert await inbox(client) == []
        await until(lambda: gone(client, asked))


async def test_what_was_never_told_is_found_by_asking_the_turns_and_told_with_the_next_change(
    hosting: Hosting,
) -> None:
    model = using(asks(("pay", {"amount": 1}), ("pay", {"amount": 2})))
    async with hosting(agent(model, pay)) as client:
        turn = await client.get_agent("Worker").start("Pay", thread="here")
        first, second = await holds(client, 2)
        known = Asks.load(await index_of(client, first))
        forgotten = attrs.evolve(known, questions=())
        await client._backend.signal(asks_id("Worker", first.correlation_id), forgotten.operation, forgotten.dump())
        await until(lambda: gone(client, first))
        assert await inbox(client) == []
        assert len(await inbox(client, thorough=True)) == 2
        assert len(await inbox(client, "Worker", thorough=True)) == 2
        assert await inbox(client, "Other", thorough=True) == []
        await client.approve(first)
        assert await holds(client, 1) == [second]
        await client.deny(second)
        await turn


@pytest.mark.parametrize("stored", [5, {"agent": "Worker"}, {"agent": "A b", "thread": "x", "correlationId": "y"}])
async def test_what_others_tell_the_entity_is_refused_and_shown_to_nobody(
    hosting: Hosting, endpoint: str, stored: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async with hosting(payer()) as client, sdk(endpoint) as operator:
        await operator.signal_entity(asks_id("Worker", "odd"), "show", stored)
        await operator.signal_entity(asks_id("Worker", "odd"), "steal", stored)
        turn = await client.get_agent("Worker").start("Pay", thread="here")
        (asked,) = await holds(client, 1)
        await client.approve(asked)
        await turn
        assert await inbox(client) == []


async def test_a_watch_tells_what_comes_and_what_goes(hosting: Hosting) -> None:
    async with hosting(payer(), payer("Other")) as client:
        before = await client.get_agent("Worker").start("Pay", thread="one")
        (first,) = await holds(client, 1)
        watch = client.watch_inbox("Worker", every=0.05)
        with anyio.fail_after(60):
            assert await anext(watch) == InboxAsked(question=first)
            await client.get_agent("Other").start("Pay")
            after = await client.get_agent("Worker").start("Pay", thread="two")
            event = await anext(watch)
            assert isinstance(event, InboxAsked)
            assert event.question.correlation_id == after.correlation_id
            await client.approve(first)
            assert await anext(watch) == InboxGone(question=first)
            assert isinstance(event.question, PendingApproval)
            await client.deny(event.question)
            assert await anext(watch) == InboxGone(question=event.question)
        await before
        await after
        with pytest.raises(ValueError, match="more than 0"):
            client.watch_inbox(every=0)


async def test_a_program_without_an_event_loop_has_the_same_inbox(hosting: Hosting, endpoint: str) -> None:
    async with hosting(payer()) as client:
        turn = await client.get_agent("Worker").start("Pay", thread="here")
        (asked,) = await holds(client, 1)

        def decide() -> list[Any]:
            with SyncClient.connect(endpoint) as sync:
                watch = sync.watch_inbox(every=0.05)
                first = next(watch)
                (found,) = sync.inbox("Worker")
                assert isinstance(found, PendingApproval)
                sync.approve(found)
                return [first, found, next(watch)]

        assert await anyio.to_thread.run_sync(decide) == [InboxAsked(question=asked), asked, InboxGone(question=asked)]
        await turn


async def test_a_question_survives_kill_9_of_its_worker_and_of_the_scheduler(tmp_path: Path) -> None:
    port, book = free_port(), tmp_path / "book"
    endpoint = f"http://127.0.0.1:{port}"
    options = ["--port", str(port), "--db", str(tmp_path / "dafx.db"), "--log-level", "error"]
    scheduler = Victim("scheduler", ["-m", "dafx_actors.cli", "scheduler", *options])
    worker = Victim("worker", ["-c", CASHIER, endpoint, str(book)])
    try:
        for victim in (scheduler, worker):
            victim.start()
            await victim.ready()
        async with DurableAIAgentClient.connect(endpoint) as client:
            handle = await client.get_agent("Worker").start("Pay")
            (asked,) = await holds(client, 1)
            watch = client.watch_inbox(every=0.05)
            assert await anext(watch) == InboxAsked(question=asked)
            worker.kill()
            assert await inbox(client) == [asked]  # it needs no worker
            decision = await stored(client.approve, asked)
            scheduler.kill()
            scheduler.start()
            await scheduler.ready()
            assert await inbox(client) == [asked]  # the thread has not heard of the decision
            worker.start()
            await worker.ready()
            with anyio.fail_after(60):
                assert await anext(watch) == InboxGone(question=asked)
            assert (await handle).text == "paid 5"
            assert decision.action == "approve"
            assert await inbox(client) == []
            await until(lambda: gone(client, asked))
    finally:
        for victim in (worker, scheduler):
            if victim.process is not None:
                victim.kill()
    assert book.read_text() == "5\n"


async def test_beside_workers_that_do_not_know_the_entity_turns_go_on(tmp_path: Path) -> None:
    """In a rolling deployment: a question that an older worker decides, and one that is told while none hosts it."""
    with EmbeddedScheduler(db=tmp_path / "dafx.db").on_a_thread() as scheduler:
        older = DurableAIAgentWorker.connect(scheduler.endpoint)
        older.add_agent(payer())
        wrapped: Any = older._worker
        registry = wrapped._registry
        del registry.entities["dafx-asks-worker"]
        async with DurableAIAgentClient.connect(scheduler.endpoint) as client, older:
            turn = await client.get_agent("Worker").start("Pay", thread="here")
            await in_state(turn, "waiting")
            assert await inbox(client) == []
            (asked,) = await inbox(client, thorough=True)
            newer = DurableAIAgentWorker.connect(scheduler.endpoint)
            newer.add_agent(payer())
            async with newer:
                assert await holds(client, 1) == [asked]  # what was told has waited
            await client.approve(asked)
            assert (await turn).text == "paid 5"
            assert await inbox(client) == []


async def test_a_look_whose_scheduler_fails_raises_the_first_error_and_asks_no_more() -> None:
    asked: list[int] = []

    def read(number: int) -> Any:
        async def reads() -> int:
            asked.append(number)
            await anyio.lowlevel.checkpoint()
            if number == 1:
                raise SchedulerUnreachable("it is gone")
            return number

        return reads

    assert await _all([read(number) for number in (0, 2, 3)]) == [0, 2, 3]
    asked.clear()
    with pytest.raises(SchedulerUnreachable, match="it is gone"):
        await _all([read(number) for number in range(100)])
    assert len(asked) < 100
