"""The mapping to chat completions and back, without a server."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from dafx_actors._json.messages import dump_usage, load_usage
from dafx_actors.errors import ModelError
from dafx_actors.models import UNPARSED_ARGUMENTS, ModelRequest, ToolDefinition
from dafx_actors.models._dialects import dialect_of
from dafx_actors.models._reading import StreamedReply, reply
from dafx_actors.models._strict import strict_form
from dafx_actors.models._wire import outgoing
from dafx_actors.transcript import (
    ChatMessage,
    Content,
    DataContent,
    ErrorContent,
    FunctionCallContent,
    FunctionResultContent,
    HostedFileContent,
    HostedVectorStoreContent,
    OpaqueContent,
    TextContent,
    TextReasoningContent,
    UnknownContent,
    UriContent,
    UsageContent,
    UsageStats,
)

PNG = DataContent.from_bytes(b"\x89PNG", "image/png")


OPENAI = dialect_of("https://api.openai.com/v1", "m")


def body(model: str, request: ModelRequest, defaults: dict[str, Any]) -> dict[str, Any]:
    return outgoing(model, request, defaults, dialect=OPENAI).body


def sent(*messages: ChatMessage) -> list[dict[str, Any]]:
    wire: list[dict[str, Any]] = body("m", ModelRequest(messages=messages), {})["messages"]
    return wire


def test_conversation() -> None:
    """Instructions, a question, a tool's call and its result, and the answer."""
    assert sent(
        ChatMessage("system", "Be brief."),
        ChatMessage("user", "Weather in Oslo?", author_name="Ann Smith <ann>"),
        ChatMessage("assistant", (FunctionCallContent("c1", "weather", {"city": "Oslo", "räum": 1}),)),
        ChatMessage("tool", (FunctionResultContent("c1", {"celsius": 3}), FunctionResultContent("c2", "Ø"))),
        ChatMessage("assistant", "3 °C", author_name="Meteorologist"),
    ) == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "name": "Ann_Smith_ann_", "content": "Weather in Oslo?"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {
                    "id": "c1",
                    "type": "function",
                    "function": {"name": "weather", "arguments": '{"city": "Oslo", "räum": 1}'},
                }
            ],
        },
        {"role": "tool", "tool_call_id": "c1", "content": '{"celsius": 3}'},
        {"role": "tool", "tool_call_id": "c2", "content": "Ø"},
        {"role": "assistant", "name": "Meteorologist", "content": "3 °C"},
    ]


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (UriContent("https://a/b.png", "image/png"), {"type": "image_url", "image_url": {"url": "https://a/b.png"}}),
        (PNG, {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw=="}}),
        # Not base64, upper case, with a parameter, and the type only in the URI: RFC 2397 has it all.
        (
            DataContent("data:image/SVG+xml;charset=utf-8,%3Csvg/%3E"),
            {"type": "image_url", "image_url": {"url": "data:image/svg+xml;base64,PHN2Zy8+"}},
        ),
        (
            DataContent.from_bytes(b"RIFF", "audio/x-wav"),
            {"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "wav"}},
        ),
        (
            DataContent.from_bytes(b"ID3", "audio/mpeg"),
            {"type": "input_audio", "input_audio": {"data": "SUQz", "format": "mp3"}},
        ),
        (
            DataContent.from_bytes(b"%PDF", "application/pdf"),
            {
                "type": "file",
                "file": {"filename": "document.pdf", "file_data": "data:application/pdf;base64,JVBERg=="},
            },
        ),
        (HostedFileContent("file-1"), {"type": "file", "file": {"file_id": "file-1"}}),
    ],
)
def test_what_a_user_can_show(content: Content, part: dict[str, Any]) -> None:
    """Images, sound, PDF and files that the provider holds, beside text."""
    message = ChatMessage("user", (TextContent("What is this?"), content))
    assert sent(message) == [{"role": "user", "content": [{"type": "text", "text": "What is this?"}, part]}]


@pytest.mark.parametrize(
    ("role", "content", "why"),
    [
        ("user", UriContent("https://a/b.pdf", "application/pdf"), "only images can be sent by URI"),
        ("user", DataContent.from_bytes(b"PK", "application/zip"), "application/zip"),
        ("user", DataContent("data:image/png;base64,***", "image/png"), "base64 is broken"),
        ("user", DataContent("data:image/png;base64"), "holds no data"),
        ("user", DataContent("https://a/b.png", "image/png"), "no form"),
        ("user", HostedVectorStoreContent("vs-1"), "HostedVectorStoreContent"),
        ("user", FunctionCallContent("c1", "f"), "FunctionCallContent"),
        ("system", PNG, "text only"),
        ("assistant", PNG, "text only"),
        ("tool", TextContent("done"), "function results only"),
    ],
)
def test_what_cannot_be_sent(role: Any, content: Content, why: str) -> None:
    """An error that names the content, before anything is sent; never a message without it."""
    with pytest.raises(ModelError, match=why) as raised:
        sent(ChatMessage(role, (content,)))
    assert raised.value.kind == "bad_request"


def test_what_stays_behind() -> None:
    """What is not for models is left out, and so is a message that holds nothing else."""
    hidden: tuple[Content, ...] = (
        TextReasoningContent("hm"),
        UsageContent(UsageStats(1, 1, 2)),
        ErrorContent("it broke"),
        UnknownContent({"a": 1}),
        OpaqueContent({"$type": "new"}),
    )
    assert sent(ChatMessage("assistant", (*hidden, TextContent("Yes"))), ChatMessage("assistant", hidden)) == [
        {"role": "assistant", "content": "Yes"}
    ]


def test_tools_and_their_choice() -> None:
    """Tools, strict ones marked, and a choice by word or by name; a choice without tools is not sent."""
    schema: dict[str, Any] = {"type": "object", "properties": {}}
    tools = (
        ToolDefinition(name="a", description="does a", parameters=schema),
        ToolDefinition(name="b", description="does b", parameters=schema, strict=True),
    )
    wire = body("m", ModelRequest(messages=(), tools=tools, tool_choice="b"), {})
    assert wire["tools"] == [
        {"type": "function", "function": {"name": "a", "description": "does a", "parameters": schema}},
        {"type": "function", "function": {"name": "b", "description": "does b", "parameters": schema, "strict": True}},
    ]
    assert wire["tool_choice"] == {"type": "function", "function": {"name": "b"}}
    assert body("m", ModelRequest(messages=(), tools=tools, tool_choice="required"), {})["tool_choice"] == "required"
    assert "tool_choice" not in body("m", ModelRequest(messages=(), tool_choice="auto"), {})


def test_options() -> None:
    """A request's options come over the model's; neither comes over what the request says itself."""
    request = ModelRequest(messages=(), options={"temperature": 0.1, "model": "other"})
    wire = body("m", request, {"temperature": 0.9, "seed": 1})
    assert wire == {"temperature": 0.1, "seed": 1, "model": "m", "messages": []}


STRICT: dict[str, Any] = {
    "type": "object",
    "title": "A city!",
    "properties": {"name": {"type": "string"}, "twins": {"type": "array", "items": {"$ref": "#/$defs/twin"}}},
    "required": ["name", "twins"],
    "additionalProperties": False,
    "$defs": {"twin": {"anyOf": [{"type": "string"}, {"type": "null"}]}},
}


def test_response_schema() -> None:
    """The schema goes as it is, under a name that the API takes, and strictly where it can."""
    wire = body("m", ModelRequest(messages=(), response_schema=STRICT), {})
    assert wire["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "A_city_", "schema": STRICT, "strict": True},
    }


@pytest.mark.parametrize(
    "schema",
    [
        {**STRICT, "additionalProperties": True},
        {**STRICT, "required": ["name", "mayor"]},
        {**STRICT, "$defs": {"twin": {"type": "object", "properties": {"a": {}}}}},
        {**STRICT, "$defs": {"twin": {"type": "object", "additionalProperties": {"type": "string"}}}},
        {**STRICT, "$defs": {"twin": {"type": "string", "not": {"const": "none"}}}},
        {**STRICT, "$defs": {"twin": {"allOf": [{"type": "string"}, {"minLength": 1}]}}},
        {**STRICT, "$defs": {"twin": {"type": "array", "prefixItems": [{"type": "string"}]}}},
        {"type": "array", "items": {"type": "string"}},
        {},
    ],
)
def test_schema_that_cannot_be_strict(schema: dict[str, Any]) -> None:
    """An object that is open on purpose, what may be anything, a keyword that strict mode refuses, a root of another
    kind: such a schema has no strict form."""
    assert strict_form(schema) is None
    assert strict_form(STRICT) == STRICT


def answer(finish_reason: Any = "stop", **message: Any) -> dict[str, Any]:
    choice = {"index": 0, "finish_reason": finish_reason, "message": {"role": "assistant", "content": None, **message}}
    return {"id": "r1", "choices": [choice], "usage": {"prompt_tokens": 42, "completion_tokens": 18}}


def test_text_reply() -> None:
    """Text, usage, and reasoning where a server shows it."""
    got = reply(answer(content="Hi", reasoning_content="greet back"))
    assert got.message == ChatMessage("assistant", (TextReasoningContent("greet back"), TextContent("Hi")))
    assert got.usage == UsageStats(input_tokens=42, output_tokens=18, total_tokens=60)
    assert got.finish_reason == "stop"


def call(arguments: Any, **more: Any) -> dict[str, Any]:
    return {"id": "c1", "type": "function", "function": {"name": "f", "arguments": arguments}, **more}


NESTED = '{"a":' * 600 + "1" + "}" * 600
"""Python reads it, but could not go through it, nor write it again somewhere deeper in a program."""


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ('{"a": [1]}', FunctionCallContent("c1", "f", {"a": [1]})),
        ("", FunctionCallContent("c1", "f")),
        (None, FunctionCallContent("c1", "f")),
        ('{"a": ', FunctionCallContent("c1", "f", extra={UNPARSED_ARGUMENTS: '{"a": '})),
        ("[1]", FunctionCallContent("c1", "f", extra={UNPARSED_ARGUMENTS: "[1]"})),
        ("[" * 100_000, FunctionCallContent("c1", "f", extra={UNPARSED_ARGUMENTS: "[" * 100_000})),
        (NESTED, FunctionCallContent("c1", "f", extra={UNPARSED_ARGUMENTS: NESTED})),
        ('{"a": NaN}', FunctionCallContent("c1", "f", extra={UNPARSED_ARGUMENTS: '{"a": NaN}'})),
        ('{"a": 1e999}', FunctionCallContent("c1", "f", extra={UNPARSED_ARGUMENTS: '{"a": 1e999}'})),
    ],
    ids=["object", "empty", "none", "cut", "array", "deep", "less deep", "nan", "infinite"],
)
def test_tool_call(arguments: Any, expected: FunctionCallContent) -> None:
    """Arguments are parsed; nonsense is kept for the model to be told, and goes back to it inside of valid JSON."""
    got = reply(answer("tool_calls", tool_calls=[call(arguments)]))
    assert got.message.contents == (expected,)
    assert got.finish_reason == "tool_calls"
    (wire,) = sent(got.message)
    back = json.loads(wire["tool_calls"][0]["function"]["arguments"])
    assert back == (expected.arguments or ({"unparsed_arguments": arguments} if expected.extra else {}))


