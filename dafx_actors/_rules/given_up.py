"""Calls that a turn gave up because no worker has their tool any more. Pure, as `_thread.py`, whose rules these are.

That a call is given up is on record before the model is told so. A step that is handed out later, since a worker that
has the tool came back after all, reads it and does not act: a call has acted, or is told as given up, and never both.
"""

from __future__ import annotations

import attrs

from dafx_actors._rules.state import GivenUp, Outcome, Refused, ThreadState
from dafx_actors.errors import TurnSuperseded
from dafx_actors.ids import AgentThread

__all__ = ["give_up", "is_given_up"]


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
    return state, GivenUp(made is not None and made["number"] >= number)


def is_given_up(state: ThreadState, key: str, number: int) -> bool:
    """Whether this attempt of a call must not be made any more."""
    return key in state.books.given_up and number <= state.books.given_up[key]
