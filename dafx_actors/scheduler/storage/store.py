"""The store: point reads on the loop, long reads in a thread, writes through the committer."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from contextlib import AsyncExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from dafx_actors.errors import SchedulerDatabaseError, SchedulerReadFailed, SchedulerWriteFailed
from dafx_actors.scheduler._ground import ids as _ids
from dafx_actors.scheduler._ground.proto import LARGE
from dafx_actors.scheduler._ground.records import History
from dafx_actors.scheduler.storage import tables
from dafx_actors.scheduler.storage.committer import Committer
from dafx_actors.scheduler.storage.database import (
    IN_MEMORY,
    FileLock,
    Location,
    connect,
    connect_reader,
    make_private,
    read_failed,
    write_failed,
)

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator
    from types import TracebackType

    from dafx_actors.scheduler._ground.records import Activity, Entity, LockRequest, Operation, Orchestration
    from dafx_actors.scheduler.storage.database import Row, Synchronous

logger = logging.getLogger(__name__)


_HISTORY = "SELECT events FROM histories WHERE orchestration = ? ORDER BY id"
_PAYLOAD = f"SELECT {tables.PAYLOAD_COLUMNS} FROM payloads p WHERE p.id = ?"  # noqa: S608 - no outside text


class Store:
    """One database, open for as long as `async with` lasts.

    Point reads see what is committed. A caller that needs to see its own uncommitted changes keeps the records
    that it changed in memory until they are on disk; see `IdleCache`.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None,
        *,
        synchronous: Synchronous = "full",
        failed: Callable[[SchedulerWriteFailed | SchedulerDatabaseError], None],
    ) -> None:
        """Name a database; nothing is opened yet.

        Args:
            path: of the file, which is made if it is missing; None keeps everything in memory.
            synchronous: `full` has every commit wait for the disk, and survives a power cut; `normal` survives the
                end of the process in any way, but a power cut can take the last commits with it.
            failed: called on the loop when a commit failed, before anybody who waits for it is told.
        """
        # Its real name, whatever symbolic links lead there: that is what is locked.
        self.location = Location(path=IN_MEMORY if path is None else str(Path(path).resolve()))
        self._synchronous: Synchronous = synchronous
        self._failed = failed
        self._stack = AsyncExitStack()
        self._writer: sqlite3.Connection
        self._reader: sqlite3.Connection
        self.committer: Committer
        self.failure: SchedulerWriteFailed | SchedulerDatabaseError | None = None
        """Why nothing can be written at the moment."""
        self.ids: _ids.Ids

    async def __aenter__(self) -> Store:
        """Open the database, bring it up to date, and reserve ids.

        Raises:
            SchedulerInUse: another process has it open.
            SchedulerDatabaseError: it cannot be used.
        """
        async with AsyncExitStack() as stack:
            path = self.location.path
            if not self.location.in_memory:
                stack.enter_context(_locked(Path(path)))
            self._writer = stack.enter_context(closing(connect(path, synchronous=self._synchronous)))
            self.ids = self._reserve_ids()
            # What is in memory can be seen through one connection only.
            self._reader = self._writer
            if not self.location.in_memory:
                self._reader = stack.enter_context(closing(connect_reader(path, patient=False)))
            self.committer = Committer(self._writer, self.location, self._failed)
            self.failure = None
            stack.push_async_callback(self.committer.close)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    def _reserve_ids(self) -> _ids.Ids:
        try:
            self._writer.execute("BEGIN IMMEDIATE")
            (first,) = self._writer.execute("SELECT next FROM ids").fetchone()
            self._writer.execute("UPDATE ids SET next = ?", (first + _ids.BLOCK,))
            self._writer.execute("COMMIT")
        except (sqlite3.Error, TypeError) as error:
            raise SchedulerDatabaseError(self.location.path, f"it cannot be written ({error})") from error
        return _ids.Ids(first)

    def give_up(self, error: SchedulerDatabaseError | SchedulerReadFailed) -> None:
        """Not all can be read that has to be: nothing is written until it can, or ever, if the file is damaged."""
        if isinstance(error, SchedulerReadFailed):
            self._failed(SchedulerWriteFailed(error.path, error.reason))
        else:
            cause = error.__cause__
            self._failed(write_failed(self.location.path, cause) if isinstance(cause, sqlite3.Error) else error)

    # --- reading -------------------------------------------------------------------------------------------------

    def rows(self, sql: str, *values: object) -> list[Row]:
        """A point read, on the loop: only for what an index finds at once."""
        try:
            return self._reader.execute(sql, values).fetchall()
        except sqlite3.Error as error:
            raise read_failed(self.location.path, error) from error

    def row(self, sql: str, *values: object) -> Row | None:
        """The first row of a point read."""
        found = self.rows(sql, *values)
        return found[0] if found else None

    async def query(self, sql: str, *values: object) -> list[Row]:
        """A read that may take long, beside the loop."""
        if self.location.in_memory:
            return self.rows(sql, *values)
        return await asyncio.to_thread(self._query, sql, values)

    def _query(self, sql: str, values: tuple[object, ...]) -> list[Row]:
        try:
            with closing(connect_reader(self.location.path)) as connection:
                return connection.execute(sql, values).fetchall()
        except sqlite3.Error as error:
            raise read_failed(self.location.path, error) from error

    async def back_up(self, target: Path) -> int:
        """Copy the database, as it is at one moment, into a new file, while work goes on. Returns its size.

        Raises:
            SchedulerDatabaseError: the copy could not be written, or there is a file of that name, or the database is
                damaged.
        """
        await self.committer.drained()
        if self.location.in_memory:
            return _back_up(self._writer, target)
        return await asyncio.to_thread(self._back_up, target)

    def _back_up(self, target: Path) -> int:
        with closing(connect_reader(self.location.path)) as source:
            return _back_up(source, target)

    # --- what there is -------------------------------------------------------------------------------------------

    def hubs(self) -> list[Row]:
        """Id and name of each task hub."""
        return self.rows("SELECT id, name FROM hubs")

    def orchestration(self, hub: int, instance_id: str) -> Orchestration | None:
        """An orchestration with its inbox, activities and timers; without history and payload."""
        return self._orchestration("o.hub = ? AND o.instance_id = ?", hub, instance_id)

    def orchestration_by_id(self, row: int) -> Orchestration | None:
        """The same, by the id of its row."""
        return self._orchestration("o.id = ?", row)

    def _orchestration(self, where: str, *values: Any) -> Orchestration | None:
        row = self.row(f"SELECT {tables.ORCHESTRATION_COLUMNS} FROM orchestrations o WHERE {where}", *values)  # noqa: S608 - no outside text
        if row is None:
            return None
        found = tables.read_orchestration(row)
        if not found.ended:
            inbox = f"SELECT {tables.MESSAGE_COLUMNS} FROM inbox WHERE orchestration = ? ORDER BY id"  # noqa: S608
            found.inbox = tables.read_messages(self.rows(inbox, found.id))
            activities = self.rows("SELECT id FROM activities WHERE orchestration = ?", found.id)
            found.activities = {row[0] for row in activities}
            found.timers = {row[0] for row in self.rows("SELECT id FROM timers WHERE orchestration = ?", found.id)}
        return found

    def load_history(self, orchestration: Orchestration) -> History:
        """Its history; read once, and kept in the record."""
        if orchestration.history is None:
            orchestration.history = History(chunk for (chunk,) in self.rows(_HISTORY, orchestration.id))
        return orchestration.history

    def has_history(self, orchestration: Orchestration) -> bool:
        """Whether it has taken an episode; reads no history for that."""
        if orchestration.history is not None:
            return bool(orchestration.history)
        return self.row("SELECT 1 FROM histories WHERE orchestration = ? LIMIT 1", orchestration.id) is not None

    def is_large(self, orchestration: Orchestration, *, history: bool = False, payload: bool = False) -> bool:
        """Whether what is not in memory of these would hold the loop, if `load_...` read it."""
        size = 0
        if self.location.in_memory:  # of which nobody else can read
            return False
        if history and orchestration.history is None:
            # SQLite tells the length of bytes without reading them.
            (size,) = self.rows(
                "SELECT coalesce(sum(length(events)), 0) FROM histories WHERE orchestration = ?", orchestration.id
            )[0]
        if payload and orchestration.start is None:
            size += sum(self._size_in("payloads", column, orchestration.id) for column in ("input", "output"))
        return size >= LARGE

    def _size_in(self, table: str, column: str, row: int) -> int:
        """Bytes of a text, of which SQLite's own functions tell only how many characters it has."""
        try:
            with self._reader.blobopen(table, column, row, readonly=True) as blob:
                return len(blob)
        except sqlite3.Error:  # nothing is there
            return 0

    async def warm(self, orchestration: Orchestration, *, history: bool = False, payload: bool = False) -> None:
        """Read beside the loop what is large of these, so that `load_...` finds it; whatever else may change meanwhile.

        Raises:
            SchedulerReadFailed: It cannot be read for the moment.
            SchedulerDatabaseError: The file is damaged.
        """
        if history and self.is_large(orchestration, history=True):
            rows = await self.query(_HISTORY, orchestration.id)
            whole = await asyncio.to_thread(lambda: b"".join([chunk for (chunk,) in rows]))
            if orchestration.history is None:
                orchestration.history = History([whole])
        if payload and self.is_large(orchestration, payload=True):
            rows = await self.query(_PAYLOAD, orchestration.id)
            if orchestration.start is None:
                self._read_payload(orchestration, rows[0] if rows else None)

    def outline(self, orchestration: Orchestration) -> Orchestration:
        """It, or a copy, with what it was started with, but perhaps without input and output."""
        if orchestration.start is not None:
            return orchestration
        sql = "SELECT NULL, NULL, failure, tags, trace, scheduled FROM payloads WHERE id = ?"
        copied = attrs.evolve(orchestration)
        self._read_payload(copied, self.row(sql, orchestration.id))
        return copied

    def load_payload(self, orchestration: Orchestration) -> None:
        """What it was started with and what it came to; read once, and kept in the record."""
        if orchestration.start is None:
            self._read_payload(orchestration, self.row(_PAYLOAD, orchestration.id))

    def _read_payload(self, orchestration: Orchestration, row: Row | None) -> None:
        try:
            tables.read_payload(orchestration, row or (None,) * 6)
        except ValueError as error:
            what = f"the tags of {orchestration.instance_id!r} could not be read ({error})"
            raise SchedulerDatabaseError(self.location.path, what) from error

    def children(self, parent: int) -> list[int]:
        """The rows of an orchestration's children, ended or not."""
        return [row[0] for row in self.rows("SELECT id FROM orchestrations WHERE parent = ?", parent)]

    def has_children(self, parent: int) -> bool:
        """Whether an orchestration has a child, ended or not."""
        return self.row("SELECT 1 FROM orchestrations WHERE parent = ? LIMIT 1", parent) is not None

    def unfinished_children(self, parent: int, after: int, terminated: int, most: int) -> list[tuple[int, bool]]:
        """Children that have not ended, or were terminated: the row of each, and whether it has ended."""
        rows = self.rows(
            "SELECT id, completed IS NOT NULL FROM orchestrations WHERE parent = ? AND id > ?"
            " AND (completed IS NULL OR status = ?) ORDER BY id LIMIT ?",
            parent, after, terminated, most,
        )  # fmt: skip
        return [(row[0], bool(row[1])) for row in rows]

    def endings(self, hub: int) -> list[Row]:
        """Row and output of orchestrations that were terminated, while not all below them has ended."""
        return self.rows("SELECT orchestration, output FROM endings WHERE hub = ?", hub)

    # What a start reads is read table by table: there may be very many. (CROSS JOIN has SQLite begin with the table
    # that comes first, which holds only what is under way.)

    def ready_orchestrations(self, hub: int, now: int, pending: int) -> list[Orchestration]:
        """Those that may have an episode to take, each as by `orchestration`, in order of creation."""
        sql = (
            f"SELECT {tables.ORCHESTRATION_COLUMNS} FROM orchestrations o WHERE o.hub = ? AND ("  # noqa: S608
            "(o.status = ? AND o.completed IS NULL AND coalesce(o.scheduled, 0) <= ?)"
            " OR o.id IN (SELECT orchestration FROM inbox)) ORDER BY o.id"
        )
        ready = {row[0]: tables.read_orchestration(row) for row in self.rows(sql, hub, pending, now)}
        inbox = f"SELECT orchestration, {tables.MESSAGE_COLUMNS} FROM inbox ORDER BY orchestration, id"  # noqa: S608
        for row, *message in self.rows(inbox):
            if row in ready:
                ready[row].inbox += tables.read_messages([message])
        for row, activity in self.rows("SELECT orchestration, id FROM activities"):
            if row in ready:
                ready[row].activities.add(activity)
        for row, timer in self.rows("SELECT orchestration, id FROM timers WHERE orchestration IS NOT NULL"):
            if row in ready:
                ready[row].timers.add(timer)
        return list(ready.values())

    def activities(self, hub: int) -> Iterator[Activity]:
        """All that were scheduled and not answered."""
        sql = (
            f"SELECT {tables.ACTIVITY_COLUMNS} FROM activities a CROSS JOIN orchestrations o ON o.id = a.orchestration"  # noqa: S608
            " WHERE o.hub = ? ORDER BY a.id"
        )
        return map(tables.read_activity, self.rows(sql, hub))

    def entity(self, hub: int, entity_id: str) -> Entity | None:
        """An entity with its mailbox."""
        return self._entity("hub = ? AND entity_id = ?", hub, entity_id)

    def _entity(self, where: str, *values: Any) -> Entity | None:
        row = self.row(f"SELECT {tables.ENTITY_COLUMNS} FROM entities WHERE {where}", *values)  # noqa: S608
        if row is None:
            return None
        found = tables.read_entity(row)
        sql = f"SELECT {tables.OPERATION_COLUMNS} FROM operations WHERE entity = ? ORDER BY id"  # noqa: S608
        found.mailbox.extend(map(tables.read_operation, self.rows(sql, found.id)))
        return found

    def busy_entities(self, hub: int) -> Iterator[str]:
        """The ids of entities with a mailbox that is not empty, or a lock."""
        sql = (
            # The plus sign keeps SQLite from walking through all entities of the hub.
            "SELECT entity_id FROM entities WHERE +hub = ?1 AND holder IS NOT NULL"
            " UNION SELECT e.entity_id FROM operations m CROSS JOIN entities e ON e.id = m.entity WHERE e.hub = ?1"
        )
        return (row[0] for row in self.rows(sql, hub))

    def lock_requests(self, hub: int) -> Iterator[LockRequest]:
        """Everybody who waits for a lock, in order."""
        sql = (
            "SELECT id, section, holder, holder_instance, holder_execution, entities FROM lock_requests"
            " WHERE hub = ? ORDER BY id"
        )
        return map(tables.read_lock_request, self.rows(sql, hub))

    def timers(self, hub: int) -> list[Row]:
        """Due, id, kind, orchestration and event of every timer; a delayed operation's event stays on disk."""
        sql = "SELECT due, id, kind, orchestration, CASE kind WHEN 0 THEN event END FROM timers WHERE hub = ?"
        return self.rows(sql, hub)

    def delayed_operation(self, row: int) -> tuple[str, Operation] | None:
        """Whom a delayed operation is for, and the operation under the id of its timer."""
        found = self.row(
            "SELECT entity, id, event, request, caller, caller_instance, caller_execution FROM timers WHERE id = ?", row
        )
        return None if found is None else (found[0], tables.read_operation(found[1:]))

    def hosted_lately(self, hub: int) -> list[Row]:
        """Kind, name and time of each name that workers took."""
        return self.rows("SELECT kind, name, at FROM hosted WHERE hub = ?", hub)

    def hub_is_stored(self, row: int) -> bool:
        """Whether there is a task hub of this row."""
        return self.row("SELECT 1 FROM hubs WHERE id = ?", row) is not None

    def seen_signal(self, hub: int, request_id: str) -> bool:
        """Whether a client's signal was taken before."""
        return self.row("SELECT 1 FROM signals WHERE hub = ? AND request = ?", hub, request_id) is not None


