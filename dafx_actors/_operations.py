"""The operations of a thread: from JSON to a decision of `_thread.py`, and from its outcome to JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, TypeAlias

import attrs

from dafx_actors import _codec, _thread
from dafx_actors.agents import AgentDefinition
from dafx_actors.errors import DafxError, TurnFailed
from dafx_actors.ids import AgentThread
from dafx_actors.transcript import Json

State: TypeAlias = _thread.ThreadState
Outcome: TypeAlias = _thread.Outcome


@attrs.frozen(kw_only=True)
class Message:
    """What a thread is told."""

    thread: AgentThread
    raw: Json
    now: datetime
    definition: AgentDefinition

    @property
    def turn(self) -> str:
        """The turn that it is about."""
        turn: str = self.raw["correlationId"]
        return turn


Decide: TypeAlias = Callable[[State, Message], "tuple[State, Outcome]"]


def _begin(state: State, told: Message) -> tuple[State, Outcome]:
    return _thread.begin(state, told.thread, _codec.load_request(told.raw), told.now, told.definition.overlap)


def _record(state: State, told: Message) -> tuple[State, Outcome]:
    return _thread.record(
        state,
        told.thread,
        told.turn,
        _codec.load_messages(told.raw["messages"]),
        told.raw["length"],
        asks=told.raw.get("asks") or (),
        children=told.raw.get("children") or (),
    )


def _commit(state: State, told: Message) -> tuple[State, Outcome]:
    return _thread.commit(
        state,
        told.thread,
        told.turn,
        _codec.load_messages(told.raw["messages"]),
        _codec.load_usage(told.raw.get("usage")),
        told.now,
        at=told.raw.get("length"),
        last=bool(told.raw.get("last")),
        whole=bool(told.raw.get("whole")),
        about=told.raw.get("about"),
    )


def _abort(state: State, told: Message) -> tuple[State, Outcome]:
    return _thread.abort(
        state,
        told.thread,
        told.turn,
        error_in(told.raw, told.thread),
        told.now,
        messages=_codec.load_messages(told.raw.get("messages") or []),
        usage=_codec.load_usage(told.raw["usage"]) if told.raw.get("usage") else None,
        about=told.raw.get("about"),
    )


def _cancel(state: State, told: Message) -> tuple[State, Outcome]:
    return _thread.cancel(state, told.thread, told.turn, told.raw["mark"], told.now)


def _decide(state: State, told: Message) -> tuple[State, Outcome]:
    return _thread.decide(state, told.turn, told.raw["key"], told.raw["digest"], told.raw["decision"])


def _decision(state: State, told: Message) -> tuple[State, Outcome]:
    return _thread.decision(state, told.turn, told.raw["key"])


def _attempt(state: State, told: Message) -> tuple[State, Outcome]:
    return _thread.attempt(state, told.turn, told.raw["key"], told.raw["number"], told.raw["token"], told.now)


def _note(state: State, told: Message) -> tuple[State, Outcome]:
    return _thread.note(state, told.turn, told.raw["key"], told.raw["progress"])


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
    "note": _note,
    "reset": _reset,
}


def dump_outcome(outcome: Outcome) -> Json:
    """An outcome as the caller of an operation gets it."""
    return _OUTCOMES[type(outcome)](outcome)


_OUTCOMES: Mapping[type[Any], Callable[[Any], Json]] = {
    _thread.Granted: lambda outcome: {"granted": outcome.length},
    _thread.Queued: lambda outcome: {"queued": outcome.active, "cancelled": list(outcome.cancelled)},
    _thread.Ended: lambda outcome: {
        "ended": outcome.response,
        "next": outcome.next_id,
        "granted": outcome.next.length if outcome.next else None,
        "joined": list(outcome.joined),
    },
    _thread.Cancelled: lambda outcome: {"cancelled": outcome.mark, "turn": outcome.turn},
    _thread.Decided: lambda outcome: {"decided": outcome.decision},
    _thread.Attempted: lambda outcome: {"attempt": outcome.answer, "since": outcome.since},
    _thread.Noted: lambda _: None,
    _thread.Refused: lambda outcome: {"error": _codec.dump_error(outcome.error)},
}


def error_in(raw: Json, thread: AgentThread) -> DafxError:
    """The error that a step or an operation gave as a value."""
    return _codec.load_error(raw["error"]) or TurnFailed(
        thread.agent, raw.get("correlationId") or "?", "an unknown error", str(raw["error"])
    )
