"""Our messages to the JSON of chat completions, and back: pure, without I/O and without the `openai` package.

The names of that JSON are those of the API reference, https://platform.openai.com/docs/api-reference/chat.

Content that is for this program and not for a model stays behind: reasoning, usage, errors, and what this version
does not know. Content that a model should have had, but that cannot be sent, is a `ModelError` of kind `bad_request`
from `body()`, before anything is sent.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias, TypeGuard, cast
from urllib.parse import unquote_to_bytes

import attrs

from dafx_actors._json import load_json
from dafx_actors.errors import ModelError
from dafx_actors.models import UNPARSED_ARGUMENTS, FinishReason, ModelReply, ModelRequest, ToolDefinition
from dafx_actors.transcript import (
    ChatMessage,
    Content,
    DataContent,
    ErrorContent,
    FunctionCallContent,
    FunctionResultContent,
    HostedFileContent,
    Json,
    OpaqueContent,
    TextContent,
    TextReasoningContent,
    UnknownContent,
    UriContent,
    UsageContent,
    UsageStats,
)

__all__ = ["StreamedReply", "body", "can_be_strict", "reply"]

Body: TypeAlias = dict[str, Json]

_NOT_FOR_MODELS = (TextReasoningContent, UsageContent, ErrorContent, UnknownContent, OpaqueContent)

_AUDIO_FORMATS = {
    "audio/wav": "wav",
    "audio/wave": "wav",
    "audio/x-wav": "wav",
    "audio/mpeg": "mp3",
    "audio/mp3": "mp3",
}

_FINISH_REASONS: dict[Json, FinishReason] = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    "content_filter": "content_filter",
}


# --- a request -------------------------------------------------------------------------------------------------------


def body(model: str, request: ModelRequest, defaults: Mapping[str, Json]) -> Body:
    """The JSON body of one call.

    `request.options` come over `defaults`, and what the request itself says comes over both.

    Raises:
        ModelError: Of kind `bad_request`: a message holds something that this API cannot be sent.
    """
    ours: Body = {"model": model, "messages": [wire for message in request.messages for wire in _messages(message)]}
    if request.tools:
        ours["tools"] = [_tool(tool) for tool in request.tools]
        # The API refuses a choice where there is nothing to choose from.
        if request.tool_choice is not None:
            ours["tool_choice"] = _tool_choice(request.tool_choice)
    if request.response_schema is not None:
        ours["response_format"] = _response_format(request.response_schema)
    return {**defaults, **request.options, **ours}


def _messages(message: ChatMessage) -> Iterator[Body]:
    """One of our messages as theirs: none, one, or one for each function result, which are messages there."""
    contents = [content for content in message.contents if not isinstance(content, _NOT_FOR_MODELS)]
    results = [content for content in contents if isinstance(content, FunctionResultContent)]
    rest = [content for content in contents if not isinstance(content, FunctionResultContent)]
    for result in results:
        yield {"role": "tool", "tool_call_id": result.call_id, "content": _result_text(result.result)}
    if not rest:
        return
    if message.role == "tool":
        raise _cannot_send("a tool message holds function results only", rest[0])
    wire = _SPEAKERS[message.role](rest)
    name = _author(message.author_name)
    yield {"role": message.role, **({"name": name} if name else {}), **wire}


def _said_by_user(contents: Sequence[Content]) -> Body:
    # One text goes as a string: servers that only speak the core of the protocol do not take a list of parts.
    match contents:
        case [TextContent(text=text)]:
            return {"content": text}
        case _:
            return {"content": [_part(content) for content in contents]}


def _said_by_system(contents: Sequence[Content]) -> Body:
    return {"content": "".join(_text(content, "system") for content in contents)}


def _said_by_assistant(contents: Sequence[Content]) -> Body:
    calls = [content for content in contents if isinstance(content, FunctionCallContent)]
    texts = [_text(content, "assistant") for content in contents if not isinstance(content, FunctionCallContent)]
    wire: Body = {"content": "".join(texts) if texts else None}
    if calls:
        wire["tool_calls"] = [
            {"id": call.call_id, "type": "function", "function": {"name": call.name, "arguments": _arguments(call)}}
            for call in calls
        ]
    return wire


_SPEAKERS: dict[str, Callable[[Sequence[Content]], Body]] = {
    "system": _said_by_system,
    "user": _said_by_user,
    "assistant": _said_by_assistant,
}


def _part(content: Content) -> Body:
    """One content of a user message as one part of theirs."""
    match content:
        case TextContent(text=text):
            return {"type": "text", "text": text}
        case DataContent() | UriContent() if content.uri.startswith("data:"):
            return _data_part(content)
        case UriContent(uri=uri, media_type=media_type) if media_type.startswith("image/"):
            return {"type": "image_url", "image_url": {"url": uri}}
        case HostedFileContent(file_id=file_id):
            return {"type": "file", "file": {"file_id": file_id}}
        case UriContent():
            raise _cannot_send("only images can be sent by URI; send the bytes as a `DataContent`", content)
        case _:
            raise _cannot_send("chat completions have no form for it in a user message", content)


def _data_part(content: DataContent | UriContent) -> Body:
    media_type, data = _read_data_uri(content)
    if media_type.startswith("image/"):
        return {"type": "image_url", "image_url": {"url": f"data:{media_type};base64,{data}"}}
    if audio := _AUDIO_FORMATS.get(media_type):
        return {"type": "input_audio", "input_audio": {"data": data, "format": audio}}
    if media_type == "application/pdf":
        # The API wants a name for the file, and shows it to the model.
        file = {"filename": "document.pdf", "file_data": f"data:{media_type};base64,{data}"}
        return {"type": "file", "file": file}
    raise _cannot_send("only images, wav or mp3 audio and PDF can be sent as bytes", content)


def _read_data_uri(content: DataContent | UriContent) -> tuple[str, str]:
    """The media type, in lower case and without parameters, and the bytes in base64 (RFC 2397)."""
    head, comma, tail = content.uri.removeprefix("data:").partition(",")
    media_type, *parameters = (part.strip().lower() for part in head.split(";"))
    try:
        data = unquote_to_bytes(tail)
        if "base64" in parameters:
            data = base64.b64decode(data, validate=True)
    except binascii.Error as error:
        raise _cannot_send("its base64 is broken", content) from error
    if not comma or not data:
        raise _cannot_send("its `data:` URI holds no data", content)
    declared = (content.media_type or media_type).partition(";")[0].strip().lower()
    return declared or "text/plain", base64.b64encode(data).decode()


def _text(content: Content, role: str) -> str:
    if not isinstance(content, TextContent):
        raise _cannot_send(f"a message of role {role!r} can hold text only", content)
    return content.text


def _arguments(call: FunctionCallContent) -> str:
    # What the model wrote goes back as it wrote it: the error it is told about would make no sense otherwise.
    unparsed = call.extra.get(UNPARSED_ARGUMENTS)
    return unparsed if isinstance(unparsed, str) else _dumps(call.arguments)


def _result_text(result: Json) -> str:
    return result if isinstance(result, str) else _dumps(result)


def _dumps(value: Json) -> str:
    return json.dumps(value, ensure_ascii=False, default=_as_dict)


def _as_dict(value: object) -> Json:
    """Mappings that are not dicts, which our frozen types may hold."""
    if isinstance(value, Mapping):
        return dict(cast("Mapping[str, Json]", value))
    raise TypeError(f"{type(value).__name__} is not a JSON value")


def _author(name: str | None) -> str | None:
    """The name in the characters that the API takes: no spaces, slashes, bars or angle brackets; at most 64."""
    return re.sub(r"[\s<|\\/>]+", "_", name)[:64] if name else None


def _tool(tool: ToolDefinition) -> Body:
    function: Body = {"name": tool.name, "description": tool.description, "parameters": dict(tool.parameters)}
    if tool.strict:
        function["strict"] = True
    return {"type": "function", "function": function}


def _tool_choice(choice: str) -> Json:
    return choice if choice in {"auto", "none", "required"} else {"type": "function", "function": {"name": choice}}


def _response_format(schema: Mapping[str, Json]) -> Body:
    title = schema.get("title")
    name = re.sub(r"[^A-Za-z0-9_-]+", "_", title)[:64] if isinstance(title, str) and title else "answer"
    wanted = {"name": name, "schema": dict(schema), "strict": can_be_strict(schema)}
    return {"type": "json_schema", "json_schema": wanted}


def _cannot_send(why: str, content: Content) -> ModelError:
    media_type = getattr(content, "media_type", None)
    what = type(content).__name__ + (f" ({media_type})" if media_type else "")
    return ModelError(kind="bad_request", message=f"{what} cannot be sent to the model: {why}.")


# --- strict schemas --------------------------------------------------------------------------------------------------

_NOT_STRICT = frozenset(
    {
        *("allOf", "oneOf", "not", "if", "then", "else", "default", "dependentRequired", "dependentSchemas"),
        *("patternProperties", "propertyNames", "unevaluatedProperties"),
        *("prefixItems", "contains", "unevaluatedItems"),
    }
)
"""Keywords that strict mode refuses; https://platform.openai.com/docs/guides/structured-outputs."""


