"""The care of a database file that no scheduler has open: is it whole; make one of a backup."""

from __future__ import annotations

import os
import shutil
import sqlite3
from contextlib import closing, nullcontext
from pathlib import Path

from dafx_actors.errors import SchedulerDatabaseError
from dafx_actors.scheduler.storage import schema
from dafx_actors.scheduler.storage.database import FileLock, lock_of

_MOST = 20
"""Mistakes that are told."""


def mistakes_in(path: str) -> list[str]:
    """What is wrong with a file, in words; nothing where it is whole. It is read through, and not changed.

    Raises:
        FileNotFoundError: There is none.
        SchedulerInUse: A scheduler has it open.
        SchedulerDatabaseError: The lock beside it cannot be had.
    """
    file = Path(path).resolve()
    if not file.is_file():
        raise FileNotFoundError(2, "there is no such file", path)
    # Whoever has opened it once has left a lock; none is left here, beside a backup.
    with FileLock(file) if lock_of(file).exists() else nullcontext():
        return _mistakes(file)


def _mistakes(file: Path) -> list[str]:
    try:
        # Not read-only, which could not read what is in the log beside it.
        with closing(sqlite3.connect(file)) as connection:
            (application,) = connection.execute("PRAGMA application_id").fetchone()
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if application != schema.APPLICATION_ID:
                return ["it belongs to another program"]
            if version > len(schema.STEPS):
                return [f"a newer dafx_actors wrote it (version {version}; this one knows {len(schema.STEPS)})"]
            found = [str(row[0]) for row in connection.execute(f"PRAGMA integrity_check({_MOST})")]
            found = [] if found == ["ok"] else found
            return [
                *found,
                *(f"a row of {row[0]} refers to none" for row in connection.execute("PRAGMA foreign_key_check")),
            ]
    except sqlite3.Error as error:
        return [str(error)]


def restore(backup: str, database: str) -> int:
    """Make a database of a backup, whole or not at all. Returns its bytes.

    Raises:
        FileExistsError: There is a database, or the log of one.
        SchedulerInUse: A scheduler has it open.
        SchedulerDatabaseError: It cannot be written.
    """
    target = Path(database).resolve()
    with FileLock(target):
        for there in (target, *(target.with_name(target.name + suffix) for suffix in ("-wal", "-shm"))):
            if there.exists():
                raise FileExistsError(17, "it is there already", str(there))
        partial = target.with_name(target.name + ".partial")
        try:
            with (
                Path(backup).open("rb") as source,
                open(partial, "wb", opener=_privately) as copy,
            ):
                shutil.copyfileobj(source, copy)
                copy.flush()
                os.fsync(copy.fileno())
            partial.rename(target)
        except OSError as error:
            raise SchedulerDatabaseError(database, f"it could not be written ({error})") from error
        finally:
            partial.unlink(missing_ok=True)
        return target.stat().st_size


def _privately(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
