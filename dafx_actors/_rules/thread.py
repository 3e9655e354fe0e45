r"""What a thread does with a message. Pure: no clock, no network, no `await`.

A thread works on one turn at a time, in the order in which their `begin` arrived (beside one that waits for a person it
may work on another; see `beside.py`). Every change names its turn, and
is refused unless that turn is the active one, so that a turn which was taken for dead can do no harm if it
lives. Every operation may arrive twice and then changes nothing the second time.

::

              begin                record*, decide*, attempt*      commit / abort
    (none) ---------->  active  ------------------------------->  ended: its Response is in the history
       \                 ^   ^                                         |
        \ begin           \   `--- commit, when others have joined     | begin
         `----> waiting ---'                                           `----> answered, again and again
                   begin, when it is the first in line and no turn is active

Of a request that waits the thread keeps the id and a digest. The text stays with its turn, which is woken when it is
the first in line, and begins again, with all of it.

A cancelled turn keeps its place until it ends by itself; the mark is what its tools look for before they act, and it
makes an end of every `commit`. Where requests that overlap are *steered*, a later one waits for the place where it
fits, between the results of the tools and the next model call, and becomes part of the active turn.

The draft stays a valid transcript: each tool call is followed by its results, and by nothing else before them. What is
recorded behind an open call, or ends its turn, closes it first.

The history is kept as the JSON that is stored and hardly looked into beyond `$type`, the id and `dafx`: what an
operation costs does not grow with what the messages hold, and what others wrote stays as it was.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import cast

import attrs

from dafx_actors._json.books import CancelMark, ChildRecord, Place, QuestionRecord
from dafx_actors._json.crossing import error_content
from dafx_actors._json.messages import dump_entry, load_entry
from dafx_actors._json.operations import (
    ANY_TIME,
    Cancelled,
    Ended,
    Granted,
    Noted,
    Outcome,
    Queued,
    Refused,
    Wanted,
    place_of,
)
from dafx_actors._json.requests import load_response, request_digest
from dafx_actors._rules.beside import has_room, next_beside, seen_by, waits_for_person
from dafx_actors._rules.beside import new as new_beside
from dafx_actors._rules.calls import is_asked
from dafx_actors._rules.joining import about_itself, join, joined_request, may_join, unlabelled, without_joined
from dafx_actors._rules.open_calls import closed, results_in
from dafx_actors._rules.resuming import failed_again, over, resumed
from dafx_actors._rules.state import (
    JOINED,
    Books,
    ThreadState,
    Waits,
    among,
    below,
    ended_in,
    find_entry,
    first_in,
    working_on,
)
from dafx_actors.errors import (
    CorrelationConflict,
    DafxError,
    InvalidThreadId,
    ThreadBusy,
    TurnCancelled,
    TurnSuperseded,
)
from dafx_actors.exchange import Overlap, RunRequest
from dafx_actors.ids import AgentThread, new_id_mistake
from dafx_actors.transcript import ChatMessage, Json, Request, Response, UsageStats

MOST_WAITING = 500
"""Requests that wait in one thread at most. Each takes some hundred bytes of what every operation stores."""
_LATEST = 30
"""Entries of a thread that are looked through for turns that were cancelled in line."""
_MOST_EARLY_MARKS = 100
"""Cancellations kept for turns that have not begun. They nearly always begin in a moment; some never do."""


# --- What turns do ------------------------------------------------------------------------------------------------


def begin(
    state: ThreadState,
    thread: AgentThread,
    request: RunRequest,
    now: datetime,
    overlap: Overlap = "queue",
    retry: int = 0,
) -> tuple[ThreadState, Outcome]:
    """A turn asks for its thread: granted, queued, refused, or answered where it has ended already.

    `retry` is how often the turn was taken up again after it had failed. It takes nobody's place then: it waits in
    line, unless its agent refuses requests that overlap.
    """
    overlap = overlap if not retry or overlap == "reject" else "queue"
    if state == ThreadState() and (mistake := new_id_mistake(thread.thread_id)) is not None:
        return state, Refused(InvalidThreadId(thread.thread_id, mistake))
    turn = request.correlation_id
    if (refused := _conflict(state, place_of(request))) is not None:
        return state, refused
    if (ended := over(state, turn, retry)) is not None:
        return _filled(state, request), Ended(ended)
    if turn in state.cancelled and state.active != turn:
        return _end_unbegun(_without_mark(state, turn), thread, request, state.cancelled[turn], now, retry)
    before, state = state, _without_ended(state)
    if first_in(state) in (None, turn):
        if state.active is None:
            state = _activate(state, request, now)
        elif has_room(state, overlap) and not _joins(state, turn):
            state = attrs.evolve(_with_request(state, request, now), beside=new_beside(turn))
            return state, Granted(seen_by(state, turn).length, beside=state.active)
    cancelled = _cancelled_by(state, thread, turn) if overlap == "cancel_previous" else ()
    if state.active == turn:
        if retry > state.books.retry:
            state = resumed(state, thread, turn, retry)
        return state, Granted(state.length, cancelled, state.books.resumed)
    if _is_known(state, turn):
        return state, _queued(state, cancelled)
    if overlap == "reject":
        return before, Refused(ThreadBusy(thread.agent, thread.thread_id, _ahead(state)))
    if overlap != "cancel_previous" and len(state.waiting) + len(state.steered) >= MOST_WAITING:
        return before, Refused(ThreadBusy(thread.agent, thread.thread_id, _ahead(state), len(state.waiting)))
    return _overlap(state, thread, request, overlap, now, retry)


def ask(
    state: ThreadState, thread: AgentThread, place: Place, overlap: Overlap = "queue"
) -> tuple[ThreadState, Outcome]:
    """A turn that waits asks how it stands, without its request: as `begin`, or that it is to bring all of it."""
    turn = place.correlation_id
    if (refused := _conflict(state, place)) is not None:
        return state, refused
    if (ended := over(state, turn, place.retry)) is not None:
        return state, Ended(ended) if _withdrawn(state, turn) is None else Wanted()
    cancelled = _cancelled_by(state, thread, turn) if overlap == "cancel_previous" else ()
    if state.active == turn and place.retry <= state.books.retry:
        return state, Granted(state.length, cancelled, state.books.resumed)
    now = _without_ended(state)
    may_begin = now.active is None or has_room(now, overlap)
    if turn in state.cancelled or not _is_known(now, turn) or (may_begin and first_in(now) == turn):
        return state, Wanted()
    return state, _queued(now, cancelled)


def record(
    state: ThreadState,
    thread: AgentThread,
    turn: str,
    messages: tuple[ChatMessage, ...],
    at: int,
    *,
    questions: Iterable[QuestionRecord] = (),
    children: Iterable[ChildRecord] = (),
    overlap: Overlap = "queue",
    retry: int = 0,
) -> tuple[ThreadState, Outcome]:
    """The active turn adds to its draft, and to what a person is to decide; with them what was steered joins.

    `at` is the length that the turn knows, so that a repeat adds nothing. A turn that knows more than there is belongs
    to a thread that was reset; and one that was taken up again since (`retry`) has left this message behind.
    """
    if state.active != turn or at > state.length or not _is_of_this_time(state, retry):
        return state, Refused(TurnSuperseded(thread.thread_id, turn))
    if state.length == at:
        books = attrs.evolve(
            state.books,
            asks={**state.books.asks, **{each.key: each for each in questions if not is_asked(state, each)}},
            children={**state.books.children, **{child.key: child for child in children}},
        )
        state = join(attrs.evolve(state, draft=_with(state.draft, messages), books=books))
    return state, Granted(state.length, next_id=next_beside(state, overlap))


def commit(
    state: ThreadState,
    thread: AgentThread,
    turn: str,
    messages: tuple[ChatMessage, ...],
    usage: UsageStats | None,
    now: datetime,
    *,
    at: int | None = None,
    last: bool = False,
    whole: bool = False,
    about: Mapping[str, Json] | None = None,
    retry: int = 0,
) -> tuple[ThreadState, Outcome]:
    """The active turn ends with an answer: its draft and `messages`, or `messages` alone where they are the whole.

    It is the next one's turn then. A turn that others join with this goes on instead, since they have no answer yet.
    One that was cancelled ends as that.

    Args:
        state: Of the thread.
        thread: Its name.
        turn: The correlation id.
        messages: Of the answer.
        usage: The tokens of all model calls.
        now: When it ends.
        at: The length that the turn knows, so that a repeat does not end a turn that others have joined.
        last: Whether the turn may not go on: it is at its limit.
        whole: Whether `messages` are all that the turn gave, as somebody else knows who found it completed.
        about: What the response says of how it came about, under `dafx`.
        retry: How often the turn was taken up again, or `ANY_TIME`: what was left over from before ends nothing.
    """
    if whole and state.active is None and (place := among(state.waiting, turn)) is not None:
        history = (*state.history, dump_entry(_kept_for(place, now)))
        state = attrs.evolve(state, active=turn, history=history, waiting=_without(state.waiting, turn))
    if state.active == turn and not whole and at is not None and at != state.length:
        return state, Granted(state.length) if at < state.length else Refused(TurnSuperseded(thread.thread_id, turn))
    if state.active == turn and whole:
        state, messages, about = without_joined(state), unlabelled(messages), about_itself(about)
    if state.active == turn and turn in state.cancelled:
        return _end(state, thread, turn, (*messages, _cancelled_message(thread, state, turn)), usage, now, about, retry)
    if state.active == turn and state.steered and not (last or whole):
        joined = join(attrs.evolve(state, draft=_with(state.draft, messages)))
        return joined, Granted(joined.length)
    return _end(state, thread, turn, messages, usage, now, about, retry)


def abort(
    state: ThreadState,
    thread: AgentThread,
    turn: str,
    error: DafxError,
    now: datetime,
    *,
    messages: tuple[ChatMessage, ...] = (),
    usage: UsageStats | None = None,
    about: Mapping[str, Json] | None = None,
    request: RunRequest | None = None,
    retry: int = 0,
) -> tuple[ThreadState, Outcome]:
    """A turn ends without an answer. The error stands in its place, and it is the next one's turn.

    `messages` are what it had not recorded yet. A turn that still waits leaves the queue, and the transcript shows its
    `request`, if it brings that, with the error; also where it had to leave before it could. A turn that was cancelled
    ends as that, as whoever cancelled it said. `retry` is as of `commit`.
    """
    if request is not None and (ended := over(state, turn, _retry_in_line(state, turn))) is not None:
        return _filled(state, request), Ended(ended)
    if state.active != turn and (waits := _waiting_in(state, turn)) is not None:
        is_its_own = request is not None and isinstance(waits, Place) and place_of(request).digest == waits.digest
        who = request if request and is_its_own else waits
        return _leave_unbegun(state, who, error, now, _retry_in_line(state, turn))
    if state.active == turn and turn in state.cancelled:
        return _end(state, thread, turn, (*messages, _cancelled_message(thread, state, turn)), usage, now, about, retry)
    return _end(state, thread, turn, (*messages, _error_message(error)), usage, now, about, retry)


# --- What others do to them ---------------------------------------------------------------------------------------


def cancel(
    state: ThreadState, thread: AgentThread, turn: str, mark: CancelMark, now: datetime, retry: int = 0
) -> tuple[ThreadState, Outcome]:
    """Somebody cancels a turn.

    The active turn is marked, and ends itself when it hears of it. One that waits ends here. One that the thread does
    not know is marked too: its `begin` is on the way. A request that became part of another turn cannot be told
    from it any more: that turn is cancelled. `retry` is how often the turn was taken up again, which the thread need
    not know yet.
    """
    if (ended := over(state, turn, max(retry, _retry_in_line(state, turn)))) is not None:
        return state, Ended(ended)
    if turn in state.books.joined and state.active is not None:
        turn = state.active
    if (waits := _waiting_in(state, turn)) is not None:
        error = mark.error(thread.agent, turn)
        return _leave_unbegun(state, waits, error, now, _retry_in_line(state, turn))
    if turn not in state.cancelled:
        state = _marked(state, turn, mark)
    return state, Cancelled(turn, state.cancelled[turn])


def reset(state: ThreadState) -> tuple[ThreadState, Outcome]:
    """Forget the conversation. The active turn loses its thread, and is to hear of it; those that wait stay in line."""
    waiting = (*map(place_of, state.steered), *state.waiting)
    empty = attrs.evolve(
        state, history=(), active=None, draft=(), books=Books(), beside=None, steered=(), waiting=waiting
    )
    lost = lost_by(state, "the thread was reset")
    return empty, lost[0] if lost else Noted()


def lost_by(state: ThreadState, reason: str) -> tuple[Cancelled, ...]:
    """Say what the turns that the thread works on are to hear, when it forgets them; the active one's first."""
    turns = [state.active, state.beside.turn if state.beside else None]
    return tuple(Cancelled(turn, CancelMark.of(by="", reason=reason)) for turn in turns if turn is not None)


