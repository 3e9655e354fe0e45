"""What answers mean that say that a call failed: kinds, words, categories, waits. Those over a socket are elsewhere."""

# ruff: noqa: E501 - what servers say stands as they say it

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from dafx_actors._json.crossing import dump_error, load_error
from dafx_actors.errors import ModelError, ModelFailure
from dafx_actors.models._failures import failure
from dafx_actors.models._waits import retry_after

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def failed(status: int | None, body: Any, **headers: str) -> ModelError:
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    return failure(status, body, message="The server said nothing.", headers=given, now=NOW)


def refused(message: str, **more: Any) -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": None, **more}}


TOO_LONG = {
    "OpenAI": refused("This model's maximum context length is 8192 tokens. However, your messages resulted in 9000."),
    "OpenAI, newer": refused("Your input exceeds the context window of this model. Please adjust your input."),
    "OpenAI's code": refused("No.", code="context_length_exceeded"),
    "Anthropic": refused("prompt is too long: 205000 tokens > 200000 maximum"),
    "Anthropic, with the answer": refused(
        "input length and `max_tokens` exceed context limit: 190000 + 20000 > 200000"
    ),
    "Gemini": [
        {
            "error": {
                "code": 400,
                "message": "The input token count (1200000) exceeds the maximum number of tokens allowed (1048576).",
                "status": "INVALID_ARGUMENT",
            }
        }
    ],
    "Mistral": {
        "object": "error",
        "message": "Prompt contains 40000 tokens and 0 draft tokens, too large for model with 32768 maximum context length",
        "type": "invalid_request_error",
        "code": "3051",
    },
    "Groq": refused("Please reduce the length of the messages or completion.", code="context_length_exceeded"),
    "Cerebras": refused(
        "Please reduce the length of the messages or completion. Current length is 9000 while limit is 8192"
    ),
    "DeepSeek": refused("This model's maximum context length is 65536 tokens. However, you requested 70000 tokens."),
    "xAI": {
        "code": "Client specified an invalid argument",
        "error": "This model's maximum prompt length is 131072 but the request contains 140000 tokens.",
    },
    "OpenRouter": {
        "error": {
            "message": "This endpoint's maximum context length is 128000 tokens. However, you requested about 140000 tokens.",
            "code": 400,
        }
    },
    "OpenRouter, quoting": {
        "error": {
            "message": "Provider returned error",
            "code": 400,
            "metadata": {
                "raw": '{"error":{"message":"prompt is too long: 2 tokens > 1 maximum"}}',
                "provider_name": "Anthropic",
            },
        }
    },
    "Ollama": refused("the input length exceeds the context length"),
    "Ollama, a text": {"error": "prompt too long; exceeded max context length by 4 tokens"},
    "vLLM": {
        "object": "error",
        "message": "The decoder prompt (length 163840) is longer than the maximum model length of 131072.",
        "code": 400,
    },
    "vLLM, too long to fit": refused(
        "The prompt (total length 25938) is too long to fit into the model (context length 4096)."
    ),
    "SGLang": {
        "object": "error",
        "message": "The input (5000 tokens) is longer than the model's context length (4096 tokens).",
    },
    "llama.cpp": refused("the request exceeds the available context size, try increasing it"),
    "llama.cpp's type": {"error": {"code": 400, "message": "no", "type": "exceed_context_size_error"}},
    "LM Studio": {
        "error": "Trying to keep the first 5000 tokens when context the overflows. However, the model is loaded with context length of only 4096 tokens"
    },
    "TGI": {
        "error": "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096. Given: 5000 `inputs` tokens and 100 `max_new_tokens`",
        "error_type": "validation",
    },
    "TGI, the prompt alone": {
        "error": "Input validation error: `inputs` must have less than 4095 tokens. Given: 5000",
        "error_type": "validation",
    },
    "Bedrock": {"message": "Input is too long for requested model."},
    "Cohere": {"message": "too many tokens: total number of tokens in the prompt cannot exceed 4081 - received 5000."},
    "Qwen": refused("Range of input length should be [1, 30720]", code="invalid_parameter_error"),
    "Kimi": refused("Invalid request: Your request exceeded model token limit: 131072"),
    "Poolside": refused("Input length 131393 exceeds the maximum allowed input length of 131040 tokens."),
    "GitHub": refused(
        "prompt token count of 70000 exceeds the limit of 64000", code="model_max_prompt_tokens_exceeded"
    ),
    "Perplexity": refused("The total length of all messages is too long."),
}


