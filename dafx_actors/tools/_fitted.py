"""Tools of others, made fit for the APIs of models: their schemas are whatever somebody wrote. Pure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, cast

import attrs

from dafx_actors._json.shapes import shown
from dafx_actors.models import ToolDefinition
from dafx_actors.transcript import Json

MOST_DESCRIPTION = 1024
"""Characters of a description; OpenAI's API takes no more."""
_CHOICES = ("anyOf", "oneOf", "allOf")
_NOT_AT_THE_TOP = (*_CHOICES, "enum", "const", "not", "if", "then", "else", "dependentSchemas", "$ref")
"""What OpenAI's API, and those that are compatible with it, refuse there."""


class Unfit(ValueError):
    """No model can be offered that tool; says why."""


def fitted(tool: ToolDefinition) -> ToolDefinition:
    """The tool with a schema of type `object` that has `properties`, and a description that is not too long.

    Choices at the top become properties that may be left out; the source itself still holds the arguments to them.

    Raises:
        Unfit: It cannot be made fit.
    """
    parameters = _object(tool.name, tool.parameters)
    description = tool.description
    if len(description) > MOST_DESCRIPTION:
        description = description[: MOST_DESCRIPTION - 3] + "..."
    return attrs.evolve(tool, parameters=parameters, description=description)


def digest_of(tool: ToolDefinition) -> str:
    """The digest of a tool as a model was offered it: another description or schema is another tool."""
    said = json.dumps([tool.name, tool.description, tool.parameters], sort_keys=True, default=str)
    return hashlib.sha256(said.encode(errors="replace")).hexdigest()[:32]


def _object(name: str, schema: Any) -> dict[str, Json]:
    if schema is None:
        schema = {}
    if not isinstance(schema, Mapping):
        raise Unfit(f"its schema is no object, but {shown(schema)}")
    fields = dict(cast("Mapping[str, Json]", schema))
    try:
        json.dumps(fields, allow_nan=False)
    except (ValueError, TypeError, RecursionError) as error:
        raise Unfit(f"its schema is not JSON ({error})") from error
    kind: Any = fields.get("type", "object")
    if kind != "object" and not (isinstance(kind, list) and "object" in kind):
        raise Unfit(f"its arguments are of type {shown(kind)}, and not an object")
    merged: dict[str, Json] = {}
    required: list[str] = []
    for part in _parts(fields, _CHOICES):
        merged = {**_mapping(part.get("properties")), **merged}
    for part in _parts(fields, ("allOf",)):
        required += [each for each in _list(part.get("required")) if isinstance(each, str) and each not in required]
    kept = {key: value for key, value in fields.items() if key not in _NOT_AT_THE_TOP}
    kept |= {"type": "object", "properties": merged}
    kept.pop("required", None)
    return {**kept, **({"required": [each for each in required if each in merged]} if required else {})}


def _parts(root: Mapping[str, Json], keys: tuple[str, ...]) -> list[Mapping[str, Json]]:
    """The schema and all that it is made of by these keys and by `$ref`, each once: they may refer to one another."""
    parts, ids = [root], {id(root)}
    for schema in parts:
        for each in _below(schema, root, keys):
            if id(each) not in ids:
                ids.add(id(each))
                parts.append(each)
    return parts


def _below(schema: Mapping[str, Json], root: Mapping[str, Json], keys: tuple[str, ...]) -> list[Mapping[str, Json]]:
    parts = [_mapping(each) for key in keys for each in _list(schema.get(key))]
    reference = schema.get("$ref")
    if isinstance(reference, str) and reference.startswith("#/"):
        target: Json = root
        for step in reference[2:].split("/"):
            target = _mapping(target).get(step.replace("~1", "/").replace("~0", "~"))
        parts.append(_mapping(target))
    return parts


def _mapping(value: Json) -> Mapping[str, Json]:
    return cast("Mapping[str, Json]", value) if isinstance(value, Mapping) else {}


def _list(value: Json) -> list[Json]:
    return cast("list[Json]", value) if isinstance(value, list) else []
