"""What a thread remembers: entries made of messages made of contents, all frozen.

The shapes are those of the published schema `durable-agent-entity-state.json` (version 1.1.0), so that both
this package and its peer can read a thread; `_json/messages.py` maps them to JSON and back. Each type keeps the JSON
fields that it does not know in `extra`, and writes them back unchanged. All of them can stand in sets and as keys of
dicts: they are compared whole, and hashed without what is JSON in them.

::

    Transcript
    └── entries: Request | Response             a Response answers the Request of its correlation id
        └── messages: ChatMessage               role: user, assistant, system or tool
            └── contents: TextContent, DataContent, FunctionCallContent, ...
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any, Literal, TypeAlias, get_args

import attrs

from dafx_actors._shown import Shown

Role: TypeAlias = Literal["user", "assistant", "system", "tool"]
Json: TypeAlias = Any
"""A value that JSON can hold: None, bool, int, float, str, or a list or a `str`-keyed mapping of such."""


def _extra() -> Any:
    """JSON fields that this version does not know. They survive a round trip, and do not clutter a repr."""
    return attrs.field(factory=dict[str, Json], kw_only=True, repr=False, hash=False)


@attrs.frozen(repr=False)
class UsageStats:
    """Tokens that model calls took."""

    input_tokens: int = 0
    output_tokens: int = 0
    total_tokens: int = 0
    cached_tokens: int = attrs.field(default=0, kw_only=True)
    """The input tokens that the provider had kept from an earlier call."""
    reasoning_tokens: int = attrs.field(default=0, kw_only=True)
    """The output tokens that are reasoning and not the answer."""
    extra: Mapping[str, Json] = _extra()

    def __add__(self, other: UsageStats) -> UsageStats:
        """The usage of two calls together."""
        return UsageStats(
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            self.total_tokens + other.total_tokens,
            cached_tokens=self.cached_tokens + other.cached_tokens,
            reasoning_tokens=self.reasoning_tokens + other.reasoning_tokens,
        )

    def __repr__(self) -> str:
        always = ("input_tokens", "output_tokens", "total_tokens")
        found = [name for name in ("cached_tokens", "reasoning_tokens") if getattr(self, name)]
        return f"UsageStats({', '.join(f'{name}={getattr(self, name)!r}' for name in (*always, *found))})"


@attrs.frozen(repr=False)
class TextContent(Shown):
    """Text."""

    text: str
    extra: Mapping[str, Json] = _extra()


@attrs.frozen(repr=False)
class TextReasoningContent(Shown):
    """A model's own reasoning. It is kept, and not sent to a model again."""

    text: str = ""
    extra: Mapping[str, Json] = _extra()


@attrs.frozen(repr=False)
class DataContent(Shown):
    """Bytes in the message itself, as a `data:` URI."""

    uri: str
    media_type: str | None = None
    extra: Mapping[str, Json] = _extra()

    @classmethod
    def from_bytes(cls, data: bytes, media_type: str) -> DataContent:
        """Take `data`, such as the bytes of a PNG file with `media_type="image/png"`."""
        return cls(f"data:{media_type};base64,{base64.b64encode(data).decode()}", media_type)


@attrs.frozen(repr=False)
class UriContent(Shown):
    """Something that the model's provider fetches by itself, such as an image on the web."""

    uri: str
    media_type: str
    extra: Mapping[str, Json] = _extra()


@attrs.frozen(repr=False)
class ErrorContent(Shown):
    """The turn ended with this error instead of an answer."""

    message: str | None = None
    error_code: str | None = None
    details: Json = attrs.field(default=None, hash=False)
    extra: Mapping[str, Json] = _extra()


@attrs.frozen(repr=False)
class FunctionCallContent(Shown):
    """The model asks for a tool."""

    call_id: str
    """Pairs the call with its result."""
    name: str
    arguments: Mapping[str, Json] = attrs.field(factory=dict[str, Json], hash=False)
    extra: Mapping[str, Json] = _extra()


@attrs.frozen(repr=False)
class FunctionResultContent(Shown):
    """The result of a tool call."""

    call_id: str
    result: Json = attrs.field(default=None, hash=False)
    extra: Mapping[str, Json] = _extra()


@attrs.frozen(repr=False)
class HostedFileContent(Shown):
    """A file that the model's provider holds."""

    file_id: str
    extra: Mapping[str, Json] = _extra()


