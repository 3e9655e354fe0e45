"""A real scheduler over a socket, our worker and client on the test's loop, and the peer in a process of its own."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, TypeAlias

import anyio
import anyio.lowlevel
import grpc.aio
import pytest
from anyio.abc import Process
from anyio.streams.buffered import BufferedByteReceiveStream

from dafx_actors import DurableAIAgentClient, DurableAIAgentWorker, ModelRequest, durable_agent
from dafx_actors.scheduler import EmbeddedScheduler
from dafx_actors.scheduler.hosted import hosted_async
from dafx_actors.testing import ScriptedModel
from tests.conftest import peer_python_or_skip

_PROGRAM = Path(__file__).with_name("peer_side.py")
_LONGEST_LINE = 1 << 24


class Peer:
    """The peer in a process of its own; see `peer_side.py`."""

    def __init__(self, process: Process, endpoint: str) -> None:
        self._endpoint = endpoint
        assert process.stdin is not None
        assert process.stdout is not None
        self._process = process
        self._in = process.stdin
        self._out = BufferedByteReceiveStream(process.stdout)

    async def ask(self, do: str, **asked: Any) -> Any:
        """Have it do something, and give what came of it."""
        await self._in.send(json.dumps({"do": do, **asked}).encode() + b"\n")
        with anyio.fail_after(90):
            line = await self._out.receive_until(b"\n", _LONGEST_LINE)
        reply = json.loads(line)
        assert "raised" not in reply, reply["raised"]
        return reply["result"]

    async def host(self, *agents: str, filters: bool = True) -> None:
        """Start its worker, and wait until the scheduler knows of it, where that tells."""
        await self.ask("start_worker", agents=agents, filters=filters)
        async with grpc.aio.insecure_channel(self._endpoint.removeprefix("http://")) as channel:
            with anyio.fail_after(60):
                while (found := await hosted_async(channel)) is not None and not found.workers:
                    await anyio.lowlevel.checkpoint()

    async def kill(self) -> None:
        """End it as a crash would."""
        self._process.kill()
        await self._process.wait()


Hosting: TypeAlias = Callable[..., AbstractAsyncContextManager[None]]


@pytest.fixture
def endpoint(tmp_path: Path) -> Any:
    with EmbeddedScheduler(db=tmp_path / "dafx.db").on_a_thread() as scheduler:
        yield scheduler.endpoint


@pytest.fixture
async def peer(endpoint: str) -> AsyncGenerator[Peer]:
    """The peer's process: it hosts nothing before it is asked to."""
    process = await anyio.open_process(
        [str(peer_python_or_skip()), "-W", "ignore", str(_PROGRAM), endpoint], stderr=None
    )
    try:
        yield Peer(process, endpoint)
    finally:
        with anyio.CancelScope(shield=True):
            with contextlib.suppress(TimeoutError), anyio.fail_after(30):
                assert process.stdin is not None
                await process.stdin.aclose()  # it ends when it has no more to read
                await process.wait()
            if process.returncode is None:
                process.kill()
            await process.aclose()


@pytest.fixture
async def client(endpoint: str) -> AsyncGenerator[DurableAIAgentClient]:
    async with DurableAIAgentClient.connect(endpoint) as client:
        yield client


@pytest.fixture
def hosting(endpoint: str) -> Hosting:
    """Our worker, for as long as `async with` lasts."""

    @asynccontextmanager
    async def host(*agents: object, orchestrators: tuple[Callable[..., Any], ...] = ()) -> AsyncGenerator[None]:
        worker = DurableAIAgentWorker.connect(endpoint)
        worker.add_agent(*agents)
        for orchestrator in orchestrators:
            worker.add_orchestrator(orchestrator)
        async with worker:
            yield

    return host


def echo(request: ModelRequest) -> str:
    """Answers as the peer's stub does; both see the instructions, too."""
    return f"{request.messages[-1].text} ({len(request.messages)} messages)"


def agent_named(name: str = "Joker", model: ScriptedModel | None = None) -> type:
    @durable_agent(name=name, model=model or ScriptedModel(echo))
    class Agent:
        instructions = "Be brief."

    return Agent
