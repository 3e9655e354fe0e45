"""The updates: one class for each thing that a reader is told."""

from __future__ import annotations

from typing import Any, ClassVar

import attrs

from dafx_actors._json.told import told_as_json
from dafx_actors._shown import Shown
from dafx_actors.decisions import Decision, PendingApproval, PendingOutcome
from dafx_actors.exchange import AgentRunResponse
from dafx_actors.transcript import ChatMessage, FunctionCallContent, FunctionResultContent, Json
from dafx_actors.transcript import Content as MessageContent


@attrs.frozen(kw_only=True, repr=False)
class Update(Shown):
    """One thing that a reader of a turn is told."""

    kind: ClassVar[str]
    """Its name, such as `text`."""
    step: int
    """The number of the model's reply that it belongs to, from 1; 0 is for what stands before the first reply."""
    cursor: str
    """Where a reader is who has been told this: `turn.updates(after=cursor)`, in any process, tells what follows. A
    text of letters, digits and `-`, at most 100 of them; it names what was told, and fits wherever that is found."""

    def to_json(self) -> str:
        """It as a JSON object in one line, without its cursor: `kind`, `step` and what it says."""
        fields = {each.name: getattr(self, each.name) for each in attrs.fields(type(self)) if each.name != "cursor"}
        return told_as_json(self.kind, fields)


@attrs.frozen(kw_only=True, repr=False)
class Step(Update):
    """A reply of the model begins; what follows is of this step."""

    kind: ClassVar[str] = "step"


@attrs.frozen(kw_only=True, repr=False)
class Text(Update):
    """More text of the reply of this step."""

    kind: ClassVar[str] = "text"
    text: str
    """What is new; never empty."""


@attrs.frozen(kw_only=True, repr=False)
class Reasoning(Update):
    """More of the model's own reasoning in this step."""

    kind: ClassVar[str] = "reasoning"
    text: str
    """What is new; never empty."""


@attrs.frozen(kw_only=True, repr=False)
class Call(Update):
    """The reply of this step asks for a tool."""

    kind: ClassVar[str] = "call"
    call: FunctionCallContent


@attrs.frozen(kw_only=True, repr=False)
class Result(Update):
    """The result of a call of this step was recorded."""

    kind: ClassVar[str] = "result"
    result: FunctionResultContent


@attrs.frozen(kw_only=True, repr=False)
class Content(Update):
    """Something else in a message of this step, such as an image."""

    kind: ClassVar[str] = "content"
    content: MessageContent


@attrs.frozen(kw_only=True, repr=False)
class Message(Update):
    """A message from elsewhere became part of the turn: a later request, or what tells the model of a mistake."""

    kind: ClassVar[str] = "message"
    message: ChatMessage


@attrs.frozen(kw_only=True, repr=False)
class Reset(Update):
    """Forget what was told of this step and those after it: it turned out otherwise, and is told again."""

    kind: ClassVar[str] = "reset"


@attrs.frozen(kw_only=True, repr=False)
class State(Update):
    """The turn stands otherwise than before; see `TurnStatus`, whose fields these are."""

    kind: ClassVar[str] = "state"
    state: str
    attempt: int | None = None
    waits_for: tuple[str, ...] = ()
    error: str | None = None


@attrs.frozen(kw_only=True, repr=False)
class Progress(Update):
    """What a running tool has reported."""

    kind: ClassVar[str] = "progress"
    key: str
    """Of the call; see `ToolContext.idempotency_key`."""
    progress: Json = attrs.field(hash=False)


@attrs.frozen(kw_only=True, repr=False)
class Asked(Update):
    """A person is to decide about a call, of this turn or of one of an agent that it uses as a tool."""

    kind: ClassVar[str] = "asked"
    approval: PendingApproval | PendingOutcome
    """For `client.approve` and `client.deny`, or for `client.resolve`; it says whose call it is."""


@attrs.frozen(kw_only=True, repr=False)
class Decided(Update):
    """A question that was told is settled."""

    kind: ClassVar[str] = "decided"
    key: str
    """Of the question."""
    decision: Decision | None
    """Who decided what; None where the question went away without a decision, or its agent's turn has ended."""


@attrs.frozen(kw_only=True, repr=False)
class Ended(Update):
    """The turn has ended, and what was told equals its messages. No update follows."""

    kind: ClassVar[str] = "ended"
    response: AgentRunResponse[Any] | None = None
    error: Exception | None = attrs.field(default=None, eq=False)
    """What `response()` raises; None where the turn was answered."""
