"""What a turn has said so far, in a form in which it can be compared: steps of entries.

Text that stands together is one entry, in however many pieces it came; everything else is an entry each. What a
message says of itself (when it was made, by whom) is left out, and so is the error that a turn ended with.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable
from typing import Literal, TypeAlias

import attrs

from dafx_actors._json.messages import dump_message
from dafx_actors._json.told import content_as_json
from dafx_actors.transcript import (
    ChatMessage,
    Content,
    ErrorContent,
    TextContent,
    TextReasoningContent,
)


@attrs.frozen
class Words:
    """Text, or reasoning, that stands together; never empty."""

    kind: Literal["text", "reasoning"]
    text: str

    def checksum(self, before: int) -> int:
        """The checksum of this after `before`. That of more text can be made of it: see `more`."""
        return self.more(self.text, zlib.crc32(self.kind.encode(), before))

    @staticmethod
    def more(text: str, before: int) -> int:
        """The checksum of words that have become longer by `text`."""
        return zlib.crc32(text.encode(errors="surrogatepass"), before)


@attrs.frozen
class Whole:
    """Something that is told as a whole: a content of a message, or a message that is not the agent's own."""

    said: Content | ChatMessage

    def checksum(self, before: int) -> int:
        """The checksum of this after `before`."""
        if isinstance(self.said, ChatMessage):
            stored = dump_message(self.said)
            raw = {"role": self.said.role, "contents": stored.get("contents")}
        else:
            raw = content_as_json(self.said)
        return zlib.crc32(json.dumps(raw, sort_keys=True).encode(), before)


Entry: TypeAlias = Words | Whole
Entries: TypeAlias = tuple[Entry, ...]


@attrs.frozen
class Said:
    """One step: a reply of the model, and what followed it until the next."""

    reply: Entries = ()
    """What the model said; all of it is recorded at once."""
    after: Entries = ()
    """The results of its calls, and messages that became part of the turn then. They may be recorded one by one."""

    @property
    def entries(self) -> Entries:
        """All of it."""
        return self.reply + self.after


def steps_of(messages: Iterable[ChatMessage]) -> tuple[Said, ...]:
    """The steps of a turn's messages; the first is what stands before the first reply, mostly nothing."""
    steps = [Said()]
    for message in messages:
        contents = tuple(each for each in message.contents if not isinstance(each, ErrorContent))
        if message.contents and not contents:
            continue
        if message.role == "assistant":
            steps.append(Said(_entries(contents)))
        else:
            after = _entries(contents) if message.role == "tool" else (Whole(_bare(message)),)
            steps[-1] = Said(steps[-1].reply, steps[-1].after + after)
    return tuple(steps)


def _bare(message: ChatMessage) -> ChatMessage:
    return ChatMessage(message.role, message.contents)


def _entries(contents: Iterable[Content]) -> Entries:
    entries: list[Entry] = []
    for content in contents:
        if isinstance(content, TextContent | TextReasoningContent):
            add_words(entries, "text" if isinstance(content, TextContent) else "reasoning", content.text)
        else:
            entries.append(Whole(content))
    return tuple(entries)


def add_words(entries: list[Entry], kind: Literal["text", "reasoning"], text: str) -> None:
    """Add words to entries; those that follow words of their kind become longer."""
    if not text:
        return
    if entries and isinstance(last := entries[-1], Words) and last.kind == kind:
        entries[-1] = Words(kind, last.text + text)
    else:
        entries.append(Words(kind, text))


def begins_with(whole: Entries, part: Entries) -> bool:
    """Whether `part` is where `whole` begins; the last words of `part` may go on in `whole`."""
    if not part:
        return True
    last = len(part) - 1
    if len(whole) <= last or whole[:last] != part[:last]:
        return False
    return whole[last] == part[last] or goes_on(whole[last], part[last])


def goes_on(longer: Entry, words: Entry) -> bool:
    """Whether an entry is words that another begins with."""
    return (
        isinstance(longer, Words)
        and isinstance(words, Words)
        and longer.kind == words.kind
        and longer.text.startswith(words.text)
    )


def cut(entries: Entries, count: int, offset: int) -> Entries | None:
    """The first `count` entries, the last of them with `offset` characters; None where there is not so much."""
    if len(entries) < count:
        return None
    if not count:
        return ()
    last = entries[count - 1]
    if isinstance(last, Words):
        if len(last.text) < offset or not offset:
            return None
        last = Words(last.kind, last.text[:offset])
    elif offset:
        return None
    return (*entries[: count - 1], last)
