"""Takes work off the stream, runs it, answers; it knows threads, loops and sockets, and no rule of a turn."""

from __future__ import annotations

from dafx_actors.worker._worker import Address, DurableAIAgentWorker

__all__ = [
    "Address",
    "DurableAIAgentWorker",
]
