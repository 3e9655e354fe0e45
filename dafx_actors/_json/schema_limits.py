"""Which schemas a caller may ask for, and which of them may take long to check. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, cast
from urllib.parse import unquote

import attrs

from dafx_actors.transcript import Json

MOST_BYTES = 256 * 2**10
MOST_LEVELS = 64
MOST_NODES = 10_000
"""Of the schema with every `$ref` in its place, as a validator comes to them."""
LONG_ANSWER = 64 * 2**10
"""Characters of an answer that is checked where nobody waits for it, whatever the schema is."""

_INDEX = re.compile(r"[0-9]{1,6}")
_REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")
_SLOW = {"pattern", "patternProperties", "uniqueItems", "unevaluatedProperties", "unevaluatedItems", *_REFERENCES[1:]}


@attrs.frozen
class Looked:
    """What there is to say of a schema."""

    mistake: str | None = None
    """Why it is not taken."""
    may_be_slow: bool = False
    """To check a value may take very long, by what the schema holds."""


class _Refused(Exception):
    pass


def look(schema: Mapping[str, Json]) -> Looked:
    """Look at a schema, which may come from anybody."""
    try:
        text = json.dumps(schema)
    except (TypeError, ValueError, RecursionError) as error:
        return Looked(f"it is not JSON ({error})")
    if len(text) > MOST_BYTES:
        return Looked(f"it has {len(text):,} bytes, and may have {MOST_BYTES:,}")
    looking = _Looking(schema)
    try:
        nodes, _ = looking.measure(schema, 0)
    except _Refused as refused:
        return Looked(str(refused))
    if nodes > MOST_NODES:
        return Looked(
            f"it has {nodes:,} nodes, those that `$ref` stands for counted each time; it may have {MOST_NODES:,}"
        )
    drafts = str(schema.get("$schema") or "")
    return Looked(None, looking.is_slow or "draft-03" in drafts or "draft-04" in drafts)


class _Looking:
    def __init__(self, root: Mapping[str, Json]) -> None:
        self._root = root
        self._known: dict[int, tuple[int, int]] = {}
        """Nodes and levels of what was measured, by `id`."""
        self._open: set[int] = set()
        self._anchors: dict[str, Json] | None = None
        self.is_slow = False

    def measure(self, node: Json, level: int) -> tuple[int, int]:
        """How many nodes it has, and levels."""
        if not isinstance(node, Mapping | list):
            return 0, 0
        key = id(cast("Any", node))
        if key in self._open:
            self.is_slow = True  # it holds itself: how often it is gone through depends on the answer
            return 1, 0
        nodes, levels = self._known.get(key) or self._measured(node, level, key)
        if level + levels > MOST_LEVELS:
            raise _Refused(f"it is deeper than {MOST_LEVELS} levels")
        return nodes, levels

    def _measured(self, node: Json, level: int, key: int) -> tuple[int, int]:
        if level >= MOST_LEVELS:
            raise _Refused(f"it is deeper than {MOST_LEVELS} levels")
        self._open.add(key)
        nodes, levels = int(isinstance(node, Mapping)), 0
        for child in self._below(node, level):
            below, deep = self.measure(child, level + 1)
            nodes, levels = nodes + below, max(levels, deep + 1)
        self._open.discard(key)
        self._known[key] = nodes, levels
        return nodes, levels

    def _below(self, node: Json, level: int) -> list[Json]:
        if isinstance(node, list):
            return cast("list[Json]", node)
        fields = cast("Mapping[str, Json]", node)
        self.is_slow = self.is_slow or not _SLOW.isdisjoint(fields)
        if level and isinstance(fields.get("$id"), str):
            raise _Refused("a schema in it has an `$id` of its own; only the whole may have one")
        targets = [self._target(fields[name]) for name in _REFERENCES if isinstance(fields.get(name), str)]
        # All of it, also what looks like data: a property may be called `default`, and a `$ref` may lead anywhere.
        return [*targets, *fields.values()]

    def _target(self, reference: str) -> Json:
        if not reference.startswith("#"):
            shown = reference if len(reference) < 80 else f"{reference[:80]}..."
            raise _Refused(
                f"it refers to {shown!r}; only what is in the schema itself can be referred to, as in '#/$defs/a'"
            )
        found: Json = self._root
        pointer = unquote(reference[1:])
        if pointer and not pointer.startswith("/"):
            if self._anchors is None:
                self._anchors = dict(_anchors_in(self._root, 0))
            return self._anchors.get(pointer)
        for step in pointer.split("/")[1:]:
            name = step.replace("~1", "/").replace("~0", "~")
            if isinstance(found, list) and _INDEX.fullmatch(name) and int(name) < len(cast("list[Json]", found)):
                found = cast("list[Json]", found)[int(name)]
            elif isinstance(found, Mapping) and name in found:
                found = cast("Mapping[str, Json]", found)[name]
            else:
                raise _Refused(f"it refers to {reference[:80]!r}, which is not in it")
        return found


def _anchors_in(node: Json, level: int) -> list[tuple[str, Json]]:
    if level > MOST_LEVELS:
        raise _Refused(f"it is deeper than {MOST_LEVELS} levels")
    found: list[tuple[str, Json]] = []
    if isinstance(node, Mapping):
        fields = cast("Mapping[str, Json]", node)
        found += [(fields[name], fields) for name in ("$anchor", "$dynamicAnchor") if isinstance(fields.get(name), str)]
        children = list(fields.values())
    else:
        children = cast("list[Json]", node) if isinstance(node, list) else []
    for child in children:
        found += _anchors_in(child, level + 1)
    return found
