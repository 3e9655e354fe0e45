"""The JSON of chat completions to our messages: pure, without I/O and without the `openai` package."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, TypeAlias, TypeGuard

import attrs

from dafx_actors.errors import ModelError
from dafx_actors.models import UNPARSED_ARGUMENTS, FinishReason, ModelReply
from dafx_actors.models._failures import failure, filtered_categories
from dafx_actors.models._parts import arguments_in, contents_in, pieces_in, usage_in
from dafx_actors.transcript import (
    ChatMessage,
    Content,
    FunctionCallContent,
    Json,
    TextContent,
    TextReasoningContent,
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


Failed: TypeAlias = Callable[[Json], ModelError]
"""Makes the error of what a server said in place of an answer; knows the headers and the address."""


def _failed(said: Json) -> ModelError:
    message = "The model's server said that the call failed."
    return failure(None, said, message=message, headers={}, now=datetime.now(UTC))


def reply(answer: Json, failed: Failed = _failed) -> ModelReply:
    """What one call gave, from the JSON of the response.

    A refusal becomes the text of the reply, marked `"refusal": true` in the content's `extra`, with the finish
    reason `content_filter`. Arguments of a call that are not a JSON object are kept as `UNPARSED_ARGUMENTS`.

    Raises:
        ModelError: Of kind `bad_response`: this is not a chat completion. Of another: it says that the call failed,
            which some servers do with the status of a success.
    """
    if not _is_object(answer):
        raise _error_in(answer, failed) or _bad_response("it is not a JSON object", answer)
    choice = _first(answer.get("choices"))
    message = choice.get("message") if choice is not None else None
    if choice is None or not _is_object(message):
        raise (
            _error_in((choice or {}).get("error"), failed)
            or _error_in(answer, failed)
            or _bad_response("it holds no message", answer)
        )
    if choice.get("error") or (answer.get("error") and not message.get("content") and not message.get("tool_calls")):
        raise failed(choice.get("error") or answer)
    contents = [*_said(message), *_calls(message.get("tool_calls"), answer.get("id"))]
    refused = any(isinstance(content, TextContent) and content.extra.get("refusal") for content in contents)
    called = any(isinstance(content, FunctionCallContent) for content in contents)
    said = choice.get("finish_reason")
    finished = (_FINISH_REASONS.get(said, said) if isinstance(said, str) else "") or (
        "tool_calls" if called else "stop"
    )
    return ModelReply(
        message=ChatMessage("assistant", contents, extra=_withheld(choice)),
        usage=usage_in(answer.get("usage")),
        finish_reason="content_filter" if refused else finished,
    )


_ERRORS = ("error", "errors", "detail", "base_resp")


def _error_in(answer: Json, failed: Failed) -> ModelError | None:
    """The error that stands where an answer should; None where nothing is said of one."""
    first = next(iter(_list(answer)), answer)  # Gemini puts errors into a list
    if not _is_object(first):
        return None
    words = isinstance(first.get("message"), str) and "choices" not in first
    return failed(answer) if words or any(first.get(name) for name in _ERRORS) else None


def _withheld(choice: Mapping[str, Json]) -> dict[str, Json]:
    """What a content filter found, where it kept an answer back."""
    found = list(filtered_categories(choice.get("content_filter_results")))
    return {"filtered": found} if found else {}


def _said(message: Mapping[str, Json]) -> Iterator[Content]:
    # Not OpenAI's own, but what the servers that show a model's reasoning agree on, under one name or the other.
    for name in ("reasoning_content", "reasoning"):
        reasoning = message.get(name)
        if isinstance(reasoning, str) and reasoning:
            yield TextReasoningContent(reasoning)
            break
    try:
        yield from contents_in(message.get("content"))
    except ValueError as error:
        raise _bad_response(str(error), message.get("content")) from error
    refusal = message.get("refusal")
    if isinstance(refusal, str) and refusal:
        yield TextContent(refusal, extra={"refusal": True})


def _calls(calls: Json, reply_id: Json) -> Iterator[FunctionCallContent]:
    taken: set[str] = set()
    for number, call in enumerate(_list(calls)):
        function = call.get("function") if _is_object(call) else None
        name = function.get("name") if _is_object(function) else None
        if not _is_object(call) or not _is_object(function) or not isinstance(name, str) or not name:
            raise _bad_response("it calls a tool without a name", call)
        # Some servers give calls no id, or all of them one. It must be unique in the conversation, as the reply's is.
        call_id = str(call.get("id") or f"{reply_id or 'call'}-{number}")
        while call_id in taken:
            call_id += f"-{number}"
        taken.add(call_id)
        yield _call(call_id, name, function.get("arguments"))


def _call(call_id: str, name: str, arguments: Json) -> FunctionCallContent:
    try:
        read = arguments_in(arguments)
    except ValueError as error:
        raise _bad_response(str(error), arguments) from error
    if isinstance(read, str):
        return FunctionCallContent(call_id, name, extra={UNPARSED_ARGUMENTS: read})
    return FunctionCallContent(call_id, name, read)


_FIELDS = {"text": "content", "thinking": "reasoning_content", "refusal": "refusal"}


@attrs.define
class StreamedReply:
    """A reply that comes in chunks: `add()` each, then take `reply()`."""

    _make_error: Failed = attrs.field(default=_failed, alias="failed")
    _id: Json = None
    _usage: Json = None
    _finish_reason: Json = None
    _filtered: Json = None
    _message: dict[str, str] = attrs.field(factory=dict[str, str])
    _calls: dict[int, Body] = attrs.field(factory=dict[int, Body])

    def add(self, chunk: Json) -> str:
        """Take one chunk; gives the text that it adds to the answer, which may be none.

        Raises:
            ModelError: Of kind `bad_response`: this is not a chunk of a chat completion. Of another: it says that the
                call failed.
        """
        if not _is_object(chunk):
            raise _bad_response("a chunk is not a JSON object", chunk)
        self._id = chunk.get("id") or self._id
        groq = chunk.get("x_groq")
        self._usage = chunk.get("usage") or (groq.get("usage") if _is_object(groq) else None) or self._usage
        choice = _first(chunk.get("choices"))
        if choice is None:  # the last chunk has the usage and no choice, and Azure's first has neither
            return ""
        if choice.get("error"):
            raise self._make_error(choice["error"])
        self._finish_reason = choice.get("finish_reason") or self._finish_reason
        self._filtered = choice.get("content_filter_results") or self._filtered
        delta = choice.get("delta")
        if not _is_object(delta):
            return ""
        for call in _list(delta.get("tool_calls")):
            self._add_call(call)
        return "".join(text for kind, text in self._pieces(delta) if kind != "thinking")

    def _pieces(self, delta: Mapping[str, Json]) -> list[tuple[str, str]]:
        """What a chunk adds to the message, in their order, and kept for `reply()`."""
        reasoning = delta.get("reasoning_content") or delta.get("reasoning")
        pieces = [("thinking", reasoning)] if isinstance(reasoning, str) else []
        try:
            pieces += pieces_in(delta.get("content"))
        except ValueError as error:
            raise _bad_response(str(error), delta) from error
        if isinstance(refusal := delta.get("refusal"), str):
            pieces.append(("refusal", refusal))
        for kind, text in pieces:
            field = _FIELDS[kind]
            self._message[field] = self._message.get(field, "") + text
        return pieces

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
            arguments, before = function.get("arguments"), call["function"].get("arguments")
            if isinstance(arguments, str):
                call["function"]["arguments"] = (before if isinstance(before, str) else "") + arguments
            elif arguments is not None:  # an object comes whole
                call["function"]["arguments"] = arguments

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
        choice = {
            "message": message,
            "finish_reason": self._finish_reason,
            "content_filter_results": self._filtered,
        }
        return reply({"id": self._id, "choices": [choice], "usage": self._usage}, self._make_error)


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
