"""Text that UTF-8 cannot carry: halves of characters, such as a cut emoji or `surrogateescape` leaves behind."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from dafx_actors.transcript import Json

__all__ = ["well_formed", "well_formed_text"]


def well_formed_text(text: str) -> str:
    """The text, with U+FFFD for each half of a character; two halves that belong together become one character."""
    if text.isascii():  # known without looking at it
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def well_formed(value: Json) -> Json:
    """A JSON value with such texts, names included; itself, where nothing is wrong with it."""
    if isinstance(value, str):
        return well_formed_text(value)
    if isinstance(value, Mapping):
        given = cast("Mapping[str, Json]", value)
        made = {well_formed_text(key): well_formed(item) for key, item in given.items()}
        same = all(new is old for new, old in zip(made.values(), given.values(), strict=False))
        return given if same and made.keys() == given.keys() else made
    if isinstance(value, list | tuple):
        items = cast("list[Json]", value)
        checked = [well_formed(item) for item in items]
        return items if all(new is old for new, old in zip(checked, items, strict=True)) else checked
    return value
