"""Every way in which a call fails is a `ModelError` that says what to do next; a server that really fails shows it."""

from __future__ import annotations

import asyncio
import json
import socket
from contextlib import aclosing
from typing import Any

import anyio
import pytest

from dafx_actors.errors import ConfigurationError, ModelError, ModelFailure
from dafx_actors.models import ModelDelta, ModelReply
from dafx_actors.models.openai import AzureOpenAIChatModel, OpenAIChatModel
from tests.models.conftest import HELLO, chunk, completion, error, event, http, misbehaving, stream_head

pytestmark = pytest.mark.anyio

TOO_LONG = "This model's maximum context length is 8192 tokens."

RESPONSES: list[tuple[str, bytes, ModelFailure, bool]] = [
    ("rate limit", http("429 Too Many Requests", error("rate_limit_exceeded", "Slow down")), "rate_limit", True),
    (
        "no money",
        http("429 Too Many Requests", error("insufficient_quota", "Pay", "insufficient_quota")),
        "error",
        False,
    ),
    ("server error", http("500 Internal Server Error", error(None, "Oops", "server_error")), "server_error", True),
    ("overloaded", http("503 Service Unavailable", "<html>busy</html>"), "server_error", True),
    ("gateway timeout", http("504 Gateway Timeout", ""), "timeout", True),
    ("bad request", http("400 Bad Request", error("invalid_type", "No")), "bad_request", False),
    ("content filter", http("400 Bad Request", error("content_filter", "No")), "content_filter", False),
    (
        "Azure's content filter",
        http("400 Bad Request", error(None, "No", innererror={"code": "ResponsibleAIPolicyViolation"})),
        "content_filter",
        False,
    ),
    ("too long", http("400 Bad Request", error("context_length_exceeded", TOO_LONG)), "context_length", False),
    ("too long, without a code", http("400 Bad Request", error(None, TOO_LONG)), "context_length", False),
    ("no key", http("401 Unauthorized", error("invalid_api_key", "Who?")), "authentication", False),
    ("not allowed", http("403 Forbidden", error(None, "Not you")), "authentication", False),
    ("no such model", http("404 Not Found", error("model_not_found", "Which?")), "not_found", False),
    ("an error that is a text", http("404 Not Found", '{"error": "no such model"}'), "not_found", False),
    ("not JSON", http("200 OK", "<html>Welcome to the hotel's network</html>"), "bad_response", True),
    ("JSON, but no object", http("200 OK", "[1, 2]"), "bad_response", True),
    ("no choices", http("200 OK", '{"choices": []}'), "bad_response", True),
    ("no message", http("200 OK", '{"choices": [{"finish_reason": "stop"}]}'), "bad_response", True),
    ("choices that are none", http("200 OK", '{"choices": "yes"}'), "bad_response", True),
    ("closed without an answer", b"", "connection", True),
    ("not HTTP", b"220 smtp.example.com ready\r\n", "connection", True),
    ("cut body", http("200 OK", completion(), content_length="9999"), "connection", True),
]


@pytest.mark.parametrize(("response", "kind", "retryable"), [r[1:] for r in RESPONSES], ids=[r[0] for r in RESPONSES])
async def test_failed_call(response: bytes, kind: ModelFailure, retryable: bool) -> None:
    """Its kind is right, it was made once, and it can be recorded."""
    async with misbehaving(response) as server:
        model = server.model()
        with pytest.raises(ModelError) as raised:
            await model.complete(HELLO)
        await model.aclose()
    assert (raised.value.kind, raised.value.retryable) == (kind, retryable)
    assert len(server.received) == 1
    assert json.loads(json.dumps(raised.value.data)) == raised.value.data


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [({"retry_after": "7"}, 7.0), ({"retry_after_ms": "1500", "retry_after": "2"}, 1.5), ({}, None)],
)
async def test_retry_after(headers: dict[str, str], seconds: float | None) -> None:
    """What the server asks to wait is in the error, with the status and the server's own words."""
    async with misbehaving(
        http("429 Too Many Requests", error("rate_limit_exceeded", "Slow down"), **headers)
    ) as server:
        model = server.model()
        with pytest.raises(ModelError, match="Slow down") as raised:
            await model.complete(HELLO)
        await model.aclose()
    assert raised.value.retry_after == seconds
    assert raised.value.status == 429
    assert raised.value.data["code"] == "rate_limit_exceeded"
    assert type(raised.value.__cause__).__name__ == "RateLimitError"


