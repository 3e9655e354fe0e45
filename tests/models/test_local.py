"""The small model, for real; and the OpenAI adapter against its server, which is one that many others are like."""

# Whether a process is shared, and gone, shows only in the process.
# pyright: reportPrivateUsage=false

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import anyio
import attrs
import pytest

from dafx_actors.errors import ModelError
from dafx_actors.models import ModelDelta, ModelReply, ModelRequest, StreamingModel, ToolDefinition, _server
from dafx_actors.models.local import LocalModel
from dafx_actors.models.openai import OpenAIChatModel
from dafx_actors.transcript import ChatMessage, DataContent, UriContent

JOKE = ModelRequest(
    messages=(ChatMessage("system", "You are good at telling jokes."), ChatMessage("user", "Tell me a joke.")),
    options={"max_tokens": 16},
)


def adapter(server: _server.Lease, api_key: str | None = None) -> OpenAIChatModel:
    return OpenAIChatModel(
        LocalModel.name,
        base_url=f"{server.url}/v1",
        api_key=api_key or server.api_key,
        options={"temperature": 0, "seed": 1},
        trust_env=False,
        keep_alive=False,
    )


@pytest.mark.anyio
async def test_adapter_completes(local_server: _server.Lease) -> None:
    """An answer of a real model, with usage, and cut where it was told to be."""
    model = adapter(local_server)
    reply = await model.complete(JOKE)
    await model.aclose()
    assert reply.message.role == "assistant"
    assert reply.message.text
    assert reply.finish_reason == "length"
    assert reply.usage is not None
    assert reply.usage.output_tokens == 16
    assert reply.usage.total_tokens == reply.usage.input_tokens + 16


def without_id(reply: ModelReply) -> ModelReply:
    """What is the same for the same question."""
    return attrs.evolve(reply, message=attrs.evolve(reply.message, extra={}))


@pytest.mark.anyio
async def test_adapter_streams(local_server: _server.Lease) -> None:
    """The pieces make up the same answer, and the whole reply comes last."""
    model = adapter(local_server)
    whole = await model.complete(JOKE)
    *pieces, last = [piece async for piece in model.stream(JOKE)]
    await model.aclose()
    assert isinstance(last, ModelReply)
    assert without_id(last) == without_id(whole)
    assert "".join(piece.text for piece in pieces if isinstance(piece, ModelDelta)) == whole.message.text
    assert len(pieces) > 1


@pytest.mark.anyio
async def test_adapter_on_two_loops(local_server: _server.Lease) -> None:
    """One model can be used on one event loop after another, and on two at a time."""
    model = adapter(local_server)

    async def once() -> str:
        reply = await model.complete(JOKE)
        await model.aclose()
        return reply.message.text

    here = await model.complete(JOKE)
    elsewhere = await anyio.to_thread.run_sync(anyio.run, once)
    assert (await once()) == here.message.text == elsewhere


@pytest.mark.anyio
async def test_adapter_sends_a_schema(local_server: _server.Lease) -> None:
    """An answer that is held to a schema has its form."""
    schema = {
        "type": "object",
        "properties": {"likes_cats": {"type": "boolean"}},
        "required": ["likes_cats"],
        "additionalProperties": False,
    }
    model = adapter(local_server)
    asked = (ChatMessage("user", "Do you like cats?"),)
    reply = await model.complete(ModelRequest(messages=asked, response_schema=schema))
    await model.aclose()
    assert list(json.loads(reply.message.text)) == ["likes_cats"]


@pytest.mark.anyio
async def test_adapter_with_a_wrong_key(local_server: _server.Lease) -> None:
    """Nobody without the key gets an answer, though the port is open to everyone on the machine."""
    model = adapter(local_server, api_key="guess")
    with pytest.raises(ModelError) as raised:
        await model.complete(JOKE)
    await model.aclose()
    assert (raised.value.kind, raised.value.status) == ("authentication", 401)


@pytest.mark.anyio
async def test_adapter_with_a_long_conversation(local_server: _server.Lease) -> None:
    """A conversation that does not fit says so."""
    model = adapter(local_server)
    with pytest.raises(ModelError) as raised:
        await model.complete(ModelRequest(messages=(ChatMessage("user", "word " * 1000),)))
    await model.aclose()
    assert (raised.value.kind, raised.value.retryable) == ("context_length", False)


