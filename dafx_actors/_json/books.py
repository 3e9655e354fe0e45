"""What a thread keeps of its turns besides their messages: questions for persons, decisions, attempts, cancellations.

Each type is a view of the JSON that is stored. What was read is written back as it was, with the fields of versions
that know more; what is read by name, a type checker knows.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Literal, TypeAlias, cast

import attrs

from dafx_actors._json.messages import dump_usage, load_usage
from dafx_actors._json.shapes import (
    as_list,
    as_object,
    as_text,
    as_whole_number,
    check_json,
    check_texts,
    dump_time,
    is_object,
    load_time,
    or_default,
    shown,
    text_or_none,
)
from dafx_actors._shown import Shown
from dafx_actors.decisions import ACTIONS, Action, DecisionKind, PendingApproval, PendingOutcome, call_digest
from dafx_actors.errors import TurnCancelled
from dafx_actors.ids import AgentThread
from dafx_actors.transcript import Json, UsageStats

RecordedAction: TypeAlias = Action | Literal["expire"]
"""What stands on record about a question: what a person did, or that the deadline passed."""
_TOP = "top"
"""In a question: the first of the turns that wait for its turn. Versions before this one do not write it."""
RECORDED_ACTIONS = (*(action for actions in ACTIONS.values() for action in actions), "expire")


@attrs.frozen(repr=False)
class DecisionRecord(Shown):
    """A decision about a question, or what stands for one when nobody made it in time."""

    raw: Mapping[str, Json]

    @classmethod
    def load(cls, raw: Json) -> DecisionRecord:
        """Read a decision, from a thread or from whoever sends one.

        Raises:
            ValueError: It is something else.
        """
        decision = as_object(raw)
        if (action := decision.get("action")) not in RECORDED_ACTIONS:
            raise ValueError(f"a decision is one of {', '.join(RECORDED_ACTIONS)}, not {shown(action)}")
        load_time(decision.get("at"))
        for field in ("by", "reason", "digest", "signature"):
            text_or_none(decision, field)
        if decision.get("arguments") is not None:
            as_object(check_json(decision["arguments"]))
        check_json(decision.get("result"))
        return cls(decision)

    @classmethod
    def expired(cls, at: datetime) -> DecisionRecord:
        """The deadline's own word."""
        return cls({"action": "expire", "by": "the deadline", "at": dump_time(at)})

    @property
    def action(self) -> RecordedAction:
        """What was decided."""
        return cast("RecordedAction", self.raw["action"])

    @property
    def by(self) -> str:
        """Who decided; empty where nobody said."""
        return self.raw.get("by") or ""

    @property
    def at(self) -> datetime:
        """When it was decided."""
        return load_time(self.raw["at"])

    @property
    def reason(self) -> str:
        """Why; empty where nobody said."""
        return self.raw.get("reason") or ""

    @property
    def arguments(self) -> Mapping[str, Json] | None:
        """With `approve`: what the call is made with, where that is not what the model wrote."""
        return self.raw.get("arguments")

    @property
    def result(self) -> Json:
        """With `result`: what the call counts as having given."""
        return self.raw.get("result")

    @property
    def digest(self) -> str | None:
        """A hash of the call that it is about, once it is on record; see `call_digest`."""
        return self.raw.get("digest")

    def about(self, digest: str) -> DecisionRecord:
        """The decision, on record for the call of this hash."""
        return DecisionRecord({**self.raw, "digest": digest})

    def is_same_as(self, other: DecisionRecord) -> bool:
        """Whether both decide the same, whoever made them."""
        return (self.action, self.arguments, self.result) == (other.action, other.arguments, other.result)


