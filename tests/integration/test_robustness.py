"""What may happen to turns, threads and workers, and what must not come of it."""

from __future__ import annotations

import signal
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.abc import SocketAttribute
from durabletask.azuremanaged.worker import DurableTaskSchedulerWorker
from durabletask.client import AsyncTaskHubGrpcClient
from durabletask.entities import EntityContext
from durabletask.worker import TaskHubGrpcWorker

from dafx_actors import (
    DurableAIAgentClient,
    DurableAIAgentWorker,
    ModelRequest,
    OrchestrationContext,
    durable_agent,
    orchestrator,
)
from dafx_actors.errors import OrchestrationFailed, TurnTerminated, TurnTimeout, UnsupportedTranscript
from dafx_actors.ids import AgentThread
from dafx_actors.scheduler import EmbeddedScheduler
from dafx_actors.testing import ScriptedModel
from tests.integration.conftest import Hosting
from tests.integration.test_conversations import agent_with, arrived, echo
from tests.scheduler.kills import Victim

pytestmark = pytest.mark.anyio


@pytest.fixture
def embedded(tmp_path: Path) -> Any:
    """Only this scheduler hands work out again: durabletask's in-memory one keeps it on the dead worker."""
    return EmbeddedScheduler(db=tmp_path / "dafx.db").on_a_thread()


class Held:
    """A model that holds its calls until it is told to go on."""

    def __init__(self) -> None:
        self.called = anyio.Event()
        self.release = anyio.Event()
        self.model = ScriptedModel(self.reply)

    async def reply(self, request: ModelRequest) -> str:
        self.called.set()
        await self.release.wait()
        return echo(request)


@asynccontextmanager
async def sdk(endpoint: str) -> AsyncGenerator[AsyncTaskHubGrpcClient]:
    """durabletask's own client, as an operator or another system would use it."""
    async with AsyncTaskHubGrpcClient(host_address=endpoint.removeprefix("http://")) as client:
        yield client


async def until(check: Callable[[], Any]) -> Any:
    """Wait for a fact that nobody announces."""
    with anyio.fail_after(60):
        while not (found := await check()):
            await anyio.lowlevel.checkpoint()
    return found


# durabletask's in-memory scheduler goes on with what was terminated when the answer of a step arrives.
@pytest.mark.parametrize("endpoint", ["embedded"], indirect=True)
async def test_a_terminated_turn_does_not_wedge_its_thread(hosting: Hosting, endpoint: str) -> None:
    held = Held()
    async with hosting(agent_with(held.model)) as client, sdk(endpoint) as operator:
        joker = client.get_agent("Joker")
        thread = joker.get_new_thread()
        dead = await joker.run("Never answered", thread=thread, wait_for_response=False)
        await held.called.wait()
        await operator.terminate_orchestration(dead)
        with pytest.raises(TurnTerminated):
            await joker.run("Never answered", thread=thread, correlation_id=dead)
        held.release.set()
        answer = await joker.run("Next", thread=thread)
        transcript = await joker.get_transcript(thread)
    assert answer.text == "Next (4 messages)"
    ended = transcript.response(dead)
    assert ended is not None
    assert ended.error is not None
    assert ended.error.error_code == "TurnTerminated"


async def test_a_turn_that_is_terminated_while_it_waits_lets_the_others_pass(hosting: Hosting, endpoint: str) -> None:
    held = Held()
    async with hosting(agent_with(held.model)) as client, sdk(endpoint) as operator:
        joker = client.get_agent("Joker")
        thread = joker.get_new_thread()
        ids = []
        for number in range(3):
            ids.append(await joker.run(str(number), thread=thread, wait_for_response=False))
            await arrived(client, joker.name, str(thread), number + 1)
        await operator.terminate_orchestration(ids[1])
        held.release.set()
        first = await joker.run("0", thread=thread, correlation_id=ids[0])
        last = await joker.run("2", thread=thread, correlation_id=ids[2])
    assert [first.text, last.text] == ["0 (2 messages)", "2 (6 messages)"]


