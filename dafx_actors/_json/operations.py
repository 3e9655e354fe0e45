"""What a thread is told, and what it says: the messages of its operations, and their outcomes.

Anybody who reaches the scheduler can send a thread anything. What is not as it should be is refused where it is read,
as a `ValueError` that says what is wrong, before anything is stored that would break the thread later.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, ClassVar, Literal, Protocol, TypeAlias, TypeVar

import attrs

from dafx_actors._json.books import CancelMark, ChildRecord, DecisionRecord, Place, QuestionRecord, Remains, Resumed
from dafx_actors._json.crossing import dump_error, error_in
from dafx_actors._json.messages import dump_message, dump_usage, load_messages, load_usage
from dafx_actors._json.requests import dump_request, load_request, request_digest
from dafx_actors._json.shapes import (
    as_list,
    as_object,
    as_text,
    as_whole_number,
    check_texts,
    load_time,
    object_in,
    text_or_none,
)
from dafx_actors._json.steps import Settings
from dafx_actors._shown import Shown
from dafx_actors.errors import DafxError
from dafx_actors.exchange import RunRequest
from dafx_actors.ids import AgentThread
from dafx_actors.transcript import ChatMessage, Json, UsageStats

T = TypeVar("T")

ANY_TIME = -1
"""In place of the number of times that a turn was taken up again: whoever sends the message does not know it."""


# --- What a thread is told ----------------------------------------------------------------------------------------


class ToThread(Protocol):
    """What a thread is told by one of its operations."""

    operation: ClassVar[str]

    def dump(self) -> dict[str, Json]:
        """The message as JSON."""
        ...


class Message(ToThread, Protocol):
    """What a thread is told of a turn."""

    @property
    def turn(self) -> str:
        """The turn that it is about."""
        ...


def _field(raw: Json, name: str, load: Callable[[Json], T]) -> T:
    """A field that must be there.

    Raises:
        ValueError: It is missing, or `load` says that it is something else.
    """
    try:
        return load(as_object(raw).get(name))
    except ValueError as error:
        raise ValueError(f"`{name}` of what the thread was told: {error}") from error


def _field_or_none(raw: Json, name: str, load: Callable[[Json], T]) -> T | None:
    """A field that may be missing, or null.

    Raises:
        ValueError: `load` says that it is something else.
    """
    return None if as_object(raw).get(name) is None else _field(raw, name, load)


def _turn(raw: Json) -> str:
    return _field(raw, "correlationId", as_text)


def _retry(raw: Json) -> int:
    """How often the turn had been taken up again that sent a message; versions that could not do so do not say."""
    return _field_or_none(raw, "retry", _as_retry) or 0


def _as_retry(raw: Json) -> int:
    return ANY_TIME if raw == ANY_TIME else as_whole_number(raw)


def turn_in(raw: Json) -> str:
    """The turn that any message is about.

    Raises:
        ValueError: It names none.
    """
    return _turn(raw)


@attrs.frozen(repr=False)
class Begin(Shown):
    """A turn asks for its thread, and brings its request."""

    operation: ClassVar[str] = "begin"
    request: RunRequest
    retry: int = 0
    """How often the turn was taken up again after it had failed, with this time."""

    @property
    def turn(self) -> str:
        """The turn that asks."""
        return self.request.correlation_id

    def dump(self) -> dict[str, Json]:
        """The request, as it travels."""
        return {**dump_request(self.request), **({"retry": self.retry} if self.retry else {})}


@attrs.frozen(repr=False)
class Ask(Shown):
    """A turn that has brought its request before asks how it stands.

    Versions that do not know this form of `begin` refuse it, as a request without a message; then the whole request is
    sent.
    """

    operation: ClassVar[str] = "begin"
    place: Place

    @property
    def turn(self) -> str:
        """The turn that asks."""
        return self.place.correlation_id

    def dump(self) -> dict[str, Json]:
        """The place, and no message."""
        return {**self.place.dump(), "messages": []}


def place_of(request: RunRequest, retry: int = 0) -> Place:
    """What is kept of a request that waits; `retry` is how often its turn was taken up again."""
    return Place(request.correlation_id, request_digest(request.messages, request.response_schema), retry)


def load_begin(raw: Json) -> Begin | Ask:
    """Read what `begin` is told: an object, and not its text as in the peer's `run`.

    Raises:
        ValueError: It is something else.
    """
    told = as_object(raw)
    retry = _retry(raw)
    if told.get("messages") == [] and told.get("digest") is not None:
        return Ask(Place(_turn(raw), _field(raw, "digest", as_text), retry))
    return Begin(load_request(told), retry)


@attrs.frozen(kw_only=True, repr=False)
class Record(Shown):
    """The active turn adds to what the thread keeps of it."""

    operation: ClassVar[str] = "record"
    turn: str
    length: int
    """Of the thread, as the turn knows it, so that a repeat adds nothing."""
    messages: tuple[ChatMessage, ...] = ()
    questions: tuple[QuestionRecord, ...] = ()
    children: tuple[ChildRecord, ...] = ()
    retry: int = 0
    """How often the turn was taken up again: what was left over from before does nothing."""
    told: bool = False
    """Whether nobody waits for the reply: a step was asked for at the same time, and looks whether this is there."""

    def dump(self) -> dict[str, Json]:
        """The message as JSON."""
        return {
            "correlationId": self.turn,
            "length": self.length,
            "messages": [dump_message(message) for message in self.messages],
            **({"asks": [question.raw for question in self.questions]} if self.questions else {}),
            **({"children": [child.raw for child in self.children]} if self.children else {}),
            **({"retry": self.retry} if self.retry else {}),
            **({"told": True} if self.told else {}),
        }

    @classmethod
    def load(cls, raw: Json) -> Record:
        """Read it.

        Raises:
            ValueError: It is something else.
        """
        return cls(
            turn=_turn(raw),
            messages=_field(raw, "messages", load_messages),
            length=_field(raw, "length", as_whole_number),
            questions=tuple(map(QuestionRecord.load, _field_or_none(raw, "asks", as_list) or ())),
            children=tuple(map(ChildRecord.load, _field_or_none(raw, "children", as_list) or ())),
            retry=_retry(raw),
            told=bool(as_object(raw).get("told")),
        )


@attrs.frozen(kw_only=True, repr=False)
class Commit(Shown):
    """A turn ends with an answer."""

    operation: ClassVar[str] = "commit"
    turn: str
    messages: tuple[ChatMessage, ...]
    usage: UsageStats | None = None
    length: int | None = None
    """As with `Record`."""
    last: bool = False
    """Whether the turn may not go on: it is at its limit."""
    whole: bool = False
    """Whether `messages` are all that the turn gave, as somebody else knows who found it completed."""
    about: Mapping[str, Json] | None = None
    """What the response says of how it came about, under `dafx`."""
    retry: int = 0
    """As with `Record`; or `ANY_TIME`."""

    def dump(self) -> dict[str, Json]:
        """The message as JSON."""
        return {
            "correlationId": self.turn,
            **({} if self.length is None else {"length": self.length}),
            "messages": [dump_message(message) for message in self.messages],
            "usage": dump_usage(self.usage) if self.usage else None,
            "about": None if self.about is None else dict(self.about),
            **({"last": True} if self.last else {}),
            **({"whole": True} if self.whole else {}),
            **({"retry": self.retry} if self.retry else {}),
        }

    @classmethod
    def load(cls, raw: Json) -> Commit:
        """Read it.

        Raises:
            ValueError: It is something else.
        """
        return cls(
            turn=_turn(raw),
            messages=_field(raw, "messages", load_messages),
            usage=_field_or_none(raw, "usage", load_usage),
            length=_field_or_none(raw, "length", as_whole_number),
            last=_field_or_none(raw, "last", bool) or False,
            whole=_field_or_none(raw, "whole", bool) or False,
            about=_field_or_none(raw, "about", as_object),
            retry=_retry(raw),
        )

    @classmethod
    def of_found(cls, turn: str, response: Json) -> Commit:
        """The end of a turn that somebody else found completed, with its stored response."""
        found = as_object(response)
        return cls(
            turn=turn,
            messages=load_messages(found["messages"]),
            usage=load_usage(found["usage"]) if found.get("usage") else None,
            whole=True,
            about=found.get("dafx"),
            retry=ANY_TIME,
        )


@attrs.frozen(kw_only=True, repr=False)
class Abort(Shown):
    """A turn ends without an answer."""

    operation: ClassVar[str] = "abort"
    turn: str
    error: DafxError
    messages: tuple[ChatMessage, ...] = ()
    """What the turn had not recorded."""
    usage: UsageStats | None = None
    about: Mapping[str, Json] | None = None
    """As with `Commit`."""
    request: RunRequest | None = None
    """Of a turn that waits in line, for the transcript."""
    retry: int = 0
    """As with `Commit`."""

    def dump(self) -> dict[str, Json]:
        """The message as JSON."""
        return {
            "correlationId": self.turn,
            "error": dump_error(self.error),
            "messages": [dump_message(message) for message in self.messages],
            "usage": dump_usage(self.usage) if self.usage else None,
            "about": None if self.about is None else dict(self.about),
            **({} if self.request is None else {"request": dump_request(self.request)}),
            **({"retry": self.retry} if self.retry else {}),
        }

    @classmethod
    def load(cls, raw: Json, thread: AgentThread) -> Abort:
        """Read what a thread is told.

        Raises:
            ValueError: It is something else.
        """
        turn = _turn(raw)
        return cls(
            turn=turn,
            error=error_in(_field(raw, "error", as_object), thread, turn),
            messages=_field_or_none(raw, "messages", load_messages) or (),
            usage=_field_or_none(raw, "usage", load_usage),
            about=_field_or_none(raw, "about", as_object),
            request=_field_or_none(raw, "request", load_request),
            retry=_retry(raw),
        )


@attrs.frozen(kw_only=True, repr=False)
class Cancel(Shown):
    """Somebody cancels a turn."""

    operation: ClassVar[str] = "cancel"
    turn: str
    mark: CancelMark
    retry: int = 0
    """How often the turn was taken up again, as whoever cancels it knows."""

    def dump(self) -> dict[str, Json]:
        """The message as JSON."""
        retry = {"retry": self.retry} if self.retry else {}
        return {"correlationId": self.turn, "mark": dict(self.mark.raw), **retry}

    @classmethod
    def load(cls, raw: Json) -> Cancel:
        """Read it.

        Raises:
            ValueError: It is something else.
        """
        return cls(
            turn=_turn(raw),
            mark=_field(raw, "mark", CancelMark.load),
            retry=_retry(raw),
        )


@attrs.frozen(kw_only=True, repr=False)
class Decide(Shown):
    """Somebody decides about a question of a turn."""

    operation: ClassVar[str] = "decide"
    turn: str
    """Empty: the turn that is active when this arrives. The key tells calls of different turns apart."""
    key: str
    """Of the question."""
    digest: str
    """Of the call that whoever decided has seen. Empty: whatever call has the key when this arrives."""
    decision: DecisionRecord

    @property
    def timeless(self) -> dict[str, Json]:
        """All that is told, without the time at which it was: the same where somebody decides the same again."""
        decision = {name: value for name, value in self.decision.raw.items() if name != "at"}
        return {**self.dump(), "decision": decision}

    def dump(self) -> dict[str, Json]:
        """The message as JSON."""
        decision = dict(self.decision.raw)
        return {"correlationId": self.turn, "key": self.key, "digest": self.digest, "decision": decision}

    @classmethod
    def load(cls, raw: Json) -> Decide:
        """Read it.

        Raises:
            ValueError: It is something else.
        """
        return cls(
            decision=_field(raw, "decision", DecisionRecord.load),
            key=_field(raw, "key", as_text),
            digest=_field(raw, "digest", as_text),
            turn=_turn(raw),
        )


@attrs.frozen(kw_only=True, repr=False)
class ReadDecision(Shown):
    """A turn asks what is on record about one of its questions."""

    operation: ClassVar[str] = "decision"
    turn: str
    key: str

    def dump(self) -> dict[str, Json]:
        """The message as JSON."""
        return {"correlationId": self.turn, "key": self.key}

    @classmethod
    def load(cls, raw: Json) -> ReadDecision:
        """Read it.

        Raises:
            ValueError: It is something else.
        """
        return cls(turn=_turn(raw), key=_field(raw, "key", as_text))


@attrs.frozen(kw_only=True, repr=False)
class Attempt(Shown):
    """A step is about to make a call that may act only once."""

    operation: ClassVar[str] = "attempt"
    turn: str
    key: str
    """Of the call."""
    number: int
    token: str
    """Names the step."""
    retry: int = 0
    """How often the turn was taken up again, as the step knows it."""

    def dump(self) -> dict[str, Json]:
        """The message as JSON."""
        retry = {"retry": self.retry} if self.retry else {}
        return {"correlationId": self.turn, "key": self.key, "number": self.number, "token": self.token, **retry}

    @classmethod
    def load(cls, raw: Json) -> Attempt:
        """Read it.

        Raises:
            ValueError: It is something else.
        """
        return cls(
            number=_field(raw, "number", as_whole_number),
            token=_field(raw, "token", as_text),
            turn=_turn(raw),
            key=_field(raw, "key", as_text),
            retry=_retry(raw),
        )


@attrs.frozen(kw_only=True, repr=False)
class GiveUp(Shown):
    """A turn gives up an attempt of a call, and those before it, since no worker has the tool."""

    operation: ClassVar[str] = "giveUp"
    turn: str
    key: str
    """Of the call."""
    number: int

    def dump(self) -> dict[str, Json]:
        """The message as JSON."""
        return {"correlationId": self.turn, "key": self.key, "number": self.number}

    @classmethod
    def load(cls, raw: Json) -> GiveUp:
        """Read it.

        Raises:
            ValueError: It is something else.
        """
        return cls(turn=_turn(raw), key=_field(raw, "key", as_text), number=_field(raw, "number", as_whole_number))


@attrs.frozen(kw_only=True, repr=False)
class Note(Shown):
    """A tool reports how far it is."""

    operation: ClassVar[str] = "note"
    turn: str
    key: str
    """Of the call."""
    progress: Json

    def dump(self) -> dict[str, Json]:
        """The message as JSON."""
        return {"correlationId": self.turn, "key": self.key, "progress": self.progress}

    @classmethod
    def load(cls, raw: Json) -> Note:
        """Read it.

        Raises:
            ValueError: It is something else.
        """
        return cls(turn=_turn(raw), key=_field(raw, "key", as_text), progress=as_object(raw).get("progress"))


@attrs.frozen(kw_only=True, repr=False)
class Clear(Shown):
    """A thread is to end its turns, and then to forget what was said in it."""

    operation: ClassVar[str] = "clear"
    mark: CancelMark
    """With which its turns end."""
    deletes: bool
    """Whether nothing of it is to stay. Else what is kept of the thread itself stays."""
    ended: tuple[str, ...] = ()
    """Turns whose orchestrations have ended, or are not there: none of them can be heard of any more."""

    def dump(self) -> dict[str, Json]:
        """The message as JSON."""
        return {"mark": dict(self.mark.raw), "deletes": self.deletes, "ended": list(self.ended)}

    @classmethod
    def load(cls, raw: Json) -> Clear:
        """Read it.

        Raises:
            ValueError: It is something else.
        """
        return cls(
            mark=_field(raw, "mark", CancelMark.load),
            deletes=_field_or_none(raw, "deletes", bool) or False,
            ended=tuple(map(as_text, _field_or_none(raw, "ended", as_list) or ())),
        )


@attrs.frozen(kw_only=True, repr=False)
class Sweep(Shown):
    """What there was still of a conversation that a thread has forgotten is gone."""

    operation: ClassVar[str] = "sweep"
    remains: Remains
    deletes: bool
    """As with `Clear`."""

    def dump(self) -> dict[str, Json]:
        """The message as JSON."""
        return {"remains": self.remains.dump(), "deletes": self.deletes}

    @classmethod
    def load(cls, raw: Json) -> Sweep:
        """Read it.

        Raises:
            ValueError: It is something else.
        """
        return cls(remains=_field(raw, "remains", Remains.load), deletes=_field_or_none(raw, "deletes", bool) or False)


@attrs.frozen(kw_only=True, repr=False)
class Import(Shown):
    """A thread is to take over a transcript."""

    operation: ClassVar[str] = "import"
    entries: tuple[Json, ...]
    """As they are stored."""
    document: Mapping[str, Json]
    """The stored thread without its entries."""

    def dump(self) -> dict[str, Json]:
        """The message as JSON."""
        return {"entries": list(self.entries), "document": dict(self.document)}

    @classmethod
    def load(cls, raw: Json) -> Import:
        """Read it.

        Raises:
            ValueError: It is something else.
        """
        entries = _field(raw, "entries", as_list)
        document = _field(raw, "document", lambda document: check_without_entries(as_object(document)))
        return cls(entries=tuple(map(as_object, entries)), document=document)


def check_without_entries(document: Mapping[str, Json]) -> Mapping[str, Json]:
    """See that this is what is stored of a thread beside its entries and its turns.

    Raises:
        ValueError: They are in it.
    """
    if {"conversationHistory", "dafx"} & object_in(document.get("data")).keys():
        raise ValueError("`document` has entries, or turns that run; entries stand for themselves")
    return document


# --- What it says -------------------------------------------------------------------------------------------------


@attrs.frozen(repr=False)
class Granted(Shown):
    """The turn is active, and goes on."""

    length: int
    """Of the thread, up to the turn's request and with its draft; see `ThreadState.length`."""
    cancelled: tuple[str, ...] = ()
    """As with `Queued`, where a turn asks again and is active by now."""
    resumed: Resumed | None = None
    """To `begin`: how far the turn had come, where it was taken up again."""
    beside: str | None = None
    """To `begin`: the turn that waits for a person, where this one goes on beside it."""
    next_id: str | None = None
    """To `record`: the turn that may begin beside this one now, and does not know it yet."""


