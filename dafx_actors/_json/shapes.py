"""JSON's own shapes: objects, lists and times, or a ValueError that says what was found instead."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, NoReturn, TypeGuard, cast

from dafx_actors.transcript import Json

_FRACTION = re.compile(r"\.(\d+)")
MOST_LEVELS = 100
"""Of objects and lists. Python reads some more, but fails where it has to write them in a deep call."""
_MOST_DIGITS = 1000
_MOST_BITS = int(_MOST_DIGITS * math.log2(10))
_MOST_IN_SENTENCES = 400


def load_json(text: str, levels: int = MOST_LEVELS) -> Json:
    """Read a JSON text that others wrote, strictly: it is JSON, and can be written again.

    Raises:
        ValueError: It is none; or holds NaN, a number that is out of bounds, or is nested more than `levels` deep.
    """
    try:
        return check_json(json.loads(text, parse_constant=_refuse_constant), levels)
    except RecursionError as error:
        raise ValueError(f"it is nested more than {levels} levels deep") from error
    except json.JSONDecodeError:
        raise
    except ValueError as error:
        # Python's own words about numbers of thousands of digits are advice to programmers.
        raise ValueError(_no_number() if "int_max_str_digits" in str(error) else str(error)) from error


def check_json(value: Json, levels: int = MOST_LEVELS) -> Json:
    """A value that others gave, if JSON can hold it.

    Raises:
        ValueError: JSON cannot: it holds NaN, a number that is out of bounds, or something else than JSON has; or it is
            nested more than `levels` deep.
    """
    todo = [(value, 0)]
    while todo:  # without recursion: it is to find out what is nested too deeply for that
        item, level = todo.pop()
        if item is None or isinstance(item, str | bool):
            continue
        if isinstance(item, int | float):
            _check_number(item)
        elif isinstance(item, Mapping | list | tuple):
            if level >= levels:
                raise ValueError(f"it is nested more than {levels} levels deep")
            todo += [(each, level + 1) for each in _items_of(cast("Any", item))]
        else:
            raise ValueError(f"JSON has no {type(cast('object', item)).__name__}")  # noqa: TRY004 - bad data
    return value


def _items_of(container: Any) -> Any:
    if not isinstance(container, Mapping):
        return container
    mapping = cast("Mapping[Any, Any]", container)
    if wrong := [key for key in mapping if not isinstance(key, str)]:
        raise ValueError(f"a name in an object is a text, not {shown(wrong[0])}")
    return mapping.values()


def _check_number(number: float) -> None:
    if isinstance(number, int):
        if number.bit_length() > _MOST_BITS:
            raise ValueError(_no_number())
    elif not math.isfinite(number):
        raise ValueError(f"JSON has no {number}")


def _no_number() -> str:
    return f"a number in it has more than {_MOST_DIGITS} digits"


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"JSON has no {name}")


def dump_time(moment: datetime) -> str:
    """RFC 3339 in UTC; a time without a zone is UTC, as it is when it is read, and not this machine's."""
    return _in_utc(moment).isoformat()


def load_time(text: Json) -> datetime:
    """Read RFC 3339; a time without a zone is UTC, and digits beyond the microsecond are cut off (.NET writes 7).

    Raises:
        ValueError: It is no such time.
    """
    moment = parse_time(text)
    try:
        return _in_utc(moment)
    except OverflowError as error:
        raise ValueError(f"not a time that can be told in UTC: {text!r}") from error


def parse_time(text: Json) -> datetime:
    """Read RFC 3339 and keep what the clock said: a zone only if one is given.

    Raises:
        ValueError: It is no such time.
    """
    if not isinstance(text, str):
        raise ValueError(f"not a time: {text!r}")  # noqa: TRY004 - bad data, not a bad program
    micros = text
    if "." in text:
        micros = _FRACTION.sub(lambda found: "." + found.group(1)[:6].ljust(6, "0"), text, count=1)
    return datetime.fromisoformat(micros[:-1] + "+00:00" if micros[-1:] in {"Z", "z"} else micros)


def _in_utc(moment: datetime) -> datetime:
    if moment.tzinfo is UTC:
        return moment
    return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)


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
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # nested too deeply, or a number of thousands of digits
        text = f"a {type(value).__name__} that is too large to be shown"
    return text if len(text) <= 80 else f"{text[:77]}..."


def cut(text: str) -> str:
    """A text for a sentence that a model or a person is to read: its beginning, where it is long."""
    return text if len(text) <= _MOST_IN_SENTENCES else f"{text[: _MOST_IN_SENTENCES - 3]}..."


def reason_of(error: BaseException) -> str:
    """What an error says at its innermost cause, cut where that is long: cattrs wraps it in a group for each level."""
    inner: Any = getattr(error, "exceptions", None)
    while inner:
        error = inner[0]
        inner = getattr(error, "exceptions", None)
    if isinstance(error, KeyError):
        return cut(f"{error} is missing")
    return cut(str(error)) or type(error).__name__


def object_in(value: Json) -> Mapping[str, Json]:
    """`value`, which is an object; an empty one where there is none.

    Raises:
        ValueError: It is something else.
    """
    return {} if value is None else as_object(value)


def is_object(value: Json) -> TypeGuard[Mapping[str, Json]]:
    """Whether it is an object."""
    return isinstance(value, dict) or isinstance(value, Mapping)  # noqa: SIM101 - the first takes a tenth of the time


def is_list(value: Json) -> TypeGuard[list[Json]]:
    """Whether it is a list."""
    return isinstance(value, list)


def text_or_none(document: Mapping[str, Json], field: str) -> str | None:
    """A field that is a text, or is not there.

    Raises:
        ValueError: It is something else.
    """
    value = document.get(field)
    if not isinstance(value, str | None):
        raise ValueError(f"`{field}` is a text, not {value!r}")  # noqa: TRY004 - bad data, not a bad program
    return value


def check_texts(document: Mapping[str, Json], *fields: str) -> None:
    """See that these fields are texts.

    Raises:
        ValueError: One is not.
    """
    for field in fields:
        if not isinstance(value := document.get(field), str):
            raise ValueError(f"`{field}` is a text, not {shown(value)}")  # noqa: TRY004 - bad data, not a bad program


def or_default(value: Json, default: Json) -> Json:
    """`default` for null and for nothing else: what is empty but of another kind is a mistake."""
    return default if value is None else value


def without_none(document: dict[str, Json]) -> dict[str, Json]:
    """The document without the fields that are null."""
    return {key: value for key, value in document.items() if value is not None}
