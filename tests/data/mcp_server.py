"""An MCP server for the tests: `python mcp_server.py stdio|http PORT`."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Annotated, Any

from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp_types import (
    AudioContent,
    BlobResourceContents,
    CallToolResult,
    EmbeddedResource,
    ImageContent,
    TextContent,
    TextResourceContents,
)
from pydantic import BaseModel, Field

server = MCPServer("tests")
calls = Path(os.environ.get("CALLS", os.devnull))


def note(what: str) -> None:
    with calls.open("a") as file:
        file.write(f"{what}\n")


class Sum(BaseModel):
    value: int


@server.tool()
def add(a: Annotated[int, Field(description="The first.")], b: int = 1) -> Sum:
    """Add."""
    return Sum(value=a + b)


@server.tool(structured_output=False)
def say(text: str) -> list[str]:
    """Say it twice."""
    return [text, text]


@server.tool()
def fail(why: str) -> str:
    """Fail."""
    raise ToolError(why)


@server.tool(structured_output=False)
def show() -> CallToolResult:
    """All kinds of contents."""
    return CallToolResult(
        content=[
            TextContent(type="text", text="Look:"),
            ImageContent(type="image", data="AAAA", mime_type="image/png"),
            AudioContent(type="audio", data="AAAA", mime_type="audio/wav"),
            EmbeddedResource(type="resource", resource=TextResourceContents(uri="file:///a.txt", text="inside")),
            EmbeddedResource(type="resource", resource=BlobResourceContents(uri="file:///a.bin", blob="AAAA")),
        ]
    )


@server.tool()
def pid() -> int:
    """The server's process."""
    return os.getpid()


@server.tool(name="odd.name/é")
def odd() -> str:
    """Has a name that models cannot use."""
    return "odd"


@server.tool()
async def wait(seconds: float) -> str:
    """Act, then wait."""
    note("acted")
    await asyncio.sleep(seconds)
    return "waited"


@server.tool()
async def work(context: Context[Any, Any]) -> str:
    """Report progress."""
    await context.report_progress(1, 2, "half")
    meta = context.request_context.meta or {}
    return str(dict(meta).get("dafx-actors/idempotencyKey"))


@server.tool()
async def echo(context: Context[Any, Any], fails: bool = False) -> str:
    """Repeat what it was sent: the variable SERVICE_TOKEN, and the headers."""
    sent: Any = context.request_context.request
    said = f"{os.environ.get('SERVICE_TOKEN')} {dict(sent.headers) if sent else {}}"
    await context.report_progress(1, 2, said)
    if fails:
        raise ToolError(said)
    return said


@server.tool()
async def grow(context: Context[Any, Any]) -> str:
    """Add a tool."""

    def grown() -> str:
        return "grown"

    server.add_tool(grown)
    await context.notify_tools_changed()
    await context.session.send_tool_list_changed()
    return "done"


if __name__ == "__main__":
    if sys.argv[1] == "stdio":
        server.run("stdio")
    else:
        server.run("streamable-http", host="127.0.0.1", port=int(sys.argv[2]))
