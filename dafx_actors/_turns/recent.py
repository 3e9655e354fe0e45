"""What a worker has just written and read of its threads, so that the next step need not do it again."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress

import anyio
import attrs

from dafx_actors._json.document import load_entries
from dafx_actors.ids import AgentThread, new_id
from dafx_actors.transcript import Entry, Json


def begin_token(thread: AgentThread, turn: str) -> str:
    """Under which what a `begin` stored is kept: its turn's first step comes by itself, and knows no other token."""
    return f"{thread.thread_id}/{turn}"


def record_token(thread: AgentThread, turn: str, length: int) -> str:
    """Under which what a `record` stored is kept, or that it was made: the step that came with it knows no other.

    `length` is that of the thread before it, as its turn knows it; one message comes to it.
    """
    return f"{thread.thread_id}/{turn}/{length}"


@attrs.frozen
class _Kept:
    document: Json
    entries: int
    at: float


class RecentDocuments:
    """Documents of threads by tokens, each for one use.

    An operation keeps what it stores under a token of its own, which goes with its outcome. So whoever has the token
    has it from an outcome that was committed, and what is found under it is what was committed with it: an operation
    that was lost and made again has another one. Only a `begin`, and a `record` that a step came with, have a token
    that their turn knows beforehand: what they stored may be seen before it is committed. Made again, they come first
    in their thread's mailbox again, and store the same. That is good enough to ask a model, and not to let a tool act.
    What is not found, because another worker made the operation, or because it was long ago or too much, is read.
    """

    def __init__(
        self, *, entries: int = 20_000, seconds: float = 10.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._entries = entries
        self._seconds = seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        self._held = 0
        self._expected: dict[str, Callable[[], None]] = {}

    def keep(self, document: Json, entries: int, token: str | None = None) -> str:
        """Keep a document of so many entries, under `token` if one is given; its token."""
        token, now = token or new_id(), self._clock()
        with self._lock:
            self._held -= kept.entries if (kept := self._kept.pop(token, None)) else 0
            self._kept[token] = _Kept(document, entries, now)
            self._held += entries
            if (expected := self._expected.get(token)) is not None:
                expected()
            while self._kept and (self._held > self._entries or self._oldest.at < now - self._seconds):
                self._held -= self._kept.popitem(last=False)[1].entries
        return token

    def take(self, token: str | None) -> Json:
        """The document under a token, once; None where there is none."""
        with self._lock:
            kept = self._kept.pop(token, None) if token is not None else None
            if kept is None:
                return None
            self._held -= kept.entries
            return kept.document

    async def wait_for(self, token: str, seconds: float) -> bool:
        """Wait until something is kept under a token, also None; whether it is."""
        with self._lock:
            if token in self._kept:
                return True
        loop, kept = asyncio.get_running_loop(), anyio.Event()

        def tell() -> None:
            with suppress(RuntimeError):  # the loop was closed meanwhile
                loop.call_soon_threadsafe(kept.set)

        with self._lock:
            if token in self._kept:
                return True
            self._expected[token] = tell
        try:
            with anyio.move_on_after(seconds):
                await kept.wait()
        finally:
            with self._lock:
                if self._expected.get(token) is tell:
                    del self._expected[token]
        with self._lock:
            return token in self._kept

    @property
    def _oldest(self) -> _Kept:
        return next(iter(self._kept.values()))


class RecentEntries:
    """The entries of long threads as they were read last: a thread only grows, and to read it takes most of a turn.

    What is kept counts only where it was read from what is stored now, entry by entry.
    """

    def __init__(self, *, entries: int = 10_000, at_least: int = 6) -> None:
        """Keep nothing yet.

        Args:
            entries: How many are kept in all; threads that were not read for longest go first.
            at_least: How many a thread has that is worth it.
        """
        self._entries = entries
        self._at_least = at_least
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, tuple[Sequence[Json], tuple[Entry, ...]]] = OrderedDict()
        self._held = 0

    def load(self, thread_id: str, stored: Sequence[Json]) -> tuple[Entry, ...]:
        """Read the entries of a thread."""
        if len(stored) < self._at_least:
            return load_entries(stored)
        with self._lock:
            before, known = self._kept.get(thread_id, ((), ()))
        pairs = enumerate(zip(before, stored, strict=False))
        same = next((n for n, (old, new) in pairs if old != new), min(len(before), len(stored)))
        read = known[:same] + load_entries(stored[same:])
        with self._lock:
            if (old := self._kept.pop(thread_id, None)) is not None:
                self._held -= len(old[1])
            self._kept[thread_id] = (stored, read)
            self._held += len(read)
            while self._held > self._entries:
                self._held -= len(self._kept.popitem(last=False)[1][1])
        return read
