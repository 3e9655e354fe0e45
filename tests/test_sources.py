"""Sources of tools as they are: odd schemas, tools of one name, tools that change, sources that are down."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anyio
import pytest

from dafx_actors import durable_agent
from dafx_actors.errors import McpConnectionLost, McpUnreachable
from dafx_actors.mcp import McpServer
from dafx_actors.models import ToolDefinition
from dafx_actors.testing import AgentHost, ScriptedModel, call
from dafx_actors.tools import Approval
from dafx_actors.tools._fitted import MOST_DESCRIPTION, Unfit, fitted
from tests.test_tools import a_context

pytestmark = pytest.mark.anyio


class Source:
    """A source of one tool, which notes what is called."""

    def __init__(self, name: str, tool: str = "transfer", approval: Approval | None = None) -> None:
        self.name, self.approval = name, approval
        self.tool = ToolDefinition(name=tool, description="Transfers.", parameters={"type": "object"})
        self.called: list[str] = []
        self.down = 0
        """How often it cannot be reached yet."""

    async def tools(self) -> list[ToolDefinition]:
        if self.down:
            self.down -= 1
            raise McpUnreachable(self.name, "it is down")
        return [self.tool]

    async def call(self, name: str, arguments: Mapping[str, Any], context: Any) -> Any:
        self.called.append(name)
        return f"done by {self.name}"

    async def aclose(self) -> None: ...


def clerk(*sources: object, says: Any = None) -> type:
    @durable_agent(name="Clerk", model=ScriptedModel(says or call("transfer"), lambda r: str(result_in(r))))
    class Clerk:
        instructions = "Transfer."
        tools = sources

    return Clerk


def result_in(request: Any) -> Any:
    return request.messages[-1].contents[0].result


# --- Tools of one name --------------------------------------------------------------------------------------------


async def test_of_two_sources_with_a_tool_of_one_name_the_first_is_offered_asked_about_and_called(
    caplog: pytest.LogCaptureFixture,
) -> None:
    bank, weather = Source("bank", approval=Approval()), Source("weather")
    async with AgentHost(clerk(bank, weather)) as host:
        turn = await host.client.get_agent("Clerk").start("Go")
        await host.settled()
        [asked] = await host.client.pending_approvals("Clerk")
        assert bank.called == weather.called == []
        await host.client.approve(asked)
        assert (await turn).text == "done by bank"
    assert (bank.called, weather.called) == (["transfer"], [])
    left_out = [each.getMessage() for each in caplog.records if "left out" in each.getMessage()]
    assert len(left_out) == 1
    assert "'transfer' of 'weather'" in left_out[0]


async def test_a_source_that_comes_back_between_offer_and_call_does_not_take_the_call() -> None:
    """The model saw the offer of the second one, since the first was down; what it asks for is made there."""
    bank, weather = Source("bank"), Source("weather")
    bank.down = 1
    async with AgentHost(clerk(bank, weather)) as host:
        assert (await host.client.get_agent("Clerk").run("Go")).text == "done by weather"
    assert bank.called == []


async def test_a_tool_that_changed_after_its_approval_is_a_changed_call() -> None:
    bank = Source("bank", approval=Approval())
    async with AgentHost(clerk(bank)) as host:
        turn = await host.client.get_agent("Clerk").start("Go")
        await host.settled()
        [asked] = await host.client.pending_approvals("Clerk")
        parameters = {"type": "object", "properties": {"everything": {"type": "boolean", "default": True}}}
        bank.tool = ToolDefinition(name="transfer", description="Transfers all.", parameters=parameters)
        await host.client.approve(asked)
        assert "is not what it was when it was offered; the call was not made" in (await turn).text
    assert bank.called == []


# --- Sources that are down ----------------------------------------------------------------------------------------


async def test_one_of_several_that_is_down_does_not_stop_the_agent(caplog: pytest.LogCaptureFixture) -> None:
    bank, weather = Source("bank"), Source("weather", "look")
    weather.down = 100
    async with AgentHost(clerk(bank, weather)) as host:
        assert (await host.client.get_agent("Clerk").run("Go")).text == "done by bank"
    assert "The tools of 'weather' are not offered now" in caplog.text


async def test_a_source_that_is_down_is_tried_again_and_shown_and_its_error_is_typed() -> None:
    bank = Source("bank")
    bank.down = 2
    async with AgentHost(clerk(bank)) as host:
        turn = await host.client.get_agent("Clerk").start("Go")
        await host.settled()
        status = await turn.status()
        assert status.state == "retrying"
        assert "'bank' cannot be used: it is down" in (status.error or "")
        await host.fast_forward(turn)
        assert (await turn).text == "done by bank"
        bank.down = 1_000
        again = await host.client.get_agent("Clerk").start("Go")
        with pytest.raises(McpUnreachable, match="it is down"):
            await host.fast_forward(again)


# --- Odd schemas --------------------------------------------------------------------------------------------------


def tool_of(schema: Any, description: str = "") -> ToolDefinition:
    return ToolDefinition(name="t", description=description, parameters=schema)


EMPTY = {"type": "object", "properties": {}}
A, B = {"a": {"type": "string"}}, {"b": {"type": "string"}}


@pytest.mark.parametrize(
    ("schema", "fit"),
    [
        ({}, EMPTY),
        (None, EMPTY),
        ({"type": "object"}, EMPTY),
        ({"$schema": "x"}, {"$schema": "x", **EMPTY}),
        ({"type": ["object", "null"]}, EMPTY),
        ({"properties": A, "required": ["a", "gone"]}, {"type": "object", "properties": A, "required": ["a"]}),
        ({"anyOf": [{"properties": A, "required": ["a"]}, {"properties": B}]}, {"type": "object", "properties": A | B}),
        (
            {"allOf": [{"properties": A, "required": ["a"]}, {"$ref": "#/$defs/b"}], "$defs": {"b": {"properties": B}}},
            {"$defs": {"b": {"properties": B}}, "type": "object", "properties": A | B, "required": ["a"]},
        ),
        (
            {"$ref": "#/$defs/b", "$defs": {"b": {"properties": B}}},
            {"$defs": {"b": {"properties": B}}, "type": "object", "properties": B},
        ),
        ({"$ref": "#"}, EMPTY),
    ],
)  # fmt: skip
def test_schemas_that_are_made_fit(schema: Any, fit: Any) -> None:
    assert fitted(tool_of(schema)).parameters == fit


def test_a_schema_whose_parts_refer_to_one_another_takes_no_time() -> None:
    def choices(level: int) -> dict[str, Any]:
        return {"anyOf": [{"$ref": f"#/$defs/d{level}"}, {"$ref": f"#/$defs/d{level}"}] * 50}

    defs: dict[str, Any] = {f"d{level}": choices((level + 1) % 8) for level in range(8)}
    defs["d3"]["properties"] = A
    fit = fitted(tool_of({**choices(0), "$defs": defs}))
    assert fit.parameters["properties"] == A


@pytest.mark.parametrize("schema", [5, [], {"type": "string"}, {"default": float("nan")}])
def test_schemas_that_cannot_be_made_fit(schema: Any) -> None:
    with pytest.raises(Unfit):
        fitted(tool_of(schema))


def test_a_description_that_is_too_long_is_cut() -> None:
    said = fitted(tool_of({}, "x" * 3_000)).description
    assert (len(said), said[-4:]) == (MOST_DESCRIPTION, "x...")


async def test_a_tool_that_cannot_be_offered_is_left_out_and_named(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    odd, bank = Source("odd", "look"), Source("bank")
    odd.tool = ToolDefinition(name="look", description="", parameters={"type": "string"})
    async with AgentHost(clerk(odd, bank)) as host:
        assert (await host.client.get_agent("Clerk").run("Go")).text == "done by bank"
    assert "The tool 'look' of 'odd' is left out" in caplog.text


# --- Answers of MCP servers ---------------------------------------------------------------------------------------

SERVER = """
import json, sys
GOOD = [{"name": "broken"}, {"name": "ping", "description": 5, "inputSchema": {}}]
TOOLS = [*GOOD, 7, {"name": "bad", "inputSchema": 3}]
for line in sys.stdin:
    m = json.loads(line); i, method = m.get("id"), m.get("method")
    def say(result): print(json.dumps({"jsonrpc": "2.0", "id": i, "result": result}), flush=True)
    if method == "initialize":
        told = {"name": "s", "version": "1"}
        say({"protocolVersion": "2025-06-18", "capabilities": {"tools": {}}, "serverInfo": told})
    elif method == "tools/list": say({"tools": TOOLS})
    elif method == "tools/call" and sys.argv[1] == "garbage":
        print("[INFO] working", flush=True)
        print('{"jsonrpc": "2.0", "id": %s, "result": {"content": [NaN' % json.dumps(i), flush=True)
    elif method == "tools/call": say(json.loads(sys.argv[2]))
    elif i is not None: say({})
