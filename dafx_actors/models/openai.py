"""OpenAI, Azure OpenAI, and every server that speaks OpenAI's chat completions.

The `openai` package takes most of a second to import, and azure-identity half of one, so both are imported when a
model is first used, and not before: that is why this module has imports inside functions. Both are imported in a
thread, so that the event loop goes on meanwhile.
"""

from __future__ import annotations

import importlib
import json
import threading
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Mapping
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, cast

import anyio
import attrs
from anyio import to_thread
from anyio.lowlevel import RunVar

from dafx_actors.errors import ConfigurationError, ModelError, ModelFailure
from dafx_actors.models import ModelDelta, ModelReply, ModelRequest, _reading, _wire
from dafx_actors.models._failures import failure
from dafx_actors.transcript import Json

if TYPE_CHECKING:
    from azure.identity import DefaultAzureCredential
    from openai import AsyncOpenAI

__all__ = ["DEFAULT_API_VERSION", "AzureOpenAIChatModel", "OpenAIChatModel", "TokenProvider"]

TokenProvider: TypeAlias = Callable[[], Awaitable[str]]
"""Gives a bearer token that is valid now; it is asked before every call, so it should remember."""

DEFAULT_API_VERSION = "2024-10-21"
"""The newest version of Azure OpenAI's data plane that is not a preview."""

_LAST_PORT = 65_535
_AZURE_SCOPE = "https://cognitiveservices.azure.com/.default"


class _RawResponse(Protocol):
    """What is used of the package's raw response."""

    @property
    def content(self) -> bytes: ...


@attrs.define(eq=False)
class _ChatCompletionsModel(ABC):
    """What the models of this module have in common: everything but how to make the client."""

    model: str
    """The model's name; with Azure, the deployment's."""
    timeout: float = attrs.field(default=600.0, kw_only=True)
    """Seconds to wait for the next bytes of an answer; for a connection, ten at most."""
    options: Mapping[str, Json] = attrs.field(factory=dict[str, Json], kw_only=True)
    """Parameters of every call, by the provider's names, such as `temperature`; a request's own come over them."""
    trust_env: bool = attrs.field(default=True, kw_only=True)
    """Whether HTTP_PROXY, SSL_CERT_FILE and the like count."""
    keep_alive: bool = attrs.field(default=True, kw_only=True)
    """Whether connections are kept for the next call. A server may close one just as it is used again, which is an
    error of kind `connection`; beside a server on this machine a new one costs nothing."""
    # A client's connections belong to the event loop that opened them, so each loop that uses the model has its own.
    _client: RunVar[AsyncOpenAI | None] = attrs.field(
        init=False, repr=False, factory=lambda: RunVar["AsyncOpenAI | None"]("dafx_actors.models.openai", None)
    )

    @abstractmethod
    def _make_client(self, **common: Any) -> AsyncOpenAI:
        """The client, given the arguments that are the same for every kind."""

    async def complete(self, request: ModelRequest) -> ModelReply:
        """Make one call, once: the package's own retries are off.

        Raises:
            ModelError: The call failed; chained from the package's own error, where there was one.
            ConfigurationError: The package finds no key, or a setting of its own is wrong.
        """
        body = _wire.body(self.model, request, self.options)
        client = await self._connected()
        # Typed by hand: the package's overloads cannot be chosen among for arguments that come in a dict.
        create = cast("Callable[..., Awaitable[_RawResponse]]", client.chat.completions.with_raw_response.create)
        with _typed_failures():
            response = await create(**_as_arguments(body))
        # Not the package's `parse()`: it takes anything for a completion, and fails later on whoever reads it.
        return _reading.reply(_read_json(response.content))

    async def stream(self, request: ModelRequest) -> AsyncGenerator[ModelDelta | ModelReply, None]:
        """Make one call, once; gives pieces of text as they come, and last the whole reply.

        Whoever stops listening early closes the iterator (`contextlib.aclosing`), which ends the call.

        Raises:
            ModelError: The call failed; of kind `bad_response` where an answer began and was cut.
            ConfigurationError: As for `complete()`.
        """
        body = _wire.body(self.model, request, {"stream_options": {"include_usage": True}, **self.options})
        client = await self._connected()
        with _typed_failures():
            chunks = await client.chat.completions.create(stream=True, **_as_arguments(body))
        streamed = _reading.StreamedReply()
        async with chunks:
            iterator = aiter(chunks)
            while True:
                with _typed_failures(answering=True):
                    try:
                        chunk = await anext(iterator)
                    except StopAsyncIteration:
                        break
                if text := streamed.add(_as_json(chunk)):
                    yield ModelDelta(text=text)
        yield streamed.reply()

    async def aclose(self) -> None:
        """Close the connections that the running event loop has open. Safe to do twice."""
        client = self._client.get()
        self._client.set(None)
        if client is not None:
            with anyio.CancelScope(shield=True):
                await client.close()

    async def _connected(self) -> AsyncOpenAI:
        """The running loop's client, made now if it has none.

        Raises:
            ConfigurationError: The package finds no key, or a setting of its own is wrong.
        """
        if self._client.get() is None:
            await to_thread.run_sync(importlib.import_module, "openai")
            from httpx2 import InvalidURL, Limits, Timeout
            from openai import DefaultAsyncHttpxClient, OpenAIError

            # Another task may have been here during the import. From here to `set` nothing else runs on this loop.
            if self._client.get() is None:
                # As many connections at once as there are calls: what bounds those is the worker.
                limits = Limits(max_connections=None, max_keepalive_connections=100 if self.keep_alive else 0)
                timeout = Timeout(self.timeout, connect=min(self.timeout, 10.0))
                http = DefaultAsyncHttpxClient(trust_env=self.trust_env, timeout=timeout, limits=limits)
                try:
                    client = self._make_client(timeout=timeout, max_retries=0, http_client=http)
                    _check_port(client.base_url.port)
                except (OpenAIError, InvalidURL, ValueError) as error:
                    await http.aclose()
                    raise ConfigurationError((f"The model {self.model!r} cannot be used: {error}",)) from error
                self._client.set(client)
        connected = self._client.get()
        assert connected is not None
        return connected


