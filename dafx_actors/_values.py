"""Values of user code to JSON and back, by annotation.

durabletask's own converter passes on what does not fit its annotation; here that is an error. Understood are what
JSON has, attrs classes, dataclasses, TypedDicts, pydantic models, enums, datetimes, `Literal`, unions and the
usual containers. A parameter without an annotation, or with `Any`, takes the JSON value as it is.
"""

from __future__ import annotations

import functools
import inspect
import math
import typing
from collections.abc import (
    Callable,
    Generator,
    Mapping,
)
from typing import TYPE_CHECKING, Any, cast

from dafx_actors._json import reason_of, shown
from dafx_actors.errors import ValueMismatch
from dafx_actors.transcript import Json

if TYPE_CHECKING:
    from cattrs import Converter

    from dafx_actors._schemas import Arguments


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


def dump_value(value: Any) -> Json:
    """Make a JSON value of what user code gave.

    Raises:
        ValueMismatch: JSON cannot hold it.
    """
    if _is_json(value):
        return value  # as most of it is, and each replay of an orchestration dumps it again
    try:
        return _plain(_converter().unstructure(value))
    except (ValueError, TypeError) as error:
        raise ValueMismatch(f"{shown(value)} cannot be stored: {reason_of(error)}") from error


def dump_as(value: Any, annotation: Any) -> Json:
    """Make a JSON value of what user code gave, and see that whoever reads it by `annotation` can.

    Raises:
        ValueMismatch: JSON cannot hold it, or it does not fit.
    """
    dumped = dump_value(value)
    load_value(dumped, annotation)
    return dumped


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
        ValueMismatch: No schema can be made of it.
    """
    if isinstance(annotation, Mapping):
        return dict(cast("Mapping[str, Json]", annotation))
    from dafx_actors._schemas import NoSchema, schema_of  # not at the top: pydantic takes long to import

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
    from dafx_actors._schemas import Arguments, NoSchema  # not at the top, for the time that pydantic takes

    try:
        return Arguments(parameters, required, descriptions or {})
    except NoSchema as error:
        raise ValueMismatch(f"no JSON schema can be made of these parameters: {error}") from error


@functools.cache
def _converter() -> Converter:
    # Not at the top: it takes long to make, and programs that only declare agents never need it.
    from dafx_actors._annotations import make_converter

    return make_converter()


_SCALARS = frozenset({str, int, bool, type(None)})


def _is_json(value: Any) -> bool:
    """Whether a value is JSON through and through, and no subclass of anything."""
    kind = cast("type[object]", type(value))
    if kind is dict:
        # Without a generator, and without a call for each text: this sees all that an orchestration says.
        for key, item in value.items():
            if type(key) is not str or (type(item) not in _SCALARS and not _is_json(item)):
                return False
        return True
    if kind is list:
        return all(map(_is_json, value))
    return kind in _SCALARS or (kind is float and math.isfinite(value))


def _plain(value: Any) -> Json:
    """Check that nothing but JSON is left; keys become text only where they are text already."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"JSON has no {value}")
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, Mapping):
        items = cast("Mapping[Any, Any]", value).items()
        if wrong := [key for key, _ in items if not isinstance(key, str)]:
            raise TypeError(f"a key of a mapping must be a str, not {wrong[0]!r}")
        return {key: _plain(item) for key, item in items}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in cast("list[Any]", value)]
    raise TypeError(f"a {type(value).__name__} is no JSON value")


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function)
    except NameError:
        # Names that exist only for type checkers: such a parameter takes JSON as it is.
        return {}


def _name(annotation: Any) -> str:
    return getattr(annotation, "__qualname__", None) or str(annotation)