def can_be_strict(schema: Mapping[str, Json]) -> bool:
    """Whether the provider can hold a model to this schema.

    It can if every object in it names all its properties as required and takes no others. A schema that cannot be
    strict is sent all the same, as a wish.
    """
    return schema.get("type") == "object" and _strict(schema)


def _strict(schema: Json) -> bool:
    if not _is_object(schema) or _NOT_STRICT & schema.keys():
        return False
    if schema.get("type") == "object" or "properties" in schema:
        properties = schema.get("properties", {})
        closed = schema.get("additionalProperties") is False
        if not closed or set(properties) != set(schema.get("required", ())):
            return False
    return all(_strict(part) for part in _parts_of_schema(schema))


def _parts_of_schema(schema: Mapping[str, Json]) -> Iterator[Json]:
    for keyword in ("properties", "$defs", "definitions"):
        yield from schema.get(keyword, {}).values()
    yield from schema.get("anyOf", ())
    if "items" in schema:
        yield schema["items"]


# --- a reply ---------------------------------------------------------------------------------------------------------


def reply(answer: Json) -> ModelReply:
    """What one call gave, from the JSON of the response.

    A refusal becomes the text of the reply, marked `"refusal": true` in the content's `extra`, with the finish
    reason `content_filter`. Arguments of a call that are not a JSON object are kept as `UNPARSED_ARGUMENTS`.

    Raises:
        ModelError: Of kind `bad_response`: this is not a chat completion.
    """
    if not _is_object(answer):
        raise _bad_response("it is not a JSON object", answer)
    choice = _first(answer.get("choices"))
    message = choice.get("message") if choice is not None else None
    if choice is None or not _is_object(message):
        raise _bad_response("it holds no message", answer)
    contents = [*_said(message), *_calls(message.get("tool_calls"), answer.get("id"))]
    refused = bool(message.get("refusal"))
    called = any(isinstance(content, FunctionCallContent) for content in contents)
    said = choice.get("finish_reason")
    finished = (_FINISH_REASONS.get(said, said) if isinstance(said, str) else "") or (
        "tool_calls" if called else "stop"
    )
    return ModelReply(
        message=ChatMessage("assistant", contents),
        usage=_usage(answer.get("usage")),
        finish_reason="content_filter" if refused else finished,
    )


