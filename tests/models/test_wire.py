"""The wire form of a conversation: it fits any server, and what is stored stays as it came."""

from __future__ import annotations

import json
import re
from typing import Any

import attrs
import pytest

from dafx_actors._json.messages import dump_message, load_message
from dafx_actors._json.text import well_formed
from dafx_actors.errors import ModelError
from dafx_actors.models import UNPARSED_ARGUMENTS, ModelReply, ModelRequest, ToolDefinition
from dafx_actors.models._dialects import Dialect, dialect_of
from dafx_actors.models._kept import GatheredReply
from dafx_actors.models._reading import reply
from dafx_actors.models._wire import Outgoing, outgoing
from dafx_actors.transcript import (
    ChatMessage,
    DataContent,
    FunctionCallContent,
    FunctionResultContent,
    TextContent,
    UriContent,
)

OPENAI = "https://api.openai.com/v1"
GEMINI = "https://generativelanguage.googleapis.com"
MISTRAL = "https://api.mistral.ai/v1"
UNKNOWN = "http://127.0.0.1:8000/v1"
PNG = DataContent.from_bytes(b"\x89PNG" + b"x" * 300_000, "image/png")


def going(*messages: ChatMessage, url: str = UNKNOWN, host: str = "", model: str = "m", **asked: Any) -> Outgoing:
    request = ModelRequest(messages=messages, **asked)
    return outgoing(model, request, {}, dialect=dialect_of(url, model), host=host or url)


def sent(*messages: ChatMessage, **how: Any) -> list[dict[str, Any]]:
    wire: list[dict[str, Any]] = going(*messages, **how).body["messages"]
    return wire


def called(*calls: FunctionCallContent) -> ChatMessage:
    return ChatMessage("assistant", calls)


def gave(call_id: str, result: Any = "ok") -> ChatMessage:
    return ChatMessage("tool", (FunctionResultContent(call_id, result),))


def tool(name: str) -> ToolDefinition:
    return ToolDefinition(name=name, description="", parameters={"type": "object", "properties": {}})


def ids(messages: list[dict[str, Any]]) -> list[str]:
    return [call["id"] for message in messages for call in message.get("tool_calls") or ()]


def answers(messages: list[dict[str, Any]]) -> list[str]:
    return [message["tool_call_id"] for message in messages if message["role"] == "tool"]


# --- calls that a model wrote wrong --------------------------------------------------------------------------------


@pytest.mark.parametrize("written", ['{"a": "un', '"{\\"a\\": 1}"', "[1]", "nonsense", "{'a': 1}", "NaN"])
def test_a_call_that_was_written_wrong(written: str) -> None:
    """It goes back as a JSON object that still says what was written."""
    (message,) = sent(called(FunctionCallContent("c1", "add", extra={UNPARSED_ARGUMENTS: written})))
    assert json.loads(message["tool_calls"][0]["function"]["arguments"]) == {"unparsed_arguments": written}


# --- names -----------------------------------------------------------------------------------------------------------