@attrs.frozen(repr=False)
class Queued(Shown):
    """The turn waits."""

    active: str
    """For this one."""
    cancelled: tuple[str, ...] = ()
    """Turns that are cancelled, and may not know it: whoever cancelled them may have died before it told them."""


@attrs.frozen(repr=False)
class Wanted(Shown):
    """The turn is to bring its request: it may have the thread, or the thread does not know it."""


@attrs.frozen(repr=False)
class Ended(Shown):
    """The turn has ended."""

    response: Json
    """Its stored `Response`."""
    next_id: str | None = None
    """The turn that may have the thread now, and does not know it yet."""
    joined: tuple[str, ...] = ()
    """Turns that have ended with it, which do not know it yet."""


@attrs.frozen(repr=False)
class Cancelled(Shown):
    """The turn is marked; from here on none of its tools begins to act."""

    turn: str
    """The one that is marked: that which the request became part of, where it did."""
    mark: CancelMark


@attrs.frozen(kw_only=True, repr=False)
class CallDecided(Shown):
    """The call that a decision counts for."""

    turn: str
    tool: str
    arguments: Mapping[str, Json]
    """What it is made with: the decision's own, where it has some."""
    note: str = ""
    """What a new version of the agent has against it."""

    def dump(self) -> dict[str, Json]:
        """The call as JSON."""
        note = {"note": self.note} if self.note else {}
        return {"correlationId": self.turn, "tool": self.tool, "arguments": dict(self.arguments), **note}

    @classmethod
    def load(cls, raw: Json) -> CallDecided:
        """Read the call.

        Raises:
            ValueError: It is something else.
        """
        check_texts(call := as_object(raw), "correlationId", "tool")
        return cls(
            turn=call["correlationId"],
            tool=call["tool"],
            arguments=as_object(call.get("arguments")),
            note=text_or_none(call, "note") or "",
        )