@attrs.frozen(repr=False)
class QuestionRecord(Shown):
    """What a person is to decide about a call."""

    raw: Mapping[str, Json]

    @classmethod
    def load(cls, raw: Json) -> QuestionRecord:
        """Read a question.

        Raises:
            ValueError: It is something else.
        """
        question = as_object(raw)
        check_texts(question, "key", "kind", "callId", "tool", "digest")
        if (kind := question["kind"]) not in ACTIONS:
            raise ValueError(f"`kind` is one of {', '.join(ACTIONS)}, not {shown(kind)}")
        as_object(question.get("arguments"))
        for field in ("askedAt", *(["deadline"] if question.get("deadline") is not None else [])):
            load_time(question.get(field))
        if "decision" in question:
            DecisionRecord.load(question["decision"])
        return cls(question)

    @classmethod
    def of(
        cls,
        *,
        key: str,
        kind: DecisionKind,
        call_key: str,
        call_id: str,
        tool: str,
        arguments: Mapping[str, Json],
        asked_at: datetime,
        deadline: datetime | None = None,
        top: tuple[AgentThread, str] | None = None,
    ) -> QuestionRecord:
        """A new question about a call, which its `call_key` names.

        `top` is the first of the turns above, with its thread, where the turn is that of an agent used as a tool.
        """
        return cls(
            {
                "key": key,
                **({"callKey": call_key} if call_key != key else {}),
                "kind": kind,
                "callId": call_id,
                "tool": tool,
                "arguments": dict(arguments),
                "digest": call_digest(tool, arguments),
                "askedAt": dump_time(asked_at),
                **({} if deadline is None else {"deadline": dump_time(deadline)}),
                **({} if top is None else {_TOP: _dump_top(*top)}),
            }
        )

    @property
    def key(self) -> str:
        """Names the question within its turn."""
        return cast("str", self.raw["key"])

    @property
    def kind(self) -> DecisionKind:
        """What is asked."""
        return cast("DecisionKind", self.raw["kind"])

    @property
    def tool(self) -> str:
        """The name of the tool."""
        return cast("str", self.raw["tool"])

    @property
    def arguments(self) -> Mapping[str, Json]:
        """Of the call, as the model wrote them."""
        return cast("Mapping[str, Json]", self.raw["arguments"])

    @property
    def digest(self) -> str:
        """A hash of the call; see `call_digest`."""
        return cast("str", self.raw["digest"])

    @property
    def asked_at(self) -> datetime:
        """When it was asked."""
        return load_time(self.raw["askedAt"])

    @property
    def has_deadline(self) -> bool:
        """Whether the turn stops waiting for a decision some time."""
        return "deadline" in self.raw

    @property
    def decision(self) -> DecisionRecord | None:
        """What was decided; None while nobody has."""
        return DecisionRecord(self.raw["decision"]) if "decision" in self.raw else None

    def decided(self, decision: DecisionRecord) -> QuestionRecord:
        """The question with what was decided."""
        return QuestionRecord({**self.raw, "decision": dict(decision.raw)})

    def asks_the_same(self, other: QuestionRecord) -> bool:
        """Whether `other`, which nobody has decided about, is this very question."""
        own, others = (
            {name: value for name, value in each.raw.items() if name not in ("decision", _TOP)}
            for each in (self, other)
        )
        return own == others

    def pending(self, thread: AgentThread, turn: str) -> PendingApproval | PendingOutcome:
        """The question as a client shows it, of a turn in a thread."""
        raw, made = self.raw, PendingApproval if self.kind == "approval" else PendingOutcome
        top_thread, top_turn = _load_top(raw.get(_TOP)) or (thread, turn)
        return made(
            thread=thread,
            correlation_id=turn,
            key=self.key,
            idempotency_key=raw.get("callKey") or self.key,
            call_id=raw["callId"],
            tool=self.tool,
            arguments=raw["arguments"],
            digest=self.digest,
            asked_at=load_time(raw["askedAt"]),
            deadline=load_time(raw["deadline"]) if raw.get("deadline") else None,
            top_thread=top_thread,
            top_turn=top_turn,
        )


def _dump_top(thread: AgentThread, turn: str) -> dict[str, Json]:
    return {"agent": thread.agent, "thread": thread.thread_id, "correlationId": turn}


