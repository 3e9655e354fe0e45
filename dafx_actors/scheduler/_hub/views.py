"""What the running turns of a task hub say just now, for whoever looks: in memory only, and gone with the turn.

A worker tells the words of a model call under the completion token of that work. The token is the fence: it says which
turn the words are of, and words that come under one that is not out any more, since the work was handed out again or is
done, are refused. Words under another token than those before are another attempt, and take their place.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

import attrs

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from dafx_actors.scheduler._ground.records import Activity
    from dafx_actors.scheduler._hub.delivery import Delivery

MOST_OF_ONE = 1_000_000
"""Characters that are kept of one attempt; who looks is told of the rest when it was recorded."""
MOST_OF_ALL = 50_000_000
"""Characters that are kept of all turns; the oldest views go first."""


@attrs.define(eq=False)
class View:
    """What an attempt of a model call has said so far."""

    attempt: str
    step: int
    text: str = ""

    def since(self, attempt: str, position: int) -> dict[str, object] | None:
        """What is new to somebody who has seen so much of an attempt; None where nothing is."""
        if attempt != self.attempt or position > len(self.text):
            position = 0
        elif position == len(self.text):
            return None
        return {"attempt": self.attempt, "step": self.step, "position": position, "text": self.text[position:]}


class Views:
    """Of one task hub, by the instance ids of turns."""

    def __init__(self, delivery: Delivery) -> None:
        """Show nothing yet.

        Args:
            delivery: knows which work is out under which token.
        """
        self._delivery = delivery
        self._views: dict[str, View] = {}
        self._size = 0
        self._looking: dict[str, set[asyncio.Future[None]]] = {}
        self._stopped: Exception | None = None

    def tell(self, token: str, step: int, position: int, text: str) -> int | None:
        """Words of the work that is out under a token; told twice they count once.

        Returns:
            The characters that are there now of this attempt: the worker goes on from there. None where the token is
            not out, or no more is kept.
        """
        work = self._delivery.held_under(token, "activity")
        if work is None:
            return None
        turn = cast("Activity", work.subject).instance_id
        view = self._views.get(turn)
        if view is None or view.attempt != token or view.step != step:
            self.drop(turn)
            view = self._views[turn] = View(token, step)
        known = len(view.text)
        if position > known:
            return known
        if position + len(text) > MOST_OF_ONE:
            return None
        if more := text[known - position :]:
            view.text += more
            self._size += len(more)
            self._wake(turn)
            while self._size > MOST_OF_ALL:
                self.drop(next(iter(self._views)))
        return len(view.text)

    def drop(self, turn: str) -> None:
        """The turn has ended, or an attempt of it."""
        view = self._views.pop(turn, None)
        if view is not None:
            self._size -= len(view.text)

    async def look(self, seen: Mapping[str, tuple[str, int]], seconds: float) -> dict[str, dict[str, object]]:
        """What is new in the views of some turns, as soon as there is anything, or so many seconds have passed.

        Args:
            seen: Of each turn the attempt that was seen last, and how many characters of it.
            seconds: How long to wait.
        """
        if self._stopped is not None:
            raise self._stopped
        if found := self._new(seen):
            return found
        woken = asyncio.get_running_loop().create_future()
        for turn in seen:
            self._looking.setdefault(turn, set()).add(woken)
        try:
            await asyncio.wait({woken}, timeout=seconds)
            if woken.done():
                woken.result()
        finally:
            self._leave(seen, woken)
        return self._new(seen)

    def stop(self, error: Exception) -> None:
        """Let nobody look any longer."""
        self._stopped = error
        for looking in list(self._looking.values()):
            for woken in looking:
                if not woken.done():
                    woken.set_exception(error)

    def __len__(self) -> int:
        return len(self._views)

    def _new(self, seen: Mapping[str, tuple[str, int]]) -> dict[str, dict[str, object]]:
        found: dict[str, dict[str, object]] = {}
        for turn, (attempt, position) in seen.items():
            view = self._views.get(turn)
            if view is not None and (new := view.since(attempt, position)) is not None:
                found[turn] = new
        return found

    def _wake(self, turn: str) -> None:
        for woken in self._looking.get(turn, ()):
            if not woken.done():
                woken.set_result(None)

    def _leave(self, turns: Iterable[str], woken: asyncio.Future[None]) -> None:
        for turn in turns:
            if (looking := self._looking.get(turn)) is not None:
                looking.discard(woken)
                if not looking:
                    del self._looking[turn]
