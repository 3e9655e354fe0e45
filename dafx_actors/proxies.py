"""Agents, as clients see them."""

from __future__ import annotations

from dafx_actors.client._proxies import DurableAIAgent, RunOptions

__all__ = [
    "DurableAIAgent",
    "RunOptions",
]
