"""How long the scheduler's event loop is held: CPU time of its thread between two of its turns."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import attrs

from dafx_actors.scheduler import EmbeddedScheduler

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Generator

MOST = 0.05
"""Seconds of CPU that nothing which one call asks for may take between two turns."""


@attrs.define
class Longest:
    """The longest that the loop was held; wall time only for people, since other programs add to it."""

    cpu: float = 0.0
    wall: float = 0.0


@contextmanager
def watched(scheduler: EmbeddedScheduler) -> Generator[Longest]:
    """Look at each turn of the loop of a scheduler that runs on another thread."""
    loop: asyncio.AbstractEventLoop = scheduler.engine.store.committer._loop
    longest = Longest()
    before: list[float] = []
    ends = False

    def look() -> None:
        if before:
            longest.cpu = max(longest.cpu, time.thread_time() - before[0])
            longest.wall = max(longest.wall, time.perf_counter() - before[1])
        before[:] = time.thread_time(), time.perf_counter()
        if not ends:
            loop.call_soon(look)

    loop.call_soon_threadsafe(look)
    try:
        yield longest
    finally:
        ends = True
