"""Results of tools as they are kept: images, files and other contents in the form in which a transcript stores them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from dafx_actors._json.messages import dump_message
from dafx_actors._json.values import dump_result
from dafx_actors.transcript import ChatMessage, Content, Json


def dump_tool_result(name: str, value: Any, annotation: Any) -> Json:
    """The JSON of what a tool gave; contents in it, at any level of lists and mappings, reach a model as such.

    Raises:
        ResultNotKept: It cannot be made, for whatever reason.
    """
    dumped = dump_result(name, value, annotation)
    return dump_result(name, _with_stored(value), Any) if _holds_contents(value) else dumped


def _holds_contents(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(map(_holds_contents, cast("Mapping[Any, Any]", value).values()))
    if isinstance(value, list | tuple):
        return any(map(_holds_contents, cast("list[Any]", value)))
    return isinstance(value, Content)


def _with_stored(value: Any) -> Any:
    if isinstance(value, Content):
        return dump_message(ChatMessage("user", (value,)))["contents"][0]
    if isinstance(value, Mapping):
        return {key: _with_stored(item) for key, item in cast("Mapping[Any, Any]", value).items()}
    if isinstance(value, list | tuple):
        return [_with_stored(item) for item in cast("list[Any]", value)]
    return value
