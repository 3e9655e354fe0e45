"""Ending what stands below an orchestration that was terminated.

There may be very many children, and they are not ended in one piece, which everybody else would have to wait for. So a
terminated orchestration is ended at once, and leaves a mark on disk; its descendants are ended in pieces after that,
and then the mark goes. Whoever asked is answered when it has. A scheduler that finds marks at its start goes on with
them.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from dafx_actors.errors import SchedulerError
from dafx_actors.scheduler._ground.proto import Status
from dafx_actors.scheduler.storage import tables

if TYPE_CHECKING:
    from dafx_actors.scheduler._hub.ground import Changing, Ground
    from dafx_actors.scheduler._hub.orchestrations import Orchestrations

logger = logging.getLogger("dafx_actors.scheduler._endings")

PIECE = 10
"""Orchestrations that are ended, or removed, between two turns of the event loop."""

ON_PAGE = 1_000
"""After so many it is waited until all is on disk."""


class Endings:
    """The terminated orchestrations of a task hub whose descendants are being ended."""

    def __init__(self, ground: Ground, orchestrations: Orchestrations, changing: Changing) -> None:
        self._ground = ground
        self._orchestrations = orchestrations
        self._changing = changing
        self._tasks: dict[int, asyncio.Task[None]] = {}
        """By the row of the orchestration that was terminated."""

    def __len__(self) -> int:
        return len(self._tasks)

    def begin(self, row: int, output: str | None) -> None:
        """End all below this orchestration, whose mark is on disk."""
        if row not in self._tasks:
            task = self._tasks[row] = asyncio.get_running_loop().create_task(self._end(row, output))
            task.add_done_callback(lambda ended: self._ended(row, ended))

    def _ended(self, row: int, task: asyncio.Task[None]) -> None:
        del self._tasks[row]
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, SchedulerError):
            logger.error("What stands below a terminated orchestration could not be ended", exc_info=error)

    async def done(self, row: int) -> None:
        """Wait until all below it has ended.

        Raises:
            SchedulerError: it could not be written; the mark stays, and the rest follows when it can.
        """
        task = self._tasks.get(row)
        if task is not None:
            await asyncio.shield(task)

    def resume(self) -> None:
        """Go on with what is marked on disk."""
        for row, output in self._ground.store.endings(self._ground.hub):
            self.begin(row, output)

    async def stop(self) -> None:
        """End none any more; the marks stay."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _end(self, root: int, output: str | None) -> None:
        try:
            todo, looks = [root], 0
            while todo:
                todo += await self._end_children(todo.pop(), output)
                looks += 1
                if looks % PIECE == 0:
                    await asyncio.sleep(0)
            with self._changing() as changes:
                tables.delete_ending(changes, root)
            await changes.committed()
        except SchedulerError as error:
            # Told to whoever waits for it; taken up again when the file is read anew.
            logger.warning("What stands below a terminated orchestration could not be ended yet: %s", error)
            raise

    async def _end_children(self, parent: int, output: str | None) -> list[int]:
        """The rows of the children that may have children of their own.

        The parent has ended on disk: so it has no other children than those that are there.
        """
        below: list[int] = []
        after = 0
        while page := self._ground.store.unfinished_children(parent, after, Status.TERMINATED, ON_PAGE):
            after = page[-1][0]
            below += [row for row, _ in page]
            live = [row for row, has_ended in page if not has_ended]
            for start in range(0, len(live), PIECE):
                with self._changing() as changes:
                    changes.heavy = True
                    for row in live[start : start + PIECE]:
                        child = self._orchestrations.find_by_id(row)
                        if child is not None:
                            self._orchestrations.terminate(changes, child, output, recurse=False)
                await asyncio.sleep(0)
            await self._ground.store.committer.reached(self._ground.store.committer.seq)
        return below
