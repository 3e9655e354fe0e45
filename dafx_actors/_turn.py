"""What a turn does next. Pure: no clock, no network, no `await`."""

from __future__ import annotations

from typing import TypeAlias

import attrs

from dafx_actors.errors import DafxError, ModelError
from dafx_actors.models import ModelReply
from dafx_actors.transcript import (
    ChatMessage,
    Entry,
    ErrorContent,
    FunctionCallContent,
    Request,
    Response,
    TextReasoningContent,
    Transcript,
    UsageContent,
)

_NOT_FOR_MODELS = (ErrorContent, TextReasoningContent, UsageContent)


@attrs.frozen
class Finish:
    """The reply is the answer."""

    message: ChatMessage


@attrs.frozen
class Fail:
    """The turn cannot go on."""

    error: DafxError


Step: TypeAlias = Finish | Fail


def next_step(reply: ModelReply) -> Step:
    """What follows from a model's reply."""
    if reply.finish_reason == "content_filter":
        return Fail(ModelError("content_filter", reply.message.text or "the provider's filter withheld the answer"))
    calls = [content.name for content in reply.message.contents if isinstance(content, FunctionCallContent)]
    if calls:
        return Fail(ModelError("bad_response", f"the model asked for {calls[0]!r}, a tool that it was not offered"))
    return Finish(reply.message)


def conversation(transcript: Transcript, turn: str) -> tuple[ChatMessage, ...]:
    """The messages that a model sees in this turn, oldest first.

    Turns that ended with an error are left out, request and all: what the provider refused once (too long, filtered,
    not an image) would be refused again in every later turn. So is what was never answered, and what models do not
    take: reasoning, usage and errors.
    """
    answered = {e.correlation_id for e in transcript.entries if isinstance(e, Response) and e.error is None}
    seen = [entry for entry in transcript.entries if _is_seen(entry, answered, turn)]
    messages = [message for entry in seen for message in _messages(entry)] + list(transcript.draft)
    kept = (attrs.evolve(m, contents=[c for c in m.contents if not isinstance(c, _NOT_FOR_MODELS)]) for m in messages)
    return tuple(message for message in kept if message.contents)


def _is_seen(entry: Entry, answered: set[str | None], turn: str) -> bool:
    return isinstance(entry, Request | Response) and (entry.correlation_id in answered or entry.correlation_id == turn)


def _messages(entry: Entry) -> tuple[ChatMessage, ...]:
    return entry.messages if isinstance(entry, Request | Response) else ()
