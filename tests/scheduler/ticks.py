"""How long the scheduler's event loop is held: the CPU time of its thread in one turn of the loop."""

from __future__ import annotations

import gc
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import attrs

if TYPE_CHECKING:
    from collections.abc import Generator

    from dafx_actors.scheduler import EmbeddedScheduler

_COUNTED = 4_000_000
_TOO_LONG = 0.1
"""Seconds that a machine on which `_yardstick` takes 0.1 s may be held for: five to ten times what is usual there."""


@attrs.define
class Held:
    """What the longest turn took."""

    cpu: float = 0.0
    """Seconds of CPU, without the garbage collector: that looks through the heap of the tests, too."""

    def too_long(self, times: float = 1.0) -> bool:
        """Whether it is of another order than a piece of work; in terms of how fast this machine is right now."""
        return self.cpu > times * _TOO_LONG * max(1.0, _yardstick() / 0.1)


def _yardstick() -> float:
    """How long this thread takes for work of a fixed size: about 0.1 s on the machine of the figures."""
    begun = time.thread_time()
    for _ in range(_COUNTED):
        pass
    return time.thread_time() - begun


@contextmanager
def watched(scheduler: EmbeddedScheduler) -> Generator[Held]:
    """Measure each turn of the loop of a scheduler that runs on another thread."""
    loop: Any = scheduler.engine.store.committer._loop
    held, collected, run_once = Held(), [0.0, 0.0], loop._run_once

    def collects(phase: str, _: object) -> None:
        if threading.get_ident() != loop._thread_id:
            return
        if phase == "start":
            collected[0] = time.thread_time()
        else:
            collected[1] += time.thread_time() - collected[0]

    def turn() -> None:
        collected[1], begun = 0.0, time.thread_time()
        run_once()
        held.cpu = max(held.cpu, time.thread_time() - begun - collected[1])

    gc.callbacks.append(collects)
    loop._run_once = turn
    try:
        yield held
    finally:
        del loop._run_once
        gc.callbacks.remove(collects)