def is_granted(state: ThreadState, turn: str) -> bool | None:
    """Say whether a turn is active.

    False if its `begin` was refused, queued or answered; None while `begin` may be on its way.
    """
    if turn in working_on(state):
        return True
    if state.active is not None:
        return False
    if among(state.waiting, turn) is not None:
        return False
    return None if ended_in(state, turn) is None else False


# --- Inside -------------------------------------------------------------------------------------------------------


def _conflict(state: ThreadState, asked: Place) -> Refused | None:
    """A correlation id names one request, for ever."""
    digest = _digest_of(state, asked.correlation_id)
    return None if digest in (None, asked.digest) else Refused(CorrelationConflict(asked.correlation_id, "request"))


def _digest_of(state: ThreadState, turn: str) -> str | None:
    """The digest of the request of a turn that the thread knows."""
    if (kept := _withdrawn(state, turn)) is not None:
        return kept
    stored = find_entry(state, "request", turn)
    entry = None if stored is None else load_entry(stored)
    if isinstance(entry, Request):
        return request_digest(entry.messages, entry.response_schema)
    if (place := among(state.waiting, turn)) is not None:
        return place.digest
    request = among(state.steered, turn) or joined_request(state, turn)
    return None if request is None else place_of(request).digest


def _is_known(state: ThreadState, turn: str) -> bool:
    """Say whether a request waits, or has joined the active turn."""
    return turn in state.books.joined or _waiting_in(state, turn) is not None


