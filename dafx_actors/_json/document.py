"""A thread as it is stored: its version, its entries, and what of it has not ended."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar, cast

import attrs

from dafx_actors._json.books import AttemptRecord, CancelMark, ChildRecord, Place, QuestionRecord, Remains, Resumed
from dafx_actors._json.messages import dump_message, load_entry, load_messages
from dafx_actors._json.requests import dump_request, load_request
from dafx_actors._json.shapes import as_list, as_object, as_text, as_whole_number, object_in, or_default, text_or_none
from dafx_actors.decisions import PendingApproval, PendingOutcome
from dafx_actors.errors import UnsupportedTranscript
from dafx_actors.exchange import RunRequest
from dafx_actors.ids import AgentThread
from dafx_actors.transcript import ChatMessage, Entry, Json, Transcript

T = TypeVar("T")

SCHEMA_VERSION = "1.1.0"
"""The version of the stored form that is written, and the newest that is understood in full."""


def check_document(document: Json) -> Mapping[str, Json]:
    """The `data` of a stored thread, after its version was checked; `{}` where there is no thread yet.

    Raises:
        UnsupportedTranscript: A newer major version, or not a thread at all.
    """
    if document is None:
        return {}
    version = as_object(document).get("schemaVersion") if isinstance(document, Mapping) else None
    if not isinstance(version, str) or not re.fullmatch(r"\d{1,9}\.\d+\.\d+", version):
        raise UnsupportedTranscript(f"schemaVersion is {version!r}", SCHEMA_VERSION)
    if int(version.split(".")[0]) > int(SCHEMA_VERSION.split(".")[0]):
        raise UnsupportedTranscript(f"schemaVersion {version}", SCHEMA_VERSION)
    data: Json = as_object(document).get("data")
    history: Json = as_object(data).get("conversationHistory", []) if isinstance(data, Mapping) else None
    if not isinstance(history, list) or not all(isinstance(entry, Mapping) for entry in cast("list[Json]", history)):
        raise UnsupportedTranscript("`data.conversationHistory` is not a list of objects", SCHEMA_VERSION)
    return as_object(data)


@attrs.frozen(kw_only=True)
class UnfinishedBeside:
    """`data.dafx.beside`: a turn that goes on beside the active one, which waits for a person."""

    turn: str
    draft: tuple[ChatMessage, ...]
    progress: Mapping[str, Json]
    given_up: Mapping[str, int]

    @classmethod
    def load(cls, raw: Json) -> UnfinishedBeside | None:
        """Read it; None where there is none.

        Raises:
            ValueError: It is something else.
        """
        if not raw:
            return None
        beside = as_object(raw)
        return cls(
            turn=as_text(beside.get("correlationId")),
            draft=load_messages(or_default(beside.get("draft"), [])),
            progress=as_object(or_default(beside.get("progress"), {})),
            given_up=_each(beside, "givenUp", as_whole_number),
        )

    def dump(self) -> dict[str, Json]:
        """As it is stored."""
        return {
            "correlationId": self.turn,
            "draft": [dump_message(message) for message in self.draft],
            **({"progress": dict(self.progress)} if self.progress else {}),
            **({"givenUp": dict(self.given_up)} if self.given_up else {}),
        }


@attrs.frozen(kw_only=True)
class Unfinished:
    """`data.dafx`: the turns of a thread that have not ended, and what there is still of what it has forgotten."""

    active: str | None
    draft: tuple[ChatMessage, ...]
    waiting: tuple[RunRequest, ...]
    """As versions before `line` kept it: requests as a whole."""
    line: tuple[Place, ...]
    steered: tuple[RunRequest, ...]
    joined: tuple[str, ...]
    cancelled: Mapping[str, CancelMark]
    asks: Mapping[str, QuestionRecord]
    attempts: Mapping[str, AttemptRecord]
    children: Mapping[str, ChildRecord]
    progress: Mapping[str, Json]
    given_up: Mapping[str, int]
    resumed: Resumed | None
    beside: UnfinishedBeside | None
    remains: Remains


def load_unfinished(data: Mapping[str, Json]) -> Unfinished:
    """Read `data.dafx` of a stored thread; there is none while no turn runs.

    Raises:
        UnsupportedTranscript: It is broken. Only this package writes it, so it is not guessed at.
    """
    try:
        ours = as_object(or_default(data.get("dafx"), {}))
        return Unfinished(
            active=text_or_none(ours, "active") or None,
            draft=load_messages(or_default(ours.get("draft"), [])),
            waiting=tuple(load_request(raw) for raw in as_list(or_default(ours.get("waiting"), []))),
            line=tuple(Place.load(raw) for raw in as_list(or_default(ours.get("line"), []))),
            steered=tuple(load_request(raw) for raw in as_list(or_default(ours.get("steered"), []))),
            joined=tuple(as_text(turn) for turn in as_list(or_default(ours.get("joined"), []))),
            cancelled=_each(ours, "cancelled", CancelMark.load),
            asks=_each(ours, "asks", QuestionRecord.load),
            attempts=_each(ours, "attempts", AttemptRecord.load),
            children=_each(ours, "children", ChildRecord.load),
            progress=as_object(or_default(ours.get("progress"), {})),
            given_up=_each(ours, "givenUp", as_whole_number),
            resumed=Resumed.load(ours.get("resumed")),
            beside=UnfinishedBeside.load(ours.get("beside")),
            remains=Remains.load(or_default(ours.get("remains"), {})),
        )
    except ValueError as error:
        raise UnsupportedTranscript(f"`data.dafx` is broken: {error}", SCHEMA_VERSION) from error


def _each(ours: Mapping[str, Json], field: str, check: Callable[[Json], T]) -> Mapping[str, T]:
    return {key: check(raw) for key, raw in as_object(or_default(ours.get(field), {})).items()}


@attrs.frozen(kw_only=True)
class Outline:
    """What a client is shown of a thread that works on a turn; nothing of it is checked, and no message is read."""

    active: str | None
    """The correlation id of the turn that runs."""
    is_cancelled: bool
    questions: tuple[QuestionRecord, ...]
    children: tuple[ChildRecord, ...]
    progress: Mapping[str, Mapping[str, Json]]
    """What tools have reported last, by turns and by the keys of their calls."""
    line: tuple[str, ...]
    """The turns that wait, and those that will join the one that runs."""

    @classmethod
    def of(cls, document: Json) -> Outline:
        """Read what is stored of a thread, or null."""
        ours = object_in(object_in(object_in(document).get("data")).get("dafx"))
        active: str | None = ours.get("active")
        beside = object_in(ours.get("beside"))
        return cls(
            active=active,
            is_cancelled=active in object_in(ours.get("cancelled")),
            questions=tuple(map(QuestionRecord, object_in(ours.get("asks")).values())),
            children=tuple(map(ChildRecord, object_in(ours.get("children")).values())),
            progress={
                str(active): object_in(ours.get("progress")),
                str(beside.get("correlationId")): object_in(beside.get("progress")),
            },
            line=tuple(
                str(object_in(each).get("correlationId"))
                for field in ("line", "steered", "waiting")
                for each in as_list(or_default(ours.get(field), []))
            ),
        )

    def asked_by(self, turn: str, thread: AgentThread) -> tuple[PendingApproval | PendingOutcome, ...]:
        """The questions of a turn that wait for a person; none where it is not the one that runs, or was cancelled."""
        if self.active != turn or self.is_cancelled:
            return ()
        return tuple(each.pending(thread, turn) for each in self.questions if each.decision is None)


def response_in(document: Json, correlation_id: str) -> Json:
    """The stored response of a turn, or None where it has not ended.

    Raises:
        UnsupportedTranscript: A newer major version, or not a thread at all.
    """
    history = check_document(document).get("conversationHistory", [])
    ended = (raw for raw in reversed(history) if raw.get("$type") == "response")
    return next((raw for raw in ended if raw.get("correlationId") == correlation_id), None)


def dump_document(before: Mapping[str, Json], history: Sequence[Json], ours: Unfinished) -> dict[str, Json]:
    """A thread as it is stored; `data.dafx` is there only while a turn has not ended.

    Args:
        before: The document that was read, for the fields that this version does not know.
        history: The entries, as they are stored.
        ours: What has not ended. Requests that wait are written as places in the line.
    """
    data: Mapping[str, Json] = before.get("data", {})
    known: dict[str, Json] = {
        "active": ours.active,
        "draft": [dump_message(message) for message in ours.draft],
        "waiting": [],
        "line": [place.dump() for place in ours.line],
        "steered": [dump_request(request) for request in ours.steered],
        "cancelled": {turn: dict(mark.raw) for turn, mark in ours.cancelled.items()},
        "asks": {key: question.raw for key, question in ours.asks.items()},
        "attempts": {key: attempt.raw for key, attempt in ours.attempts.items()},
        "children": {key: child.raw for key, child in ours.children.items()},
        "progress": dict(ours.progress),
        "givenUp": dict(ours.given_up),
        "joined": list(ours.joined),
        "resumed": ours.resumed.dump() if ours.resumed else None,
        "beside": ours.beside.dump() if ours.beside else None,
        "remains": ours.remains.dump(),
    }
    stored: Mapping[str, Json] = data.get("dafx") or {}
    kept = {key: value for key, value in {**stored, **known}.items() if value or key not in known}
    rest = {key: value for key, value in data.items() if key != "dafx"}
    return {
        "schemaVersion": SCHEMA_VERSION,
        **before,
        "data": {**rest, "conversationHistory": list(history), **({"dafx": kept} if kept else {})},
    }


def load_entries(stored: Iterable[Json]) -> tuple[Entry, ...]:
    """Read what a thread remembers."""
    return tuple(load_entry(raw) for raw in stored)


def load_transcript(document: Json, load: Callable[[Sequence[Json]], tuple[Entry, ...]] = load_entries) -> Transcript:
    """Read a stored thread; None is an empty one.

    Args:
        document: As it is stored.
        load: Reads its entries, for who has read most of them before.

    Raises:
        UnsupportedTranscript: A newer major version, or not a thread at all.
    """
    data = check_document(document)
    return Transcript(
        entries=load(data.get("conversationHistory", [])),
        draft=load_unfinished(data).draft,
        schema_version=document["schemaVersion"] if document else SCHEMA_VERSION,
    )