# durabletask's in-memory scheduler never hands out again what the stopping worker was given at its end.
@pytest.mark.parametrize("endpoint", ["embedded"], indirect=True)
async def test_stopping_a_worker_lets_its_steps_finish(endpoint: str) -> None:
    held = Held()
    async with DurableAIAgentClient.connect(endpoint) as client:
        joker = client.get_agent("Joker")
        thread = joker.get_new_thread()
        first, second = (DurableAIAgentWorker.connect(endpoint) for _ in range(2))
        first.add_agent(agent_with(held.model))
        second.add_agent(agent_with(ScriptedModel()))
        async with anyio.create_task_group() as tasks, first:
            await joker.run("Hello", thread=thread, correlation_id="the-only-one", wait_for_response=False)
            await held.called.wait()
            # The stop waits for the step, which goes on only when the stop is on its way.
            tasks.start_soon(until_gate_closed, first, held)
        async with second:
            answer = await joker.run("Hello", thread=thread, correlation_id="the-only-one")
    assert answer.text == "Hello (2 messages)"
    assert len(held.model.requests) == 1


async def until_gate_closed(worker: DurableAIAgentWorker, held: Held) -> None:
    async def closed() -> bool:
        return worker._gate._closed

    await until(closed)
    held.release.set()


@pytest.mark.parametrize("durability", ["step", "turn"])
async def test_a_step_that_does_not_end_is_handed_to_another_worker(embedded: Any, durability: str) -> None:
    """Of a turn in one operation, all of it."""
    held = Held()
    with embedded as scheduler:
        async with DurableAIAgentClient.connect(scheduler.endpoint) as client:
            joker = client.get_agent("Joker")
            thread = joker.get_new_thread()
            first = DurableAIAgentWorker.connect(scheduler.endpoint, stop_timeout=0.1)
            first.add_agent(agent_with(held.model, durability=durability))
            async with first:
                sent = await joker.run("Hello", thread=thread, wait_for_response=False)
                await held.called.wait()
            second = DurableAIAgentWorker.connect(scheduler.endpoint)
            second.add_agent(agent_with(ScriptedModel("From the second worker."), durability=durability))
            async with second:
                answer = await joker.run("Hello", thread=thread, correlation_id=sent)
            transcript = await joker.get_transcript(thread)
    assert answer.text == "From the second worker."
    assert [message.text for message in transcript] == ["Hello", "From the second worker."]


@pytest.mark.timeout(25)  # durabletask's own worker would wait for an answer for 30 seconds
async def test_a_worker_stops_where_something_listens_and_says_nothing() -> None:
    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener:
        port = listener.extra(SocketAttribute.local_port)
        worker = DurableAIAgentWorker.connect(f"http://127.0.0.1:{port}")
        worker.add_agent(agent_with(ScriptedModel()))
        worker.start()
        first: Any = listener.listeners[0]
        async with await first.accept():
            await anyio.to_thread.run_sync(worker.stop)


WORKER_THAT_HANGS = """
import sys, time
import anyio
from dafx_actors import DurableAIAgentWorker, durable_agent
from dafx_actors.testing import ScriptedModel

async def hang(request):
    print("asked", flush=True)
    await anyio.sleep_forever()

@durable_agent(name="Joker", model=ScriptedModel(hang))
class Joker:
    instructions = "You are good at telling jokes."

worker = DurableAIAgentWorker.connect(sys.argv[1])
worker.add_agent(Joker)
anyio.run(worker.serve)
"""


async def test_a_turn_survives_kill_9_of_its_worker(embedded: Any) -> None:
    with embedded as scheduler:
        async with DurableAIAgentClient.connect(scheduler.endpoint) as client:
            joker = client.get_agent("Joker")
            thread = joker.get_new_thread()
            command = [sys.executable, "-c", WORKER_THAT_HANGS, scheduler.endpoint]
            async with await anyio.open_process(command, stderr=None) as process:
                try:
                    sent = await joker.run("Hello", thread=thread, wait_for_response=False)
                    assert process.stdout is not None
                    await process.stdout.receive()
                finally:
                    process.kill()
            second = DurableAIAgentWorker.connect(scheduler.endpoint)
            second.add_agent(agent_with(ScriptedModel(echo)))
            async with second:
                answer = await joker.run("Hello", thread=thread, correlation_id=sent)
    assert answer.text == "Hello (2 messages)"


