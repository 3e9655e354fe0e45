"""OpenAI, Azure OpenAI, and every server that speaks OpenAI's chat completions.

The `openai` package takes most of a second to import, and azure-identity half of one, so both are imported when a
model is first used, and not before: that is why this module has imports inside functions. Both are imported in a
thread, so that the event loop goes on meanwhile.
"""

from __future__ import annotations

import importlib
import json
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, cast
from urllib.request import getproxies

import anyio
import attrs
from anyio import to_thread
from anyio.lowlevel import RunVar

from dafx_actors import _secrets
from dafx_actors._json.text import well_formed_text
from dafx_actors._raised import safe, text_of
from dafx_actors._secrets import header_mistakes, key_given, shown_address
from dafx_actors.errors import ConfigurationError, ModelError, ModelFailure
from dafx_actors.models import ModelDelta, ModelReply, ModelRequest, _reading
from dafx_actors.models._asking import Asking
from dafx_actors.models._dialects import STRUCTURED, Structured
from dafx_actors.models._failures import failure
from dafx_actors.models._kept import GatheredReply
from dafx_actors.models._mistakes import environment_mistakes, typed_failures, wrong_base
from dafx_actors.models._settings import (
    address_mistakes,
    endpoint_mistakes,
    misplaced_options,
    without_version,
)
from dafx_actors.models._structured import is_refusal
from dafx_actors.models._wire import Outgoing
from dafx_actors.transcript import Json

if TYPE_CHECKING:
    from azure.identity import DefaultAzureCredential
    from httpx2 import AsyncClient, Limits, Timeout
    from openai import AsyncOpenAI

__all__ = ["DEFAULT_API_VERSION", "AzureOpenAIChatModel", "OpenAIChatModel", "TokenProvider"]

TokenProvider: TypeAlias = Callable[[], Awaitable[str]]
"""Gives a bearer token that is valid now; it is asked before every call, so it should remember."""

DEFAULT_API_VERSION = "2024-10-21"
"""The newest version of Azure OpenAI's data plane that is not a preview."""

_AZURE_SCOPE = "https://cognitiveservices.azure.com/.default"


class _RawResponse(Protocol):
    """What is used of the package's raw response."""

    @property
    def content(self) -> bytes: ...

    @property
    def headers(self) -> Mapping[str, str]: ...


def _check(find: Callable[[Any], Iterable[str]]) -> Callable[[object, object, Any], None]:
    """A validator that raises a `ConfigurationError` for the mistakes that `find` finds in a value that is not None."""

    def validate(_model: object, _field: object, value: Any) -> None:
        if value is not None and (mistakes := tuple(find(value))):
            raise ConfigurationError(mistakes)

    return validate


def _own_options(options: Mapping[str, Json]) -> Iterator[str]:
    yield from misplaced_options(options)
    if "model" in options:
        yield "The option 'model' is for an agent or a request; a model's own name is its first argument."


def _openai_key(key: str | None) -> str | None:
    given: str | None = key_given("`api_key` (OPENAI_API_KEY)", key)
    return given


def _azure_key(key: str | None) -> str | None:
    given: str | None = key_given("`api_key` (AZURE_OPENAI_API_KEY)", key)
    return given


def _stripped(headers: Mapping[str, str]) -> Mapping[str, str]:
    """Headers whose values have no spaces and line breaks around them, as files and variables do."""
    values = cast("Mapping[str, Any]", headers)
    return {name: value.strip() if isinstance(value, str) else value for name, value in values.items()}


def _shown(address: str | None) -> str:
    return repr(address and shown_address(address))


def _base_url_mistakes(address: str) -> Iterator[str]:
    return address_mistakes(address, "`base_url` (OPENAI_BASE_URL)")