@pytest.mark.parametrize("body", TOO_LONG.values(), ids=TOO_LONG)
@pytest.mark.parametrize("status", [400, 422])
def test_conversation_that_is_too_long(body: Any, status: int) -> None:
    """Each server has its own words; it is not tried again."""
    error = failed(status, body)
    assert (error.kind, error.retryable) == ("context_length", False)


NOT_TOO_LONG = {
    "the words in a rate limit": (429, refused("Your requests exceed the context window."), "rate_limit"),
    "Bedrock slows down": (400, {"message": "Too many tokens, please wait before trying again.", "__type": "ThrottlingException"}, "bad_request"),
    "an answer that may not be so long": (400, refused("max_tokens is too large: 50000. This model supports at most 16384 completion tokens."), "bad_request"),
    "a name that is too long": (400, refused("Invalid 'messages[1].name': string too long. Expected a maximum length of 64."), "bad_request"),
    "a model without images": (400, refused("This model does not support images in its context window."), "bad_request"),
}  # fmt: skip


@pytest.mark.parametrize(("status", "body", "kind"), NOT_TOO_LONG.values(), ids=NOT_TOO_LONG)
def test_other_limits_that_speak_of_tokens(status: int, body: Any, kind: ModelFailure) -> None:
    """Shortening the conversation would not help there."""
    assert failed(status, body).kind == kind


def test_request_that_is_too_large_for_the_server() -> None:
    """413, whatever it calls it: a request that never fits is asked once."""
    groq = refused(
        "Request too large for model `m` on tokens per minute (TPM): Limit 6000, Requested 8000",
        code="rate_limit_exceeded",
    )
    for body in (groq, "<html><h1>413 Request Entity Too Large</h1></html>", ""):
        error = failed(413, body)
        assert (error.kind, error.retryable) == ("context_length", False)


def test_limit_that_the_request_alone_is_above() -> None:
    """OpenAI's 429 for a request that no waiting makes fit; one that only has to wait is tried again."""
    alone = failed(429, refused("Request too large for gpt-4o on tokens per min (TPM): Limit 30000, Requested 342389."))
    waits = failed(
        429, refused("Rate limit reached for gpt-4o on tokens per min (TPM): Limit 30000, Used 29000, Requested 3000.")
    )
    assert (alone.kind, alone.retryable) == ("rate_limit", False)
    assert (waits.kind, waits.retryable) == ("rate_limit", True)


WORDS = {
    "a list": ([{"error": {"message": "No such thing.", "code": 404}}], "No such thing."),
    "detail": ({"detail": "Not like this."}, "Not like this."),
    "detail with fields": ({"detail": [{"loc": ["body", "messages"], "msg": "field required", "type": "missing"}]}, "body.messages: field required"),
    "errors": ({"success": False, "errors": [{"code": 7003, "message": "Could not route."}], "messages": []}, "Could not route."),
    "errors that are texts": ({"errors": ["First.", "Second."]}, "First.; Second."),
    "errors by field": ({"errors": {"model": ["is required"]}}, "model: is required"),
    "title and detail": ({"title": "Too Many Requests", "detail": "Wait a bit.", "status": 429}, "Wait a bit."),
    "a text": ({"error": "no such model"}, "no such model"),
    "a text in JSON's place": ("upstream connect error", "upstream connect error"),
    "a quoted error": ({"message": '{"error": {"message": "Inner words."}}'}, "Inner words."),
    "another server's error": ({"error": {"message": "Provider returned error", "metadata": {"raw": "Inner words."}}}, "Provider returned error; Inner words."),
    "flat": ({"object": "error", "message": "Flat."}, "Flat."),
    "MiniMax": ({"base_resp": {"status_code": 1008, "status_msg": "insufficient balance"}}, "insufficient balance"),
    "a page": ("<!DOCTYPE html><html><head><title>502 Bad Gateway</title><style>h1 {}</style></head><body><center><h1>502 Bad Gateway</h1></center><hr>nginx</body></html>", "502 Bad Gateway"),
    "a page without a title": ("<html><body><p>Down &amp; out</p></body></html>", "Down & out"),
    "nothing": ("", "The server said nothing."),
    "null": (None, "The server said nothing."),
    "an error that is null": ({"error": None}, "The server said nothing."),
}  # fmt: skip


