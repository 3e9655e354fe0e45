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
    CallDecided,
    Cancel,
    Clear,
    Commit,
    Decide,
    Decided,
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
from dafx_actors._rules import beside as _beside
from dafx_actors._rules import calls as _calls
from dafx_actors._rules import clearing as _clearing
from dafx_actors._rules import thread as _thread
from dafx_actors._rules.state import ThreadState
from dafx_actors.decisions import DecisionKind, signature_mistake
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


Against: TypeAlias = Callable[[DecisionKind, str, Mapping[str, Json]], str]
"""What speaks against a call, which a person was asked about, of that tool with these arguments; or nothing."""


def nothing_against(kind: DecisionKind, tool: str, arguments: Mapping[str, Json]) -> str:
    """Nothing is known against any call."""
    return ""


@attrs.frozen(kw_only=True)
class Incoming:
    """A message to a thread, with all that a rule needs to decide."""

    thread: AgentThread
    raw: Json
    now: datetime
    definition: Definition
    against: Against = nothing_against
    """What the agent's tools, as they are now, have against a call that waited for a person."""

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
    return _thread.begin(state, incoming.thread, message.request, incoming.now, overlap, message.retry)


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
        overlap=incoming.definition.overlap,
        retry=message.retry,
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
        retry=message.retry,
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
        retry=message.retry,
    )


def _cancel(state: ThreadState, incoming: Incoming) -> tuple[ThreadState, Outcome]:
    message = Cancel.load(incoming.raw)
    return _thread.cancel(state, incoming.thread, message.turn, message.mark, incoming.now, message.retry)


def _decide(state: ThreadState, incoming: Incoming) -> tuple[ThreadState, Outcome]:
    message = Decide.load(incoming.raw)
    if (mistake := _unsigned(state, incoming, message)) is not None:
        return state, Refused(DecisionRefused(message.key, "unsigned", mistake))
    if (mistake := _wrongly_edited(state, incoming, message)) is not None:
        return state, Refused(DecisionRefused(message.key, "unfit", mistake))
    state, outcome = _calls.decide(state, message.turn, message.key, message.digest, message.decision)
    if isinstance(outcome, Decided) and (message.decision.action != "expire" or not message.turn):
        outcome = _with_call(state, incoming, message.key, outcome)
    return state, outcome


def _wrongly_edited(state: ThreadState, incoming: Incoming, message: Decide) -> str | None:
    """Why arguments that a person gives a call in place of the model's do not fit; a person can give others."""
    question, arguments = state.books.asks.get(message.key), message.decision.arguments
    if question is None or question.decision is not None or message.decision.action != "approve" or arguments is None:
        return None
    return incoming.against(question.kind, question.tool, arguments) or None


def _with_call(state: ThreadState, incoming: Incoming, key: str, decided: Decided) -> Decided:
    """Tell a person which call their decision counts for, and what the agent as it is now has against the call."""
    question, decision, note = state.books.asks[key], decided.decision, ""
    arguments = question.arguments if decision.arguments is None else decision.arguments
    if decision.action in ("approve", "retry"):
        note = incoming.against(question.kind, question.tool, arguments)
    about = CallDecided(turn=state.active or "", tool=question.tool, arguments=arguments, note=note)
    return attrs.evolve(decided, about=about)


def _unsigned(state: ThreadState, incoming: Incoming, message: Decide) -> str | None:
    """Why a decision is not taken by an agent with deciders; the deadline's own word needs no signature."""
    deciders = incoming.definition.deciders
    if not deciders:
        return None
    if message.decision.action == "expire":
        question = state.books.asks.get(message.key)
        return None if question is not None and question.has_deadline else "the call has no deadline"
    if not message.digest:
        return "a signature is over the arguments of the call: give the `digest` of what was seen"
    raw = message.decision.raw
    return signature_mistake(deciders, incoming.thread, message.turn, message.key, message.digest, raw)


def _decision(state: ThreadState, incoming: Incoming) -> tuple[ThreadState, Outcome]:
    message = ReadDecision.load(incoming.raw)
    return _calls.decision(state, message.turn, message.key)


def _attempt(state: ThreadState, incoming: Incoming) -> tuple[ThreadState, Outcome]:
    message = Attempt.load(incoming.raw)
    return _calls.attempt(state, message.turn, message.key, message.number, message.token, incoming.now, message.retry)


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


def _of_turn(rule: Rule) -> Rule:
    """A rule about one turn: it is given the thread as that turn sees it, which may be beside another."""

    def carried_out(state: ThreadState, incoming: Incoming) -> tuple[ThreadState, Outcome]:
        seen = _beside.seen_by(state, incoming.turn)
        after, outcome = rule(seen, incoming)
        return (state, outcome) if after is seen else _beside.kept(state, incoming.turn, after, outcome)

    return carried_out


_OF_TURNS: Mapping[str, Rule] = {
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
}

_OF_THREADS: Mapping[str, Rule] = {"reset": _reset, "clear": _clear, "sweep": _sweep, "import": _import}

OPERATIONS: Mapping[str, Rule] = {**{name: _of_turn(rule) for name, rule in _OF_TURNS.items()}, **_OF_THREADS}
