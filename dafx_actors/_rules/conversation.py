"""What a model sees of a thread. Pure."""

from __future__ import annotations

import attrs

from dafx_actors._rules import retold as _retold
from dafx_actors._rules.open_calls import closed
from dafx_actors.transcript import (
    ChatMessage,
    ErrorContent,
    Request,
    Response,
    TextReasoningContent,
    Transcript,
    UsageContent,
)

_NOT_FOR_MODELS = (ErrorContent, TextReasoningContent, UsageContent)


@attrs.frozen
class Waiting:
    """A turn that waits for a person, as the one beside it is shown it."""

    turn: str
    messages: tuple[ChatMessage, ...]
    """What it has done, each call with a result."""


def conversation(transcript: Transcript, turn: str, beside: Waiting | None = None) -> tuple[ChatMessage, ...]:
    """The messages that a model sees in this turn, oldest first, turn by turn.

    Turns that ended without an answer are retold as text, see `retold.py`: what they did is not to be done again. Left
    out of them is what made no call and was refused (too long, filtered, not an image): it would be refused again in
    every later turn. So is what was never answered nor ended, and what models do not take: reasoning, usage and errors.
    A call without a result gets one that says so: others may have left it in the history, and a turn that died in the
    middle and was begun anew, in its draft.

    A turn stands where it ended: requests that were withdrawn while another turn ran do not come between its request
    and its answer. One that waits for a person, `beside` this one, stands before this one's request.
    """
    responses = [entry for entry in transcript.entries if isinstance(entry, Response)]
    brief = _retold.in_brief(responses)
    asked: dict[str | None, Request] = {}
    messages: list[ChatMessage] = []
    ended = 0
    for entry in transcript.entries:
        if isinstance(entry, Request):
            asked[entry.correlation_id] = entry
        elif isinstance(entry, Response):
            request = asked.pop(entry.correlation_id, None)
            if entry.error is None:
                messages += [*(request.messages if request else ()), *entry.messages]
            elif _retold.is_retold(entry):
                messages += _retold.retold(request, entry, brief=ended in brief)
            ended += 1
    if beside is not None:
        messages += [*(asked[beside.turn].messages if beside.turn in asked else ()), *beside.messages]
    messages += asked[turn].messages if turn in asked else ()
    messages += transcript.draft
    return closed(message for message in map(_for_models, messages) if message.contents)


def last_turns(transcript: Transcript, most: int) -> Transcript:
    """The transcript without the oldest turns that have ended: between `most` and one and a half times as many stay.

    They go in blocks, so that what is left begins with the same turn for a while. Only their responses are taken out: a
    request without one is not shown.
    """
    block = max(most // 2, 1)
    ended = [number for number, entry in enumerate(transcript.entries) if isinstance(entry, Response)]
    gone = set(ended[: max(len(ended) - most, 0) // block * block])
    kept = tuple(entry for number, entry in enumerate(transcript.entries) if number not in gone)
    return attrs.evolve(transcript, entries=kept)


def _for_models(message: ChatMessage) -> ChatMessage:
    # Most messages are as they should be, and a long thread has thousands.
    if not any(isinstance(content, _NOT_FOR_MODELS) for content in message.contents):
        return message
    return attrs.evolve(message, contents=[c for c in message.contents if not isinstance(c, _NOT_FOR_MODELS)])
