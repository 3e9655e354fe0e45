"""The database file: who may open it, in what form, and what its errors mean."""

from __future__ import annotations

import os
import sqlite3
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import attrs

from dafx_actors._durable.tokens import mend_permissions
from dafx_actors.errors import SchedulerDatabaseError, SchedulerInUse, SchedulerReadFailed, SchedulerWriteFailed
from dafx_actors.scheduler.storage import schema

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

Row: TypeAlias = tuple[Any, ...]
Synchronous = Literal["full", "normal"]

IN_MEMORY = ":memory:"

_CACHED_STATEMENTS = 256
_PAGE = 2048
"""Bytes."""

_CACHE_KIB = 32 * 1024

_LOG_KEPT = 32 * 2**20
"""Bytes of the write-ahead log that stay on disk when it starts again from its beginning."""

_AT_ONCE = 0.0
"""Seconds that a connection of the event loop waits for somebody else's lock."""

_PATIENT = 5.0
"""Seconds that a connection of a thread does."""


def lock_of(database: Path) -> Path:
    """The file beside a database whose lock says that a process has it open."""
    return database.with_name(database.name + "-lock")


class FileLock:
    """Keeps a second process from a database, until it is closed or this process ends in whatever way.

    It locks a file beside the database, not the database: SQLite's own locks come and go with each transaction, and
    closing any other descriptor of the database would drop them. The lock has the database's real name, whatever
    symbolic links lead there; a database with several names (hard links) would have several locks, and is refused.
    """

    def __init__(self, database: Path) -> None:
        self._database = database
        self._path = lock_of(database)
        self._file: int | None = None

    def __enter__(self) -> FileLock:
        """Take the lock.

        Raises:
            SchedulerInUse: somebody has it.
            SchedulerDatabaseError: the directory cannot be written, or the database has more than one name.
        """
        try:
            file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise SchedulerDatabaseError(str(self._database), f"its directory cannot be used ({error})") from error
        try:
            _lock(file)
        except OSError as error:
            pid = _read_pid(file)
            os.close(file)
            raise SchedulerInUse(str(self._database), pid) from error
        try:
            self._check_names()
        except BaseException:
            os.close(file)
            raise
        self._file = file
        with suppress(OSError):  # The number is for people; on a full disk they do without it.
            os.ftruncate(file, 0)
            os.pwrite(file, str(os.getpid()).encode(), 0)
        return self

    def _check_names(self) -> None:
        try:
            names = self._database.stat().st_nlink
        except OSError:
            return  # It is not there yet, or opening it says what is wrong.
        if names > 1:
            raise SchedulerDatabaseError(
                str(self._database),
                f"it has {names} names (hard links), so that a second scheduler could open it under another one",
            )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            # Closed, not removed: to remove it would let a third process lock another file of that name.
            os.close(self._file)
            self._file = None


def _read_pid(file: int) -> int | None:
    with suppress(ValueError, OSError):
        return int(os.pread(file, 20, 0))
    return None


if sys.platform == "win32":  # pragma: no cover - the tests run on Unix
    import msvcrt

    def _lock(file: int) -> None:
        os.lseek(file, 4096, os.SEEK_SET)  # Beyond the pid, which others may read.
        msvcrt.locking(file, msvcrt.LK_NBLCK, 1)

else:
    import fcntl

    def _lock(file: int) -> None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def connect(path: str, *, synchronous: Synchronous, steps: Sequence[str] = schema.STEPS) -> sqlite3.Connection:
    """A connection that reads and writes; of a kind that any thread may use, one at a time.

    Args:
        path: the file, which is made if it is missing, and brought up to date if it is old.
        synchronous: what a commit waits for.
        steps: how to make a file, and how to bring it from each version to the next.

    Raises:
        SchedulerDatabaseError: the file is not what it should be, or cannot be written.
    """
    try:
        make_private(path)
        connection = _open(path, _PATIENT)
    except (sqlite3.Error, OSError) as error:
        raise SchedulerDatabaseError(path, str(error)) from error
    try:
        _check_ours(connection, path, len(steps))
        # Of a new file. A commit writes whole pages, and most of what it changes are small rows.
        connection.execute(f"PRAGMA page_size = {_PAGE}")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(f"PRAGMA synchronous = {synchronous.upper()}")
        # Checkpoints are made between commits, by whoever commits: see Committer.
        connection.execute("PRAGMA wal_autocheckpoint = 0")
        # Else the log would keep for good the size that it had when somebody read for long.
        connection.execute(f"PRAGMA journal_size_limit = {_LOG_KEPT}")
        connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        _migrate(connection, path, steps)
        # From here on the event loop uses it, which waits for nobody: see Committer.
        connection.execute(f"PRAGMA busy_timeout = {int(_AT_ONCE * 1_000)}")
    except sqlite3.Error as error:
        connection.close()
        raise SchedulerDatabaseError(path, _why(error)) from error
    except BaseException:
        connection.close()
        raise
    return connection


