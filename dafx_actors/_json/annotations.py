"""Annotations of user code to what makes their values of JSON, with cattrs.

Strict where cattrs is not: a value of another kind is an error, never converted. Imported when the first value is
converted, for the time that it takes.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import (
    Callable,
    Collection,
    Container,
    Iterable,
    Mapping,
    MutableMapping,
    MutableSequence,
    Sequence,
    Set,
)
from datetime import datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from ipaddress import IPv4Address, IPv6Address
from typing import Any, TypeAlias, cast
from uuid import UUID

import attrs
from cattrs import Converter, gen
from cattrs.gen import typeddicts
from cattrs.preconf.json import make_converter as json_converter

from dafx_actors._json.forms import dump_bytes, dump_clock, key_text, load_bytes, load_clock
from dafx_actors._json.messages import dump_entry, dump_message, load_message
from dafx_actors._json.requests import load_response
from dafx_actors._json.shapes import as_object, load_json, reason_of, shown
from dafx_actors.exchange import AgentRunResponse
from dafx_actors.ids import AgentThread
from dafx_actors.transcript import ChatMessage, Json, Response


def make_converter() -> Converter:
    """The converter for values of user code."""
    made = json_converter()
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
    made.register_structure_hook_factory(_is_union)(_union)
    made.register_unstructure_hook_factory(_is_attrs)(_by_alias)
    for scalar in _SCALARS:
        made.register_structure_hook(scalar, _by_pydantic)
        made.register_unstructure_hook(scalar, _for_json)
    made.register_structure_hook_func(_is_pydantic, _by_pydantic)
    made.register_unstructure_hook_func(_is_pydantic, _dump_model(made))
    for binary in _BINARY:
        made.register_structure_hook(binary, _from_bytes)
        made.register_unstructure_hook(binary, dump_bytes)
    made.register_unstructure_hook_func(lambda cls: cls is dict, _dump_dict(made))
    made.register_structure_hook_func(_is_like_a_scalar, lambda value, cls: cls(value))
    made.register_structure_hook(ChatMessage, lambda value, _: load_message(value))
    made.register_unstructure_hook(ChatMessage, dump_message)
    made.register_unstructure_hook_func(lambda cls: cls is AgentRunResponse, _dump_answer)
    made.register_structure_hook_factory(_is_answer)(_load_answer)
    made.register_structure_hook(type(None), _nothing)
    made.register_structure_hook(datetime, lambda value, _: load_clock(value))
    made.register_unstructure_hook(datetime, dump_clock)
    return made


def _dump_dict(converter: Converter) -> Callable[[dict[Any, Any]], Json]:
    """With keys as text; cattrs would lose one of two that come to the same."""

    def dump(value: dict[Any, Any]) -> Json:
        named = {key_text(converter.unstructure(key)): converter.unstructure(item) for key, item in value.items()}
        if len(named) != len(value):
            raise ValueError("two keys of a mapping are the same as text")
        return named

    return dump


def _from_bytes(value: Json, kind: Any) -> Any:
    return kind(load_bytes(value))


def _is_like_a_scalar(cls: Any) -> bool:
    """Whether it is a number as numpy has them, which is made of one; arrays can be changed, and are none."""
    return isinstance(cls, type) and all(hasattr(cls, name) for name in ("item", "dtype")) and not _is_array(cls)


def _is_array(cls: Any) -> bool:
    return hasattr(cls, "__setitem__")


def _dump_model(converter: Converter) -> Callable[[Any], Json]:
    """What pydantic does not know, such as an attrs class, is left to this converter; so are bytes, as everywhere."""

    def dump(model: Any) -> Json:
        from dafx_actors._json.schemas import fields_of_bytes  # not at the top, for the time that pydantic takes

        ours = fields_of_bytes(cast("Any", type(model)))
        said = model.model_dump(mode="json", fallback=converter.unstructure, exclude=set(ours))
        return said | {name: converter.unstructure(getattr(model, field)) for field, name in ours.items()}

    return dump


_BINARY: tuple[Any, ...] = (bytes, bytearray, memoryview)
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
_SCALARS = (UUID, Decimal, time, timedelta, IPv4Address, IPv6Address)
"""What JSON writes as text, in the form that their schemas name."""
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
            raise TypeError(f"expected a list, found {shown(value)}")
        items: list[Json] = list(cast("list[Json]", value))
        if not any_number and len(items) != len(kinds):
            raise TypeError(f"expected {len(kinds)} items, found {shown(value)}")
        each_kind = kinds[:1] * len(items) if any_number else kinds
        return _ARRAYS[origin]([converter.structure(item, kind) for item, kind in zip(items, each_kind, strict=True)])

    return structure


def _mapping(cls: Any, converter: Converter) -> Hook:
    of_key, of_item = typing.get_args(cls)

    def structure(value: Json, _: Any) -> Any:
        items = as_object(value).items()
        return {_structured_key(key, of_key, converter): converter.structure(item, of_item) for key, item in items}

    return structure


def _structured_key(key: str, kind: Any, converter: Converter) -> Any:
    """A key, which JSON has as text; of numbers, booleans and null it is the text of their JSON."""
    if kind in (str, Any):
        return key
    try:
        return converter.structure(key, kind)
    except Exception as error:
        try:
            scalar = load_json(key)
        except ValueError:
            raise error from None
        if isinstance(scalar, str | list | dict):
            raise
        return converter.structure(scalar, kind)


def _has_fields(cls: Any) -> bool:
    plain = typing.get_origin(cls) or cls
    return not _is_answer(cls) and (attrs.has(plain) or dataclasses.is_dataclass(plain) or typing.is_typeddict(plain))


def _fields(cls: Any, converter: Converter) -> Hook:
    if typing.is_typeddict(cls):
        generated: Any = cast("Any", typeddicts).make_dict_structure_fn(cls, converter)
    else:
        generated = gen.make_dict_structure_fn(cls, converter, _cattrs_use_alias=True)

    def structure(value: Json, _: Any) -> Any:
        return generated(as_object(value), cls)

    # By these cattrs tells the members of a union of classes apart.
    setattr(structure, "overrides", generated.overrides)  # noqa: B010 - functions have no such attribute
    return structure


def _is_attrs(cls: Any) -> bool:
    return attrs.has(typing.get_origin(cls) or cls)


def _by_alias(cls: Any, converter: Converter) -> Callable[[Any], Any]:
    """By the names that `__init__` has, which the schema tells: a private field's has no underscore."""
    return gen.make_dict_unstructure_fn(cls, converter, _cattrs_use_alias=True)


