r"""What a thread does with a message. Pure: no clock, no network, no `await`.

A thread works on one turn at a time, in the order in which their `begin` arrived. Every change names its turn, and
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

import json
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import TypeVar, cast

import attrs

from dafx_actors._json import messages as _codec
from dafx_actors._json.shapes import dump_time
from dafx_actors._rules.given_up import is_given_up
from dafx_actors._rules.open_calls import closed, open_calls, results_in
from dafx_actors._rules.state import (
    Attempted,
    Books,
    Cancelled,
    Decided,
    Ended,
    Granted,
    Noted,
    Outcome,
    Place,
    Queued,
    Refused,
    ThreadState,
    Wanted,
    dump,
    is_entry,
    load,
    place_of,
)
from dafx_actors.decisions import ACTIONS, DecisionKind, call_digest
from dafx_actors.errors import (
    CorrelationConflict,
    DafxError,
    DecisionRefused,
    InvalidThreadId,
    ThreadBusy,
    TurnCancelled,
    TurnSuperseded,
)
from dafx_actors.exchange import Overlap, RunRequest
from dafx_actors.ids import AgentThread, new_id_mistake
from dafx_actors.transcript import (
    ChatMessage,
    Json,
    Request,
    Response,
    UsageStats,
)

__all__ = [
    "JOINED",
    "Attempted",
    "Books",
    "Cancelled",
    "Decided",
    "Ended",
    "Granted",
    "Noted",
    "Outcome",
    "Place",
    "Queued",
    "Refused",
    "ThreadState",
    "Wanted",
    "abort",
    "ask",
    "attempt",
    "begin",
    "cancel",
    "commit",
    "decide",
    "dump",
    "is_approved",
    "is_granted",
    "load",
    "may_act",
    "note",
    "record",
    "reset",
]

Waits = TypeVar("Waits", bound=RunRequest | Place)

MOST_WAITING = 500
"""Requests that wait in one thread at most. Each takes some hundred bytes of what every operation stores."""
MOST_STEERED = 128 * 1024
"""Bytes of requests that are to become part of one turn, or have; one that does not fit waits for a turn of its own."""
JOINED = "joined"
"""In `dafx` of a stored response: the requests that became part of its turn."""
_OF_TURN = "correlationId"
"""In a stored message: the request that it came with, where that became part of another turn."""
_LATEST = 30
"""Entries of a thread that are looked through for turns that were cancelled in line."""
_MOST_EARLY_MARKS = 100
"""Cancellations kept for turns that have not begun. They nearly always begin in a moment; some never do."""


# --- What turns do ------------------------------------------------------------------------------------------------


def begin(
    state: ThreadState, thread: AgentThread, request: RunRequest, now: datetime, overlap: Overlap = "queue"
) -> tuple[ThreadState, Outcome]:
    """A turn asks for its thread: granted, queued, refused, or answered where it has ended already."""
    if state == ThreadState() and (mistake := new_id_mistake(thread.thread_id)) is not None:
        return state, Refused(InvalidThreadId(thread.thread_id, mistake))
    turn = request.correlation_id
    if (refused := _conflict(state, place_of(request))) is not None:
        return state, refused
    if (ended := _ended(state, turn)) is not None:
        return _filled(state, request), Ended(ended)
    if turn in state.cancelled and state.active != turn:
        return _end_unbegun(_without_mark(state, turn), thread, request, state.cancelled[turn], now)
    before, state = state, _without_ended(state)
    if state.active is None and first_in(state) in (None, turn):
        state = _activate(state, request, now)
    told = _cancelled_by(state, thread, turn) if overlap == "cancel_previous" else ()
    if state.active == turn:
        return state, Granted(state.length, told)
    if _is_known(state, turn):
        return state, _queued(state, told)
    if overlap == "reject":
        return before, Refused(ThreadBusy(thread.agent, thread.thread_id, _ahead(state)))
    if overlap != "cancel_previous" and len(state.waiting) + len(state.steered) >= MOST_WAITING:
        return before, Refused(ThreadBusy(thread.agent, thread.thread_id, _ahead(state), len(state.waiting)))
    return _overlap(state, thread, request, overlap, now)


def ask(
    state: ThreadState, thread: AgentThread, place: Place, overlap: Overlap = "queue"
) -> tuple[ThreadState, Outcome]:
    """A turn that waits asks how it stands, without its request: as `begin`, or that it is to bring all of it."""
    turn = place.correlation_id
    if (refused := _conflict(state, place)) is not None:
        return state, refused
    if (ended := _ended(state, turn)) is not None:
        return state, Ended(ended) if _withdrawn(state, turn) is None else Wanted()
    told = _cancelled_by(state, thread, turn) if overlap == "cancel_previous" else ()
    if state.active == turn:
        return state, Granted(state.length, told)
    now = _without_ended(state)
    if turn in state.cancelled or not _is_known(now, turn) or (now.active is None and first_in(now) == turn):
        return state, Wanted()
    return state, _queued(now, told)


def record(
    state: ThreadState,
    thread: AgentThread,
    turn: str,
    messages: tuple[ChatMessage, ...],
    at: int,
    *,
    asks: Iterable[Json] = (),
    children: Iterable[Json] = (),
) -> tuple[ThreadState, Outcome]:
    """The active turn adds to its draft, and to what a person is to decide; with them what was steered joins.

    `at` is the length that the turn knows, so that a repeat adds nothing. A turn that knows more than there is belongs
    to a thread that was reset.
    """
    if state.active != turn or at > state.length:
        return state, Refused(TurnSuperseded(thread.thread_id, turn))
    if state.length == at:
        books = attrs.evolve(
            state.books,
            asks={**state.books.asks, **{ask["key"]: ask for ask in asks if not _is_asked(state, ask)}},
            children={**state.books.children, **{child["key"]: child for child in children}},
        )
        state = _join(attrs.evolve(state, draft=_with(state.draft, messages), books=books))
    return state, Granted(state.length)


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
    """
    if whole and state.active is None and (place := _among(state.waiting, turn)) is not None:
        history = (*state.history, _codec.dump_entry(_kept_for(place, now)))
        state = attrs.evolve(state, active=turn, history=history, waiting=_without(state.waiting, turn))
    if state.active == turn and not whole and at is not None and at != state.length:
        return state, Granted(state.length) if at < state.length else Refused(TurnSuperseded(thread.thread_id, turn))
    if state.active == turn and whole:
        state, messages, about = _without_joined(state), _unlabelled(messages), _of_itself(about)
    if state.active == turn and turn in state.cancelled:
        return _end(state, thread, turn, (*messages, _cancelled_message(thread, state, turn)), usage, now, about)
    if state.active == turn and state.steered and not (last or whole):
        joined = _join(attrs.evolve(state, draft=_with(state.draft, messages)))
        return joined, Granted(joined.length)
    return _end(state, thread, turn, messages, usage, now, about)


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
) -> tuple[ThreadState, Outcome]:
    """A turn ends without an answer. The error stands in its place, and it is the next one's turn.

    `messages` are what it had not recorded yet. A turn that still waits leaves the queue, and the transcript shows its
    `request`, if it brings that, with the error; also where it had to leave before it could. A turn that was cancelled
    ends as that, as whoever cancelled it said.
    """
    if request is not None and (ended := _ended(state, turn)) is not None:
        return _filled(state, request), Ended(ended)
    if state.active != turn and (waits := _waiting_in(state, turn)) is not None:
        is_its_own = request is not None and isinstance(waits, Place) and place_of(request) == waits
        return _leave_unbegun(state, request if request and is_its_own else waits, _error_message(error), now)
    if state.active == turn and turn in state.cancelled:
        return _end(state, thread, turn, (*messages, _cancelled_message(thread, state, turn)), usage, now, about)
    return _end(state, thread, turn, (*messages, _error_message(error)), usage, now, about)


