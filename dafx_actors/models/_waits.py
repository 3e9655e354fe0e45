"""How long a server asks to wait: headers, a field of its error, or words, to seconds. Pure.

The headers are those of OpenAI and Azure (`retry-after-ms`, `x-ratelimit-reset-requests`), of HTTP (Retry-After, RFC
9110), of OpenRouter, Anthropic and the draft for `ratelimit-reset`; the field is Google's RetryInfo.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import cast

from dafx_actors.transcript import Json

__all__ = ["retry_after", "wait_in"]

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_AMOUNT = (
    r"(\d+(?:\.\d+)?)\s*(milliseconds?|msecs?|ms|seconds?|secs?|s|minutes?|mins?|m|hours?|hrs?|h|days?|d)?(?![a-z])"
)
_AMOUNTS = rf"{_AMOUNT}(?:[\s,]*(?:and\s+)?\d+(?:\.\d+)?\s*(?:ms|s|m|h)[a-z]*)*"
_COMPACT = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)[a-z]*", re.IGNORECASE)
_WORDS = re.compile(
    rf"(?:try(?:ing)?\s+(?:your\s+request\s+)?again|retry(?:ing)?|wait|available\s+again|resets?)"
    rf"(?:\s+(?:again|after|in|for|at\s+least|about|another|your\s+request))*\s+(?P<wait>{_AMOUNTS})",
    re.IGNORECASE,
)
_FIELDS = {"retry_after_ms": 0.001, "retry_after": 1.0, "retryAfter": 1.0, "retry_after_seconds": 1.0}
_FIELDS["estimated_time"] = 1.0  # Hugging Face, while it loads a model
_MOMENT = 1e9  # a larger number is a time since 1970
_MOMENT_MS = 1e11


def retry_after(headers: Mapping[str, str], now: datetime) -> float | None:
    """Seconds to wait, from `retry-after-ms` or Retry-After (seconds, an HTTP date or "1m30s"); None if unsaid."""
    for name in ("retry-after-ms", "x-ms-retry-after-ms"):
        if (milliseconds := _number(headers.get(name))) is not None:
            return milliseconds / 1000
    return _seconds(headers.get("retry-after"), now)


def wait_in(
    headers: Mapping[str, str], objects: Iterable[Mapping[str, Json]], said: str, now: datetime, *, limited: bool
) -> float | None:
    """Seconds to wait, from the most exact to the vaguest thing that is said; None if nothing is.

    Args:
        headers: The response's, with lower-case names, or a mapping that ignores case.
        objects: Those of the error, in which fields may say it.
        said: The error's words.
        now: The time that dates are compared with.
        limited: Whether a rate limit was reached. Only then do the headers count that say when one is reset: many
            servers send them always.
    """
    found = retry_after(headers, now)
    objects = tuple(objects)
    if found is None:
        found = next((seconds for each in objects if (seconds := _in_fields(each)) is not None), None)
    if found is None and (words := _WORDS.search(said)):
        found = _duration(words["wait"])
    if found is None and limited:
        found = _reset(headers, now)
    if found is None and limited:
        found = next((wait for each in objects if (wait := _reset(_quoted(each), now)) is not None), None)
    return found


def _in_fields(fields: Mapping[str, Json]) -> float | None:
    for detail in _list(fields.get("details")):
        if isinstance(detail, Mapping) and "retryDelay" in detail:
            return _delay(cast("Mapping[str, Json]", detail)["retryDelay"])
    for name, unit in _FIELDS.items():
        value = fields.get(name)
        if isinstance(value, str):
            return _duration(value)
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            return max(0.0, value * unit)
    return None


def _delay(delay: Json) -> float | None:
    """Google's duration: "37s", or seconds and nanoseconds."""
    if isinstance(delay, str):
        return _duration(delay)
    if isinstance(delay, Mapping):
        parts = cast("Mapping[str, Json]", delay)
        seconds, nanos = _number(str(parts.get("seconds", 0))), _number(str(parts.get("nanos", 0)))
        return None if seconds is None or nanos is None else seconds + nanos / 1e9
    return None


def _quoted(fields: Mapping[str, Json]) -> Mapping[str, str]:
    """Headers inside an error: OpenRouter's."""
    metadata = fields.get("metadata")
    headers = cast("Mapping[str, Json]", metadata).get("headers") if isinstance(metadata, Mapping) else None
    if not isinstance(headers, Mapping):
        return {}
    given = cast("Mapping[str, Json]", headers)
    return {name.lower(): str(value) for name, value in given.items()}


_RESET = re.compile(r"(?:x-|anthropic-)?ratelimit-(?:(?P<before>.+)-)?reset(?:-(?P<after>.+))?")


def _reset(headers: Mapping[str, str], now: datetime) -> float | None:
    """When the limit that was reached is reset, of those that the headers name."""
    waits: list[float] = []
    reached: list[float] = []
    for name, value in headers.items():
        found = _RESET.fullmatch(name.lower())
        seconds = _seconds(value, now) if found else None
        if found is None or seconds is None:
            continue
        waits.append(seconds)
        left = headers.get(name.lower().replace("reset", "remaining", 1))
        if left is not None and _number(left) == 0:
            reached.append(seconds)
    # Where nothing is said to be used up, the request asked for more than was left. The shortest wait costs least
    # if it is wrong: the server says so again.
    return max(reached) if reached else min(waits, default=None)


def _seconds(text: str | None, now: datetime) -> float | None:
    """A number of seconds, a moment since 1970, a duration or a date."""
    if text is None:
        return None
    number = _number(text)
    if number is not None:
        if number < _MOMENT:
            return number
        return max(0.0, (number / 1000 if number > _MOMENT_MS else number) - now.timestamp())
    if (duration := _duration(text)) is not None:
        return duration
    date = _date(text)
    return None if date is None else max(0.0, (date - now).total_seconds())


def _date(text: str) -> datetime | None:
    try:
        is_iso = re.match(r"\s*\d{4}-\d\d-\d\dT", text)
        date = datetime.fromisoformat(text.strip()) if is_iso else parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError):
        return None
    # RFC 5322's "-0000": UTC
    return date if date.tzinfo else date.replace(tzinfo=UTC)


def _duration(text: str) -> float | None:
    """Such as "20ms", "1m3.5s", "6 minutes", or "2", which are seconds."""
    if (number := _number(text)) is not None:
        return number
    if not re.fullmatch(rf"\s*{_AMOUNTS}\.?\s*", text, re.IGNORECASE):
        return None
    return sum(float(amount) * _unit(unit) for amount, unit in _pairs(text))


def _pairs(text: str) -> list[tuple[str, str]]:
    found = [(pair[1], pair[2]) for pair in _COMPACT.finditer(text)]
    return found or [(number, "s") for number in re.findall(r"\d+(?:\.\d+)?", text)[:1]]


def _unit(unit: str) -> float:
    unit = unit.lower()
    return _UNITS["ms"] if unit == "ms" else _UNITS[unit[0]]


def _number(text: str | None) -> float | None:
    try:
        number = float(text or "")
    except ValueError:
        return None
    return max(0.0, number) if math.isfinite(number) else None


def _list(value: Json) -> list[Json]:
    return cast("list[Json]", value) if isinstance(value, list) else []
