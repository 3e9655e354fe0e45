"""Tool calls and their results in a list of messages: each call is followed by its result, before all else."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from dafx_actors.transcript import ChatMessage, FunctionCallContent, FunctionResultContent

CUT_OFF = "The turn ended before this call was answered. It may have acted, or not."
"""The result of a call of which nobody knows more."""


def open_calls(messages: Iterable[ChatMessage]) -> tuple[str, ...]:
    """The ids of the tool calls without a result. Counted, for models that give every call of theirs the same id."""
    opened: list[str] = []
    for message in messages:
        _follow(opened, message)
    return tuple(opened)


def closed(messages: Iterable[ChatMessage], says: Callable[[str], str] = lambda _: CUT_OFF) -> tuple[ChatMessage, ...]:
    """The messages, with a result for every call: providers refuse a conversation where one is missing.

    `says` gives the results that are missing, by the ids of the calls.
    """
    kept: list[ChatMessage] = []
    opened: list[str] = []
    for message in messages:
        if opened and not any(call_id in opened for call_id in results_in(message)):
            kept.append(_not_made(opened, says))
            opened.clear()
        _follow(opened, message)
        kept.append(message)
    return (*kept, _not_made(opened, says)) if opened else tuple(kept)


def results_in(message: ChatMessage) -> list[str]:
    """The ids of the calls that the message answers."""
    return [content.call_id for content in message.contents if isinstance(content, FunctionResultContent)]


def _follow(opened: list[str], message: ChatMessage) -> None:
    opened += [content.call_id for content in message.contents if isinstance(content, FunctionCallContent)]
    for call_id in results_in(message):
        if call_id in opened:
            opened.remove(call_id)


def _not_made(opened: Iterable[str], says: Callable[[str], str]) -> ChatMessage:
    extra = {"dafx": {"open": True}}
    return ChatMessage("tool", tuple(FunctionResultContent(call_id, says(call_id), extra=extra) for call_id in opened))
