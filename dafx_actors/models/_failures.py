"""What a failed model call means: an HTTP status, an error and headers to a `ModelError`. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import cast

from dafx_actors._secrets import without, without_in
from dafx_actors.errors import ModelError, ModelFailure
from dafx_actors.models import _said
from dafx_actors.models._said import Said
from dafx_actors.models._waits import wait_in
from dafx_actors.transcript import Json

__all__ = ["failure", "filtered_categories"]

_BY_NAME: dict[str, ModelFailure] = {
    "content_filter": "content_filter",
    "content_policy_violation": "content_filter",
    "responsibleaipolicyviolation": "content_filter",
    "data_inspection_failed": "content_filter",
    "datainspectionfailed": "content_filter",
    "moderation_blocked": "content_filter",
    "prohibited_content": "content_filter",
    "context_length_exceeded": "context_length",
    "context_window_exceeded": "context_length",
    "contextwindowexceedederror": "context_length",
    "exceed_context_size_error": "context_length",
    "model_context_window_exceeded": "context_length",
    "prompt_too_long": "context_length",
    "request_too_large": "context_length",
    "tokens_limit_reached": "context_length",
    # HTTP 429, but waiting does not help: somebody has to pay. So neither `rate_limit`, which would be tried
    # again, nor `authentication`, which would send people to look at their key.
    "insufficient_quota": "error",
    "insufficient_balance": "error",
    "billing_hard_limit_reached": "error",
    "billing_not_active": "error",
    "rate_limit_exceeded": "rate_limit",
    "rate_limit_error": "rate_limit",
    "resource_exhausted": "rate_limit",
    "throttlingexception": "rate_limit",
    "invalid_api_key": "authentication",
    "authentication_error": "authentication",
    "permission_error": "authentication",
    "permission_denied": "authentication",
    "unauthenticated": "authentication",
    "model_not_found": "not_found",
    "deploymentnotfound": "not_found",
    "not_found_error": "not_found",
    "invalid_argument": "bad_request",
    "failed_precondition": "bad_request",
    "overloaded_error": "server_error",
    "server_error": "server_error",
    "api_error": "server_error",
    "internal": "server_error",
    "unavailable": "server_error",
    "timeout_error": "timeout",
    "deadline_exceeded": "timeout",
}
"""By the `code`, the `type` or the `status` of the error in lower case, which say more than the HTTP status does."""

_VAGUE = frozenset({"invalid_argument", "failed_precondition", "api_error"})
"""Names that are given for many things: words, and then the HTTP status, say more."""

_BY_STATUS: dict[int, ModelFailure] = {
    400: "bad_request",
    401: "authentication",
    402: "error",
    403: "authentication",
    404: "not_found",
    408: "timeout",
    # OpenAI: "the request conflicts with another"; its own client tries it again.
    409: "server_error",
    413: "context_length",
    422: "bad_request",
    425: "server_error",
    429: "rate_limit",
    504: "timeout",
    524: "timeout",
}

_MAY_PASS = frozenset({408, 409, 425, 429})
"""Of the statuses that blame the request, those that say nothing against sending it again."""

_TOO_LONG = re.compile(
    r"""
    maximum\ context\ length | maximum\ model\ length | max_model_len
    | context[_ ]length[_ ]exceeded | context_window_exceeded
    | exceed\w*\b .{0,80}\b context[\ _](length|window|size|limit)
    | context[\ _](length|window|size|limit)\b .{0,60}\b (exceed|overflow|is\ only|too\ small)
    | context\ (the\ )?overflow
    | (longer|greater|larger|more)\ than\ the\ (model'?s\ )?(maximum\ )?context
    | (prompt|input|request|conversation|query)\ (is\ |was\ )?too\ long
    | (messages|inputs|tokens|contents)\ (is|are)\ too\ long
    | too\ long\ to\ fit
    | token\ (count|s)\b .{0,40}\b exceed | exceed\w*\ the\ maximum\ number\ of\ (input\ )?tokens
    | tokens?\ .{0,20}\bexceeds?\b | exceed\w*\ (the\ )?(model|max\w*)\ (input\ )?token\ limit
    | (exceed\w*\ (the\ )?|is\ over\ the\ )max\w*\ (allowed\ |input\ |prompt\ )*(token\ limit|length)
    | maximum\ (prompt|input|sequence)\ length\ (is|of)
    | reduce\ the\ length\ of\ (the|your)\ (messages|prompt|input|conversation)
    | (reduce|shorten)\ your\ (prompt|input|messages)
    | tokens\ in\ request\ more\ than\ max | too\ many\ (input\ |prompt\ |total\ )?(text\ )?(tokens|bytes)
    | (inputs?|prompt)`?\ (tokens\ )?(\+\ `?max_new_tokens`?\ )?must\ (be\ <=|have\ less\ than)
    | range\ of\ input\ length\ should\ be
    | prompt\ contains\ .{0,40}\ too\ large\ for\ model | request\ body\ too\ large\ for\ .{0,60}\bmodel
    | requested\ tokens\ .{0,40}exceed
    """,
    re.VERBOSE | re.IGNORECASE | re.DOTALL,
)
"""Servers without a code of their own for a conversation that is too long say it in words: vLLM, SGLang, Anthropic,
Gemini, xAI, Groq, Mistral, Cohere, Bedrock, Ollama, LM Studio, llama.cpp, TGI, Qwen, Kimi, GitHub and others."""

_NOT_TOO_LONG = re.compile(
    r"rate.?limit|throttl|quota|per (minute|min|day|hour|second)|please wait|max(imum)?_?(completion|output)?_tokens"
    r" is too large|output tokens? (limit|exceed)|at most \d+ (completion|output) tokens",
    re.IGNORECASE,
)
"""Words of other limits that speak of tokens, too."""

_FILTERED = re.compile(
    r"content management policy|content exists risk|usage polic|safety system|content (safety|policy|moderation)"
    r"|flagged (as|by|for)|requires moderation|inappropriate content|violat\w+ .{0,60}polic",
    re.IGNORECASE | re.DOTALL,
)

_UNPAID = re.compile(
    r"insufficient (credit|balance|quota|fund)|exceeded your current quota|out of credit|payment required"
    r"|credit balance is too low|billing (details|hard limit)",
    re.IGNORECASE,
)

_NEVER_FITS = re.compile(
    r"request too large for .{0,200}?limit:? (\d+),? .{0,80}?requested:? ~?(\d+)", re.IGNORECASE | re.DOTALL
)


def failure(
    status: int | None,
    body: Json,
    *,
    message: str,
    headers: Mapping[str, str],
    now: datetime,
    address: str | None = None,
) -> ModelError:
    """The typed error for an answer that says that the call failed.

    Args:
        status: The HTTP status; None where the error came inside a stream or another answer.
        body: The JSON of the answer, or its text where it is no JSON.
        message: What to say where the body says nothing.
        headers: The response's, with lower-case names, or a mapping that ignores case.
        now: The time that dates in headers are compared with.
        address: Where the call went.
    """
    said = _said.read(body)
    status = status or said.status
    words = said.message or message
    kind = _kind(status, said)
    data: dict[str, Json] = {name: said.fields[name] for name in ("code", "type", "param") if _is_plain(said, name)}
    for header in ("x-request-id", "request-id", "apim-request-id", "x-ms-request-id"):
        if request_id := headers.get(header):
            data.setdefault("request_id", request_id)
    if kind == "content_filter" and (categories := list(_categories(said))):
        data["categories"] = categories
        if not all(category.lower() in words.lower() for category in categories):
            words = f"{words} (filtered: {', '.join(categories)})"
    if address:
        data["address"] = address
    if _is_final(status, said, headers):
        data["final"] = True
    waits = kind in {"rate_limit", "server_error", "timeout"}
    return ModelError(
        kind=kind,
        message=without(words),
        status=status,
        retry_after=wait_in(headers, said.objects, said.message, now, limited=kind == "rate_limit") if waits else None,
        data=without_in(data),
    )


def _is_plain(said: Said, name: str) -> bool:
    return isinstance(said.fields.get(name), str | int | float)


def _is_final(status: int | None, said: Said, headers: Mapping[str, str]) -> bool:
    """Whether the same request would fail in the same way again, whatever kind the failure is of."""
    if headers.get("x-should-retry", "").strip().lower() == "false":
        return True
    if (found := _NEVER_FITS.search(said.message)) and int(found[2]) > int(found[1]):
        return True
    return status is not None and 400 <= status < 500 and status not in _MAY_PASS


def _kind(status: int | None, said: Said) -> ModelFailure:
    names = [name.lower() for name in said.names]
    words = said.message
    if status == 413:  # whatever it says: Groq calls a request that can never pass a rate limit
        return "context_length"
    named: ModelFailure | None = next(
        (_BY_NAME[name] for name in names if name in _BY_NAME and name not in _VAGUE), None
    )
    if named in ("content_filter", "context_length"):
        return named
    is_limited = status in {401, 403, 404, 429} or named in {"rate_limit", "error"} or _NOT_TOO_LONG.search(words)
    if not is_limited and _TOO_LONG.search(words):
        return "context_length"
    if status in {None, 400, 403, 422} and (_FILTERED.search(words) or any(_categories(said))):
        return "content_filter"
    if status in {None, 400, 402, 403, 429} and _UNPAID.search(words):
        return "error"
    if named is not None:
        return named
    vague: ModelFailure | None = next((_BY_NAME[name] for name in names if name in _VAGUE), None)
    return _by_status(status) if status is not None else vague or "server_error"


def _by_status(status: int) -> ModelFailure:
    if status in _BY_STATUS:
        return _BY_STATUS[status]
    if status >= 500:
        return "server_error"
    return "bad_request" if status >= 400 else "error"


def _categories(said: Said) -> Iterator[str]:
    """What a content filter found: Azure's results, OpenRouter's reasons."""
    for each in said.objects:
        for name in ("content_filter_result", "content_filter_results"):
            yield from filtered_categories(each.get(name))
        metadata = each.get("metadata")
        reasons = cast("Mapping[str, Json]", metadata).get("reasons") if isinstance(metadata, Mapping) else None
        if isinstance(reasons, list):
            yield from (str(reason) for reason in cast("list[Json]", reasons))


def filtered_categories(results: Json) -> Iterator[str]:
    """The categories, such as `violence`, for which Azure's `content_filter_results` say that they were filtered."""
    if isinstance(results, Mapping):
        for category, result in cast("Mapping[str, Json]", results).items():
            if isinstance(result, Mapping) and cast("Mapping[str, Json]", result).get("filtered") is True:
                yield category
