"""Text that UTF-8 cannot carry: halves of characters, such as a cut emoji or `surrogateescape` leaves behind."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import cast

from dafx_actors.transcript import Json

__all__ = ["well_formed", "well_formed_text"]


_ENCODER = json.JSONEncoder(ensure_ascii=False)


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
    try:
        _ENCODER.encode(value).encode()  # in C, and most often all that is to be done
    except (UnicodeEncodeError, TypeError):
        return _mended(value)
    return value


def _mended(value: Json) -> Json:
    if isinstance(value, str):
        return well_formed_text(value)
    if isinstance(value, Mapping):
        given = cast("Mapping[str, Json]", value)
        return {well_formed_text(key): _mended(item) for key, item in given.items()}
    if isinstance(value, list | tuple):
        return [_mended(item) for item in cast("list[Json]", value)]
    return value