def _joins(state: ThreadState, turn: str) -> bool:
    """Say whether a request has become part of the active turn, or will."""
    return turn in state.books.joined or among(state.steered, turn) is not None


def _ahead(state: ThreadState) -> str:
    """The turn that a request waits for: the active one, or the one beside it while a person is waited for."""
    beside = state.beside.turn if state.beside and waits_for_person(state) else None
    ahead = beside or state.active or first_in(state)
    assert ahead is not None  # else the request would have been granted the thread
    return ahead


def _queued(state: ThreadState, cancelled: tuple[str, ...] = ()) -> Queued:
    ahead = _ahead(state)
    return Queued(ahead, (ahead, *cancelled) if ahead in state.cancelled else cancelled)


def _cancelled_by(state: ThreadState, thread: AgentThread, turn: str) -> tuple[str, ...]:
    """Turns that waited in line and were cancelled by this one, among the latest."""
    turns: list[str] = []
    for raw in list(state.history)[-_LATEST:]:
        if raw.get("$type") == "response":
            try:
                load_response(raw, thread)
            except TurnCancelled as error:
                if error.by == turn:
                    turns.append(raw["correlationId"])
            except (DafxError, ValueError):
                pass  # it ended otherwise
    return tuple(turns)


def _overlap(
    state: ThreadState, thread: AgentThread, request: RunRequest, overlap: Overlap, now: datetime, retry: int
) -> tuple[ThreadState, Outcome]:
    """A new request finds the thread at work.

    One that wants its answer in another form than the active turn gives it cannot become part of that, and queues.
    """
    active = state.active
    if overlap == "steer" and active is not None and may_join(state, active, request):
        return attrs.evolve(state, steered=(*state.steered, request)), _queued(state)
    cancelled: tuple[str, ...] = ()
    if overlap == "cancel_previous":
        mark = CancelMark.of(by=request.correlation_id, reason="a newer request took its place")
        cancelled = (*(each.correlation_id for each in state.steered), *(each.correlation_id for each in state.waiting))
        for each in (*([active] if active else []), *cancelled):
            state, _ = cancel(state, thread, each, mark, now)
        if active is None:
            state = _activate(state, request, now)
            return state, Granted(state.length, cancelled)
    return attrs.evolve(state, waiting=(*state.waiting, place_of(request, retry))), _queued(state, cancelled)


