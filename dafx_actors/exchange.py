"""Requests to an agent, limits, and answers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, Generic, Literal, TypeAlias, TypeVar, cast

import attrs

from dafx_actors._shown import Shown
from dafx_actors.ids import AgentThread
from dafx_actors.transcript import ChatMessage, Content, Json, TextContent, UsageStats

T_co = TypeVar("T_co", covariant=True)

Messages: TypeAlias = (
    "str | Content | ChatMessage | Mapping[str, Json] | Iterable[str | Content | ChatMessage | Mapping[str, Json]]"
)
"""What `run()` takes: a text, a content such as an image, a message, or several of them. A message may be a mapping as
OpenAI's API has it, `{"role": "user", "content": "Hello"}`."""

_NEVER_SEVERAL: tuple[type, ...] = (str, bytes, Mapping)
"""Iterables that are one thing."""
_ROLES = ("user", "assistant", "system")


def as_messages(given: Messages) -> tuple[ChatMessage, ...]:
    """Make messages of what a caller gave; texts and contents that stand together are one message of the user.

    Raises:
        TypeError: Something in it is none of these.
        ValueError: There is nothing in it.
    """
    items: list[Any] = [given] if isinstance(given, _NEVER_SEVERAL) or not isinstance(given, Iterable) else list(given)
    messages: list[ChatMessage] = []
    loose: list[Content] = []

    def close() -> None:
        if loose:
            messages.append(ChatMessage("user", tuple(loose)))
            loose.clear()

    for item in items:
        if isinstance(item, ChatMessage):
            close()
            messages.append(item)
        elif isinstance(item, str):
            loose.extend(ChatMessage("user", item).contents)
        elif isinstance(item, Content):
            loose.append(item)
        elif isinstance(item, Mapping):
            close()
            messages.append(_message_of(cast("Mapping[str, Json]", item)))
        else:
            raise TypeError(f"a message is a str, a content or a ChatMessage, not {type(item).__name__}: {item!r}")
    close()
    if not messages:
        raise ValueError("there is no message to send")
    return tuple(messages)


def _text_in(part: Json) -> Json:
    if not isinstance(part, Mapping):
        return None
    said = cast("Mapping[str, Json]", part)
    return said.get("text") if said.get("type") == "text" else None


def _message_of(mapping: Mapping[str, Json]) -> ChatMessage:
    """The message in a mapping of a role and a content: a text, or a list of texts.

    Raises:
        TypeError: It has another form; images and files are contents of `dafx_actors.transcript`.
    """
    role, content = mapping.get("role"), mapping.get("content")
    parts = cast("list[Json]", content) if isinstance(content, list) else [{"type": "text", "text": content}]
    texts = [_text_in(part) for part in parts]
    is_text = bool(texts) and all(isinstance(text, str) for text in texts)
    if role not in _ROLES or not is_text or mapping.keys() - {"role", "content"}:
        raise TypeError(
            f"a message as a mapping has `role` ({', '.join(_ROLES)}) and `content`, a text or a list of text parts, "
            f"and nothing else, not {mapping!r}; images and files are a DataContent or a UriContent"
        )
    return ChatMessage(role, [TextContent(text) for text in texts])


Ending: TypeAlias = Literal["whole", "cut", "withheld", "broken"]
"""What a finish reason means for the reply.

`whole`: it is all that the model meant to say. `cut`: it ends at a limit of tokens. `withheld`: a filter kept it back.
`broken`: the provider did not bring it to an end.
"""

Overlap: TypeAlias = Literal["queue", "reject", "cancel_previous", "steer", "beside"]
"""What becomes of a request while its thread works on another: see `AgentDefinition.overlap`."""


def _positive(_: object, field: attrs.Attribute[Any], value: float | None) -> None:
    if value is not None and not value > 0:
        raise ValueError(f"a limit of {field.name} must be more than {value!r}; None is no limit")


class Unwritten(int):
    """A limit that holds by default. Nobody wrote it, so a request may go beyond it."""


_MOST_SECONDS = 1e11
"""Some three thousand years: from now, Python's times go further."""


def _countable(_: object, field: attrs.Attribute[Any], value: float | None) -> None:
    if value is not None and not abs(value) <= _MOST_SECONDS:
        raise ValueError(f"no clock counts {field.name} up to {value!r}; None is no limit")


def _depth(_: object, field: attrs.Attribute[Any], value: int | None) -> None:
    if value is not None and not value >= 0:
        raise ValueError(
            f"a limit of {field.name} must not be {value!r}: 0 is for no agents as tools, None is no limit"
        )


@attrs.frozen(kw_only=True, repr=False)
class Limits(Shown):
    """What a turn may take at most, with the turns of all agents that it uses as tools, and those of theirs.

    None is no limit. What is written for an agent a request can lower, and not lift; what nobody wrote, it can.
    """

    steps: int | None = attrs.field(default=Unwritten(100), validator=_positive)
    """Model calls and tool calls together, without retries."""
    tokens: int | None = attrs.field(default=None, validator=_positive)
    """The most tokens of all its model calls, as the provider counts them. They are looked at after each call."""
    seconds: float | None = attrs.field(default=None, validator=[_positive, _countable])
    """The most seconds from its start to its end, with the wait in line for its thread."""
    depth: int | None = attrs.field(default=Unwritten(8), validator=_depth)
    """How many agents it may use one below the other: an agent as a tool is one, a tool of that another. The model is
    told that a call which would go deeper was not made."""


@attrs.frozen(kw_only=True, repr=False)
class RunRequest(Shown):
    """One request to a thread."""

    correlation_id: str
    """The id of the turn, from the request to its answer; also the instance id of its orchestration."""
    messages: tuple[ChatMessage, ...]
    response_schema: Mapping[str, Json] | None = attrs.field(default=None, hash=False)
    """The JSON schema that the answer must fit."""
    options: Mapping[str, Json] = attrs.field(factory=dict[str, Json], hash=False)
    """Parameters for the model, by the provider's names; they win over the agent's own."""
    tool_choice: str | None = None
    """For the first model call: `auto`, `none`, `required`, or a tool's name."""
    enable_tool_calls: bool = True
    """True if the model is offered the agent's tools."""
    limits: Limits | None = None
    """They lower what is written for the agent, and replace what is not."""
    deadline: float | None = attrs.field(default=None, validator=_countable)
    """Seconds that the turn has from its start, whatever the limits say."""
    created_at: datetime | None = None
    orchestration_id: str | None = None
    """The orchestration that sends it, if one does."""
    stream: bool = False
    """Whether somebody reads the updates of the turn: the model is asked for its answer piece by piece, if it can."""


@attrs.frozen(kw_only=True, repr=False)
class AgentRunResponse(Shown, Generic[T_co]):
    """An agent's answer."""

    messages: tuple[ChatMessage, ...]
    """The messages that the turn recorded; the answer is the last of them."""
    usage: UsageStats = attrs.field(factory=UsageStats)
    """The tokens of all model calls of the turn."""
    correlation_id: str
    thread: AgentThread
    created_at: datetime
    """When the turn was committed, with its time zone."""
    finish_reason: str | None = None
    """Why the model's answer ended: `stop`; `length`, where it was cut off at a limit of tokens; or what else the
    provider said. None where nobody said so, as in turns of earlier versions."""
    value: T_co = attrs.field(default=cast("Any", None))
    """The answer as `response_format`, where one was asked for; else None."""

    @property
    def text(self) -> str:
        """The answer's text."""
        return self.messages[-1].text if self.messages else ""

    def __str__(self) -> str:
        return self.text
