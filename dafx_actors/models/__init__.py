"""Language models: the protocol, and where its implementations are.

A model is anything with an async `complete()` and `aclose()`. The package brings three: `models.openai` (OpenAI, Azure
OpenAI and every server that speaks the same protocol), `models.local` (a small one on this machine's CPU) and
`testing.ScriptedModel`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Literal, Protocol, TypeAlias, runtime_checkable

import attrs

from dafx_actors.transcript import ChatMessage, Json, UsageStats

__all__ = [
    "UNPARSED_ARGUMENTS",
    "FinishReason",
    "Model",
    "ModelDelta",
    "ModelReply",
    "ModelRequest",
    "StreamingModel",
    "ToolDefinition",
]

FinishReason: TypeAlias = Literal["stop", "length", "tool_calls", "content_filter"]

UNPARSED_ARGUMENTS = "unparsedArguments"
"""In the `extra` of a `FunctionCallContent`: what the model wrote, where it is not a JSON object.

Such a call has no `arguments` and must not be made. Its result says what is wrong, so that the model can correct it.
"""


@attrs.frozen(kw_only=True)
class ToolDefinition:
    """A tool as the model sees it."""

    name: str
    description: str
    parameters: Mapping[str, Json]
    """A JSON schema of the arguments, of type `object`."""
    strict: bool = False
    """Whether the provider should hold the model to the schema."""


@attrs.frozen(kw_only=True)
class ModelRequest:
    """One model call."""

    messages: tuple[ChatMessage, ...]
    """The instructions as a `system` message first, then the conversation, oldest first."""
    tools: tuple[ToolDefinition, ...] = ()
    tool_choice: str | None = None
    """`auto`, `none`, `required`, or a tool's name; None leaves it to the provider."""
    response_schema: Mapping[str, Json] | None = None
    """A JSON schema that the answer must fit."""
    options: Mapping[str, Json] = attrs.field(factory=dict[str, Json])
    """The provider's own parameters by its own names, such as `temperature` or `max_tokens`."""


@attrs.frozen(kw_only=True)
class ModelReply:
    """What a model call gave."""

    message: ChatMessage
    """From the assistant: text, or tool calls, or both."""
    usage: UsageStats | None = None
    finish_reason: FinishReason = "stop"


@attrs.frozen(kw_only=True)
class ModelDelta:
    """A piece of an answer while it is being made."""

    text: str


@runtime_checkable
class Model(Protocol):
    """What an agent needs of a model."""

    async def complete(self, request: ModelRequest) -> ModelReply:
        """Make one call. It is not repeated here: retrying is the turn's business, which can wait durably.

        Raises:
            ModelError: The call failed; its `kind` says whether trying again may help.
        """
        ...

    async def aclose(self) -> None:
        """Give back connections and processes. The model is not used after that."""
        ...


@runtime_checkable
class StreamingModel(Model, Protocol):
    """A model that can also give its answer piece by piece."""

    def stream(self, request: ModelRequest) -> AsyncIterator[ModelDelta | ModelReply]:
        """Make one call; gives pieces as they come, and last the whole reply.

        Raises:
            ModelError: The call failed, at its start or half way.
        """
        ...
