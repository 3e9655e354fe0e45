"""A turn that failed goes on: what its thread kept of it is its draft again. Pure.

The new execution of the turn comes with `retry`, which counts how often the turn was taken up again, and asks for its
thread as any turn does: it may have to wait in line. When it is granted the thread, its response, which ends with the
error, leaves the history; the messages before the error are what the model is shown, with the calls that were made and
their results, so that no step is made twice. A call of which nobody knows whether it acted stays that.

The number is a fence, too: calls are named by it (`ids.call_key`), and a step that was left over from before does not
act any more (`calls.may_act`). The response that the turn ends with says how often the turn was taken up again, and
what it had failed with.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

import attrs

from dafx_actors._json.books import Resumed
from dafx_actors._json.crossing import error_content
from dafx_actors._json.messages import dump_message, load_entry
from dafx_actors._json.shapes import as_list, as_object, dump_time, is_list, object_in
from dafx_actors._rules.open_calls import closed
from dafx_actors._rules.state import Books, ThreadState, children_below, ended_in, find_entry, joined_in
from dafx_actors.errors import ConfigurationError, DafxError, ModelError, RetryRefusal, TurnCancelled
from dafx_actors.ids import AgentThread
from dafx_actors.transcript import (
    ChatMessage,
    ErrorContent,
    FunctionCallContent,
    FunctionResultContent,
    Json,
    Response,
)

_BEFORE_ANY_STEP = frozenset({"authentication", "not_found"})
"""Kinds of model errors that are mistakes of configuration: a wrong key, a model that is not there."""


def over(state: ThreadState, turn: str, retry: int) -> Json | None:
    """The stored response of a turn that has ended; None where it has not, or may be taken up again for this time."""
    response = ended_in(state, turn)
    return None if response is None or may_go_on(response, turn, retry) else response


def may_go_on(response: Json, turn: str, retry: int) -> bool:
    """Say whether a stored response is that of a failed turn which has not been taken up again so often."""
    if retry <= retry_of(response) or response.get("correlationId") != turn:
        return False
    return mistake_about(response) is None


def retry_of(response: Json) -> int:
    """How often the turn had been taken up again that ended with this response."""
    retry: Json = object_in(response.get("dafx")).get("retry")
    return retry if isinstance(retry, int) else 0


def mistake_about(response: Json) -> RetryRefusal | None:
    """Why a turn that ended with this response is not taken up again; None where it may be."""
    entry = load_entry(response)
    error = entry.error if isinstance(entry, Response) else None
    if error is None:
        return "answered"
    return "cancelled" if error.error_code == TurnCancelled.__name__ else None


def refusal(state: ThreadState, turn: str) -> RetryRefusal | None:
    """Why a turn whose orchestration failed is not taken up again, by what its thread has of it."""
    response = ended_in(state, turn)
    if response is not None and response.get("correlationId") != turn:
        return "joined"
    return None if response is None else mistake_about(response)


def is_unpaid(error: DafxError | None, steps: int) -> bool:
    """Say whether a turn failed for its configuration before its first step, so that nobody has paid for anything."""
    if steps:
        return False
    return isinstance(error, ConfigurationError) or (isinstance(error, ModelError) and error.kind in _BEFORE_ANY_STEP)


def resumed(state: ThreadState, thread: AgentThread, turn: str, retry: int) -> ThreadState:
    """The thread of the active turn, taken up again for this time: without its failed response, if it has one.

    Where it has none, nobody told the thread of the failure; what it had recorded is kept all the same.
    """
    raw = find_entry(state, "response", turn)
    if raw is None:
        draft = _going_on(closed(state.draft))
        children = (*(state.books.resumed.children if state.books.resumed else ()), *state.books.children.values())
        come_to = attrs.evolve(_come_to(retry, draft, {}, state.books.resumed), children=children)
        books = Books(resumed=come_to, joined=state.books.joined)
        return attrs.evolve(state, draft=draft, books=books)
    entry = load_entry(raw)
    assert isinstance(entry, Response), "`may_go_on` has read it"
    draft = _going_on(entry.messages)
    history = tuple(each for each in state.history if each is not raw)
    before = attrs.evolve(
        _come_to(retry, draft, raw, None),
        usage=entry.usage,
        failures=_failures(raw, entry),
        children=children_below(raw, thread),
    )
    joined = tuple(str(each) for each in joined_in(raw))
    return attrs.evolve(state, history=history, draft=draft, books=Books(resumed=before, joined=joined))


def failed_again(state: ThreadState, response: Json, retry: int, error: DafxError, now: datetime) -> ThreadState:
    """The thread with another error in the place of that which a turn had failed with.

    The turn was to be taken up again, and ended while it waited in line.
    """
    entry = load_entry(response)
    assert isinstance(entry, Response), "`may_go_on` has read it"
    content = error_content(error)
    messages = [*_without_error(entry.messages), ChatMessage("assistant", (content,))]
    about = {**object_in(response.get("dafx")), "retry": retry, "retried": list(_failures(response, entry))}
    changed = {
        **response,
        "messages": [dump_message(message) for message in messages],
        "createdAt": dump_time(now),
        "dafx": about,
    }
    return attrs.evolve(state, history=tuple(changed if each is response else each for each in state.history))


def _come_to(
    retry: int, draft: tuple[ChatMessage, ...], response: Mapping[str, Json], before: Resumed | None
) -> Resumed:
    """How far the turn had come, by its draft, and by what its response says of that."""
    ours = object_in(response.get("dafx"))
    replies = sum(message.role == "assistant" for message in draft)
    calls = sum(isinstance(content, FunctionResultContent) for message in draft for content in message.contents)
    steps: Json = ours.get("steps")
    attempts: Json = ours.get("retries")
    return Resumed(
        retry=retry,
        replies=replies,
        steps=max(replies + calls, steps if isinstance(steps, int) else 0),
        usage=before.usage if before else None,
        attempts=tuple(as_list(attempts)) if is_list(attempts) else (),
        failures=before.failures if before else (),
    )


def _failures(raw: Json, entry: Response) -> tuple[Json, ...]:
    earlier: Json = object_in(raw.get("dafx")).get("retried")
    error = entry.error
    said = {} if error is None else {"error": {"type": error.error_code, "message": error.message}}
    at = {} if entry.created_at is None else {"at": dump_time(entry.created_at)}
    return (*map(as_object, as_list(earlier) if is_list(earlier) else []), {**at, **said})


def _going_on(messages: tuple[ChatMessage, ...]) -> tuple[ChatMessage, ...]:
    """The messages that a model is to go on from: without the error, and without an answer that was of no use."""
    kept = list(_without_error(messages))
    while kept and kept[-1].role == "assistant" and not any(map(_is_call, kept[-1].contents)):
        kept.pop()
    return tuple(kept)


def _is_call(content: object) -> bool:
    return isinstance(content, FunctionCallContent)


def _without_error(messages: tuple[ChatMessage, ...]) -> tuple[ChatMessage, ...]:
    own = (
        attrs.evolve(
            each, contents=tuple(content for content in each.contents if not isinstance(content, ErrorContent))
        )
        for each in messages
    )
    return tuple(each for each in own if each.contents)
