"""Parts of a chat completion, in the forms that servers give them: content, arguments, token counts. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, TypeGuard

from dafx_actors._json.shapes import load_json
from dafx_actors.transcript import Content, Json, TextContent, TextReasoningContent, UnknownContent, UsageStats

__all__ = ["arguments_in", "contents_in", "pieces_in", "usage_in"]


# --- content ---------------------------------------------------------------------------------------------------------


def contents_in(content: Json) -> Iterator[Content]:
    """The contents of a message whose `content` is a text, null, or a list of parts, such as Mistral's with thinking.

    Parts of one kind that follow one another are one content. A part that is neither text nor reasoning is kept as it
    came, and not sent to a model again.

    Raises:
        ValueError: It is something else.
    """
    kind: str | None = None
    gathered: list[str] = []
    ends: Iterator[tuple[str, Any]] = iter([("other", None)])
    for part_kind, value in chain(_parts(content), ends):
        if part_kind != kind:
            if text := "".join(gathered):
                yield _content(kind, text)
            kind, gathered = part_kind, []
        if part_kind != "other":
            gathered.append(value)
        elif value is not None:
            yield UnknownContent(value)


def _content(kind: str | None, text: str) -> Content:
    if kind == "thinking":
        return TextReasoningContent(text)
    return TextContent(text, extra={"refusal": True}) if kind == "refusal" else TextContent(text)


def pieces_in(content: Json) -> Iterator[tuple[str, str]]:
    """What a piece of a streamed message adds, as `text`, `thinking` or `refusal`, and the words."""
    for kind, value in _parts(content):
        if kind != "other" and value:
            yield kind, value


def _parts(content: Json) -> Iterator[tuple[str, Any]]:
    if content is None:
        return
    if isinstance(content, str):
        yield "text", content
    elif _is_object(content):
        # A part alone; or an answer in JSON that the server has read already.
        yield from [_part(content)] if "type" in content else [("text", json.dumps(content, ensure_ascii=False))]
    elif _is_list(content):
        yield from (_part(part) for part in content if part is not None)
    else:
        raise ValueError("its content is not text")


def _part(part: Json) -> tuple[str, Any]:
    if isinstance(part, str):
        return "text", part
    if not _is_object(part):
        return "other", part
    kind = part.get("type")
    if kind in {"thinking", "reasoning", "redacted_thinking"}:
        words = next(
            (part[name] for name in ("thinking", "reasoning", "text", "summary", "content") if part.get(name)), ""
        )
        return "thinking", _flat(words)
    if kind == "refusal" and isinstance(refusal := part.get("refusal"), str):
        return "refusal", refusal
    text = part.get("text")
    if kind in {"text", "output_text", None} and isinstance(text, str):
        return "text", text
    return "other", part


def _flat(words: Json) -> str:
    """Mistral's thinking is itself a list of parts."""
    return "".join(text for kind, text in _parts(words) if kind != "other") if words else ""


# --- arguments -------------------------------------------------------------------------------------------------------


def arguments_in(arguments: Json) -> Mapping[str, Json] | str:
    """The arguments of a call; or what was written, where it is no JSON object.

    None, an empty text and "null" are what servers write for a tool without parameters; some give an object as such.

    Raises:
        ValueError: They are neither an object nor a text.
    """
    if _is_object(arguments):
        written = json.dumps(arguments)
    elif arguments is None:
        return {}
    elif isinstance(arguments, str):
        written = arguments
    else:
        raise ValueError("the arguments of a call are neither text nor an object")
    if not written.strip():
        return {}
    try:
        parsed = load_json(written)
    except ValueError:
        return written
    if parsed is None:
        return {}
    return parsed if _is_object(parsed) else written


# --- token counts ----------------------------------------------------------------------------------------------------


def usage_in(usage: Json) -> UsageStats | None:
    """The token counts of a call, of which a server may give some only; None where it gives none.

    The names are those of chat completions, of OpenAI's newer API, and of DeepSeek and Anthropic for cached tokens.
    """
    if not _is_object(usage):
        return None
    given = _count(usage, "prompt_tokens", "input_tokens")
    made = _count(usage, "completion_tokens", "output_tokens")
    total = _count(usage, "total_tokens")
    if given is None and made is None and total is None:
        return None
    if total is None:
        total = (given or 0) + (made or 0)
    if given is None and made is not None:
        given = max(0, total - made)
    if made is None and given is not None:
        made = max(0, total - given)
    details = [usage.get(name) for name in ("prompt_tokens_details", "input_tokens_details")]
    cached = [_count(each, "cached_tokens") for each in details if _is_object(each)]
    cached.append(_count(usage, "prompt_cache_hit_tokens", "cache_read_input_tokens", "cached_tokens"))
    more = [usage.get(name) for name in ("completion_tokens_details", "output_tokens_details")]
    reasoning = [_count(each, "reasoning_tokens") for each in more if _is_object(each)]
    reasoning.append(_count(usage, "reasoning_tokens"))
    return UsageStats(
        given or 0,
        made or 0,
        total,
        cached_tokens=next((count for count in cached if count), 0),
        reasoning_tokens=next((count for count in reasoning if count), 0),
    )


def _count(fields: Mapping[str, Json], *names: str) -> int | None:
    for name in names:
        value = fields.get(name)
        # Not `True`, which would be stored as it is: whoever reads the thread takes the whole entry for a broken one.
        if (
            isinstance(value, int | float)
            and not isinstance(value, bool)
            and 0 <= value < 2**53
            and value == int(value)
        ):
            return int(value)
    return None


def _is_object(value: Any) -> TypeGuard[Mapping[str, Json]]:
    return isinstance(value, Mapping)


def _is_list(value: Any) -> TypeGuard[Sequence[Json]]:
    return isinstance(value, list)