@pytest.mark.parametrize(("body", "words"), WORDS.values(), ids=WORDS)
def test_words(body: Any, words: str) -> None:
    """The server's own words are found wherever they stand, and can be recorded."""
    error = failed(500, body)
    assert error.message == words
    assert json.loads(json.dumps(error.data)) == error.data


KINDS: dict[str, tuple[int | None, Any, ModelFailure, bool]] = {
    "402 inside": (None, {"error": {"message": "Insufficient credits", "code": 402}}, "error", False),
    "a status as text": (None, {"error": {"message": "Slow down", "code": "429"}}, "rate_limit", True),
    "no key, in Google's words": (None, {"error": {"message": "No", "status": "UNAUTHENTICATED"}}, "authentication", False),
    "Google's limit": (429, [{"error": {"code": 429, "message": "Quota", "status": "RESOURCE_EXHAUSTED"}}], "rate_limit", True),
    "Google is busy": (503, {"error": {"code": 503, "message": "Overloaded", "status": "UNAVAILABLE"}}, "server_error", True),
    "Anthropic is busy": (529, {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}, "server_error", True),
    "a server error that blames the request": (400, refused("Oops", type="server_error"), "server_error", False),
    "a limit that forbids": (403, refused("Slow down", code="rate_limit_exceeded"), "rate_limit", False),
    "no money": (402, refused("Insufficient Balance"), "error", False),
    "no money, as a limit": (429, refused("You exceeded your current quota, please check your plan and billing details."), "error", False),
    "too early": (425, "", "server_error", True),
    "unknown": (None, {"error": {"message": "Oops"}}, "server_error", True),
}  # fmt: skip


@pytest.mark.parametrize(("status", "body", "kind", "retryable"), KINDS.values(), ids=KINDS)
def test_kinds(status: int | None, body: Any, kind: ModelFailure, retryable: bool) -> None:
    """By the names in it, its words and its status; what blames the request is not made again."""
    error = failed(status, body)
    assert (error.kind, error.retryable) == (kind, retryable)


def test_server_that_says_not_to_try_again() -> None:
    """`x-should-retry: false` counts for every kind."""
    assert not failed(500, refused("Oops"), x_should_retry="false").retryable
    assert failed(500, refused("Oops"), x_should_retry="true").retryable
    assert not failed(401, refused("Who?"), x_should_retry="true").retryable


FILTERED = {
    "Azure": (
        {
            "error": {
                "message": "The response was filtered due to the prompt triggering our content management policy.",
                "code": "content_filter",
                "innererror": {
                    "code": "ResponsibleAIPolicyViolation",
                    "content_filter_result": {
                        "hate": {"filtered": False, "severity": "safe"},
                        "jailbreak": {"filtered": False, "detected": False},
                        "violence": {"filtered": True, "severity": "medium"},
                    },
                },
            }
        },
        400,
        ["violence"],
    ),
    "OpenRouter": ({"error": {"code": 403, "message": "Input was flagged", "metadata": {"reasons": ["harassment"], "flagged_input": "..."}}}, 403, ["harassment"]),
    "OpenAI": (refused("Invalid prompt: your prompt was flagged as potentially violating our usage policy.", code="invalid_prompt"), 400, None),
    "DeepSeek": (refused("Content Exists Risk"), 400, None),
    "Qwen": (refused("Input data may contain inappropriate content.", code="data_inspection_failed"), 400, None),
}  # fmt: skip


@pytest.mark.parametrize(("body", "status", "categories"), FILTERED.values(), ids=FILTERED)
def test_content_filters(body: Any, status: int, categories: list[str] | None) -> None:
    """A refusal by a filter names what the filter found, in its data and in its words."""
    error = failed(status, body)
    assert (error.kind, error.retryable) == ("content_filter", False)
    assert error.data.get("categories") == categories
    assert all(category in str(error) for category in categories or ())


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "2"}, 2.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after": "-3"}, 0.0),
        ({"retry-after": "1m30s"}, 90.0),
        ({"retry-after": "Fri, 02 Jan 2026 03:05:05 GMT"}, 60.0),
        ({"retry-after": "Fri, 02 Jan 2026 03:05:05 -0000"}, 60.0),
        ({"retry-after": "Fri, 02 Jan 2026 03:00:00 GMT"}, 0.0),
        ({"retry-after": "2026-01-02T03:04:15Z"}, 10.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "2", "retry-after-ms": "1250"}, 1.25),
        ({"retry-after": "2", "retry-after-ms": "soon"}, 2.0),
    ],
)
def test_retry_after(headers: dict[str, str], seconds: float | None) -> None:
    """Seconds, a date, or milliseconds, which are more exact; nonsense is as if unsaid."""
    assert retry_after(headers, NOW) == seconds


