"""What a server says that went wrong, found in whatever it answered: words, names, a status, a wait. Pure.

Servers agree on an object `{"error": {"message", "type", "code"}}` and on little else: the object may stand in a list,
be a text, be another server's error quoted as text, or be called `detail` or `errors`; a proxy sends a page.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeGuard

import attrs

from dafx_actors.transcript import Json

__all__ = ["Said", "read"]

_LONGEST_MESSAGE = 2000  # a proxy's error page would otherwise be recorded whole
_DEEPEST = 6
_WORDS = ("message", "msg", "detail", "status_msg", "error_description", "error_message", "faultstring", "title")
_INSIDE = ("error", "errors", "detail", "fault", "innererror", "inner_error", "base_resp")
_NAMES = ("code", "type", "status", "error_type", "reason", "status_code")


@attrs.frozen(kw_only=True)
class Said:
    """What was found."""

    message: str
    """The server's own words; empty where it has none."""
    names: tuple[str, ...] = ()
    """Codes and types, the outermost first."""
    status: int | None = None
    """An HTTP status inside, of an error that came too late to have one, or under another."""
    fields: Mapping[str, Json] = attrs.field(factory=dict[str, Json])
    """The objects in which these stand, as one; what stands further out wins."""
    objects: tuple[Mapping[str, Json], ...] = ()
    """The same, one by one."""


def read(body: Json) -> Said:
    """What `body` says, which is the JSON of an answer, or its text where it is no JSON.

    Gives what it found of words and codes, which may be nothing.
    """
    objects: list[Mapping[str, Json]] = []
    words: list[str] = []
    _collect(_parsed(body), objects, words, _DEEPEST)
    fields: dict[str, Json] = {}
    for each in objects:
        for name, value in each.items():
            if fields.get(name) is None:
                fields[name] = value
    names = tuple(str(each[name]) for each in objects for name in _NAMES if _is_name(each.get(name)))
    return Said(
        message=_sentence(words)[:_LONGEST_MESSAGE],
        names=names,
        status=next((int(name) for name in names if re.fullmatch(r"[1-5]\d\d", name)), None),
        fields=fields,
        objects=tuple(objects),
    )


def _parsed(body: Json) -> Json:
    """What is JSON inside a text; a page as its title and headings."""
    if not isinstance(body, str):
        return body
    text = body.strip()
    if text.startswith(("{", "[")):
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            return text
    return _of_page(text) if re.match(r"(?is)<(!doctype|html|head|body|center|h1|\?xml)", text) else text


def _of_page(page: str) -> str:
    """The words of a page: those that stand in its title and headings, or else all of them."""
    page = page[: 4 * _LONGEST_MESSAGE]
    visible = re.sub(r"(?is)<(script|style)\b.*?(</\1>|\Z)", " ", page)
    parts = [found.group(2) for found in re.finditer(r"(?is)<(title|h1|h2)\b[^>]*>(.*?)</\1>", visible)] or [visible]
    texts = [" ".join(html.unescape(re.sub(r"<[^<>]*(>|$)", " ", part)).split()) for part in parts]
    return ". ".join(dict.fromkeys(text for text in texts if text))


def _collect(value: Json, objects: list[Mapping[str, Json]], words: list[str], levels: int) -> None:
    """Go from the outside in; what stands inside says more than what stands around it, so its words come later."""
    if levels == 0:
        return
    if isinstance(value, str):
        if value.strip():
            words.append(value.strip())
    elif _is_list(value):
        for each in value[:5]:
            _collect(each, objects, words, levels - 1)
    elif _is_object(value):
        objects.append(value)
        for name in _WORDS:
            if isinstance(said := value.get(name), str) and said.strip():
                inner = _parsed(said)
                if isinstance(inner, str):
                    words.append(_located(value, inner))
                else:  # another server's answer, quoted
                    _collect(inner, objects, words, levels - 1)
                break
        for inside in _inside(value):
            _collect(_parsed(inside), objects, words, levels - 1)


def _inside(value: Mapping[str, Json]) -> Iterator[Json]:
    for name in _INSIDE:
        if (inner := value.get(name)) is not None and not (name == "detail" and isinstance(inner, str)):
            yield inner
            if name == "errors" and _is_object(inner):  # by the fields that they are about
                for field, wrong in inner.items():
                    for each in wrong if _is_list(wrong) else ():
                        if isinstance(each, str):
                            yield f"{field}: {each}"
    metadata = value.get("metadata")  # OpenRouter: what the provider behind it said
    if _is_object(metadata) and metadata.get("raw"):
        yield metadata["raw"]


def _located(value: Mapping[str, Json], words: str) -> str:
    """What a validator says of a field, with the field's name."""
    where = value.get("loc")
    return f"{'.'.join(str(part) for part in where)}: {words}" if _is_list(where) and where else words


def _sentence(words: Sequence[str]) -> str:
    """The words once each, unless others hold them."""
    each_once = list(dict.fromkeys(words))
    return "; ".join(each for each in each_once if not any(each in other for other in each_once if other != each))


def _is_name(value: Json) -> bool:
    return (isinstance(value, str) and bool(value)) or (isinstance(value, int) and not isinstance(value, bool))


def _is_object(value: Any) -> TypeGuard[Mapping[str, Json]]:
    return isinstance(value, Mapping)


def _is_list(value: Any) -> TypeGuard[Sequence[Json]]:
    return isinstance(value, list)
