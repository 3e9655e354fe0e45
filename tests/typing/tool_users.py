"""What must, and what must not, type-check in programs with tools. Never run; see `users.py`."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any, assert_type

from durabletask.task import RetryPolicy

from dafx_actors import Transcript, durable_agent
from dafx_actors.mcp import McpServer
from dafx_actors.tools import AgentTool, AnyTool, Approval, NotDone, ToolContext, as_tool, tool, tools_of

RETRY = RetryPolicy(first_retry_interval=timedelta(seconds=1), max_number_of_attempts=3)


@tool
async def trending(topic: str, *, context: ToolContext, most: int = 3) -> list[str]:
    context.logger.info("x")
    context.report_progress({"done": 1})
    assert_type(context.transcript, Transcript)
    assert_type(context.attempt, int)
    context.attempt = 2  # type: ignore[misc] # pyright: ignore[reportAttributeAccessIssue]
    return [topic] * most


@durable_agent
class Shop:
    instructions = "x"
    tools = (trending, as_tool("Other"), McpServer.stdio("files", "x", approval=True))

    def is_large(self, amount: int) -> bool:
        return amount > 5

    @tool(approval=is_large, effect="once", timeout=timedelta(minutes=1), parallel=False)
    def pay(self, amount: int) -> str:
        raise NotDone

    @tool(approval=Approval(when="is_large", timeout=60, on_timeout="fail"), retry=RETRY)
    async def lend(self, amount: int) -> int:
        return amount


async def use(context: ToolContext) -> None:
    assert_type(await trending("x", context=context), list[str])
    await trending(5, context=context)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    await trending("x")  # type: ignore[call-arg] # pyright: ignore[reportCallIssue]
    assert_type(Shop().pay(5), str)
    assert_type(await Shop().lend(amount=5), int)
    Shop().pay("5")  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]


assert_type(tools_of(Shop()), list[AnyTool])
assert_type(as_tool(Shop), AgentTool)
tool(effect="twice")  # type: ignore[call-overload] # pyright: ignore[reportArgumentType, reportCallIssue]
tool(timeout="5")  # type: ignore[call-overload] # pyright: ignore[reportArgumentType, reportCallIssue]
Approval(on_timeout="wait")  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
named: Callable[[Callable[[int], str]], Callable[[int], str]] = tool(name="x")


def untouched(function: Callable[[], int]) -> Any:
    return assert_type(tool(function), Callable[[], int])