@attrs.define(eq=False)
class OpenAIChatModel(_ChatCompletionsModel):
    """A model of OpenAI, or of any server that speaks its protocol.

    ::

        OpenAIChatModel("gpt-5-mini", options={"temperature": 0.2})
        OpenAIChatModel("qwen3", base_url="http://localhost:11434/v1", api_key="unused")
    """

    base_url: str | None = attrs.field(default=None, kw_only=True)
    """Up to and with `/v1`. None: OPENAI_BASE_URL, or OpenAI."""
    api_key: str | None = attrs.field(default=None, kw_only=True, repr=False)
    """None: OPENAI_API_KEY. A server that wants no key takes any text."""

    def _make_client(self, **common: Any) -> AsyncOpenAI:
        from openai import AsyncOpenAI

        return AsyncOpenAI(base_url=self.base_url, api_key=self.api_key, **common)


@attrs.define(eq=False)
class AzureOpenAIChatModel(_ChatCompletionsModel):
    """A deployment on Azure OpenAI.

    ::

        AzureOpenAIChatModel("my-deployment", endpoint="https://my-resource.openai.azure.com")

    Without a key and a token provider it signs in as whoever runs it, through azure-identity's
    `DefaultAzureCredential`: environment, workload or managed identity, Azure CLI and so on.
    """

    endpoint: str = attrs.field(kw_only=True)
    """The resource's address, such as `https://my-resource.openai.azure.com`."""
    api_key: str | None = attrs.field(default=None, kw_only=True, repr=False)
    token_provider: TokenProvider | None = attrs.field(default=None, kw_only=True, repr=False)
    """Instead of a key, for a credential of one's own."""
    api_version: str = attrs.field(default=DEFAULT_API_VERSION, kw_only=True)
    _identity: _AzureIdentity | None = attrs.field(default=None, init=False, repr=False)

    def _make_client(self, **common: Any) -> AsyncOpenAI:
        from openai import AsyncAzureOpenAI

        provider = self.token_provider
        if self.api_key is None and provider is None:
            self._identity = self._identity or _AzureIdentity()
            provider = self._identity.token
        return AsyncAzureOpenAI(
            azure_endpoint=self.endpoint,
            azure_deployment=self.model,
            api_version=self.api_version,
            api_key=self.api_key,
            azure_ad_token_provider=provider,
            **common,
        )

    async def aclose(self) -> None:
        """Close the connections that the running event loop has open, and the credential. Safe to do twice."""
        identity, self._identity = self._identity, None
        try:
            await super().aclose()
        finally:
            if identity is not None:
                await identity.aclose()


