"""What the tests of turns share: models that ask for tools, and facts that nobody announces."""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import anyio
from anyio.abc import Process
from durabletask.client import AsyncTaskHubGrpcClient

from dafx_actors import (
    AgentThread,
    ChatMessage,
    DurableAIAgentClient,
    ModelReply,
    ModelRequest,
    PendingApproval,
    PendingOutcome,
    Transcript,
    TurnHandle,
    TurnStatus,
    UsageStats,
    durable_agent,
)
from dafx_actors.ids import call_key
from dafx_actors.models import Model
from dafx_actors.testing import ScriptedModel
from dafx_actors.transcript import FunctionCallContent, FunctionResultContent

T = TypeVar("T")
Asked = tuple[str, Mapping[str, Any]]


def asks(*calls: Asked, ids: str | None = None) -> ModelReply:
    """A reply that asks for tools, by name and arguments; `ids` is the id of every call."""
    contents = [
        FunctionCallContent(ids or f"call-{number}", name, arguments) for number, (name, arguments) in enumerate(calls)
    ]
    usage = UsageStats(10, 5, 15)
    return ModelReply(message=ChatMessage("assistant", contents), usage=usage, finish_reason="tool_calls")


def results(request: ModelRequest) -> list[Any]:
    """What the tools gave that the model is told of last."""
    return [each.result for each in request.messages[-1].contents if isinstance(each, FunctionResultContent)]


def tells(request: ModelRequest) -> str:
    """A model's answer that repeats what its tools gave."""
    return "; ".join(str(result) for result in results(request))


def using(*replies: Any) -> ScriptedModel:
    """A model that asks for tools as it is told to, and then tells what they gave."""
    return ScriptedModel(*replies, tells)


def whenever_asked(*calls: Asked) -> ScriptedModel:
    """A model that asks for these tools after each request; also where its process was started again meanwhile."""
    return ScriptedModel(lambda request: tells(request) if results(request) else asks(*calls))


def agent(model: Model, *tools: Any, name: str = "Worker", **how: Any) -> type:
    """An agent with these functions as its tools."""

    @durable_agent(name=name, model=model, **how)
    class Agent:
        instructions = "Do what you are asked."

    Agent.tools = list(tools)  # type: ignore[attr-defined]
    return Agent


async def until(check: Callable[[], Awaitable[T]]) -> T:
    """Wait for a fact that nobody announces."""
    with anyio.fail_after(60):
        while not (found := await check()):
            await anyio.sleep(0.005)
    return found


async def asked_of(
    client: DurableAIAgentClient, agent: str = "Worker", thread: AgentThread | str | None = None, kind: str = "approval"
) -> Any:
    """What a person is to decide, as soon as there is something."""
    look = client.pending_approvals if kind == "approval" else client.pending_outcomes

    async def found() -> list[PendingApproval] | list[PendingOutcome]:
        return await look(agent, thread)

    return (await until(found))[0]


async def in_state(handle: TurnHandle[Any], *states: str) -> TurnStatus:
    """The status of a turn, as soon as it is in one of these states."""

    async def reached() -> TurnStatus | None:
        status = await handle.status()
        return status if status.state in states else None

    reached_at_last = await until(reached)
    assert reached_at_last is not None
    return reached_at_last


def results_in(transcript: Transcript) -> list[FunctionResultContent]:
    """The results of all tool calls that a thread remembers."""
    return [each for message in transcript for each in message.contents if isinstance(each, FunctionResultContent)]


def is_balanced(transcript: Transcript) -> bool:
    """Whether every tool call is followed by its result, before anything else is said."""
    opened: list[str] = []
    for message in transcript:
        answered = [each.call_id for each in message.contents if isinstance(each, FunctionResultContent)]
        if opened and not answered:
            return False
        for call_id in answered:
            if call_id not in opened:
                return False
            opened.remove(call_id)
        opened += [each.call_id for each in message.contents if isinstance(each, FunctionCallContent)]
    return not opened


def key_of(turn: str, step: int = 1, index: int = 0, thread: AgentThread | str = "here", agent: str = "Worker") -> str:
    """The key of a tool call, by its place: the id of the turn that it runs, where an agent is the tool."""
    return call_key(AgentThread(agent, str(thread)), turn, step, index)


@asynccontextmanager
async def sdk(endpoint: str) -> AsyncGenerator[AsyncTaskHubGrpcClient]:
    """durabletask's own client, as an operator or another system would use it."""
    async with AsyncTaskHubGrpcClient(host_address=endpoint.removeprefix("http://")) as client:
        yield client


@asynccontextmanager
async def program(source: str, *arguments: str, **how: Any) -> AsyncGenerator[Process]:
    """A Python program in a process of its own, which has printed a line; killed at the end."""
    async with await anyio.open_process([sys.executable, "-c", source, *arguments], stderr=None, **how) as process:
        try:
            await line_of(process)
            yield process
        finally:
            if process.returncode is None:
                process.kill()


async def line_of(process: Process) -> str:
    """The next line that a program prints.

    Byte by byte, so that none of the line after it is taken, and never less than a line: where Python does not buffer
    (PYTHONUNBUFFERED), `print` writes a text and its line end one after the other, and they may come apart.
    """
    assert process.stdout is not None
    line = b""
    while not line.endswith(b"\n"):
        line += await process.stdout.receive(1)
    return line.decode().strip()
