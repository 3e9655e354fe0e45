"""`client.threads`: a thread is deleted, reset, exported and imported, whatever goes on in it."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import anyio
import pytest
from durabletask.client import AsyncTaskHubGrpcClient, EntityQuery, OrchestrationQuery

from dafx_actors import (
    AgentThread,
    DataContent,
    DurableAIAgentClient,
    DurableAIAgentWorker,
    as_tool,
    tool,
)
from dafx_actors._json.export import export_lines
from dafx_actors.errors import (
    AgentNotHosted,
    InvalidThreadExport,
    SchedulerUnreachable,
    ThreadNotEmpty,
    ThreadTimeout,
    ThreadTooLarge,
    TurnCancelled,
    TurnNotFound,
    TurnSuperseded,
)
from dafx_actors.scheduler import EmbeddedScheduler
from dafx_actors.testing import ScriptedModel
from tests.conftest import free_port
from tests.integration.conftest import Hosting
from tests.integration.turns import agent, asked_of, asks, in_state, line_of, program, sdk, tells, until, using
from tests.scheduler.kills import Victim

pytestmark = pytest.mark.anyio
HERE = AgentThread("Worker", "here")


def parrot(name: str = "Worker", **how: Any) -> tuple[type, ScriptedModel]:
    """Says what it was asked, and in which request of its life."""
    said: list[str] = []

    def answer(request: Any) -> str:
        said.append(request.messages[-1].text)
        return f"{len(said)}: {said[-1]} ({sum(message.role == 'user' for message in request.messages)})"

    model = ScriptedModel(answer)
    return agent(model, name=name, **how), model


@tool(approval=True)
def pay(amount: int) -> str:
    """Pay."""
    return f"paid {amount}"


def payer(name: str = "Worker") -> type:
    """Asks to pay, which waits for a person."""
    replies: list[Any] = [asks(("pay", {"amount": 5})), tells] * 5
    return agent(ScriptedModel(*replies), pay, name=name)


async def everything(operator: AsyncTaskHubGrpcClient, *, tellings: bool = True) -> list[str]:
    """All that there is on the task hub: threads, and orchestrations. Some keep the name of an entity without state."""
    query = EntityQuery(include_transient=True)
    entities = [str(each.id) for each in await operator.get_all_entities(query) if each.get_typed_state() is not None]
    found = await operator.get_all_orchestration_states(OrchestrationQuery())
    return entities + [each.instance_id for each in found if tellings or not each.name.endswith(".tell")]


# --- Deleting -----------------------------------------------------------------------------------------------------


async def test_nothing_of_a_deleted_thread_is_left_and_its_ids_start_anew(hosting: Hosting, endpoint: str) -> None:
    worker, model = parrot()
    async with hosting(worker) as client, sdk(endpoint) as operator:
        joker = client.get_agent("Worker")
        for turn in ("t1", "t2"):
            await joker.run("Hi", thread=HERE, correlation_id=turn)
        other = await joker.run("Hi", thread="there", correlation_id="t3")
        for _ in range(2):  # twice is as once
            await client.threads.delete(HERE)
            assert sorted(await everything(operator)) == ["@dafx-worker@there", "t3"]
        assert (await joker.get_transcript(HERE)).entries == ()
        again = await joker.run("Hi", thread=HERE, correlation_id="t1")
        assert again.text == "4: Hi (1)", "neither the answer of before, nor what was said then"
        assert (await joker.run("Hi", thread="there", correlation_id="t3")).text == other.text
    assert len(model.requests) == 4


async def test_a_thread_that_was_never_used_is_deleted_and_reset(hosting: Hosting, endpoint: str) -> None:
    async with hosting(parrot()[0]) as client, sdk(endpoint) as operator:
        await client.threads.delete(HERE)
        await client.threads.reset(HERE)
        assert await everything(operator) == []


@pytest.mark.parametrize("operation", ["delete", "reset"])
async def test_turns_that_run_or_wait_end_first_as_cancelled(hosting: Hosting, endpoint: str, operation: str) -> None:
    async with hosting(payer()) as client, sdk(endpoint) as operator:
        worker = client.get_agent("Worker")
        active = await worker.start("Pay", thread=HERE, correlation_id="t1")
        await asked_of(client)
        queued = [await worker.start("Pay", thread=HERE, correlation_id=turn) for turn in ("t2", "t3")]
        for each in queued:
            await in_state(each, "queued")
        await getattr(client.threads, operation)(HERE)
        assert await client.pending_approvals("Worker") == []
        assert [each for each in await everything(operator) if each != str(HERE.entity_id).lower()] == []
        for handle in (active, *queued):
            with pytest.raises(TurnSuperseded, match="reset or deleted"):
                await handle


async def test_whoever_waits_for_a_turn_hears_that_it_was_cancelled_with_its_thread(hosting: Hosting) -> None:
    heard: list[TurnCancelled] = []
    async with hosting(payer()) as client:
        worker = client.get_agent("Worker")

        async def wait(turn: str) -> None:
            with pytest.raises(TurnCancelled, match="the thread was deleted") as raised:
                await worker.run("Pay", thread=HERE, correlation_id=turn)
            heard.append(raised.value)

        async with anyio.create_task_group() as group:
            group.start_soon(wait, "t1")
            await asked_of(client)
            group.start_soon(wait, "t2")
            await until(lambda: _is_queued(client, "t2"))
            await client.threads.delete(HERE)
    assert {error.correlation_id for error in heard} == {"t1", "t2"}


async def _is_queued(client: DurableAIAgentClient, turn: str) -> bool:
    try:
        return (await client.get_agent("Worker").get_turn(turn).status()).state == "queued"
    except TurnNotFound:
        return False


@pytest.mark.parametrize("new_thread", [True, False])
async def test_the_threads_of_agents_used_as_tools_go_along(hosting: Hosting, endpoint: str, new_thread: bool) -> None:
    """Of a turn that has ended, and of one in which the agent below waits for a person."""
    helper, _ = parrot("Helper")
    boss = agent(
        ScriptedModel(asks(("Helper", {"request": "a"}), ("Payer", {"request": "b"})), tells, "Fine."),
        as_tool("Helper", new_thread=new_thread),
        as_tool("Payer", new_thread=new_thread),
    )
    async with hosting(boss, helper, payer("Payer")) as client, sdk(endpoint) as operator:
        worker = client.get_agent("Worker")
        await client.get_agent("Helper").run("Hi", thread="elsewhere", correlation_id="other")
        first = await worker.start("Go", thread=HERE)
        await client.approve(await asked_of(client, "Payer"))
        await first
        assert len(await everything(operator, tellings=False)) == 8
        await client.threads.delete(HERE)
        left = await everything(operator)
        # What told another agent's thread something is found by that thread.
        assert sorted(left) == ["@dafx-helper@elsewhere", "other"]


async def test_a_child_that_waits_for_a_person_is_cancelled_and_goes_along(hosting: Hosting, endpoint: str) -> None:
    boss = agent(using(asks(("Payer", {"request": "b"}))), as_tool("Payer"))
    async with hosting(boss, payer("Payer")) as client, sdk(endpoint) as operator:
        await client.get_agent("Worker").start("Go", thread=HERE)
        await asked_of(client, "Payer")
        await client.threads.delete(HERE)
        assert await client.pending_approvals("Payer") == []
        assert await everything(operator) == []


async def test_agents_that_use_each_other_in_a_circle_are_deleted(hosting: Hosting, endpoint: str) -> None:
    ping = agent(using(asks(("Pong", {"request": "x"}))), as_tool("Pong"))
    pong = agent(using(asks(("Worker", {"request": "y"}))), as_tool("Worker"), name="Pong")
    async with hosting(ping, pong) as client, sdk(endpoint) as operator:
        await client.get_agent("Worker").run("Go", thread=HERE)
        await client.threads.delete(HERE)
        assert await everything(operator) == []


async def test_two_delete_the_same_thread_at_once(hosting: Hosting, endpoint: str) -> None:
    async with hosting(payer()) as client, sdk(endpoint) as operator:
        worker = client.get_agent("Worker")
        await worker.start("Pay", thread=HERE)
        await asked_of(client)
        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(client.threads.delete, HERE)
        assert await everything(operator) == []


async def test_requests_that_come_meanwhile_are_cancelled_or_begin_the_thread_anew(
    hosting: Hosting, endpoint: str
) -> None:
    ends: dict[str, str] = {}
    async with hosting(parrot()[0]) as client, sdk(endpoint) as operator:
        worker = client.get_agent("Worker")

        async def ask(turn: str) -> None:
            try:
                ends[turn] = (await worker.run("Hi", thread=HERE, correlation_id=turn)).text
            except TurnCancelled:
                ends[turn] = "cancelled"
            except TurnSuperseded:  # it was cancelled, or answered, and is gone
                ends[turn] = "gone"

        async with anyio.create_task_group() as group:
            for number in range(3):  # few: a thread of some schedulers waits for each
                group.start_soon(ask, f"t{number}")
            group.start_soon(client.threads.delete, HERE)
            for number in range(3, 6):
                group.start_soon(ask, f"t{number}")
        kept = {entry.correlation_id for entry in (await worker.get_transcript(HERE)).entries}  # type: ignore[union-attr]
        assert len(ends) == 6
        assert kept <= {turn for turn, end in ends.items() if end not in {"cancelled", "gone"}}
        await client.threads.delete(HERE)
        assert await everything(operator) == []


async def test_a_turn_that_cannot_end_is_named_and_the_next_call_goes_on(hosting: Hosting, endpoint: str) -> None:
    async with hosting(payer()) as client, sdk(endpoint) as operator:
        await client.get_agent("Worker").start("Pay", thread=HERE, correlation_id="t1")
        await asked_of(client)
        await operator.suspend_orchestration("t1")
        await until(lambda: _is(client, "t1", "suspended"))
        with pytest.raises(ThreadTimeout, match=r"turn t1 of agent 'Worker' in thread here is suspended") as raised:
            await client.threads.delete(HERE, timeout=2)
        assert (raised.value.operation, raised.value.thread_id) == ("delete", "here")
        await operator.resume_orchestration("t1")
        await client.threads.delete(HERE)
        assert await everything(operator) == []


async def _is(client: DurableAIAgentClient, turn: str, state: str) -> bool:
    return (await client.get_agent("Worker").get_turn(turn).status()).state == state


async def test_a_turn_that_was_terminated_does_not_hold_its_thread(hosting: Hosting, endpoint: str) -> None:
    async with hosting(payer()) as client, sdk(endpoint) as operator:
        await client.get_agent("Worker").start("Pay", thread=HERE, correlation_id="t1")
        await asked_of(client)
        await operator.terminate_orchestration("t1")
        await client.threads.delete(HERE)
        assert await everything(operator) == []


async def test_without_a_worker_nothing_is_changed(endpoint: str) -> None:
    async with DurableAIAgentClient.connect(endpoint, start_timeout=0.5) as client, sdk(endpoint) as operator:
        await client.threads.delete(HERE)  # there is none
        # Some schedulers end what was withdrawn, and then let it be removed, only when a worker has come.
        assert await everything(operator, tellings=False) == []
    worker = DurableAIAgentWorker.connect(endpoint)
    worker.add_agent(parrot()[0])
    async with DurableAIAgentClient.connect(endpoint, start_timeout=0.5) as client, sdk(endpoint) as operator:
        async with worker:
            answer = await client.get_agent("Worker").run("Hi", thread=HERE)
        with pytest.raises(AgentNotHosted):
            await client.threads.delete(HERE)
        assert (await client.get_agent("Worker").get_transcript(HERE)).response(answer.correlation_id)


async def test_a_thread_is_named_by_agent_and_id(hosting: Hosting) -> None:
    async with hosting(parrot()[0]) as client:
        for call in (client.threads.delete, client.threads.reset):
            with pytest.raises(TypeError, match="get_thread"):
                await call("here")  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]


async def test_nobody_there_within_the_time() -> None:
    async with DurableAIAgentClient.connect(f"http://127.0.0.1:{free_port()}") as client:
        with pytest.raises(SchedulerUnreachable):
            await client.threads.delete(HERE, timeout=0.2)


# --- Resetting ----------------------------------------------------------------------------------------------------


async def test_a_thread_that_was_reset_stays_with_what_others_keep_of_it(hosting: Hosting, endpoint: str) -> None:
    worker, _ = parrot()
    async with hosting(worker) as client, sdk(endpoint) as operator:
        joker = client.get_agent("Worker")
        given = {"schemaVersion": "1.1.0", "data": {"conversationHistory": [], "extensionData": {"vip": True}}}
        lines = export_of(given)
        await client.threads.import_(HERE, lines)
        await joker.run("Hi", thread=HERE, correlation_id="t1")
        for _ in range(2):
            await client.threads.reset(HERE)
            assert await everything(operator) == ["@dafx-worker@here"]
            entity = await operator.get_entity(HERE.entity_id)
            assert entity is not None
            assert entity.get_typed_state() == given
        assert (await joker.run("Hi", thread=HERE, correlation_id="t1")).text == "2: Hi (1)"
        await client.threads.delete(HERE)
        assert await everything(operator) == []


# --- Exporting and importing --------------------------------------------------------------------------------------


def export_of(document: Any) -> list[str]:
    return list(export_lines(HERE, document, datetime(2026, 1, 1, tzinfo=UTC)))


async def test_an_export_is_imported_as_it_was(hosting: Hosting, endpoint: str) -> None:
    async with hosting(payer()) as client, sdk(endpoint) as operator:
        worker = client.get_agent("Worker")
        handle = await worker.start(["Pay this:", DataContent.from_bytes(b"\x89PNG", "image/png")], thread=HERE)
        await client.approve(await asked_of(client), by="ana")
        await handle
        lines = [line async for line in client.threads.export(HERE)]
        header = json.loads(lines[0])
        assert (header["format"], header["version"], header["agent"], header["thread"]) == (
            "dafx.thread",
            1,
            "Worker",
            "here",
        )
        assert (header["entries"], len(lines)) == (2, 3)
        assert all(line.endswith("\n") and line.isascii() for line in lines)
        there = worker.get_new_thread()
        for _ in range(2):  # the same again is fine
            await client.threads.import_(there, lines)
        copy, original = await operator.get_entity(there.entity_id), await operator.get_entity(HERE.entity_id)
        assert copy is not None
        assert original is not None
        assert copy.get_typed_state() == original.get_typed_state()
        again = [line async for line in client.threads.export(there)]
        assert again[1:] == lines[1:]
        # What belongs to the original is not the copy's to delete.
        await client.threads.delete(there)
        assert await operator.get_orchestration_state(str(handle)) is not None
        assert len((await worker.get_transcript(HERE)).entries) == 2


async def test_a_copy_does_not_take_the_child_threads_of_the_original_along(hosting: Hosting, endpoint: str) -> None:
    helper, _ = parrot("Helper")
    boss = agent(using(asks(("Helper", {"request": "a"}))), as_tool("Helper"))
    async with hosting(boss, helper) as client, sdk(endpoint) as operator:
        worker = client.get_agent("Worker")
        await worker.run("Go", thread=HERE)
        before = sorted(await everything(operator))
        there = worker.get_new_thread()
        await client.threads.import_(there, client.threads.export(HERE))
        await client.threads.delete(there)
        assert sorted(await everything(operator)) == before


async def test_a_conversation_goes_on_where_it_was_imported(hosting: Hosting) -> None:
    async with hosting(parrot()[0], parrot("Other")[0]) as client:
        await client.get_agent("Worker").run("Hi", thread=HERE, correlation_id="t1")
        there = AgentThread("Other", "there")
        await client.threads.import_(there, "".join([line async for line in client.threads.export(HERE)]).encode())
        assert (await client.get_agent("Other").run("Hi", thread=there)).text == "1: Hi (2)"


async def test_an_export_leaves_out_the_turn_that_runs(hosting: Hosting) -> None:
    async with hosting(payer()) as client:
        worker = client.get_agent("Worker")
        first = await worker.start("Pay", thread=HERE)
        await client.approve(await asked_of(client))
        await first
        running = await worker.start("Pay again", thread=HERE, correlation_id="t2")
        await asked_of(client)
        header, *entries = [json.loads(line) async for line in client.threads.export(HERE)]
        await running.cancel()
        assert header["leftOut"] == ["t2"]
        assert [entry["correlationId"] for entry in entries] == [str(first)] * 2


async def test_an_export_does_not_go_into_a_thread_in_use(hosting: Hosting) -> None:
    async with hosting(payer()) as client:
        worker = client.get_agent("Worker")
        handle = await worker.start("Pay", thread=HERE)
        await asked_of(client)
        with pytest.raises(ThreadNotEmpty, match="1 entries"):
            await client.threads.import_(HERE, export_of(None))
        await handle.cancel()
        with pytest.raises(TurnCancelled):
            await handle
        lines = [line async for line in client.threads.export(HERE)]
        lines[0] = lines[0].replace('"entries":2', '"entries":1')
        with pytest.raises(ThreadNotEmpty, match="2 entries"):
            await client.threads.import_(HERE, lines[:2])
        await client.threads.reset(HERE)
        await client.threads.import_(HERE, lines[:2])
        assert len((await worker.get_transcript(HERE)).entries) == 1


async def test_what_was_cut_off_is_not_imported(hosting: Hosting, endpoint: str) -> None:
    async with hosting(parrot()[0]) as client, sdk(endpoint) as operator:
        await client.get_agent("Worker").run("Hi", thread=HERE, correlation_id="t1")
        lines = [line async for line in client.threads.export(HERE)]
        there = AgentThread("Worker", "there")
        attempts: list[tuple[list[str | bytes], int]] = [
            ([*lines[:2]], 2),
            ([*lines[:2], lines[2][:40]], 3),
            ([], 1),
            ([*lines[1:]], 1),
            ([lines[0], "\n", "[]"], 3),
            ([lines[0], b"\xff"], 2),
        ]
        for wrong, line in attempts:
            with pytest.raises(InvalidThreadExport) as raised:
                await client.threads.import_(there, wrong)
            assert raised.value.line == line
        assert await operator.get_entity(there.entity_id) is None


async def test_what_the_scheduler_does_not_take_is_said_before_anything_is_written(tmp_path: Any) -> None:
    with EmbeddedScheduler(db=tmp_path / "dafx.db", max_message_bytes=1_000_000).on_a_thread() as scheduler:
        worker = DurableAIAgentWorker.connect(scheduler.endpoint)
        worker.add_agent(parrot()[0])
        async with DurableAIAgentClient.connect(scheduler.endpoint) as client, worker, sdk(scheduler.endpoint) as sdk_:
            entry = {"$type": "request", "correlationId": "x", "messages": [], "filling": "x" * 400_000}
            many = {"schemaVersion": "1.1.0", "data": {"conversationHistory": [entry] * 3}}
            with pytest.raises(ThreadTooLarge, match=r"has 1,200,[0-9]{3} bytes.*\(1,000,000\)"):
                await client.threads.import_(HERE, export_of(many))
            assert await everything(sdk_) == []


# --- kill -9 ------------------------------------------------------------------------------------------------------

TILL = """
import sys
from dafx_actors import DurableAIAgentWorker, as_tool, durable_agent, tool
from dafx_actors.testing import ScriptedModel
from tests.integration.turns import whenever_asked

