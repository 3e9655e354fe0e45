"""Turns and orchestrations that were started: to wait for, look at and cancel."""

from __future__ import annotations

from dafx_actors.client._handles import OrchestrationHandle, PendingStep, TurnHandle, TurnState, TurnStatus

__all__ = [
    "OrchestrationHandle",
    "PendingStep",
    "TurnHandle",
    "TurnState",
    "TurnStatus",
]
