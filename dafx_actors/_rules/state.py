"""What a thread keeps, as it is stored, and what it can say to a message; the rules are in `_thread.py`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias

import attrs

from dafx_actors._json import messages as _codec
from dafx_actors.errors import InvalidThreadId, TurnError
from dafx_actors.exchange import RunRequest
from dafx_actors.transcript import ChatMessage, Json


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
    given_up: Mapping[str, int] = attrs.field(factory=dict[str, int])
    """The attempts of calls that are not to be made any more; see `_given_up`."""
    joined: tuple[str, ...] = ()
    """Correlation ids of the requests that became part of the turn."""


@attrs.frozen
class Place:
    """A request's place in the line. Its text stays with its turn, which brings it when the place is the first."""

    correlation_id: str
    digest: str
    """Of what it asks; see `_codec.digest`."""


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
    waiting: tuple[Place, ...] = ()
    """Requests that wait for the turns before them, oldest first; the first may have an idle one."""
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
            own = (n for n, raw in enumerate(reversed(self.history)) if is_entry(raw, "request", self.active))
            behind = next(own, 0)
        return len(self.history) - behind + len(self.draft)


@attrs.frozen
class Granted:
    """The turn is active, and goes on."""

    length: int
    """Of the thread, up to the turn's request and with its draft; see `ThreadState.length`."""
    cancelled: tuple[str, ...] = ()
    """As with `Queued`, where a turn asks again and is active by now."""


@attrs.frozen
class Queued:
    """The turn waits."""

    active: str
    """For this one."""
    cancelled: tuple[str, ...] = ()
    """Turns that are cancelled, and may not know it: whoever cancelled them may have died before it told them."""


@attrs.frozen
class Wanted:
    """The turn is to bring its request: it may have the thread, or the thread does not know it."""


@attrs.frozen
class Ended:
    """The turn has ended."""

    response: Json
    """Its stored `Response`."""
    next_id: str | None = None
    """The turn that may have the thread now, and does not know it yet."""
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
    since: str | None = None
    """With `unknown`: when that began."""


@attrs.frozen
class GivenUp:
    """The call is given up; from here on no step makes it."""

    begun: bool
    """Whether a step had put on record that it makes it; only calls that may act once are recorded so."""


@attrs.frozen
class Noted:
    """It was kept, or was of no interest any more."""


@attrs.frozen
class Refused:
    """Nothing was changed."""

    error: TurnError | InvalidThreadId


Outcome: TypeAlias = Granted | Queued | Wanted | Ended | Cancelled | Decided | Attempted | GivenUp | Noted | Refused


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
            given_up=ours.given_up,
            joined=ours.joined,
        ),
        waiting=_line(ours),
        steered=ours.steered,
        cancelled=ours.cancelled,
        document=document or {},
    )


def place_of(request: RunRequest) -> Place:
    """What is kept of a request that waits."""
    return Place(request.correlation_id, _codec.digest(request.messages, request.response_schema))


def _line(ours: _codec.Unfinished) -> tuple[Place, ...]:
    """Who waits, once each.

    Versions before this one kept whole requests, in another field: they do not see the line, and take whoever of it
    asks first. So one that is in the line may be active, or be among those that they let wait.
    """
    places = (*map(place_of, ours.waiting), *(Place(raw["correlationId"], raw["digest"]) for raw in ours.line))
    elsewhere = {ours.active, *ours.joined, *(request.correlation_id for request in ours.steered)}
    found: dict[str, Place] = {}
    for place in places:
        if place.correlation_id not in elsewhere:
            found.setdefault(place.correlation_id, place)
    return tuple(found.values())


def dump(state: ThreadState) -> dict[str, Json]:
    """A thread as it is stored; `data.dafx` is there only while a turn has not ended."""
    data: Mapping[str, Json] = state.document.get("data", {})
    known: dict[str, Json] = {
        "active": state.active,
        "draft": [_codec.dump_message(message) for message in state.draft],
        "waiting": [],
        "line": [{"correlationId": place.correlation_id, "digest": place.digest} for place in state.waiting],
        "steered": [_codec.dump_request(request) for request in state.steered],
        "cancelled": dict(state.cancelled),
        "asks": dict(state.books.asks),
        "attempts": dict(state.books.attempts),
        "children": dict(state.books.children),
        "progress": dict(state.books.progress),
        "givenUp": dict(state.books.given_up),
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


def is_entry(raw: Json, kind: str, turn: str) -> bool:
    """Whether a stored entry is the request or the response of a turn."""
    return (raw.get("correlationId"), raw.get("$type")) == (turn, kind)
