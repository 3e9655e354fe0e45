"""One connection to an MCP server, owned by a task of its own.

The package `mcp` opens cancel scopes that must be left in the task that entered them, and turns ask from many tasks, at
times that have nothing to do with each other. So the connection's task enters and leaves; calls only pass messages.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack
from typing import Any, cast

import anyio
import attrs
import httpx2
import mcp_types
from mcp import Client, MCPError, StdioServerParameters
from mcp.client.stdio import stdio_client
from mcp.client.streamable_http import streamable_http_client
from mcp.client.subscriptions import ListenNotSupportedError, SubscriptionLost
from pydantic import ValidationError

from dafx_actors import _secrets
from dafx_actors._json.shapes import shown
from dafx_actors._raised import safe, text_of
from dafx_actors._secrets import without
from dafx_actors.errors import McpConnectionLost, McpToolFailed, McpUnreachable
from dafx_actors.mcp._address import Address, Stdio
from dafx_actors.tools import ToolContext
from dafx_actors.transcript import Json

_log = logging.getLogger(__name__)
_PAGES = 1000
"""At most, so that a server whose pages never end cannot hold a turn for ever."""
_IDEMPOTENCY_KEY = "dafx-actors/idempotencyKey"


class NotSent(Exception):
    """The server refused the request before it looked at it, or never got it."""


@attrs.frozen
class Listed:
    """A tool as the server lists it."""

    name: str
    description: str
    parameters: Mapping[str, Json]


class Connection:
    """A connection that is being made, is there, or is over. It is never made anew: that is another connection."""

    def __init__(self, server: str, address: Address) -> None:
        self._server = server
        self._address = address
        self._loop = asyncio.get_running_loop()
        self._client: asyncio.Future[Client] = self._loop.create_future()
        self._over = anyio.Event()
        """Somebody wants it closed, or the server has gone."""
        self._tools: tuple[Listed, ...] | None = None
        self._tells_changes = False
        self._changes = 0
        self._in_flight = 0
        self._reason: BaseException | None = None
        self._garbled: asyncio.Future[str] = self._loop.create_future()
        """What was sent in place of an answer, and is none."""
        self._task = self._loop.create_task(self._run(), name=f"mcp-{server}")
        _secrets.guard_logs()

    def is_usable(self) -> bool:
        """Whether it can be used, here and now."""
        return not self._over.is_set() and not self._task.done() and self._loop is asyncio.get_running_loop()

    async def ready(self, seconds: float) -> Connection:
        """Wait until it is there.

        Raises:
            McpUnreachable: It could not be made.
        """
        try:
            await asyncio.wait_for(asyncio.shield(self._client), seconds)
        except TimeoutError:
            await self.aclose()
            raise McpUnreachable(self._server, f"it did not answer within {seconds:g} s") from None
        return self

    async def aclose(self) -> None:
        """End it, and wait until nothing is left of it."""
        self._over.set()
        if self._loop is not asyncio.get_running_loop():
            return  # that loop is gone, and all that ran on it
        if not self._client.done():
            self._task.cancel()
        await asyncio.wait([self._task])

    # --- The connection's own task --------------------------------------------------------------------------------

    async def _run(self) -> None:
        try:
            async with AsyncExitStack() as stack:
                transport = _watched(await self._transport(stack), self._over, self._is_garbled)
                client = Client(transport, cache=None, message_handler=self._notified)
                await stack.enter_async_context(client)
                self._client.set_result(client)
                async with anyio.create_task_group() as group:
                    group.start_soon(self._listen, client)
                    await self._over.wait()
                    group.cancel_scope.cancel()
        except (asyncio.CancelledError, KeyboardInterrupt, SystemExit) as error:
            self._reason = error
            raise
        except BaseException as error:  # noqa: BLE001 - whoever uses the connection is told
            self._reason = error
        finally:
            self._over.set()
            self._tools = None
            if not self._client.done():
                self._client.set_exception(McpUnreachable(self._server, _told(self._reason)))
            self._client.exception()  # it may be that nobody waits any more
            if self._reason is not None:
                _log.info("The connection to MCP server %r ended: %s", self._server, _told(self._reason))

    async def _transport(self, stack: AsyncExitStack) -> Any:
        address = self._address
        if isinstance(address, Stdio):
            return stdio_client(
                StdioServerParameters(
                    command=address.command,
                    args=list(address.args),
                    env=None if address.env is None else dict(address.env),
                    cwd=address.cwd,
                )
            )
        # No bound on reading: how long a call may take is the call's to say.
        timeout = httpx2.Timeout(30.0, read=None)
        http = httpx2.AsyncClient(headers=dict(address.headers or {}), timeout=timeout)
        await stack.enter_async_context(http)
        return streamable_http_client(address.url, http_client=http)

    async def _notified(self, message: Any) -> None:
        if isinstance(message, mcp_types.ToolListChangedNotification):
            self._changed()

    def _is_garbled(self, error: Exception) -> None:
        """A line could not be read. One that was to be an answer will not come again: whoever waits is told."""
        line = _line_of(error)
        if line is None or ('"jsonrpc"' in line and '"id"' in line):
            if not self._garbled.done():
                self._garbled.set_result(without(line or text_of(error)))
            self._over.set()

    async def _listen(self, client: Client) -> None:
        """Take note of changes of the tools, where the server tells of them."""
        capability = client.server_capabilities.tools
        if capability is None or not capability.list_changed:
            return
        self._tells_changes = True
        try:
            async with client.listen(tools_list_changed=True) as subscription:
                self._changed()  # what was listed before it began
                async for _ in subscription:
                    self._changed()
        except ListenNotSupportedError:
            return  # an older server, which sends notifications instead
        except (MCPError, SubscriptionLost, TimeoutError) as error:
            _log.debug("MCP server %r no longer tells of changes: %s", self._server, text_of(error))
        self._tells_changes = False
        self._changed()

    def _changed(self) -> None:
        self._changes += 1
        self._tools = None

    # --- What turns ask for ---------------------------------------------------------------------------------------

    async def listed(self, again: bool = False) -> tuple[Listed, ...]:
        """All tools of the server, page by page.

        Raises:
            McpUnreachable: The server went away.
            NotSent: It went away, and this was the first try.
        """
        if self._tools is not None:
            return self._tools
        changes = self._changes
        found: list[Listed] = []
        cursor: str | None = None
        for _ in range(_PAGES):
            try:
                page, cursor = await self._page(cursor, again)
            except (MCPError, McpConnectionLost) as error:
                if not again:
                    raise NotSent from error  # to list twice does no harm
                raise McpUnreachable(self._server, text_of(error)) from safe(error)
            found += page
            if cursor is None:
                break
        tools = tuple(found)
        if self._tells_changes and changes == self._changes:
            self._tools = tools
        return tools

    async def _page(self, cursor: str | None, again: bool) -> tuple[list[Listed], str | None]:
        client = self._client.result()
        try:
            page = await self._asked(client.list_tools(cursor=cursor, cache_mode="bypass"), again)
        except ValidationError as error:
            # The package reads all of it or nothing; one tool that is no tool shall not take the others along.
            raw = await self._raw_page(client, cursor, again, error)
            tools = raw.get("tools")
            listed = [self._listed(tool) for tool in cast("list[Any]", tools if isinstance(tools, list) else [])]
            # Else the package asks for the whole list again, to hold results against what their tools promise.
            promised = getattr(client.session, "_tool_output_schemas", {})
            promised.update({tool.name: promised.get(tool.name) for tool in listed if tool is not None})
            following = raw.get("nextCursor")
            return [tool for tool in listed if tool is not None], following if isinstance(following, str) else None
        return [Listed(tool.name, tool.description or "", tool.input_schema) for tool in page.tools], page.next_cursor

    async def _raw_page(
        self, client: Client, cursor: str | None, again: bool, error: ValidationError
    ) -> Mapping[str, Any]:
        session: Any = client.session
        send = getattr(getattr(session, "_dispatcher", None), "send_raw_request", None)  # not public in any version
        if send is None:
            raise McpUnreachable(self._server, f"its list of tools cannot be read: {text_of(error)}") from safe(error)
        raw = await self._asked(send("tools/list", {"cursor": cursor} if cursor else None, {}), again)
        return cast("Mapping[str, Any]", raw) if isinstance(raw, Mapping) else {}

    def _listed(self, raw: Any) -> Listed | None:
        tool: Mapping[str, Any] = cast("Mapping[str, Any]", raw) if isinstance(raw, Mapping) else {}
        name, said, schema = tool.get("name"), tool.get("description"), tool.get("inputSchema")
        if isinstance(name, str) and name and isinstance(schema, Mapping | None):
            return Listed(name, said if isinstance(said, str) else "", cast("Any", schema or {}))
        _log.warning(
            "A tool of MCP server %r is left out: it cannot be read (%s)", self._server, shown(cast("Json", raw))
        )
        return None

    async def call(
        self, tool: str, arguments: Mapping[str, Json], context: ToolContext, timeout: float | None, again: bool = False
    ) -> Json:
        """Call a tool by the server's name of it. Errors as `McpServer.call` has them.

        Raises:
            NotSent: The server has not seen the call, and this was the first try.
        """

        async def report(progress: float, total: float | None, message: str | None) -> None:
            context.report_progress({"progress": progress, "total": total, "message": message})

        call = self._client.result().call_tool(
            tool,
            dict(arguments),
            read_timeout_seconds=timeout,
            progress_callback=report,
            meta=cast("Any", {_IDEMPOTENCY_KEY: context.idempotency_key}),
        )
        try:
            result = await self._asked(call, again)
        except MCPError as error:
            if error.code == mcp_types.REQUEST_TIMEOUT:
                late = f"{tool} of MCP server {self._server} did not finish within {timeout} s"
                raise TimeoutError(late) from safe(error)
            if error.code == mcp_types.CONNECTION_CLOSED:
                raise McpConnectionLost(self._server, tool, text_of(error)) from safe(error)
            raise McpToolFailed(self._server, tool, text_of(error)) from safe(error)
        except McpConnectionLost as error:
            raise McpConnectionLost(self._server, tool, without(error.reason)) from safe(error)
        except RuntimeError as error:
            # The package's way to say that the result is not what the tool promised.
            raise McpToolFailed(self._server, tool, text_of(error)) from safe(error)
        if result.is_error:
            raise McpToolFailed(self._server, tool, without(_text(result)))
        if any(map(_is_media, result.content)):
            return _contents(result)
        return _told_and_structured(_text(result), result.structured_content)

    async def _asked(self, request: Any, again: bool) -> Any:
        """What the server answers, for as long as the connection lives."""
        self._in_flight += 1
        alone = self._in_flight == 1
        asked: asyncio.Future[Any] = asyncio.ensure_future(request)
        asked.add_done_callback(_forgotten)
        try:
            await asyncio.wait([asked, self._task, self._garbled], return_when=asyncio.FIRST_COMPLETED)
            if self._garbled.done() and not asked.done():
                raise McpConnectionLost(self._server, "", f"an answer cannot be read: {self._garbled.result()[:200]}")
            # The package wakes those who wait when it closes; where it does not, nobody else would.
            if not asked.done():
                await asyncio.wait([asked], timeout=1)
            if not asked.done():
                raise McpConnectionLost(self._server, "", _told(self._reason))
            return asked.result()
        except MCPError as error:
            if _is_unknown_session(error):
                self._over.set()
                if not again:
                    raise NotSent from error
            if error.code == mcp_types.CONNECTION_CLOSED:
                self._over.set()
                await asyncio.wait([self._task], timeout=5)
                if not again and alone and self._in_flight == 1 and _is_refused(self._reason):
                    raise NotSent from error
                raise McpConnectionLost(
                    self._server, "", _told(self._reason) if self._reason else text_of(error)
                ) from safe(error)
            raise
        finally:
            self._in_flight -= 1
            if not asked.done():
                asked.cancel()
                await asyncio.wait([asked])


def _forgotten(asked: asyncio.Future[Any]) -> None:
    """Take note of its error, also when whoever asked was cancelled and does not wait for it."""
    if not asked.cancelled():
        asked.exception()


@contextlib.asynccontextmanager
async def _watched(
    transport: Any, over: anyio.Event, garbled: Callable[[Exception], None]
) -> AsyncGenerator[Any, None]:
    """A transport that says when the server's side has ended: the package tells only those who wait for an answer."""
    async with transport as (read, write):
        send, receive = anyio.create_memory_object_stream[Any](0)

        async def pass_on() -> None:
            async with send:
                async for message in read:
                    if isinstance(message, Exception):
                        garbled(message)
                    await send.send(message)
            over.set()

        async with anyio.create_task_group() as group:
            group.start_soon(pass_on)
            try:
                yield receive, write
            finally:
                group.cancel_scope.cancel()
                receive.close()