# --- What others do to them ---------------------------------------------------------------------------------------


def cancel(
    state: ThreadState, thread: AgentThread, turn: str, mark: Mapping[str, Json], now: datetime
) -> tuple[ThreadState, Outcome]:
    """Somebody cancels a turn; `mark` holds `by` and `reason`.

    The active turn is marked, and ends itself when it hears of it. One that waits ends here. One that the thread does
    not know is marked too: its `begin` is on the way. A request that became part of another turn cannot be told
    from it any more: that turn is cancelled.
    """
    if (ended := _ended(state, turn)) is not None:
        return state, Ended(ended)
    if turn in state.books.joined and state.active is not None:
        turn = state.active
    if (waits := _waiting_in(state, turn)) is not None:
        return _leave_unbegun(state, waits, _error_message(_cancellation(thread, turn, mark)), now)
    if turn not in state.cancelled:
        state = _marked(state, turn, mark)
    return state, Cancelled(turn, state.cancelled[turn])


def decide(
    state: ThreadState, turn: str, key: str, digest: str, decision: Mapping[str, Json]
) -> tuple[ThreadState, Outcome]:
    """Somebody decides about a tool call of the active turn. The first decision counts; the same one again is fine.

    `expire` is the deadline's: it loses to every decision that was made before.
    """
    ask: Json = state.books.asks.get(key) if state.active == turn else None
    if ask is None or turn in state.cancelled:
        return state, Refused(DecisionRefused(key, "not_pending"))
    if ask["digest"] != digest:
        return state, Refused(DecisionRefused(key, "changed"))
    kind: DecisionKind = ask["kind"]
    if decision["action"] not in (*ACTIONS[kind], *(["expire"] if kind == "approval" else [])):
        return state, Refused(DecisionRefused(key, "unfit", f"{decision['action']!r} for {ask['kind']!r}"))
    if (made := ask.get("decision")) is not None:
        if _decides(made) == _decides(decision) or decision["action"] == "expire":
            return state, Decided(made)
        return state, Refused(DecisionRefused(key, "decided", f"{made['action']} by {made.get('by') or 'somebody'}"))
    edited = decision.get("arguments") if decision["action"] == "approve" else None
    kept = {**decision, "digest": digest if edited is None else call_digest(ask["tool"], edited)}
    asks = {**state.books.asks, key: {**ask, "decision": kept}}
    return attrs.evolve(state, books=attrs.evolve(state.books, asks=asks)), Decided(kept)


