"""What a task hub holds, as clients list it: threads, turns, orchestrations, agents, figures of the scheduler."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
from durabletask.entities import EntityInstanceId
from durabletask.worker import TaskHubGrpcWorker

from dafx_actors import (
    AgentThread,
    DurableAIAgentClient,
    DurableAIAgentWorker,
    OrchestrationContext,
    orchestrator,
    tool,
)
from dafx_actors._durable import private as _private
from dafx_actors.client import History
from dafx_actors.errors import (
    ConfigurationError,
    OrchestrationNotFound,
    SchedulerRefused,
    SchedulerUnreachable,
    UnsupportedByScheduler,
)
from dafx_actors.scheduler import EmbeddedScheduler
from dafx_actors.testing import ScriptedModel, replay
from tests.conftest import free_port
from tests.integration.conftest import Hosting
from tests.integration.turns import agent, asked_of, in_state, sdk, until, whenever_asked

pytestmark = pytest.mark.anyio


@tool(approval=True)
def pay(amount: int) -> str:
    """Pay."""
    return f"paid {amount}"


def parrot(name: str = "Parrot") -> type:
    return agent(ScriptedModel(lambda request: request.messages[-1].text), name=name)


def payer() -> type:
    return agent(whenever_asked(("pay", {"amount": 5})), pay, name="Payer")


@orchestrator
async def waits(context: OrchestrationContext, start: int) -> int:
    context.set_custom_status({"start": start})
    return start + await context.wait_for_external_event("more", data_type=int)


async def test_threads_are_listed_by_agent_prefix_state_and_age(hosting: Hosting) -> None:
    async with hosting(parrot(), payer()) as client:
        parrots = client.get_agent("Parrot")
        for name in ("a1", "a2", "b1"):
            await parrots.run("Hi", thread=name)
        turn = await client.get_agent("Payer").start("Pay.", thread="a3", correlation_id="p1")
        await asked_of(client, "Payer")
        listed = [each async for each in client.threads.list("Parrot")]
        assert [str(each.thread) for each in listed] == ["a1", "a2", "b1"]
        assert {(each.state, each.turn, each.entries) for each in listed} == {(None, None, None)}
        assert {str(each.thread) async for each in client.threads.list(prefix="a")} == {"a1", "a2", "a3"}
        assert [each.thread async for each in client.threads.list("Parrot", prefix="b")] == [
            AgentThread("Parrot", "b1")
        ]
        [asked] = [each async for each in client.threads.list(state="waiting")]
        assert (asked.thread.thread_id, asked.turn, asked.in_line) == ("a3", "p1", 0)
        [idle, *_] = [each async for each in client.threads.list("Parrot", details=True)]
        assert (idle.state, idle.turn, idle.entries) == ("idle", None, 2)
        assert [each async for each in client.threads.list(older=timedelta(hours=1))] == []
        assert [each async for each in client.threads.list(state="running")] == []
        await turn.cancel()


async def test_a_thread_names_its_agent_as_workers_do_where_the_scheduler_tells(tmp_path: Path) -> None:
    async with EmbeddedScheduler(db=tmp_path / "dafx.db") as scheduler:
        worker = DurableAIAgentWorker.connect(scheduler.endpoint)
        worker.add_agent(parrot())
        async with DurableAIAgentClient.connect(scheduler.endpoint) as client, worker:
            await client.get_agent("Parrot").run("Hi", thread="a")
            assert [each.thread async for each in client.threads.list()] == [AgentThread("Parrot", "a")]


async def test_pages_follow_each_other_and_another_program_goes_on(hosting: Hosting, endpoint: str) -> None:
    async with hosting(parrot()) as client:
        parrots = client.get_agent("Parrot")
        for number in range(5):
            await parrots.run("Hi", thread=f"t{number}", correlation_id=f"c{number}")
        pages = [page async for page in client.threads.list("Parrot").pages(size=2)]
        assert [[str(each.thread) for each in page.items] for page in pages if page.items] == [
            ["t0", "t1"],
            ["t2", "t3"],
            ["t4"],
        ]
        assert pages[-1].next == ""
        async with DurableAIAgentClient.connect(endpoint) as other:
            rest = other.threads.list("Parrot").pages(size=100, after=pages[0].next)
            assert [str(each.thread) async for page in rest for each in page.items] == ["t2", "t3", "t4"]
        turns = [page async for page in client.turns.list("Parrot").pages(size=2)]
        assert [each.correlation_id for page in turns for each in page.items] == [f"c{number}" for number in range(5)]
        assert len(turns) >= 3
        with pytest.raises(ValueError, match="from 1 to 1,000 items, not 0"):
            await client.threads.list().page(size=0)


async def test_where_durabletask_keeps_its_calls_to_itself_a_list_is_one_page(
    hosting: Hosting, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with hosting(parrot()) as client:
        for number in range(3):
            await client.get_agent("Parrot").run("Hi", thread=f"t{number}", correlation_id=f"c{number}")
        assert _private.stub_of(object()) is None
        monkeypatch.setattr("dafx_actors._durable.backend.stub_of", lambda _: None)
        [page] = [page async for page in client.threads.list("Parrot", details=True).pages(size=2)]
        assert [(str(each.thread), each.entries) for each in page.items] == [("t0", 2), ("t1", 2), ("t2", 2)]
        assert [each.correlation_id async for each in client.turns.list()] == ["c0", "c1", "c2"]


async def test_turns_are_listed_by_agent_thread_state_and_age(hosting: Hosting) -> None:
    broken = agent(ScriptedModel(*[RuntimeError("no")] * 9), name="Broken")
    async with hosting(parrot(), payer(), broken) as client:
        await client.get_agent("Parrot").run("Hi", thread="a", correlation_id="t1")
        waiting = await client.get_agent("Payer").start("Pay.", thread="b", correlation_id="t2")
        await in_state(waiting, "waiting")
        failed = await client.get_agent("Broken").start("Hi", thread="a", correlation_id="t3")
        await in_state(failed, "failed")
        cancelled = await client.get_agent("Payer").start("Pay.", thread="c", correlation_id="t4")
        await in_state(cancelled, "waiting")
        await cancelled.cancel("enough")
        await in_state(cancelled, "cancelled")
        found = {each.correlation_id: each async for each in client.turns.list()}
        assert {name: (each.agent, str(each.thread), each.state) for name, each in found.items()} == {
            "t1": ("Parrot", "a", "completed"),
            "t2": ("Payer", "b", "waiting"),
            "t3": ("Broken", "a", "failed"),
            "t4": ("Payer", "c", "cancelled"),
        }
        assert "no" in (found["t3"].error or "")
        assert found["t1"].steps == 1
        assert found["t1"].created_at <= found["t1"].updated_at

        async def ids(*given: Any, **how: Any) -> list[str]:
            return [each.correlation_id async for each in client.turns.list(*given, **how)]

        assert await ids("Payer") == ["t2", "t4"]
        assert await ids(thread=AgentThread("Parrot", "a")) == ["t1"]
        for state, turns in {"waiting": ["t2"], "failed": ["t3"], "cancelled": ["t4"], "completed": ["t1"]}.items():
            assert await ids(state=state) == turns
        assert await ids(older=timedelta(hours=1)) == []
        assert await ids(older=timedelta()) == ["t1", "t2", "t3", "t4"]
        await waiting.cancel()


async def test_a_turn_that_nobody_hosts_is_blocked_where_the_scheduler_tells(hosting: Hosting, endpoint: str) -> None:
    async with hosting(parrot()) as client:
        await client.get_agent("Nobody").start("Hi", correlation_id="t1")
        [found] = [each async for each in client.turns.list("Nobody")]
        told = await client.agents() is not None
        assert (found.state, found.waits_for) == (("blocked", ("Nobody",)) if told else ("pending", ()))
        assert [each async for each in client.turns.list(state="blocked")] == ([found] if told else [])
        async with sdk(endpoint) as operator:
            await operator.terminate_orchestration("t1")


async def test_what_was_said_and_what_was_recorded_can_be_read(hosting: Hosting, tmp_path: Path) -> None:
    cls = parrot()
    async with hosting(cls) as client:
        thread = AgentThread("Parrot", "a")
        await client.get_agent("Parrot").run("Hi", thread=thread, correlation_id="t1")
        said = [entry async for entry in client.threads.history(thread)]
        assert [type(each).__name__ for each in said] == ["Request", "Response"]
        assert [entry async for entry in client.threads.history(AgentThread("Parrot", "never"))] == []
        history = await client.turns.history("t1")
        history.save(tmp_path / "t1.json")
        replay(History.load(tmp_path / "t1.json"), cls)
        with pytest.raises(OrchestrationNotFound, match="no turn, of the id 'never'"):
            await client.turns.history("never")


async def test_orchestrations_are_listed_suspended_resumed_read_and_purged(hosting: Hosting) -> None:
    async with hosting(parrot(), orchestrators=(waits,)) as client:
        await client.get_agent("Parrot").run("Hi", correlation_id="t1")
        handle = await client.schedule_new_orchestration(waits, input=2, instance_id="w1")

        async def shown() -> Any:
            return [each async for each in client.orchestrations.list() if each.custom_status]

        [found] = await until(shown)
        assert (found.instance_id, found.name, found.state) == ("w1", "waits", "running")
        assert found.custom_status == {"start": 2}
        assert {each.instance_id async for each in client.orchestrations.list(of_agents=True)} >= {"w1", "t1"}
        assert [each async for each in client.orchestrations.list("other")] == []
        assert [each.instance_id async for each in client.orchestrations.list("waits", prefix="w")] == ["w1"]
        await handle.suspend("look")
        await until(lambda: _are(client, "suspended", ["w1"]))
        await handle.resume()
        await until(lambda: _are(client, "running", ["w1"]))
        assert not await handle.purge()
        await handle.raise_event("more", 3)
        assert await handle == 5
        assert (await handle.history()).name == "waits"
        assert await handle.purge()
        assert not await handle.purge()
        assert [each async for each in client.orchestrations.list(of_agents=False)] == []
        for call in (handle.suspend, handle.resume, handle.history):
            with pytest.raises(OrchestrationNotFound):
                await call()


async def _are(client: DurableAIAgentClient, state: Any, ids: list[str]) -> bool:
    return [each.instance_id async for each in client.orchestrations.list(state=state)] == ids


async def test_the_scheduler_tells_who_hosts_what_and_its_figures(tmp_path: Path) -> None:
    async with EmbeddedScheduler(db=tmp_path / "dafx.db") as scheduler:
        worker = DurableAIAgentWorker.connect(scheduler.endpoint)
        worker.add_agent(parrot(), payer())
        async with DurableAIAgentClient.connect(scheduler.endpoint) as client:
            async with worker:
                await client.get_agent("Parrot").run("Hi")
                agents = await client.agents()
                assert agents is not None
                assert [(each.name, each.hosted_by, each.tools) for each in agents] == [
                    ("Parrot", "worker", ()),
                    ("Payer", "worker", ("pay",)),
                ]
                stats = await client.scheduler.stats()
                assert (stats.database, stats.is_writable) == (str(tmp_path / "dafx.db"), True)
                hub = stats.hubs["default"]
                assert (hub.orchestrations["completed"], hub.entities, len(hub.workers)) == (1, 1, 1)
                assert {*hub.work} == {"orchestration", "activity", "entity"}

            async def gone() -> bool:
                return {each.hosted_by for each in await client.agents() or ()} == {"nobody"}

            await until(gone)
            made = await client.scheduler.backup("first")
            assert made.path.stat().st_size == made.size
            assert made.path.name == "first.db"
            for name in ("first", "a/b"):
                with pytest.raises(SchedulerRefused):
                    await client.scheduler.backup(name)
            with pytest.raises(SchedulerRefused, match="not a continuation token"):
                await client.turns.list().page(after="x:y")


async def test_another_scheduler_says_that_it_cannot(hosting: Hosting) -> None:
    async with hosting(parrot()) as client:
        if await client.agents() is not None:
            pytest.skip("the embedded scheduler can")
        with pytest.raises(UnsupportedByScheduler, match="cannot be asked for figures"):
            await client.scheduler.stats()
        with pytest.raises(UnsupportedByScheduler, match="cannot be asked for a backup"):
            await client.scheduler.backup("a")


async def test_what_is_no_thread_and_what_cannot_be_read_does_not_end_a_list(tmp_path: Path) -> None:
    async with EmbeddedScheduler(db=tmp_path / "dafx.db") as scheduler:
        worker = DurableAIAgentWorker.connect(scheduler.endpoint)
        worker.add_agent(parrot())
        others = TaskHubGrpcWorker(host_address=scheduler.endpoint.removeprefix("http://"))
        others.add_entity(stranger)
        others.use_work_item_filters()
        others.start()  # type: ignore[no-untyped-call]
        async with DurableAIAgentClient.connect(scheduler.endpoint) as client, worker:
            large = await client.get_agent("Parrot").run("x" * (4 * 2**20), thread="large", correlation_id="t1")
            assert len(large.text) == 4 * 2**20
            async with sdk(scheduler.endpoint) as operator:
                await operator.signal_entity(EntityInstanceId("dafx-stranger", "odd"), "set", 1)
                await until(lambda: operator.get_entity(EntityInstanceId("dafx-stranger", "odd")))
            found = {str(each.thread): each async for each in client.threads.list(details=True)}
            large_one, odd = found["large"], found["odd"]
            assert (large_one.state, large_one.entries) == ("idle", 2), "read by itself, as it is too large for a list"
            assert (odd.thread.agent, odd.state, odd.entries) == ("stranger", "unreadable", None)
            [turn] = [each async for each in client.turns.list()]
            assert (turn.correlation_id, turn.thread, turn.state) == ("t1", None, "completed")
        await anyio.to_thread.run_sync(others.stop)


def stranger(context: Any, input: Any) -> None:
    context.set_state(input)


stranger.__name__ = "dafx-stranger"


async def test_lists_refuse_what_makes_no_sense_and_say_that_nothing_answers() -> None:
    async with DurableAIAgentClient.connect(f"http://127.0.0.1:{free_port()}") as client:
        lists: list[Any] = [client.threads, client.turns, client.orchestrations]
        for each in lists:
            with pytest.raises(ValueError, match="no state of a"):
                each.list(state="sleepy")
            with pytest.raises(ValueError, match="must not be negative"):
                each.list(older=-timedelta(seconds=1))
            with pytest.raises(ValueError, match="longer than calendars"):
                each.list(older=timedelta.max)
            with pytest.raises(SchedulerUnreachable):
                await each.list(timeout=0.1).page()
        for each in lists[:2]:
            with pytest.raises(ConfigurationError):
                each.list(int)
        with anyio.fail_after(60), pytest.raises(SchedulerUnreachable):
            await client.agents(timeout=0.1)
