"""The world that tools act on: a folder with one small file per call, by its idempotency key.

Each line of a file says what an attempt did: `begun 1 PID`, `acted 1 PID`, or `fenced 1 PID`. Whoever looks up what
became of an attempt that has not acted fences it at the same moment, so that a process which was only stopped cannot
act for it later: as a payment service would that is asked to void a payment.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import IO
from urllib.parse import quote


class Effects:
    """What calls have done."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)

    def begin(self, key: str, attempt: int) -> None:
        with self._file(key) as file:
            file.write(_line("begun", attempt))

    def act(self, key: str, attempt: int) -> None:
        """Act, unless somebody has found before that this attempt did not."""
        with self._file(key) as file:
            if any(word == "fenced" and number >= attempt for word, number in _read(file)):
                raise RuntimeError(f"attempt {attempt} of {key} comes too late")
            file.write(_line("acted", attempt))

    def look_up(self, key: str, attempt: int) -> bool:
        """Whether any attempt up to this one has acted; if not, none of them ever will."""
        with self._file(key) as file:
            if any(word == "acted" for word, _ in _read(file)):
                return True
            file.write(_line("fenced", attempt))
            return False

    def all(self) -> dict[str, list[tuple[str, int]]]:
        """What was done, by key."""
        found: dict[str, list[tuple[str, int]]] = {}
        for path in self.folder.iterdir():
            with path.open() as file:
                found[path.name] = _read(file)
        return found

    @contextmanager
    def _file(self, key: str) -> Generator[IO[str]]:
        with (self.folder / name_of(key)).open("a+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield file


def name_of(key: str) -> str:
    return quote(key, safe="")


def _line(word: str, attempt: int) -> str:
    return f"{word} {attempt} {os.getpid()} {time.monotonic():.3f}\n"


def _read(file: IO[str]) -> list[tuple[str, int]]:
    file.seek(0)
    return [(line.split()[0], int(line.split()[1])) for line in file if line.endswith("\n")]
