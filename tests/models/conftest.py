"""Two real servers: the local model's own, and one that does whatever a test wants done wrong."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest

from dafx_actors.models import ModelRequest, _server, _weights
from dafx_actors.models.openai import OpenAIChatModel
from dafx_actors.transcript import ChatMessage

HELLO = ModelRequest(messages=(ChatMessage("user", "Hello"),))


@pytest.fixture(scope="session")
def weights() -> Path:
    """The local model's weights. Tests reach only loopback, so these are never fetched here."""
    found = _weights.cached(_weights.cache_directory())
    if found is None:
        why = "the local model's weights are not in the cache: `python -m dafx_actors.models.local` fetches them"
        if os.environ.get("DAFX_REQUIRE_LOCAL_MODEL"):
            pytest.fail(why)
        pytest.skip(why)
    return found


@pytest.fixture(scope="session")
def local_server(weights: Path) -> Iterator[_server.Lease]:
    """The local model's server, for tests that talk to it as to any OpenAI-compatible one."""
    lease = _server.lease(_server.Settings(name=_weights.NAME, weights=weights, context=512, slots=1, threads=1))
    yield lease
    lease.release()


@attrs.define
class Received:
    """One request as it came over the wire."""

    target: str
    headers: dict[str, str]
    body: Any


@attrs.define(eq=False)
class Misbehaving:
    """A server that answers every request with the same bytes, right or wrong, and closes the connection."""

    port: int = 0
    received: list[Received] = attrs.field(factory=list[Received])
    hung_up: asyncio.Event = attrs.field(factory=asyncio.Event)
    """Set when a client has closed a connection that was kept waiting."""
    arrived: asyncio.Event = attrs.field(factory=asyncio.Event)
    """Set when a request is there."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def model(self, **settings: Any) -> OpenAIChatModel:
        """A model that talks to this server."""
        return OpenAIChatModel("some-model", base_url=f"{self.url}/v1", api_key="key", trust_env=False, **settings)


@asynccontextmanager
async def misbehaving(
    answer: bytes, *, then_wait: bool = False, streamed: bytes | None = None
) -> AsyncGenerator[Misbehaving]:
    """Serve `answer` on a free port of loopback; with `then_wait`, leave the rest of the answer open.

    What is asked for as a stream is answered with `streamed`, where that is given.
    """
    served = Misbehaving()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        first, *lines = head.strip().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        body = json.loads(await reader.readexactly(int(headers["content-length"])))
        served.received.append(Received(first.split(" ")[1], headers, body))
        served.arrived.set()
        writer.write(streamed if streamed is not None and body.get("stream") else answer)
        try:
            await writer.drain()
            if then_wait:
                await reader.read()
                served.hung_up.set()
        except ConnectionError:
            served.hung_up.set()
        finally:
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with server:
        served.port = server.sockets[0].getsockname()[1]
        yield served


def http(status: str, body: str, **headers: str) -> bytes:
    """A whole HTTP response, such as `http("429 Too Many Requests", "{}", retry_after="7")`."""
    fields = {"content-type": "application/json", "content-length": str(len(body.encode())), "connection": "close"}
    fields |= {name.replace("_", "-"): value for name, value in headers.items()}
    lines = [f"HTTP/1.1 {status}", *(f"{name}: {value}" for name, value in fields.items()), "", body]
    return "\r\n".join(lines).encode()


def error(code: str | None, message: str, kind: str = "invalid_request_error", **more: Any) -> str:
    """An error as OpenAI words it."""
    return json.dumps({"error": {"message": message, "type": kind, "code": code, "param": None, **more}})


def completion(content: str | None = "Hi", **message: Any) -> str:
    """A chat completion."""
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": content, **message}}
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    return json.dumps({"id": "c1", "object": "chat.completion", "choices": [choice], "usage": usage})


def stream_head(length: int | None = None) -> bytes:
    """The head of a stream: of so many bytes, or up to the end of the connection."""
    given = f"content-length: {length}\r\n" if length is not None else ""
    return f"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n{given}connection: close\r\n\r\n".encode()


def event(data: Any) -> bytes:
    """One event of a stream."""
    return f"data: {data if isinstance(data, str) else json.dumps(data)}\n\n".encode()


def chunk(content: str | None, finish_reason: str | None = None) -> bytes:
    """One event with a piece of text."""
    delta = {} if content is None else {"content": content}
    return event({"id": "c1", "choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}]})