def decision(state: ThreadState, turn: str, key: str) -> tuple[ThreadState, Outcome]:
    """What is on record about a tool call of the active turn: nothing while it waits, or after a cancel."""
    ask: Json = state.books.asks.get(key) if may_act(state, turn) else None
    return state, Decided(ask["decision"]) if ask and "decision" in ask else Noted()


def attempt(
    state: ThreadState, turn: str, key: str, number: int, token: str, now: datetime
) -> tuple[ThreadState, Outcome]:
    """A step is about to make a call that may act only once: recorded before it acts, by `token`.

    The first to come with a number goes; a later number means that somebody has found out, or decided, that the
    attempts before it count as not made.
    """
    if state.active != turn or turn in state.cancelled or is_given_up(state, key, number):
        return state, Attempted("stop")
    made: Json = state.books.attempts.get(key)
    if made is not None and made["number"] >= number:
        same = (made["number"], made["token"]) == (number, token)
        return state, Attempted("go" if same else "unknown", made.get("at"))
    attempts = {**state.books.attempts, key: {"number": number, "token": token, "at": dump_time(now)}}
    return attrs.evolve(state, books=attrs.evolve(state.books, attempts=attempts)), Attempted("go")


def note(state: ThreadState, turn: str, key: str, progress: Json) -> tuple[ThreadState, Outcome]:
    """A tool reports how far it is; the latest report of each call is kept."""
    if state.active != turn:
        return state, Noted()
    known = {**state.books.progress, key: progress}
    return attrs.evolve(state, books=attrs.evolve(state.books, progress=known)), Noted()


def reset(state: ThreadState) -> tuple[ThreadState, Outcome]:
    """Forget the conversation. The active turn loses its thread, and is to hear of it; those that wait stay in line."""
    waiting = (*map(place_of, state.steered), *state.waiting)
    empty = attrs.evolve(state, history=(), active=None, draft=(), books=Books(), steered=(), waiting=waiting)
    lost = None if state.active is None else Cancelled(state.active, {"reason": "the thread was reset", "by": ""})
    return empty, lost or Noted()


def is_granted(state: ThreadState, turn: str) -> bool | None:
    """Whether a turn is active, or its `begin` was refused, queued, or answered; None while that may be on its way."""
    if state.active is not None:
        return state.active == turn
    if _among(state.waiting, turn) is not None:
        return False
    return None if _ended(state, turn) is None else False


def may_act(state: ThreadState, turn: str) -> bool:
    """Whether a tool of this turn may begin to act."""
    return state.active == turn and turn not in state.cancelled


