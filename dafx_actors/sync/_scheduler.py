"""The scheduler itself, for programs without an event loop."""

from __future__ import annotations

from dafx_actors.client import _scheduler as _async
from dafx_actors.client._scheduler import Backup, SchedulerStats
from dafx_actors.sync._calls import Caller

__all__ = ["Scheduler"]


class Scheduler:
    """The scheduler of a client, as `client.scheduler`: where it is the embedded one, its figures and backups."""

    def __init__(self, caller: Caller, scheduler: _async.Scheduler) -> None:
        self._caller = caller
        self._scheduler = scheduler

    def stats(self, *, timeout: float | None = None) -> SchedulerStats:
        """Figures of the scheduler, of all its task hubs. One call; the scheduler counts its rows for it.

        Args:
            timeout: Seconds to wait, outages of the scheduler included; by default as long as it takes.

        Raises:
            UnsupportedByScheduler: It is not the embedded one.
            SchedulerUnreachable: Nothing answers, or not within `timeout`.
        """
        return self._caller.call(self._scheduler.stats, timeout=timeout)

    def backup(self, name: str, *, timeout: float | None = None) -> Backup:
        """Copy the scheduler's database, while it works, into a new file in the scheduler's folder for backups.

        One call, which lasts as long as the copy: it is written and checked, some hundred megabytes a second.

        Args:
            name: Of the file, without a folder; it ends in `.db`, which is added where it is missing.
            timeout: Seconds to wait, outages of the scheduler included; by default as long as it takes.

        Raises:
            UnsupportedByScheduler: It is not the embedded one.
            SchedulerRefused: There is a file of that name, or it is no name of a file, or the disk is full.
            SchedulerUnreachable: Nothing answers, or not within `timeout`; the copy may be made all the same.
        """
        return self._caller.call(self._scheduler.backup, name, timeout=timeout)
