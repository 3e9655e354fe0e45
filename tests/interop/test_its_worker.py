"""Our clients and orchestrations with the peer's worker."""

from __future__ import annotations

import functools
from collections.abc import AsyncGenerator, Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import anyio
import attrs
import pytest
from durabletask.testing import create_test_backend

from dafx_actors import (
    DataContent,
    DurableAIAgentClient,
    Limits,
    ModelRequest,
    OrchestrationContext,
    PendingApproval,
    TurnStatus,
    UsageStats,
    orchestrator,
    when_all,
)
from dafx_actors._durable.backend import Backend
from dafx_actors.errors import (
    AgentNotHosted,
    CorrelationConflict,
    InvalidAnswer,
    ThreadBusy,
    TurnFailed,
    TurnTimeout,
    UnsupportedByPeer,
)
from dafx_actors.ids import AgentThread
from dafx_actors.testing import ScriptedModel
from tests.conftest import free_port
from tests.integration.turns import until
from tests.interop.conftest import Hosting, Peer, agent_named

pytestmark = pytest.mark.anyio


@attrs.frozen
class Person:
    name: str


async def test_our_client_finds_the_answer_of_its_worker(peer: Peer, client: DurableAIAgentClient) -> None:
    await peer.host("Joker")
    joker = client.get_agent("Joker")
    thread = joker.get_new_thread()
    first = await joker.run("Hello", thread=thread)
    second = await joker.run("Again", thread=thread)
    assert [first.text, second.text] == ["Hello (2 messages)", "Again (4 messages)"]
    assert first.usage == UsageStats(3, 4, 7)
    assert first.thread == thread
    assert [message.text for message in await joker.get_transcript(thread)] == [
        "Hello",
        "Hello (2 messages)",
        "Again",
        "Again (4 messages)",
    ]


async def test_a_turn_that_was_started_before_its_worker_is_handed_over_when_that_comes(
    peer: Peer, client: DurableAIAgentClient
) -> None:
    turn = await client.get_agent("Joker").start("Hello")
    await peer.host("Joker")
    assert (await turn).text == "Hello (2 messages)"


async def test_a_turn_is_found_again_by_its_id_and_not_sent_twice(
    peer: Peer, client: DurableAIAgentClient, endpoint: str
) -> None:
    await peer.host("Joker")
    joker = client.get_agent("Joker")
    thread = joker.get_new_thread()
    turn = await joker.run("Hello", thread=thread, wait_for_response=False)
    async with DurableAIAgentClient.connect(endpoint) as other:
        found = other.get_agent("Joker").get_turn(turn)
        answers = [await found, await joker.run("Hello", thread=thread, correlation_id=turn)]
        status = await found.status()
        assert await found.thread() == thread
    with pytest.raises(CorrelationConflict):
        await joker.run("Something else", thread=thread, correlation_id=turn)
    assert [answer.text for answer in answers] == ["Hello (2 messages)"] * 2
    assert status == TurnStatus(state="completed")
    assert len((await joker.get_transcript(thread)).entries) == 2


async def test_its_errors_are_typed(peer: Peer, client: DurableAIAgentClient) -> None:
    await peer.host("Joker")
    turn = await client.get_agent("Joker").start("fail")
    with pytest.raises(TurnFailed, match="the model is down") as failed:
        await turn
    assert failed.value.error_type == "RuntimeError"
    assert (await turn.status()).state == "failed"


async def test_a_value_is_held_to_its_type(peer: Peer, client: DurableAIAgentClient) -> None:
    await peer.host("Joker")
    joker = client.get_agent("Joker")
    assert (await joker.run("person", response_format=Person)).value == Person("Ada")
    with pytest.raises(InvalidAnswer):
        await joker.run("no person", response_format=Person)


async def test_options_and_the_schema_reach_its_model(peer: Peer, client: DurableAIAgentClient) -> None:
    await peer.host("Joker")
    schema = {"type": "object", "properties": {}}
    asked = client.get_agent("Joker").run(
        "options", response_format=schema, options={"temperature": 0.5}, tool_choice="none"
    )
    seen: Any = (await asked).value
    assert (seen["temperature"], seen["tool_choice"]) == (0.5, "none")
    assert seen["response_format"]["json_schema"]["schema"] == schema


