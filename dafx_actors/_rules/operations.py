"""The operations of a thread: from JSON to a decision of `_thread.py`, and from its outcome to JSON.

Anybody who reaches the scheduler can send a thread anything. What is not as it should be is refused here, as a
ValueError that says what is wrong, before anything is stored that would break the thread later.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, Protocol, TypeAlias, TypeVar

import attrs

from dafx_actors._json import messages as _codec
from dafx_actors._json.shapes import as_list, as_object, as_text, as_whole_number, object_in
from dafx_actors._rules import given_up as _given_up
from dafx_actors._rules import thread as _thread
from dafx_actors._rules.state import GivenUp
from dafx_actors.decisions import signature_mistake
from dafx_actors.errors import DafxError, DecisionRefused, TurnFailed
from dafx_actors.exchange import Overlap
from dafx_actors.ids import AgentThread
from dafx_actors.transcript import Json

T = TypeVar("T")
State: TypeAlias = _thread.ThreadState
Outcome: TypeAlias = _thread.Outcome


class Definition(Protocol):
    """What of an agent's definition decides about its threads."""

    @property
    def overlap(self) -> Overlap: ...

    @property
    def deciders(self) -> Mapping[str, bytes]: ...


@attrs.frozen(kw_only=True)
class Message:
    """What a thread is told."""

    thread: AgentThread
    raw: Json
    now: datetime
    definition: Definition

    @property
    def turn(self) -> str:
        """The turn that it is about."""
        return self.get("correlationId", as_text)

    def get(self, field: str, check: Callable[[Json], T]) -> T:
        """A field that must be there.

        Raises:
            ValueError: It is missing, or `check` says that it is something else.
        """
        try:
            return check(as_object(self.raw).get(field))
        except ValueError as error:
            raise ValueError(f"`{field}` of what the thread was told: {error}") from error

    def find(self, field: str, check: Callable[[Json], T]) -> T | None:
        """A field that may be there; likewise."""
        return None if as_object(self.raw).get(field) is None else self.get(field, check)


Decide: TypeAlias = Callable[[State, Message], "tuple[State, Outcome]"]


def _begin(state: State, told: Message) -> tuple[State, Outcome]:
    # An object, and not its text as in the peer's `run`: what comes after looks into it.
    raw = as_object(told.raw)
    if raw.get("messages") == [] and raw.get("digest") is not None:
        place = _thread.Place(told.turn, told.get("digest", as_text))
        return _thread.ask(state, told.thread, place, told.definition.overlap)
    request = _codec.load_request(raw)
    return _thread.begin(state, told.thread, request, told.now, told.definition.overlap)


def _record(state: State, told: Message) -> tuple[State, Outcome]:
    return _thread.record(
        state,
        told.thread,
        told.turn,
        told.get("messages", _codec.load_messages),
        told.get("length", as_whole_number),
        asks=[_codec.check_ask(ask) for ask in told.find("asks", as_list) or ()],
        children=[_codec.check_child(child) for child in told.find("children", as_list) or ()],
    )


def _commit(state: State, told: Message) -> tuple[State, Outcome]:
    return _thread.commit(
        state,
        told.thread,
        told.turn,
        told.get("messages", _codec.load_messages),
        told.find("usage", _codec.load_usage),
        told.now,
        at=told.find("length", as_whole_number),
        last=told.find("last", bool) or False,
        whole=told.find("whole", bool) or False,
        about=told.find("about", as_object),
    )


def _abort(state: State, told: Message) -> tuple[State, Outcome]:
    return _thread.abort(
        state,
        told.thread,
        told.turn,
        error_in({**as_object(told.raw), "error": told.get("error", as_object)}, told.thread),
        told.now,
        messages=told.find("messages", _codec.load_messages) or (),
        usage=told.find("usage", _codec.load_usage),
        about=told.find("about", as_object),
        request=told.find("request", _codec.load_request),
    )


def _cancel(state: State, told: Message) -> tuple[State, Outcome]:
    return _thread.cancel(state, told.thread, told.turn, told.get("mark", as_object), told.now)


