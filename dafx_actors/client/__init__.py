"""Asks and waits; it runs no agent code."""

from __future__ import annotations

from dafx_actors.client._client import DurableAIAgentClient
from dafx_actors.client._proxies import DurableAIAgent, RunOptions

__all__ = [
    "DurableAIAgent",
    "DurableAIAgentClient",
    "RunOptions",
]