async def test_its_tools_are_seen_in_the_answer(peer: Peer, client: DurableAIAgentClient) -> None:
    await peer.host("Joker")
    answer = await client.get_agent("Joker").run("weather")
    assert answer.text == "It is warm in Oslo."
    assert [message.role for message in answer.messages] == ["assistant", "tool", "assistant"]


async def test_what_it_cannot_do_is_a_typed_error(peer: Peer, client: DurableAIAgentClient) -> None:
    await peer.host("Joker")
    joker = client.get_agent("Joker")
    turn = await joker.start("Hello")
    await turn
    approval = PendingApproval(
        thread=await turn.thread(),
        correlation_id=str(turn),
        key="k",
        idempotency_key="k",
        call_id="c",
        tool="t",
        arguments={},
        digest="d",
        asked_at=datetime.now(UTC),
    )
    refused: list[Callable[[], Awaitable[Any]]] = [
        turn.cancel,
        functools.partial(client.approve, approval),
        functools.partial(client.deny, key="k", thread=str(approval.thread), agent="Joker"),
        functools.partial(joker.run, DataContent.from_bytes(b"x", "image/png")),
        functools.partial(joker.run, "Hello", limits=Limits(steps=1)),
        functools.partial(joker.run, "Hello", timeout=5.0, cancel_on_timeout=True),
    ]
    for each in refused:
        with pytest.raises(UnsupportedByPeer, match="'Joker' is hosted by a worker of agent-framework-durabletask"):
            await each()
    assert await client.pending_approvals("Joker") == []


async def test_an_answer_that_takes_too_long_is_a_time_out(peer: Peer, client: DurableAIAgentClient) -> None:
    await peer.host("Joker")
    joker = client.get_agent("Joker")
    turn = await joker.start("slow")
    with pytest.raises(TurnTimeout):
        await turn.result(timeout=0.2)
    assert (await turn.status()).state == "running"
    await peer.ask("release")
    assert (await turn).text == "At last."


async def test_a_worker_without_filters_takes_what_it_does_not_know(peer: Peer, client: DurableAIAgentClient) -> None:
    await peer.host("Joker", filters=False)
    with pytest.raises(TurnFailed, match="OrchestratorNotRegistered"):
        await client.get_agent("Joker").run("Hello")
    answer = await client.get_agent("Joker", hosted_by_peer=True).run("Hello", timeout=60)
    assert answer.text == "Hello (2 messages)"


# --- Schedulers that cannot tell what is hosted -------------------------------------------------------------------


