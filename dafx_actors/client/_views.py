"""What running turns say just now, as the embedded scheduler shows it: one long poll of a client for all its readers.

Readers of a turn share a mirror of its view. Where the scheduler has no views, or does not answer, nothing is shown:
what was said is told when it was recorded.
"""

from __future__ import annotations

import asyncio
import weakref
from typing import TYPE_CHECKING

import grpc

from dafx_actors._durable.backend import Backend
from dafx_actors.errors import DafxError
from dafx_actors.updates._reading import View

if TYPE_CHECKING:
    from dafx_actors._durable.words import NewWords

_POLL = 20.0
"""Seconds that a look may take."""
_PACE = 0.01
"""Seconds between two looks: what many turns say meanwhile comes at once."""
_AWAY = 1.0
"""Seconds until a scheduler that does not answer is asked again."""


class _Mirror:
    """The view of one turn, and who reads it."""

    def __init__(self) -> None:
        self.attempt, self.step, self.text = "", 0, ""
        self.readers: set[Watch] = set()

    def take(self, new: NewWords) -> None:
        """Take what is new, and wake the readers. What does not go on from here is asked for again, from the start."""
        if new.attempt != self.attempt:
            self.attempt, self.step, self.text = new.attempt, new.step, ""
        if new.position > len(self.text):
            self.attempt = ""
            return
        self.text = self.text[: new.position] + new.text
        for reader in self.readers:
            reader.wake()


class Watch:
    """One reader of the view of a turn."""

    def __init__(self, mirror: _Mirror) -> None:
        self._mirror = mirror
        self._woken: asyncio.Future[None] | None = None
        self._has_news = False

    @property
    def view(self) -> View | None:
        """What is on its way, as far as it is known."""
        mirror = self._mirror
        return View(step=mirror.step, text=mirror.text) if mirror.text else None

    def news(self) -> asyncio.Future[None]:
        """It is done as soon as the view has changed since this was called last."""
        if self._woken is None or self._woken.done():
            self._woken = asyncio.get_running_loop().create_future()
        if self._has_news:
            self._has_news = False
            self._woken.set_result(None)
        return self._woken

    def wake(self) -> None:
        """The view has changed."""
        if self._woken is not None and not self._woken.done():
            self._woken.set_result(None)
        else:
            self._has_news = True


class _Looking:
    """The long polls of one client on one event loop; none where nobody reads."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._mirrors: dict[str, _Mirror] = {}
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def watch(self, turn: str) -> Watch:
        mirror = self._mirrors.setdefault(turn, _Mirror())
        mirror.readers.add(watch := Watch(mirror))
        self._changed.set()
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(), name="views of turns")
        return watch

    async def leave(self, turn: str, watch: Watch) -> None:
        mirror = self._mirrors.get(turn)
        if mirror is None:
            return
        mirror.readers.discard(watch)
        if not mirror.readers:
            del self._mirrors[turn]
            self._changed.set()
        task = self._task
        if not self._mirrors and task is not None:
            self._task = None
            task.cancel()
            await asyncio.wait({task})

    async def _run(self) -> None:
        while self._mirrors:
            self._changed.clear()
            seen = {turn: (mirror.attempt, len(mirror.text)) for turn, mirror in self._mirrors.items()}
            look = asyncio.create_task(self._backend.look(seen, _POLL))
            others = asyncio.create_task(self._changed.wait())
            try:
                await asyncio.wait({look, others}, return_when=asyncio.FIRST_COMPLETED)
                if not look.done():
                    continue
                found = look.result()
            except (DafxError, grpc.RpcError):
                await asyncio.sleep(_AWAY)
                continue
            finally:
                look.cancel()
                others.cancel()
                await asyncio.wait({look, others})
            if found is None:
                return  # this scheduler has no views
            for turn, new in found.items():
                if (mirror := self._mirrors.get(turn)) is not None:
                    mirror.take(new)
            await asyncio.sleep(_PACE)


class Views:
    """The views of turns, for the readers of one client."""

    def __init__(self, backend: Backend) -> None:
        """Look at nothing yet."""
        self._backend = backend
        self._looking: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Looking] = weakref.WeakKeyDictionary()

    def watch(self, turn: str) -> Watch:
        """Begin to read the view of a turn, on the running event loop. To be left."""
        loop = asyncio.get_running_loop()
        if (looking := self._looking.get(loop)) is None:
            looking = self._looking[loop] = _Looking(self._backend)
        return looking.watch(turn)

    async def leave(self, turn: str, watch: Watch) -> None:
        """Read it no more."""
        if (looking := self._looking.get(asyncio.get_running_loop())) is not None:
            await looking.leave(turn, watch)
