"""What is said of a scheduler that is away: a line when it is lost, one a minute, one when it is back."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable

_AGAIN = 60.0
"""Seconds between two lines about one outage."""
_LONGEST_DETAIL = 300

_LOST_BY_WORKER = (
    "Failed to create connection",
    "Connection failed, retrying",
    "Error in work item stream",
    "Connection timeout to",
    "The sidecar at address",
    "Connection-level gRPC error",
    "Timed out waiting for work items",
)
"""How durabletask's worker begins to tell that it is not connected."""
_CONNECTED = ("Created fresh connection", "Successfully connected")
_STOPPED = "Locally cancelled by application"
_DETAILS = re.compile(r'details = "([^"]*)"')

_logger = logging.getLogger("dafx_actors.worker")


class Outage:
    """Whether one scheduler answers, as calls tell it, from any thread; and the lines for a log.

    Calls are made again many times a second while a scheduler is away, by many at a time: each says so here, and few of
    them are worth a line.
    """

    def __init__(self, endpoint: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._endpoint = endpoint
        self._clock = clock
        self._since: float | None = None
        self._said = 0.0
        self._lock = threading.Lock()

    @property
    def is_on(self) -> bool:
        """Whether the latest call got lost."""
        return self._since is not None

    def lost(self, detail: str) -> str | None:
        """A call got lost. Gives the line to say, if one is due."""
        with self._lock:
            now = self._clock()
            if self._since is None:
                self._since = self._said = now
                because = f" ({one_line(detail)})" if detail else ""
                return f"No scheduler answers at {self._endpoint}{because}. It is tried again until it does."
            if now - self._said < _AGAIN:
                return None
            self._said = now
            return f"No scheduler has answered at {self._endpoint} for {now - self._since:.0f} s."

    def back(self) -> str | None:
        """A call was answered. Gives the line to say, if one is due."""
        if not self.is_on:
            return None
        with self._lock:
            if (since := self._since) is None:
                return None
            self._since = None
            return f"The scheduler at {self._endpoint} answers again, after {self._clock() - since:.1f} s."


class Seldom:
    """A line that many have to say at a time: the first at once, then one a minute, with how many there were."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._said: float | None = None
        self._kept = 0
        self._lock = threading.Lock()

    def say(self, line: str) -> str | None:
        """Gives the line to say, if it is time."""
        with self._lock:
            now = self._clock()
            if self._said is not None and now - self._said < _AGAIN:
                self._kept += 1
                return None
            self._said, kept, self._kept = now, self._kept, 0
            return f"{line} (And {kept} more since the last line.)" if kept else line


def one_line(text: str) -> str:
    """A text for a log: without line breaks, and not longer than a person reads."""
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST_DETAIL else text[: _LONGEST_DETAIL - 1] + "\N{HORIZONTAL ELLIPSIS}"


class WorkerLogger(logging.Logger):
    """For a worker of durabletask, which tells of each attempt to connect several times, with all that gRPC knows.

    Of its connection there is a line when it is lost, one a minute, and one when it is back; all else that is at least
    a warning goes to `parent`. One for each worker, which goes with it.
    """

    def __init__(self, endpoint: str, parent: logging.Logger) -> None:
        super().__init__(parent.name, logging.WARNING)
        self.parent = parent
        self._outage = Outage(endpoint)
        self.addFilter(self._is_something_else)

    def isEnabledFor(self, level: int) -> bool:  # noqa: N802 - the name is logging's
        """Whether it wants to hear of this. durabletask tells at INFO that it is connected, and of every call."""
        return level >= (logging.INFO if self._outage.is_on else logging.WARNING)

    def _is_something_else(self, record: logging.LogRecord) -> bool:
        said, line = record.getMessage(), None
        if said.startswith(_LOST_BY_WORKER):
            if _STOPPED not in said:
                line = self._outage.lost(_detail_in(said))
        elif said.startswith(_CONNECTED):
            line = self._outage.back()
        else:
            return record.levelno >= logging.WARNING
        if line is not None:
            _logger.warning("%s", line)
        return False


def _detail_in(said: str) -> str:
    found = _DETAILS.search(said)
    return found.group(1) if found else said