def _load_top(raw: Json) -> tuple[AgentThread, str] | None:
    """The first of the turns above; None where there is none, or what is kept there is none."""
    if not is_object(raw):
        return None
    try:
        check_texts(raw, "agent", "thread", "correlationId")
        return AgentThread(raw["agent"], raw["thread"]), raw["correlationId"]
    except ValueError:
        return None


@attrs.frozen(repr=False)
class AttemptRecord(Shown):
    """The latest attempt of a call that may act only once."""

    raw: Mapping[str, Json]

    @classmethod
    def load(cls, raw: Json) -> AttemptRecord:
        """Read an attempt.

        Raises:
            ValueError: It is something else.
        """
        attempt = as_object(raw)
        as_whole_number(attempt.get("number"))
        check_texts(attempt, "token")
        return cls(attempt)

    @classmethod
    def of(cls, number: int, token: str, at: datetime) -> AttemptRecord:
        """A new attempt; `token` names who makes it."""
        return cls({"number": number, "token": token, "at": dump_time(at)})

    @property
    def number(self) -> int:
        """Of the attempt, from 1."""
        return cast("int", self.raw["number"])

    @property
    def token(self) -> str:
        """Names who makes it."""
        return cast("str", self.raw["token"])

    @property
    def at(self) -> str | None:
        """When it was recorded, as ISO 8601 text."""
        return self.raw.get("at")


@attrs.frozen(repr=False)
class ChildRecord(Shown):
    """The turn of an agent that is used as a tool."""

    raw: Mapping[str, Json]

    @classmethod
    def load(cls, raw: Json) -> ChildRecord:
        """Read the turn of an agent as a tool.

        Raises:
            ValueError: It is something else.
        """
        child = as_object(raw)
        check_texts(child, "key", "agent", "thread", "correlationId")
        return cls(child)

    @classmethod
    def of(cls, key: str, thread: AgentThread) -> ChildRecord:
        """The turn that a call is; the key of the call is its correlation id."""
        return cls({"key": key, "agent": thread.agent, "thread": thread.thread_id, "correlationId": key})

    @property
    def key(self) -> str:
        """Of the call."""
        return cast("str", self.raw["key"])

    @property
    def turn(self) -> str:
        """The correlation id of the turn."""
        return cast("str", self.raw["correlationId"])

    @property
    def thread(self) -> AgentThread:
        """Where the turn runs."""
        return AgentThread(self.raw["agent"], self.raw["thread"])


@attrs.frozen(kw_only=True, repr=False)
class Remains(Shown):
    """What there is still of a conversation that its thread has forgotten, or is about to forget.

    Each is deleted by its id, by whoever has the thread cleared; if he dies meanwhile, the next one finds it here.
    """

    turns: tuple[str, ...] = ()
    """Correlation ids of the turns that were in the transcript: their orchestrations."""
    children: tuple[ChildRecord, ...] = ()
    """Turns of agents that these used as tools: their threads."""
    ending: tuple[str, ...] = ()
    """Turns that were cancelled first. The thread forgets nothing before their orchestrations have ended: one of them
    that asks again would find an empty thread, and begin anew."""

    def dump(self) -> dict[str, Json]:
        """As it is stored; empty where there is nothing."""
        return {
            **({"turns": list(self.turns)} if self.turns else {}),
            **({"children": [dict(child.raw) for child in self.children]} if self.children else {}),
            **({"ending": list(self.ending)} if self.ending else {}),
        }

    @classmethod
    def load(cls, raw: Json) -> Remains:
        """Read it.

        Raises:
            ValueError: It is something else.
        """
        document = as_object(raw)
        return cls(
            turns=tuple(map(as_text, as_list(or_default(document.get("turns"), [])))),
            children=tuple(map(ChildRecord.load, as_list(or_default(document.get("children"), [])))),
            ending=tuple(map(as_text, as_list(or_default(document.get("ending"), [])))),
        )


