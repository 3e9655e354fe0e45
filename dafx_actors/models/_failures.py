"""What a failed model call means: an HTTP status, an error object and headers to a `ModelError`. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import cast

from dafx_actors.errors import ModelError, ModelFailure
from dafx_actors.transcript import Json

__all__ = ["failure", "retry_after"]

_BY_CODE: dict[str, ModelFailure] = {
    "content_filter": "content_filter",
    "content_policy_violation": "content_filter",
    "ResponsibleAIPolicyViolation": "content_filter",
    "context_length_exceeded": "context_length",
    "exceed_context_size_error": "context_length",
    # HTTP 429, but waiting does not help: somebody has to pay. So neither `rate_limit`, which would be tried
    # again, nor `authentication`, which would send people to look at their key.
    "insufficient_quota": "error",
    "billing_hard_limit_reached": "error",
    "billing_not_active": "error",
    "rate_limit_exceeded": "rate_limit",
    "rate_limit_error": "rate_limit",
    "invalid_api_key": "authentication",
    "authentication_error": "authentication",
    "model_not_found": "not_found",
    "DeploymentNotFound": "not_found",
    "server_error": "server_error",
}
"""By the `code` or the `type` of the error object, which say more than the status does."""

_BY_STATUS: dict[int, ModelFailure] = {
    400: "bad_request",
    401: "authentication",
    402: "error",
    403: "authentication",
    404: "not_found",
    408: "timeout",
    # OpenAI: "the request conflicts with another"; its own client tries it again.
    409: "server_error",
    413: "bad_request",
    422: "bad_request",
    429: "rate_limit",
    504: "timeout",
}

_LONGEST_MESSAGE = 2000  # a proxy's error page would otherwise be recorded whole

# vLLM and others answer 400 with no code of its own for this, only with words.
_TOO_LONG = ("maximum context length", "context size", "context window")


def failure(status: int | None, error: Json, *, message: str, headers: Mapping[str, str], now: datetime) -> ModelError:
    """The typed error for a response that says that the call failed.

    Args:
        status: The HTTP status; None where the error came inside a stream.
        error: The error object of the response's JSON, or whatever stood in its place.
        message: What to say where the error object says nothing.
        headers: The response's, with lower-case names, or a mapping that ignores case.
        now: The time that an HTTP date in Retry-After is compared with.
    """
    fields = _fields(error)
    said = next((words for words in (fields.get("message"), error) if isinstance(words, str) and words), message)
    said = said[:_LONGEST_MESSAGE]
    data: dict[str, Json] = {name: fields[name] for name in ("code", "type", "param") if fields.get(name) is not None}
    if request_id := headers.get("x-request-id"):
        data["request_id"] = request_id
    return ModelError(
        kind=_kind(status, fields, said),
        message=said,
        status=status,
        retry_after=retry_after(headers, now),
        data=data,
    )


def _fields(error: Json) -> Mapping[str, Json]:
    return cast("Mapping[str, Json]", error) if isinstance(error, Mapping) else {}


def _kind(status: int | None, fields: Mapping[str, Json], said: str) -> ModelFailure:
    # Azure says "content_filter" outside, or only "ResponsibleAIPolicyViolation" inside.
    names = (fields.get("code"), _fields(fields.get("innererror")).get("code"), fields.get("type"))
    named = [name for name in names if isinstance(name, str)]
    found: ModelFailure | None = next((_BY_CODE[name] for name in named if name in _BY_CODE), None)
    # An error inside a stream may carry the status that it comes too late to have.
    code = fields.get("code")
    status = status or (code if isinstance(code, int) else None)
    if found is None and status == 400 and any(words in said for words in _TOO_LONG):
        return "context_length"
    return found or _by_status(status)


def _by_status(status: int | None) -> ModelFailure:
    if status is None:
        return "server_error"
    if status in _BY_STATUS:
        return _BY_STATUS[status]
    if status >= 500:
        return "server_error"
    return "bad_request" if status >= 400 else "error"


def retry_after(headers: Mapping[str, str], now: datetime) -> float | None:
    """Seconds to wait, from `retry-after-ms` or Retry-After (seconds or an HTTP date, RFC 9110); None if unsaid."""
    milliseconds = _number(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return milliseconds / 1000
    header = headers.get("retry-after")
    seconds = _number(header)
    if seconds is not None or header is None:
        return seconds
    try:
        date = parsedate_to_datetime(header)
    except ValueError:
        return None
    if date.tzinfo is None:  # RFC 5322's "-0000": UTC
        date = date.replace(tzinfo=timezone.utc)
    return max(0.0, (date - now).total_seconds())


def _number(text: str | None) -> float | None:
    try:
        number = float(text or "")
    except ValueError:
        return None
    return max(0.0, number) if math.isfinite(number) else None