async def test_slow_server() -> None:
    """A server that says nothing for `timeout` seconds is a timeout, and its connection is closed."""
    async with misbehaving(b"", then_wait=True) as server:
        model = server.model(timeout=0.2)
        with pytest.raises(ModelError) as raised:
            await model.complete(HELLO)
        await asyncio.wait_for(server.hung_up.wait(), 30)
        await model.aclose()
    assert (raised.value.kind, raised.value.retryable) == ("timeout", True)


async def test_nobody_listens() -> None:
    """A refused connection."""
    with socket.socket() as bound:  # bound but not listening: nobody else gets the port, and nobody answers
        bound.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{bound.getsockname()[1]}/v1"
        model = OpenAIChatModel("m", base_url=url, api_key="key", trust_env=False)
        with pytest.raises(ModelError) as raised:
            await model.complete(HELLO)
        await model.aclose()
    assert raised.value.kind == "connection"


async def test_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a key anywhere, the error says so before anything is sent."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_ADMIN_KEY", raising=False)
    model = OpenAIChatModel("gpt-5-mini")
    with pytest.raises(ConfigurationError, match="OPENAI_API_KEY"):
        await model.complete(HELLO)
    await model.aclose()


HALF = chunk("Once upon")
STREAMS: list[tuple[str, bytes, ModelFailure, list[str]]] = [
    ("closed early", stream_head() + HALF, "bad_response", ["Once upon"]),
    ("closed before its length", stream_head(9999) + HALF, "bad_response", ["Once upon"]),
    ("done before its end", stream_head() + HALF + event("[DONE]"), "bad_response", ["Once upon"]),
    ("empty", stream_head(), "bad_response", []),
    ("a page instead", http("200 OK", "<html></html>", content_type="text/html"), "bad_response", []),
    ("broken JSON", stream_head() + HALF + event('{"choices": [{'), "bad_response", ["Once upon"]),
    ("not an object", stream_head() + HALF + event("[1, 2]"), "bad_response", ["Once upon"]),
    (
        "an error half way",
        stream_head() + HALF + event({"error": {"message": "Slow down", "code": "rate_limit_exceeded"}}),
        "rate_limit",
        ["Once upon"],
    ),
    (
        "an unnamed error half way",
        stream_head() + HALF + event({"error": {"message": "Oops", "code": 500}}),
        "server_error",
        ["Once upon"],
    ),
    (
        "an error in place of a stream",
        http("200 OK", json.dumps({"error": {"message": "No", "code": 402}})),
        "error",
        [],
    ),
    ("refused", http("429 Too Many Requests", error(None, "Slow down")), "rate_limit", []),
]


@pytest.mark.parametrize(("response", "kind", "before"), [s[1:] for s in STREAMS], ids=[s[0] for s in STREAMS])
async def test_failed_stream(response: bytes, kind: ModelFailure, before: list[str]) -> None:
    """What came before is given, and then the error: half an answer never passes for a whole one."""
    pieces: list[Any] = []
    async with misbehaving(response) as server:
        model = server.model()
        with pytest.raises(ModelError) as raised:  # noqa: PT012  # what came before the error is wanted too
            async for piece in model.stream(HELLO):
                pieces.append(piece)
        await model.aclose()
    assert raised.value.kind == kind
    assert pieces == [ModelDelta(text=text) for text in before]


async def test_a_stream_that_a_server_refuses_is_asked_for_as_a_whole() -> None:
    """`complete()` knows other ways to ask, and there are servers that do not stream."""
    refused = http("400 Bad Request", error(None, "`stream` is not supported"))
    async with misbehaving(http("200 OK", completion("Hi")), streamed=refused) as server:
        model = server.model()
        *pieces, last = [piece async for piece in model.stream(HELLO)]
        await model.aclose()
    assert pieces == [ModelDelta(text="Hi")]
    assert isinstance(last, ModelReply)
    assert [received.body.get("stream", False) for received in server.received] == [True, False]


