"""What users write: `@tool`, and what it may be told."""

from __future__ import annotations

import functools
import logging
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any, Literal, TypeAlias, TypeVar, overload

import attrs
from durabletask.task import RetryPolicy

from dafx_actors._json.values import dump_value
from dafx_actors.errors import ConfigurationError
from dafx_actors.ids import AgentThread
from dafx_actors.transcript import Json, Transcript

F = TypeVar("F", bound=Callable[..., Any])

Told: TypeAlias = Literal["text", "type"]
"""What the model and the client are told of what a tool raises: its type and its text, or its type alone."""

Effect: TypeAlias = Literal["repeatable", "once", "none"]
"""`repeatable`: a crash may repeat the call in flight, with the same idempotency key. `once`: it is never run again
while it is not known what became of it. `none`: it changes nothing, and may be called also while a person decides about
another call; see `AgentDefinition.overlap`."""

MAX_RESULT_BYTES = 2**20

DECLARATION = "__dafx_tool__"
"""Where the decorator leaves what it was told."""


def _seconds(duration: timedelta | float | None) -> float | None:
    return duration.total_seconds() if isinstance(duration, timedelta) else duration


@attrs.frozen(kw_only=True)
class ToolContext:
    """The call that a tool serves. A parameter with this annotation is injected, and is not in the tool's schema."""

    thread: AgentThread
    """The conversation."""
    correlation_id: str
    """The id of the turn."""
    call_id: str
    """The model's id of the call."""
    idempotency_key: str
    """The same whenever this call is repeated, after a crash or as a retry. Give it to services that know repeats by
    such a key."""
    attempt: int
    """1 for the first."""
    logger: logging.Logger | logging.LoggerAdapter[Any]
    """A logger whose records carry the ids of agent, thread, turn and call."""
    _transcript: Callable[[], Transcript] = attrs.field(repr=False, eq=False, alias="transcript")
    _report: Callable[[Json], None] = attrs.field(repr=False, eq=False, alias="report")

    @functools.cached_property
    def transcript(self) -> Transcript:
        """The transcript of the thread, up to the message that made this call.

        It is decoded when it is first asked for.
        """
        return self._transcript()

    def report_progress(self, value: Json) -> None:
        """Tell those who watch the turn how far the call has come.

        Raises:
            ValueMismatch: JSON cannot hold the value, or it is larger than a result may be.
        """
        self._report(dump_value(value))


@attrs.frozen(kw_only=True)
class Approval:
    """A rule that says which calls of a tool wait for a person's decision, and for how long."""

    when: Callable[..., bool | Awaitable[bool]] | str | None = None
    """A predicate over the call's arguments, by keyword, as the tool gets them; it asks for those that it needs. May be
    a method of the agent, given as a function or by its name. None: every call waits."""
    timeout: float | None = attrs.field(default=None, converter=_seconds)
    """Seconds (or a timedelta) until the decision is made by `on_timeout`; None: it waits for ever."""
    on_timeout: Literal["deny", "fail"] = "deny"
    """`deny`: the model is told that nobody approved. `fail`: the turn fails."""


@attrs.frozen(kw_only=True)
class Declaration:
    """The arguments of `@tool`, as they were given."""

    name: str | None = None
    description: str | None = None
    approval: object = False
    effect: Effect = "repeatable"
    parallel: bool = True
    timeout: float | None = attrs.field(default=None, converter=_seconds)
    retry: RetryPolicy | None = None
    reconcile: Callable[..., Any] | str | None = None
    max_result_bytes: int | None = None
    errors: Told = "text"


@overload
def tool(function: F, /) -> F: ...


@overload
def tool(
    *,
    name: str | None = None,
    description: str | None = None,
    approval: bool | Callable[..., bool | Awaitable[bool]] | Approval = False,
    effect: Effect = "repeatable",
    parallel: bool = True,
    timeout: timedelta | float | None = None,
    retry: RetryPolicy | None = None,
    reconcile: Callable[..., Any] | str | None = None,
    max_result_bytes: int | None = None,
    errors: Told = "text",
) -> Callable[[F], F]: ...


def tool(
    function: F | None = None,
    /,
    *,
    name: str | None = None,
    description: str | None = None,
    approval: bool | Callable[..., bool | Awaitable[bool]] | Approval = False,
    effect: Effect = "repeatable",
    parallel: bool = True,
    timeout: timedelta | float | None = None,
    retry: RetryPolicy | None = None,
    reconcile: Callable[..., Any] | str | None = None,
    max_result_bytes: int | None = None,
    errors: Told = "text",
) -> F | Callable[[F], F]:
    """Declare a tool: a method of an agent's class, or a function that the agent lists in `tools`.

    Its name, description and JSON schema come from its signature, annotations and docstring. Parameters without an
    annotation take any JSON; one annotated `ToolContext` is injected. The function stays what it was.

    Args:
        function: The function, where the decorator stands bare.
        name: At most 64 letters, digits, `_` and `-`; the function's by default.
        description: What it does, for the model; the docstring without its sections on parameters by default.
        approval: Whether calls wait for a person: all of them (True), those for whose arguments the predicate is
            true, or as an `Approval` says.
        effect: See `Effect`.
        parallel: Whether it may run beside other calls of the same answer.
        timeout: Seconds, or a timedelta, that one attempt may take. A function that blocks a thread cannot be stopped:
            its call fails in time, and what it does then goes on behind the agent's back.
        retry: How a failed attempt is repeated, by durable timers.
        reconcile: For `effect="once"`: a function or the name of a method that finds out what became of a call whose
            outcome a crash left unknown. It gets the same arguments and context as far as it asks for them, and returns
            the result or raises `NotDone`, after which the call is made again. A worker that lost its connection may
            still be making the call: give the tool a `timeout`, and nobody asks before that is over; a function that
            blocks may act even later, so let `reconcile` make sure that it cannot, by the idempotency key.
        max_result_bytes: What a result may take as JSON, in UTF-8; what the agent says by default, which is 1 MiB. Of a
            larger one the model is told that the call was made, and that its result was too large to be kept.
        errors: What the model, the thread and the client are told of what the tool raises: `text`, its type and what it
            says; `type`, its type alone, where texts may hold what is nobody's business. The log has it all.
    """

    def decorate(decorated: F) -> F:
        declaration = Declaration(
            name=name,
            description=description,
            approval=approval,
            effect=effect,
            parallel=parallel,
            timeout=timeout,
            retry=retry,
            reconcile=reconcile,
            max_result_bytes=max_result_bytes,
            errors=errors,
        )
        if not callable(decorated) and not isinstance(decorated, classmethod):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigurationError(f"`@tool` decorates a function, not {decorated!r}; a name is given as `name=...`")
        setattr(decorated, DECLARATION, declaration)
        return decorated

    return decorate if function is None else decorate(function)