@attrs.frozen(repr=False)
class Decided(Shown):
    """The decision is on record."""

    decision: DecisionRecord
    """The one that counts: of two at a time, the first."""
    about: CallDecided | None = None
    """The call, for a person who has decided; versions before this field do not tell it."""


@attrs.frozen(repr=False)
class Attempted(Shown):
    """Whether a call that may act only once may be made now."""

    answer: Literal["go", "unknown", "stop"]
    """`unknown`: somebody began to make it before, and nobody knows how that ended. `stop`: the turn is over."""
    since: str | None = None
    """With `unknown`: when that began, as ISO 8601 text."""

    @property
    def began_at(self) -> datetime | None:
        """With `unknown`: when somebody began to make the call."""
        return load_time(self.since) if self.since else None


@attrs.frozen(repr=False)
class GivenUp(Shown):
    """The call is given up; from here on no step makes it."""

    begun: bool
    """Whether a step had put on record that it makes it; only calls that may act once are recorded so."""


@attrs.frozen(repr=False)
class Clearing(Shown):
    """Turns of the thread are cancelled. It forgets what was said once they have ended."""

    turns: tuple[str, ...]
    """Those whose orchestrations are to be waited for."""


@attrs.frozen(repr=False)
class Cleared(Shown):
    """The thread has forgotten what was said."""

    remains: Remains
    """What is to be deleted now."""


