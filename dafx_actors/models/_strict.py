"""JSON schemas in the form in which a provider can hold a model to them. Pure.

The subset is that of https://platform.openai.com/docs/guides/structured-outputs: closed objects that require all their
properties, a `$ref` without neighbours, a root that is an object, few keywords. What fits the form fits the schema too,
but for keywords that only validation knows; they are said in the description.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

import attrs

from dafx_actors._json.shapes import is_list, is_object
from dafx_actors.transcript import Json

__all__ = ["WRAPPED", "is_object_schema", "strict_form", "wrapped"]

WRAPPED = "value"
"""The property that holds an answer that is no object."""

_KEPT = frozenset(
    {
        *("type", "title", "description", "enum", "const", "$ref", "anyOf", "items", "properties", "required"),
        *("multipleOf", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "minItems", "maxItems"),
    }
)
_SAID = frozenset(
    {
        *("default", "examples", "minLength", "maxLength", "uniqueItems", "format", "pattern", "deprecated"),
        *("contentEncoding", "contentMediaType", "minProperties", "maxProperties", "readOnly", "writeOnly"),
    }
)
"""What is refused, and can be said in words instead."""
_DROPPED = frozenset({"discriminator", "$schema", "$id", "$comment", "additionalProperties", "$defs", "definitions"})
_FORMATS = frozenset({"date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid"})
_MOST_LEVELS = 10
_MOST_PROPERTIES = 5000
_MOST_LETTERS = 120_000


class _NotStrict(Exception):
    """The schema has no strict form."""


def is_object_schema(schema: Mapping[str, Json]) -> bool:
    """Whether providers take it for the root: it says that it is an object, and not one of several."""
    return schema.get("type") == "object" and not {"anyOf", "oneOf", "allOf", "$ref", "enum", "const"} & schema.keys()


def wrapped(schema: Mapping[str, Json]) -> dict[str, Json]:
    """A schema for an object whose only property is what `schema` describes."""
    inner = {key: value for key, value in schema.items() if key not in {"$defs", "definitions", "$schema"}}
    root: dict[str, Json] = {
        "type": "object",
        "properties": {WRAPPED: _moved(inner)},
        "required": [WRAPPED],
        "additionalProperties": False,
    }
    return root | {key: _moved(schema[key]) for key in ("$defs", "definitions") if key in schema}


def _moved(schema: Json) -> Json:
    """With references to the old root, which is now a property."""
    if is_object(schema):
        made = {key: _moved(value) for key, value in schema.items()}
        reference = schema.get("$ref")
        if isinstance(reference, str) and not reference.startswith(("#/$defs/", "#/definitions/")):
            made["$ref"] = f"#/properties/{WRAPPED}{reference[1:]}" if reference.startswith("#") else reference
        return made
    return [_moved(each) for each in schema] if is_list(schema) else schema


def strict_form(schema: Mapping[str, Json]) -> dict[str, Json] | None:
    """The schema of an object in the form that is enforced; None where it has none, and can only be a wish."""
    try:
        form = _Form(schema)
        made = form.root()
    except (_NotStrict, RecursionError, TypeError, AttributeError):
        return None
    return made if len(json.dumps(made)) <= _MOST_LETTERS else None


@attrs.define
class _Form:
    _schema: Mapping[str, Json]
    _properties: int = 0

    def root(self) -> dict[str, Json]:
        if not is_object_schema(self._schema):
            raise _NotStrict
        made = self._of(self._schema, 0)
        for place in ("$defs", "definitions"):
            if definitions := self._schema.get(place):
                made[place] = {name: self._of(each, 1) for name, each in definitions.items()}
        return made

    def _of(self, schema: Json, level: int) -> dict[str, Json]:
        if not is_object(schema) or level > _MOST_LEVELS:
            raise _NotStrict
        schema = self._merged(schema, level)
        made: dict[str, Json] = {}
        said: list[str] = []
        for key, value in schema.items():
            if (key == "format" and value in _FORMATS) or (
                key == "pattern" and isinstance(value, str) and "(?" not in value
            ):
                made[key] = value
            elif key in _SAID:
                if value is None:
                    continue  # a default of nothing says nothing
                said.append(f"{key}: {json.dumps(value, ensure_ascii=False)}")
            elif key == "oneOf":
                made["anyOf"] = value
            elif key in _KEPT:
                made[key] = value
            elif key not in _DROPPED and not key.startswith("x-"):
                raise _NotStrict
        if "$ref" in made:
            return {"$ref": made["$ref"]}
        if said:
            described = made.get("description")
            made["description"] = f"{described} ({'; '.join(said)})" if described else "; ".join(said)
        if not made.keys() & {"type", "anyOf", "enum", "const"}:
            raise _NotStrict
        self._close(schema, made, level)
        return made

    def _merged(self, schema: Mapping[str, Json], level: int) -> Mapping[str, Json]:
        """With what a `$ref` beside others refers to, or the only member of `allOf`, in its place."""
        only = schema.get("allOf")
        if is_list(only) and len(only) == 1 and is_object(only[0]):
            schema = {**only[0], **{key: value for key, value in schema.items() if key != "allOf"}}
        reference = schema.get("$ref")
        if reference is None or not schema.keys() - {"$ref"} - _DROPPED - {"title"}:
            return schema
        neighbours = {key: value for key, value in schema.items() if key != "$ref"}
        if level > _MOST_LEVELS:
            raise _NotStrict
        return self._merged({**self._referred(reference), **neighbours}, level + 1)

    def _referred(self, reference: Json) -> Mapping[str, Json]:
        found: Json = self._schema
        if not isinstance(reference, str) or not reference.startswith("#"):
            raise _NotStrict
        for step in reference[1:].strip("/").split("/"):
            name = step.replace("~1", "/").replace("~0", "~")
            if not is_object(found) or (name and name not in found):
                raise _NotStrict
            found = found[name] if name else found
        if not is_object(found):
            raise _NotStrict
        return found

    def _close(self, schema: Mapping[str, Json], made: dict[str, Json], level: int) -> None:
        kinds = made.get("type")
        several = kinds if is_list(kinds) else [kinds]
        if "object" in several or "properties" in made:
            if schema.get("additionalProperties", False) is not False:
                raise _NotStrict
            if "properties" not in made and "additionalProperties" not in schema:
                raise _NotStrict  # closed, it could only be empty
            properties = made.get("properties", {})
            self._properties += len(properties)
            if self._properties > _MOST_PROPERTIES or set(made.get("required", ())) - set(properties):
                raise _NotStrict
            made["properties"] = {name: self._of(each, level + 1) for name, each in properties.items()}
            made["required"] = list(properties)
            made["additionalProperties"] = False
        if "anyOf" in made:
            made["anyOf"] = [self._of(each, level) for each in _list(made["anyOf"])]
        if "array" in several:
            made["items"] = self._of(made.get("items"), level + 1)


def _list(value: Json) -> Iterator[Json]:
    if not is_list(value):
        raise _NotStrict
    yield from value
