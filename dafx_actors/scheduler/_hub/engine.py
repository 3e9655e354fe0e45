"""All task hubs over one store, and what goes on by itself: timers, pings, patience, retention, recovery."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Mapping
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

import attrs

from dafx_actors.errors import SchedulerDatabaseError, SchedulerError, SchedulerWriteFailed
from dafx_actors.scheduler._ground.clock import SECOND
from dafx_actors.scheduler._hub.hub import Refused, TaskHub
from dafx_actors.scheduler._hub.timers import Timers
from dafx_actors.scheduler.storage import queries, tables
from dafx_actors.scheduler.storage.store import Store

if TYPE_CHECKING:
    import os
    from types import TracebackType

    from dafx_actors.scheduler._ground.clock import Clock
    from dafx_actors.scheduler._hub.timers import Timer
    from dafx_actors.scheduler.storage.database import Synchronous

logger = logging.getLogger("dafx_actors.scheduler._engine")

_TRY_AGAIN = 1.0
"""Seconds between attempts to write after one that failed."""

_SIGNALS_REPEAT_WITHIN = 600
"""Seconds for which a signal that is sent again is recognised."""

_PURGE_AT_ONCE = 500
"""Expired orchestrations that are removed in one transaction."""


MOST_HUBS = 1_000
"""Task hubs that one scheduler keeps."""

_LATEST_HUBS = 16

LONGEST_HUB_NAME = 100
"""Characters."""

MOST_BACKUPS = 100
"""Files in the folder for backups; whoever wants more takes some away."""

_BACKUP = ".db"
"""What the names of backups end in, so that none is a name that SQLite gives to files of its own."""


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
        self.backups = Path(backups if backups is not None else f"{path or 'dafx.db'}-backups").absolute()
        """The only folder that backups go to: whoever may call need not be allowed to write anywhere else."""
        self._backup: asyncio.Task[int] | None = None
        self.clock = clock
        self.store = Store(path, synchronous=synchronous, failed=self._write_failed)
        self._hubs: dict[str, TaskHub] = {}
        """Those that are stored."""
        self._looked_at: WeakValueDictionary[str, TaskHub] = WeakValueDictionary()
        """Those to which nothing was written yet; kept by who waits for something there, or works there."""
        self._latest: deque[TaskHub] = deque(maxlen=_LATEST_HUBS)
        """Some of these, so that one that is looked at again and again is not made anew each time."""
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
            self._latest.clear()
            self._hubs, self.timers = {}, Timers(self.clock, self._fire)
            self.started = self.clock.now()
            for row, name in self.store.hubs():
                self._add_hub(row, name, stored=True)
            stack.callback(self.timers.stop)
            for job in (self._retain(), self._watch()):
                stack.push_async_callback(_cancelled, asyncio.create_task(job))
            stack.push_async_callback(self._stop_recovery)
            stack.push_async_callback(self._stop_endings)
            stack.push_async_callback(self._finish_backup)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    @property
    def hubs(self) -> Mapping[str, TaskHub]:
        """All task hubs that there are, by name."""
        return {**self._looked_at, **self._hubs}

    def hub(self, name: str) -> TaskHub:
        """The task hub of this name, which is made by the first write to it.

        Raises:
            Refused: that cannot be the name of one.
        """
        hub = self._hubs.get(name) or self._looked_at.get(name)
        if hub is not None:
            return hub
        if len(name) > LONGEST_HUB_NAME or not name.isprintable():
            raise Refused(
                "INVALID_ARGUMENT",
                f"A task hub has a name of {LONGEST_HUB_NAME} printable characters at most, not {name[:200]!r}.",
            )
        return self._add_hub(self.store.ids.row(), name, stored=False)

    def _add_hub(self, row: int, name: str, *, stored: bool) -> TaskHub:
        hub = TaskHub(name, row, store=self.store, clock=self.clock, timers=self.timers, stored=stored, keep=self._keep)
        if stored:
            self._hubs[name] = hub
            hub.load()
        else:
            self._looked_at[name] = hub
            self._latest.append(hub)
        return hub

    def _keep(self, hub: TaskHub) -> None:
        """Something is about to be written to it for the first time."""
        if len(self._hubs) >= MOST_HUBS and hub.name not in self._hubs:
            raise Refused("RESOURCE_EXHAUSTED", f"There are {MOST_HUBS:,} task hubs, and more are not kept.")
        self._hubs[hub.name] = hub

    async def back_up(self, name: str) -> tuple[Path, int]:
        """Copy the database into a new file in the folder for backups. Returns its path and its size.

        Args:
            name: of the file; it ends in `.db`, which is added where it is missing.

        Raises:
            Refused: a backup is being made, or there are too many.
            SchedulerDatabaseError: the copy could not be written, or there is a file of that name.
        """
        if self._backup is not None:
            raise Refused("FAILED_PRECONDITION", "A backup is being made; wait for its end.")
        target = self.backups / (name if name.endswith(_BACKUP) else name + _BACKUP)
        # It goes on when who asked for it goes away: a thread cannot be cut off.
        self._backup = asyncio.get_running_loop().create_task(self._copy_to(target))
        self._backup.add_done_callback(self._backed_up)
        return target, await asyncio.shield(self._backup)

    def _backed_up(self, task: asyncio.Task[int]) -> None:
        self._backup = None
        if not task.cancelled():
            task.exception()  # Told to who asked, if that is still there.

    async def _copy_to(self, target: Path) -> int:
        try:
            await asyncio.to_thread(self.backups.mkdir, mode=0o700, parents=True, exist_ok=True)
            there_are = await asyncio.to_thread(lambda: sum(1 for _ in self.backups.iterdir()))
        except OSError as error:
            raise SchedulerDatabaseError(str(target), f"the folder for backups cannot be used ({error})") from error
        if there_are >= MOST_BACKUPS:
            raise Refused(
                "FAILED_PRECONDITION", f"There are {there_are} files in {self.backups}; take some away before."
            )
        return await self.store.back_up(target)

    async def _finish_backup(self) -> None:
        if self._backup is not None:
            await asyncio.wait([self._backup])

    def under_way(self) -> list[str]:
        """What goes on by itself, in words; nothing, where all waits for clients, the clock or workers."""
        works = [work for hub in self.hubs.values() for work in hub.delivery.under_way()]
        found = [f"{work.kind} {work.lane.name}, {'held' if work.token else 'handed out'}" for work in works]
        found += [f"orchestration {name}, resting" for hub in self.hubs.values() for name in hub.orchestrations.resting]
        found += [
            "the end of what stands below a terminated orchestration" for hub in self.hubs.values() if hub.endings
        ]
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

    async def _stop_endings(self) -> None:
        for hub in self.hubs.values():
            await hub.endings.stop()

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