@durable_agent(model=whenever_asked(("pay", {"amount": 5})))
class Payer:
    instructions = "Pay."

    @tool(approval=True)
    def pay(self, amount: int) -> str:
        return f"paid {amount}"

@durable_agent(model=whenever_asked(("Payer", {"request": "pay"})))
class Worker:
    instructions = "Have it paid."
    tools = [as_tool("Payer")]

worker = DurableAIAgentWorker.connect(sys.argv[1])
worker.add_agent(Worker, Payer)
worker.start()
print("ready", flush=True)
sys.stdin.read()
"""
DELETER = """
import os, signal, sys
import anyio
from dafx_actors import AgentThread, DurableAIAgentClient
from dafx_actors._durable.backend import Backend

left = int(sys.argv[2])

def counted(name):
    real = getattr(Backend, name)
    async def call(self, *args, **kwargs):
        global left
        answer = await real(self, *args, **kwargs)
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return answer
    setattr(Backend, name, call)

for name in ("start", "wait", "state", "purge", "ended"):
    counted(name)

async def main():
    async with DurableAIAgentClient.connect(sys.argv[1]) as client:
        await client.threads.delete(AgentThread("Worker", "here"))

anyio.run(main)
print("deleted", flush=True)
"""


@pytest.mark.timeout(300)
async def test_a_deletion_that_is_killed_between_its_steps_is_completed_by_the_next(tmp_path: Any) -> None:
    """Killed after its first call of the scheduler, its third, its sixth...: each goes on where the one before was."""
    port = free_port()
    endpoint = f"http://127.0.0.1:{port}"
    options = ["--port", str(port), "--db", str(tmp_path / "dafx.db"), "--log-level", "error"]
    scheduler = Victim("scheduler", ["-m", "dafx_actors.cli", "scheduler", *options])
    kills = 0
    try:
        scheduler.start()
        await scheduler.ready()
        async with program(TILL, endpoint), DurableAIAgentClient.connect(endpoint) as client, sdk(endpoint) as operator:
            worker = client.get_agent("Worker")
            for _ in range(2):
                ended = await worker.start("Pay", thread=HERE)
                await client.approve(await asked_of(client, "Payer"))
                await ended
            await worker.start("Pay", thread=HERE, correlation_id="active")
            await asked_of(client, "Payer")
            queued = await worker.start("Pay", thread=HERE, correlation_id="queued")
            await in_state(queued, "queued")
            deleted = False
            while not deleted:
                calls = 1 + 2 * kills
                async with await anyio.open_process(
                    ["python", "-c", DELETER, endpoint, str(calls)], stderr=None
                ) as process:
                    try:
                        deleted = await line_of(process) == "deleted"
                    except anyio.EndOfStream:
                        kills += 1
                        assert await process.wait() == -9
            assert kills >= 5
            assert await everything(operator) == []
            assert await client.pending_approvals("Payer") == []
            fresh = await worker.start("Pay", thread=HERE, correlation_id="active")
            await client.approve(await asked_of(client, "Payer"))
            assert (await fresh).text == "paid 5"
    finally:
        if scheduler.process is not None:
            scheduler.kill()
