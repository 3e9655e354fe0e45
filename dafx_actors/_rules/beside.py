"""A turn beside another that waits for a person, where an agent has `overlap="beside"`. Pure.

The thread then works on two turns. Each has a draft and books of its own, and shares the history with the other. What
a turn is told and does goes by the rules for any turn: they are given the thread as that turn sees it (`seen_by`), and
what they make of it is put back (`kept`). Where the turn that waited ends first, the other takes its place.

The turn beside is shown what the other has done, each call with a result: of one that waits, that it waits. It may call
only tools without effect, since a person is thinking about what the other is to do. Its request stands behind that of
the other in the history, and its answer before the other's: so the other is shown it, before its own request, and no
call is parted from its result.
"""

from __future__ import annotations

import attrs

from dafx_actors._json.operations import Ended, Outcome
from dafx_actors._rules.open_calls import closed
from dafx_actors._rules.state import Beside, Books, ThreadState, first_in
from dafx_actors.exchange import Overlap
from dafx_actors.transcript import ChatMessage

WAITS = "This call waits for a person to approve it. It has not been made."
UNKNOWN = "Nobody knows yet whether this call has acted: a person is asked."
RUNS = "This call is being made."


def waits_for_person(state: ThreadState) -> bool:
    """Say whether the active turn waits for a person, who has not decided."""
    if state.active is None or state.active in state.cancelled:
        return False
    return any(question.decision is None for question in state.books.asks.values())


def has_room(state: ThreadState, overlap: Overlap) -> bool:
    """Say whether a turn may go on beside the active one."""
    return overlap == "beside" and state.beside is None and waits_for_person(state)


def seen_by(state: ThreadState, turn: str) -> ThreadState:
    """The thread as this turn sees it: the active turn is itself, also where it goes on beside another."""
    beside = state.beside
    if beside is None or beside.turn != turn:
        return state
    return attrs.evolve(state, active=turn, draft=beside.draft, books=beside.books, steered=(), beside=None)


def kept(before: ThreadState, turn: str, after: ThreadState, outcome: Outcome) -> tuple[ThreadState, Outcome]:
    """Put back what a rule made of the thread as `turn` sees it.

    Args:
        before: The thread, before `seen_by`.
        turn: Whom the rule was about.
        after: What the rule made of `seen_by(before, turn)`.
        outcome: What the rule says. The next in line is told only if it may begin.
    """
    if before.beside is None or before.beside.turn != turn:
        return _with_successor(after, outcome)
    beside = None if after.active is None else attrs.evolve(before.beside, draft=after.draft, books=after.books)
    state = attrs.evolve(
        after, active=before.active, draft=before.draft, books=before.books, steered=before.steered, beside=beside
    )
    if isinstance(outcome, Ended) and not waits_for_person(state):
        outcome = attrs.evolve(outcome, next_id=None)
    return state, outcome


def _with_successor(state: ThreadState, outcome: Outcome) -> tuple[ThreadState, Outcome]:
    """The thread, where the turn beside takes the place of the active one, if that has ended."""
    beside = state.beside
    if beside is None or state.active is not None:
        return state, outcome
    state = attrs.evolve(state, active=beside.turn, draft=beside.draft, books=beside.books, beside=None)
    return state, attrs.evolve(outcome, next_id=None) if isinstance(outcome, Ended) else outcome


def next_beside(state: ThreadState, overlap: Overlap) -> str | None:
    """The turn that waits in line and may begin beside the active one, which has just begun to wait for a person."""
    return first_in(state) if has_room(state, overlap) else None


def shown_beside(state: ThreadState) -> tuple[ChatMessage, ...]:
    """What the turn that waits for a person has done, as the one beside it is shown it.

    Args:
        state: The thread, and not as one of the turns sees it.
    """
    asked = {question.raw["callId"]: question for question in state.books.asks.values() if question.decision is None}

    def says(call_id: str) -> str:
        question = asked.get(call_id)
        return RUNS if question is None else WAITS if question.kind == "approval" else UNKNOWN

    return closed(state.draft, says)


def new(turn: str) -> Beside:
    """A turn that begins beside another."""
    return Beside(turn=turn, draft=(), books=Books())