def _locked(path: Path) -> FileLock:
    if not path.parent.is_dir():
        raise SchedulerDatabaseError(str(path), "there is no such folder; make it, or name another file")
    if not path.exists():
        logger.info("A new database is made: %s", path)
    return FileLock(path)


def _back_up(source: sqlite3.Connection, target: Path) -> int:
    if target.exists():
        raise SchedulerDatabaseError(str(target), "there is a file of that name, which a backup does not replace")
    # Under another name until it is whole, so that nobody takes half a copy for a backup.
    partial = target.with_name(target.name + ".partial")
    try:
        partial.unlink(missing_ok=True)
        make_private(str(partial))
        with closing(sqlite3.connect(partial)) as copy:
            source.backup(copy)
            copy.execute("PRAGMA journal_mode = DELETE")
            # Pages are copied as they are; whoever needs the copy one day must not find then that it cannot be read.
            (found,) = copy.execute("PRAGMA quick_check(1)").fetchone()
        if found != "ok":
            raise sqlite3.DatabaseError(f"the database is damaged: {found}")
        partial.replace(target)
        return target.stat().st_size
    except (sqlite3.Error, OSError) as error:
        partial.unlink(missing_ok=True)
        raise SchedulerDatabaseError(str(target), f"the backup could not be written ({error})") from error
