"""What a turn waits for a person to decide: whether a tool may be called, and what became of a call that was cut off.

::

    for approval in await client.pending_approvals(agent="Cashier"):
        print(approval.tool, approval.arguments)
        await client.approve(approval, by="ana@example.com")
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import datetime
from typing import Literal, TypeAlias

import attrs

from dafx_actors.ids import AgentThread
from dafx_actors.transcript import Json

__all__ = ["Action", "Decision", "DecisionKind", "PendingDecision", "call_digest"]

DecisionKind: TypeAlias = Literal["approval", "outcome"]
Action: TypeAlias = Literal["approve", "deny", "retry", "result", "fail"]
"""An approval is approved or denied. A call of unknown outcome is made again, given a result, or fails its turn."""

ACTIONS: Mapping[DecisionKind, tuple[Action, ...]] = {
    "approval": ("approve", "deny"),
    "outcome": ("retry", "result", "fail"),
}


@attrs.frozen(kw_only=True)
class PendingDecision:
    """A tool call that waits for a person."""

    thread: AgentThread
    correlation_id: str
    """The turn."""
    key: str
    """Names what is to be decided."""
    idempotency_key: str
    """Of the call: what the tool gives to the services that it acts on, where you can look what became of it."""
    kind: DecisionKind
    """`approval`: may it be called? `outcome`: it was called and cut off, and nobody knows whether it acted."""
    call_id: str
    """The model's id of the call."""
    tool: str
    arguments: Mapping[str, Json]
    digest: str
    """A hash of tool and arguments: a decision counts for this very call."""
    asked_at: datetime
    deadline: datetime | None = None
    """When the turn stops waiting for it."""


@attrs.frozen(kw_only=True)
class Decision:
    """What a person decided about a call."""

    action: Action
    by: str = ""
    """Who decided, as the program that told it says."""
    at: datetime
    reason: str = ""
    arguments: Mapping[str, Json] | None = None
    """With `approve`: instead of those that the model wrote."""
    result: Json = None
    """With `result`: what the tool's call counts as having given."""


def call_digest(tool: str, arguments: Mapping[str, Json]) -> str:
    """A hash of a tool's name and the arguments of a call."""
    named = json.dumps([tool, arguments], sort_keys=True, default=dict)
    return hashlib.sha256(named.encode()).hexdigest()[:32]