@attrs.define(eq=False)
class _ChatCompletionsModel(ABC):
    """What the models of this module have in common: everything but how to make the client."""

    model: str
    """The model's name; with Azure, the deployment's."""
    timeout: float = attrs.field(default=600.0, kw_only=True)
    """Seconds to wait for the next bytes of an answer; for a connection, ten at most."""
    options: Mapping[str, Json] = attrs.field(factory=dict[str, Json], kw_only=True, validator=_check(_own_options))
    """Parameters of every call, by the provider's names, such as `temperature`; a request's own come over them, and its
    `model` over this model's name."""
    headers: Mapping[str, str] = attrs.field(
        factory=dict[str, str], kw_only=True, repr=False, converter=_stripped, validator=_check(header_mistakes)
    )
    """HTTP headers of every call, such as a gateway's own key; they come over those that the call has anyway."""
    query: Mapping[str, str] = attrs.field(factory=dict[str, str], kw_only=True, repr=False)
    """Parameters in the address of every call."""
    http_client: Callable[[], AsyncClient] | None = attrs.field(default=None, kw_only=True, repr=False)
    """Makes the HTTP client (of httpx2), for what cannot be said here: a certificate of one's own, a proxy with a
    password. Called once for each event loop that uses the model, whose client is closed with the model's
    connections; `timeout` counts for it, `trust_env` and `keep_alive` are its own affair."""
    trust_env: bool = attrs.field(default=True, kw_only=True)
    """Whether HTTP_PROXY, SSL_CERT_FILE and the like count."""
    keep_alive: bool = attrs.field(default=True, kw_only=True)
    """Whether connections are kept for the next call. A server may close one just as it is used again, which is an
    error of kind `connection`; beside a server on this machine a new one costs nothing."""
    structured: Structured | None = attrs.field(
        default=None, kw_only=True, validator=attrs.validators.optional(attrs.validators.in_(STRUCTURED))
    )
    """How typed answers are asked for. `schema`: with the JSON schema, strictly where it can be; `json`: as any JSON,
    with the schema in words; `tool`: as the arguments of a tool; `prompt`: in words alone. None: as the server is known
    to take it, and more simply where it refuses."""
    _asking: Asking | None = attrs.field(init=False, repr=False, default=None)
    # A client's connections belong to the event loop that opened them, so each loop that uses the model has its own.
    _client: RunVar[AsyncOpenAI | None] = attrs.field(
        init=False, repr=False, factory=lambda: RunVar["AsyncOpenAI | None"]("dafx_actors.models.openai", None)
    )

    def __attrs_post_init__(self) -> None:
        _secrets.keep(self, *self._given_secrets(), *_secrets.in_headers(self.headers))
        _secrets.keep(self, *_secrets.in_variables(self.query))

    def _given_secrets(self) -> Iterator[str]:
        """What must not be told, besides headers."""
        address, key = getattr(self, "base_url", None), getattr(self, "api_key", None)
        yield from _secrets.in_address(address or "")
        if isinstance(key, str):
            yield key

    @abstractmethod
    def _make_client(self, **common: Any) -> AsyncOpenAI:
        """The client, given the arguments that are the same for every kind."""

    async def complete(self, request: ModelRequest) -> ModelReply:
        """Make one call, once: the package's own retries are off.

        What a server refuses for the form of the answer is asked for in a simpler one, in a call of its own; and where
        it does not take tools and a form together, the last answer is.

        Raises:
            ModelError: The call failed; chained from the package's own error, where there was one.
            ConfigurationError: The package finds no key, or a setting of its own is wrong.
        """
        model = _model_of(request, self.model)
        client = await self._connected()
        base = str(client.base_url)
        # Typed by hand: the package's overloads cannot be chosen among for arguments that come in a dict.
        create = cast("Callable[..., Awaitable[_RawResponse]]", client.chat.completions.with_raw_response.create)

        async def call(going: Outgoing) -> ModelReply:
            with typed_failures(base, trust_env=self.trust_env):
                response = await create(**_as_arguments(going.body))
            # Not the package's `parse()`: it takes anything for a completion, and fails later on whoever reads it.
            with _located(base):
                answer = _read_json(response.content, base)
                return going.returned(_reading.reply(answer, _failed_at(base, response.headers)), answer)

        return await self._asks(base).answer(model, request, self.options, call)

    def _asks(self, base: str) -> Asking:
        if self._asking is None:
            self._asking = Asking(base_url=base, structured=self.structured)
        return self._asking

    async def stream(self, request: ModelRequest) -> AsyncGenerator[ModelDelta | ModelReply, None]:
        """Make one call, once; gives pieces of text as they come, and last the whole reply.

        Whoever stops listening early closes the iterator (`contextlib.aclosing`), which ends the call.

        Raises:
            ModelError: The call failed; of kind `bad_response` where an answer began and was cut.
            ConfigurationError: As for `complete()`.
        """
        model = _model_of(request, self.model)
        client = await self._connected()
        base = str(client.base_url)
        defaults: dict[str, Json] = {"stream_options": {"include_usage": True}, **self.options}
        going = self._asks(base).outgoing(model, request, defaults)
        try:
            with typed_failures(base, trust_env=self.trust_env):
                chunks = await client.chat.completions.create(stream=True, **_as_arguments(going.body))
        except ModelError as error:
            if not is_refusal(error):
                raise
            # `complete` knows other ways to ask, and there are servers that do not stream.
            whole = await self.complete(request)
            if whole.message.text:
                yield ModelDelta(text=whole.message.text)
            yield whole
            return
        if "json" in chunks.response.headers.get("content-type", ""):
            # No stream: an error with the status of a success, or a server that gives all at once.
            with typed_failures(base, trust_env=self.trust_env, answering=True), _located(base):
                answer = _read_json(await chunks.response.aread(), base)
                reply = _reading.reply(answer, _failed_at(base, chunks.response.headers))
                whole = going.returned(reply, answer)
            if whole.message.text:
                yield ModelDelta(text=whole.message.text)
            yield whole
            return
        streamed, gathered = _reading.StreamedReply(_failed_at(base, {})), GatheredReply()
        async with chunks:
            iterator = aiter(chunks)
            while True:
                with typed_failures(base, trust_env=self.trust_env, answering=True):
                    try:
                        chunk = await anext(iterator)
                    except StopAsyncIteration:
                        break
                read = _as_json(chunk)
                gathered.add(read)
                with _located(base):
                    text = streamed.add(read)
                if text:
                    yield ModelDelta(text=well_formed_text(text))
        with _located(base):
            whole = going.returned(streamed.reply(), gathered.answer())
        yield whole

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
            _secrets.guard_logs()
            from httpx2 import InvalidURL, Limits, Timeout
            from openai import OpenAIError

            # Another task may have been here during the import. From here to `set` nothing else runs on this loop.
            if self._client.get() is None:
                # As many connections at once as there are calls: what bounds those is the worker.
                limits = Limits(max_connections=None, max_keepalive_connections=100 if self.keep_alive else 0)
                timeout = Timeout(self.timeout, connect=min(self.timeout, 10.0))
                http = self._made_http(timeout, limits)
                try:
                    client = self._make_client(
                        timeout=timeout,
                        max_retries=0,
                        http_client=http,
                        default_headers=dict(self.headers),
                        default_query=dict(self.query),
                    )
                except (OpenAIError, InvalidURL, ValueError) as error:
                    await http.aclose()
                    unusable = f"The model {self.model!r} cannot be used: {text_of(error)}"
                    raise ConfigurationError(unusable) from safe(error)
                except ConfigurationError:
                    await http.aclose()
                    raise
                self._client.set(client)
        connected = self._client.get()
        assert connected is not None
        return connected

    def _made_http(self, timeout: Timeout, limits: Limits) -> AsyncClient:
        """The HTTP client below the package's.

        Raises:
            ConfigurationError: A variable of the environment is wrong, or `http_client` gave something else.
        """
        from httpx2 import AsyncClient
        from openai import DefaultAsyncHttpxClient

        if self.http_client is not None:
            made = cast("object", self.http_client())
            if not isinstance(made, AsyncClient):
                raise ConfigurationError(f"`http_client` gives an `httpx2.AsyncClient`, and not {type(made).__name__}.")
            return made
        if self.trust_env:
            if mistakes := tuple(environment_mistakes()):
                raise ConfigurationError(mistakes)
            _secrets.keep(self, *(each for proxy in getproxies().values() for each in _secrets.in_address(proxy)))
        return DefaultAsyncHttpxClient(trust_env=self.trust_env, timeout=timeout, limits=limits)


