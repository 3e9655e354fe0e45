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

A cancelled turn keeps its place until it ends by itself; the mark is what its tools look for before they act, and it
makes an end of every `commit`. Where requests that overlap are *steered*, a later one waits for the place where it
fits, between the results of the tools and the next model call, and becomes part of the active turn.

The history is kept as the JSON that is stored and never looked into beyond `$type`, the id and `dafx`: what an
operation costs does not grow with what the messages hold, and what others wrote stays as it was.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Literal, TypeAlias, cast

import attrs

from dafx_actors import _codec
from dafx_actors.decisions import call_digest
from dafx_actors.errors import (
    CorrelationConflict,
    DafxError,
    DecisionRefused,
    ThreadBusy,
    TurnCancelled,
    TurnError,
    TurnSuperseded,
)
from dafx_actors.exchange import Overlap, RunRequest
from dafx_actors.ids import AgentThread
from dafx_actors.transcript import (
    ChatMessage,
    FunctionCallContent,
    FunctionResultContent,
    Json,
    Request,
    Response,
    UsageStats,
)

JOINED = "joined"
"""In `dafx` of a stored response: the requests that became part of its turn."""
_MOST_EARLY_MARKS = 100
"""Cancellations kept for turns that have not begun. They nearly always begin in a moment; some never do."""
_NOT_MADE = "The turn ended before this call was answered. It may have acted, or not."


@attrs.frozen(kw_only=True)
class Books:
    """What a thread keeps of its active turn besides the draft, by the keys of tool calls. Gone when the turn ends."""

    asks: Mapping[str, Json] = attrs.field(factory=dict[str, Json])
    """What a person is to decide, each with its `decision` once it was made."""
    attempts: Mapping[str, Json] = attrs.field(factory=dict[str, Json])
    """Who made the latest attempt of a call that may act only once."""
    children: Mapping[str, Json] = attrs.field(factory=dict[str, Json])
    """Turns of agents used as tools."""
    progress: Mapping[str, Json] = attrs.field(factory=dict[str, Json])
    """What tools have reported last."""
    joined: tuple[str, ...] = ()
    """Correlation ids of the requests that became part of the turn."""


@attrs.frozen(kw_only=True)
class ThreadState:
    """A thread as it is stored."""

    history: tuple[Json, ...] = ()
    """`data.conversationHistory`."""
    active: str | None = None
    """The correlation id of the turn that is running."""
    draft: tuple[ChatMessage, ...] = ()
    """What the active turn has recorded."""
    books: Books = Books()
    waiting: tuple[RunRequest, ...] = ()
    """Requests that wait for the turns before them, oldest first."""
    steered: tuple[RunRequest, ...] = ()
    """Requests that will become part of the active turn, oldest first."""
    cancelled: Mapping[str, Json] = attrs.field(factory=dict[str, Json])
    """Marks of the active turn and of turns that have not begun: who cancelled it, and why."""
    document: Mapping[str, Json] = attrs.field(factory=dict[str, Json])
    """The stored document, for the fields that this version does not know."""

    @property
    def length(self) -> int:
        """Entries up to the active turn's request, and its draft: grows with all that this turn records.

        So a reader that knows the turn can tell old state. What others add behind the request meanwhile (turns that
        gave up waiting) does not count: the turn does not know of it, and would take its next `record` for a repeat.
        """
        behind = 0
        if self.active is not None:
            own = (n for n, raw in enumerate(reversed(self.history)) if _is(raw, "request", self.active))
            behind = next(own, 0)
        return len(self.history) - behind + len(self.draft)


@attrs.frozen
class Granted:
    """The turn is active, and goes on."""

    length: int
    """Of the thread, up to the turn's request and with its draft; see `ThreadState.length`."""


@attrs.frozen
class Queued:
    """The turn waits."""

    active: str
    """For this one."""
    cancelled: tuple[str, ...] = ()
    """Turns that were cancelled for it, which do not know it yet."""