async def test_workers_of_different_agents_share_a_task_hub(hosting: Hosting, endpoint: str) -> None:
    async with (
        hosting(agent_with(ScriptedModel("A."), name="A")),
        hosting(agent_with(ScriptedModel("B."), name="B")),
        DurableAIAgentClient.connect(endpoint) as client,
    ):
        answers = [(await client.get_agent(name).run("Who?")).text for name in ("B", "A")]
    assert answers == ["B.", "A."]


async def test_an_error_in_the_body_comes_out_of_the_worker_as_it_is(endpoint: str) -> None:
    worker = DurableAIAgentWorker.connect(endpoint)
    worker.add_agent(agent_with(ScriptedModel()))
    with pytest.raises(KeyError, match="mine"):
        async with worker:
            raise KeyError("mine")


async def test_a_thread_of_a_newer_version_is_refused_and_left_as_it_is(hosting: Hosting, endpoint: str) -> None:
    newer = {"schemaVersion": "2.0.0", "data": {"messages": "in another form"}}

    def write(context: EntityContext, _: Any) -> None:
        context.set_state(newer)

    thread = AgentThread("Joker", "from-the-future")
    # A worker without filters takes everything, so it must be gone before ours starts.
    future = TaskHubGrpcWorker(host_address=endpoint.removeprefix("http://"))
    future.add_entity(write, "dafx-Joker")
    async with sdk(endpoint) as operator:

        async def written() -> bool:
            found = await operator.get_entity(thread.entity_id)
            return found is not None and found.get_typed_state() == newer

        future.start()  # type: ignore[no-untyped-call]
        await operator.signal_entity(thread.entity_id, "write")
        await until(written)
        await anyio.to_thread.run_sync(future.stop)
        async with hosting(agent_with(ScriptedModel(echo))) as client:
            with pytest.raises(UnsupportedTranscript):
                await client.get_agent("Joker").run("Hello", thread=thread)
            with pytest.raises(UnsupportedTranscript):
                await client.get_agent("Joker").get_transcript(thread)
        stored = await operator.get_entity(thread.entity_id)
    assert stored is not None
    assert stored.get_typed_state() == newer


async def test_the_peers_signal_starts_a_turn(hosting: Hosting, endpoint: str) -> None:
    asked = {"message": "Hello", "correlationId": "peer-1", "role": "user", "request_response_format": "text"}
    async with hosting(agent_with(ScriptedModel(echo))) as client, sdk(endpoint) as peer:
        joker = client.get_agent("Joker")
        thread = joker.get_new_thread()
        await peer.signal_entity(thread.entity_id, "run", asked)

        async def answered() -> Any:
            return (await joker.get_transcript(thread)).response("peer-1")

        response = await until(answered)
    assert response.text == "Hello (2 messages)"


@orchestrator
async def call_as_the_peer_does(context: OrchestrationContext, thread_id: str) -> Any:
    asked = {"message": "Hello", "correlationId": context.new_uuid(), "orchestrationId": context.instance_id}
    return await context.call_entity(AgentThread("Joker", thread_id).entity_id, "run", asked)


async def test_the_peers_call_is_answered_inside_the_operation(hosting: Hosting) -> None:
    async with hosting(agent_with(ScriptedModel(echo)), orchestrators=(call_as_the_peer_does,)) as client:
        calling = await client.schedule_new_orchestration(call_as_the_peer_does, input="called")
        response = await calling
        transcript = await client.get_agent("Joker").get_transcript("called")
    assert response["type"] == "agent_response"
    assert response["messages"][0]["contents"] == [{"type": "text", "text": "Hello (2 messages)"}]
    assert [message.text for message in transcript] == ["Hello", "Hello (2 messages)"]


async def test_the_peers_call_fails_at_once_while_a_turn_is_active(hosting: Hosting) -> None:
    held = Held()
    async with hosting(agent_with(held.model), orchestrators=(call_as_the_peer_does,)) as client:
        joker = client.get_agent("Joker")
        active = await joker.run("First", thread="called", wait_for_response=False)
        await held.called.wait()
        calling = await client.schedule_new_orchestration(call_as_the_peer_does, input="called")
        with pytest.raises(OrchestrationFailed, match=f"is busy with turn {active}"):
            await calling
        held.release.set()
        await joker.run("First", thread="called", correlation_id=active)