def _said(message: Mapping[str, Json]) -> Iterator[Content]:
    # Not OpenAI's own, but what the servers that show a model's reasoning agree on.
    reasoning = message.get("reasoning_content")
    if isinstance(reasoning, str) and reasoning:
        yield TextReasoningContent(reasoning)
    text = message.get("content")
    if isinstance(text, str) and text:
        yield TextContent(text)
    elif text is not None and not isinstance(text, str):
        raise _bad_response("its content is not text", text)
    refusal = message.get("refusal")
    if isinstance(refusal, str) and refusal:
        yield TextContent(refusal, extra={"refusal": True})


def _calls(calls: Json, reply_id: Json) -> Iterator[FunctionCallContent]:
    for number, call in enumerate(_list(calls)):
        function = call.get("function") if _is_object(call) else None
        name = function.get("name") if _is_object(function) else None
        if not _is_object(call) or not _is_object(function) or not isinstance(name, str) or not name:
            raise _bad_response("it calls a tool without a name", call)
        # Some servers give calls no id. It must be unique in the conversation, as the reply's id is.
        call_id = str(call.get("id") or f"{reply_id or 'call'}-{number}")
        yield _call(call_id, name, function.get("arguments"))


def _call(call_id: str, name: str, arguments: Json) -> FunctionCallContent:
    if arguments is None or arguments == "":  # what some servers write for a tool without parameters
        return FunctionCallContent(call_id, name)
    if not isinstance(arguments, str):
        raise _bad_response("the arguments of a call are not text", arguments)
    try:
        parsed = load_json(arguments)
    except ValueError:
        parsed = None
    if not _is_object(parsed):
        return FunctionCallContent(call_id, name, extra={UNPARSED_ARGUMENTS: arguments})
    return FunctionCallContent(call_id, name, parsed)