@attrs.frozen(repr=False)
class Noted(Shown):
    """What was told was kept, or was of no interest any more."""


@attrs.frozen(repr=False)
class Refused(Shown):
    """Nothing was changed."""

    error: DafxError


Outcome: TypeAlias = (
    Granted | Queued | Wanted | Ended | Cancelled | Decided | Attempted | GivenUp | Clearing | Cleared | Noted | Refused
)


@attrs.frozen(kw_only=True, repr=False)
class Reply(Shown):
    """What an operation gives its caller: the outcome, and what the worker says beside it."""

    outcome: Outcome
    cache_token: str | None = None
    """Under which the worker keeps what was stored, for the turn's next step."""
    settings: Settings | None = None
    """Of the agent, with `begin`."""

    def dump(self) -> Json:
        """The reply as JSON; null where there is nothing to say."""
        said = dump_outcome(self.outcome)
        if self.cache_token is None and self.settings is None:
            return said
        return {
            **said,
            **({"state": self.cache_token} if self.cache_token else {}),
            **({"settings": self.settings.dump()} if self.settings else {}),
        }

    @classmethod
    def load(cls, raw: Json, thread: AgentThread, turn: str | None = None) -> Reply:
        """Read the reply of a thread, to what it was told of a turn."""
        said = object_in(raw)
        settings = Settings.load(said["settings"]) if said.get("settings") else None
        return cls(outcome=load_outcome(said, thread, turn), cache_token=said.get("state"), settings=settings)


