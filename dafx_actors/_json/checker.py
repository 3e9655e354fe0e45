"""Holds values against schemas that may take for ever, in a process of its own, which is ended when it takes too long.

A pattern of a caller such as `^(a+)+$` cannot be stopped inside Python: neither the event loop nor any other thread
would run meanwhile. The process is started when the first such schema comes, and kept for the next one.
"""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from dafx_actors._json import schema_check as _schema_check
from dafx_actors._json.schema_check import BrokenSchema

SECONDS = 2.0
"""That one check may take."""
_START = 30.0
"""Seconds that the process may take to start."""


class TookTooLong(Exception):
    """Whether the value fits could not be found out in time."""


class Checker:
    """One such process. Its methods may be called from any thread; they wait for one another."""

    def __init__(self, seconds: float = SECONDS) -> None:
        """Start nothing yet.

        Args:
            seconds: That one check may take.
        """
        self.seconds = seconds
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0

    def mistakes(self, value: Any, schema: Any) -> list[tuple[str, str]]:
        """As `_schema_check.mistakes`, within the time.

        Raises:
            TookTooLong: It was not over by then, or the process has ended otherwise.
            BrokenSchema: As there.
        """
        line = json.dumps([value, schema]).encode() + b"\n"
        with self._lock:
            answer = self._answer(line)
        if "broken" in answer:
            raise BrokenSchema(answer["broken"])
        return [(place, message) for place, message in answer["mistakes"]]

    def close(self) -> None:
        """End the process."""
        with self._lock:
            self._end()

    def _answer(self, line: bytes) -> Any:
        for _ in range(2):
            began = time.monotonic()
            said = self._say(self._running(), line, self.seconds)
            if said.endswith(b"\n"):
                return json.loads(said)
            self._end()
            if time.monotonic() - began >= self.seconds:
                break  # else somebody else has ended the process, perhaps before this value came
        raise TookTooLong

    def _running(self) -> subprocess.Popen[bytes]:
        if self._owner != os.getpid():
            self._process = None  # that of the parent, after a fork
        if self._process is not None and self._process.poll() is None:
            return self._process
        self._end()
        file = str(Path(_schema_check.__file__))
        self._process = subprocess.Popen(  # noqa: S603 - our own file
            [sys.executable, "-I", file], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        self._owner = os.getpid()
        atexit.unregister(self.close)
        atexit.register(self.close)
        where = json.dumps([each for each in sys.path if each]).encode() + b"\n"
        if not self._say(self._process, where, _START):
            self._end()
            raise TookTooLong
        return self._process

    def _say(self, process: subprocess.Popen[bytes], line: bytes, seconds: float) -> bytes:
        assert process.stdin is not None, "asked for"
        assert process.stdout is not None, "asked for"
        timer = threading.Timer(seconds, process.kill)
        timer.daemon = True
        timer.start()
        try:
            process.stdin.write(line)
            process.stdin.flush()
            return process.stdout.readline()
        except OSError:
            return b""
        finally:
            timer.cancel()

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None or self._owner != os.getpid():
            return
        process.kill()
        for pipe in (process.stdin, process.stdout):
            with suppress(OSError):
                if pipe is not None:
                    pipe.close()
        process.wait()


CHECKER = Checker()
"""Of this process."""