@pytest.mark.anyio
async def test_models_share_one_server(weights: Path) -> None:
    """Models that are alike have one process between them; the last to close stops it, and nothing is left."""
    threads = set(threading.enumerate())
    first, second = LocalModel(context=640, slots=1), LocalModel(context=640, slots=1)
    assert isinstance(first, StreamingModel)
    same: list[str] = []

    async def ask(model: LocalModel) -> None:
        same.append((await model.complete(JOKE)).message.text)

    async with anyio.create_task_group() as group:
        group.start_soon(ask, first)
        group.start_soon(ask, second)
    assert same[0] == same[1] != ""
    assert first._lease is not None
    assert second._lease is not None
    assert first._lease.url == second._lease.url
    process = first._lease._server.process

    await first.aclose()
    assert process.poll() is None
    streamed = [piece async for piece in second.stream(JOKE)][-1]
    assert isinstance(streamed, ModelReply)
    assert without_id(streamed) == without_id(await second.complete(JOKE))
    await second.aclose()
    await second.aclose()
    assert process.poll() == 0
    # The event loop's own pools end with it.
    left = {thread for thread in threading.enumerate() if not thread.name.startswith(("AnyIO worker", "asyncio_"))}
    assert left <= threads


@pytest.mark.anyio
async def test_server_that_died(weights: Path) -> None:
    """A server that was killed is one failed call at most; the next call starts another."""
    model = LocalModel(context=512, slots=1)
    before = await model.complete(JOKE)
    assert model._lease is not None
    process = model._lease._server.process
    process.kill()
    process.wait()
    after = await model.complete(JOKE)
    assert after.message.contents == before.message.contents
    await model.aclose()


@pytest.mark.anyio
async def test_a_file_that_is_no_model(tmp_path: Path) -> None:
    """The server's own error comes out, and its process is gone."""
    pytest.importorskip("xllamacpp")
    wrong = tmp_path / "wrong.gguf"
    wrong.write_bytes(b"not a model")
    model = LocalModel(weights=wrong)
    with pytest.raises(ModelError, match="did not start") as raised:
        await model.complete(JOKE)
    assert not raised.value.retryable
    await model.aclose()


@pytest.mark.anyio
@pytest.mark.parametrize(
    "request_",
    [
        ModelRequest(messages=JOKE.messages, tools=(ToolDefinition(name="f", description="", parameters={}),)),
        ModelRequest(messages=(ChatMessage("user", (DataContent.from_bytes(b"\x89PNG", "image/png"),)),)),
        ModelRequest(messages=(ChatMessage("user", (UriContent("https://a/b.png", "image/png"),)),)),
    ],
    ids=["tools", "image", "image by URI"],
)
async def test_what_the_small_model_cannot_do(request_: ModelRequest) -> None:
    """Tools and images are refused, and not left out, without a server being started for it."""
    model = LocalModel()
    with pytest.raises(ModelError, match="local model") as raised:
        await model.complete(request_)
    assert raised.value.kind == "bad_request"
    assert model._lease is None


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX process groups")
def test_the_server_ends_with_its_program(weights: Path) -> None:
    """A program that is killed, or that just ends, leaves no server behind; Ctrl-C alone does not stop it."""
    program = """
import os, signal, sys
from pathlib import Path
from dafx_actors.models import _server
lease = _server.lease(_server.Settings(name="m", weights=Path(sys.argv[1]), context=512, slots=1, threads=1))
# Not by `print`, which a signal may find at work.
signal.signal(signal.SIGINT, lambda *_: os.write(1, f"interrupted {lease.alive}\\n".encode()))
print(lease._server.process.pid, flush=True)
sys.stdin.readline()
"""
    for killed in (True, False):
        with subprocess.Popen(
            [sys.executable, "-c", program, str(weights)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        ) as running:
            assert running.stdin is not None
            assert running.stdout is not None
            server = int(running.stdout.readline())
            os.killpg(running.pid, signal.SIGINT)
            assert running.stdout.readline() == "interrupted True\n"
            if killed:
                running.kill()
            else:
                running.stdin.write("\n")
                running.stdin.flush()
        while _alive(server):  # bounded by the test's time
            time.sleep(0.01)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # A container without an init keeps the dead of whoever died first.
    stat = Path(f"/proc/{pid}/stat")
    return not (stat.exists() and stat.read_text().rpartition(")")[2].split()[0] == "Z")