def dump_outcome(outcome: Outcome) -> Json:
    """An outcome as JSON; null where there is nothing to say."""
    return _DUMPS[type(outcome)](outcome)


_DUMPS: Mapping[type[Any], Callable[[Any], Json]] = {
    Granted: lambda outcome: {
        "granted": outcome.length,
        **({"cancelled": list(outcome.cancelled)} if outcome.cancelled else {}),
        **({"resumed": outcome.resumed.dump()} if outcome.resumed else {}),
        **({"beside": outcome.beside} if outcome.beside else {}),
        **({"next": outcome.next_id} if outcome.next_id else {}),
    },
    Queued: lambda outcome: {"queued": outcome.active, "cancelled": list(outcome.cancelled)},
    Wanted: lambda _: {"wanted": True},
    Ended: lambda outcome: {"ended": outcome.response, "next": outcome.next_id, "joined": list(outcome.joined)},
    Cancelled: lambda outcome: {"cancelled": dict(outcome.mark.raw), "turn": outcome.turn},
    Decided: lambda outcome: {
        "decided": outcome.decision.raw,
        **({"about": outcome.about.dump()} if outcome.about else {}),
    },
    Attempted: lambda outcome: {"attempt": outcome.answer, "since": outcome.since},
    GivenUp: lambda outcome: {"givenUp": True, "begun": outcome.begun},
    Clearing: lambda outcome: {"clearing": list(outcome.turns)},
    Cleared: lambda outcome: {"remains": outcome.remains.dump()},
    Noted: lambda _: None,
    Refused: lambda outcome: {"error": dump_error(outcome.error)},
}


