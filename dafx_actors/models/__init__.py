"""One call to a language model; it knows no thread, no turn and no retry.

Language models: the protocol, and where its implementations are.

A model is anything with an async `complete()` and `aclose()`. The package brings three: `models.openai` (OpenAI, Azure
OpenAI and every server that speaks the same protocol), `models.local` (a small one on this machine's CPU) and
`testing.ScriptedModel`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Protocol, TypeAlias, runtime_checkable

import attrs

from dafx_actors.exchange import Ending
from dafx_actors.transcript import ChatMessage, Json, UsageStats

__all__ = [
    "UNPARSED_ARGUMENTS",
    "Ending",
    "FinishReason",
    "Model",
    "ModelDelta",
    "ModelReply",
    "ModelRequest",
    "StreamingModel",
    "ToolDefinition",
    "ending_of",
]

FinishReason: TypeAlias = str
"""Why a reply ended: `stop`, `length`, `tool_calls`, `content_filter`, or the provider's own word as it came."""

_ENDINGS: Mapping[str, Ending] = {
    **dict.fromkeys(
        (
            *("length", "max_tokens", "max_output_tokens", "max_completion_tokens", "max_length", "model_length"),
            *("model_context_window_exceeded", "context_length", "token_limit", "error_limit"),
        ),
        "cut",
    ),
    **dict.fromkeys(
        (
            *("content_filter", "content_filtered", "safety", "image_safety", "recitation", "blocklist", "spii"),
            *("prohibited_content", "refusal", "guardrail_intervened", "error_toxic", "sensitive"),
        ),
        "withheld",
    ),
    **dict.fromkeys(
        (
            *("error", "internal_error", "server_error", "network_error", "model_error", "overloaded", "timeout"),
            *("abort", "aborted", "cancel", "cancelled", "canceled", "user_cancel", "interrupted", "incomplete"),
            *("insufficient_system_resource", "malformed_function_call", "malformed_tool_use", "failed"),
        ),
        "broken",
    ),
}
"""The words of the providers whose protocols are in use, in lower case. What is not here is taken for whole."""


def ending_of(reason: FinishReason) -> Ending:
    """The meaning of a finish reason for the reply. A word that nobody knows says nothing against it."""
    return _ENDINGS.get(reason.strip().lower(), "whole")


UNPARSED_ARGUMENTS = "unparsedArguments"
"""In the `extra` of a `FunctionCallContent`: what the model wrote, where it is not a JSON object.

Such a call has no `arguments` and must not be made. Its result says what is wrong, so that the model can correct it.
"""


@attrs.frozen(kw_only=True)
class ToolDefinition:
    """A tool as the model sees it."""

    name: str
    description: str
    parameters: Mapping[str, Json] = attrs.field(hash=False)
    """A JSON schema of the arguments, of type `object`."""
    strict: bool = False
    """True if the provider should hold the model to the schema."""


@attrs.frozen(kw_only=True)
class ModelRequest:
    """One model call."""

    messages: tuple[ChatMessage, ...]
    """The instructions as a `system` message first, then the conversation, oldest first."""
    tools: tuple[ToolDefinition, ...] = ()
    tool_choice: str | None = None
    """`auto`, `none`, `required`, or a tool's name; None leaves it to the provider."""
    response_schema: Mapping[str, Json] | None = attrs.field(default=None, hash=False)
    """A JSON schema that the answer must fit."""
    options: Mapping[str, Json] = attrs.field(factory=dict[str, Json], hash=False)
    """The provider's own parameters by its own names, such as `temperature` or `max_tokens`."""


@attrs.frozen(kw_only=True)
class ModelReply:
    """The reply of a model."""

    message: ChatMessage
    """From the assistant: text, or tool calls, or both."""
    usage: UsageStats | None = None
    finish_reason: FinishReason = "stop"

    @property
    def text(self) -> str:
        """The text of the reply, without its reasoning."""
        return self.message.text


@attrs.frozen(kw_only=True)
class ModelDelta:
    """A piece of an answer while it is being made."""

    text: str


@runtime_checkable
class Model(Protocol):
    """A language model, as an agent needs it."""

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