def _open(path: str, patience: float) -> sqlite3.Connection:
    return sqlite3.connect(
        path,
        timeout=patience,
        isolation_level=None,
        check_same_thread=False,
        cached_statements=_CACHED_STATEMENTS,
    )


def make_private(path: str) -> None:
    """See that nobody else on the machine can read the file, which is made if it is missing; SQLite's log follows suit.

    Raises:
        OSError: It cannot be made, or others can read it and that cannot be mended.
    """
    if path != IN_MEMORY:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        mend_permissions(path)


def connect_reader(path: str, *, patient: bool = True) -> sqlite3.Connection:
    """A connection that sees what is committed and changes nothing.

    Args:
        path: of the file.
        patient: it waits some seconds where somebody has locked the file; not on the event loop.
    """
    connection = _open(path, _PATIENT if patient else _AT_ONCE)
    connection.execute("PRAGMA query_only = ON")
    connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
    return connection


def _check_ours(connection: sqlite3.Connection, path: str, known: int) -> None:
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    if application != schema.APPLICATION_ID and tables:
        raise SchedulerDatabaseError(path, "it belongs to another program")
    if version > known:
        raise SchedulerDatabaseError(
            path, f"a newer dafx_actors wrote it (version {version}; this one knows up to {known})"
        )


def _migrate(connection: sqlite3.Connection, path: str, steps: Sequence[str]) -> None:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    for number in range(version, len(steps)):
        _step(connection, path, number, steps[number])


def _step(connection: sqlite3.Connection, path: str, number: int, script: str) -> None:
    """Bring a file from this version to the next, or leave it as it is."""
    try:
        # `executescript` would commit first; statement by statement the step is one transaction.
        connection.execute("BEGIN IMMEDIATE")
        for statement in statements(script):
            connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {schema.APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {number + 1}")
        connection.execute("COMMIT")
    except sqlite3.Error as error:
        with suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        raise SchedulerDatabaseError(
            path, f"it could not be brought from version {number} to {number + 1} ({_why(error)})"
        ) from error


def statements(script: str) -> Sequence[str]:
    """The statements of a script, one by one."""
    found: list[str] = []
    statement = ""
    for part in script.split(";"):
        statement += part + ";"
        if sqlite3.complete_statement(statement):
            found.append(statement)
            statement = ""
    return [text for text in found if text.strip(" \n;")]


# SQLite's primary result codes.
_MEANINGS = {
    3: "the file may not be opened",
    5: "another program has locked the file",
    8: "the file, or its disk, is read-only",
    10: "the disk reports an error",
    11: "the file is damaged",
    13: "the disk is full",
    14: "the file cannot be opened",
    26: "the file is not a database, or is damaged",
}


def _code(error: Exception) -> int | None:
    code: object = getattr(error, "sqlite_errorcode", None)
    return code & 0xFF if isinstance(code, int) else None


def _why(error: Exception) -> str:
    meaning = _MEANINGS.get(_code(error) or 0)
    return f"{meaning} ({error})" if meaning else str(error)


_DAMAGED = {11, 26}
_LOCKED = {5, 6}


def is_locked(error: Exception) -> bool:
    """Whether somebody else has locked the file, which may be over in a moment."""
    return _code(error) in _LOCKED


def read_failed(path: str, error: Exception) -> SchedulerReadFailed | SchedulerDatabaseError:
    """What a failed read means: only damage is damage; a lock, or too many open files, may be over in a moment."""
    if _code(error) in _DAMAGED:
        return SchedulerDatabaseError(path, f"it could not be read: {_why(error)}")
    return SchedulerReadFailed(path, _why(error))


def write_failed(path: str, error: Exception) -> SchedulerWriteFailed | SchedulerDatabaseError:
    """What a failed transaction means: nothing is to be written any more to a file that is damaged."""
    if _code(error) in _DAMAGED:
        return SchedulerDatabaseError(path, _why(error))
    return SchedulerWriteFailed(path, _why(error))


@attrs.frozen(kw_only=True)
class Location:
    """Where the data is."""

    path: str
    """A file's path, or `:memory:`."""

    @property
    def in_memory(self) -> bool:
        """Whether there is no file."""
        return self.path == IN_MEMORY

    def size(self) -> int:
        """Bytes on disk, the log included."""
        if self.in_memory:
            return 0
        return sum(_size(self.path + suffix) for suffix in ("", "-wal"))

    def log_size(self) -> int:
        """Bytes in the write-ahead log."""
        return 0 if self.in_memory else _size(self.path + "-wal")


def _size(path: str) -> int:
    try:
        return Path(path).stat().st_size
    except OSError:
        return 0