def load_outcome(raw: Json, thread: AgentThread, turn: str | None = None) -> Outcome:
    """Read an outcome; what this version does not know says nothing to it, and is `Noted`.

    Args:
        raw: The outcome as JSON.
        thread: Whose it is.
        turn: What the thread was told of.
    """
    said = object_in(raw)
    if "error" in said:
        return Refused(error_in(said["error"], thread, turn))
    if "ended" in said:  # before all else: earlier versions said `granted` beside it
        return Ended(said["ended"], said.get("next"), tuple(said.get("joined") or ()))
    if "granted" in said:
        return Granted(
            said["granted"],
            tuple(said.get("cancelled") or ()),
            Resumed.load(said.get("resumed")),
            said.get("beside"),
            said.get("next"),
        )
    if "queued" in said:
        return Queued(said["queued"], tuple(said.get("cancelled") or ()))
    if "wanted" in said:
        return Wanted()
    if "cancelled" in said:
        return Cancelled(said["turn"], CancelMark.load(said["cancelled"]))
    if "decided" in said:
        about = said.get("about")
        return Decided(DecisionRecord(said["decided"]), None if about is None else CallDecided.load(about))
    if "attempt" in said:
        return Attempted(said["attempt"], said.get("since"))
    if "clearing" in said:
        return Clearing(tuple(said["clearing"]))
    if "remains" in said:
        return Cleared(Remains.load(said["remains"]))
    return GivenUp(bool(said.get("begun"))) if said.get("givenUp") else Noted()


