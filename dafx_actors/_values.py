"""Values of user code to JSON and back, by annotation.

durabletask's own converter passes on what does not fit its annotation; here that is an error. Understood are what
JSON has, attrs classes, dataclasses, TypedDicts, pydantic models, enums, datetimes, `Literal`, unions and the
usual containers. A parameter without an annotation, or with `Any`, takes the JSON value as it is.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import math
import types
import typing
from collections.abc import (
    Callable,
    Collection,
    Container,
    Generator,
    Iterable,
    Mapping,
    MutableMapping,
    MutableSequence,
    Sequence,
    Set,
)
from datetime import datetime
from enum import Enum
from typing import Any, TypeAlias, cast

import attrs
from cattrs import Converter, gen
from cattrs.gen import typeddicts
from cattrs.preconf.json import make_converter

from dafx_actors._codec import dump_entry, dump_message, dump_time, load_message, load_response, load_time
from dafx_actors.exchange import AgentRunResponse
from dafx_actors.ids import AgentThread
from dafx_actors.transcript import ChatMessage, Json, Response


class ValueMismatch(ValueError):
    """A value that does not fit its annotation."""


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
        raise ValueMismatch(f"{_shown(value)} does not fit {_name(annotation)}: {_reason(error)}") from error


def dump_value(value: Any) -> Json:
    """Make a JSON value of what user code gave.

    Raises:
        ValueMismatch: JSON cannot hold it.
    """
    try:
        return _plain(_converter().unstructure(value))
    except (ValueError, TypeError) as error:
        raise ValueMismatch(f"{_shown(value)} cannot be stored: {_reason(error)}") from error


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
    # pydantic takes longer to import than all of this package, and few programs ask for typed answers.
    from pydantic import TypeAdapter
    from pydantic.errors import PydanticSchemaGenerationError, PydanticUserError

    try:
        return TypeAdapter(_for_pydantic(annotation)).json_schema()
    except (PydanticSchemaGenerationError, PydanticUserError, TypeError) as error:
        raise ValueMismatch(f"no JSON schema can be made of {_name(annotation)}: {error}") from error


@functools.cache
def _for_pydantic(annotation: Any) -> Any:
    """`annotation` with attrs classes, which pydantic does not know, as models of the same fields."""
    if not attrs.has(annotation):
        arguments = typing.get_args(annotation)
        if not arguments or typing.get_origin(annotation) is typing.Literal:
            return annotation
        return _rebuilt(annotation, tuple(_for_pydantic(argument) for argument in arguments))
    from pydantic import Field, create_model

    hints = typing.get_type_hints(annotation, include_extras=True)
    fields: dict[str, Any] = {}
    for field in attrs.fields(annotation):
        if not field.init:
            continue
        default: Any = ... if field.default is attrs.NOTHING else field.default
        if _is_factory(default):
            default = Field(default_factory=list)  # never called: a schema only tells that there is a default
        fields[field.alias or field.name] = (_for_pydantic(hints.get(field.name, Any)), default)
    return create_model(annotation.__name__, __doc__=annotation.__doc__, **fields)


def _rebuilt(annotation: Any, arguments: tuple[Any, ...]) -> Any:
    """`annotation` with other arguments: a union, `Annotated`, or a container."""
    origin: Any = typing.get_origin(annotation)
    if origin is typing.Union or origin is types.UnionType:
        union = arguments[0]
        for argument in arguments[1:]:
            union |= argument
        return union
    if origin is typing.Annotated:
        parts = (arguments[0], *annotation.__metadata__)
        return cast("Any", typing.Annotated)[parts]
    return origin[arguments]


def _is_factory(default: Any) -> bool:
    return type(default).__name__ == "Factory"


# --- The converter ------------------------------------------------------------------------------------------------


@functools.cache
def _converter() -> Converter:
    made = make_converter()
    for kind in (str, int, bool):
        made.register_structure_hook(kind, _exactly(kind))
    made.register_structure_hook(float, _number)
    made.register_structure_hook_func(lambda cls: cls in (list, dict, tuple), _container)
    made.register_structure_hook_func(lambda cls: cls is Any, lambda value, _: value)
    # Those of cattrs would make ["a", "b"] of "ab", and a class of anything that has its keys.
    made.register_structure_hook_factory(_origin_in(_ARRAYS))(_array)
    made.register_structure_hook_factory(_origin_in(_OBJECTS))(_mapping)
    made.register_structure_hook_factory(_has_fields)(_fields)
    made.register_structure_hook_factory(_origin_in({typing.Literal}))(_literal)
    made.register_structure_hook_func(_is_pydantic, lambda value, cls: cls.model_validate(value))
    made.register_unstructure_hook_func(_is_pydantic, lambda value: value.model_dump(mode="json"))
    made.register_structure_hook(ChatMessage, lambda value, _: load_message(value))
    made.register_unstructure_hook(ChatMessage, dump_message)
    made.register_unstructure_hook_func(lambda cls: cls is AgentRunResponse, _dump_answer)
    made.register_structure_hook_func(_is_answer, _load_answer)
    made.register_structure_hook(type(None), _nothing)
    made.register_structure_hook(datetime, lambda value, _: load_time(value))
    made.register_unstructure_hook(datetime, dump_time)
    return made


_ARRAYS: Mapping[Any, Callable[[Any], Any]] = {
    list: list,
    tuple: tuple,
    set: set,
    frozenset: frozenset,
    Sequence: tuple,
    Iterable: tuple,
    Collection: tuple,
    MutableSequence: list,
    Set: frozenset,
}
_OBJECTS = frozenset[Any]({dict, Mapping, MutableMapping})
Hook: TypeAlias = Callable[[Json, Any], Any]


def _origin_in(origins: Container[Any]) -> Callable[[Any], bool]:
    def is_one(cls: Any) -> bool:
        origin = typing.get_origin(cls)
        return origin is not None and origin in origins

    return is_one


def _array(cls: Any, converter: Converter) -> Hook:
    origin, kinds = typing.get_origin(cls), typing.get_args(cls)
    any_number = origin is not tuple or kinds[1:] == (...,)

    def structure(value: Json, _: Any) -> Any:
        if not isinstance(value, list | tuple):
            raise TypeError(f"expected a list, found {_shown(value)}")
        items: list[Json] = list(cast("list[Json]", value))
        if not any_number and len(items) != len(kinds):
            raise TypeError(f"expected {len(kinds)} items, found {_shown(value)}")
        each_kind = kinds[:1] * len(items) if any_number else kinds
        return _ARRAYS[origin]([converter.structure(item, kind) for item, kind in zip(items, each_kind, strict=True)])

    return structure


def _mapping(cls: Any, converter: Converter) -> Hook:
    of_key, of_item = typing.get_args(cls)

    def structure(value: Json, _: Any) -> Any:
        items = _object(value).items()
        return {converter.structure(key, of_key): converter.structure(item, of_item) for key, item in items}

    return structure


def _has_fields(cls: Any) -> bool:
    plain = typing.get_origin(cls) or cls
    return not _is_answer(cls) and (attrs.has(plain) or dataclasses.is_dataclass(plain) or typing.is_typeddict(plain))


def _fields(cls: Any, converter: Converter) -> Hook:
    maker: Any = typeddicts if typing.is_typeddict(cls) else gen
    generated: Any = maker.make_dict_structure_fn(cls, converter)

    def structure(value: Json, _: Any) -> Any:
        return generated(_object(value), cls)

    # By these cattrs tells the members of a union of classes apart.
    setattr(structure, "overrides", generated.overrides)  # noqa: B010 - functions have no such attribute
    return structure


def _object(value: Json) -> Mapping[str, Json]:
    if not isinstance(value, Mapping):
        raise TypeError(f"expected an object, found {_shown(value)}")
    return cast("Mapping[str, Json]", value)


def _literal(cls: Any, _: Converter) -> Hook:
    allowed: tuple[Any, ...] = typing.get_args(cls)

    def structure(value: Json, _: Any) -> Any:
        for each in allowed:
            word = each.value if isinstance(each, Enum) else each
            if isinstance(value, type(word)) and isinstance(word, type(value)) and value == word:
                return each
        raise ValueError(f"expected one of {', '.join(map(repr, allowed))}, found {_shown(value)}")

    return structure


def _dump_answer(answer: AgentRunResponse[Any]) -> Json:
    response = Response(
        correlation_id=answer.correlation_id,
        messages=answer.messages,
        created_at=answer.created_at,
        usage=answer.usage,
    )
    thread = {"agent": answer.thread.agent, "threadId": answer.thread.thread_id}
    return {**dump_entry(response), "thread": thread}


def _is_answer(cls: Any) -> bool:
    return AgentRunResponse in (cls, typing.get_origin(cls))


def _load_answer(value: Json, annotation: Any) -> AgentRunResponse[Any]:
    answer = load_response(value, AgentThread(value["thread"]["agent"], value["thread"]["threadId"]))
    wanted = typing.get_args(annotation)
    if not wanted or wanted[0] in (Any, None, type(None)):
        return answer
    return attrs.evolve(answer, value=load_value(json.loads(answer.text), wanted[0]))


def _exactly(kind: type[Any]) -> Callable[[Json, Any], Any]:
    def structure(value: Json, _: Any) -> Any:
        if type(value) is not kind:
            raise TypeError(f"expected {kind.__name__}, found {_shown(value)}")
        return value

    return structure


def _number(value: Json, _: Any) -> float:
    if type(value) not in (int, float):
        raise TypeError(f"expected a number, found {_shown(value)}")
    return float(value)


def _nothing(value: Json, _: Any) -> None:
    if value is not None:
        raise TypeError(f"expected null, found {_shown(value)}")


def _container(value: Json, kind: type[Any]) -> Any:
    if not isinstance(value, list if kind is tuple else kind):
        raise TypeError(f"expected {kind.__name__}, found {_shown(value)}")
    items: Any = value  # narrowed to a container of unknown items otherwise
    return cast("Any", kind(items))


def _is_pydantic(cls: Any) -> bool:
    """Told by its methods: pydantic itself is not imported for programs that do not use it."""
    return isinstance(cls, type) and hasattr(cls, "model_validate") and hasattr(cls, "model_dump")


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


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _name(annotation: Any) -> str:
    return getattr(annotation, "__qualname__", None) or str(annotation)


def _reason(error: BaseException) -> str:
    """The innermost cause: cattrs wraps it in a group for each level."""
    inner: Any = getattr(error, "exceptions", None)
    while inner:
        error = inner[0]
        inner = getattr(error, "exceptions", None)
    if isinstance(error, KeyError):
        return f"{error} is missing"
    return str(error) or type(error).__name__