class TestElsewhere:
    """On durabletask's in-memory backend, which stands for the schedulers that cannot tell what is hosted."""

    @pytest.fixture
    def endpoint(self) -> Any:
        port = free_port()
        backend = create_test_backend(port=port)
        yield f"http://127.0.0.1:{port}"
        backend.stop()

    @pytest.fixture
    async def client(self, endpoint: str) -> AsyncGenerator[DurableAIAgentClient]:
        async with DurableAIAgentClient.connect(endpoint, start_timeout=1.0) as client:
            yield client

    async def test_its_worker_is_found_out_by_a_sign(self, peer: Peer, client: DurableAIAgentClient) -> None:
        await peer.host("Joker")
        joker = client.get_agent("Joker")
        thread = joker.get_new_thread()
        first = await joker.run("Hello", thread=thread)
        turn = await joker.run("Again", thread=thread, wait_for_response=False)
        second = await joker.get_turn(turn)
        assert [first.text, second.text] == ["Hello (2 messages)", "Again (4 messages)"]

        async def listed() -> list[str]:
            threads = await client._backend.threads("dafx-joker")
            return [key for key, document in threads.items() if document]

        assert await until(listed) == [str(thread)]

    async def test_a_turn_whose_end_is_shown_late_is_handed_over_once(
        self, peer: Peer, client: DurableAIAgentClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Some schedulers show it only when they come to it, which is later than the turn is looked at again."""
        terminate = Backend.terminate

        async def late(*what: Any) -> None:
            await anyio.sleep(3)
            await terminate(*what)

        async def at_some_time(*what: Any) -> None:
            group.start_soon(late, *what)

        monkeypatch.setattr(Backend, "terminate", at_some_time)
        await peer.host("Joker")
        joker = client.get_agent("Joker")
        thread, answers = joker.get_new_thread(), list[str]()
        async with anyio.create_task_group() as group:
            answers += [(await joker.run(text, thread=thread)).text for text in ("Hello", "Again", "And again")]
        assert answers == ["Hello (2 messages)", "Again (4 messages)", "And again (6 messages)"]

    async def test_it_can_be_said(self, peer: Peer, client: DurableAIAgentClient) -> None:
        await peer.host("Joker")
        joker = client.get_agent("Joker", hosted_by_peer=True)
        turn = await joker.start("Hello")
        assert (await turn).text == "Hello (2 messages)"
        assert (await turn.status()).state == "completed"
        with pytest.raises(UnsupportedByPeer):
            await turn.cancel()

    async def test_an_agent_that_nobody_hosts_is_not_taken_for_one_of_the_peers(
        self, peer: Peer, client: DurableAIAgentClient
    ) -> None:
        await peer.host("Joker")
        with pytest.raises(AgentNotHosted):
            await client.get_agent("Nobody").run("Hello", thread="t1")
        assert await client._backend.thread(AgentThread("Nobody", "t1").entity_id) is None


# --- Orchestrations -----------------------------------------------------------------------------------------------


@orchestrator
async def ask_the_peer(context: OrchestrationContext, texts: list[str]) -> list[str]:
    joker, ours = context.get_agent("Joker", hosted_by_peer=True), context.get_agent("Ours")
    thread = joker.get_new_thread()
    answers = [await joker.run(text, thread=thread) for text in texts]
    person = await joker.run("person", response_format=Person)
    both = await when_all([joker.run("weather"), ours.run("Hello")])
    try:
        await joker.run("fail")
    except TurnFailed as error:
        failed = error.error_type
    else:
        failed = ""
    assert person.value is not None
    return [*(answer.text for answer in answers), person.value.name, *(answer.text for answer in both), failed]


async def test_our_orchestration_calls_its_agent(hosting: Hosting, peer: Peer, client: DurableAIAgentClient) -> None:
    await peer.host("Joker")
    async with hosting(agent_named("Ours"), orchestrators=(ask_the_peer,)):
        started = await client.schedule_new_orchestration(ask_the_peer, input=["Hello", "Again"])
        answers = await started.result(timeout=60)
    assert answers == [
        "Hello (2 messages)",
        "Again (4 messages)",
        "Ada",
        "It is warm in Oslo.",
        "Hello (2 messages)",
        "RuntimeError",
    ]


async def test_an_agent_of_ours_answers_as_the_peers_would(hosting: Hosting, client: DurableAIAgentClient) -> None:
    """Where `hosted_by_peer` has come to be wrong, since the agent has moved."""
    async with hosting(agent_named()):
        answer = await client.get_agent("Joker", hosted_by_peer=True).run("Hello", timeout=60)
    assert answer.text == "Hello (2 messages)"


async def test_a_busy_thread_of_ours_says_so_to_a_turn_that_was_handed_over(
    hosting: Hosting, client: DurableAIAgentClient
) -> None:
    called, release = anyio.Event(), anyio.Event()

    async def slow(_: ModelRequest) -> str:
        called.set()
        await release.wait()
        return "At last."

    async with hosting(agent_named(model=ScriptedModel(slow))):
        turn = await client.get_agent("Joker").start("Hello", thread="t1")
        await called.wait()
        with pytest.raises(ThreadBusy):
            await client.get_agent("Joker", hosted_by_peer=True).run("Me too", thread="t1")
        release.set()
        assert (await turn).text == "At last."