def _line_of(error: Exception) -> str | None:
    """What could not be read, where the package says that."""
    if isinstance(error, ValidationError):
        given = error.errors(include_url=False, include_context=False)[0]["input"]
        return given if isinstance(given, str) else None
    return None


def _is_unknown_session(error: MCPError) -> bool:
    """Whether the server has no such session, and so has not looked at the request.

    That is what it answers after a restart, with 404; the client must begin anew (MCP 2025-06-18, Transports, Session
    Management).
    """
    return error.code == mcp_types.INVALID_REQUEST and "session" in str(error).lower()


def _is_refused(reason: BaseException | None) -> bool:
    """Whether no connection could be opened for the request."""
    return any(isinstance(each, httpx2.ConnectError | httpx2.ConnectTimeout) for each in _leaves(reason))


def _leaves(error: BaseException | None) -> Iterator[BaseException]:
    inner = getattr(error, "exceptions", None)
    if inner:
        for each in inner:
            yield from _leaves(each)
    elif error is not None:
        yield error


def _told(error: BaseException | None) -> str:
    said = [text_of(each) or type(each).__name__ for each in _leaves(error)]
    return "; ".join(dict.fromkeys(said)) or "it closed the connection"


def _text(result: mcp_types.CallToolResult) -> str:
    return "\n".join(_shown(content) for content in result.content)


