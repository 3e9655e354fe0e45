"""attrs classes of a transcript to JSON objects and back, by their fields, with cattrs.

Imported when the first transcript is read or written: with what it generates, it takes half as long as all the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, Literal, TypeVar, get_args, get_origin

import attrs
from cattrs import Converter
from cattrs.gen import make_dict_structure_fn, make_dict_unstructure_fn, override

from dafx_actors._json.shapes import as_list, as_object, dump_time, load_time
from dafx_actors.transcript import (
    ChatMessage,
    Content,
    DataContent,
    Entry,
    ErrorContent,
    FunctionCallContent,
    FunctionResultContent,
    HostedFileContent,
    HostedVectorStoreContent,
    Json,
    OpaqueContent,
    OpaqueEntry,
    Request,
    Response,
    TextContent,
    TextReasoningContent,
    UnknownContent,
    UriContent,
    UsageContent,
    UsageStats,
)

T = TypeVar("T")

_CONTENTS: dict[str, type[Any]] = {
    "text": TextContent,
    "reasoning": TextReasoningContent,
    "data": DataContent,
    "uri": UriContent,
    "error": ErrorContent,
    "functionCall": FunctionCallContent,
    "functionResult": FunctionResultContent,
    "hostedFile": HostedFileContent,
    "hostedVectorStore": HostedVectorStoreContent,
    "usage": UsageContent,
    "unknown": UnknownContent,
}
_ENTRIES: dict[str, type[Any]] = {"request": Request, "response": Response}
_STORED: tuple[type[Any], ...] = (UsageStats, *_CONTENTS.values(), ChatMessage, *_ENTRIES.values())
_KIND_OF = {cls: kind for kinds in (_CONTENTS, _ENTRIES) for kind, cls in kinds.items()}
_RENAMED = {
    UsageStats: {
        "input_tokens": "inputTokenCount",
        "output_tokens": "outputTokenCount",
        "total_tokens": "totalTokenCount",
        "cached_tokens": "cachedInputTokenCount",
        "reasoning_tokens": "reasoningTokenCount",
    }
}
_ALWAYS = {ChatMessage: frozenset({"contents"})}
"""Fields that are written although they have their default: earlier versions of ours miss them."""
_NULLABLE = {UnknownContent: frozenset({"content"})}
"""Fields that the schema requires and that may be null; elsewhere a null counts as absent."""


def make_converter() -> Converter:
    """The converter for everything that a transcript holds."""
    made = Converter(detailed_validation=False)
    for kind in (str, int, bool):
        made.register_structure_hook(kind, _exactly(kind))
    made.register_structure_hook_func(_is(Literal), _literal)
    made.register_structure_hook_factory(_is(tuple))(_sequence)
    made.register_structure_hook(datetime, lambda value, _: load_time(value))
    made.register_unstructure_hook(datetime, dump_time)
    made.register_structure_hook_func(lambda cls: cls == Mapping[str, Json], as_object)
    made.register_unstructure_hook_func(lambda cls: cls == Mapping[str, Json], lambda value: dict(value))
    made.register_structure_hook_func(lambda cls: cls == Content, _tagged(_CONTENTS, OpaqueContent, made))
    made.register_structure_hook_func(lambda cls: cls == Entry, _tagged(_ENTRIES, OpaqueEntry, made, messages=[]))
    for opaque in (OpaqueContent, OpaqueEntry):
        made.register_unstructure_hook(opaque, lambda value: dict(value.raw))
    made.register_unstructure_hook_func(lambda cls: cls == Content, lambda value: made.unstructure(value, type(value)))
    # Leaves first: a class's functions are made with those of the classes inside it.
    for cls in _STORED:
        made.register_structure_hook(cls, _structure_of(cls, made))
        made.register_unstructure_hook(cls, _unstructure_of(cls, made))
    return made


def _tagged(
    kinds: Mapping[str, type[Any]], opaque: Callable[[Mapping[str, Json]], Any], converter: Converter, **defaults: Json
) -> Callable[[Json, Any], Any]:
    """Structure by `$type`. What is unknown or broken was stored by somebody else: it is kept whole, not lost."""

    def structure(value: Json, _: Any) -> Any:
        raw = as_object(value)
        named = raw.get("$type")
        cls = kinds.get(named) if isinstance(named, str) else None
        absent = {name: default for name, default in defaults.items() if raw.get(name) is None}
        whole = {**raw, **absent} if absent else raw
        try:
            return opaque(raw) if cls is None else converter.get_structure_hook(cls)(whole, cls)
        except (ValueError, KeyError, TypeError):
            return opaque(raw)

    return structure


def _camel(name: str) -> str:
    head, *tail = name.split("_")
    return head + "".join(part.title() for part in tail)


def _exactly(kind: type[T]) -> Callable[[Json, Any], T]:
    """Structure nothing but `kind`: cattrs would make "5" of 5, and 0 of False."""

    def structure(value: Json, _: Any) -> T:
        if type(value) is not kind:
            raise ValueError(f"expected {kind.__name__}, found {value!r}")
        return value

    return structure


def _is(origin: Any) -> Callable[[Any], bool]:
    return lambda cls: get_origin(cls) is origin


def _literal(value: Json, cls: Any) -> Json:
    """Structure a `Literal` of words; the exception that cattrs raises for others is not always a ValueError."""
    if value not in get_args(cls):
        raise ValueError(f"expected one of {', '.join(get_args(cls))}, found {value!r}")
    return value


def _sequence(cls: Any, converter: Converter) -> Callable[[Json, Any], tuple[Any, ...]]:
    """Structure `tuple[item, ...]` from a list only: cattrs would take the keys of an object, and make () of {}."""
    (item, _) = get_args(cls)

    def structure(value: Json, _: Any) -> tuple[Any, ...]:
        hook = converter.get_structure_hook(item)
        return tuple([hook(each, item) for each in as_list(value)])

    return structure


def _structure_of(cls: type[Any], converter: Converter) -> Callable[[Json, Any], Any]:
    """Read `cls` from an object; what no field takes goes to `extra`, and a null counts as absent."""
    generated = make_dict_structure_fn(cls, converter, **_overrides(cls))
    known = {*_wire_names(cls).values(), "$type"}
    nullable = _NULLABLE.get(cls, frozenset[str]())

    def structure(value: Json, _: Any) -> Any:
        raw = as_object(value)
        # A long thread is thousands of these: what most of them do not need is not made.
        if None in raw.values():
            made = generated({key: item for key, item in raw.items() if item is not None or key in nullable}, cls)
        else:
            made = generated(raw, cls)
        if raw.keys() <= known:
            return made
        return attrs.evolve(made, extra={key: item for key, item in raw.items() if key not in known})

    return structure


def _unstructure_of(cls: type[Any], converter: Converter) -> Callable[[Any], dict[str, Json]]:
    generated = make_dict_unstructure_fn(cls, converter, _cattrs_omit_if_default=True, **_overrides(cls))
    kind = _KIND_OF.get(cls)

    def unstructure(value: Any) -> dict[str, Json]:
        tagged = {"$type": kind} if kind else {}
        return {**tagged, **generated(value), **value.extra}

    return unstructure


def _wire_names(cls: type[Any]) -> dict[str, str]:
    renamed = _RENAMED.get(cls, {})
    return {field.name: renamed.get(field.name, _camel(field.name)) for field in attrs.fields(cls)}


def _overrides(cls: type[Any]) -> dict[str, Any]:
    names = _wire_names(cls)
    nullable = _NULLABLE.get(cls, frozenset[str]())
    always = _ALWAYS.get(cls, frozenset[str]())
    return {
        name: override(omit=True)
        if name == "extra"
        else override(rename=wire, omit_if_default=False if wire in nullable | always else None)
        for name, wire in names.items()
    }