def _usage(usage: Json) -> UsageStats | None:
    if not _is_object(usage):
        return None
    prompt, completion, total = (usage.get(f"{kind}_tokens") for kind in ("prompt", "completion", "total"))
    if not _is_count(prompt) or not _is_count(completion):
        return None
    return UsageStats(prompt, completion, total if _is_count(total) else prompt + completion)


def _is_count(value: Json) -> TypeGuard[int]:
    # Not `True`, which would be stored as it is: whoever reads the thread takes the whole entry for a broken one then.
    return isinstance(value, int) and not isinstance(value, bool)


@attrs.define
class StreamedReply:
    """A reply that comes in chunks: `add()` each, then take `reply()`."""

    _id: Json = None
    _usage: Json = None
    _finish_reason: Json = None
    _message: dict[str, str] = attrs.field(factory=dict[str, str])
    _calls: dict[int, Body] = attrs.field(factory=dict[int, Body])

    def add(self, chunk: Json) -> str:
        """Take one chunk; gives the text that it adds to the answer, which may be none.

        Raises:
            ModelError: Of kind `bad_response`: this is not a chunk of a chat completion.
        """
        if not _is_object(chunk):
            raise _bad_response("a chunk is not a JSON object", chunk)
        self._id = chunk.get("id") or self._id
        self._usage = chunk.get("usage") or self._usage
        choice = _first(chunk.get("choices"))
        if choice is None:  # the last chunk has the usage and no choice, and Azure's first has neither
            return ""
        self._finish_reason = choice.get("finish_reason") or self._finish_reason
        delta = choice.get("delta")
        if not _is_object(delta):
            return ""
        for field in ("content", "refusal", "reasoning_content"):
            if isinstance(piece := delta.get(field), str):
                self._message[field] = self._message.get(field, "") + piece
        for call in _list(delta.get("tool_calls")):
            self._add_call(call)
        pieces = [delta.get(field) for field in ("content", "refusal")]
        return "".join(piece for piece in pieces if isinstance(piece, str))

    def _add_call(self, piece: Json) -> None:
        if not _is_object(piece):
            raise _bad_response("a chunk's tool call is not a JSON object", piece)
        # Servers that send whole calls may leave out the index.
        index = piece.get("index")
        call = self._calls.setdefault(index if isinstance(index, int) else len(self._calls), {"function": {}})
        call["id"] = piece.get("id") or call.get("id")
        function = piece.get("function")
        if _is_object(function):
            call["function"]["name"] = function.get("name") or call["function"].get("name")
            if isinstance(arguments := function.get("arguments"), str):
                call["function"]["arguments"] = call["function"].get("arguments", "") + arguments

    def reply(self) -> ModelReply:
        """The whole reply, once the stream has ended.

        Raises:
            ModelError: Of kind `bad_response`: the stream ended before the answer did.
        """
        if self._finish_reason is None:
            raise ModelError(
                kind="bad_response",
                message="The stream was cut before the answer was complete.",
                data={"received": self._message.get("content", "")},
            )
        message: Body = {**self._message, "tool_calls": [self._calls[index] for index in sorted(self._calls)]}
        choice = {"message": message, "finish_reason": self._finish_reason}
        return reply({"id": self._id, "choices": [choice], "usage": self._usage})


def _is_object(value: Json) -> TypeGuard[Mapping[str, Json]]:
    return isinstance(value, Mapping)


def _list(value: Json) -> Sequence[Json]:
    return value if _is_list(value) else ()


def _is_list(value: Json) -> TypeGuard[Sequence[Json]]:
    return isinstance(value, list)


def _first(choices: Json) -> Mapping[str, Json] | None:
    first = next(iter(_list(choices)), None)
    return first if _is_object(first) else None


def _bad_response(why: str, found: Any) -> ModelError:
    shown = found if isinstance(found, str) else json.dumps(found, default=str)
    message = f"The model's server sent something other than a chat completion: {why}."
    return ModelError(kind="bad_response", message=message, data={"received": shown[:500]})
