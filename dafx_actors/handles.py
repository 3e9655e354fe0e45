"""Turns and orchestrations that were started, to wait for, look at and cancel; and decisions that were stored."""

from __future__ import annotations

from dafx_actors.client._decisions import DecisionStored
from dafx_actors.client._handles import OrchestrationHandle, PendingStep, TurnHandle, TurnState, TurnStatus

__all__ = [
    "DecisionStored",
    "OrchestrationHandle",
    "PendingStep",
    "TurnHandle",
    "TurnState",
    "TurnStatus",
]
