"""One stored form: transcripts of ours through the peer's classes, its through ours, and threads that move."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import attrs
import pytest

from dafx_actors import ChatMessage, DurableAIAgentClient, ModelReply, durable_agent, tool
from dafx_actors._json.document import SCHEMA_VERSION, load_transcript
from dafx_actors._json.messages import dump_entry
from dafx_actors.errors import ModelError, TurnFailed
from dafx_actors.testing import ScriptedModel
from dafx_actors.transcript import (
    DataContent,
    ErrorContent,
    FunctionCallContent,
    FunctionResultContent,
    HostedFileContent,
    HostedVectorStoreContent,
    OpaqueContent,
    Request,
    Response,
    TextContent,
    TextReasoningContent,
    UnknownContent,
    UriContent,
    UsageContent,
    UsageStats,
)
from tests.interop.conftest import Hosting, Peer, agent_named, echo

pytestmark = pytest.mark.anyio

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)
OURS: list[tuple[Any, dict[str, Any]]] = [
    (TextContent("Hello"), {"type": "text", "text": "Hello"}),
    (TextReasoningContent("Hm."), {"type": "text_reasoning", "text": "Hm."}),
    (
        DataContent.from_bytes(b"x", "text/plain"),
        {"type": "data", "uri": "data:text/plain;base64,eA==", "media_type": "text/plain"},
    ),
    (
        UriContent("https://example.com/a.png", "image/png"),
        {"type": "uri", "uri": "https://example.com/a.png", "media_type": "image/png"},
    ),
    (
        ErrorContent("no", "E1", "really"),
        {"type": "error", "message": "no", "error_code": "E1", "error_details": "really"},
    ),
    (FunctionCallContent("c1", "f", {"x": [1]}), {"type": "function_call", "call_id": "c1", "name": "f"}),
    (FunctionResultContent("c1", {"y": 2}), {"type": "function_result", "call_id": "c1", "result": '{"y": 2}'}),
    (HostedFileContent("f1"), {"type": "hosted_file", "file_id": "f1"}),
    (HostedVectorStoreContent("v1"), {"type": "hosted_vector_store", "vector_store_id": "v1"}),
    (UsageContent(UsageStats(1, 2, 3)), {"type": "usage"}),
    (UnknownContent({"type": "shell_tool_call", "commands": ["ls"]}), {"type": "shell_tool_call", "commands": ["ls"]}),
]
"""Every content of ours, and what the peer makes of it."""


def stored(*contents: Any) -> dict[str, Any]:
    asked = Request(correlation_id="t", messages=(ChatMessage("user", "Hello"),), created_at=NOON, response_type="text")
    answered = Response(
        correlation_id="t",
        messages=(ChatMessage("assistant", contents, author_name="Joker"),),
        created_at=NOON,
        usage=UsageStats(1, 2, 3),
    )
    history = [dump_entry(asked), dump_entry(answered)]
    return {"schemaVersion": SCHEMA_VERSION, "data": {"conversationHistory": history}}


def without_extra(content: Any) -> Any:
    return attrs.evolve(content, extra={})


async def test_its_classes_read_every_content_of_ours(peer: Peer) -> None:
    read = await peer.ask("read", state=stored(*(content for content, _ in OURS)))
    _, *made = read["contents"]
    for (ours, theirs), found in zip(OURS, made, strict=True):
        assert theirs.items() <= found.items(), ours


async def test_what_its_classes_write_again_is_what_we_had_written(peer: Peer) -> None:
    read = await peer.ask("read", state=stored(*(content for content, _ in OURS)))
    _, answered = load_transcript(read["state"]).entries
    assert isinstance(answered, Response)
    assert [without_extra(content) for content in answered.messages[0].contents] == [ours for ours, _ in OURS]
    assert (answered.created_at, answered.usage, answered.messages[0].author_name) == (
        NOON,
        UsageStats(1, 2, 3),
        "Joker",
    )


async def test_our_classes_read_every_content_that_its_worker_stores(peer: Peer, client: DurableAIAgentClient) -> None:
    await peer.host("Joker")
    joker = client.get_agent("Joker")
    thread = joker.get_new_thread()
    with pytest.raises(TurnFailed, match="no"):  # one of the contents is an error
        await joker.run("everything", thread=thread)
    document = await client._backend.thread(thread.entity_id)
    _, answered = load_transcript(document).entries
    assert isinstance(answered, Response)
    contents = [content for message in answered.messages for content in message.contents]
    assert not any(isinstance(content, OpaqueContent) for content in contents)
    # It stores reasoning as a content that it cannot name, since it looks for another word than its framework's.
    assert {type(content) for content in contents} == {type(ours) for ours, _ in OURS} - {
        TextReasoningContent,
        UsageContent,  # added up in the response
    }
    unknown = [content.content["type"] for content in contents if isinstance(content, UnknownContent)]
    assert unknown == ["text_reasoning", "shell_tool_call"]
    assert dump_entry(answered)["messages"][0]["contents"] == [
        {key: value for key, value in raw.items() if value is not None}
        for raw in document["data"]["conversationHistory"][1]["messages"][0]["contents"]
    ]


async def test_its_client_reads_what_our_worker_stored(peer: Peer) -> None:
    document = stored(TextContent("Hello"), TextReasoningContent("Hm."))
    answer = await peer.ask("answer_in", state=document, correlation_id="t")
    assert (answer["text"], answer["contents"]) == ("Hello", ["text", "text_reasoning"])
    assert answer["usage"] == {"input_token_count": 1, "output_token_count": 2, "total_token_count": 3}


# --- Threads that move --------------------------------------------------------------------------------------------


async def test_a_thread_of_its_worker_is_continued_on_ours(
    hosting: Hosting, peer: Peer, client: DurableAIAgentClient
) -> None:
    model = ScriptedModel(echo)
    joker = client.get_agent("Joker")
    thread = joker.get_new_thread()
    await peer.host("Joker")
    for text in ("Hello", "weather"):
        await joker.run(text, thread=thread)
    with pytest.raises(TurnFailed):
        await joker.run("fail", thread=thread)
    await peer.ask("stop_worker")
    async with hosting(agent_named(model=model)):
        answer = await joker.run("Again", thread=thread)
        again = await peer.ask("run", agent="Joker", text="And again", thread=str(thread))
    assert [(message.role, message.text) for message in model.requests[0].messages] == [
        ("system", "Be brief."),
        ("user", "Hello"),
        ("assistant", "Hello (2 messages)"),
        ("user", "weather"),
        ("assistant", ""),
        ("tool", ""),
        ("assistant", "It is warm in Oslo."),
        ("user", "fail"),
        ("assistant", "(This turn ended without an answer: the model is down.\nNo tool was called in it.)"),
        ("user", "Again"),
    ]
    assert (answer.text, again["text"]) == ("Again (10 messages)", "And again (12 messages)")


async def test_a_thread_of_ours_is_continued_on_its_worker(
    hosting: Hosting, peer: Peer, client: DurableAIAgentClient
) -> None:
    call = ChatMessage("assistant", (FunctionCallContent("c1", "weather", {"city": "Oslo"}),))
    model = ScriptedModel(ModelReply(message=call), "It is warm.", ModelError("authentication", "who are you?"))

    @durable_agent(model=model)
    class Joker:
        instructions = "Be brief."

        @tool
        def weather(self, city: str) -> str:
            """The weather of a city."""
            return f"warm in {city}"

    joker = client.get_agent("Joker")
    thread = joker.get_new_thread()
    async with hosting(Joker):
        await joker.run("How is it?", thread=thread)
        with pytest.raises(ModelError):
            await joker.run("And now?", thread=thread)
    await peer.host("Joker")
    answer = await joker.run("Again", thread=thread)
    transcript = await joker.get_transcript(thread)
    # Its worker shows its model the turns that failed, too: it does not store which ones did.
    assert answer.text == "Again (8 messages)"
    assert [entry.messages[0].text for entry in transcript.entries if isinstance(entry, Request)] == [
        "How is it?",
        "And now?",
        "Again",
    ]


async def test_both_work_on_one_hub(hosting: Hosting, peer: Peer, client: DurableAIAgentClient) -> None:
    """Its worker uses filters: else it would take our turns, too, and fail them."""
    await peer.host("Theirs")
    async with hosting(agent_named("Ours")):
        for _ in range(10):
            assert (await client.get_agent("Ours").run("Hello")).text == "Hello (2 messages)"
            assert (await client.get_agent("Theirs").run("Hello")).text == "Hello (2 messages)"


async def test_a_turn_that_its_worker_died_over_is_done_by_ours(
    hosting: Hosting, peer: Peer, client: DurableAIAgentClient
) -> None:
    """The record of the turn has ended, so that ours cannot start one of that id: it answers in the operation."""
    await peer.host("Joker")
    joker = client.get_agent("Joker")
    turn = await joker.start("slow")
    await peer.ask("called")
    await peer.kill()
    async with hosting(agent_named()):
        assert (await turn).text == "slow (2 messages)"
        assert (await joker.run("Again", thread=await turn.thread())).text == "Again (4 messages)"
