"""The peer's clients and orchestrations with our worker."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import anyio
import pytest

from dafx_actors import ChatMessage, DurableAIAgentClient, ModelReply, ModelRequest, durable_agent, tool
from dafx_actors.errors import ModelError
from dafx_actors.testing import ScriptedModel
from dafx_actors.transcript import FunctionCallContent, Request
from tests.interop.conftest import Hosting, Peer, agent_named

pytestmark = pytest.mark.anyio


async def entries(client: DurableAIAgentClient, thread: str, count: int) -> Any:
    """Wait until the thread has that many entries."""
    joker = client.get_agent("Joker")
    with anyio.fail_after(60):
        while len((transcript := await joker.get_transcript(thread)).entries) < count:
            await anyio.lowlevel.checkpoint()
    return transcript


async def test_its_client_finds_the_answer_of_our_worker(hosting: Hosting, peer: Peer) -> None:
    async with hosting(agent_named()):
        first = await peer.ask("run", agent="Joker", text="Hello")
        second = await peer.ask("run", agent="Joker", text="Again", thread=first["thread"])
    assert [first["text"], second["text"]] == ["Hello (2 messages)", "Again (4 messages)"]
    assert first["usage"]["total_token_count"] == 6
    assert (first["roles"], first["contents"]) == (["assistant"], ["text"])


async def test_its_client_need_not_wait(hosting: Hosting, peer: Peer, client: DurableAIAgentClient) -> None:
    async with hosting(agent_named()):
        accepted = await peer.ask("run", agent="Joker", text="Hello", wait=False)
        transcript = await entries(client, accepted["thread"], 2)
    assert "Request accepted" in accepted["text"]
    assert [message.text for message in transcript] == ["Hello", "Hello (2 messages)"]


async def test_its_client_sees_our_error_in_the_answer(hosting: Hosting, peer: Peer) -> None:
    model = ScriptedModel(ModelError("authentication", "who are you?"))
    async with hosting(agent_named(model=model)):
        answer = await peer.ask("run", agent="Joker", text="Hello")
    ((code, message),) = answer["errors"]
    assert code == "ModelError"
    assert "who are you?" in message


async def test_its_client_reads_an_answer_after_tools(hosting: Hosting, peer: Peer) -> None:
    call = ChatMessage("assistant", (FunctionCallContent("c1", "weather", {"city": "Oslo"}),))

    @durable_agent(model=ScriptedModel(ModelReply(message=call), "It is warm."))
    class Joker:
        instructions = "Be brief."

        @tool
        def weather(self, city: str) -> str:
            """The weather of a city."""
            return f"warm in {city}"

    async with hosting(Joker):
        answer = await peer.ask("run", agent="Joker", text="How is it?")
    assert answer["text"] == "It is warm."
    assert answer["roles"] == ["assistant", "tool", "assistant"]
    assert answer["contents"] == ["function_call", "function_result", "text"]


async def test_its_client_gets_a_typed_value_from_a_text_that_fits(hosting: Hosting, peer: Peer) -> None:
    async with hosting(agent_named(model=ScriptedModel('{"name": "Ada"}'))):
        answer = await peer.ask("run", agent="Joker", text="Who?", person=True)
    assert answer["name"] == "Ada"


# --- Orchestrations -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("durability", ["step", "turn"])
async def test_its_orchestration_calls_our_agent(hosting: Hosting, peer: Peer, durability: Any) -> None:
    @durable_agent(
        name="Joker", model=ScriptedModel(lambda asked: f"Saw {len(asked.messages)}."), durability=durability
    )
    class Joker:
        instructions = "Be brief."

    await peer.host()
    async with hosting(Joker):
        ended = await peer.ask("orchestrate", name="ask_twice", asked={"agent": "Joker", "texts": ["Hello", "Again"]})
    assert ended["failure"] is None
    first, second = ended["output"]
    assert [first["text"], second["text"]] == ["Saw 2.", "Saw 4."]
    assert first["usage"]["total_token_count"] == 5
    assert datetime.fromisoformat(first["created_at"]).tzinfo is not None
    assert (second["roles"], second["contents"]) == (["assistant"], ["text"])


async def test_its_orchestration_calls_our_agents_at_once(hosting: Hosting, peer: Peer) -> None:
    await peer.host()
    asked = {"agent": "Joker", "texts": ["One", "Two", "Three"]}
    async with hosting(agent_named()):
        ended = await peer.ask("orchestrate", name="ask_at_once", asked=asked)
    assert ended["output"] == ["One (2 messages)", "Two (2 messages)", "Three (2 messages)"]


async def test_its_orchestration_need_not_wait(hosting: Hosting, peer: Peer, client: DurableAIAgentClient) -> None:
    await peer.host()
    asked = {"agent": "Joker", "texts": ["Hello"], "thread": "t1"}
    async with hosting(agent_named()):
        ended = await peer.ask("orchestrate", name="ask_and_forget", asked=asked)
        transcript = await entries(client, "t1", 2)
    assert "Request accepted" in ended["output"]
    assert transcript.entries[1].text == "Hello (2 messages)"


async def test_its_orchestration_gets_a_typed_value_from_a_text_that_fits(hosting: Hosting, peer: Peer) -> None:
    await peer.host()
    async with hosting(agent_named(model=ScriptedModel('{"name": "Ada"}'))):
        ended = await peer.ask("orchestrate", name="ask_for_person", asked={"agent": "Joker", "texts": ["Who?"]})
    assert ended["output"] == "Ada"


async def test_its_orchestration_sees_our_error_in_the_answer(hosting: Hosting, peer: Peer) -> None:
    await peer.host()
    asked = {"agent": "Joker", "texts": ["Hello"], "thread": "t1"}
    async with hosting(agent_named(model=ScriptedModel(ModelError("authentication", "who are you?")))):
        ended = await peer.ask("orchestrate", name="ask_in_thread", asked=asked)
    ((code, message),) = ended["output"]["errors"]
    assert (code, ended["output"]["text"]) == ("ModelError", "")
    assert "who are you?" in message


async def test_its_orchestration_fails_while_our_thread_is_busy(
    hosting: Hosting, peer: Peer, client: DurableAIAgentClient
) -> None:
    called, release = anyio.Event(), anyio.Event()

    async def slow(_: ModelRequest) -> str:
        called.set()
        await release.wait()
        return "At last."

    await peer.host()
    asked = {"agent": "Joker", "texts": ["Me too"], "thread": "t1"}
    async with hosting(agent_named(model=ScriptedModel(slow))):
        turn = await client.get_agent("Joker").start("Hello", thread="t1")
        await called.wait()
        ended = await peer.ask("orchestrate", name="ask_in_thread", asked=asked)
        release.set()
        answer = await turn
        transcript = await client.get_agent("Joker").get_transcript("t1")
    assert "is busy with turn" in ended["output"]["raised"]
    assert answer.text == "At last."
    assert [entry.messages[0].text for entry in transcript.entries if isinstance(entry, Request)] == ["Hello"]
