"""Which JSON schemas a provider can hold a model to: pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TypeGuard

from dafx_actors.transcript import Json

__all__ = ["can_be_strict"]

_NOT_STRICT = frozenset(
    {
        *("allOf", "oneOf", "not", "if", "then", "else", "default", "dependentRequired", "dependentSchemas"),
        *("patternProperties", "propertyNames", "unevaluatedProperties"),
        *("prefixItems", "contains", "unevaluatedItems"),
    }
)
"""Keywords that strict mode refuses; https://platform.openai.com/docs/guides/structured-outputs."""


def can_be_strict(schema: Mapping[str, Json]) -> bool:
    """Whether the provider can hold a model to this schema.

    It can if every object in it names all its properties as required and takes no others. A schema that cannot be
    strict is sent all the same, as a wish.
    """
    return schema.get("type") == "object" and _strict(schema)


def _strict(schema: Json) -> bool:
    if not _is_object(schema) or _NOT_STRICT & schema.keys():
        return False
    if schema.get("type") == "object" or "properties" in schema:
        properties = schema.get("properties", {})
        closed = schema.get("additionalProperties") is False
        if not closed or set(properties) != set(schema.get("required", ())):
            return False
    return all(_strict(part) for part in _parts_of_schema(schema))


def _parts_of_schema(schema: Mapping[str, Json]) -> Iterator[Json]:
    for keyword in ("properties", "$defs", "definitions"):
        yield from schema.get(keyword, {}).values()
    yield from schema.get("anyOf", ())
    if "items" in schema:
        yield schema["items"]


def _is_object(value: Json) -> TypeGuard[Mapping[str, Json]]:
    return isinstance(value, Mapping)
