"""How a model is set up: headers, a query, an HTTP client of one's own; and mistakes, found before they are sent."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from pathlib import Path
from typing import Any

import httpx2
import pytest

from dafx_actors.errors import ConfigurationError, ModelError
from dafx_actors.models import ModelRequest
from dafx_actors.models.environment import model_from_environment
from dafx_actors.models.local import LocalModel
from dafx_actors.models.openai import AzureOpenAIChatModel, OpenAIChatModel
from dafx_actors.transcript import ChatMessage
from tests.models.conftest import HELLO, completion, error, http, misbehaving

pytestmark = pytest.mark.anyio

PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


def asking(**options: Any) -> ModelRequest:
    return ModelRequest(messages=(ChatMessage("user", "Hello"),), options=options)


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the machine's own settings."""
    for name in (*PROXIES, *map(str.upper, PROXIES), "SSL_CERT_FILE", "SSL_CERT_DIR", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


async def test_headers_and_query() -> None:
    """They go with every call; a header of one's own comes over the package's; neither shows in a repr."""
    async with misbehaving(http("200 OK", completion())) as server:
        model = server.model(headers={"X-Gateway": "secret", "Authorization": "Basic abc"}, query={"tier": "secret"})
        await model.complete(HELLO)
        await model.aclose()
    (received,) = server.received
    assert received.target == "/v1/chat/completions?tier=secret"
    assert (received.headers["x-gateway"], received.headers["authorization"]) == ("secret", "Basic abc")
    assert "secret" not in repr(model)


async def test_http_client_of_ones_own() -> None:
    """It is made for the loop that uses the model, used, and closed with the model."""
    made: list[httpx2.AsyncClient] = []

    def make() -> httpx2.AsyncClient:
        made.append(httpx2.AsyncClient(trust_env=False, headers={"X-Mine": "yes"}))
        return made[-1]

    async with misbehaving(http("200 OK", completion())) as server:
        model = server.model(http_client=make)
        await model.complete(HELLO)
        await model.complete(HELLO)
        await model.aclose()
    assert [request.headers["x-mine"] for request in server.received] == ["yes", "yes"]
    assert [client.is_closed for client in made] == [True]


def test_http_client_for_each_loop() -> None:
    """A client's connections belong to one event loop."""
    made: list[httpx2.AsyncClient] = []

    def make() -> httpx2.AsyncClient:
        made.append(httpx2.AsyncClient(trust_env=False))
        return made[-1]

    model = OpenAIChatModel("m", api_key="key", base_url="http://localhost/v1", http_client=make)

    async def once() -> None:
        async with misbehaving(http("200 OK", completion())) as server:
            model.base_url = f"{server.url}/v1"
            await model.complete(HELLO)
            await model.aclose()

    asyncio.run(once())
    asyncio.run(once())
    assert [client.is_closed for client in made] == [True, True]


async def test_http_client_that_is_none() -> None:
    """A factory that gives something else is a mistake of the program."""
    wrong: Any = object
    model = OpenAIChatModel("m", api_key="key", base_url="http://localhost/v1", http_client=wrong)
    with pytest.raises(ConfigurationError, match="AsyncClient"):
        await model.complete(HELLO)


@pytest.mark.parametrize("name", ["extra_headers", "extra_query", "extra_body", "timeout", "stream", "http_client", "api_key", "messages", "max_retries"])  # fmt: skip  # noqa: E501
async def test_options_that_are_not_of_the_body(name: str) -> None:
    """They are refused by name, where they are given, and nothing is sent."""
    with pytest.raises(ConfigurationError, match=name):
        OpenAIChatModel("m", api_key="key", options={name: 1})
    async with misbehaving(http("200 OK", completion())) as server:
        model = server.model()
        with pytest.raises(ModelError, match=name) as raised:
            await model.complete(asking(**{name: 1}))
        await model.aclose()
    assert (raised.value.kind, server.received) == ("bad_request", [])


async def test_more_answers_than_one() -> None:
    """An agent has one answer; `n=1` asks for no more."""
    async with misbehaving(http("200 OK", completion())) as server:
        model = server.model()
        with pytest.raises(ModelError, match="'n'"):
            await model.complete(asking(n=2))
        await model.complete(asking(n=1))
        await model.aclose()
    assert len(server.received) == 1


@pytest.mark.parametrize("named", ["", None, 5])
async def test_model_that_is_none(named: Any) -> None:
    """The option `model` is a name."""
    model = OpenAIChatModel("m", api_key="key", base_url="http://localhost/v1")
    with pytest.raises(ModelError, match="'model'"):
        await model.complete(asking(model=named))


async def test_model_of_one_request() -> None:
    """The option `model` chooses it, at Azure the deployment; the next request has the model's own again."""
    async with misbehaving(http("200 OK", completion())) as server:
        model = server.model()
        await model.complete(asking(model="other"))
        await model.complete(HELLO)
        await model.aclose()
        azure = AzureOpenAIChatModel("gpt", endpoint=server.url, api_key="key", trust_env=False)
        await azure.complete(asking(model="other"))
        await azure.complete(HELLO)
        await azure.aclose()
    assert [request.body["model"] for request in server.received] == ["other", "some-model", "other", "gpt"]
    targets = [request.target.partition("/chat")[0] for request in server.received[2:]]
    assert targets == ["/openai/deployments/other", "/openai/deployments/gpt"]


@pytest.mark.parametrize("headers", [{"X Y": "z"}, {"X": "a\nsecret"}, {"X": "sécret"}, {"X": 5}])
def test_headers_that_cannot_be_sent(headers: Any) -> None:
    """They are refused where they are given, without their values."""
    with pytest.raises(ConfigurationError, match="X") as raised:
        OpenAIChatModel("m", headers=headers)
    assert "secret" not in str(raised.value)


AZURE = {"AZURE_OPENAI_CHAT_DEPLOYMENT_NAME": "gpt", "AZURE_OPENAI_API_KEY": "key"}


@pytest.mark.parametrize(
    "endpoint",
    [
        "https://r.openai.azure.com/openai/deployments/gpt/chat/completions?api-version=2024-10-21",
        "https://r.openai.azure.com/openai",
        "https://r.openai.azure.com/openai/v1/",
        "https://r.openai.azure.com?api-version=2024-10-21",
        "https://r.services.ai.azure.com/api/projects/p",
        "https://r.services.ai.azure.com/models",
    ],
)
def test_endpoint_as_the_portal_shows_it(endpoint: str) -> None:
    """The error names the variable and what it should be."""
    with pytest.raises(ConfigurationError, match="AZURE_OPENAI_ENDPOINT") as raised:
        model_from_environment({**AZURE, "AZURE_OPENAI_ENDPOINT": endpoint})
    host = endpoint.partition("//")[2].partition("/")[0].partition("?")[0]
    assert f"Set it to https://{host}." in str(raised.value)


@pytest.mark.parametrize(
    "endpoint", ["https://r.openai.azure.com", "https://r.openai.azure.com/", "https://g.example/my"]
)
def test_endpoint_that_is_right(endpoint: str) -> None:
    """A slash at the end, and a gateway's own path."""
    assert isinstance(model_from_environment({**AZURE, "AZURE_OPENAI_ENDPOINT": endpoint}), AzureOpenAIChatModel)


@pytest.mark.parametrize("url", ["localhost:8000/v1", "http://", "http://h:99999/v1", "http://h/v1/chat/completions", "http://h/v1?a=b", "http://a b/v1"])  # fmt: skip  # noqa: E501
async def test_base_url_that_cannot_be_right(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the variable, whoever reads it."""
    with pytest.raises(ConfigurationError, match="OPENAI_BASE_URL"):
        model_from_environment({"OPENAI_API_KEY": "key", "OPENAI_MODEL": "m", "OPENAI_BASE_URL": url})
    monkeypatch.setenv("OPENAI_BASE_URL", url)
    with pytest.raises(ConfigurationError, match="OPENAI_BASE_URL"):
        await OpenAIChatModel("m", api_key="key").complete(HELLO)


@pytest.mark.parametrize(
    "answer",
    [
        http("404 Not Found", "404 page not found", content_type="text/plain"),
        http("404 Not Found", error("404", "Not Found")),
        http("405 Method Not Allowed", '{"detail": "Method Not Allowed"}'),
        http("200 OK", json.dumps({"error": "Unexpected endpoint or method. (POST /chat/completions)"})),
        http("200 OK", "<!doctype html><title>Chat</title>", content_type="text/html"),
    ],
)
async def test_base_url_without_its_version(answer: bytes) -> None:
    """A server that has nothing at this path: the error names the variable, and what it should be."""
    async with misbehaving(answer) as server:
        model = OpenAIChatModel("m", base_url=server.url, api_key="key", trust_env=False)
        with pytest.raises(ConfigurationError, match="OPENAI_BASE_URL") as raised:
            await model.complete(HELLO)
        await model.aclose()
    assert f"{server.url}/v1" in str(raised.value)


async def test_base_url_that_needs_no_version() -> None:
    """A server that answers is right; and a model that it has not is no wrong address."""
    async with misbehaving(http("200 OK", completion())) as server:
        model = OpenAIChatModel("m", base_url=server.url, api_key="key", trust_env=False)
        assert (await model.complete(HELLO)).message.text == "Hi"
        await model.aclose()
    async with misbehaving(http("404 Not Found", error("model_not_found", "The model m does not exist"))) as server:
        model = OpenAIChatModel("m", base_url=server.url, api_key="key", trust_env=False)
        with pytest.raises(ModelError, match="does not exist") as raised:
            await model.complete(HELLO)
        await model.aclose()
    assert raised.value.kind == "not_found"


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("HTTPS_PROXY", "ftp://proxy:21"),
        ("HTTP_PROXY", "http://user:secret@proxy:99999"),
        ("ALL_PROXY", "http://"),
        ("SSL_CERT_FILE", "/nowhere/secret.pem"),
        ("SSL_CERT_DIR", "/nowhere/secret"),
    ],
)
async def test_environment_that_is_wrong(variable: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the variable, not its value; with `trust_env=False` it does not count."""
    monkeypatch.setenv(variable, value)
    async with misbehaving(http("200 OK", completion())) as server:
        model = OpenAIChatModel("m", base_url=f"{server.url}/v1", api_key="key")
        with pytest.raises(ConfigurationError, match=variable) as raised:
            await model.complete(HELLO)
        await model.aclose()
        deaf = server.model()
        await deaf.complete(HELLO)
        await deaf.aclose()
    assert "secret" not in str(raised.value)


async def test_file_without_certificates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that holds something else."""
    file = tmp_path / "ca.pem"
    file.write_text("no certificate")
    monkeypatch.setenv("SSL_CERT_FILE", str(file))
    with pytest.raises(ConfigurationError, match="SSL_CERT_FILE"):
        await OpenAIChatModel("m", base_url="http://localhost/v1", api_key="key").complete(HELLO)


async def test_proxy_that_wants_a_password(monkeypatch: pytest.MonkeyPatch) -> None:
    """407 is the proxy's, and stays so however often it is asked."""
    async with misbehaving(http("407 Proxy Authentication Required", "")) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        model = OpenAIChatModel("m", base_url="http://models.invalid/v1", api_key="key")
        with pytest.raises(ConfigurationError, match="HTTP_PROXY"):
            await model.complete(HELLO)
        await model.aclose()


async def test_proxy_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may come back, so the call is tried again; its words name the variable."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    model = OpenAIChatModel("m", base_url="http://models.invalid/v1", api_key="key")
    with pytest.raises(ModelError, match="HTTP_PROXY") as raised:
        await model.complete(HELLO)
    await model.aclose()
    assert (raised.value.kind, raised.value.retryable) == ("connection", True)


async def test_server_that_does_not_speak_tls() -> None:
    """https:// for a server of plain HTTP."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            await reader.read(1)
            writer.write(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        model = OpenAIChatModel("m", base_url=f"https://127.0.0.1:{port}/v1", api_key="key", trust_env=False)
        with pytest.raises(ConfigurationError, match="OPENAI_BASE_URL"):
            await model.complete(HELLO)
        await model.aclose()


def test_certificate_that_is_not_trusted() -> None:
    """The error of the package is chained from the one of TLS; it names the variable."""
    from dafx_actors.models._mistakes import typed_failures

    request = httpx2.Request("POST", "https://h/v1/chat/completions")
    untrusted = ssl.SSLCertVerificationError("self-signed certificate")
    untrusted.verify_message = "self-signed certificate"
    with pytest.raises(ConfigurationError, match="SSL_CERT_FILE"), typed_failures("https://h/v1"):
        raise httpx2.ConnectError("no", request=request) from untrusted


async def test_address_in_errors() -> None:
    """An error says where the call went, without credentials and query, and with the server's own words."""
    async with misbehaving(http("500 Internal Server Error", '{"detail": "Out of memory"}')) as server:
        url = server.url.replace("//", "//user:secret@")
        model = OpenAIChatModel("m", base_url=f"{url}/v1", api_key="key", query={"k": "secret"}, trust_env=False)
        with pytest.raises(ModelError, match="Out of memory") as raised:
            await model.complete(HELLO)
        await model.aclose()
    assert raised.value.address == f"{server.url}/v1/chat/completions"
    assert "secret" not in str(raised.value)


async def test_proxy_before_a_server_on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the proxy says of it does not pass for the server's own words."""
    async with misbehaving(http("403 Forbidden", "<h1>Access denied</h1>")) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        model = OpenAIChatModel("m", base_url="http://localhost:9/v1", api_key="key")
        with pytest.raises(ModelError, match=r"Access denied .*HTTP_PROXY; NO_PROXY"):
            await model.complete(HELLO)
        await model.aclose()


async def test_local_model_of_another_name() -> None:
    """The small model does not pass for another, neither in an environment nor for one request."""
    with pytest.raises(ModelError, match="gpt-6-sol") as raised:
        await LocalModel().complete(asking(model="gpt-6-sol"))
    assert raised.value.kind == "not_found"