WAITS: dict[str, tuple[Any, dict[str, str], float | None]] = {
    "words": (refused("Please try again in 1m3.5s."), {}, 63.5),
    "words in milliseconds": (refused("Rate limit reached. Please try again in 20ms. Visit https://x/y"), {}, 0.02),
    "words in seconds": (refused("Please retry after 26 seconds."), {}, 26.0),
    "words in minutes": (refused("Try again in 6 minutes and 5 seconds"), {}, 365.0),
    "words of hours": (refused("Please try again in 1h2m3.5s. Need more tokens?"), {}, 3723.5),
    "words without a wait": (refused("Please try again later, in one of 5 regions."), {}, None),
    "RetryInfo": ([{"error": {"code": 429, "message": "Quota", "details": [{"@type": "type.googleapis.com/google.rpc.Help"}, {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "37s"}]}}], {}, 37.0),
    "RetryInfo in parts": ({"error": {"details": [{"retryDelay": {"seconds": 3, "nanos": 500000000}}]}}, {}, 3.5),
    "a field": ({"error": {"message": "No", "retry_after": 4}}, {}, 4.0),
    "the header, before words": (refused("Try again in 9s."), {"retry-after": "3"}, 3.0),
    "requests are used up": ("", {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "1m30s", "x-ratelimit-remaining-tokens": "5", "x-ratelimit-reset-tokens": "7.66s"}, 90.0),
    "tokens are used up": ("", {"x-ratelimit-remaining-requests": "3", "x-ratelimit-reset-requests": "2h", "x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "20ms"}, 0.02),
    "both are used up": ("", {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "9s", "x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "2s"}, 9.0),
    "a reset alone": ("", {"x-ratelimit-reset-tokens": "6m0s"}, 360.0),
    "a moment in milliseconds": ("", {"x-ratelimit-reset": str(int(NOW.timestamp() * 1000) + 5000)}, 5.0),
    "a moment in seconds": ("", {"x-ratelimit-reset": str(int(NOW.timestamp()) + 8)}, 8.0),
    "Anthropic's date": ("", {"anthropic-ratelimit-requests-remaining": "0", "anthropic-ratelimit-requests-reset": "2026-01-02T03:04:11Z"}, 6.0),
    "OpenRouter's headers inside": ({"error": {"code": 429, "message": "No", "metadata": {"headers": {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": str(int(NOW.timestamp() * 1000) + 4000)}}}}, {}, 4.0),
}  # fmt: skip


@pytest.mark.parametrize(("body", "headers", "seconds"), WAITS.values(), ids=WAITS)
def test_waits(body: Any, headers: dict[str, str], seconds: float | None) -> None:
    """How long to wait is read wherever a server says it."""
    error = failure(429, body, message="", headers=headers, now=NOW)
    assert error.retry_after == (None if seconds is None else pytest.approx(seconds))


def test_resets_that_are_always_sent() -> None:
    """A server that broke has no limit to wait for, whatever its headers say of limits."""
    assert failed(500, refused("Oops"), x_ratelimit_reset_requests="2h").retry_after is None


def test_long_error_page_is_cut() -> None:
    """A proxy's page is no message to record whole."""
    assert len(failed(502, "<html>" + "x" * 60_000).message) == 2000
    assert failed(502, "<html>" * 10_000).message == "The server said nothing."


def test_status_that_nobody_knows() -> None:
    """New statuses go by their hundreds."""
    kinds = [failed(status, None).kind for status in (599, 418, 304)]
    assert kinds == ["server_error", "bad_request", "error"]


def test_address() -> None:
    """Where the call went is in the error's sentence."""
    error = failure(500, "", message="Oops", headers={}, now=NOW, address="http://localhost:1/v1/chat/completions")
    assert error.address == "http://localhost:1/v1/chat/completions"
    assert "http://localhost:1/v1/chat/completions" in str(error)


def test_failure_crosses_processes() -> None:
    """What is final stays so for whoever decides elsewhere whether to try again."""
    crossed = load_error(dump_error(failure(500, "", message="No", headers={"x-should-retry": "false"}, now=NOW)))
    assert isinstance(crossed, ModelError)
    assert not crossed.retryable