def test_names_that_an_api_refuses() -> None:
    """They are cleaned, also in the history, no two to the same one, and found again in the reply."""
    names = ["functions.add", "functions_add", "x" * 71, "x" * 72, "größe", "日本"]
    history = called(FunctionCallContent("c1", "add<|channel|>commentary"))
    one = going(history, gave("c1"), tools=tuple(map(tool, names)), tool_choice="functions.add")
    wire = [each["function"]["name"] for each in one.body["tools"]]
    past = one.body["messages"][0]["tool_calls"][0]["function"]["name"]
    assert len({*wire, past}) == len(names) + 1
    assert all(re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", name) for name in [*wire, past])
    assert wire[1] == "functions_add"
    assert past == "add_channel_commentary"
    assert one.body["tool_choice"]["function"]["name"] == wire[0]
    calls = [{"id": f"c{n}", "function": {"name": name, "arguments": "{}"}} for n, name in enumerate(wire)]
    answer = {"choices": [{"message": {"tool_calls": calls}}]}
    read = one.returned(reply(answer), answer)
    assert [call.name for call in read.message.contents if isinstance(call, FunctionCallContent)] == names


# --- ids -------------------------------------------------------------------------------------------------------------

LONG = "chatcmpl-tool-0123456789abcdef0123456789abcdef01"


@pytest.mark.parametrize(
    ("url", "form"), [(OPENAI, ".{1,40}"), (MISTRAL, "[a-zA-Z0-9]{9}"), (UNKNOWN, "[a-zA-Z0-9]{9}")]
)
def test_call_ids_are_of_the_form_that_a_server_takes(url: str, form: str) -> None:
    """Short, unique although models repeat theirs, and those of the results with them."""
    two = called(FunctionCallContent("call_0", "a"), FunctionCallContent("call_0", "b"))
    both = ChatMessage("tool", (FunctionResultContent("call_0", "A"), FunctionResultContent("call_0", "B")))
    wire = sent(
        called(FunctionCallContent(LONG, "a")), gave(LONG), two, both, called(FunctionCallContent("", "a")), gave(""),
        url=url,
    )  # fmt: skip
    assert len(set(ids(wire))) == 4
    assert all(re.fullmatch(form, call_id) for call_id in ids(wire))
    assert answers(wire) == ids(wire)


def test_call_ids_stay_the_same_while_a_conversation_grows() -> None:
    """What a server has seen once it sees again; and an id that is right stays as it is."""
    begun = [called(FunctionCallContent("call_0", "a")), gave("call_0"), called(FunctionCallContent("abcDEF123", "a"))]
    more = [gave("abcDEF123"), called(FunctionCallContent("call_0", "a")), gave("call_0")]
    assert ids(sent(*begun, *more))[:2] == ids(sent(*begun)) == [ids(sent(*begun))[0], "abcDEF123"]
    assert ids(sent(*begun, url=OPENAI)) == ["call_0", "abcDEF123"]


def test_an_id_in_which_a_template_looks_for_the_name() -> None:
    """Kimi's own are left as they are, wherever it is served."""
    kimi = called(FunctionCallContent("functions.weather:0", "weather"))
    assert ids(sent(kimi, model="moonshotai/Kimi-K2")) == ["functions.weather:0"]


# --- what goes back to whom it came from -----------------------------------------------------------------------------

SIGNATURE = {"google": {"thought_signature": "c2ln"}}
REASONED: dict[str, Any] = {
    "id": "r1",
    "model": "m-2026",
    "choices": [
        {
            "logprobs": {"content": [{"token": "a", "logprob": -0.1}]},
            "finish_reason": "tool_calls",
            "message": {
                "role": "assistant",
                "content": None,
                "reasoning_content": "I look it up.",
                "reasoning_details": [{"type": "reasoning.encrypted", "data": "x"}],
                "tool_calls": [
                    {"id": "c1", "function": {"name": "weather", "arguments": "{}"}, "extra_content": SIGNATURE},
                    {"id": "c2", "function": {"name": "weather", "arguments": "{}"}},
                ],
            },
        }
    ],
}


def stored(answer: dict[str, Any], host: str = "a") -> ChatMessage:
    """The message of a reply, after it was kept and read again."""
    asked = going(ChatMessage("user", "?"), tools=(tool("weather"),), host=host)
    return load_message(json.loads(json.dumps(dump_message(asked.returned(reply(answer), answer).message))))


RESULTS = ChatMessage("tool", (FunctionResultContent("c1", "sunny"), FunctionResultContent("c2", "wet")))


def test_a_provider_gets_back_what_it_wants_back() -> None:
    """Signatures with their call, reasoning with its message, opaque and as they came."""
    message = stored(REASONED)
    assert message.text == ""
    wire = sent(ChatMessage("user", "?"), message, RESULTS, host="a")
    assert [call.get("extra_content") for call in wire[1]["tool_calls"]] == [SIGNATURE, None]
    assert wire[1]["reasoning_content"] == "I look it up."
    assert wire[1]["reasoning_details"] == REASONED["choices"][0]["message"]["reasoning_details"]


@pytest.mark.parametrize(("host", "model"), [("b", "m"), ("a", "other")])
def test_nobody_else_gets_it(host: str, model: str) -> None:
    """Neither another provider nor another model; the calls themselves go to all."""
    wire = sent(ChatMessage("user", "?"), stored(REASONED), RESULTS, host=host, model=model)
    assert set(wire[1]) == {"role", "content", "tool_calls"}
    assert [set(call) for call in wire[1]["tool_calls"]] == [{"id", "type", "function"}] * 2


def test_reasoning_goes_back_where_tools_were_called() -> None:
    """With the answer of such a turn too, in all later turns; not where none were called, nor without tools."""
    answer = {"choices": [{"message": {"content": "Sunny.", "reasoning_content": "It said so."}}]}
    turn = [ChatMessage("user", "?"), stored(REASONED), RESULTS, stored(answer)]
    wire = sent(*turn, ChatMessage("user", "And?"), stored(answer), host="a")
    assert [message.get("reasoning_content") for message in wire if message["role"] == "assistant"] == [
        "I look it up.",
        "It said so.",
        None,
    ]
    asked = going(ChatMessage("user", "?"), host="a")
    assert "dafx" not in asked.returned(reply(answer), answer).message.extra


@pytest.mark.parametrize(
    ("url", "model", "expected"),
    [
        ("https://api.deepseek.com", "deepseek-chat", ("", None)),
        (f"{GEMINI}/v1", "gemini-3-pro", (None, {"google": {"thought_signature": "skip_thought_signature_validator"}})),
    ],
)
def test_calls_that_another_model_made(url: str, model: str, expected: Any) -> None:
    """What must stand at each call stands at these too, with nothing in it."""
    wire = sent(ChatMessage("user", "?"), stored(REASONED), RESULTS, url=url, model=model)[1]
    assert (wire.get("reasoning_content"), wire["tool_calls"][0].get("extra_content")) == expected


def test_a_message_that_says_nothing_is_not_sent() -> None:
    """Such as one that had only reasoning, or an empty text."""
    assert sent(ChatMessage("assistant", ""), ChatMessage("user", "?")) == [{"role": "user", "content": "?"}]


def test_what_is_kept_of_a_reply() -> None:
    """Its id, the model that gave it, and its logprobs."""
    assert stored(REASONED).extra["dafx"]["reply"] == {
        "id": "r1",
        "model": "m-2026",
        "logprobs": {"content": [{"token": "a", "logprob": -0.1}]},
    }


def test_what_is_kept_of_a_stream() -> None:
    """The same as of a whole reply, though it comes in pieces."""
    gathered = GatheredReply()
    piece = {"index": 0, "function": {"name": "weather"}, "extra_content": SIGNATURE}
    for delta in (
        {"reasoning_content": "I look "},
        {"reasoning_content": "it up.", "reasoning_details": [{"a": 1}]},
        {"tool_calls": [piece], "reasoning_details": [{"b": 2}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": "{}"}}]},
    ):
        gathered.add({"id": "r1", "model": "m", "choices": [{"delta": delta}]})
    answer: Any = gathered.answer()
    assert (answer["id"], answer["model"]) == ("r1", "m")
    assert answer["choices"][0]["message"] == {
        "reasoning_content": "I look it up.",
        "reasoning_details": [{"a": 1}, {"b": 2}],
        "tool_calls": [{"extra_content": SIGNATURE}],
    }


# --- whole characters ------------------------------------------------------------------------------------------------


def test_no_half_characters_are_sent() -> None:
    """In messages, results, arguments, names, schemas and options alike; halves that belong together are joined."""
    half = "\ud83d"
    one = going(
        ChatMessage("system", f"caf{half}"),
        called(FunctionCallContent("c1", "f", {half: half})),
        gave("c1", {"text": f"{half}\ude00"}),
        tools=(attrs.evolve(tool("f"), description=half),),
        response_schema={"type": "object", "title": half, "properties": {half: {"type": "string"}}},
        options={"user": half},
    )
    text = json.dumps(one.body, ensure_ascii=False)
    text.encode()
    assert "😀" in text
    assert one.body["user"] == "\ufffd"


@pytest.mark.parametrize("url", [UNKNOWN, "https://api.openai.com/v1", "https://api.mistral.ai/v1"])
def test_no_half_characters_are_sent_wherever_they_stand(url: str) -> None:
    half = "\ud83d"
    dialect = attrs.evolve(dialect_of(url, "m"), call_ids="any", reasoning="always", authors=True)
    signed = {"dafx": {"from": "h/m", "back": {"reasoning_content": half, "extra_content": {half: half}}}}
    request = ModelRequest(
        messages=(
            ChatMessage("user", half, author_name=half),
            ChatMessage("user", (TextContent(half), UriContent(f"http://h/{half}.png", "image/png"))),
            ChatMessage(
                "assistant",
                (TextContent(half), FunctionCallContent(half, half, {"a": half}, extra=signed)),
                extra=signed,
            ),
            ChatMessage("tool", (FunctionResultContent(half, [half, {"$type": "text", "text": half}]),)),
            ChatMessage("assistant", half, extra=signed),
        ),
        tools=(tool("f"),),
        response_schema={"type": "object", "description": half},
    )
    with pytest.raises(ModelError, match="its base64 is broken"):
        sent(ChatMessage("user", (DataContent(f"data:image/png;base64,AAAA{half}", "image/png"),)))
    one = outgoing("m", request, {}, dialect=dialect, host="h")
    json.dumps(one.body, ensure_ascii=False).encode()
    assert one.body["messages"][2]["tool_calls"][0]["id"] == one.body["messages"][3]["tool_call_id"]


def test_what_is_whole_is_left_alone() -> None:
    """Nothing is copied where nothing is wrong."""
    value = {"a": ["b", {"ü😀": 1.5, "c": None}]}
    assert well_formed(value) is value
    assert well_formed({"a": ["\ud83d"], "b": 1}) == {"a": ["\ufffd"], "b": 1}


# --- what tools gave that is no text ---------------------------------------------------------------------------------


def in_result(*contents: Any) -> list[Any]:
    found: list[Any] = dump_message(ChatMessage("user", contents))["contents"]
    return found


@pytest.mark.parametrize(
    "result",
    [
        in_result(PNG)[0],
        in_result(TextContent("The page:"), PNG),
        {"page": 1, "picture": in_result(PNG)[0]},
        {"uri": PNG.uri, "media_type": "image/png", "extra": {}},
        PNG.uri,
    ],
    ids=["alone", "beside text", "inside an object", "kept by earlier versions", "as a text"],
)
def test_an_image_that_a_tool_gave(result: Any) -> None:
    """It is shown after all results, as an image, and not as text by the megabyte."""
    both = ChatMessage("tool", (FunctionResultContent("c1", result), FunctionResultContent("c2", "wet")))
    wire = sent(called(FunctionCallContent("c1", "look"), FunctionCallContent("c2", "weather")), both)
    assert [message["role"] for message in wire] == ["assistant", "tool", "tool", "user"]
    assert "image/png" in wire[1]["content"]
    assert len(wire[1]["content"]) < 200
    assert wire[3]["content"][1:] == [{"type": "image_url", "image_url": {"url": PNG.uri}}]


def test_what_cannot_be_shown_is_refused_in_words() -> None:
    """A file of a kind that no model looks at; one of text is read."""
    files = in_result(
        DataContent.from_bytes(b"PK" * 9999, "application/zip"), DataContent.from_bytes(b"a,b", "text/csv")
    )
    wire = sent(called(FunctionCallContent("c1", "look")), gave("c1", files))
    assert [message["role"] for message in wire] == ["assistant", "tool"]
    assert "application/zip: not shown" in wire[1]["content"]
    assert wire[1]["content"].endswith("\na,b")
    assert len(wire[1]["content"]) < 300


def test_images_of_two_steps_stay_with_their_steps() -> None:
    """Each after the results of its own, before what the model said of it."""
    look = [called(FunctionCallContent("c1", "look")), gave("c1", in_result(PNG))]
    roles = [message["role"] for message in sent(*look, ChatMessage("assistant", "A cat."), *look)]
    assert roles == ["assistant", "tool", "user", "assistant", "assistant", "tool", "user"]


# --- dialects --------------------------------------------------------------------------------------------------------


def test_mistral_takes_no_user_after_a_tool_and_no_authors() -> None:
    """A word of the model stands between, and the author's name is left out."""
    asked = ChatMessage("user", "Well?", author_name="Ann")
    wire = sent(called(FunctionCallContent("c1", "a")), gave("c1"), asked, url=MISTRAL)
    assert [message["role"] for message in wire] == ["assistant", "tool", "assistant", "user"]
    assert "name" not in wire[3]


@pytest.mark.parametrize(
    ("url", "model", "expected"),
    [
        (OPENAI, "gpt-5", Dialect(call_ids="forty")),
        ("https://mine.openai.azure.com/openai/v1/", "x", Dialect(call_ids="forty")),
        (f"{GEMINI}/v1beta/openai/", "gemini-2.5-pro", Dialect(call_ids="forty", apart=True)),
        (f"{GEMINI}/v1beta/openai/", "gemini-3-pro", Dialect(call_ids="forty", signs=True)),
        ("https://us-central1-aiplatform.googleapis.com/v1", "gemini-2.0", Dialect(call_ids="forty", apart=True)),
        ("https://api.anthropic.com/v1/", "claude", Dialect(call_ids="forty", structured="tool")),
        ("https://api.deepseek.com", "deepseek-chat", Dialect(call_ids="forty", structured="json", reasoning="always")),
        (MISTRAL, "mistral-large", Dialect(authors=False, user_after_tool=False)),
        ("https://api.groq.com/openai/v1", "llama", Dialect(call_ids="forty", apart=True)),
        ("http://localhost:11434/v1", "qwen3", Dialect(apart=True)),
        (UNKNOWN, "m", Dialect()),
        ("https://api.openai.com.evil.example/v1", "m", Dialect()),
    ],
)  # fmt: skip
def test_dialects(url: str, model: str, expected: Dialect) -> None:
    """By the host's name, and by nothing that only looks like it."""
    assert dialect_of(url, model) == expected


def test_a_reply_without_anything_to_keep() -> None:
    """It is the reply as it was read."""
    answer = {"choices": [{"message": {"content": "Hi"}}]}
    read = reply(answer)
    assert isinstance(read, ModelReply)
    assert going(ChatMessage("user", "?")).returned(read, answer) is read