@attrs.frozen(repr=False)
class CancelMark(Shown):
    """Says that a turn is cancelled: who did it, and why."""

    raw: Mapping[str, Json]

    @classmethod
    def load(cls, raw: Json) -> CancelMark:
        """Read a mark.

        Raises:
            ValueError: It is no object.
        """
        return cls(as_object(raw))

    @classmethod
    def read(cls, raw: Json) -> CancelMark:
        """Read what came with the event that cancels a turn, which anybody can raise with anything."""
        if is_object(raw):
            return cls(raw)
        return cls.of(by="", reason=raw if isinstance(raw, str) else "")

    @classmethod
    def of(cls, *, by: str, reason: str) -> CancelMark:
        """A new mark."""
        return cls({"by": by, "reason": reason})

    @property
    def by(self) -> str:
        """Who cancelled the turn; empty where nobody said."""
        return str(self.raw.get("by") or "")

    @property
    def reason(self) -> str:
        """Why; empty where nobody said."""
        return str(self.raw.get("reason") or "")

    def error(self, agent: str, turn: str) -> TurnCancelled:
        """What the turn ends with."""
        return TurnCancelled(agent, turn, self.reason, self.by)


@attrs.frozen(repr=False)
class Place(Shown):
    """A request's place in the line. Its text stays with its turn, which brings it when the place is the first."""

    correlation_id: str
    digest: str
    """A hash of what the request asks; see `requests.digest`."""
    retry: int = 0
    """How often the turn was taken up again after it had failed, with the time that it waits for."""

    @classmethod
    def load(cls, raw: Json) -> Place:
        """Read a place.

        Raises:
            ValueError: It is something else.
        """
        place = as_object(raw)
        check_texts(place, "correlationId", "digest")
        retry = as_whole_number(place.get("retry", 0))
        return cls(as_text(place["correlationId"]), as_text(place["digest"]), retry)

    def dump(self) -> dict[str, Json]:
        """The place as it is stored."""
        retry = {"retry": self.retry} if self.retry else {}
        return {"correlationId": self.correlation_id, "digest": self.digest, **retry}


@attrs.frozen(kw_only=True, repr=False)
class Resumed(Shown):
    """What a turn that failed had come to, where it was taken up again."""

    retry: int
    """How often it was taken up again, from 1."""
    replies: int = 0
    """Replies of the model that are kept."""
    steps: int = 0
    """Model calls and tool calls, as they were counted."""
    usage: UsageStats | None = None
    attempts: tuple[Json, ...] = ()
    """Attempts of model calls that failed and were made again; see `Progress.retries`."""
    failures: tuple[Json, ...] = ()
    """What it failed with each time, the latest last: `at`, and an `error` with its type and message."""
    children: tuple[ChildRecord, ...] = ()
    """Turns of agents that it had used as tools."""

    @classmethod
    def load(cls, raw: Json) -> Resumed | None:
        """Read it; None where the turn was not taken up again.

        Raises:
            ValueError: It is something else.
        """
        if not raw:
            return None
        kept = as_object(raw)
        usage = kept.get("usage")
        return cls(
            retry=as_whole_number(kept.get("retry")),
            replies=as_whole_number(kept.get("replies", 0)),
            steps=as_whole_number(kept.get("steps", 0)),
            usage=load_usage(usage) if usage else None,
            attempts=tuple(as_list(kept.get("retries") or [])),
            failures=tuple(as_list(kept.get("retried") or [])),
            children=tuple(map(ChildRecord.load, as_list(kept.get("children") or []))),
        )

    def dump(self) -> dict[str, Json]:
        """As it is stored, and as a turn is told it."""
        return {
            "retry": self.retry,
            "replies": self.replies,
            "steps": self.steps,
            **({"usage": dump_usage(self.usage)} if self.usage else {}),
            **({"retries": list(self.attempts)} if self.attempts else {}),
            **({"retried": list(self.failures)} if self.failures else {}),
            **({"children": [dict(child.raw) for child in self.children]} if self.children else {}),
        }

    @property
    def about(self) -> dict[str, Json]:
        """The part of a response that says so."""
        return {"retry": self.retry, **({"retried": list(self.failures)} if self.failures else {})}
