"""A client's calls: what a caller's own bounds do to them, and what is raised where nothing is answered."""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
import sys
import threading
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import grpc
import grpc.aio
import pytest
from durabletask.client import TaskHubGrpcClient

from dafx_actors import DurableAIAgentClient, PendingApproval
from dafx_actors._durable.calls import Calls, Sent, apart
from dafx_actors._durable.connect import Address, make_worker, reader_of
from dafx_actors._durable.outages import Outage, Seldom, WorkerLogger
from dafx_actors._durable.private import PrivateWorker
from dafx_actors.errors import SchedulerUnreachable, TurnTimeout
from dafx_actors.ids import AgentThread
from tests.conftest import free_port

pytestmark = pytest.mark.anyio


# --- Schedulers that answer late ----------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["is_connected", "is_there"])
async def test_a_scheduler_that_is_there_and_slow_is_waited_for(monkeypatch: pytest.MonkeyPatch, by: str) -> None:
    """It has never answered, and is busy: not one that may not be there at all."""
    monkeypatch.setattr("dafx_actors._durable.calls._FIRST_PATIENCE", 0.0)
    nothing, lost = grpc.aio.Metadata(), 0

    async def call() -> str:
        nonlocal lost
        lost += 1
        if lost <= 3:
            raise grpc.aio.AioRpcError(grpc.StatusCode.DEADLINE_EXCEEDED, nothing, nothing, "Deadline Exceeded")
        return "answered"

    connected = Calls("http://h", lambda: by == "is_connected", lambda: by == "is_there")
    assert await connected.patiently(call) == "answered"
    lost = 0
    with pytest.raises(SchedulerUnreachable):
        await Calls("http://h", lambda: None).patiently(call)
    assert lost == 1


# --- Schedulers that do not answer --------------------------------------------------------------------------------


class Hanging(grpc.GenericRpcHandler):
    """Takes every call and never answers it, but for those that it does not know."""

    def __init__(self, *unknown: str) -> None:
        self.unknown = unknown
        self.calls: list[str] = []

    def service(self, handler_call_details: Any) -> Any:
        name = handler_call_details.method.rpartition("/")[2]
        if name in self.unknown:
            return None
        self.calls.append(name)
        return grpc.unary_unary_rpc_method_handler(self.hang)

    async def hang(self, request: bytes, context: Any) -> bytes:
        await anyio.sleep_forever()
        return b""