def with_error_only(aborted: Ended) -> Ended:
    """The end of a turn that failed, with no more of its response than the error.

    That is all that the turn needs, and the thread may be as large as can be sent.
    """
    ended = object_in(aborted.response)
    telling = [each for each in as_list(ended.get("messages") or []) if _tells_an_error(as_object(each))]
    return attrs.evolve(aborted, response={**ended, "messages": telling}) if telling else aborted


def _tells_an_error(message: Mapping[str, Json]) -> bool:
    return any(as_object(content).get("$type") == "error" for content in as_list(message.get("contents") or []))


# --- What a thread is told through an orchestration ---------------------------------------------------------------


LOST = "lost"
"""Stands in the place of an operation: the turn of a `Cancel` has lost its thread. No thread has an operation of this
name; a worker of an earlier version fails, and the turn does not hear of it."""


@attrs.frozen(repr=False)
class Telling(Shown):
    """The input of the orchestration by which clients and steps tell a thread something, and hear what it says."""

    thread_id: str
    operation: str
    input: Json

    @classmethod
    def of(cls, thread: AgentThread, message: ToThread) -> Telling:
        """Tell this thread this."""
        return cls(thread.thread_id, message.operation, message.dump())

    @classmethod
    def lost(cls, thread: AgentThread, cancelled: Cancelled) -> Telling:
        """Tell a turn that its thread has forgotten it. The thread is told nothing."""
        return cls(thread.thread_id, LOST, Cancel(turn=cancelled.turn, mark=cancelled.mark).dump())

    def dump(self) -> dict[str, Json]:
        """The input as JSON."""
        return {"thread": self.thread_id, "operation": self.operation, "input": self.input}

    @classmethod
    def load(cls, raw: Json) -> Telling:
        """Read the input. Anybody can start such an orchestration.

        Raises:
            ValueError: It is something else.
        """
        sent = as_object(raw)
        return cls(as_text(sent.get("thread")), as_text(sent.get("operation")), sent.get("input"))