def test_call_without_id_or_finish_reason() -> None:
    """Servers that leave these out are understood; the id is not one that an earlier reply has used."""
    got = reply(answer(None, tool_calls=[{"function": {"name": "f", "arguments": "{}"}}]))
    assert got.message.contents == (FunctionCallContent("r1-0", "f"),)
    assert got.finish_reason == "tool_calls"


def test_refusal() -> None:
    """A refusal is text that says that it is one."""
    got = reply(answer(refusal="I can't help with that."))
    assert got.message.text == "I can't help with that."
    assert got.message.contents == (TextContent("I can't help with that.", extra={"refusal": True}),)
    assert got.finish_reason == "content_filter"


NONSENSE: list[Any] = [
    None,
    "text",
    [],
    {},
    {"choices": None},
    {"choices": {}},
    {"choices": [[]]},
    {"choices": [{"message": "Hi"}]},
    answer(content=5),
    answer(tool_calls=["f"]),
    answer(tool_calls=[{"id": "c1"}]),
    answer(tool_calls=[{"id": "c1", "function": {"name": ""}}]),
    answer(tool_calls=[call(5)]),
]


@pytest.mark.parametrize("nonsense", NONSENSE)
def test_nonsense(nonsense: Any) -> None:
    """Whatever a server sends, it is an answer or an error of this package."""
    with pytest.raises(ModelError) as raised:
        reply(nonsense)
    assert raised.value.kind == "bad_response"


