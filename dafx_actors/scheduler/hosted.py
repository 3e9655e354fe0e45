"""What a scheduler tells of itself and can be asked for."""

from __future__ import annotations

from dafx_actors._durable.admin import Hosted, back_up, hosted, hosted_async, stats, stats_async

__all__ = [
    "Hosted",
    "back_up",
    "hosted",
    "hosted_async",
    "stats",
    "stats_async",
]
