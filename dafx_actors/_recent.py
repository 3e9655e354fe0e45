"""What a worker has just written of its threads, so that the step that follows need not read it again."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress

import anyio
import attrs

from dafx_actors.ids import new_id
from dafx_actors.transcript import Json


@attrs.frozen
class _Kept:
    document: Json
    entries: int
    at: float


class RecentDocuments:
    """Documents of threads by tokens, each for one use.

    An operation keeps what it stores under a token of its own, which goes with its outcome. So whoever has the token
    has it from an outcome that was committed, and what is found under it is what was committed with it: an operation
    that was lost and made again has another one. What is not found, because another worker made the operation, or
    because it was long ago or too much, is read.
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
        loop, kept = asyncio.get_running_loop(), anyio.Event()

        def tell() -> None:
            with suppress(RuntimeError):  # the loop was closed meanwhile
                loop.call_soon_threadsafe(kept.set)

        with self._lock:
            if token in self._kept:
                return True
            self._expected[token] = tell
        with anyio.move_on_after(seconds):
            await kept.wait()
        with self._lock:
            self._expected.pop(token, None)
            return token in self._kept

    @property
    def _oldest(self) -> _Kept:
        return next(iter(self._kept.values()))