@pytest.mark.parametrize(
    "usage",
    [
        None,
        [],
        {},
        {"prompt_tokens": "3", "completion_tokens": None},
        {"prompt_tokens": True, "completion_tokens": -1},
        {"total_tokens": 1.5},
    ],
)
def test_usage_that_is_none(usage: Any) -> None:
    """Usage that cannot be read does not spoil the answer."""
    got = reply({**answer(content="Hi"), "usage": usage})
    assert (got.message.text, got.usage) == ("Hi", None)


@pytest.mark.parametrize(
    ("content", "contents"),
    [
        (None, ()),
        ([], ()),
        ([{"type": "text", "text": "fi"}, {"type": "text", "text": "ne"}], (TextContent("fine"),)),
        (["fi", "ne"], (TextContent("fine"),)),
        ({"type": "text", "text": "fine"}, (TextContent("fine"),)),
        ({"a": 1}, (TextContent('{"a": 1}'),)),
        (
            [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, {"type": "text", "text": "fine"}],
            (TextReasoningContent("hm"), TextContent("fine")),
        ),
        ([{"type": "thinking", "thinking": "hm"}], (TextReasoningContent("hm"),)),
        ([{"type": "refusal", "refusal": "no"}], (TextContent("no", extra={"refusal": True}),)),
        (
            ["a", {"type": "reference", "reference_ids": [1]}, "b"],
            (TextContent("a"), UnknownContent({"type": "reference", "reference_ids": [1]}), TextContent("b")),
        ),
    ],
)
def test_content_in_all_forms(content: Any, contents: tuple[Content, ...]) -> None:
    """A text, null, a part or a list of parts; what is neither text nor reasoning is kept, and is not shown."""
    assert reply(answer(content=content)).message.contents == contents


