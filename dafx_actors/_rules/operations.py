"""The operations of a thread: each reads what the thread is told, and lets a rule decide. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Protocol, TypeAlias

import attrs

from dafx_actors._json.operations import (
    Abort,
    Ask,
    Attempt,
    Cancel,
    Commit,
    Decide,
    GiveUp,
    Note,
    Outcome,
    ReadDecision,
    Record,
    Refused,
    load_begin,
    turn_in,
)
from dafx_actors._rules import calls as _calls
from dafx_actors._rules import thread as _thread
from dafx_actors._rules.state import ThreadState
from dafx_actors.decisions import signature_mistake
from dafx_actors.errors import DecisionRefused
from dafx_actors.exchange import Overlap
from dafx_actors.ids import AgentThread
from dafx_actors.transcript import Json


class Definition(Protocol):
    """The part of an agent's definition that decides about its threads."""

    @property
    def overlap(self) -> Overlap:
        """The rule for a request that comes while its thread works on another."""
        ...

    @property
    def deciders(self) -> Mapping[str, bytes]:
        """The public keys of those who may decide, by their names; anybody may where there are none."""
        ...


@attrs.frozen(kw_only=True)
class Told:
    """A message to a thread, with all that a rule needs to decide."""

    thread: AgentThread
    raw: Json
    now: datetime
    definition: Definition

    @property
    def turn(self) -> str:
        """The turn that the message is about.

        Raises:
            ValueError: It names none.
        """
        return turn_in(self.raw)


Rule: TypeAlias = Callable[[ThreadState, Told], "tuple[ThreadState, Outcome]"]


def _begin(state: ThreadState, told: Told) -> tuple[ThreadState, Outcome]:
    message, overlap = load_begin(told.raw), told.definition.overlap
    if isinstance(message, Ask):
        return _thread.ask(state, told.thread, message.place, overlap)
    return _thread.begin(state, told.thread, message.request, told.now, overlap)


def _record(state: ThreadState, told: Told) -> tuple[ThreadState, Outcome]:
    message = Record.load(told.raw)
    return _thread.record(
        state,
        told.thread,
        message.turn,
        message.messages,
        message.length,
        questions=message.questions,
        children=message.children,
    )


def _commit(state: ThreadState, told: Told) -> tuple[ThreadState, Outcome]:
    message = Commit.load(told.raw)
    return _thread.commit(
        state,
        told.thread,
        message.turn,
        message.messages,
        message.usage,
        told.now,
        at=message.length,
        last=message.last,
        whole=message.whole,
        about=message.about,
    )


def _abort(state: ThreadState, told: Told) -> tuple[ThreadState, Outcome]:
    message = Abort.load(told.raw, told.thread)
    return _thread.abort(
        state,
        told.thread,
        message.turn,
        message.error,
        told.now,
        messages=message.messages,
        usage=message.usage,
        about=message.about,
        request=message.request,
    )


def _cancel(state: ThreadState, told: Told) -> tuple[ThreadState, Outcome]:
    message = Cancel.load(told.raw)
    return _thread.cancel(state, told.thread, message.turn, message.mark, told.now)


def _decide(state: ThreadState, told: Told) -> tuple[ThreadState, Outcome]:
    message = Decide.load(told.raw)
    if (mistake := _unsigned(state, told, message)) is not None:
        return state, Refused(DecisionRefused(message.key, "unsigned", mistake))
    return _calls.decide(state, message.turn, message.key, message.digest, message.decision)


def _unsigned(state: ThreadState, told: Told, message: Decide) -> str | None:
    """Why a decision is not taken by an agent with deciders; the deadline's own word needs no signature."""
    deciders = told.definition.deciders
    if not deciders:
        return None
    if message.decision.action == "expire":
        question = state.books.asks.get(message.key)
        return None if question is not None and question.has_deadline else "the call has no deadline"
    raw = message.decision.raw
    return signature_mistake(deciders, told.thread, message.turn, message.key, message.digest, raw)


def _decision(state: ThreadState, told: Told) -> tuple[ThreadState, Outcome]:
    message = ReadDecision.load(told.raw)
    return _calls.decision(state, message.turn, message.key)


def _attempt(state: ThreadState, told: Told) -> tuple[ThreadState, Outcome]:
    message = Attempt.load(told.raw)
    return _calls.attempt(state, message.turn, message.key, message.number, message.token, told.now)


def _give_up(state: ThreadState, told: Told) -> tuple[ThreadState, Outcome]:
    message = GiveUp.load(told.raw)
    return _calls.give_up(state, told.thread, message.turn, message.key, message.number)


def _note(state: ThreadState, told: Told) -> tuple[ThreadState, Outcome]:
    message = Note.load(told.raw)
    return _calls.note(state, message.turn, message.key, message.progress)


def _reset(state: ThreadState, _: Told) -> tuple[ThreadState, Outcome]:
    return _thread.reset(state)


OPERATIONS: Mapping[str, Rule] = {
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
