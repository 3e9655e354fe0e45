"""MCP servers as tools, against real server processes: over standard input and output, and over HTTP."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable, Generator
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeAlias

import anyio
import pytest

from dafx_actors.errors import ConfigurationError, DafxError, McpConnectionLost, McpToolFailed, McpUnreachable
from dafx_actors.mcp import McpServer, Stdio
from dafx_actors.tools import Approval, ToolSource, source_needs_approval, tools_of
from tests.conftest import free_port
from tests.test_tools import Host, a_context

pytestmark = pytest.mark.anyio
DATA = Path(__file__).parent / "data"
SERVER = str(DATA / "mcp_server.py")
OLD_SERVER = str(DATA / "old_mcp_server.py")
TOKEN = {"Authorization": "Bearer secret"}

MakeServer: TypeAlias = Callable[..., McpServer]


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def until(fact: Callable[[], bool]) -> None:
    with anyio.fail_after(120):
        while not fact():
            await anyio.sleep(0.02)


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextlib.contextmanager
def serving(script: str, port: int, calls: Path) -> Generator[subprocess.Popen[bytes], None, None]:
    environment = {**os.environ, "CALLS": str(calls)}
    with subprocess.Popen(
        [sys.executable, script, "http", str(port)], env=environment, stderr=subprocess.DEVNULL
    ) as it:
        try:
            yield it
        finally:
            it.kill()


@pytest.fixture
def calls(tmp_path: Path) -> Path:
    return tmp_path / "calls"


@pytest.fixture(params=["stdio", "http"])
async def make(request: pytest.FixtureRequest, calls: Path) -> AsyncGenerator[MakeServer, None]:
    """What makes a client of a real server; by HTTP, of the one that runs."""
    made: list[McpServer] = []
    port = free_port()
    with contextlib.ExitStack() as stack:
        if request.param == "http":
            stack.enter_context(serving(SERVER, port, calls))
            await until(lambda: listens(port))

        def make(**how: Any) -> McpServer:
            if request.param == "stdio":
                server = McpServer.stdio("tests", sys.executable, SERVER, "stdio", env={"CALLS": str(calls)}, **how)
            else:
                server = McpServer.streamable_http("tests", f"http://127.0.0.1:{port}/mcp", **how)
            made.append(server)
            return server

        yield make
        for server in made:
            await server.aclose()


async def names(server: McpServer) -> list[str]:
    return [tool.name for tool in await server.tools()]


async def call(server: McpServer, name: str, **arguments: Any) -> Any:
    return await server.call(name, arguments, a_context())


# --- Listing and calling ------------------------------------------------------------------------------------------


async def test_a_server_is_a_source_of_tools(make: MakeServer) -> None:
    server = make()
    assert isinstance(server, ToolSource)
    assert tools_of(Host(server)) == [server]
    tools = {tool.name: tool for tool in await server.tools()}
    assert list(tools) == ["add", "say", "fail", "show", "pid", "odd_name__", "wait", "work", "echo", "grow"]
    add = tools["add"]
    assert add.description == "Add."
    assert add.parameters["properties"]["a"]["description"] == "The first."
    assert add.parameters["required"] == ["a"]


async def test_results_are_json_text_or_contents(make: MakeServer) -> None:
    server = make()
    assert await call(server, "add", a=1) == {"value": 2}
    assert await call(server, "say", text="x") == "x\nx"
    assert await call(server, "odd_name__") == {"result": "odd"}
    assert await call(server, "show") == [
        {"$type": "text", "text": "Look:"},
        {"$type": "data", "uri": "data:image/png;base64,AAAA", "mediaType": "image/png"},
        {"$type": "data", "uri": "data:audio/wav;base64,AAAA", "mediaType": "audio/wav"},
        {"$type": "text", "text": "[file:///a.txt]\ninside"},
        {"$type": "text", "text": "[file:///a.bin]"},
        {"$type": "data", "uri": "data:application/octet-stream;base64,AAAA", "mediaType": "application/octet-stream"},
    ]


async def test_a_failure_says_what_the_tool_said(make: MakeServer) -> None:
    server = make()
    for name, arguments, text in [
        ("fail", {"why": "no such file"}, "no such file"),
        ("add", {"a": "x"}, "valid integer"),
        ("remove", {}, "There is no tool 'remove'"),
    ]:
        with pytest.raises(McpToolFailed, match=text) as caught:
            await call(server, name, **arguments)
        assert (caught.value.server, caught.value.tool) == ("tests", name)
    assert await call(server, "add", a=1) == {"value": 2}


async def test_the_server_gets_the_idempotency_key_and_reports_progress(make: MakeServer) -> None:
    reported: list[Any] = []
    result = await make().call("work", {}, a_context(idempotency_key="k1", report=reported.append))
    assert result == {"result": "k1"}
    assert reported == [{"progress": 1, "total": 2, "message": "half"}]


async def test_only_allowed_tools_are_taken_and_prefixed(make: MakeServer) -> None:
    server = make(prefix="my ", allowed=["add", "odd.name/é"])
    assert await names(server) == ["my_add", "my_odd_name__"]
    assert await call(server, "my_add", a=1) == {"value": 2}
    for name in "my_pid", "pid", "add", "my add":
        with pytest.raises(McpToolFailed, match="There is no tool"):
            await call(server, name)


async def test_of_tools_that_would_have_the_same_name_one_is_left_out(
    make: MakeServer, caplog: pytest.LogCaptureFixture
) -> None:
    listed = await names(make(prefix="x" * 63))
    assert listed == [f"{'x' * 63}{first}" for first in "asfpoweg"]  # `say` and `show`, `wait` and `work` begin alike
    assert "'show' of MCP server 'tests' is left out" in caplog.text


async def test_calls_run_side_by_side_over_one_connection(make: MakeServer) -> None:
    server = make()
    results: list[Any] = []

    async def one() -> None:
        results.append((await call(server, "pid"))["result"])

    async with anyio.create_task_group() as group:
        for _ in range(20):
            group.start_soon(one)
    assert len(results) == 20
    assert len(set(results)) == 1


async def test_tools_that_are_added_are_seen(make: MakeServer) -> None:
    server = make()
    await names(server)
    await call(server, "grow")
    with anyio.fail_after(30):
        while "grown" not in await names(server):
            await anyio.sleep(0.02)
    assert await call(server, "grown") == {"result": "grown"}


async def test_a_call_that_takes_too_long_is_a_timeout_and_the_next_one_works(make: MakeServer, calls: Path) -> None:
    server = make(timeout=timedelta(seconds=1))
    with pytest.raises(TimeoutError, match="wait of MCP server tests did not finish"):
        await call(server, "wait", seconds=60)
    assert await call(server, "add", a=1) == {"value": 2}
    assert calls.read_text() == "acted\n"


async def test_a_cancelled_call_leaves_the_connection_as_it_was(make: MakeServer, calls: Path) -> None:
    server = make()
    async with anyio.create_task_group() as group:
        group.start_soon(lambda: call(server, "wait", seconds=60))
        await until(calls.exists)
        group.cancel_scope.cancel()
    assert await call(server, "add", a=1) == {"value": 2}


async def test_approval_is_for_all_its_tools(make: MakeServer) -> None:
    def writes(name: str) -> bool:
        return name == "wait"

    server = make(approval=Approval(when=writes))
    assert await source_needs_approval(server, "wait", {})
    assert not await source_needs_approval(server, "add", {})
    assert await source_needs_approval(make(approval=True), "add", {})
    assert not await source_needs_approval(make(), "wait", {})


# --- Servers that go away -----------------------------------------------------------------------------------------


async def test_a_closed_connection_leaves_nothing_and_can_be_used_again(make: MakeServer) -> None:
    server = make()
    first = (await call(server, "pid"))["result"]
    await server.aclose()
    await server.aclose()
    started = (await call(server, "pid"))["result"]
    if isinstance(server.address, Stdio):
        assert not is_alive(first)
        assert started != first


async def test_a_call_in_flight_fails_when_its_server_is_killed_and_is_not_repeated(
    make: MakeServer, calls: Path
) -> None:
    server = make()
    pid = (await call(server, "pid"))["result"]
    caught: list[McpConnectionLost] = []

    async def wait() -> None:
        with pytest.raises(McpConnectionLost, match="may have acted") as lost:
            await call(server, "wait", seconds=60)
        caught.append(lost.value)

    async with anyio.create_task_group() as group:
        group.start_soon(wait)
        await until(calls.exists)
        os.kill(pid, signal.SIGKILL)
    assert (caught[0].server, caught[0].tool) == ("tests", "wait")
    assert calls.read_text() == "acted\n"


async def test_a_process_that_died_is_started_anew_at_the_next_use() -> None:
    server = McpServer.stdio("tests", sys.executable, SERVER, "stdio")
    pids = []
    for _ in range(3):
        pids.append((await call(server, "pid"))["result"])
        os.kill(pids[-1], signal.SIGKILL)
        # A call that is sent before it is seen that the process is dead may have had its effect, and fails.
        await until(lambda: server._connection is not None and not server._connection.is_usable())
    await names(server)
    assert len(set(pids)) == 3
    await server.aclose()


@pytest.mark.parametrize("script", [SERVER, OLD_SERVER], ids=["new", "old"])
async def test_an_http_server_that_was_restarted_is_used_again(script: str, calls: Path) -> None:
    port = free_port()
    tool = "pid" if script == SERVER else "one"
    server = McpServer.streamable_http("tests", f"http://127.0.0.1:{port}/mcp", headers=TOKEN)
    results = []
    for _ in range(2):
        with serving(script, port, calls):
            await until(lambda: listens(port))
            results.append(await call(server, tool))
            results.append(await call(server, tool))
        with pytest.raises(McpUnreachable, match="tried again at the next call"):
            await call(server, tool)
    assert results[0] == results[1] != results[2] == results[3]
    await server.aclose()


async def test_aclose_ends_calls_in_flight(make: MakeServer, calls: Path) -> None:
    server = make()

    async def wait() -> None:
        with pytest.raises(DafxError):
            await call(server, "wait", seconds=60)

    async with anyio.create_task_group() as group:
        group.start_soon(wait)
        await until(calls.exists)
        await server.aclose()


@pytest.mark.parametrize(
    ("server", "reason"),
    [
        (McpServer.stdio("s", "no-such-program-here"), "no-such-program-here"),
        (McpServer.stdio("s", sys.executable, "-c", "raise SystemExit(3)"), "onnection closed"),
        (McpServer.streamable_http("s", f"http://127.0.0.1:{free_port()}/mcp"), "connection attempts failed"),
    ],
    ids=["unknown", "exits", "refused"],
)
async def test_a_server_that_cannot_be_used_says_why(server: McpServer, reason: str) -> None:
    for _ in range(2):
        with pytest.raises(McpUnreachable, match=reason):
            await server.tools()
        with pytest.raises(McpUnreachable, match=reason):
            await call(server, "add", a=1)
    await server.aclose()


async def test_a_server_that_never_answers_is_given_up() -> None:
    server = McpServer.stdio("s", sys.executable, "-c", "import time; time.sleep(600)")
    server.connect_timeout = 0.5
    with pytest.raises(McpUnreachable, match="it did not answer within"):
        await server.tools()
    await server.aclose()


# --- The older protocol -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["stdio", "http"])
async def test_an_older_server_is_listed_page_by_page(how: str, calls: Path) -> None:
    with contextlib.ExitStack() as stack:
        if how == "stdio":
            server = McpServer.stdio("old", sys.executable, OLD_SERVER, "stdio")
        else:
            port = free_port()
            stack.enter_context(serving(OLD_SERVER, port, calls))
            await until(lambda: listens(port))
            server = McpServer.streamable_http("old", f"http://127.0.0.1:{port}/", headers=TOKEN)
        assert await names(server) == ["one", "two", "three"]
        assert [await call(server, "three") for _ in range(3)] == ["3 pages were asked for"] * 3
        assert (await call(server, "two")).startswith("two of")
        with anyio.fail_after(30):
            while await names(server) != ["one", "two", "three", "four"]:
                await anyio.sleep(0.02)
        await server.aclose()


async def test_headers_are_sent_and_not_shown(calls: Path) -> None:
    port = free_port()
    with serving(OLD_SERVER, port, calls):
        await until(lambda: listens(port))
        for headers in None, {"Authorization": "Bearer wrong"}:
            server = McpServer.streamable_http("old", f"http://127.0.0.1:{port}/", headers=headers)
            assert "Bearer" not in repr(server)
            with pytest.raises(McpUnreachable):
                await server.tools()
            await server.aclose()


def test_importing_it_loads_nothing_heavy() -> None:
    program = (
        "import dafx_actors.mcp, sys; print([name for name in ('mcp', 'pydantic', 'httpx2') if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_without_the_extra_the_error_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "mcp.py").write_text("raise ModuleNotFoundError(\"No module named 'mcp'\", name='mcp')")
    program = (
        "import asyncio\nfrom dafx_actors.mcp import McpServer, Stdio\n"
        "try:\n    asyncio.run(McpServer.stdio('s', 'x').tools())\nexcept Exception as error:\n    print(repr(error))"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment)
    assert ConfigurationError.__name__ in ran.stdout
    assert "dafx-actors[mcp]" in ran.stdout