@pytest.mark.parametrize(
    ("arguments", "read"),
    [(None, {}), ("", {}), (" ", {}), ("null", {}), ({"a": 1}, {"a": 1}), ("{}", {}), ('{"a": 1}', {"a": 1})],
)
def test_arguments_in_all_forms(arguments: Any, read: Any) -> None:
    """A text, an object, or what servers write for a tool without parameters."""
    (content,) = reply(answer(tool_calls=[call(arguments)])).message.contents
    assert isinstance(content, FunctionCallContent)
    assert (content.arguments, content.extra) == (read, {})


def test_calls_of_one_id() -> None:
    """Each call has an id of its own, so that each result finds its call."""
    contents = reply(answer(tool_calls=[call("{}"), call("{}"), {**call("{}"), "id": None}])).message.contents
    assert len({content.call_id for content in contents if isinstance(content, FunctionCallContent)}) == 3


@pytest.mark.parametrize(
    ("usage", "counts"),
    [
        ({"prompt_tokens": 7, "completion_tokens": None, "total_tokens": 7}, UsageStats(7, 0, 7)),
        ({"total_tokens": 9}, UsageStats(0, 0, 9)),
        ({"completion_tokens": 2, "total_tokens": 9}, UsageStats(7, 2, 9)),
        ({"prompt_tokens": 7.0, "completion_tokens": 1}, UsageStats(7, 1, 8)),
        ({"input_tokens": 7, "output_tokens": 1}, UsageStats(7, 1, 8)),
        ({"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 20}, UsageStats(7, 2, 20)),
        (
            {
                "prompt_tokens": 7,
                "completion_tokens": 5,
                "prompt_tokens_details": {"cached_tokens": 6},
                "completion_tokens_details": {"reasoning_tokens": 4},
            },
            UsageStats(7, 5, 12, cached_tokens=6, reasoning_tokens=4),
        ),
        (
            {"prompt_tokens": 7, "completion_tokens": 5, "prompt_tokens_details": None, "prompt_cache_hit_tokens": 6},
            UsageStats(7, 5, 12, cached_tokens=6),
        ),
    ],
)
def test_usage_in_parts(usage: Any, counts: UsageStats) -> None:
    """What a server counts is counted, whatever else it leaves out."""
    assert reply({**answer(content="Hi"), "usage": usage}).usage == counts


def test_usage_is_summed_and_shown() -> None:
    """Cached and reasoning tokens are summed like others, and shown only where there are some."""
    one = UsageStats(1, 2, 3, cached_tokens=1, reasoning_tokens=2)
    assert one + one == UsageStats(2, 4, 6, cached_tokens=2, reasoning_tokens=4)
    assert repr(UsageStats(42, 18, 60)) == "UsageStats(input_tokens=42, output_tokens=18, total_tokens=60)"
    assert repr(one).endswith("total_tokens=3, cached_tokens=1, reasoning_tokens=2)")
    assert load_usage(dump_usage(one)) == one
    assert set(dump_usage(UsageStats(1, 2, 3))) == {"inputTokenCount", "outputTokenCount", "totalTokenCount"}


@pytest.mark.parametrize(
    ("said", "kind", "status"),
    [
        ({"error": {"message": "Insufficient credits", "code": 402}}, "error", 402),
        ({"error": {"message": "No", "code": 429}, "choices": None}, "rate_limit", 429),
        ([{"error": {"message": "No", "code": 401}}], "authentication", 401),
        ({"choices": [{"error": {"code": 502}, "message": {"content": ""}}]}, "server_error", 502),
        ({"choices": [], "base_resp": {"status_code": 1008, "status_msg": "insufficient balance"}}, "error", None),
    ],
)  # fmt: skip
def test_error_in_a_success(said: Any, kind: str, status: int | None) -> None:
    """A server that answers 200 and says that the call failed is believed."""
    with pytest.raises(ModelError) as raised:
        reply(said)
    assert (raised.value.kind, raised.value.status) == (kind, status)


def test_category_of_a_withheld_answer() -> None:
    """What a filter found stays with the message that it kept back, in one piece or streamed."""
    found = {"hate": {"filtered": False}, "violence": {"filtered": True, "severity": "high"}}
    choice = {"message": {"content": ""}, "finish_reason": "content_filter", "content_filter_results": found}
    assert reply({"choices": [choice]}).message.extra["filtered"] == ["violence"]
    streamed = StreamedReply()
    streamed.add({"choices": [{"delta": {}, "finish_reason": "content_filter", "content_filter_results": found}]})
    assert streamed.reply().message.extra["filtered"] == ["violence"]


def test_streamed_parts() -> None:
    """Lists of parts, reasoning under its other name, an object as arguments, an error in a choice."""
    streamed = StreamedReply()
    assert streamed.add(piece(reasoning="hm")) == ""
    assert streamed.add(piece(content=[{"type": "thinking", "thinking": "m"}, {"type": "text", "text": "fi"}])) == "fi"
    assert streamed.add(piece("stop", content="ne", tool_calls=[call({"a": 1})])) == "ne"
    contents = streamed.reply().message.contents
    assert contents[:2] == (TextReasoningContent("hmm"), TextContent("fine"))
    assert isinstance(contents[2], FunctionCallContent)
    assert contents[2].arguments == {"a": 1}
    with pytest.raises(ModelError) as raised:
        StreamedReply().add({"choices": [{"delta": {}, "error": {"code": 502, "message": "Oops"}}]})
    assert raised.value.kind == "server_error"


def piece(finish_reason: str | None = None, **delta: Any) -> dict[str, Any]:
    return {"id": "r1", "choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}]}


def test_streamed_text() -> None:
    """Pieces make up the text; usage comes last, in a chunk without choices."""
    streamed = StreamedReply()
    chunks: list[dict[str, Any]] = [
        {"choices": [], "prompt_filter_results": []},
        piece(role="assistant", content=""),
        piece(content="Hel"),
        piece(content="lo"),
        piece("stop"),
        {"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}},
    ]
    assert [streamed.add(chunk) for chunk in chunks] == ["", "", "Hel", "lo", "", ""]
    assert streamed.reply().message.text == "Hello"
    assert streamed.reply().usage == UsageStats(1, 2, 3)


def test_streamed_calls() -> None:
    """Two calls in pieces, mixed; the name and the id come with the first piece of each."""
    streamed = StreamedReply()
    for chunk in (
        piece(tool_calls=[{"index": 0, "id": "c1", "function": {"name": "f", "arguments": ""}}]),
        piece(tool_calls=[{"index": 1, "id": "c2", "function": {"name": "g", "arguments": '{"b"'}}]),
        piece(tool_calls=[{"index": 0, "function": {"arguments": '{"a": 1}'}}]),
        piece(tool_calls=[{"index": 1, "function": {"arguments": ": 2}"}}]),
        piece("tool_calls"),
    ):
        assert streamed.add(chunk) == ""
    got = streamed.reply()
    assert got.message.contents == (FunctionCallContent("c1", "f", {"a": 1}), FunctionCallContent("c2", "g", {"b": 2}))
    assert got.finish_reason == "tool_calls"


def test_stream_without_an_end() -> None:
    """Half an answer is no answer; what there was of it is in the error."""
    streamed = StreamedReply()
    streamed.add(piece(content="Once upon"))
    with pytest.raises(ModelError) as raised:
        streamed.reply()
    assert raised.value.kind == "bad_response"
    assert raised.value.data == {"received": "Once upon"}


def test_bytes_survive() -> None:
    """What was put into a `DataContent` is what is sent."""
    every_byte = bytes(range(256))
    (message,) = sent(ChatMessage("user", (DataContent.from_bytes(every_byte, "image/png"),)))
    url: str = message["content"][0]["image_url"]["url"]
    assert base64.b64decode(url.partition(",")[2]) == every_byte
