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
    Clear,
    Commit,
    Decide,
    GiveUp,
    Import,
    Note,
    Outcome,
    ReadDecision,
    Record,
    Refused,
    Sweep,
    load_begin,
    turn_in,
)
from dafx_actors._rules import calls as _calls
from dafx_actors._rules import clearing as _clearing
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
class Incoming:
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


Rule: TypeAlias = Callable[[ThreadState, Incoming], "tuple[ThreadState, Outcome]"]


def _begin(state: ThreadState, incoming: Incoming) -> tuple[ThreadState, Outcome]:
    message, overlap = load_begin(incoming.raw), incoming.definition.overlap
    if isinstance(message, Ask):
        return _thread.ask(state, incoming.thread, message.place, overlap)
    return _thread.begin(state, incoming.thread, message.request, incoming.now, overlap)


def _record(state: ThreadState, incoming: Incoming) -> tuple[ThreadState, Outcome]:
    message = Record.load(incoming.raw)
    return _thread.record(
        state,
        incoming.thread,
        message.turn,
        message.messages,
        message.length,
        questions=message.questions,
        children=message.children,
    )


def _commit(state: ThreadState, incoming: Incoming) -> tuple[ThreadState, Outcome]:
    message = Commit.load(incoming.raw)
    return _thread.commit(
        state,
        incoming.thread,
        message.turn,
        message.messages,
        message.usage,
        incoming.now,
        at=message.length,
        last=message.last,
        whole=message.whole,
        about=message.about,
    )


def _abort(state: ThreadState, incoming: Incoming) -> tuple[ThreadState, Outcome]:
    message = Abort.load(incoming.raw, incoming.thread)
    return _thread.abort(
        state,
        incoming.thread,
        message.turn,
        message.error,
        incoming.now,
        messages=message.messages,
        usage=message.usage,
        about=message.about,
        request=message.request,
    )


def _cancel(state: ThreadState, incoming: Incoming) -> tuple[ThreadState, Outcome]:
    message = Cancel.load(incoming.raw)
    return _thread.cancel(state, incoming.thread, message.turn, message.mark, incoming.now)


def _decide(state: ThreadState, incoming: Incoming) -> tuple[ThreadState, Outcome]:
    message = Decide.load(incoming.raw)
    if (mistake := _unsigned(state, incoming, message)) is not None:
        return state, Refused(DecisionRefused(message.key, "unsigned", mistake))
    return _calls.decide(state, message.turn, message.key, message.digest, message.decision)


def _unsigned(state: ThreadState, incoming: Incoming, message: Decide) -> str | None:
    """Why a decision is not taken by an agent with deciders; the deadline's own word needs no signature."""
    deciders = incoming.definition.deciders
    if not deciders:
        return None
    if message.decision.action == "expire":
        question = state.books.asks.get(message.key)
        return None if question is not None and question.has_deadline else "the call has no deadline"
    raw = message.decision.raw
    return signature_mistake(deciders, incoming.thread, message.turn, message.key, message.digest, raw)


def _decision(state: ThreadState, incoming: Incoming) -> tuple[ThreadState, Outcome]:
    message = ReadDecision.load(incoming.raw)
    return _calls.decision(state, message.turn, message.key)


def _attempt(state: ThreadState, incoming: Incoming) -> tuple[ThreadState, Outcome]:
    message = Attempt.load(incoming.raw)
    return _calls.attempt(state, message.turn, message.key, message.number, message.token, incoming.now)


def _give_up(state: ThreadState, incoming: Incoming) -> tuple[ThreadState, Outcome]:
    message = GiveUp.load(incoming.raw)
    return _calls.give_up(state, incoming.thread, message.turn, message.key, message.number)


def _note(state: ThreadState, incoming: Incoming) -> tuple[ThreadState, Outcome]:
    message = Note.load(incoming.raw)
    return _calls.note(state, message.turn, message.key, message.progress)


def _reset(state: ThreadState, _: Incoming) -> tuple[ThreadState, Outcome]:
    return _thread.reset(state)


def _clear(state: ThreadState, incoming: Incoming) -> tuple[ThreadState, Outcome]:
    return _clearing.clear(state, incoming.thread, Clear.load(incoming.raw), incoming.now)


def _sweep(state: ThreadState, incoming: Incoming) -> tuple[ThreadState, Outcome]:
    return _clearing.sweep(state, Sweep.load(incoming.raw))


def _import(state: ThreadState, incoming: Incoming) -> tuple[ThreadState, Outcome]:
    return _clearing.take_over(state, incoming.thread, Import.load(incoming.raw))


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
    "clear": _clear,
    "sweep": _sweep,
    "import": _import,
}
