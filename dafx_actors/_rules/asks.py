"""What the inbox is told of a thread, and what its entity keeps of that. Pure.

A thread tells it with each change of what a person is to decide, in one batch with its state. Nothing else is assumed
of that message: it may come twice, late, or, where an older version has the thread, not at all. So it is a view, and
who shows it asks the thread.
"""

from __future__ import annotations

import attrs

from dafx_actors._json.asks import Asks
from dafx_actors._rules.state import ThreadState
from dafx_actors.ids import AgentThread
from dafx_actors.transcript import Json


def told(before: ThreadState, after: ThreadState, thread: AgentThread) -> tuple[Asks, ...]:
    """What the inbox is to hear of a change of a thread: of each turn all that it asks, or that it asks no more."""
    was, now = asked_by(before, thread), asked_by(after, thread)
    changes: list[Asks] = []
    if was is not None and was.questions and (now is None or now.turn != was.turn):
        changes.append(attrs.evolve(was, number=was.number + 1, questions=()))
    asked_before = was.questions if was is not None and now is not None and was.turn == now.turn else ()
    if now is not None and now.questions != asked_before:
        changes.append(now)
    return tuple(changes)


def asked_by(state: ThreadState, thread: AgentThread) -> Asks | None:
    """What the active turn asks; None where it has asked nothing so far. A turn that was cancelled asks no more."""
    turn, asks = state.active, tuple(state.books.asks.values())
    if turn is None or not asks:
        return None
    cancelled = turn in state.cancelled
    decided = sum(question.decision is not None for question in asks)
    return Asks.of(
        thread,
        turn,
        asked_at=max(question.asked_at for question in asks),
        number=len(asks) + decided + cancelled,
        questions=[] if cancelled else [question for question in asks if question.decision is None],
    )


def kept(stored: Json, heard: Asks) -> Json:
    """What the entity of a turn keeps when it hears of it: the later of both; nothing, where nothing waits any more."""
    known = Asks.read(stored)
    later = heard if known is None or heard.rank >= known.rank else known
    return later.dump() if later.questions else None
