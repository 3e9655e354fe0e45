"""What a thread keeps, and where to find it; the rules are in `thread.py`. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import TypeVar, cast

import attrs

from dafx_actors._json.books import AttemptRecord, CancelMark, ChildRecord, Place, QuestionRecord, Remains, Resumed
from dafx_actors._json.document import Unfinished, UnfinishedBeside, check_document, dump_document, load_unfinished
from dafx_actors._json.operations import place_of
from dafx_actors._json.shapes import is_list, is_object
from dafx_actors.exchange import RunRequest
from dafx_actors.ids import AgentThread
from dafx_actors.transcript import ChatMessage, Json

Waits = TypeVar("Waits", bound=RunRequest | Place)

JOINED = "joined"
"""In `dafx` of a stored response: the requests that became part of its turn."""
BELOW = "below"
"""In `dafx` of a stored response: the turns of agents that its turn used as tools, and the thread that it was in. A
transcript may be imported into another thread, to which they do not belong."""


@attrs.frozen(kw_only=True)
class Books:
    """The records of a thread about its active turn besides the draft, by the keys of tool calls.

    They are gone when the turn ends.
    """

    asks: Mapping[str, QuestionRecord] = attrs.field(factory=dict[str, QuestionRecord])
    """The questions for persons, each with its decision once there is one."""
    attempts: Mapping[str, AttemptRecord] = attrs.field(factory=dict[str, AttemptRecord])
    """The latest attempts of calls that may act only once."""
    children: Mapping[str, ChildRecord] = attrs.field(factory=dict[str, ChildRecord])
    """Turns of agents used as tools."""
    progress: Mapping[str, Json] = attrs.field(factory=dict[str, Json])
    """The latest progress reports of tools."""
    given_up: Mapping[str, int] = attrs.field(factory=dict[str, int])
    """The attempts of calls that are not to be made any more; see `calls.is_given_up`."""
    joined: tuple[str, ...] = ()
    """Correlation ids of the requests that became part of the turn."""
    resumed: Resumed | None = None
    """Where the turn had failed before, and was taken up again."""

    @property
    def retry(self) -> int:
        """How often the turn was taken up again."""
        return self.resumed.retry if self.resumed else 0


@attrs.frozen(kw_only=True)
class Beside:
    """A turn that goes on beside the active one, which waits for a person; see `beside.py`."""

    turn: str
    draft: tuple[ChatMessage, ...]
    books: Books


@attrs.frozen(kw_only=True)
class ThreadState:
    """A thread as it is stored."""

    history: tuple[Json, ...] = ()
    """`data.conversationHistory`."""
    active: str | None = None
    """The correlation id of the turn that is running."""
    draft: tuple[ChatMessage, ...] = ()
    """The messages that the active turn has recorded."""
    books: Books = Books()
    beside: Beside | None = None
    waiting: tuple[Place, ...] = ()
    """Requests that wait for the turns before them, oldest first; the first may have an idle one."""
    steered: tuple[RunRequest, ...] = ()
    """Requests that will become part of the active turn, oldest first."""
    cancelled: Mapping[str, CancelMark] = attrs.field(factory=dict[str, CancelMark])
    """Marks of the active turn and of turns that have not begun: who cancelled it, and why."""
    remains: Remains = attrs.field(factory=Remains)
    """What there is still of a conversation that was cleared; see `clearing.py`."""
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
            own = (n for n, raw in enumerate(reversed(self.history)) if is_entry(raw, "request", self.active))
            behind = next(own, 0)
        return len(self.history) - behind + len(self.draft)


# --- As it is stored ----------------------------------------------------------------------------------------------


def load(document: Json) -> ThreadState:
    """Read a stored thread; None is a new one.

    Raises:
        UnsupportedTranscript: A newer major version, or not a thread at all.
    """
    data = check_document(document)
    ours = load_unfinished(data)
    return ThreadState(
        history=tuple(data.get("conversationHistory", ())),
        active=ours.active,
        draft=ours.draft,
        books=Books(
            asks=ours.asks,
            attempts=ours.attempts,
            children=ours.children,
            progress=ours.progress,
            given_up=ours.given_up,
            joined=ours.joined,
            resumed=ours.resumed,
        ),
        beside=_load_beside(ours.beside),
        waiting=_line(ours),
        steered=ours.steered,
        cancelled=ours.cancelled,
        remains=ours.remains,
        document=document or {},
    )


def _load_beside(ours: UnfinishedBeside | None) -> Beside | None:
    if ours is None:
        return None
    return Beside(turn=ours.turn, draft=ours.draft, books=Books(progress=ours.progress, given_up=ours.given_up))


def _line(ours: Unfinished) -> tuple[Place, ...]:
    """The places of the turns that wait, once each.

    Versions before this one kept whole requests, in another field: they do not see the line, and take whoever of it
    asks first. So one that is in the line may be active, or be among those that they let wait.
    """
    places = (*map(place_of, ours.waiting), *ours.line)
    beside = [ours.beside.turn] if ours.beside else []
    elsewhere = {ours.active, *beside, *ours.joined, *(request.correlation_id for request in ours.steered)}
    line: dict[str, Place] = {}
    for place in places:
        if place.correlation_id not in elsewhere:
            line.setdefault(place.correlation_id, place)
    return tuple(line.values())


def dump(state: ThreadState) -> dict[str, Json]:
    """A thread as it is stored."""
    beside = state.beside
    ours = Unfinished(
        beside=None
        if beside is None
        else UnfinishedBeside(
            turn=beside.turn, draft=beside.draft, progress=beside.books.progress, given_up=beside.books.given_up
        ),
        active=state.active,
        draft=state.draft,
        waiting=(),
        line=state.waiting,
        steered=state.steered,
        joined=state.books.joined,
        cancelled=state.cancelled,
        asks=state.books.asks,
        attempts=state.books.attempts,
        children=state.books.children,
        progress=state.books.progress,
        given_up=state.books.given_up,
        resumed=state.books.resumed,
        remains=state.remains,
    )
    return dump_document(state.document, state.history, ours)


def is_entry(raw: Json, kind: str, turn: str) -> bool:
    """Say whether a stored entry is the request or the response of a turn."""
    return (raw.get("correlationId"), raw.get("$type")) == (turn, kind)


# --- Looking through it -------------------------------------------------------------------------------------------


def working_on(state: ThreadState) -> tuple[str, ...]:
    """The turns that the thread works on: the active one, and the one beside it."""
    turns = (state.active, state.beside.turn if state.beside else None)
    return tuple(turn for turn in turns if turn is not None)


def first_in(state: ThreadState) -> str | None:
    """The turn that waits longest."""
    return state.waiting[0].correlation_id if state.waiting else None


def ended_in(state: ThreadState, turn: str) -> Json | None:
    """The stored response of a turn, its own or that of the turn it became part of; sought from the end."""
    for raw in reversed(state.history):
        if raw.get("$type") == "response" and (raw.get("correlationId") == turn or turn in joined_in(raw)):
            return raw
    return None


def has_own_response(state: ThreadState, turn: str) -> bool:
    """Say whether a turn has ended with a response of its own, and not with that of a turn that it became part of."""
    return any(is_entry(raw, "response", turn) for raw in state.history)


def joined_in(response: Json) -> list[Json]:
    """The requests that became part of the turn which ended with a stored response."""
    ours: Json = response.get("dafx")
    joined: Json = cast("Json", ours).get(JOINED) if isinstance(ours, Mapping) else None
    return cast("list[Json]", joined) if isinstance(joined, list) else []


def below(children: Mapping[str, ChildRecord], thread: AgentThread) -> dict[str, Json]:
    """What a response of this thread keeps, under `dafx`, of the agents that its turn used as tools."""
    if not children:
        return {}
    return {BELOW: {"thread": str(thread.entity_id), "turns": [dict(child.raw) for child in children.values()]}}


def turns_in(state: ThreadState) -> tuple[str, ...]:
    """The correlation ids in the transcript, once each, and those of requests that became part of other turns."""
    found: dict[str, None] = {}
    for raw in state.history:
        found.update((each, None) for each in (raw.get("correlationId"), *joined_in(raw)) if isinstance(each, str))
    return tuple(found)


def children_in(state: ThreadState, thread: AgentThread) -> tuple[ChildRecord, ...]:
    """The turns of agents that turns of this thread used as tools and that are in the transcript.

    Versions before this one kept them only until their turn had ended.
    """
    found: dict[str, ChildRecord] = {}
    for raw in state.history:
        for record in children_below(raw, thread):
            found.setdefault(record.key, record)
    return tuple(found.values())


def children_below(response: Json, thread: AgentThread) -> tuple[ChildRecord, ...]:
    """The turns of agents that the turn of a stored response, one of this thread, used as tools."""
    ours: Json = response.get("dafx")
    kept: Json = ours.get(BELOW) if is_object(ours) else None
    found: list[ChildRecord] = []
    if is_object(kept) and kept.get("thread") == str(thread.entity_id) and is_list(turns := kept.get("turns")):
        for child in turns:
            with suppress(ValueError):  # others may have stored anything there
                found.append(ChildRecord.load(child))
    return tuple(found)


def find_entry(state: ThreadState, kind: str, turn: str) -> Json | None:
    """The stored entry of a turn, sought from the end: it is nearly always the latest."""
    for raw in reversed(state.history):
        if is_entry(raw, kind, turn):
            return raw
    return None


def among(requests: Iterable[Waits], turn: str) -> Waits | None:
    """Find the request or the place of a turn among those that wait."""
    return next((request for request in requests if request.correlation_id == turn), None)