def _is_union(cls: Any) -> bool:
    """Unions of more than one type and None; of those, cattrs knows only some."""
    members = [member for member in typing.get_args(cls) if member is not type(None)]
    return typing.get_origin(cls) in (typing.Union, types.UnionType) and len(members) > 1


def _union(cls: Any, converter: Converter) -> Hook:
    members: tuple[Any, ...] = typing.get_args(cls)

    def structure(value: Json, _: Any) -> Any:
        fitting: list[tuple[int, Any]] = []
        reasons: list[Exception] = []
        for member in members:
            try:
                fitting.append((_unknown_keys(value, member), converter.structure(value, member)))
            except Exception as error:  # noqa: BLE001 - validators of user classes raise what they like
                reasons.append(error)
        if fitting:
            # The first that fits; of classes whose fields have defaults, the one that knows the most of the keys.
            return min(fitting, key=lambda each: each[0])[1]
        raise ValueError("; ".join(dict.fromkeys(map(reason_of, reasons))))

    return structure


def _unknown_keys(value: Json, member: Any) -> int:
    cls: Any = typing.get_origin(member) or member
    if not isinstance(value, Mapping) or not isinstance(cls, type):
        return 0
    given = cast("Mapping[str, Json]", value)
    if attrs.has(cls):
        known = {field.alias or field.name for field in attrs.fields(cls)}
    elif dataclasses.is_dataclass(cls):
        known = {field.name for field in dataclasses.fields(cls)}
    else:
        fields: Any = getattr(cast("Any", cls), "model_fields", None) or getattr(
            cast("Any", cls), "__annotations__", given
        )
        known = set[str](fields)
    return len(given.keys() - known)


def _by_pydantic(value: Json, cls: Any) -> Any:
    from dafx_actors._json.schemas import load  # not at the top, for the time that pydantic takes

    return load(value, cls)


def _for_json(value: Any) -> Json:
    from dafx_actors._json.schemas import dump  # likewise

    return dump(value)


def _literal(cls: Any, _: Converter) -> Hook:
    allowed: tuple[Any, ...] = typing.get_args(cls)

    def structure(value: Json, _: Any) -> Any:
        for each in allowed:
            word = each.value if isinstance(each, Enum) else each
            if isinstance(value, type(word)) and isinstance(word, type(value)) and value == word:
                return each
        raise ValueError(f"expected one of {', '.join(map(repr, allowed))}, found {shown(value)}")

    return structure


def _dump_answer(answer: AgentRunResponse[Any]) -> Json:
    response = Response(
        correlation_id=answer.correlation_id,
        messages=answer.messages,
        created_at=answer.created_at,
        usage=answer.usage,
        extra={"dafx": {"finishReason": answer.finish_reason}} if answer.finish_reason else {},
    )
    thread = {"agent": answer.thread.agent, "threadId": answer.thread.thread_id}
    return {**dump_entry(response), "thread": thread}


def _is_answer(cls: Any) -> bool:
    return AgentRunResponse in (cls, typing.get_origin(cls))


def _load_answer(annotation: Any, converter: Converter) -> Hook:
    wanted = typing.get_args(annotation)
    typed = bool(wanted) and wanted[0] not in (Any, None, type(None))

    def structure(value: Json, _: Any) -> AgentRunResponse[Any]:
        answer: AgentRunResponse[Any] = load_response(
            value, AgentThread(value["thread"]["agent"], value["thread"]["threadId"])
        )
        if not typed:
            return answer
        return attrs.evolve(answer, value=converter.structure(load_json(answer.text), wanted[0]))

    return structure


def _exactly(kind: type[Any]) -> Callable[[Json, Any], Any]:
    def structure(value: Json, _: Any) -> Any:
        if type(value) is not kind:
            raise TypeError(f"expected {kind.__name__}, found {shown(value)}")
        return value

    return structure


def _number(value: Json, _: Any) -> float:
    if type(value) not in (int, float):
        raise TypeError(f"expected a number, found {shown(value)}")
    return float(value)


def _nothing(value: Json, _: Any) -> None:
    if value is not None:
        raise TypeError(f"expected null, found {shown(value)}")


def _container(value: Json, kind: type[Any]) -> Any:
    if not isinstance(value, list if kind is tuple else kind):
        raise TypeError(f"expected {kind.__name__}, found {shown(value)}")
    items: Any = value  # narrowed to a container of unknown items otherwise
    return cast("Any", kind(items))


def _is_pydantic(cls: Any) -> bool:
    """Told by its methods: pydantic itself is not imported for programs that do not use it."""
    return isinstance(cls, type) and hasattr(cls, "model_validate") and hasattr(cls, "model_dump")