def _decide(state: State, told: Message) -> tuple[State, Outcome]:
    decision = told.get("decision", _codec.check_decision)
    key, digest = told.get("key", as_text), told.get("digest", as_text)
    if (mistake := _unsigned(state, told, key, digest, decision)) is not None:
        return state, _thread.Refused(DecisionRefused(key, "unsigned", mistake))
    return _thread.decide(state, told.turn, key, digest, decision)


def _unsigned(state: State, told: Message, key: str, digest: str, decision: Mapping[str, Json]) -> str | None:
    """Why a decision is not taken by an agent with deciders; the deadline's own word needs no signature."""
    deciders = told.definition.deciders
    if not deciders:
        return None
    if decision["action"] == "expire":
        return None if "deadline" in (state.books.asks.get(key) or {}) else "the call has no deadline"
    return signature_mistake(deciders, told.thread, told.turn, key, digest, decision)


def _decision(state: State, told: Message) -> tuple[State, Outcome]:
    return _thread.decision(state, told.turn, told.get("key", as_text))


def _attempt(state: State, told: Message) -> tuple[State, Outcome]:
    number, token = told.get("number", as_whole_number), told.get("token", as_text)
    return _thread.attempt(state, told.turn, told.get("key", as_text), number, token, told.now)


def _give_up(state: State, told: Message) -> tuple[State, Outcome]:
    return _given_up.give_up(
        state, told.thread, told.turn, told.get("key", as_text), told.get("number", as_whole_number)
    )


def _note(state: State, told: Message) -> tuple[State, Outcome]:
    return _thread.note(state, told.turn, told.get("key", as_text), as_object(told.raw).get("progress"))


def _reset(state: State, _: Message) -> tuple[State, Outcome]:
    return _thread.reset(state)


OPERATIONS: Mapping[str, Decide] = {
    "begin": _begin,
    "record": _record,
    "commit": _commit,
    "abort": _abort,
    "cancel": _cancel,
    "decide": _decide,
    "decision": _decision,
    "attempt": _attempt,
    "giveUp": _give_up,
    "note": _note,
    "reset": _reset,
}


def dump_outcome(outcome: Outcome) -> Json:
    """An outcome as the caller of an operation gets it."""
    return _OUTCOMES[type(outcome)](outcome)


_OUTCOMES: Mapping[type[Any], Callable[[Any], Json]] = {
    _thread.Granted: lambda outcome: {
        "granted": outcome.length,
        **({"cancelled": list(outcome.cancelled)} if outcome.cancelled else {}),
    },
    _thread.Queued: lambda outcome: {"queued": outcome.active, "cancelled": list(outcome.cancelled)},
    _thread.Wanted: lambda _: {"wanted": True},
    _thread.Ended: lambda outcome: {
        "ended": outcome.response,
        "next": outcome.next_id,
        "joined": list(outcome.joined),
    },
    _thread.Cancelled: lambda outcome: {"cancelled": outcome.mark, "turn": outcome.turn},
    _thread.Decided: lambda outcome: {"decided": outcome.decision},
    _thread.Attempted: lambda outcome: {"attempt": outcome.answer, "since": outcome.since},
    GivenUp: lambda outcome: {"givenUp": True, "begun": outcome.begun},
    _thread.Noted: lambda _: None,
    _thread.Refused: lambda outcome: {"error": _codec.dump_error(outcome.error)},
}


def in_short(aborted: Json) -> Json:
    """What `abort` gave, of whose response the turn needs the error only: the thread may be as large as can be sent."""
    outcome = as_object(aborted)
    ended = object_in(outcome.get("ended"))
    telling = [each for each in as_list(ended.get("messages") or []) if _tells_an_error(as_object(each))]
    return {**outcome, "ended": {**ended, "messages": telling}} if telling else aborted


def _tells_an_error(message: Mapping[str, Json]) -> bool:
    return any(as_object(content).get("$type") == "error" for content in as_list(message.get("contents") or []))


def error_in(raw: Json, thread: AgentThread) -> DafxError:
    """The error that a step or an operation gave as a value."""
    return _codec.load_error(raw["error"]) or TurnFailed(
        thread.agent, raw.get("correlationId") or "?", "an unknown error", str(raw["error"])
    )