def _with(draft: tuple[ChatMessage, ...], messages: tuple[ChatMessage, ...]) -> tuple[ChatMessage, ...]:
    """The draft and what follows it. A turn that was begun anew does not know which calls it had left open."""
    if not messages or results_in(messages[0]):
        return draft + messages
    return closed(draft) + messages


def _end(
    state: ThreadState,
    thread: AgentThread,
    turn: str,
    messages: tuple[ChatMessage, ...],
    usage: UsageStats | None,
    now: datetime,
    about: Mapping[str, Json] | None,
    retry: int,
) -> tuple[ThreadState, Outcome]:
    if (ended := ended_in(state, turn)) is not None:
        return state, Ended(ended)
    if state.active != turn or not _is_of_this_time(state, retry):
        return state, Refused(TurnSuperseded(thread.thread_id, turn))
    joined = state.books.joined
    before = state.books.resumed
    with_it = {JOINED: list(joined)} if joined else {}
    children = {**{child.key: child for child in (before.children if before else ())}, **state.books.children}
    ours = {**(about or {}), **with_it, **below(children, thread), **(before.about if before else {})}
    response = _response(turn, closed(state.draft + messages), usage, now, ours)
    # What was to join and did not is next: it came before all that waits.
    waiting = (*map(place_of, state.steered), *state.waiting)
    state = attrs.evolve(
        _without_mark(state, turn),
        history=(*state.history, response),
        active=None,
        draft=(),
        books=Books(),
        steered=(),
        waiting=waiting,
    )
    state = _without_ended(state)
    return state, Ended(response, first_in(state), joined)