@asynccontextmanager
async def hanging(*unknown: str) -> AsyncGenerator[tuple[str, Hanging]]:
    server, handler = grpc.aio.server(), Hanging(*unknown)
    server.add_generic_rpc_handlers((handler,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}", handler
    finally:
        await server.stop(0)


@contextmanager
def silent() -> Generator[str]:
    """Something listens, and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"127.0.0.1:{listening.getsockname()[1]}"


@asynccontextmanager
async def client_of(kind: str, host: str) -> AsyncGenerator[DurableAIAgentClient]:
    if kind == "async":
        async with DurableAIAgentClient.connect(f"http://{host}") as client:
            yield client
        return
    wrapped = TaskHubGrpcClient(host_address=host)
    try:
        yield DurableAIAgentClient(wrapped)
    finally:
        wrapped.close()
        while any(map(is_busy, threading.enumerate())):  # with a call that nobody waits for any more
            await anyio.sleep(0.005)


def is_busy(thread: threading.Thread) -> bool:
    """Whether it is one of anyio's threads and does not wait for work."""
    frame = sys._current_frames().get(thread.ident or 0)
    names: list[str] = []
    while frame is not None:
        names.append(Path(frame.f_code.co_filename).name)
        frame = frame.f_back
    return thread.name.startswith("AnyIO worker") and "queue.py" not in names


async def warm(client: DurableAIAgentClient, handler: Hanging) -> None:
    """Have it import what it needs, and connect, so that what is sent next arrives at once."""
    assert await client._backend.hosted() is None
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(client._backend.state, "any")
        with anyio.fail_after(30):
            while not handler.calls:
                await anyio.sleep(0.005)
        tasks.cancel_scope.cancel()


# --- Every door ---------------------------------------------------------------------------------------------------

Door = Callable[[DurableAIAgentClient, float | None], Coroutine[Any, Any, object]]

THREAD = AgentThread("Joker", "t1")
ASKED = PendingApproval(
    thread=THREAD,
    correlation_id="c1",
    key="c1.1.0",
    digest="d",
    tool="pay",
    arguments={},
    idempotency_key="k",
    call_id="c",
    asked_at=datetime.now(UTC),
)
TURNS: dict[str, Door] = {
    "run": lambda client, timeout: client.get_agent("Joker").run("Hi", correlation_id="c1", timeout=timeout),
    "start": lambda client, timeout: client.get_agent("Joker").start("Hi", correlation_id="c1", timeout=timeout),
    "result": lambda client, timeout: client.get_agent("Joker").get_turn("c1").result(timeout),
    "approve": lambda client, timeout: client.approve(ASKED, timeout=timeout),
    "deny": lambda client, timeout: client.deny(ASKED, timeout=timeout),
}
OTHERS: dict[str, Door] = {
    "status": lambda client, timeout: client.get_agent("Joker").get_turn("c1").status(timeout=timeout),
    "cancel": lambda client, timeout: client.get_agent("Joker").get_turn("c1").cancel(timeout=timeout),
    "thread": lambda client, timeout: client.get_agent("Joker").get_turn("c1").thread(timeout=timeout),
    "get_transcript": lambda client, timeout: client.get_agent("Joker").get_transcript("t1", timeout=timeout),
    "pending_approvals": lambda client, timeout: client.pending_approvals("Joker", "t1", timeout=timeout),
    "pending_outcomes": lambda client, timeout: client.pending_outcomes("Joker", timeout=timeout),
    "schedule": lambda client, timeout: client.schedule_new_orchestration("o", timeout=timeout),
    "state": lambda client, timeout: client.get_orchestration("o").state(timeout=timeout),
    "custom_status": lambda client, timeout: client.get_orchestration("o").custom_status(timeout=timeout),
    "raise_event": lambda client, timeout: client.get_orchestration("o").raise_event("e", timeout=timeout),
    "terminate": lambda client, timeout: client.get_orchestration("o").terminate(timeout=timeout),
}
ORCHESTRATIONS: dict[str, Door] = {
    "orchestration's result": lambda client, timeout: client.get_orchestration("o").result(timeout),
    "orchestration's wait": lambda client, timeout: client.get_orchestration("o").wait(timeout),
}
DOORS = {**TURNS, **OTHERS, **ORCHESTRATIONS}


@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_a_timeout_bounds_every_call_and_says_what_may_have_arrived(kind: str) -> None:
    """The scheduler takes each call, and answers none but whether it is an embedded one."""
    async with hanging("Hosted", "Withdraw") as (host, handler), client_of(kind, host) as client:
        await warm(client, handler)
        for name, door in DOORS.items():
            expected: type[Exception] = SchedulerUnreachable
            if name in TURNS:
                expected = TurnTimeout
            elif name in ORCHESTRATIONS:
                expected = TimeoutError
            with pytest.raises(expected) as caught:
                await door(client, 1.0 if name in TURNS else 0.05)
            assert type(caught.value) is expected, name
    assert {"StartInstance", "WaitForInstanceCompletion", "GetEntity", "TerminateInstance"} <= {*handler.calls}


async def test_where_nothing_listens_nothing_was_sent() -> None:
    async with client_of("async", f"127.0.0.1:{free_port()}") as client:
        for name, door in {**TURNS, **OTHERS}.items():
            if name == "result":  # of a turn that somebody has started
                continue
            with pytest.raises(SchedulerUnreachable):
                await door(client, 0.05)


async def test_what_waits_for_a_connection_was_not_sent() -> None:
    with silent() as host:
        async with client_of("async", host) as client:
            with pytest.raises(SchedulerUnreachable, match=r"no answer within 0\.3 s"):
                await client.get_agent("Joker").run("Hi", timeout=0.3)


async def test_a_decision_that_may_have_arrived_is_told_so() -> None:
    async with hanging("Hosted") as (host, handler), client_of("async", host) as client:
        await warm(client, handler)
        with pytest.raises(TurnTimeout, match="what became of 'decide' for turn c1: it may be on record"):
            await client.approve(ASKED, timeout=1.0)


@pytest.mark.parametrize("busy", [False, True])
@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_a_callers_own_bounds_end_every_call_as_they_say(kind: str, busy: bool) -> None:
    """gRPC drops the message of a cancel, by which anyio knows its own: it came out as a bare CancelledError."""

    def block() -> None:
        if busy:  # as a handler that parses a large document, past the deadline
            asyncio.get_running_loop().call_later(0.01, time.sleep, 0.03)

    async with hanging("Hosted", "Withdraw") as (host, _), client_of(kind, host) as client:
        for door in DOORS.values():
            block()
            with pytest.raises(TimeoutError), anyio.fail_after(0.02):
                await door(client, None)
            block()
            with anyio.move_on_after(0.02) as scope:
                await door(client, None)
            assert scope.cancelled_caught
            block()
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(door(client, None), 0.02)
            block()
            with anyio.move_on_after(0.02):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(door, client, None)


async def test_a_cancel_from_outside_stays_one() -> None:
    async with hanging("Hosted") as (host, handler), client_of("async", host) as client:
        asking = asyncio.ensure_future(client.get_agent("Joker").run("Hi", timeout=30))
        with anyio.fail_after(10):
            while "StartInstance" not in handler.calls:
                await anyio.sleep(0.005)
        asking.cancel("by the test")
        with pytest.raises(asyncio.CancelledError):
            await asking


async def test_whoever_waits_hears_that_the_client_was_closed() -> None:
    """gRPC cancels the calls of a channel that is closed: that came out as a bare CancelledError."""
    heard: list[BaseException] = []
    async with hanging("Hosted") as (host, handler), client_of("async", host) as client:

        async def wait() -> None:
            try:
                await client.get_agent("Joker").get_turn("c1").status()
            except BaseException as error:
                heard.append(error)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            with anyio.fail_after(10):
                while not handler.calls:
                    await anyio.sleep(0.005)
            await client.close()
        with pytest.raises(SchedulerUnreachable, match="this client was closed"):
            await client.get_agent("Joker").run("Hi")
    assert [type(error) for error in heard] == [SchedulerUnreachable]
    assert "this client was closed" in str(heard[0])


async def test_a_call_that_somebody_else_cancels_got_lost() -> None:
    async def cancelled() -> None:
        raise asyncio.CancelledError

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await apart(cancelled)
    assert caught.value.code() is grpc.StatusCode.CANCELLED


async def test_what_a_call_gives_and_raises_is_what_it_gave_and_raised() -> None:
    async def give() -> int:
        return 7

    async def fail() -> None:
        raise KeyError("x")

    assert await apart(give) == 7
    with pytest.raises(KeyError, match="x"):
        await apart(fail)


async def test_nobody_is_told_of_an_error_after_a_cancel() -> None:
    """asyncio says at length which errors nobody looked at."""
    told: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))

    async def fail_late() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            raise ValueError("late")

    with anyio.move_on_after(0.01):
        await apart(fail_late)
    for _ in range(3):
        await anyio.lowlevel.checkpoint()
    gc.collect()
    assert told == []


