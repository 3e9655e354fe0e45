"""Typed errors between processes: as JSON, and as the text that an orchestration ends with."""

from __future__ import annotations

import json
from typing import TypeGuard

import attrs
from durabletask import task

from dafx_actors._json.shapes import as_object, load_json
from dafx_actors._secrets import without, without_in
from dafx_actors.errors import (
    ConfigurationError,
    DafxError,
    InvalidThreadId,
    McpUnreachable,
    MessageTooLarge,
    ModelNotConfigured,
    OrchestrationChanged,
    ResultNotKept,
    ThreadNotEmpty,
    TurnError,
    TurnFailed,
    UnsupportedTranscript,
)
from dafx_actors.ids import AgentThread
from dafx_actors.transcript import ErrorContent, Json


def _turn_errors(root: type[TurnError] = TurnError) -> dict[str, type[TurnError]]:
    found: dict[str, type[TurnError]] = {}
    for cls in root.__subclasses__():
        found |= {cls.__name__: cls, **_turn_errors(cls)}
    return found


_CROSSING: dict[str, type[DafxError]] = {
    **_turn_errors(),
    **{
        cls.__name__: cls
        for cls in (
            UnsupportedTranscript,
            InvalidThreadId,
            ConfigurationError,
            ModelNotConfigured,
            MessageTooLarge,
            ResultNotKept,
            McpUnreachable,
            OrchestrationChanged,
            ThreadNotEmpty,
        )
    },
}


def dump_error(error: DafxError) -> dict[str, Json]:
    """A typed error as JSON, with its sentence for whoever reads it without us.

    Raises:
        KeyError: It is not one of those that cross processes.
    """
    _CROSSING[type(error).__name__]
    fields = without_in(attrs.asdict(error))  # type: ignore[arg-type]
    return {"message": without(str(error)), "type": type(error).__name__, "fields": fields}


def load_error(raw: Json) -> DafxError | None:
    """Rebuild a typed error from JSON or its text, or give None where it is something else.

    Fields that this version does not know are left out, so that an older client understands a newer worker.
    """
    try:
        document = as_object(load_json(raw) if isinstance(raw, str) else raw)
        cls = _CROSSING[document["type"]]
        known = {field.name for field in attrs.fields(cls)}  # type: ignore[arg-type]
        made = cls(**{name: value for name, value in as_object(document["fields"]).items() if name in known})
        str(made)  # fields of other types than it says would only show when somebody reads it
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
        return None
    return made


def crosses(error: BaseException) -> TypeGuard[DafxError]:
    """Whether `error` can be sent to another process and rebuilt there."""
    return type(error) in _CROSSING.values()


def error_content(error: DafxError) -> ErrorContent:
    """An error as a transcript keeps it."""
    document = dump_error(error)
    return ErrorContent(document["message"], document["type"], document["fields"])


def error_of(content: ErrorContent, thread: AgentThread, correlation_id: str) -> DafxError:
    """The error that a transcript kept; one stored by somebody else becomes a `TurnFailed`."""
    kept = load_error({"type": content.error_code, "fields": content.details})
    return kept or TurnFailed(
        thread.agent, correlation_id, content.error_code or "an error", content.message or str(content.details)
    )


def error_in(raw: Json, thread: AgentThread, turn: str | None) -> DafxError:
    """The error that a step or an operation gave as a value; one that this version does not know is a `TurnFailed`."""
    return load_error(raw) or TurnFailed(thread.agent, turn or "?", "an unknown error", str(raw))


class CrossingError(Exception):
    """Carries a typed error out of an orchestration: its text is the error as JSON (durabletask keeps a text only)."""

    __module__ = "dafx_actors._agent_tasks"
    """Histories name it so, and clients are told so."""

    def __init__(self, error: DafxError, spent: Json = None) -> None:
        """Say it.

        Args:
            error: The error.
            spent: What the turn took that ended with it, for the turn above it; see `steps.Spent`.
        """
        super().__init__(json.dumps({**dump_error(error), **({"spent": spent} if spent else {})}))


def crossed(error: Exception) -> Exception:
    """The typed error that another orchestration ended with, or what durabletask made of it."""
    if not isinstance(error, task.TaskFailedError):
        return error
    inner = error.details.inner_failure  # where an operation of an entity failed, the error is in there
    said = [error.details.message, *([inner.message] if inner else [])]
    return next(filter(None, map(load_error, said)), error)
