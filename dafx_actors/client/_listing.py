"""Lists of what a task hub holds: read a page at a time, as they are asked for."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Generic, TypeVar

import attrs

T = TypeVar("T")

PAGE = 100
"""Items that are read together, unless the caller says otherwise."""
MOST = 1_000
"""Items that are read together at most: the embedded scheduler gives no more."""


@attrs.frozen(kw_only=True)
class Page(Generic[T]):
    """Some of a list. It may be empty, and not be the last: what a filter leaves out was read all the same."""

    items: tuple[T, ...]
    next: str = ""
    """Names the next page, for `after`; empty where this is the last. Another program may go on with it."""


Read = Callable[[int, str], Awaitable[Page[T]]]
"""Reads a page of about so many items, from behind the one that named it."""


class Listing(Generic[T]):
    """A list that is read while it is gone through: nothing is asked of the scheduler before.

    ::

        async for thread in client.threads.list("Joker"):
            print(thread)

    What comes or goes meanwhile may be in it or not; what is there all the time is in it once.
    """

    def __init__(self, read: Read[T]) -> None:
        self._read = read

    async def __aiter__(self) -> AsyncIterator[T]:
        """Each item, in the scheduler's order, a call of the scheduler for each 100 that are looked at."""
        async for page in self.pages():
            for item in page.items:
                yield item

    async def page(self, *, size: int = PAGE, after: str = "") -> Page[T]:
        """One page, by one call of the scheduler.

        Args:
            size: Items to look at, from 1 to 1,000. Fewer come where they are large, or a filter leaves some out.
            after: `Page.next` of the page before; by default it is the first page.

        Raises:
            ValueError: `size` is out of bounds.
            SchedulerRefused: `after` is not of this scheduler.
            SchedulerUnreachable: Nothing answers, or not within the `timeout` of the list.
        """
        if not 1 <= size <= MOST:
            raise ValueError(f"a page has from 1 to {MOST:,} items, not {size!r}")
        return await self._read(size, after)

    async def pages(self, *, size: int = PAGE, after: str = "") -> AsyncIterator[Page[T]]:
        """Each page, from the one that `after` names to the last.

        Args:
            size: As of `page`.
            after: As of `page`.

        Raises:
            ValueError, SchedulerRefused, SchedulerUnreachable: As of `page`.
        """
        while True:
            page = await self.page(size=size, after=after)
            yield page
            if not (after := page.next):
                return


def before(older: timedelta | None) -> datetime | None:
    """The time before which a thing is older than that; by this machine's clock.

    Raises:
        ValueError: That is less than no time, or more than there is.
    """
    if older is None:
        return None
    if older < timedelta():
        raise ValueError(f"`older` must not be negative: {older}")
    try:
        return datetime.now(UTC) - older
    except OverflowError as error:
        raise ValueError(f"`older` is longer than calendars go back: {older}") from error