# --- What is said of it -------------------------------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_an_outage_is_a_line_when_it_begins_one_a_minute_and_one_when_it_is_over() -> None:
    clock = Clock()
    outage = Outage("http://h", clock)
    assert outage.back() is None
    said = [outage.lost("refused\nby all")]
    for clock.now in range(101, 245):
        said.append(outage.lost("refused"))
    said += [outage.back(), outage.back()]
    assert [line for line in said if line] == [
        "No scheduler answers at http://h (refused by all). It is tried again until it does.",
        "No scheduler has answered at http://h for 60 s.",
        "No scheduler has answered at http://h for 120 s.",
        "The scheduler at http://h answers again, after 144.0 s.",
    ]


def test_what_many_have_to_say_is_said_once_a_minute() -> None:
    clock = Clock()
    seldom = Seldom(clock)
    said = [seldom.say("lost") for _ in range(10)]
    clock.now += 60
    said += [seldom.say("lost"), seldom.say("lost")]
    assert [line for line in said if line] == ["lost", "lost (And 9 more since the last line.)"]


DUMP = """Failed to create connection: <_InactiveRpcError of RPC that terminated with:
\tstatus = StatusCode.UNAVAILABLE
\tdetails = "failed to connect to all addresses; last error: refused"
\tdebug_error_string = "UNKNOWN:Error received"
>"""


