"""Requests that become part of the turn that runs, where an agent has `overlap="steer"`. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping

import attrs

from dafx_actors._json.messages import dump_message, load_entry
from dafx_actors._json.requests import dump_request
from dafx_actors._rules.open_calls import open_calls
from dafx_actors._rules.state import JOINED, ThreadState, ended_in, find_entry
from dafx_actors.exchange import RunRequest
from dafx_actors.transcript import ChatMessage, Json, Response

_OF_TURN = "correlationId"
"""In a stored message: the request that it came with, where that became part of another turn."""
MOST_STEERED = 128 * 1024
"""Bytes of requests that are to become part of one turn, or have; one that does not fit waits for a turn of its own."""


def may_join(state: ThreadState, active: str, request: RunRequest) -> bool:
    """Say whether a request may become part of the active turn: it wants the same form of answer, and there is room.

    What is to join is in the thread's state as a whole, and so is what has joined, until the turn ends.
    """
    if schema_of(state, active) != request.response_schema:
        return False
    joined = [dump_message(message) for message in state.draft if _OF_TURN in message.extra]
    sizes = (len(json.dumps(each)) for each in (*joined, *map(dump_request, (*state.steered, request))))
    return sum(sizes) <= MOST_STEERED


def join(state: ThreadState) -> ThreadState:
    """Let steered requests become part of the turn, unless a call is open: its result must come first.

    Nothing joins a turn that was cancelled: it would end with it, and can be answered after it.
    """
    if not state.steered or state.active in state.cancelled or open_calls(state.draft):
        return state
    messages = tuple(
        attrs.evolve(message, extra={**message.extra, _OF_TURN: request.correlation_id})
        for request in state.steered
        for message in request.messages
    )
    joined = (*state.books.joined, *(request.correlation_id for request in state.steered))
    books = attrs.evolve(state.books, joined=joined)
    return attrs.evolve(state, draft=state.draft + messages, steered=(), books=books)


def joined_request(state: ThreadState, turn: str) -> RunRequest | None:
    """A request that became part of another turn, as it came."""
    host, messages = state.active, state.draft
    if turn not in state.books.joined:
        if (response := ended_in(state, turn)) is None:
            return None
        if not isinstance(entry := load_entry(response), Response):
            return None  # it is broken, and kept as it is
        host, messages = entry.correlation_id, entry.messages
    own = unlabelled(tuple(message for message in messages if message.extra.get(_OF_TURN) == turn))
    return RunRequest(correlation_id=turn, messages=own, response_schema=schema_of(state, host)) if own else None


def schema_of(state: ThreadState, turn: str | None) -> Mapping[str, Json] | None:
    stored = None if turn is None else find_entry(state, "request", turn)
    return None if stored is None else stored.get("responseSchema")


def without_joined(state: ThreadState) -> ThreadState:
    """The thread without what its turn gave so far; what had joined that is to join again."""
    again = (joined_request(state, turn) for turn in state.books.joined)
    steered = (*(request for request in again if request is not None), *state.steered)
    return attrs.evolve(state, draft=(), steered=steered, books=attrs.evolve(state.books, joined=()))


def unlabelled(messages: tuple[ChatMessage, ...]) -> tuple[ChatMessage, ...]:
    """Messages that do not say which request they came with."""
    return tuple(attrs.evolve(each, extra={k: v for k, v in each.extra.items() if k != _OF_TURN}) for each in messages)


def about_itself(about: Mapping[str, Json] | None) -> Mapping[str, Json]:
    """The part of `about` that a completed turn says of itself, and not of the requests that had joined it.

    It completed before the thread was reset: they may be waiting anew, or be cancelled.
    """
    return {name: value for name, value in (about or {}).items() if name != JOINED}
