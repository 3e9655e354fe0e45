"""Answers of orchestrators that ask for very much: carried out in pieces, so that nobody else waits for all of it.

What they change is written in one group. Until then the orchestration has no other episode, and what was started for it
waits to be handed out; so nobody can tell that it came in pieces, but who looks in between.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from dafx_actors.scheduler._rules import episodes as _episodes

if TYPE_CHECKING:
    from dafx_actors.scheduler._ground.proto import pb
    from dafx_actors.scheduler._ground.records import Orchestration
    from dafx_actors.scheduler._hub.hub import TaskHub

MANY_ACTIONS = 200
"""Actions of an answer that is carried out in pieces."""
MOST_ACTIONS = 100_000
"""Actions that an answer may have."""
_LONGEST_PIECE = 0.01
"""Seconds."""


async def turned(hub: TaskHub, it: Orchestration, answer: pb.OrchestratorResponse) -> None:
    """As `Orchestrations.turned`; returns when all of it is on disk.

    Raises:
        InvalidAnswer: nothing was changed; the episode has to be given again.
        SchedulerWriteFailed: it could not be written; nothing was changed.
    """
    at, lease, loaded = max(hub.clock.now(), it.episode_started), it.lease, hub.loaded
    # It reads of the orchestration what does not change during an episode.
    verdict = await asyncio.to_thread(_episodes.judge, it, answer, at)
    verdict, record = await asyncio.to_thread(_episodes.record_of, it, verdict, at)
    if not isinstance(verdict.conclusion, _episodes.Waits):
        await hub.store.warm(it, payload=True)

    def is_out() -> bool:
        # Else it was terminated, or memory was read again from the store.
        return it.lease == lease and hub.loaded == loaded

    if not is_out():
        return
    with hub.store.committer.together():
        with hub.changing() as first:
            told = hub.orchestrations.take_answer(first, it, verdict, at, record)
            it.lease = lease  # No other episode before the last piece.
        effects, written = iter(verdict.effects), [first]
        while it.lease is not None:
            await asyncio.sleep(0)
            if not is_out():
                break
            with hub.changing() as changes:
                written.append(changes)
                until = time.perf_counter() + _LONGEST_PIECE
                for effect in effects:
                    hub.orchestrations.carry_out(changes, it, effect)
                    if time.perf_counter() > until:
                        break
                else:
                    it.lease = None
                    hub.orchestrations.touch(changes, it)
                    hub.orchestrations.conclude(changes, it, verdict, told, at)
    for changes in written:
        await changes.committed()