@attrs.frozen
class Ended:
    """The turn has ended."""

    response: Json
    """Its stored `Response`."""
    next: Granted | None = None
    """The grant for the turn that is active now, which does not know it yet."""
    next_id: str | None = None
    """That turn."""
    joined: tuple[str, ...] = ()
    """Turns that have ended with it, which do not know it yet."""


@attrs.frozen
class Cancelled:
    """The turn is marked; from here on none of its tools begins to act."""

    turn: str
    """The one that is marked: that which the request became part of, where it did."""
    mark: Json


@attrs.frozen
class Decided:
    """The decision is on record."""

    decision: Json
    """The one that counts: of two at a time, the first."""


@attrs.frozen
class Attempted:
    """Whether a call that may act only once may be made now."""

    answer: Literal["go", "unknown", "stop"]
    """`unknown`: somebody began to make it before, and nobody knows how that ended. `stop`: the turn is over."""


@attrs.frozen
class Noted:
    """It was kept, or was of no interest any more."""


@attrs.frozen
class Refused:
    """Nothing was changed."""

    error: TurnError


Outcome: TypeAlias = Granted | Queued | Ended | Cancelled | Decided | Attempted | Noted | Refused


# --- As it is stored ----------------------------------------------------------------------------------------------


def load(document: Json) -> ThreadState:
    """Read a stored thread; None is a new one.

    Raises:
        UnsupportedTranscript: A newer major version, or not a thread at all.
    """
    data = _codec.check_document(document)
    ours = _codec.load_unfinished(data)
    return ThreadState(
        history=tuple(data.get("conversationHistory", ())),
        active=ours.active,
        draft=ours.draft,
        books=Books(
            asks=ours.asks,
            attempts=ours.attempts,
            children=ours.children,
            progress=ours.progress,
            joined=ours.joined,
        ),
        waiting=ours.waiting,
        steered=ours.steered,
        cancelled=ours.cancelled,
        document=document or {},
    )


def dump(state: ThreadState) -> dict[str, Json]:
    """A thread as it is stored; `data.dafx` is there only while a turn has not ended."""
    data: Mapping[str, Json] = state.document.get("data", {})
    known: dict[str, Json] = {
        "active": state.active,
        "draft": [_codec.dump_message(message) for message in state.draft],
        "waiting": [_codec.dump_request(request) for request in state.waiting],
        "steered": [_codec.dump_request(request) for request in state.steered],
        "cancelled": dict(state.cancelled),
        "asks": dict(state.books.asks),
        "attempts": dict(state.books.attempts),
        "children": dict(state.books.children),
        "progress": dict(state.books.progress),
        "joined": list(state.books.joined),
    }
    stored: Mapping[str, Json] = data.get("dafx") or {}
    ours: dict[str, Json] = {**stored, **known}
    kept = {key: value for key, value in ours.items() if value or key not in known}
    rest = {key: value for key, value in data.items() if key != "dafx"}
    return {
        "schemaVersion": _codec.SCHEMA_VERSION,
        **state.document,
        "data": {**rest, "conversationHistory": list(state.history), **({"dafx": kept} if kept else {})},
    }


# --- What turns do ------------------------------------------------------------------------------------------------


