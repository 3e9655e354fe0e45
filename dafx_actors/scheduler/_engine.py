"""All task hubs over one store, and what goes on by itself: timers, pings, patience, retention, recovery."""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from dafx_actors.errors import SchedulerDatabaseError, SchedulerError, SchedulerWriteFailed
from dafx_actors.scheduler._clock import SECOND
from dafx_actors.scheduler._hub import TaskHub
from dafx_actors.scheduler._timers import Timers
from dafx_actors.scheduler.storage import queries, tables
from dafx_actors.scheduler.storage.store import Store

if TYPE_CHECKING:
    import os
    from types import TracebackType

    from dafx_actors.scheduler._clock import Clock
    from dafx_actors.scheduler._timers import Timer
    from dafx_actors.scheduler.storage.database import Synchronous

logger = logging.getLogger(__name__)

_TRY_AGAIN = 1.0
"""Seconds between attempts to write after one that failed."""

_SIGNALS_REPEAT_WITHIN = 600
"""Seconds for which a signal that is sent again is recognised."""

_PURGE_AT_ONCE = 500
"""Expired orchestrations that are removed in one transaction."""


@attrs.frozen(kw_only=True)
class Retention:
    """Which ended orchestrations are removed by themselves. Entities never are."""

    age: float | None = None
    """Seconds after their end; None keeps them however old they are."""
    count: int | None = None
    """So many of each task hub are kept; None keeps all."""
    every: float = 60.0
    """Seconds between two looks."""


@attrs.frozen(kw_only=True)
class Patience:
    """How long a worker that stays connected may hold work; then another gets it. Seconds."""

    orchestration: float = 10 * 60.0
    activity: float = 24 * 3600.0
    entity: float = 4 * 3600.0
    every: float = 5.0
    """Seconds between two looks."""