def test_a_worker_tells_of_an_outage_in_two_lines(caplog: pytest.LogCaptureFixture) -> None:
    logger = WorkerLogger("http://h", logging.getLogger("dafx_actors.durabletask"))
    logger.info("Created fresh connection to h")
    for _ in range(20):
        logger.warning(DUMP)
        logger.warning("Connection failed, retrying in 0.20 seconds (attempt 1)")
    logger.warning("something else")
    logger.info("Created fresh connection to h")
    logger.info("Successfully connected to h. Waiting for work items...")
    logger.warning("Error in work item stream: <... Locally cancelled by application! ...>")
    said = [record.getMessage() for record in caplog.records]
    assert said[0].startswith(
        "No scheduler answers at http://h (failed to connect to all addresses; last error: refused)."
    )
    assert said[1] == "something else"
    assert said[2].startswith("The scheduler at http://h answers again, after ")
    assert len(said) == 3


async def test_a_client_tells_of_an_outage_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    async with client_of("async", f"127.0.0.1:{free_port()}") as client:
        for _ in range(3):
            with pytest.raises(SchedulerUnreachable):
                await client.get_agent("Joker").run("Hi", timeout=0.1)
    said = [record.getMessage() for record in caplog.records if record.name.startswith("dafx_actors")]
    assert len(said) == 1
    assert "\n" not in said[0]
    assert said[0].startswith("No scheduler answers at http://127.0.0.1:")


# --- What is made for a scheduler that goes away -------------------------------------------------------------------


def test_a_worker_looks_for_its_scheduler_every_second() -> None:
    """durabletask's pauses, and gRPC's, grow to half a minute and to two."""
    worker: Any = make_worker(Address("http://127.0.0.1:1", "default"))
    assert worker._resiliency_options.reconnect_backoff_cap_seconds <= 1.0
    options = dict(worker._channel_options.to_grpc_options())
    assert options["grpc.use_local_subchannel_pool"] == 1
    assert options["grpc.max_reconnect_backoff_ms"] <= 1000
    assert options["grpc.min_reconnect_backoff_ms"] <= 2000


async def test_what_a_step_reads_waits_until_there_is_a_connection() -> None:
    """Its work may come before this connection is back: the read's failure would be recorded as the step's."""
    port = free_port()
    reader = reader_of(PrivateWorker(make_worker(Address(f"http://127.0.0.1:{port}", "default"))))
    server, handler = grpc.aio.server(), Hanging()
    server.add_generic_rpc_handlers((handler,))
    try:
        async with anyio.create_task_group() as tasks:
            reading = partial(reader.get_orchestration_state, "i")
            tasks.start_soon(partial(anyio.to_thread.run_sync, reading, abandon_on_cancel=True))
            await anyio.sleep(0.3)  # meanwhile nobody is there
            server.add_insecure_port(f"127.0.0.1:{port}")
            await server.start()
            with anyio.fail_after(30):
                while handler.calls != ["GetInstance"]:
                    await anyio.sleep(0.005)
            tasks.cancel_scope.cancel()
    finally:
        reader.close()
        await server.stop(0)


async def test_a_sent_request_is_one_that_may_have_arrived() -> None:
    sent = Sent()
    async with (
        hanging("Hosted") as (host, handler),
        client_of("async", host) as client,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(partial(client._backend.start, "name", "i", None, sent=sent))
        with anyio.fail_after(30):
            while not handler.calls:
                await anyio.sleep(0.005)
        tasks.cancel_scope.cancel()
    assert sent.maybe
