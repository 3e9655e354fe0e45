"""Asks and waits; it runs no agent code."""

from __future__ import annotations

from dafx_actors.client._client import DurableAIAgentClient

__all__ = [
    "DurableAIAgentClient",
]