class Engine:
    """The scheduler without its network, running for as long as `async with` lasts."""

    def __init__(
        self,
        path: str | os.PathLike[str] | None,
        *,
        synchronous: Synchronous,
        clock: Clock,
        retention: Retention,
        patience: Patience,
        backups: str | os.PathLike[str] | None = None,
    ) -> None:
        self.backups = Path(backups if backups is not None else Path(path or "backup").parent)
        """The only folder that backups go to: whoever may call need not be allowed to write anywhere else."""
        self.clock = clock
        self.store = Store(path, synchronous=synchronous, failed=self._write_failed)
        self.hubs: dict[str, TaskHub] = {}
        self.timers: Timers
        self._retention = retention
        self._patience = patience
        self._stack = AsyncExitStack()
        self._recovery: asyncio.Task[None] | None = None
        self.started = 0

    async def __aenter__(self) -> Engine:
        """Open the store and take up all work in it.

        Raises:
            SchedulerInUse: another process has the file open.
            SchedulerDatabaseError: the file cannot be used.
        """
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self.store)
            self.hubs, self.timers = {}, Timers(self.clock, self._fire)
            self.started = self.clock.now()
            for row, name in self.store.hubs():
                self._add_hub(row, name, stored=True)
            stack.callback(self.timers.stop)
            for job in (self._retain(), self._watch()):
                stack.push_async_callback(_cancelled, asyncio.create_task(job))
            stack.push_async_callback(self._stop_recovery)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    def hub(self, name: str) -> TaskHub:
        """The task hub of this name; it comes into being when it is used."""
        return self.hubs.get(name) or self._add_hub(self.store.ids.row(), name, stored=False)

    def _add_hub(self, row: int, name: str, *, stored: bool) -> TaskHub:
        hub = TaskHub(name, row, store=self.store, clock=self.clock, timers=self.timers, stored=stored)
        self.hubs[name] = hub
        if stored:
            hub.load()
        return hub

    def under_way(self) -> list[str]:
        """What goes on by itself, in words; nothing, where all waits for clients, the clock or workers."""
        works = [work for hub in self.hubs.values() for work in hub.delivery.under_way()]
        found = [f"{work.kind} {work.lane.name}, {'held' if work.token else 'handed out'}" for work in works]
        found += [f"orchestration {name}, resting" for hub in self.hubs.values() for name in hub.orchestrations.resting]
        return found if self.store.committer.is_idle else [*found, "a write to the database"]

    # --- timers --------------------------------------------------------------------------------------------------

    def _fire(self, due: list[Timer]) -> None:
        """Deliver what is due, all of a task hub in one change."""
        for hub in self.hubs.values():
            mine = [timer for timer in due if timer[2] == hub.id]
            if mine:
                # Whatever goes wrong, the task hub has its timers again when it has read itself from the store.
                with suppress(Exception), hub.changing() as changes:
                    for timer in mine:
                        hub.fire(changes, timer)

    # --- when the disk refuses ---------------------------------------------------------------------------------

    def _write_failed(self, error: SchedulerWriteFailed | SchedulerDatabaseError) -> None:
        """A commit failed: what is on disk is the truth, and nothing is handed out until it can be changed.

        A file that is damaged is not written again: that might make it worse. Whoever repairs it starts anew.
        """
        known, self.store.failure = self.store.failure, error
        if isinstance(known, SchedulerDatabaseError):
            self.store.failure = known
        if type(known) is not type(error):
            logger.error("%s", error)
        if known is not None:
            return  # Nothing was decided since.
        for hub in self.hubs.values():
            hub.delivery.queue.paused = True
        for hub in self.hubs.values():
            hub.reload()
        if self._recovery is None and isinstance(error, SchedulerWriteFailed):
            self._recovery = asyncio.get_running_loop().create_task(self._recover())

    async def _recover(self) -> None:
        while isinstance(self.store.failure, SchedulerWriteFailed):
            await asyncio.sleep(_TRY_AGAIN)
            changes = self.store.committer.begin()
            tables.touch(changes, self.clock.now())
            self.store.committer.submit(changes)
            with suppress(SchedulerWriteFailed, SchedulerDatabaseError):
                await changes.committed()
                self._recovered()

    def _recovered(self) -> None:
        self.store.failure = None
        for hub in self.hubs.values():
            hub.reload()
        if self.store.failure is None:
            self._recovery = None
            logger.info("The database can be written again; work goes on")
            for hub in self.hubs.values():
                hub.delivery.queue.resume()

    async def _stop_recovery(self) -> None:
        if self._recovery is not None:
            await _cancelled(self._recovery)

    # --- what goes on by itself ----------------------------------------------------------------------------------

    async def _watch(self) -> None:
        """Take work back from workers that hold it for too long."""
        while True:
            await asyncio.sleep(self._patience.every)
            now = self.clock.now()
            for hub in self.hubs.values():
                hub.lately.refresh()
                hub.unhosted.look()
                for work in hub.delivery.overdue(
                    {
                        "orchestration": now - int(self._patience.orchestration * SECOND),
                        "activity": now - int(self._patience.activity * SECOND),
                        "entity": now - int(self._patience.entity * SECOND),
                    }
                ):
                    about = {"task_hub": hub.name, "kind": work.kind, "work": work.lane.name}
                    logger.warning("%s was held for too long and is handed out again", work.lane, extra=about)
                    hub.again(work)

    async def _retain(self) -> None:
        """Remove what nobody wants to keep."""
        while True:
            await asyncio.sleep(self._retention.every)
            try:
                await self.tidy()
            except SchedulerError as error:
                logger.warning("Expired orchestrations were not removed: %s", error)

    async def tidy(self) -> int:
        """Remove expired orchestrations and old marks of signals. Returns how many orchestrations."""
        now, removed = self.clock.now(), 0
        age = self._retention.age
        before = None if age is None else now - int(age * SECOND)
        if self.store.failure is not None:
            raise self.store.failure
        changes = self.store.committer.begin()
        tables.delete_signals(changes, now - _SIGNALS_REPEAT_WITHIN * SECOND)
        self.store.committer.submit(changes)
        await changes.committed()
        for hub in list(self.hubs.values()):
            while True:
                rows = await queries.expired(
                    self.store, hub.id, before=before, keep=self._retention.count, most=_PURGE_AT_ONCE
                )
                removed += await hub.purge(rows)
                if len(rows) < _PURGE_AT_ONCE:
                    break
        return removed


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