def is_approved(state: ThreadState, key: str, digest: str) -> bool:
    """Whether a person approved this call, by its key and a hash of the arguments that it would be made with."""
    ask: Json = state.books.asks.get(key)
    made: Json = ask.get("decision") if ask else None
    return bool(made) and (made.get("action"), made.get("digest")) == ("approve", digest)


# --- Inside -------------------------------------------------------------------------------------------------------


def _conflict(state: ThreadState, asked: Place) -> Refused | None:
    """A correlation id names one request, for ever."""
    known = _digest_of(state, asked.correlation_id)
    return None if known in (None, asked.digest) else Refused(CorrelationConflict(asked.correlation_id, "request"))


def _digest_of(state: ThreadState, turn: str) -> str | None:
    """Of what a turn that the thread knows asks."""
    if (kept := _withdrawn(state, turn)) is not None:
        return kept
    stored = _find(state, "request", turn)
    entry = None if stored is None else _codec.load_entry(stored)
    if isinstance(entry, Request):
        return _codec.digest(entry.messages, entry.response_schema)
    if (place := _among(state.waiting, turn)) is not None:
        return place.digest
    request = _among(state.steered, turn) or _joined_request(state, turn)
    return None if request is None else place_of(request).digest


def _is_known(state: ThreadState, turn: str) -> bool:
    """Whether a request waits, or has joined the active turn."""
    return turn in state.books.joined or _waiting_in(state, turn) is not None


def _joined_request(state: ThreadState, turn: str) -> RunRequest | None:
    """A request that became part of another turn, as it came."""
    host, messages = state.active, state.draft
    if turn not in state.books.joined:
        if (response := _ended(state, turn)) is None:
            return None
        if not isinstance(entry := _codec.load_entry(response), Response):
            return None  # it is broken, and kept as it is
        host, messages = entry.correlation_id, entry.messages
    own = _unlabelled(tuple(message for message in messages if message.extra.get(_OF_TURN) == turn))
    return RunRequest(correlation_id=turn, messages=own, response_schema=_schema_of(state, host)) if own else None


def _schema_of(state: ThreadState, turn: str | None) -> Mapping[str, Json] | None:
    stored = None if turn is None else _find(state, "request", turn)
    return None if stored is None else stored.get("responseSchema")


def _ahead(state: ThreadState) -> str:
    """The turn that a request waits for: the active one, or the one that may be it."""
    ahead = state.active or first_in(state)
    assert ahead is not None  # else the request would have been granted the thread
    return ahead


def _queued(state: ThreadState, told: tuple[str, ...] = ()) -> Queued:
    ahead = _ahead(state)
    return Queued(ahead, (ahead, *told) if ahead in state.cancelled else told)


def _cancelled_by(state: ThreadState, thread: AgentThread, turn: str) -> tuple[str, ...]:
    """Turns that waited in line and were cancelled by this one, among the latest."""
    found: list[str] = []
    for raw in list(state.history)[-_LATEST:]:
        if raw.get("$type") == "response":
            try:
                _codec.load_response(raw, thread)
            except TurnCancelled as error:
                if error.by == turn:
                    found.append(raw["correlationId"])
            except (DafxError, ValueError):
                pass  # it ended otherwise
    return tuple(found)


def _overlap(
    state: ThreadState, thread: AgentThread, request: RunRequest, overlap: Overlap, now: datetime
) -> tuple[ThreadState, Outcome]:
    """A new request finds the thread at work.

    One that wants its answer in another form than the active turn gives it cannot become part of that, and queues.
    """
    active = state.active
    if overlap == "steer" and active is not None and _may_join(state, active, request):
        return attrs.evolve(state, steered=(*state.steered, request)), _queued(state)
    told: tuple[str, ...] = ()
    if overlap == "cancel_previous":
        mark: Json = {"by": request.correlation_id, "reason": "a newer request took its place"}
        told = (*(each.correlation_id for each in state.steered), *(each.correlation_id for each in state.waiting))
        for each in (*([active] if active else []), *told):
            state, _ = cancel(state, thread, each, mark, now)
        if active is None:
            state = _activate(state, request, now)
            return state, Granted(state.length, told)
    return attrs.evolve(state, waiting=(*state.waiting, place_of(request))), _queued(state, told)


