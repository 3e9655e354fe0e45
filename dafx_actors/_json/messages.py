"""Messages and entries of a transcript, as they are stored.

The stored shapes are those of `durable-agent-entity-state.json`. Fields that a type does not know are kept in its
`extra`; contents and entries of an unknown or broken kind are kept whole, as `OpaqueContent` and `OpaqueEntry`.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, cast

from dafx_actors._json.shapes import as_list, or_default
from dafx_actors.transcript import ChatMessage, Entry, Json, UsageStats

if TYPE_CHECKING:
    from cattrs import Converter


@functools.cache
def _converter() -> Converter:
    # Not at the top: it takes long to make, and programs that only declare agents never need it.
    from dafx_actors._json.stored import make_converter

    return make_converter()


def dump_message(message: ChatMessage) -> dict[str, Json]:
    """A message as it is stored."""
    return cast("dict[str, Json]", _converter().unstructure(message))


def load_message(raw: Json) -> ChatMessage:
    """Read a stored message.

    Raises:
        ValueError: It is none: no role, or contents that are not a list of objects.
    """
    try:
        return _converter().structure(raw, ChatMessage)
    except (KeyError, TypeError) as error:
        raise ValueError(f"not a message: {error!r}") from error


def load_messages(raw: Json) -> tuple[ChatMessage, ...]:
    """Read a list of stored messages.

    Raises:
        ValueError: It is none.
    """
    return tuple(load_message(item) for item in as_list(raw))


def dump_usage(usage: UsageStats) -> dict[str, Json]:
    """Token counts as they are stored."""
    return cast("dict[str, Json]", _converter().unstructure(usage))


def load_usage(raw: Json) -> UsageStats:
    """Read stored token counts; none at all count as zero.

    Raises:
        ValueError: It is something else.
    """
    return _converter().structure(or_default(raw, {}), UsageStats)


def dump_entry(entry: Entry) -> dict[str, Json]:
    """An entry as it is stored."""
    return cast("dict[str, Json]", _converter().unstructure(entry))


def load_entry(raw: Json) -> Entry:
    """Read a stored entry; one of an unknown or broken kind is kept whole.

    Raises:
        ValueError: It is not even an object.
    """
    kind: Any = Entry
    return cast("Entry", _converter().structure(raw, kind))
