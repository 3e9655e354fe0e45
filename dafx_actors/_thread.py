r"""What a thread does with a message. Pure: no clock, no network, no `await`.

A thread works on one turn at a time, in the order in which their `begin` arrived. Every change names its turn, and
is refused unless that turn is the active one, so that a turn which was taken for dead can do no harm if it
lives. Every operation may arrive twice and then changes nothing the second time.

::

              begin                     record*                commit / abort
    (none) ---------->  active  ----------------------->  ended: its Response is in the history
       \                 ^                                           |
        \ begin           \ the turn before it ended                 | begin
         `----> waiting ----'                                         `----> answered, again and again

The history is kept as the JSON that is stored and never looked into beyond `$type` and the id: what an operation
costs does not grow with what the messages hold, and what others wrote stays as it was.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import TypeAlias

import attrs

from dafx_actors import _codec
from dafx_actors.errors import CorrelationConflict, DafxError, TurnError, TurnSuperseded
from dafx_actors.exchange import RunRequest
from dafx_actors.ids import AgentThread
from dafx_actors.transcript import ChatMessage, Json, Request, Response, UsageStats


@attrs.frozen(kw_only=True)
class ThreadState:
    """A thread as it is stored."""

    history: tuple[Json, ...] = ()
    """`data.conversationHistory`."""
    active: str | None = None
    """The correlation id of the turn that is running."""
    draft: tuple[ChatMessage, ...] = ()
    """What the active turn has recorded."""
    waiting: tuple[RunRequest, ...] = ()
    """Requests that wait for the turns before them, oldest first."""
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
    """The turn is active."""

    length: int
    """Of the thread, up to the turn's request and with its draft; see `ThreadState.length`."""


@attrs.frozen
class Queued:
    """The turn waits."""

    active: str
    """For this one."""


@attrs.frozen
class Ended:
    """The turn has ended."""

    response: Json
    """Its stored `Response`."""
    next: Granted | None = None
    """The grant for the turn that is active now, which does not know it yet."""
    next_id: str | None = None
    """That turn."""


@attrs.frozen
class Refused:
    """Nothing was changed."""

    error: TurnError


Outcome: TypeAlias = Granted | Queued | Ended | Refused


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
        waiting=ours.waiting,
        document=document or {},
    )


def dump(state: ThreadState) -> dict[str, Json]:
    """A thread as it is stored; `data.dafx` is there only while a turn has not ended."""
    data: Mapping[str, Json] = state.document.get("data", {})
    known = {
        "active": state.active,
        "draft": [_codec.dump_message(message) for message in state.draft],
        "waiting": [_codec.dump_request(request) for request in state.waiting],
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


def begin(state: ThreadState, request: RunRequest, now: datetime) -> tuple[ThreadState, Outcome]:
    """A turn asks for its thread: granted, queued, or answered where it has ended already."""
    turn = request.correlation_id
    stored = _find(state, "request", turn)
    known = _codec.load_entry(stored) if stored is not None else _waiting(state, turn)
    if isinstance(known, Request | RunRequest) and _asks(known) != _asks(request):
        return state, Refused(CorrelationConflict(turn, "request"))
    if (ended := _find(state, "response", turn)) is not None:
        return state, Ended(ended)
    state = _advance(state, now)
    if state.active is None:
        state = _activate(state, request, now)
    if state.active == turn:
        return state, Granted(state.length)
    if _waiting(state, turn) is None:
        state = attrs.evolve(state, waiting=(*state.waiting, request))
    assert state.active is not None  # else this turn would have been granted above
    return state, Queued(state.active)


def record(
    state: ThreadState, thread: AgentThread, turn: str, messages: tuple[ChatMessage, ...], at: int
) -> tuple[ThreadState, Outcome]:
    """The active turn adds `messages` to its draft; `at` is the length it knows, so that a repeat adds nothing."""
    if state.active != turn:
        return state, Refused(TurnSuperseded(thread.thread_id, turn))
    if state.length == at:
        state = attrs.evolve(state, draft=state.draft + messages)
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
) -> tuple[ThreadState, Outcome]:
    """The active turn ends with an answer: its draft and `messages`, or `messages` alone where they are the whole.

    The next in line becomes active.
    """
    if whole:
        state = attrs.evolve(state, draft=()) if state.active == turn else state
    return _end(state, thread, turn, messages, usage, now)


def abort(
    state: ThreadState, thread: AgentThread, turn: str, error: DafxError, now: datetime
) -> tuple[ThreadState, Outcome]:
    """A turn ends without an answer. The error stands in its place, and the next in line becomes active.

    A turn that still waits leaves the queue, and the transcript shows its request with the error.
    """
    if state.active != turn and (request := _waiting(state, turn)) is not None:
        others = tuple(waiting for waiting in state.waiting if waiting is not request)
        response = _response(turn, (_error_message(error),), None, now)
        history = (*state.history, _codec.dump_entry(_entry(request, now)), response)
        return attrs.evolve(state, waiting=others, history=history), Ended(response)
    return _end(state, thread, turn, (_error_message(error),), None, now)


def reset(state: ThreadState) -> ThreadState:
    """Forget the conversation. The active turn loses its thread; those that wait stay in line."""
    return attrs.evolve(state, history=(), active=None, draft=())


def _end(
    state: ThreadState,
    thread: AgentThread,
    turn: str,
    messages: tuple[ChatMessage, ...],
    usage: UsageStats | None,
    now: datetime,
) -> tuple[ThreadState, Outcome]:
    if (ended := _find(state, "response", turn)) is not None:
        return state, Ended(ended)
    if state.active != turn:
        return state, Refused(TurnSuperseded(thread.thread_id, turn))
    response = _response(turn, state.draft + messages, usage, now)
    state = attrs.evolve(state, history=(*state.history, response), active=None, draft=())
    state = _advance(state, now)
    granted = Granted(state.length) if state.active else None
    return state, Ended(response, granted, state.active)


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
    return attrs.evolve(state, active=request.correlation_id, history=history, draft=())


def _find(state: ThreadState, kind: str, turn: str) -> Json | None:
    """The stored entry of a turn, sought from the end: it is nearly always the latest."""
    for raw in reversed(state.history):
        if _is(raw, kind, turn):
            return raw
    return None


def _is(raw: Json, kind: str, turn: str) -> bool:
    return (raw.get("correlationId"), raw.get("$type")) == (turn, kind)


def _waiting(state: ThreadState, turn: str) -> RunRequest | None:
    return next((request for request in state.waiting if request.correlation_id == turn), None)


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


def _response(turn: str, messages: tuple[ChatMessage, ...], usage: UsageStats | None, now: datetime) -> Json:
    return _codec.dump_entry(Response(correlation_id=turn, messages=messages, created_at=now, usage=usage))


def _error_message(error: DafxError) -> ChatMessage:
    return ChatMessage("assistant", (_codec.error_content(error),))