@attrs.define(eq=False)
class OpenAIChatModel(_ChatCompletionsModel):
    """A model of OpenAI, or of any server that speaks its protocol.

    ::

        OpenAIChatModel("gpt-5-mini", options={"temperature": 0.2})
        OpenAIChatModel("qwen3", base_url="http://localhost:11434/v1", api_key="unused")
    """

    base_url: str | None = attrs.field(default=None, kw_only=True, repr=_shown, validator=_check(_base_url_mistakes))
    """Up to and with `/v1`. None: OPENAI_BASE_URL, or OpenAI."""
    api_key: str | None = attrs.field(default=None, kw_only=True, repr=False, converter=_openai_key)
    """None: OPENAI_API_KEY. A server that wants no key takes any text."""

    def _make_client(self, **common: Any) -> AsyncOpenAI:
        from openai import AsyncOpenAI

        given = os.environ.get("OPENAI_BASE_URL", "").strip()
        if self.base_url is None and given and (mistakes := tuple(_base_url_mistakes(given))):
            raise ConfigurationError(mistakes)
        _secrets.keep(self, *_secrets.in_address(given))
        return AsyncOpenAI(base_url=self.base_url, api_key=self.api_key or _key_of(self, "OPENAI_API_KEY"), **common)


@attrs.define(eq=False)
class AzureOpenAIChatModel(_ChatCompletionsModel):
    """A deployment on Azure OpenAI.

    ::

        AzureOpenAIChatModel("my-deployment", endpoint="https://my-resource.openai.azure.com")

    Without a key and a token provider it signs in as whoever runs it, through azure-identity's
    `DefaultAzureCredential`: environment, workload or managed identity, Azure CLI and so on.
    """

    endpoint: str = attrs.field(kw_only=True, validator=_check(endpoint_mistakes))
    """The resource's address, such as `https://my-resource.openai.azure.com`."""
    api_key: str | None = attrs.field(default=None, kw_only=True, repr=False, converter=_azure_key)
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
        if provider is not None:
            provider = _remembered(self, provider)
        # Without its `azure_deployment`, so that the deployment is the one that a body names as its model.
        return AsyncAzureOpenAI(
            azure_endpoint=self.endpoint,
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
            message = f"No token for Azure OpenAI: {_secrets.without(str(error.message))}"
            raise ModelError(kind=kind, message=message) from error

    async def aclose(self) -> None:
        if self._credential is not None:
            with anyio.CancelScope(shield=True):
                await to_thread.run_sync(self._credential.close)


def _key_of(model: object, variable: str) -> str | None:
    """The key in a variable, from now on one of the secrets.

    Raises:
        ConfigurationError: It has characters that cannot be sent.
    """
    key: str | None = key_given(variable, os.environ.get(variable))
    _secrets.keep(model, key)
    return key or None


def _remembered(model: object, provider: TokenProvider) -> Callable[[], Awaitable[str]]:
    """A provider of tokens, each of which is from then on one of the secrets."""
    last = ""

    async def token() -> str:
        nonlocal last
        found = await provider()
        if found != last:
            _secrets.keep(model, found)
            last = found
        return found

    return token


def _model_of(request: ModelRequest, model: str) -> str:
    """The model that a request is for: `model`, or the one that its options name.

    Raises:
        ModelError: Of kind `bad_request`: its options hold what is no option of a call.
    """
    if mistakes := list(misplaced_options(request.options)):
        raise ModelError(kind="bad_request", message=" ".join(mistakes))
    chosen: str = request.options.get("model", model)
    return chosen


def _as_arguments(body: dict[str, Json]) -> dict[str, Any]:
    """`body` as arguments of the package's `create()`.

    It wants model and messages by name. The body is added as it stands, and wins: the package need not know what other
    servers take, and would look through each message at length.
    """
    return {"model": body["model"], "messages": (), "extra_body": body}


@contextmanager
def _located(base: str) -> Generator[None]:
    """Say in a `ModelError` where the call went, and nothing that is secret."""
    try:
        yield
    except ModelError as error:
        error.message = _secrets.without(error.message)
        error.data = {**_secrets.without_in(error.data), "address": error.address or shown_address(base)}
        raise


def _failed_at(base: str, headers: Mapping[str, str]) -> Callable[[Json], ModelError]:
    """What makes the error of an answer with the status of a success that says that the call failed."""

    def failed(said: Json) -> ModelError:
        message = "The model's server said that the call failed."
        found = failure(
            None, said, message=message, headers=headers, now=datetime.now(UTC), address=shown_address(base)
        )
        if without_version(base) and "endpoint" in found.message.lower():  # LM Studio
            raise wrong_base(base, found.message)
        return found

    return failed


def _read_json(content: bytes, base: str) -> Json:
    """The answer's JSON, which a byte order mark may precede.

    Raises:
        ModelError: Of kind `bad_response`: it is none.
        ConfigurationError: It is none, and the base URL lacks its `/v1`.
    """
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        if without_version(base):
            raise wrong_base(base, "something other than JSON came") from error
        raise ModelError(
            kind="bad_response",
            message=f"The model's server sent something other than JSON: {error}",
            data={"received": content[:500].decode(errors="replace"), "address": shown_address(base)},
        ) from error


def _as_json(chunk: object) -> Json:
    """A chunk as the JSON that it came as: the package's type for it checks nothing, and is not always given."""
    to_dict = cast("Callable[..., Json] | None", getattr(chunk, "to_dict", None))
    return chunk if to_dict is None else to_dict(warnings=False)