@attrs.frozen(repr=False)
class HostedVectorStoreContent(Shown):
    """A vector store that the model's provider holds."""

    vector_store_id: str
    extra: Mapping[str, Json] = _extra()


@attrs.frozen(repr=False)
class UsageContent(Shown):
    """Usage that a provider reported as part of a message."""

    usage: UsageStats
    extra: Mapping[str, Json] = _extra()


@attrs.frozen(repr=False)
class UnknownContent(Shown):
    """A content that whoever stored it could not name."""

    content: Json = attrs.field(default=None, hash=False)
    extra: Mapping[str, Json] = _extra()


@attrs.frozen(repr=False)
class OpaqueContent(Shown):
    """A content of a type that this version does not know, kept as it was stored."""

    raw: Mapping[str, Json] = attrs.field(hash=False)


Content: TypeAlias = (
    TextContent
    | TextReasoningContent
    | DataContent
    | UriContent
    | ErrorContent
    | FunctionCallContent
    | FunctionResultContent
    | HostedFileContent
    | HostedVectorStoreContent
    | UsageContent
    | UnknownContent
    | OpaqueContent
)


def _contents(given: str | Iterable[Content]) -> tuple[Content, ...]:
    return (TextContent(given),) if isinstance(given, str) else tuple(given)


@attrs.frozen(repr=False)
class ChatMessage(Shown):
    """One message. `ChatMessage("user", "Hello")` is short for a single text content."""

    role: Role = attrs.field(validator=attrs.validators.in_(get_args(Role)))
    contents: tuple[Content, ...] = attrs.field(default=(), converter=_contents)
    author_name: str | None = None
    created_at: datetime | None = None
    extra: Mapping[str, Json] = _extra()

    @property
    def text(self) -> str:
        """The text of the message, without its reasoning."""
        return "".join(content.text for content in self.contents if isinstance(content, TextContent))


@attrs.frozen(kw_only=True, repr=False)
class Request(Shown):
    """A request to the agent."""

    correlation_id: str | None = None
    messages: tuple[ChatMessage, ...]
    created_at: datetime | None = None
    orchestration_id: str | None = None
    """The orchestration that sent it, if one did."""
    response_type: str | None = None
    """`text` or `json`."""
    response_schema: Mapping[str, Json] | None = attrs.field(default=None, hash=False)
    """The JSON schema that the answer must fit."""
    extra: Mapping[str, Json] = _extra()


@attrs.frozen(kw_only=True, repr=False)
class Response(Shown):
    """The answer of the agent, or the error that its turn ended with."""

    correlation_id: str | None = None
    messages: tuple[ChatMessage, ...]
    created_at: datetime | None = None
    usage: UsageStats | None = None
    extra: Mapping[str, Json] = _extra()

    @property
    def text(self) -> str:
        """The text of the answer."""
        return "".join(message.text for message in self.messages)

    @property
    def error(self) -> ErrorContent | None:
        """The error that the turn ended with, or None if it was answered."""
        for message in self.messages:
            for content in message.contents:
                if isinstance(content, ErrorContent):
                    return content
        return None


@attrs.frozen(repr=False)
class OpaqueEntry(Shown):
    """An entry of a kind that this version does not know, kept as it was stored."""

    raw: Mapping[str, Json] = attrs.field(hash=False)


Entry: TypeAlias = Request | Response | OpaqueEntry


@attrs.frozen(kw_only=True, repr=False)
class Transcript(Shown):
    """Everything that a thread remembers. Iterating gives its messages, oldest first."""

    entries: tuple[Entry, ...] = ()
    """The turns that have begun, in their order."""
    draft: tuple[ChatMessage, ...] = ()
    """The messages that the running turn has recorded so far; its `Response` will begin with them."""
    schema_version: str = "1.1.0"

    def __iter__(self) -> Iterator[ChatMessage]:
        for entry in self.entries:
            if not isinstance(entry, OpaqueEntry):
                yield from entry.messages
        yield from self.draft

    def request(self, correlation_id: str) -> Request | None:
        """The request of a turn that has begun, or None."""
        return next((e for e in self.entries if isinstance(e, Request) and e.correlation_id == correlation_id), None)

    def response(self, correlation_id: str) -> Response | None:
        """The response of a turn that has ended, or None."""
        return next((e for e in self.entries if isinstance(e, Response) and e.correlation_id == correlation_id), None)
