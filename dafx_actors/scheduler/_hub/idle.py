"""Records that nothing needs at the moment, kept for a while because they are likely to be needed again."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import TYPE_CHECKING, Generic, TypeVar
from weakref import WeakValueDictionary

if TYPE_CHECKING:
    from collections.abc import Callable

K = TypeVar("K")
R = TypeVar("R")


def _soon(action: Callable[[], None]) -> object:
    return asyncio.get_running_loop().call_soon(action)


class IdleCache(Generic[K]):
    """The keys of idle records, least recently used first, with what each of them weighs.

    Nothing is forgotten at once: a request is carried out without an `await` in between, and whatever it has looked
    up must stay the one record of its kind until it is done. What has to go goes in a turn of the event loop of its
    own.
    """

    def __init__(
        self,
        forget: Callable[[K], None],
        *,
        most: int,
        heaviest: int,
        soon: Callable[[Callable[[], None]], object] = _soon,
    ) -> None:
        """Start empty.

        Args:
            forget: called for what has to go; it may decline.
            most: records.
            heaviest: bytes, as told to `put`.
            soon: has something done in a turn of the event loop of its own.
        """
        self._forget = forget
        self._most = most
        self._heaviest = heaviest
        self._soon = soon
        self._weights: OrderedDict[K, int] = OrderedDict()
        self._weight = 0
        self._trims = False

    def put(self, key: K, weight: int) -> None:
        """It is idle now."""
        self.take(key)
        self._weights[key] = weight
        self._weight += weight
        if self._is_full() and not self._trims:
            self._trims = True
            self._soon(self._trim)

    def take(self, key: K) -> None:
        """It is needed, or gone."""
        self._weight -= self._weights.pop(key, 0)

    def clear(self) -> None:
        """All are gone."""
        self._weights.clear()
        self._weight = 0

    def _is_full(self) -> bool:
        return len(self._weights) > self._most or self._weight > self._heaviest

    def _trim(self) -> None:
        self._trims = False
        while self._weights and self._is_full():
            old, its_weight = self._weights.popitem(last=False)
            self._weight -= its_weight
            self._forget(old)


class Evicted(Generic[R]):
    """Records that were forgotten and that somebody still holds: each stays the one that stands for its row."""

    def __init__(self) -> None:
        self._held: WeakValueDictionary[int, R] = WeakValueDictionary()

    def add(self, row: int, record: R) -> None:
        """It was forgotten; it is as the store has it."""
        self._held[row] = record

    def same(self, row: int, loaded: R) -> R:
        """The record for this row: the one that somebody holds, else the one that was loaded."""
        held = self._held.pop(row, None)
        return loaded if held is None else held

    def clear(self) -> None:
        """What is held is not to be trusted any more."""
        self._held.clear()