async def test_stream_that_falls_silent() -> None:
    """A timeout also counts between two pieces."""
    async with misbehaving(stream_head() + HALF, then_wait=True) as server:
        model = server.model(timeout=0.2)
        async with aclosing(model.stream(HELLO)) as stream:
            assert await anext(stream) == ModelDelta(text="Once upon")
            with pytest.raises(ModelError) as raised:
                await anext(stream)
        await model.aclose()
    assert raised.value.kind == "timeout"


async def test_stream_left_early() -> None:
    """Closing the iterator ends the call at the server's side too."""
    async with misbehaving(stream_head() + HALF, then_wait=True) as server:
        model = server.model()
        async with aclosing(model.stream(HELLO)) as stream:
            assert await anext(stream) == ModelDelta(text="Once upon")
        await asyncio.wait_for(server.hung_up.wait(), 30)
        await model.aclose()


async def test_cancelled() -> None:
    """Cancellation stays cancellation, and ends the call at the server's side too."""
    async with misbehaving(b"", then_wait=True) as server:
        model = server.model()
        call = asyncio.ensure_future(model.complete(HELLO))
        await server.arrived.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await asyncio.wait_for(server.hung_up.wait(), 30)

        with anyio.move_on_after(0.2) as scope:
            await model.complete(HELLO)
        assert scope.cancelled_caught
        await model.aclose()


async def test_azure_by_key() -> None:
    """The deployment, the version and the key go where Azure looks for them."""
    async with misbehaving(http("200 OK", completion())) as server:
        model = AzureOpenAIChatModel("my-gpt", endpoint=server.url, api_key="secret", trust_env=False)
        reply = await model.complete(HELLO)
        await model.aclose()
    assert isinstance(reply, ModelReply)
    (received,) = server.received
    assert received.target == "/openai/deployments/my-gpt/chat/completions?api-version=2024-10-21"
    assert received.headers["api-key"] == "secret"
    assert "secret" not in repr(model)


async def test_azure_by_token() -> None:
    """A token is asked for at each call."""
    tokens = iter(["first", "second"])

    async def provider() -> str:
        return next(tokens)

    async with misbehaving(http("200 OK", completion())) as server:
        model = AzureOpenAIChatModel("my-gpt", endpoint=server.url, token_provider=provider, trust_env=False)
        await model.complete(HELLO)
        await model.complete(HELLO)
        await model.aclose()
    assert [request.headers["authorization"] for request in server.received] == ["Bearer first", "Bearer second"]


async def test_azure_by_identity_without_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is signed in: an error of kind `authentication`, in azure-identity's words, and nothing is sent."""
    # Of all its ways to sign in, only the one that needs no network.
    monkeypatch.setenv("AZURE_TOKEN_CREDENTIALS", "EnvironmentCredential")
    for variable in ("AZURE_CLIENT_ID", "AZURE_TENANT_ID", "AZURE_CLIENT_SECRET", "AZURE_OPENAI_API_KEY"):
        monkeypatch.delenv(variable, raising=False)
    async with misbehaving(http("200 OK", completion())) as server:
        model = AzureOpenAIChatModel("my-gpt", endpoint=server.url, trust_env=False)
        with pytest.raises(ModelError, match="EnvironmentCredential") as raised:
            await model.complete(HELLO)
        await model.aclose()
        await model.aclose()
    assert raised.value.kind == "authentication"
    assert server.received == []


@pytest.mark.parametrize("before", ["\ufeff", "\n\n\n"])
async def test_what_may_precede_the_json(before: str) -> None:
    """A byte order mark, and the blank lines that a server sends to stay connected."""
    async with misbehaving(http("200 OK", before + completion())) as server:
        model = server.model()
        assert (await model.complete(HELLO)).message.text == "Hi"
        await model.aclose()