def _may_join(state: ThreadState, active: str, request: RunRequest) -> bool:
    """Whether a request may become part of the active turn: it wants the same form of answer, and there is room.

    What is to join is in the thread's state as a whole, and so is what has joined, until the turn ends.
    """
    if _schema_of(state, active) != request.response_schema:
        return False
    joined = [_codec.dump_message(message) for message in state.draft if _OF_TURN in message.extra]
    sizes = (len(json.dumps(each)) for each in (*joined, *map(_codec.dump_request, (*state.steered, request))))
    return sum(sizes) <= MOST_STEERED


def _join(state: ThreadState) -> ThreadState:
    """What was steered becomes part of the turn, unless a call is open: its result must come first.

    Nothing joins a turn that was cancelled: it would end with it, and can be answered after it.
    """
    if not state.steered or state.active in state.cancelled or open_calls(state.draft):
        return state
    messages = tuple(
        attrs.evolve(message, extra={**message.extra, _OF_TURN: request.correlation_id})
        for request in state.steered
        for message in request.messages
    )
    joined = (*state.books.joined, *(request.correlation_id for request in state.steered))
    books = attrs.evolve(state.books, joined=joined)
    return attrs.evolve(state, draft=state.draft + messages, steered=(), books=books)


def _without_joined(state: ThreadState) -> ThreadState:
    """The thread without what its turn gave so far; what had joined that is to join again."""
    again = (_joined_request(state, turn) for turn in state.books.joined)
    steered = (*(request for request in again if request is not None), *state.steered)
    return attrs.evolve(state, draft=(), steered=steered, books=attrs.evolve(state.books, joined=()))


def _unlabelled(messages: tuple[ChatMessage, ...]) -> tuple[ChatMessage, ...]:
    """Messages that do not say which request they came with."""
    return tuple(attrs.evolve(each, extra={k: v for k, v in each.extra.items() if k != _OF_TURN}) for each in messages)


def _of_itself(about: Mapping[str, Json] | None) -> Mapping[str, Json]:
    """What a turn that was found completed says of itself, and not of those that had joined it.

    It completed before the thread was reset: they may be waiting anew, or be cancelled.
    """
    return {name: value for name, value in (about or {}).items() if name != JOINED}


def _with(draft: tuple[ChatMessage, ...], messages: tuple[ChatMessage, ...]) -> tuple[ChatMessage, ...]:
    """The draft and what follows it. A turn that was begun anew does not know which calls it had left open."""
    if not messages or results_in(messages[0]):
        return draft + messages
    return closed(draft) + messages


def _is_asked(state: ThreadState, ask: Json) -> bool:
    """Whether this very question was asked before: then it keeps the decision that was made about it."""
    known: Mapping[str, Json] = state.books.asks.get(ask["key"]) or {}
    return {name: value for name, value in known.items() if name != "decision"} == dict(ask)


def _end(
    state: ThreadState,
    thread: AgentThread,
    turn: str,
    messages: tuple[ChatMessage, ...],
    usage: UsageStats | None,
    now: datetime,
    about: Mapping[str, Json] | None,
) -> tuple[ThreadState, Outcome]:
    if (ended := _ended(state, turn)) is not None:
        return state, Ended(ended)
    if state.active != turn:
        return state, Refused(TurnSuperseded(thread.thread_id, turn))
    joined = state.books.joined
    ours = {**(about or {}), **({JOINED: list(joined)} if joined else {})}
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
    state: ThreadState, thread: AgentThread, request: RunRequest, mark: Mapping[str, Json], now: datetime
) -> tuple[ThreadState, Outcome]:
    error = _cancellation(thread, request.correlation_id, mark)
    return _leave_unbegun(state, request, _error_message(error), now)


def _leave_unbegun(
    state: ThreadState, who: RunRequest | Place, error: ChatMessage, now: datetime
) -> tuple[ThreadState, Outcome]:
    """A turn that never was active ends: the transcript shows its request with the error.

    Where the request is with its turn, its place in the transcript is kept for it, see `_filled`.
    """
    turn = who.correlation_id
    asked = _entry(who, now) if isinstance(who, RunRequest) else _kept_for(who, now)
    response = _response(turn, (error,), None, now)
    before = first_in(state)
    state = attrs.evolve(
        state,
        waiting=_without(state.waiting, turn),
        steered=_without(state.steered, turn),
        history=(*state.history, _codec.dump_entry(asked), response),
    )
    is_next = state.active is None and first_in(state) != before
    return state, Ended(response, first_in(state) if is_next else None)