async def test_reset_forgets_and_delete_leaves_nothing(hosting: Hosting, endpoint: str) -> None:
    async with hosting(agent_with(ScriptedModel(echo))) as client, sdk(endpoint) as operator:
        joker = client.get_agent("Joker")
        thread = joker.get_new_thread()
        await joker.run("Hello", thread=thread)
        await operator.signal_entity(thread.entity_id, "reset")
        answer = await joker.run("Again", thread=thread)
        await operator.signal_entity(thread.entity_id, "delete")

        async def gone() -> bool:
            return not list(await joker.get_transcript(thread))

        await until(gone)
    assert answer.text == "Again (2 messages)"


@durable_agent(name="Greeter", model=ScriptedModel(echo))
class Greeter:
    instructions = "Greet."


async def test_importing_and_declaring_registers_nothing(endpoint: str) -> None:
    worker = DurableAIAgentWorker.connect(endpoint)
    assert worker.registered_agent_names == []


async def test_an_agent_that_comes_too_late_is_refused_and_not_listed(endpoint: str) -> None:
    async with DurableAIAgentWorker.connect(endpoint) as worker:
        with pytest.raises(RuntimeError, match="agents cannot be added while the worker is running; add them before"):
            worker.add_agent(agent_with(ScriptedModel()))
        assert worker.registered_agent_names == []


async def test_a_wrapped_worker_with_default_settings_holds_a_thousand_turns_in_flight(embedded: Any) -> None:
    turns, asked = 1_000, 0
    all_asked = anyio.Event()

    async def wait_for_the_others(request: ModelRequest) -> str:
        nonlocal asked
        asked += 1
        if asked == turns:
            all_asked.set()
        await all_asked.wait()
        return "Together."

    with embedded as scheduler:
        worker = DurableTaskSchedulerWorker(
            host_address=scheduler.endpoint, taskhub="default", token_credential=None, secure_channel=False
        )
        agent_worker = DurableAIAgentWorker(worker)
        agent_worker.add_agent(agent_with(ScriptedModel(wait_for_the_others)))
        answers: list[str] = []
        async with agent_worker, DurableAIAgentClient.connect(scheduler.endpoint, start_timeout=100) as client:
            joker = client.get_agent("Joker")

            async def ask() -> None:
                answers.append((await joker.run("Hello")).text)

            async with anyio.create_task_group() as tasks:
                for _ in range(turns):
                    tasks.start_soon(ask)
    assert answers == ["Together."] * turns


WORKER_THAT_REPEATS = """
import sys
from dafx_actors import DurableAIAgentWorker, durable_agent

@durable_agent
class Witness:
    async def respond(self, turn):
        return turn.text

worker = DurableAIAgentWorker.connect(sys.argv[1])
worker.add_agent(Witness)
worker.start()
print("ready", flush=True)
sys.stdin.read()
"""


async def test_a_turn_whose_worker_is_only_busy_is_not_withdrawn(embedded: Any) -> None:
    with embedded as scheduler:
        worker = Victim("worker", ["-c", WORKER_THAT_REPEATS, scheduler.endpoint])
        worker.start()
        assert worker.process is not None
        try:
            async with DurableAIAgentClient.connect(scheduler.endpoint, start_timeout=0.2) as client:

                async def hosted() -> bool:
                    found = await client._backend.hosted()
                    return found is not None and found.orchestrations.take("dafx-Witness.turn")

                await until(hosted)
                # As busy as can be: connected, and taking nothing up.
                worker.process.send_signal(signal.SIGSTOP)
                witness = client.get_agent("Witness")
                with pytest.raises(TurnTimeout):
                    await witness.run("Hello", thread="busy", correlation_id="turn-1", timeout=1.0)
                worker.process.send_signal(signal.SIGCONT)
                answer = await witness.run("Hello", thread="busy", correlation_id="turn-1")
        finally:
            worker.kill()
    assert answer.text == "Hello"
