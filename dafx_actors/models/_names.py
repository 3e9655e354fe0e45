"""Names of tools and ids of calls in the form that a server takes. Pure.

A thread outlives its model, so what one server made is sent to the next. Each form is made of the conversation from its
beginning, so that it is the same in every request of it.
"""

from __future__ import annotations

import functools
import hashlib
import re
import string
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Literal

import attrs

from dafx_actors._json.text import well_formed_text

__all__ = ["CallIds", "ToolNames", "clean_name"]

_LONGEST_NAME = 64
_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_NOT_IN_NAMES = re.compile(r"[^a-zA-Z0-9_-]+")
_ALPHABET = string.digits + string.ascii_letters
_NINE = re.compile(r"[a-zA-Z0-9]{9}")
_FORTY = re.compile(r"[a-zA-Z0-9_-]{1,40}")


def clean_name(name: str, otherwise: str = "tool") -> str:
    """A name in the 64 characters that every API takes; one that is cut keeps a digest of the whole."""
    cleaned = _NOT_IN_NAMES.sub("_", name)
    if not cleaned.strip("_"):
        return f"{otherwise}_{_digest(name, 8)}" if name else otherwise
    return cleaned if len(cleaned) <= _LONGEST_NAME else _marked(cleaned, name)


def _marked(cleaned: str, name: str) -> str:
    return f"{cleaned[: _LONGEST_NAME - 9]}_{_digest(name, 8)}"


@functools.lru_cache(maxsize=10_000)  # the ids of a conversation are asked for at each of its calls
def _digest(text: str, length: int) -> str:
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
    number = int.from_bytes(digest, "big") % len(_ALPHABET) ** length
    made: list[str] = []
    for _ in range(length):
        number, rest = divmod(number, len(_ALPHABET))
        made.append(_ALPHABET[rest])
    return "".join(made)


@attrs.define
class ToolNames:
    """The names of tools as they are sent, and as they were."""

    _sent: dict[str, str] = attrs.field(factory=dict[str, str])
    _were: dict[str, str] = attrs.field(factory=dict[str, str])

    @classmethod
    def of(cls, offered: Iterable[str]) -> ToolNames:
        """The names of the tools that a request offers; those that are right keep theirs."""
        names = cls()
        for name in sorted(offered, key=lambda name: not _NAME.fullmatch(name)):
            names.sent(name)
        return names

    def sent(self, name: str) -> str:
        """The name as it is sent; no two are the same."""
        if (known := self._sent.get(name)) is not None:
            return known
        cleaned = name if _NAME.fullmatch(name) else clean_name(name)
        if cleaned in self._were:
            cleaned = _marked(cleaned, name)
        self._sent[name] = cleaned
        self._were[cleaned] = name
        return cleaned

    def was(self, sent: str) -> str:
        """The name that a model means."""
        return self._were.get(sent, sent)


@attrs.define
class CallIds:
    """The ids of a conversation's calls as they are sent: each once, though some models give all calls the same."""

    _form: Literal["nine", "forty", "any"]
    _taken: set[str] = attrs.field(factory=set[str])
    _seen: dict[str, int] = attrs.field(factory=dict[str, int])
    _open: dict[str, deque[str]] = attrs.field(factory=dict[str, "deque[str]"])

    def of_calls(self, ids: Sequence[str]) -> list[str]:
        """The ids of the calls of one message. What was open is answered by nothing that follows."""
        self._open.clear()
        sent = [self._next(call_id) for call_id in ids]
        for call_id, made in zip(ids, sent, strict=True):
            self._open.setdefault(call_id, deque()).append(made)
        return sent

    def of_result(self, call_id: str) -> str:
        """The id of the call that a result answers."""
        waiting = self._open.get(call_id)
        return waiting.popleft() if waiting else self._next(call_id)

    def _next(self, call_id: str) -> str:
        count = self._seen[call_id] = self._seen.get(call_id, 0) + 1
        made, tries = well_formed_text(call_id), count
        if count > 1 or not self._fits(call_id):
            made = self._made(call_id, tries)
        while made in self._taken:
            tries += 1
            made = self._made(call_id, tries)
        self._taken.add(made)
        return made

    def _fits(self, call_id: str) -> bool:
        if self._form == "any":
            return bool(call_id)
        return bool((_NINE if self._form == "nine" else _FORTY).fullmatch(call_id))

    def _made(self, call_id: str, number: int) -> str:
        digest = _digest(f"{call_id}#{number}", 9 if self._form == "nine" else 24)
        return digest if self._form == "nine" else f"call_{digest}"
