"""What a thread knows of the tool calls of its active turn: decisions, attempts, progress. Pure.

That a call is given up is on record before the model is told so. A step that is handed out later, since a worker that
has the tool came back after all, reads it and does not act: a call has acted, or is told as given up, and never both.
"""

from __future__ import annotations

from datetime import datetime

import attrs

from dafx_actors._json.books import AttemptRecord, DecisionRecord, QuestionRecord
from dafx_actors._json.operations import Attempted, Decided, GivenUp, Noted, Outcome, Refused
from dafx_actors._rules.state import ThreadState
from dafx_actors.decisions import ACTIONS, call_digest
from dafx_actors.errors import DecisionRefused, TurnSuperseded
from dafx_actors.ids import AgentThread
from dafx_actors.transcript import Json


def decide(
    state: ThreadState, turn: str, key: str, digest: str, decision: DecisionRecord
) -> tuple[ThreadState, Outcome]:
    """Somebody decides about a tool call of the active turn. The first decision counts; the same one again is fine.

    `expire` is the deadline's: it loses to every decision that was made before. Without a turn the decision is about
    the active one; without a digest, about the call as it stands.
    """
    turn = turn or state.active or ""
    question = state.books.asks.get(key) if turn and state.active == turn else None
    if question is None or turn in state.cancelled:
        return state, Refused(DecisionRefused(key, "not_pending"))
    digest = digest or question.digest
    if question.digest != digest:
        now = dict(question.arguments)
        return state, Refused(
            DecisionRefused(key, "changed", tool=question.tool, arguments=now, digest=question.digest)
        )
    if decision.action not in (*ACTIONS[question.kind], *(["expire"] if question.kind == "approval" else [])):
        return state, Refused(DecisionRefused(key, "unfit", f"{decision.action!r} for {question.kind!r}"))
    if (made := question.decision) is not None:
        if made.is_same_as(decision) or decision.action == "expire":
            return state, Decided(made)
        return state, Refused(DecisionRefused(key, "decided", f"{made.action} by {made.by or 'somebody'}"))
    edited = decision.arguments if decision.action == "approve" else None
    kept = decision.about(digest if edited is None else call_digest(question.tool, edited))
    asks = {**state.books.asks, key: question.decided(kept)}
    return attrs.evolve(state, books=attrs.evolve(state.books, asks=asks)), Decided(kept)


def decision(state: ThreadState, turn: str, key: str) -> tuple[ThreadState, Outcome]:
    """Read the decision about a tool call of the active turn: there is none while it waits, or after a cancel."""
    question = state.books.asks.get(key) if may_act(state, turn, state.books.retry) else None
    made = None if question is None else question.decision
    return state, Noted() if made is None else Decided(made)


def attempt(
    state: ThreadState, turn: str, key: str, number: int, token: str, now: datetime, retry: int = 0
) -> tuple[ThreadState, Outcome]:
    """A step is about to make a call that may act only once: recorded before it acts, by `token`.

    The first to come with a number goes; a later number means that somebody has found out, or decided, that the
    attempts before it count as not made.
    """
    if not may_act(state, turn, retry) or is_given_up(state, key, number):
        return state, Attempted("stop")
    made = state.books.attempts.get(key)
    if made is not None and made.number >= number:
        same = (made.number, made.token) == (number, token)
        return state, Attempted("go" if same else "unknown", made.at)
    attempts = {**state.books.attempts, key: AttemptRecord.of(number, token, now)}
    return attrs.evolve(state, books=attrs.evolve(state.books, attempts=attempts)), Attempted("go")


def note(state: ThreadState, turn: str, key: str, progress: Json) -> tuple[ThreadState, Outcome]:
    """A tool reports how far it is; the latest report of each call is kept."""
    if state.active != turn:
        return state, Noted()
    progresses = {**state.books.progress, key: progress}
    return attrs.evolve(state, books=attrs.evolve(state.books, progress=progresses)), Noted()


def may_act(state: ThreadState, turn: str, retry: int = 0) -> bool:
    """Say whether a tool of this turn may begin to act.

    `retry` is how often the turn had been taken up again when the call was planned. A step that is left over from the
    time before the turn failed does not act: the model was told that nobody knows of its call.
    """
    return state.active == turn and turn not in state.cancelled and state.books.retry == retry


def is_approved(state: ThreadState, key: str, digest: str) -> bool:
    """Say whether a person approved this call, by its key and a hash of the arguments that it would be made with."""
    question = state.books.asks.get(key)
    made = None if question is None else question.decision
    return made is not None and (made.action, made.digest) == ("approve", digest)


def is_asked(state: ThreadState, question: QuestionRecord) -> bool:
    """Say whether this very question was asked before: then it keeps the decision about it."""
    asked = state.books.asks.get(question.key)
    return asked is not None and asked.asks_the_same(question)


def give_up(state: ThreadState, thread: AgentThread, turn: str, key: str, number: int) -> tuple[ThreadState, Outcome]:
    """The active turn gives up an attempt of a call, and those before it.

    Of a call that may act only once the thread knows whether a step has begun to make it.
    """
    if state.active != turn:
        return state, Refused(TurnSuperseded(thread.thread_id, turn))
    if not is_given_up(state, key, number):
        given_up = {**state.books.given_up, key: number}
        state = attrs.evolve(state, books=attrs.evolve(state.books, given_up=given_up))
    made = state.books.attempts.get(key)
    return state, GivenUp(made is not None and made.number >= number)


def is_given_up(state: ThreadState, key: str, number: int) -> bool:
    """Say whether this attempt of a call must not be made any more."""
    return key in state.books.given_up and number <= state.books.given_up[key]
