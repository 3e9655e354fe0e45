"""Values of user code to JSON and back, by annotation.

durabletask's own converter passes on what does not fit its annotation; here that is an error. Understood are what
JSON has, attrs classes, dataclasses, TypedDicts, pydantic models, enums, datetimes, `Literal`, unions and the
usual containers. A parameter without an annotation, or with `Any`, takes the JSON value as it is.

Times keep what the clock said, bytes are base64, names in objects are what `json.dumps` makes of keys; see `forms.py`.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
import os
import types
import typing
from collections.abc import (
    Callable,
    Generator,
    Iterator,
    Mapping,
    Sequence,
    Set,
    ValuesView,
)
from typing import TYPE_CHECKING, Any, cast

from dafx_actors._json.forms import dump_bytes, key_text, reading_what_is_stored
from dafx_actors._json.schema_limits import look
from dafx_actors._json.shapes import MOST_LEVELS, check_json, reason_of, shown
from dafx_actors._raised import in_words, text_of
from dafx_actors.errors import ResultNotKept, ValueMismatch
from dafx_actors.transcript import Json

if TYPE_CHECKING:
    from cattrs import Converter

    from dafx_actors._json.schemas import Arguments


def load_value(value: Json, annotation: Any) -> Any:
    """Make what `annotation` says of a JSON value.

    Raises:
        ValueMismatch: It does not fit.
    """
    if annotation in (Any, inspect.Parameter.empty, object):
        return value
    try:
        return _converter().structure(value, type(None) if annotation is None else annotation)
    except Exception as error:  # validators of user classes raise what they like
        raise ValueMismatch(f"{shown(value)} does not fit {_name(annotation)}: {reason_of(error)}") from error


def load_stored(value: Json, annotation: Any) -> Any:
    """`load_value` of what an earlier version may have written.

    Raises:
        ValueMismatch: It does not fit.
    """
    with reading_what_is_stored():
        return load_value(value, annotation)


def dump_value(value: Any) -> Json:
    """Make a JSON value of what user code gave.

    Raises:
        ValueMismatch: JSON cannot hold it.
    """
    try:
        if _is_json(value):
            return value  # as most of it is, and each replay of an orchestration dumps it again
        return check_json(_plain(_converter().unstructure(value)), _MOST_LEVELS)
    except RecursionError as error:
        reason = f"it is nested more than {_MOST_LEVELS} levels deep, or holds itself"
        raise ValueMismatch(f"a {type(value).__name__} cannot be stored: {reason}") from error
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueMismatch(f"{shown(value)} cannot be stored: {reason_of(error)}") from error


def dump_as(value: Any, annotation: Any) -> Json:
    """Make a JSON value of what user code gave, and see that whoever reads it by `annotation` can.

    Raises:
        ValueMismatch: JSON cannot hold it, or it does not fit.
    """
    dumped = dump_value(value)
    load_value(dumped, annotation)
    return dumped


def dump_result(name: str, value: Any, annotation: Any) -> Json:
    """Make a JSON value of what a tool or an activity returned, which has acted: as `dump_as`.

    Raises:
        ResultNotKept: It cannot be made, for whatever reason.
    """
    try:
        return dump_as(value, annotation)
    except ValueMismatch as error:
        reason = text_of(error)
    except Exception as error:  # noqa: BLE001 - it refers to itself, or its class raises what it likes
        reason = in_words(error)
    raise ResultNotKept(reason, name)


@functools.lru_cache(maxsize=4096)  # every replay of an orchestration asks
def parameters_of(function: Callable[..., Any]) -> tuple[tuple[str, Any], ...]:
    """The names and resolved annotations of what `function` takes by position."""
    hints = _hints(function)
    return tuple(
        (parameter.name, hints.get(parameter.name, Any))
        for parameter in inspect.signature(function).parameters.values()
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    )


@functools.lru_cache(maxsize=4096)
def returned_by(function: Callable[..., Any]) -> Any:
    """The resolved annotation of what `function` returns; of a generator, what it returns at its end."""
    annotation = _hints(function).get("return", Any)
    if typing.get_origin(annotation) is Generator:
        return typing.get_args(annotation)[2]
    return annotation


def json_schema(annotation: Any) -> dict[str, Json]:
    """The JSON schema of a type, or the schema itself where one is given.

    Raises:
        ValueMismatch: No schema can be made of it; or it is one that is not taken, see `schema_limits.py`.
    """
    if isinstance(annotation, Mapping):
        schema = dict(cast("Mapping[str, Json]", annotation))
        if (mistake := look(schema).mistake) is not None:
            raise ValueMismatch(f"the schema is not taken: {mistake}")
        return schema
    from dafx_actors._json.schemas import NoSchema, schema_of  # not at the top: pydantic takes long to import

    try:
        return schema_of(annotation)
    except NoSchema as error:
        reason = str(error).split("\n")[0].split(". Set ")[0]  # what follows is advice to those who use pydantic
        raise ValueMismatch(f"no JSON schema can be made of {_name(annotation)}: {reason}") from error


def arguments_of(
    parameters: Mapping[str, Any], required: frozenset[str], descriptions: Mapping[str, str] | None = None
) -> Arguments:
    """What takes JSON for the parameters of a function, given by name with their types, and makes values of it.

    Raises:
        ValueMismatch: There is no JSON schema for one of them.
    """
    from dafx_actors._json.schemas import Arguments, NoSchema  # not at the top, for the time that pydantic takes

    try:
        return Arguments(parameters, required, descriptions or {})
    except NoSchema as error:
        raise ValueMismatch(f"no JSON schema can be made of these parameters: {error}") from error


@functools.cache
def _converter() -> Converter:
    # Not at the top: it takes long to make, and programs that only declare agents never need it.
    from dafx_actors._json.annotations import make_converter

    return make_converter()


def unreadable(annotation: Any) -> str | None:
    """The name of a type in `annotation` of which no value can be made of JSON; None where there is none.

    What returns such a value would find out only after it has acted.
    """
    if annotation in (None, Any, inspect.Parameter.empty, object) or isinstance(annotation, str | typing.TypeVar):
        return None
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return unreadable(arguments[0])
    if origin is typing.Union or origin is types.UnionType or origin in _CONTAINERS:
        return next(filter(None, map(unreadable, arguments)), None)
    if not isinstance(origin or annotation, type) or annotation is Ellipsis:
        return None
    try:
        _converter().get_structure_hook(annotation)
    except Exception as error:  # noqa: BLE001 - what cattrs raises at a class that it does not know depends on where
        return _name(annotation) if type(error).__name__ == "StructureHandlerNotFoundError" else None
    return None


_CONTAINERS = (list, tuple, set, frozenset, dict, Mapping, Sequence, Set)
_MOST_LEVELS = 2 * MOST_LEVELS
"""Of values of user code, which need not go through as many hands as those of models."""
_SCALARS = frozenset({str, bool, type(None)})
_MOST_PLAIN = 2**63


def _is_json(value: Any, levels: int = _MOST_LEVELS) -> bool:
    """Whether a value is JSON through and through, and no subclass of anything."""
    if levels < 0:
        return False
    kind = cast("type[object]", type(value))
    if kind is dict:
        # Without a generator, and without a call for each text: this sees all that an orchestration says.
        for key, item in value.items():
            if type(key) is not str or (type(item) not in _SCALARS and not _is_json(item, levels - 1)):
                return False
        return True
    if kind is list:
        return all(type(item) in _SCALARS or _is_json(item, levels - 1) for item in value)
    if kind is int:
        return bool(-_MOST_PLAIN < value < _MOST_PLAIN)
    return kind in _SCALARS or (kind is float and math.isfinite(value))


def _plain(value: Any) -> Json:
    """What cattrs left, as JSON: keys as `json.dumps` writes them, what is like a list as a list."""
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, int | float):
        return value if type(value) in (int, float) else _scalar(value)
    if isinstance(value, Mapping):
        return {key_text(key): _plain(item) for key, item in cast("Mapping[Any, Any]", value).items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in cast("list[Any]", value)]
    if isinstance(value, bytes | bytearray | memoryview):
        return dump_bytes(cast("bytes", value))
    if isinstance(value, Sequence | Set | ValuesView):
        return [_plain(_converter().unstructure(item)) for item in cast("Sequence[Any]", value)]
    return _else(value)


def _scalar(value: float) -> int | float:
    """Of a subclass, such as numpy's numbers: the number itself."""
    return int(value) if isinstance(value, int) else float(value)


def _else(value: Any) -> Json:
    """What is like numpy's scalars and arrays, by their own methods; what pydantic knows, as that writes it."""
    kind = cast("type[Any]", type(value))
    if not isinstance(value, type):
        if callable(getattr(kind, "item", None)) and getattr(value, "ndim", 0) == 0:
            inner = value.item()
            if type(inner) is not kind:
                return _plain(_converter().unstructure(inner))
        if hasattr(kind, "__array_interface__") and callable(getattr(kind, "tolist", None)):
            return _plain(_converter().unstructure(value.tolist()))
    if isinstance(value, os.PathLike):
        return os.fsdecode(cast("os.PathLike[str]", value))
    if not isinstance(value, Iterator | complex):  # an iterator could go on for ever
        from dafx_actors._json.schemas import NoJson, dump  # not at the top, for the time that pydantic takes

        with contextlib.suppress(*NoJson):
            return dump(value)
    raise TypeError(f"a {kind.__name__} is no JSON value")


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function)
    except NameError:
        # Names that exist only for type checkers: such a parameter takes JSON as it is.
        return {}


def _name(annotation: Any) -> str:
    return getattr(annotation, "__qualname__", None) or str(annotation)
