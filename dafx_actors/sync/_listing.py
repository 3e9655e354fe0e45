"""Lists of what a task hub holds, for programs without an event loop."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

from dafx_actors.client import _listing as _async
from dafx_actors.client._listing import PAGE, Page
from dafx_actors.sync._calls import Caller

T = TypeVar("T")


class Listing(Generic[T]):
    """A list that is read while it is gone through: nothing is asked of the scheduler before.

    ::

        for thread in client.threads.list("Joker"):
            print(thread)

    What comes or goes meanwhile may be in it or not; what is there all the time is in it once.
    """

    def __init__(self, caller: Caller, listing: _async.Listing[T]) -> None:
        self._caller = caller
        self._listing = listing

    def __iter__(self) -> Iterator[T]:
        """Each item, in the scheduler's order, a call of the scheduler for each 100 that are looked at."""
        for page in self.pages():
            yield from page.items

    def page(self, *, size: int = PAGE, after: str = "") -> Page[T]:
        """One page, by one call of the scheduler.

        Args:
            size: Items to look at, from 1 to 1,000. Fewer come where they are large, or a filter leaves some out.
            after: `Page.next` of the page before; by default it is the first page.

        Raises:
            ValueError: `size` is out of bounds.
            SchedulerRefused: `after` is not of this scheduler.
            SchedulerUnreachable: Nothing answers, or not within the `timeout` of the list.
        """
        return self._caller.call(self._listing.page, size=size, after=after)

    def pages(self, *, size: int = PAGE, after: str = "") -> Iterator[Page[T]]:
        """Each page, from the one that `after` names to the last.

        Args:
            size: As of `page`.
            after: As of `page`.

        Raises:
            ValueError, SchedulerRefused, SchedulerUnreachable: As of `page`.
        """
        while True:
            page = self.page(size=size, after=after)
            yield page
            if not (after := page.next):
                return