def _end_unbegun(
    state: ThreadState, thread: AgentThread, request: RunRequest, mark: CancelMark, now: datetime, retry: int
) -> tuple[ThreadState, Outcome]:
    return _leave_unbegun(state, request, mark.error(thread.agent, request.correlation_id), now, retry)


def _leave_unbegun(
    state: ThreadState, who: RunRequest | Place, error: DafxError, now: datetime, retry: int
) -> tuple[ThreadState, Outcome]:
    """A turn that never was active ends: the transcript shows its request with the error.

    Where the request is with its turn, its place in the transcript is kept for it, see `_filled`. A turn that was to be
    taken up again stays where it stood, with the error.
    """
    turn = who.correlation_id
    before = first_in(state)
    state = attrs.evolve(state, waiting=_without(state.waiting, turn), steered=_without(state.steered, turn))
    if (failed := find_entry(state, "response", turn)) is not None:
        state = failed_again(state, failed, retry, error, now)
        response: Json = find_entry(state, "response", turn)
    else:
        asked = _entry(who, now) if isinstance(who, RunRequest) else _kept_for(who, now)
        response = _response(turn, (_error_message(error),), None, now)
        state = attrs.evolve(state, history=(*state.history, dump_entry(asked), response))
    is_next = state.active is None and first_in(state) != before
    return state, Ended(response, first_in(state) if is_next else None)


def _kept_for(place: Place, now: datetime) -> Request:
    """Stands for the request of a turn that had to leave the line before it could bring it."""
    extra = {"dafx": {"digest": place.digest}}
    return Request(correlation_id=place.correlation_id, messages=(), created_at=now, extra=extra)


def _withdrawn(state: ThreadState, turn: str) -> str | None:
    """The digest of a request that the transcript has a place for, and that has not been brought."""
    stored = find_entry(state, "request", turn)
    ours: Json = None if stored is None or stored.get("messages") else stored.get("dafx")
    kept: Json = cast("Json", ours).get("digest") if isinstance(ours, Mapping) else None
    return kept if isinstance(kept, str) else None


