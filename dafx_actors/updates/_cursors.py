"""Cursors: they name what was told, not where it was found. So they fit each kind of updates, and the transcript."""

from __future__ import annotations

import re

import attrs

from dafx_actors._shown import Shown
from dafx_actors.errors import InvalidCursor
from dafx_actors.updates._content import Entries, Words

_FORM = re.compile(r"1-(\d{1,9})-(\d{1,9})-(\d{1,12})-([0-9a-f]{8})-([0-9a-f]{8})(-e)?")


@attrs.frozen(kw_only=True, repr=False)
class Cursor(Shown):
    """How far a reader has come."""

    step: int = 0
    entries: int = 0
    """Of the step, with the one that may go on."""
    offset: int = 0
    """Characters of the last entry, where it is words."""
    before: int = 0
    """Checksum of the steps before."""
    within: int = 0
    """Checksum of what was told of the step."""
    is_end: bool = False
    """Whether `ended` was told."""

    def __str__(self) -> str:
        text = f"1-{self.step}-{self.entries}-{self.offset}-{self.before:08x}-{self.within:08x}"
        return f"{text}-e" if self.is_end else text

    @classmethod
    def parse(cls, text: str) -> Cursor:
        """Read a cursor.

        Raises:
            InvalidCursor: It is none.
        """
        found = _FORM.fullmatch(text) if isinstance(text, str) else None  # pyright: ignore[reportUnnecessaryIsInstance]
        if found is None:
            raise InvalidCursor(repr(text)[:200])
        step, entries, offset, before, within, end = found.groups()
        return cls(
            step=int(step),
            entries=int(entries),
            offset=int(offset),
            before=int(before, 16),
            within=int(within, 16),
            is_end=end is not None,
        )


def is_end(cursor: str) -> bool:
    """Whether a cursor is that of `Ended`: its reader has been told everything.

    Raises:
        InvalidCursor: It is no cursor.
    """
    return Cursor.parse(cursor).is_end


def checksum(entries: Entries, before: int = 0) -> int:
    """The checksum of entries, after `before`."""
    for entry in entries:
        before = entry.checksum(before)
    return before


def offset_of(entries: Entries) -> int:
    """The characters of the last entry, where it is words."""
    return len(entries[-1].text) if entries and isinstance(entries[-1], Words) else 0