def _told_and_structured(text: str, structured: Json) -> Json:
    """What a model is to see where a tool gave both: servers repeat the one as the other, or say more in words."""
    if structured is None:
        return text
    try:
        repeated: Json = json.loads(text)
    except (ValueError, RecursionError):
        repeated = None
    if not text or repeated == structured or any(value in (repeated, text) for value in _values(structured)):
        return structured
    return f"{text}\n{json.dumps(structured, ensure_ascii=False)}" if structured else text


def _values(structured: Json) -> list[Json]:
    """Of a result that is no object, which servers wrap in one."""
    fields: Mapping[str, Json] = cast("Mapping[str, Json]", structured) if isinstance(structured, Mapping) else {}
    return [fields["result"]] if list(fields) == ["result"] else []


def _is_media(content: Any) -> bool:
    return content.type in ("image", "audio") or (
        content.type == "resource" and getattr(content.resource, "blob", None) is not None
    )


def _contents(result: mcp_types.CallToolResult) -> Json:
    """Images, sound and files as contents, for a model that can look at them, and the rest as text."""
    found: list[Json] = []
    content: Any
    for content in result.content:
        if not _is_media(content):
            found.append({"$type": "text", "text": _shown(content)})
            continue
        if content.type == "resource":
            media_type, data = content.resource.mime_type or "application/octet-stream", content.resource.blob
            found.append({"$type": "text", "text": f"[{content.resource.uri}]"})
        else:
            media_type, data = content.mime_type, content.data
        found.append({"$type": "data", "uri": f"data:{media_type};base64,{data}", "mediaType": media_type})
    if result.structured_content is not None:
        found.append({"$type": "text", "text": json.dumps(result.structured_content, ensure_ascii=False)})
    return found


def _shown(content: Any) -> str:
    """A content as text; what is none, such as a link, as JSON."""
    if content.type == "text":
        return str(content.text)
    if content.type == "resource" and (text := getattr(content.resource, "text", None)) is not None:
        return f"[{content.resource.uri}]\n{text}"
    return json.dumps(content.model_dump(mode="json", by_alias=True, exclude_none=True))
