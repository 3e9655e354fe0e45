"""Group commit: changes that come together share one transaction and one wait for the disk.

The event loop's thread executes the statements, which costs microseconds and never waits for the disk. (A thread
that executed them would have to take Python's global lock again after each one, and wait up to 5 ms for it every
time that the loop is busy.) Where they are very many, or large, a thread executes them all the same: nobody may hold
the loop for long. COMMIT does wait for the disk. As long as the disk answers within a millisecond the loop waits for it
as well, since to hand over to a thread and back takes as long again; a slower disk is left to a thread of its own, and
so is the copying of the log into the database. Meanwhile changes pile up, and form the next group.

A commit also costs what ten statements cost, and requests reach the loop one by one, so that most would have a commit
to themselves. Where more are about to come, a group therefore waits a moment for them (as PostgreSQL does with
`commit_delay` and `commit_siblings`); where none are, nobody waits.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import sqlite3
import time
from collections import deque
from contextlib import contextmanager, suppress
from queue import SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, TypeAlias

from dafx_actors.scheduler.storage.database import is_locked, write_failed

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from dafx_actors.errors import SchedulerDatabaseError, SchedulerWriteFailed
    from dafx_actors.scheduler.storage.database import Location, Row

logger = logging.getLogger(__name__)

_Handed: TypeAlias = "concurrent.futures.Future[Exception | None]"

CHECKPOINT_AT = 16 * 2**20
"""Bytes in the write-ahead log after which it is copied into the database."""

_COMMITS_BETWEEN_LOOKS = 64
"""How often the size of the log is looked at."""

QUICK = 0.001
"""Seconds; the loop itself waits for a disk that usually takes less."""

GATHER = 0.001
"""Seconds that a group waits for changes that are about to come."""

FOLLOWS = 0.005
"""Seconds that changes wait at most for those that follow from them: an answer has been delivered to an orchestration,
whose worker is at its next episode, and what that decides is written with it. Nobody else waits meanwhile: whatever is
submitted, and whoever reads, has the group written at once."""

_LOCKED_PAUSE = 0.02
"""Seconds between attempts where another program has locked the file; the loop goes on meanwhile."""

LOCKED_FOR = 5.0
"""Seconds after which such a lock is a failure."""

_MANY_STATEMENTS = 1_000
"""Of a group that the thread executes."""

_LARGE_VALUE = 256 * 2**10
"""Bytes or characters; of a group with such a value as well."""

IDLE = 1.0
"""Seconds without a commit after which the log is copied into the database: then a copy of that file is whole."""

_WEIGHT = 0.1
"""Of the last one in what is usual."""

_LONGEST_SETTLING = 0.005
"""Seconds that one turn of the loop spends on telling who waited for a commit."""


class Changes:
    """What one request changes: statements for the store, and what is done once they are on disk."""

    __slots__ = ("_after", "_first", "_outcome", "_waiters", "follow", "heavy", "seq", "writes")

    def __init__(self, seq: int) -> None:
        self.seq = seq
        """Where these changes stand in the order of all."""
        self.follow = False
        """Others follow from these in a moment, and nobody waits for these alone."""
        self.heavy = False
        """The statements take long: they delete very much, or hold large values."""
        self.writes: list[tuple[str, Row]] = []
        self._first: list[Callable[[], None]] = []
        self._after: list[Callable[[], None]] = []
        self._waiters: list[asyncio.Future[None]] = []
        self._outcome: SchedulerWriteFailed | SchedulerDatabaseError | bool = False

    def write(self, sql: str, *values: object) -> None:
        """Add a statement."""
        self.writes.append((sql, values))
        for value in values:
            if isinstance(value, str | bytes | bytearray) and len(value) > _LARGE_VALUE:
                self.heavy = True

    def at_once(self, action: Callable[[], None]) -> None:
        """Do this as soon as the changes are complete, without waiting for the disk."""
        self._first.append(action)

    def complete(self) -> None:
        """Nothing more is added: do what need not wait."""
        for action in self._first:
            action()

    def then(self, action: Callable[[], None]) -> None:
        """Do this once the changes are on disk; never, if they cannot be written."""
        self._after.append(action)

    async def committed(self) -> None:
        """Wait until the changes are on disk.

        Raises:
            SchedulerWriteFailed: they were not written, and will not be.
            SchedulerDatabaseError: the same, because the file is damaged.
        """
        if isinstance(self._outcome, Exception):
            raise self._outcome
        if self._outcome:
            return
        # One for each who waits, since one of them may go away.
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(done)
        await done

    def settle(self, error: SchedulerWriteFailed | SchedulerDatabaseError | None) -> None:
        """Tell whoever waits; the committer calls this, once."""
        self._outcome = error or True
        if error is None:
            for action in self._after:
                _guarded(action)
        # Actions refer to these changes: kept, the two would wait for the garbage collector.
        self._after.clear()
        self._first.clear()
        for done in self._waiters:
            if done.done():
                continue
            if error is None:
                done.set_result(None)
            else:
                done.set_exception(error)


def _guarded(action: Callable[[], None]) -> None:
    """Others in the group wait to be told, whatever becomes of this one."""
    try:
        action()
    except Exception:
        logger.exception("What was to follow a commit has failed")


class Committer:
    """Writes changes in groups, in order.

    Every method is called on the event loop's thread.
    """

    def __init__(
        self,
        connection: sqlite3.Connection,
        location: Location,
        failed: Callable[[SchedulerWriteFailed | SchedulerDatabaseError], None],
        *,
        quick: float = QUICK,
        checkpoint_at: int = CHECKPOINT_AT,
        idle: float = IDLE,
        locked_for: float = LOCKED_FOR,
    ) -> None:
        """Start writing.

        Args:
            connection: nobody else may use it until `close`.
            location: of the file, for its size and for messages.
            failed: called when a group could not be written; its changes are settled after that.
            quick: seconds that the loop itself waits for the disk; a disk that usually takes longer is a thread's.
            checkpoint_at: bytes in the write-ahead log after which it is copied into the database.
            idle: seconds without a commit after which that is done, too.
            locked_for: seconds that a group waits while another program has locked the file.
        """
        self._connection = connection
        self._location = location
        self._failed = failed
        self._loop = asyncio.get_running_loop()
        self._waiting: list[Changes] = []
        self._group: list[Changes] | None = None
        self._next: asyncio.Handle | None = None
        self._gathering = False
        """Whether the next group waits for more."""
        self._together = 0
        """How many write in pieces what belongs together: until they have, nothing is written."""
        self._settling: deque[Changes] | None = None
        """What is on disk, and not told yet."""
        self._idle: asyncio.Future[None] | None = None
        self._jobs: SimpleQueue[tuple[Callable[[], Exception | None], _Handed] | None] = SimpleQueue()
        self._thread: Thread | None = None
        self._handed: _Handed | None = None
        """What the thread is doing."""
        self._quick = quick
        self._checkpoint_at = checkpoint_at
        self._idle_after = idle
        self._idles: asyncio.TimerHandle | None = None
        """Looks whether there was nothing to write for so long."""
        self._copied = 0
        """How many commits had been made when the log was copied last."""
        self._locked_for = locked_for
        self._locked_since: float | None = None
        self._hurries = False
        self._usual = 0.0
        """Seconds that a commit usually takes."""
        self.seq = 0
        self.committed = 0
        """All changes up to this one are on disk."""
        self.commits = 0
        self.slowest = 0.0
        """Seconds that the slowest commit took."""

    def begin(self) -> Changes:
        """Changes that stand after all others."""
        self.seq += 1
        return Changes(self.seq)

    def submit(self, changes: Changes, *, more: bool = False) -> None:
        """Have the changes written with the next group.

        Args:
            changes: to which nothing more is added.
            more: others are about to come, for which the group may wait.
        """
        changes.complete()
        self._waiting.append(changes)
        self._soon(FOLLOWS if changes.follow else GATHER if more else None)

    @contextmanager
    def together(self) -> Generator[None]:
        """What is submitted within this is written in one group, whatever others submit meanwhile: all of it, or none.

        It is for changes that take long to make; whoever makes them lets the loop go on in between.
        """
        self._together += 1
        try:
            yield
        except BaseException:
            # Half of it must not be written, nor what was decided on the strength of that.
            self.finish_now()
            raise
        finally:
            self._together -= 1
            if self._group is None:
                self._go_on()

    def _soon(self, gather: float | None = None) -> None:
        """Write the next group: after so many seconds at most, or as soon as the loop is at it."""
        pending = self._next is not None
        if self._together or self._group is not None or (pending and (gather is not None or not self._gathering)):
            return
        if self._next is not None:
            self._next.cancel()
        self._gathering = gather is not None
        # Never at once: whatever else is ready to run on the loop joins the group.
        self._next = self._loop.call_soon(self._flush) if gather is None else self._loop.call_later(gather, self._flush)

    async def reached(self, seq: int) -> None:
        """Wait until these changes, and all before them, are on disk.

        Raises:
            SchedulerWriteFailed: they were not written, and will not be.
        """
        if seq <= self.committed:
            return
        self._soon()
        for changes in (*(self._group or ()), *self._waiting):
            if changes.seq >= seq:
                await changes.committed()
                return

    @property
    def is_idle(self) -> bool:
        """Whether nothing is left to write."""
        return self._group is None and not self._waiting and not self._together

    async def drained(self) -> None:
        """Wait until nothing is left to write."""
        while not self.is_idle:
            if self._idle is None:
                self._idle = self._loop.create_future()
            await asyncio.shield(self._idle)

    def finish_now(self) -> None:
        """Write all that waits, with everybody waiting for that, so that what is on disk is all that was decided.

        What is written in pieces, and not complete, is given up, and with it all that came after its first piece.
        """
        self._hurries = True
        try:
            while self._group is not None or self._waiting:
                if self._handed is not None:
                    concurrent.futures.wait([self._handed])
                    self._handed_back(self._handed)
                elif self._settling is not None:
                    self._settle(self._settling)
                elif self._together:
                    self._give_up([], RuntimeError("a request failed half-way"))
                else:
                    if self._next is not None:
                        self._next.cancel()
                    self._flush()
        finally:
            self._hurries = False

    async def close(self) -> None:
        """Write what is left and end the thread. The connection stays open."""
        await self.drained()
        if self._idles is not None:
            self._idles.cancel()
            self._idles = None
        if self._thread is not None:
            self._jobs.put(None)
            await asyncio.to_thread(self._thread.join)
            self._thread = None

    def _flush(self) -> None:
        self._next = None
        if self._together:
            return
        group, self._waiting = self._waiting, []
        if not group:
            self._rest()
            return
        self._group = group
        if self._is_heavy(group):
            self._hand_over(lambda: self._execute(group) or self._commit(usual=False))
            return
        error = self._execute(group)
        if error is not None or self._usual < self._quick:
            self._finish(error or self._commit())
        else:
            self._hand_over(self._commit)

    def _is_heavy(self, group: list[Changes]) -> bool:
        """Whether to execute it would hold the loop; what is in memory has one connection, on the loop."""
        if self._location.in_memory:
            return False
        return sum(len(it.writes) for it in group) > _MANY_STATEMENTS or any(it.heavy for it in group)

    def _execute(self, group: list[Changes]) -> Exception | None:
        execute = self._connection.execute
        try:
            execute("BEGIN IMMEDIATE")
            for changes in group:
                for sql, values in changes.writes:
                    execute(sql, values)
        except Exception as error:  # noqa: BLE001 - such as a value that SQLite cannot hold; told to who sent it
            return error
        return None

    def _waits_for_lock(self) -> bool:
        """Whether the group is to be tried again: another program has locked the file, and not for too long yet."""
        now = time.monotonic()
        if self._locked_since is None:
            self._locked_since = now
            logger.warning("Another program has locked %s; writing waits for it", self._location.path)
        return now - self._locked_since < self._locked_for and not self._hurries

    def _hand_over(self, job: Callable[[], Exception | None]) -> None:
        """Have the thread do this; `_finish` is called on the loop after that, with what it returns."""
        if self._thread is None:
            self._thread = Thread(target=self._run, name="dafx-scheduler-commit", daemon=True)
            self._thread.start()
        handed: _Handed = concurrent.futures.Future()
        self._handed = handed
        self._jobs.put((job, handed))

    def _run(self) -> None:
        while (task := self._jobs.get()) is not None:
            job, handed = task
            try:
                result = job()
            except Exception as error:  # noqa: BLE001 - told to all who wait; a thread that is gone would tell nobody
                result = error
            handed.set_result(result)
            with suppress(RuntimeError):  # The loop was closed under us; nobody waits for the answer.
                self._loop.call_soon_threadsafe(self._handed_back, handed)

    def _handed_back(self, handed: _Handed) -> None:
        if handed is self._handed:  # Else `finish_now` has seen to it.
            self._handed = None
            self._finish(handed.result())

    def _commit(self, *, usual: bool = True) -> sqlite3.Error | None:
        started = time.perf_counter()
        try:
            self._connection.execute("COMMIT")
        except sqlite3.Error as error:
            return error
        taken = time.perf_counter() - started
        if usual:
            self._usual += (taken - self._usual) * _WEIGHT
        self.slowest = max(self.slowest, taken)
        return None

    def _checkpoint(self) -> sqlite3.Error | None:
        # PASSIVE waits for nobody, such as a backup that reads. The log starts again from its beginning with the first
        # write after this that finds nobody reading it. TRUNCATE gives up at once where somebody reads.
        is_long = self._location.log_size() > self._checkpoint_at and not self._waiting
        try:
            mode = "TRUNCATE" if is_long else "PASSIVE"
            _, pages, copied = self._connection.execute(f"PRAGMA wal_checkpoint({mode})").fetchone()
            if copied >= pages:
                self._copied = self.commits
        except sqlite3.Error as error:
            # The changes are safe in the log; it only grows until a checkpoint succeeds.
            logger.warning("The write-ahead log could not be copied into the database: %s", error)
        return None

    def _finish(self, error: Exception | None) -> None:
        """The group is on disk, or is not going to be; or the log was copied, and there is no group."""
        group = self._group
        if error is None and group:
            self.committed = group[-1].seq
            self.commits += 1
            self._settling = deque(group)
            self._settle(self._settling)
            return
        self._group = None
        if error is not None and group and is_locked(error) and self._waits_for_lock():
            with suppress(sqlite3.Error):
                self._connection.execute("ROLLBACK")
            self._waiting = [*group, *self._waiting]
            self._gathering = False
            self._next = self._loop.call_later(_LOCKED_PAUSE, self._flush)
            return
        self._locked_since = None
        if error is not None:
            self._give_up(group or [], error)
        self._go_on()

    def _settle(self, group: deque[Changes]) -> None:
        """Tell those who wait for a group that is on disk, in turns of the loop that others can use as well."""
        if group is not self._settling:
            return  # `finish_now` has seen to it.
        until = time.perf_counter() + _LONGEST_SETTLING
        while group:
            group.popleft().settle(None)
            if group and time.perf_counter() > until and not self._hurries:
                self._loop.call_soon(self._settle, group)
                return
        self._settling = self._group = self._locked_since = None
        if self.commits % _COMMITS_BETWEEN_LOOKS == 0 and self._location.log_size() > self._checkpoint_at:
            self._copy_log()
        else:
            self._go_on()

    def _go_on(self) -> None:
        if self._waiting:
            self._soon()
        else:
            self._rest()

    def _copy_log(self) -> None:
        self._group = []
        self._hand_over(self._checkpoint)

    def _look_whether_idle(self, commits: int) -> None:
        """Copy the log where nothing was written since `commits`; else look again later."""
        self._idles = None
        if not self.is_idle or self.commits != commits:
            self._watch_idle()
        elif self._copied != commits:
            self._copy_log()

    def _watch_idle(self) -> None:
        if self._idles is None and self._copied != self.commits and not self._location.in_memory:
            self._idles = self._loop.call_later(self._idle_after, self._look_whether_idle, self.commits)

    def _give_up(self, group: list[Changes], error: Exception) -> None:
        with suppress(sqlite3.Error):
            self._connection.execute("ROLLBACK")
        failure = write_failed(self._location.path, error)
        # What waits was decided on the strength of what was not written.
        lost = [*group, *self._waiting]
        self._waiting = []
        self._failed(failure)
        for changes in lost:
            changes.settle(failure)

    def _rest(self) -> None:
        self._watch_idle()
        if self._idle is not None and not self._idle.done():
            self._idle.set_result(None)
        self._idle = None
