"""A thread is emptied, in steps that may each come twice; or takes over a transcript from elsewhere. Pure.

Whoever empties it (a client) may die between two steps, and another one goes on. So the thread itself keeps what is to
be done still, in `Remains`::

    clear    turns run, or wait: they are cancelled, those in line end at once     -> Clearing: wait for these to end
    clear    all of them have ended: the transcript goes, the ids in it are kept   -> Cleared: delete all of these
    sweep    they are deleted: their ids go; with the last of them the thread      -> Noted

A request that comes before the second `clear` is cancelled by it. One that comes after it finds an empty thread, and
begins anew; its turn is not touched.
"""

from __future__ import annotations

from datetime import datetime

import attrs

from dafx_actors._json.books import Remains
from dafx_actors._json.document import check_document
from dafx_actors._json.operations import ANY_TIME, Clear, Cleared, Clearing, Import, Noted, Outcome, Refused, Sweep
from dafx_actors._rules import thread as _thread
from dafx_actors._rules.beside import kept, seen_by
from dafx_actors._rules.state import ThreadState, children_in, turns_in, working_on
from dafx_actors.errors import InvalidThreadId, ThreadNotEmpty
from dafx_actors.ids import AgentThread, new_id_mistake


def clear(state: ThreadState, thread: AgentThread, message: Clear, now: datetime) -> tuple[ThreadState, Outcome]:
    """Cancel the turns of a thread; where none is left, forget what was said, and tell what is to go with it."""
    ended, running = set(message.ended), _running(state)
    active = working_on(state)
    for turn in (*(each for each in running if each not in active), *active):
        state, _ = _thread.cancel(state, thread, turn, message.mark, now)
    for turn in active:
        if turn in ended:  # it was terminated, and cannot end itself any more
            seen, error = seen_by(state, turn), message.mark.error(thread.agent, turn)
            after, outcome = _thread.abort(seen, thread, turn, error, now, retry=ANY_TIME)
            state, _ = kept(state, turn, after, outcome)
    ending = tuple(dict.fromkeys(turn for turn in (*state.remains.ending, *running) if turn not in ended))
    if ending or state.active is not None:
        return attrs.evolve(state, remains=attrs.evolve(state.remains, ending=ending)), Clearing(ending)
    remains = _remains(state, thread)
    if message.deletes and remains == Remains():
        return ThreadState(), Cleared(remains)
    if not state.history and remains == state.remains:
        return state, Cleared(remains)
    emptied = ThreadState(cancelled=state.cancelled, remains=remains)
    return emptied if message.deletes else attrs.evolve(emptied, document=state.document), Cleared(remains)


def sweep(state: ThreadState, message: Sweep) -> tuple[ThreadState, Outcome]:
    """What remained of the conversation is deleted. A thread that was deleted is gone, unless it is in use again."""
    gone, keys = set(message.remains.turns), {child.key for child in message.remains.children}
    remains = attrs.evolve(
        state.remains,
        turns=tuple(turn for turn in state.remains.turns if turn not in gone),
        children=tuple(child for child in state.remains.children if child.key not in keys),
    )
    swept = state if remains == state.remains else attrs.evolve(state, remains=remains)
    if message.deletes and remains == Remains() and not swept.history and not _running(swept):
        return ThreadState(), Noted()
    return swept, Noted()


def take_over(state: ThreadState, thread: AgentThread, message: Import) -> tuple[ThreadState, Outcome]:
    """Take over a transcript, all of it, where nothing was said before; the same one again changes nothing."""
    check_document(message.document or None)
    if state == ThreadState() and (mistake := new_id_mistake(thread.thread_id)) is not None:
        return state, Refused(InvalidThreadId(thread.thread_id, mistake))
    is_idle = not _running(state)
    if is_idle and message.entries and state.history == message.entries:
        return state, Noted()
    if state.history or not is_idle:
        return state, Refused(ThreadNotEmpty(thread.agent, thread.thread_id, len(state.history)))
    return attrs.evolve(state, history=message.entries, document=message.document), Noted()


def _running(state: ThreadState) -> tuple[str, ...]:
    """The turns that have not ended, those in line and those that have joined another one included."""
    steered = (request.correlation_id for request in state.steered)
    waiting = (place.correlation_id for place in state.waiting)
    return (*working_on(state), *state.books.joined, *steered, *waiting)


def _remains(state: ThreadState, thread: AgentThread) -> Remains:
    turns = dict.fromkeys((*state.remains.turns, *turns_in(state)))
    children = {child.key: child for child in (*state.remains.children, *children_in(state, thread))}
    return Remains(turns=tuple(turns), children=tuple(children.values()))
