"""The JSON of chat completions to our messages: pure, without I/O and without the `openai` package."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias, TypeGuard

import attrs

from dafx_actors._json import load_json
from dafx_actors.errors import ModelError
from dafx_actors.models import UNPARSED_ARGUMENTS, FinishReason, ModelReply
from dafx_actors.transcript import (
    ChatMessage,
    Content,
    FunctionCallContent,
    Json,
    TextContent,
    TextReasoningContent,
    UsageStats,
)

__all__ = ["StreamedReply", "reply"]

Body: TypeAlias = dict[str, Json]

_FINISH_REASONS: dict[Json, FinishReason] = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    "content_filter": "content_filter",
}


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