def _kept_for(place: Place, now: datetime) -> Request:
    """Stands for the request of a turn that had to leave the line before it could bring it."""
    extra = {"dafx": {"digest": place.digest}}
    return Request(correlation_id=place.correlation_id, messages=(), created_at=now, extra=extra)


def _withdrawn(state: ThreadState, turn: str) -> str | None:
    """The digest of a request that the transcript has a place for, and that has not been brought."""
    stored = _find(state, "request", turn)
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
    stored = _find(state, "request", turn)
    history = tuple(
        {**_codec.dump_entry(_entry(request, request.created_at)), **_created(raw)} if raw is stored else raw
        for raw in state.history
    )
    return attrs.evolve(state, history=history)


def _created(raw: Json) -> dict[str, Json]:
    return {"createdAt": raw["createdAt"]} if raw.get("createdAt") else {}


def first_in(state: ThreadState) -> str | None:
    """The turn that waits longest."""
    return state.waiting[0].correlation_id if state.waiting else None


def _without(waiting: tuple[Waits, ...], turn: str) -> tuple[Waits, ...]:
    return tuple(each for each in waiting if each.correlation_id != turn)


def _without_ended(state: ThreadState) -> ThreadState:
    """The thread, where whoever is first in line has not ended: a worker that does not see the line may have let it."""
    while state.active is None and (first := first_in(state)) is not None and _ended(state, first) is not None:
        state = attrs.evolve(state, waiting=state.waiting[1:])
    return state


def _activate(state: ThreadState, request: RunRequest, now: datetime) -> ThreadState:
    history, turn = state.history, request.correlation_id
    if _find(state, "request", turn) is None:
        history = (*history, _codec.dump_entry(_entry(request, now)))
    waiting = _without(state.waiting, turn)
    return attrs.evolve(state, active=turn, history=history, draft=(), books=Books(), waiting=waiting)


def _marked(state: ThreadState, turn: str, mark: Mapping[str, Json]) -> ThreadState:
    early = [] if turn == state.active else [known for known in state.cancelled if known != state.active]
    forgotten = early[: max(0, len(early) - _MOST_EARLY_MARKS + 1)]
    kept = {known: value for known, value in state.cancelled.items() if known not in forgotten}
    return attrs.evolve(state, cancelled={**kept, turn: dict(mark)})


def _without_mark(state: ThreadState, turn: str) -> ThreadState:
    return attrs.evolve(state, cancelled={known: mark for known, mark in state.cancelled.items() if known != turn})


def _cancelled_message(thread: AgentThread, state: ThreadState, turn: str) -> ChatMessage:
    return _error_message(_cancellation(thread, turn, state.cancelled[turn]))


def _cancellation(thread: AgentThread, turn: str, mark: Mapping[str, Json]) -> TurnCancelled:
    return TurnCancelled(thread.agent, turn, str(mark.get("reason") or ""), str(mark.get("by") or ""))


def _decides(decision: Mapping[str, Json]) -> tuple[Json, ...]:
    return decision["action"], decision.get("arguments"), decision.get("result")


def _ended(state: ThreadState, turn: str) -> Json | None:
    """The stored response of a turn, its own or that of the turn it became part of; sought from the end."""
    for raw in reversed(state.history):
        if raw.get("$type") == "response" and (raw.get("correlationId") == turn or turn in _joined_in(raw)):
            return raw
    return None


def _joined_in(response: Json) -> list[Json]:
    ours: Json = response.get("dafx")
    joined: Json = cast("Json", ours).get(JOINED) if isinstance(ours, Mapping) else None
    return cast("list[Json]", joined) if isinstance(joined, list) else []


def _find(state: ThreadState, kind: str, turn: str) -> Json | None:
    """The stored entry of a turn, sought from the end: it is nearly always the latest."""
    for raw in reversed(state.history):
        if is_entry(raw, kind, turn):
            return raw
    return None


def _waiting_in(state: ThreadState, turn: str) -> RunRequest | Place | None:
    """What the thread has of a turn that waits."""
    return _among(state.waiting, turn) or _among(state.steered, turn)


def _among(requests: Iterable[Waits], turn: str) -> Waits | None:
    return next((request for request in requests if request.correlation_id == turn), None)


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
    return _codec.dump_entry(Response(correlation_id=turn, messages=messages, created_at=now, usage=usage, extra=extra))


def _error_message(error: DafxError) -> ChatMessage:
    return ChatMessage("assistant", (_codec.error_content(error),))
