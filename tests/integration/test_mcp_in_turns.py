"""Tools of an MCP server, in turns: offered, approved, called, and corrected by the model."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from dafx_actors import Approval
from dafx_actors.mcp import McpServer
from tests.integration.conftest import Hosting
from tests.integration.turns import agent, asked_of, asks, results, tells, using

pytestmark = pytest.mark.anyio
SERVER = str(Path(__file__).parent.parent / "data" / "mcp_server.py")


async def test_a_servers_tools_are_offered_and_called(hosting: Hosting) -> None:
    server = McpServer.stdio("sums", sys.executable, SERVER, "stdio", allowed=["add", "fail"])
    model = using(asks(("add", {"a": 2, "b": 3}), ("fail", {"why": "too late"})), tells)
    async with hosting(agent(model, server)) as client:
        answer = await client.get_agent("Worker").run("Add.")
    assert {tool.name for tool in model.requests[0].tools} == {"add", "fail"}
    added, failed = results(model.requests[1])
    assert "5" in str(added)
    assert "too late" in str(failed)
    assert answer.text


async def test_a_servers_tool_waits_for_its_approval(hosting: Hosting, tmp_path: Path) -> None:
    rule = Approval(when=lambda name, arguments: name == "add" and arguments["a"] > 1)
    server = McpServer.stdio("sums", sys.executable, SERVER, "stdio", allowed=["add"], approval=rule)
    model = using(asks(("add", {"a": 2})), asks(("add", {"a": 1})), tells)
    async with hosting(agent(model, server)) as client:
        turn = await client.get_agent("Worker").start("Add.")
        await client.deny(await asked_of(client), "It is too much.")
        await turn
    assert "It is too much." in str(results(model.requests[1])[0])
    assert "2" in str(results(model.requests[2])[-1])