def begin(
    state: ThreadState, thread: AgentThread, request: RunRequest, now: datetime, overlap: Overlap = "queue"
) -> tuple[ThreadState, Outcome]:
    """A turn asks for its thread: granted, queued, refused, or answered where it has ended already."""
    turn = request.correlation_id
    if (refused := _conflict(state, request)) is not None:
        return state, refused
    if (ended := _ended(state, turn)) is not None:
        return state, Ended(ended)
    if turn in state.cancelled and state.active != turn:
        return _end_unbegun(_without_mark(state, turn), thread, request, state.cancelled[turn], now)
    state = _advance(state, now)
    if state.active is None:
        state = _activate(state, request, now)
    if state.active == turn:
        return state, Granted(state.length)
    assert state.active is not None  # else this turn would have been granted above
    if turn in state.books.joined or _among(state.steered, turn) or _among(state.waiting, turn):
        return state, Queued(state.active)
    return _overlap(state, thread, request, overlap, now)


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

    `at` is the length that the turn knows, so that a repeat adds nothing.
    """
    if state.active != turn:
        return state, Refused(TurnSuperseded(thread.thread_id, turn))
    if state.length == at:
        books = attrs.evolve(
            state.books,
            asks={**state.books.asks, **{ask["key"]: ask for ask in asks}},
            children={**state.books.children, **{child["key"]: child for child in children}},
        )
        state = _join(attrs.evolve(state, draft=state.draft + messages, books=books))
    return state, Granted(state.length)


def commit(
    state: ThreadState,
    thread: AgentThread,
    turn: str,
    messages: tuple[ChatMessage, ...],
    usage: UsageStats | None,
    now: datetime,
    *,
    whole: bool = False,
    about: Mapping[str, Json] | None = None,
) -> tuple[ThreadState, Outcome]:
    """The active turn ends with an answer: its draft and `messages`, or `messages` alone where they are the whole.

    The next in line becomes active. A turn that others have joined meanwhile goes on instead, since they have no
    answer yet. One that was cancelled ends as that.

    Args:
        state: Of the thread.
        thread: The thread.
        turn: The correlation id.
        now: The time of the answer.
        messages: Of the answer.
        usage: The tokens of all model calls.
        whole: Whether `messages` are all that the turn gave.
        about: What the response says of how it came about, under `dafx`.
    """
    if state.active == turn and turn in state.cancelled:
        return _end(state, thread, turn, (*messages, _cancelled_message(thread, state, turn)), usage, now, about)
    if whole:
        state = attrs.evolve(state, draft=()) if state.active == turn else state
    elif state.active == turn and state.steered:
        joined = _join(attrs.evolve(state, draft=state.draft + messages))
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
) -> tuple[ThreadState, Outcome]:
    """A turn ends without an answer. The error stands in its place, and the next in line becomes active.

    `messages` are what it had not recorded yet. A turn that still waits leaves the queue, and the transcript shows its
    request with the error.
    """
    if state.active != turn and (request := _among(state.waiting, turn) or _among(state.steered, turn)) is not None:
        return _leave_unbegun(state, request, _error_message(error), now)
    if state.active == turn and turn in state.cancelled and not isinstance(error, TurnCancelled):
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
    if (request := _among(state.waiting, turn) or _among(state.steered, turn)) is not None:
        return _leave_unbegun(state, request, _error_message(_cancellation(thread, turn, mark)), now)
    if turn not in state.cancelled:
        state = _marked(state, turn, mark)
    return state, Cancelled(turn, state.cancelled[turn])


def decide(
    state: ThreadState, turn: str, key: str, digest: str, decision: Mapping[str, Json]
) -> tuple[ThreadState, Outcome]:
    """Somebody decides about a tool call of the active turn. The first decision counts; the same one again is fine."""
    ask: Json = state.books.asks.get(key) if state.active == turn else None
    if ask is None or turn in state.cancelled:
        return state, Refused(DecisionRefused(key, "not_pending"))
    if ask["digest"] != digest:
        return state, Refused(DecisionRefused(key, "changed"))
    if (made := ask.get("decision")) is not None:
        if _decides(made) == _decides(decision) or decision["action"] == "expire":
            return state, Decided(made)
        return state, Refused(DecisionRefused(key, "decided", f"{made['action']} by {made.get('by') or 'somebody'}"))
    edited = decision.get("arguments")
    kept = {**decision, "digest": digest if edited is None else call_digest(ask["tool"], edited)}
    asks = {**state.books.asks, key: {**ask, "decision": kept}}
    return attrs.evolve(state, books=attrs.evolve(state.books, asks=asks)), Decided(kept)


def attempt(state: ThreadState, turn: str, key: str, number: int, token: str) -> tuple[ThreadState, Outcome]:
    """A step is about to make a call that may act only once: recorded before it acts, by `token`.

    The first to come with a number goes; a later number means that somebody has found out, or decided, that the
    attempts before it count as not made.
    """
    if state.active != turn or turn in state.cancelled:
        return state, Attempted("stop")
    made: Json = state.books.attempts.get(key)
    if made is not None and made["number"] >= number:
        return state, Attempted("go" if made["token"] == token else "unknown")
    attempts = {**state.books.attempts, key: {"number": number, "token": token}}
    return attrs.evolve(state, books=attrs.evolve(state.books, attempts=attempts)), Attempted("go")


def note(state: ThreadState, turn: str, key: str, progress: Json) -> tuple[ThreadState, Outcome]:
    """A tool reports how far it is; the latest report of each call is kept."""
    if state.active != turn:
        return state, Noted()
    known = {**state.books.progress, key: progress}
    return attrs.evolve(state, books=attrs.evolve(state.books, progress=known)), Noted()


def reset(state: ThreadState) -> ThreadState:
    """Forget the conversation. The active turn loses its thread; those that wait stay in line."""
    waiting = state.steered + state.waiting
    return attrs.evolve(state, history=(), active=None, draft=(), books=Books(), steered=(), waiting=waiting)


def may_act(state: ThreadState, turn: str) -> bool:
    """Whether a tool of this turn may begin to act."""
    return state.active == turn and turn not in state.cancelled


def is_approved(state: ThreadState, key: str, digest: str) -> bool:
    """Whether a person approved this call, by its key and a hash of the arguments that it would be made with."""
    decision: Json = (state.books.asks.get(key) or {}).get("decision") or {}
    return (decision.get("action"), decision.get("digest")) == ("approve", digest)


# --- Inside -------------------------------------------------------------------------------------------------------


def _conflict(state: ThreadState, request: RunRequest) -> Refused | None:
    """A correlation id names one request, for ever."""
    turn = request.correlation_id
    stored = _find(state, "request", turn)
    known = _among((*state.waiting, *state.steered), turn) if stored is None else _codec.load_entry(stored)
    if isinstance(known, Request | RunRequest) and _asks(known) != _asks(request):
        return Refused(CorrelationConflict(turn, "request"))
    return None


def _overlap(
    state: ThreadState, thread: AgentThread, request: RunRequest, overlap: Overlap, now: datetime
) -> tuple[ThreadState, Outcome]:
    """A new request finds the thread at work."""
    active = state.active
    assert active is not None
    if overlap == "reject":
        return state, Refused(ThreadBusy(thread.agent, thread.thread_id, active))
    if overlap == "steer":
        return attrs.evolve(state, steered=(*state.steered, request)), Queued(active)
    told: tuple[str, ...] = ()
    if overlap == "cancel_previous":
        mark: Json = {"by": request.correlation_id, "reason": "a newer request took its place"}
        told = tuple(waiting.correlation_id for waiting in state.waiting)
        for each in told:
            state, _ = cancel(state, thread, each, mark, now)
        if active not in state.cancelled:
            state, told = _marked(state, active, mark), (active, *told)
    return attrs.evolve(state, waiting=(*state.waiting, request)), Queued(active, told)


def _join(state: ThreadState) -> ThreadState:
    """What was steered becomes part of the turn, unless a call is open: its result must come first."""
    if not state.steered or open_calls(state.draft):
        return state
    messages = tuple(
        attrs.evolve(message, extra={**message.extra, "correlationId": request.correlation_id})
        for request in state.steered
        for message in request.messages
    )
    joined = (*state.books.joined, *(request.correlation_id for request in state.steered))
    books = attrs.evolve(state.books, joined=joined)
    return attrs.evolve(state, draft=state.draft + messages, steered=(), books=books)


def open_calls(messages: tuple[ChatMessage, ...]) -> tuple[str, ...]:
    """The ids of the tool calls without a result. Only the latest message of the model can have some.

    Counted, for models that give every call of theirs the same id.
    """
    opened: list[str] = []
    for message in messages:
        opened += [content.call_id for content in message.contents if isinstance(content, FunctionCallContent)]
        for content in message.contents:
            if isinstance(content, FunctionResultContent) and content.call_id in opened:
                opened.remove(content.call_id)
    return tuple(opened)


def _closed(messages: tuple[ChatMessage, ...]) -> tuple[ChatMessage, ...]:
    """The messages, with a result for every call: providers refuse a conversation where one is missing."""
    if not (opened := open_calls(messages)):
        return messages
    results = tuple(FunctionResultContent(call_id, _NOT_MADE, extra={"dafx": {"open": True}}) for call_id in opened)
    last = max(n for n, message in enumerate(messages) if _has_calls(message))
    end = next((n for n in range(last + 1, len(messages)) if messages[n].role != "tool"), len(messages))
    return (*messages[:end], ChatMessage("tool", results), *messages[end:])


def _has_calls(message: ChatMessage) -> bool:
    return any(isinstance(content, FunctionCallContent) for content in message.contents)


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
    response = _response(turn, _closed(state.draft + messages), usage, now, ours)
    # What was to join and did not is next: it came before all that waits.
    waiting = state.steered + state.waiting
    state = attrs.evolve(
        _without_mark(state, turn),
        history=(*state.history, response),
        active=None,
        draft=(),
        books=Books(),
        steered=(),
        waiting=waiting,
    )
    state = _advance(state, now)
    granted = Granted(state.length) if state.active else None
    return state, Ended(response, granted, state.active, joined)


def _end_unbegun(
    state: ThreadState, thread: AgentThread, request: RunRequest, mark: Mapping[str, Json], now: datetime
) -> tuple[ThreadState, Outcome]:
    error = _cancellation(thread, request.correlation_id, mark)
    return _leave_unbegun(state, request, _error_message(error), now)


def _leave_unbegun(
    state: ThreadState, request: RunRequest, error: ChatMessage, now: datetime
) -> tuple[ThreadState, Outcome]:
    """A turn that never was active ends: the transcript shows its request with the error."""
    response = _response(request.correlation_id, (error,), None, now)
    history = (*state.history, _codec.dump_entry(_entry(request, now)), response)
    turn = request.correlation_id
    waiting = tuple(other for other in state.waiting if other.correlation_id != turn)
    steered = tuple(other for other in state.steered if other.correlation_id != turn)
    return attrs.evolve(state, waiting=waiting, steered=steered, history=history), Ended(response)


def _advance(state: ThreadState, now: datetime) -> ThreadState:
    """Where no turn is active, the first that waits becomes it."""
    if state.active is not None or not state.waiting:
        return state
    first, *others = state.waiting
    return _activate(attrs.evolve(state, waiting=tuple(others)), first, now)


def _activate(state: ThreadState, request: RunRequest, now: datetime) -> ThreadState:
    history = state.history
    if _find(state, "request", request.correlation_id) is None:
        history = (*history, _codec.dump_entry(_entry(request, now)))
    return attrs.evolve(state, active=request.correlation_id, history=history, draft=(), books=Books())


def _marked(state: ThreadState, turn: str, mark: Mapping[str, Json]) -> ThreadState:
    early = [known for known in state.cancelled if known != state.active]
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


def _joined_in(response: Json) -> Iterable[str]:
    """The requests that became part of a stored turn; others may have written something else in that place."""
    ours: Json = response.get("dafx")
    joined: Json = cast("Mapping[str, Json]", ours).get(JOINED) if isinstance(ours, Mapping) else None
    return cast("list[str]", joined) if isinstance(joined, list) else ()


def _find(state: ThreadState, kind: str, turn: str) -> Json | None:
    """The stored entry of a turn, sought from the end: it is nearly always the latest."""
    for raw in reversed(state.history):
        if _is(raw, kind, turn):
            return raw
    return None


def _is(raw: Json, kind: str, turn: str) -> bool:
    return (raw.get("correlationId"), raw.get("$type")) == (turn, kind)


def _among(requests: Iterable[RunRequest], turn: str) -> RunRequest | None:
    return next((request for request in requests if request.correlation_id == turn), None)


def _asks(request: Request | RunRequest) -> str:
    return _codec.digest(request.messages, request.response_schema)


def _entry(request: RunRequest, now: datetime) -> Request:
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