def _filled(state: ThreadState, request: RunRequest) -> ThreadState:
    """The thread with the request of a turn that had left the line, in the place that was kept for it.

    In its place, and not before its response: the entries before the active turn's request stay as many as they were.
    """
    turn = request.correlation_id
    if _withdrawn(state, turn) != place_of(request).digest:
        return state
    stored = find_entry(state, "request", turn)
    history = tuple(
        {**dump_entry(_entry(request, request.created_at)), **_created(raw)} if raw is stored else raw
        for raw in state.history
    )
    return attrs.evolve(state, history=history)


def _created(raw: Json) -> dict[str, Json]:
    return {"createdAt": raw["createdAt"]} if raw.get("createdAt") else {}


def _without(waiting: tuple[Waits, ...], turn: str) -> tuple[Waits, ...]:
    return tuple(each for each in waiting if each.correlation_id != turn)


def _without_ended(state: ThreadState) -> ThreadState:
    """The thread, where whoever is first in line has not ended: a worker that does not see the line may have let it."""
    while state.waiting and (state.active is None or waits_for_person(state)):
        first = state.waiting[0]
        if over(state, first.correlation_id, first.retry) is None:
            break
        state = attrs.evolve(state, waiting=state.waiting[1:])
    return state


def _activate(state: ThreadState, request: RunRequest, now: datetime) -> ThreadState:
    state = _with_request(state, request, now)
    return attrs.evolve(state, active=request.correlation_id, draft=(), books=Books())


def _with_request(state: ThreadState, request: RunRequest, now: datetime) -> ThreadState:
    """The thread with the request of a turn that begins, and waits no more."""
    history, turn = state.history, request.correlation_id
    if find_entry(state, "request", turn) is None:
        history = (*history, dump_entry(_entry(request, now)))
    return attrs.evolve(state, history=history, waiting=_without(state.waiting, turn))


def _marked(state: ThreadState, turn: str, mark: CancelMark) -> ThreadState:
    active = working_on(state)
    early = [] if turn in active else [other for other in state.cancelled if other not in active]
    forgotten = early[: max(0, len(early) - _MOST_EARLY_MARKS + 1)]
    kept = {other: value for other, value in state.cancelled.items() if other not in forgotten}
    return attrs.evolve(state, cancelled={**kept, turn: mark})


def _without_mark(state: ThreadState, turn: str) -> ThreadState:
    return attrs.evolve(state, cancelled={other: mark for other, mark in state.cancelled.items() if other != turn})


def _cancelled_message(thread: AgentThread, state: ThreadState, turn: str) -> ChatMessage:
    return _error_message(state.cancelled[turn].error(thread.agent, turn))


def _waiting_in(state: ThreadState, turn: str) -> RunRequest | Place | None:
    """Find what the thread keeps of a turn that waits."""
    return among(state.waiting, turn) or among(state.steered, turn)


def _is_of_this_time(state: ThreadState, retry: int) -> bool:
    """Say whether a message of the active turn was sent since it was taken up again for the last time."""
    return retry in (ANY_TIME, state.books.retry)


def _retry_in_line(state: ThreadState, turn: str) -> int:
    """How often a turn was taken up again that waits in line."""
    place = among(state.waiting, turn)
    return 0 if place is None else place.retry


def _entry(request: RunRequest, now: datetime | None) -> Request:
    return Request(
        correlation_id=request.correlation_id,
        messages=request.messages,
        created_at=request.created_at or now,
        orchestration_id=request.orchestration_id,
        response_type="text" if request.response_schema is None else "json",
        response_schema=request.response_schema,
    )


def _response(
    turn: str,
    messages: tuple[ChatMessage, ...],
    usage: UsageStats | None,
    now: datetime,
    about: Mapping[str, Json] | None = None,
) -> Json:
    extra = {"dafx": dict(about)} if about else {}
    return dump_entry(Response(correlation_id=turn, messages=messages, created_at=now, usage=usage, extra=extra))


def _error_message(error: DafxError) -> ChatMessage:
    return ChatMessage("assistant", (error_content(error),))