@attrs.define(eq=False)
class _AzureIdentity:
    """Tokens from `DefaultAzureCredential`, the synchronous one, in a thread.

    azure-identity's asynchronous credentials work on aiohttp only, which they do not depend on, and thereby on asyncio
    only. A token is kept for about an hour, so a thread per question costs nothing that counts.
    """

    _credential: DefaultAzureCredential | None = None
    _provider: Callable[[], str] | None = None
    _mutex: threading.Lock = attrs.field(factory=threading.Lock)

    async def token(self) -> str:
        """A token that is valid now.

        Raises:
            ModelError: Of kind `authentication`, with what each way to sign in said, or `connection`.
            ConfigurationError: A variable of azure-identity's own is wrong.
        """
        # Asking may take many seconds (a managed identity that is not there, the Azure CLI), and leaves nothing behind
        # that a cancelled caller would have to wait for.
        return await to_thread.run_sync(self._token, abandon_on_cancel=True)

    def _token(self) -> str:
        from azure.core.exceptions import AzureError, ClientAuthenticationError
        from azure.identity import DefaultAzureCredential, get_bearer_token_provider

        try:
            with self._mutex:
                if self._provider is None:
                    self._credential = DefaultAzureCredential()
                    self._provider = get_bearer_token_provider(self._credential, _AZURE_SCOPE)
            return self._provider()
        except ValueError as error:
            raise ConfigurationError((f"azure-identity cannot be used as it is set up: {error}",)) from error
        except AzureError as error:
            kind: ModelFailure = "authentication" if isinstance(error, ClientAuthenticationError) else "connection"
            raise ModelError(kind=kind, message=f"No token for Azure OpenAI: {error.message}") from error

    async def aclose(self) -> None:
        if self._credential is not None:
            with anyio.CancelScope(shield=True):
                await to_thread.run_sync(self._credential.close)


def _check_port(port: int | None) -> None:
    """An address may name any number; the connection would fail with an OverflowError.

    Raises:
        ValueError: There is no such port.
    """
    if port is not None and port > _LAST_PORT:
        raise ValueError(f"there is no port {port}")


def _as_arguments(body: dict[str, Json]) -> dict[str, Any]:
    """`body` as arguments of the package's `create()`.

    It wants model and messages by name. The rest is added to the body as it stands, so that it need not know the
    parameters of other servers.
    """
    rest = dict(body)
    return {"model": rest.pop("model"), "messages": rest.pop("messages"), "extra_body": rest}


@contextmanager
def _typed_failures(*, answering: bool = False) -> Generator[None]:
    """Make a `ModelError` of what the package raises. Cancellation passes through untouched.

    Args:
        answering: Whether an answer has begun, so that a lost connection is an answer that was cut.
    """
    from httpx2 import InvalidURL, RequestError, TimeoutException
    from openai import APIConnectionError, APIError, APIStatusError, APITimeoutError

    now = datetime.now(timezone.utc)
    try:
        yield
    except APIStatusError as error:
        message = error.response.reason_phrase or "The server said nothing more."
        raise failure(
            error.status_code, error.body, message=message, headers=error.response.headers, now=now
        ) from error
    except (APITimeoutError, TimeoutException) as error:
        raise ModelError(kind="timeout", message="The model did not answer in time.") from error
    except (APIConnectionError, RequestError) as error:
        detail = f"{error} ({error.__cause__})" if error.__cause__ else str(error)
        if answering:
            raise ModelError(kind="bad_response", message=f"The answer was cut: {detail}") from error
        raise ModelError(kind="connection", message=detail) from error
    except APIError as error:  # an error object inside a stream
        raise failure(None, error.body, message=error.message, headers={}, now=now) from error
    except (InvalidURL, UnicodeEncodeError) as error:
        raise ConfigurationError((f"The model's address or key cannot be used: {error}",)) from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:  # the package reads a stream with `json.loads`
        raise ModelError(kind="bad_response", message=f"The model's server sent broken JSON: {error}") from error


def _read_json(content: bytes) -> Json:
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        received = content[:500].decode(errors="replace")
        raise ModelError(
            kind="bad_response",
            message=f"The model's server sent something other than JSON: {error}",
            data={"received": received},
        ) from error


def _as_json(chunk: object) -> Json:
    """A chunk as the JSON that it came as: the package's type for it checks nothing, and is not always given."""
    to_dict = cast("Callable[..., Json] | None", getattr(chunk, "to_dict", None))
    return chunk if to_dict is None else to_dict(warnings=False)
