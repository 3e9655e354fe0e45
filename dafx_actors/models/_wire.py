"""Our messages to the JSON of chat completions: pure, without I/O and without the `openai` package.

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
from typing import TypeAlias, cast
from urllib.parse import unquote_to_bytes

from dafx_actors.errors import ModelError
from dafx_actors.models import UNPARSED_ARGUMENTS, ModelRequest, ToolDefinition
from dafx_actors.models._strict import can_be_strict
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
)

__all__ = ["Body", "body"]

Body: TypeAlias = dict[str, Json]

_NOT_FOR_MODELS = (TextReasoningContent, UsageContent, ErrorContent, UnknownContent, OpaqueContent)

_AUDIO_FORMATS = {
    "audio/wav": "wav",
    "audio/wave": "wav",
    "audio/x-wav": "wav",
    "audio/mpeg": "mp3",
    "audio/mp3": "mp3",
}


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
