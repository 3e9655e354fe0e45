"""Records that nothing needs at the moment, kept for a while because they are likely to be needed again."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

K = TypeVar("K")


class IdleCache(Generic[K]):
    """The keys of idle records, least recently used first, with what each of them weighs."""

    def __init__(self, forget: Callable[[K], None], *, most: int, heaviest: int) -> None:
        """Start empty.

        Args:
            forget: called for what has to go.
            most: records.
            heaviest: bytes, as told to `put`.
        """
        self._forget = forget
        self._most = most
        self._heaviest = heaviest
        self._weights: OrderedDict[K, int] = OrderedDict()
        self._weight = 0

    def put(self, key: K, weight: int) -> None:
        """It is idle now."""
        self.take(key)
        self._weights[key] = weight
        self._weight += weight
        while self._weights and (len(self._weights) > self._most or self._weight > self._heaviest):
            old, its_weight = self._weights.popitem(last=False)
            self._weight -= its_weight
            self._forget(old)

    def take(self, key: K) -> None:
        """It is needed, or gone."""
        self._weight -= self._weights.pop(key, 0)

    def clear(self) -> None:
        """All are gone."""
        self._weights.clear()
        self._weight = 0
