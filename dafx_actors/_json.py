"""JSON's own shapes: objects, lists and times, or a ValueError that says what was found instead."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any, cast

from dafx_actors.transcript import Json

_FRACTION = re.compile(r"\.(\d+)")


def load_json(text: str) -> Json:
    """Read a JSON text.

    Raises:
        ValueError: It is none, or nested too deeply to be read.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError(f"not a JSON text that can be read, nested too deeply: {shown(text)}") from error


def dump_time(moment: datetime) -> str:
    """RFC 3339 in UTC; a time without a zone is UTC, as it is when it is read, and not this machine's."""
    return _in_utc(moment).isoformat()


def load_time(text: Json) -> datetime:
    """Read RFC 3339; a time without a zone is UTC, and digits beyond the microsecond are cut off (.NET writes 7).

    Raises:
        ValueError: It is no such time.
    """
    if not isinstance(text, str):
        raise ValueError(f"not a time: {text!r}")  # noqa: TRY004 - bad data, not a bad program
    micros = text
    if "." in text:
        micros = _FRACTION.sub(lambda found: "." + found.group(1)[:6].ljust(6, "0"), text, count=1)
    moment = datetime.fromisoformat(micros[:-1] + "+00:00" if micros[-1:] in {"Z", "z"} else micros)
    try:
        return _in_utc(moment)
    except OverflowError as error:
        raise ValueError(f"not a time that can be told in UTC: {text!r}") from error


def _in_utc(moment: datetime) -> datetime:
    if moment.tzinfo is timezone.utc:
        return moment
    return moment.astimezone(timezone.utc) if moment.tzinfo else moment.replace(tzinfo=timezone.utc)


def as_object(value: Json, _: Any = None) -> Mapping[str, Json]:
    """An object, as it is.

    Raises:
        ValueError: It is something else.
    """
    # The check for any mapping costs more than most that is done with a small one.
    if type(value) is not dict and not isinstance(value, Mapping):
        raise ValueError(f"expected an object, found {value!r}")
    return cast("Mapping[str, Json]", value)


def as_list(value: Json) -> list[Json]:
    """A list, as it is.

    Raises:
        ValueError: It is something else.
    """
    if not isinstance(value, list):
        raise ValueError(f"expected a list, found {value!r}")  # noqa: TRY004 - likewise
    return cast("list[Json]", value)


def as_text(value: Json) -> str:
    """A text, as it is.

    Raises:
        ValueError: It is something else.
    """
    if not isinstance(value, str):
        raise ValueError(f"expected a text, found {shown(value)}")  # noqa: TRY004 - likewise
    return value


def as_whole_number(value: Json) -> int:
    """A whole number, as it is.

    Raises:
        ValueError: It is something else.
    """
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"expected a whole number, found {shown(value)}")  # noqa: TRY004 - likewise
    return value


def as_number(value: Json) -> float:
    """A number, as it is.

    Raises:
        ValueError: It is something else.
    """
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ValueError(f"expected a number, found {shown(value)}")  # noqa: TRY004 - likewise
    return value


def shown(value: Json) -> str:
    """A value for a sentence: its beginning, where it is long."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def reason_of(error: BaseException) -> str:
    """What an error says at its innermost cause: cattrs wraps that in a group for each level."""
    inner: Any = getattr(error, "exceptions", None)
    while inner:
        error = inner[0]
        inner = getattr(error, "exceptions", None)
    if isinstance(error, KeyError):
        return f"{error} is missing"
    return str(error) or type(error).__name__


def object_in(value: Json) -> Mapping[str, Json]:
    """`value`, which is an object; an empty one where there is none.

    Raises:
        ValueError: It is something else.
    """
    return {} if value is None else as_object(value)
