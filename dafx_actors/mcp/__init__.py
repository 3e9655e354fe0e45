"""MCP servers as tools of an agent: `tools = [McpServer.stdio("files", "uvx", "mcp-server-files")]`.

Needs the extra `mcp`, which is imported when a server is first used. A server is started or connected to by the worker,
on its event loop, when the first turn asks for its tools, and is kept until `aclose()`. When it has gone away, the next
use connects anew; a call in flight fails and is not repeated, since it may have had its effect.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Mapping
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from dafx_actors.errors import ConfigurationError, McpToolFailed
from dafx_actors.mcp._address import Address, Http, Stdio
from dafx_actors.models import ToolDefinition
from dafx_actors.tools import Approval, ToolContext
from dafx_actors.transcript import Json

if TYPE_CHECKING:
    from dafx_actors.mcp._connection import Connection, Listed

__all__ = ["Http", "McpServer", "Stdio"]

_log = logging.getLogger(__name__)
_NOT_IN_NAMES = re.compile(r"[^a-zA-Z0-9_-]")
_LONGEST = 64


def _seconds(given: timedelta | float | None) -> float | None:
    return given.total_seconds() if isinstance(given, timedelta) else given


@attrs.define(kw_only=True, eq=False)
class McpServer:
    """A source of tools: those of one MCP server. Made by `stdio` or `streamable_http`."""

    name: str
    """Names it in errors, and among the sources of its agent."""
    address: Address
    prefix: str = ""
    """Put before the names of its tools, where those of several servers would clash."""
    allowed: frozenset[str] | None = None
    """The tools to take, by the server's names; None: all."""
    approval: Approval | None = None
    """For calls of all its tools; a predicate is asked with `name` (prefixed) and `arguments` (JSON)."""
    timeout: float | None = attrs.field(default=300.0, converter=_seconds)
    """Seconds that a call may take; None: for ever."""
    connect_timeout: float = 30.0
    """Seconds until the server must have answered its first request."""
    _connection: Connection | None = attrs.field(init=False, default=None, repr=False)
    _known: dict[str, str] = attrs.field(init=False, factory=dict[str, str], repr=False)
    """The server's names of its tools by those that the model uses, as they were last listed."""

    @classmethod
    def stdio(
        cls,
        name: str,
        command: str,
        *args: str,
        env: Mapping[str, str] | None = None,
        cwd: str | Path | None = None,
        prefix: str = "",
        allowed: Collection[str] | None = None,
        approval: Approval | bool = False,
        timeout: timedelta | float | None = 300.0,
    ) -> McpServer:
        """A server that the worker starts as a process, and talks to over its standard input and output.

        Args:
            name: See `McpServer.name`.
            command: The program.
            *args: Its arguments.
            env: Variables of its environment, added to PATH, HOME and the like. It inherits no others.
            cwd: Its working directory; the worker's by default.
            prefix: See `McpServer.prefix`.
            allowed: See `McpServer.allowed`.
            approval: See `McpServer.approval`; True: every call waits.
            timeout: See `McpServer.timeout`; or a timedelta.
        """
        address = Stdio(command=command, args=args, env=env, cwd=cwd)
        return cls._made(name, address, prefix, allowed, approval, timeout)

    @classmethod
    def streamable_http(
        cls,
        name: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        prefix: str = "",
        allowed: Collection[str] | None = None,
        approval: Approval | bool = False,
        timeout: timedelta | float | None = 300.0,
    ) -> McpServer:
        """A server that is reached by HTTP.

        Args:
            name: See `McpServer.name`.
            url: Of its endpoint, such as `http://localhost:8000/mcp`.
            headers: Sent with every request, such as `Authorization`.
            prefix: See `McpServer.prefix`.
            allowed: See `McpServer.allowed`.
            approval: See `McpServer.approval`; True: every call waits.
            timeout: See `McpServer.timeout`; or a timedelta.
        """
        return cls._made(name, Http(url=url, headers=headers), prefix, allowed, approval, timeout)

    @classmethod
    def _made(
        cls,
        name: str,
        address: Address,
        prefix: str,
        allowed: Collection[str] | None,
        approval: Approval | bool,
        timeout: timedelta | float | None,
    ) -> McpServer:
        return cls(
            name=name,
            address=address,
            prefix=prefix,
            allowed=None if allowed is None else frozenset(allowed),
            approval=Approval() if approval is True else approval or None,
            timeout=timeout,
        )

    async def tools(self) -> list[ToolDefinition]:
        """The tools that the server has now and `allowed` lets pass.

        What it lists is kept for as long as it promises to tell of changes.

        Raises:
            McpUnreachable: It cannot be started or reached.
        """
        listed = await self._listed()
        return [
            ToolDefinition(name=name, description=tool.description, parameters=tool.parameters)
            for name, tool in listed.items()
        ]

    async def call(self, name: str, arguments: Mapping[str, Json], context: ToolContext) -> Json:
        """Call a tool by the name that `tools` gave it.

        The server gets the idempotency key in the request's `_meta`, and its progress is reported to the context.

        Raises:
            McpToolFailed: The tool says that it failed, or there is no such tool.
            McpUnreachable: The server cannot be started or reached; nothing was called.
            McpConnectionLost: It went away during the call; the tool may have acted.
            TimeoutError: It took longer than `timeout`; the server was told to stop.
        """
        if name not in self._known:
            await self._listed()
        tool = self._known.get(name)
        if tool is None:
            raise McpToolFailed(self.name, name, f"There is no tool {name!r}.")
        try:
            return await (await self._connected()).call(tool, arguments, context, self.timeout)
        except _package(self.name).NotSent:
            # Such as one that was started anew and does not know the session: it has not seen the call.
            return await (await self._connected()).call(tool, arguments, context, self.timeout, again=True)

    async def aclose(self) -> None:
        """End the connection, and the process where there is one; calls in flight fail. It may be used again.

        Await it on the event loop that used the server.
        """
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.aclose()

    async def _listed(self) -> dict[str, Listed]:
        """The tools by the names that the model uses."""
        try:
            tools = await (await self._connected()).listed()
        except _package(self.name).NotSent:
            tools = await (await self._connected()).listed(again=True)
        named: dict[str, Listed] = {}
        for tool in tools:
            if self.allowed is not None and tool.name not in self.allowed:
                continue
            # Providers of models allow fewer characters than MCP does.
            name = _NOT_IN_NAMES.sub("_", self.prefix + tool.name)[:_LONGEST]
            if named.setdefault(name, tool) is not tool:
                _log.warning("%r of MCP server %r is left out: %r has its name already", tool.name, self.name, name)
        self._known = {name: tool.name for name, tool in named.items()}
        return named

    async def _connected(self) -> Connection:
        connection = self._connection
        if connection is None or not connection.is_usable():
            connection = self._connection = _package(self.name).Connection(self.name, self.address)
        return await connection.ready(self.connect_timeout)


def _package(server: str) -> Any:
    """What talks to servers. Not imported at the top: it takes long, and programs without MCP do not have it."""
    try:
        from dafx_actors.mcp import _connection
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"The MCP server {server!r} needs a package that is not installed ({error.name}). "
            'Install the extra: pip install "dafx-actors[mcp]"'
        ) from error
    return _connection
