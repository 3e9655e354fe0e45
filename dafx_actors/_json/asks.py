"""What a thread tells the inbox of a turn that waits for a person: the state of `@dafx-asks-{agent}@{turn}`, too.

All of the turn's open questions each time, with a rank that grows: so what comes twice or late changes nothing, and
what was lost is made good by what comes next.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import ClassVar

import attrs

from dafx_actors._json.books import QuestionRecord
from dafx_actors._json.shapes import as_list, as_object, as_whole_number, check_texts, dump_time, is_object, load_time
from dafx_actors._shown import Shown
from dafx_actors.decisions import PendingApproval, PendingOutcome
from dafx_actors.ids import AgentThread
from dafx_actors.transcript import Json

_MOST_OF_CALL = 4_096
_MOST_OF_TURN = 65_536
"""Bytes of arguments that are told: of a call, and of all calls of a turn. The thread has what is left out."""
_CUT = "cut"
"""In a question that is told without its arguments."""


@attrs.frozen(kw_only=True, repr=False)
class Asks(Shown):
    """The open questions of a turn, as its thread told them."""

    operation: ClassVar[str] = "show"

    thread: AgentThread
    turn: str
    asked_at: datetime
    """When the latest question was asked, an open one or another."""
    number: int
    """Questions and decisions so far, and the end of the waiting: it grows while `asked_at` stays."""
    questions: tuple[Mapping[str, Json], ...]
    """None: nothing waits any more."""

    @classmethod
    def of(
        cls,
        thread: AgentThread,
        turn: str,
        *,
        asked_at: datetime,
        number: int,
        questions: Iterable[QuestionRecord],
    ) -> Asks:
        """The questions as they are told: of long arguments it is told that they were left out."""
        left, told = _MOST_OF_TURN, list[Mapping[str, Json]]()
        for question in questions:
            size = len(json.dumps(question.raw["arguments"], default=dict))
            if size > min(left, _MOST_OF_CALL):
                told.append({**question.raw, "arguments": {}, _CUT: True})
            else:
                told.append(question.raw)
                left -= size
        return cls(thread=thread, turn=turn, asked_at=asked_at, number=number, questions=tuple(told))

    @classmethod
    def load(cls, raw: Json) -> Asks:
        """Read what a thread told.

        Raises:
            ValueError: It is something else.
        """
        document = as_object(raw)
        check_texts(document, "agent", "thread", "correlationId")
        questions = [QuestionRecord.load(each).raw for each in as_list(document.get("questions"))]
        return cls(
            thread=AgentThread(document["agent"], document["thread"]),
            turn=document["correlationId"],
            asked_at=load_time(document.get("askedAt")),
            number=as_whole_number(document.get("number")),
            questions=tuple(questions),
        )

    @classmethod
    def read(cls, stored: Json) -> Asks | None:
        """What an entity holds; None where it holds nothing, or what is none: anybody may give one such a name."""
        try:
            return cls.load(stored) if is_object(stored) else None
        except ValueError:
            return None

    def dump(self) -> dict[str, Json]:
        """As it is told and stored."""
        return {
            "agent": self.thread.agent,
            "thread": self.thread.thread_id,
            "correlationId": self.turn,
            "askedAt": dump_time(self.asked_at),
            "number": self.number,
            "questions": [dict(each) for each in self.questions],
        }

    @property
    def rank(self) -> tuple[datetime, int]:
        """Grows with each change of what the turn asks."""
        return self.asked_at, self.number

    @property
    def is_cut(self) -> bool:
        """Whether arguments were left out."""
        return any(_CUT in each for each in self.questions)

    @property
    def pending(self) -> tuple[PendingApproval | PendingOutcome, ...]:
        """The questions as a client shows them."""
        return tuple(QuestionRecord(each).pending(self.thread, self.turn) for each in self.questions)