"""


def server(tmp_path: Path, mode: str, result: Any = None) -> McpServer:
    script = tmp_path / "server.py"
    script.write_text(SERVER)
    return McpServer.stdio("odd", sys.executable, str(script), mode, json.dumps(result))


async def test_one_broken_tool_does_not_take_the_good_ones_along(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    odd = server(tmp_path, "plain")
    try:
        assert [tool.name for tool in await odd.tools()] == ["broken", "ping"]
    finally:
        await odd.aclose()
    assert "A tool of MCP server 'odd' is left out" in caplog.text


async def test_an_answer_that_cannot_be_read_fails_its_call_at_once(tmp_path: Path) -> None:
    odd = server(tmp_path, "garbage")
    try:
        with anyio.fail_after(60), pytest.raises(McpConnectionLost, match="an answer cannot be read"):
            await odd.call("ping", {}, a_context())
    finally:
        await odd.aclose()


def a_text(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


@pytest.mark.parametrize(
    ("result", "seen"),
    [
        ({"content": [a_text('{"n": 1}')], "structuredContent": {"n": 1}}, {"n": 1}),
        ({"content": [a_text("read me")], "structuredContent": {}}, "read me"),
        ({"content": [a_text("read me")], "structuredContent": {"n": 1}}, 'read me\n{"n": 1}'),
        ({"content": [a_text("odd")], "structuredContent": {"result": "odd"}}, {"result": "odd"}),
        ({"content": [], "structuredContent": {"n": 1}}, {"n": 1}),
    ],
)
async def test_structured_content_does_not_hide_what_is_said_beside_it(tmp_path: Path, result: Any, seen: Any) -> None:
    odd = server(tmp_path, "plain", result)
    try:
        assert await odd.call("ping", {}, a_context()) == seen
    finally:
        await odd.aclose()


@pytest.mark.parametrize("result", [float("nan"), {"value": [float("inf")]}], ids=["nan", "inf"])
async def test_a_result_that_json_cannot_hold_fails_its_call_and_not_the_turn(result: Any) -> None:
    class Odd(Source):
        async def call(self, name: str, arguments: Mapping[str, Any], context: Any) -> Any:
            self.called.append(name)
            return result

    odd = Odd("odd")
    async with AgentHost(clerk(odd)) as host:
        answer = await host.client.get_agent("Clerk").run("Go")
    assert odd.called == ["transfer"]
    assert "it has acted; its result could not be kept" in answer.text
    assert "JSON has no" in answer.text


@pytest.mark.parametrize("value", ["NaN", "-Infinity"])
async def test_nan_from_an_mcp_server_fails_its_call_and_not_the_turn(tmp_path: Path, value: str) -> None:
    """As it comes over the wire: Python's own `json` writes it, and no other reads it."""
    result = {"content": [], "structuredContent": {"value": float(value)}}
    mcp = server(tmp_path, "plain", result)
    async with AgentHost(clerk(mcp, says=call("ping"))) as host:
        answer = await host.client.get_agent("Clerk").run("Go")
    await mcp.aclose()
    assert "JSON has no" in answer.text
