"""Programs without an event loop: the sync client, from many threads, before and after a fork; and event loops."""

from __future__ import annotations

import asyncio
import functools
import inspect
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import anyio
import attrs
import durabletask.internal.orchestrator_service_pb2_grpc as stubs  # pyright: ignore[reportMissingTypeStubs]
import grpc.aio
import pytest
from durabletask.client import AsyncTaskHubGrpcClient, OrchestrationStatus, TaskHubGrpcClient

import dafx_actors
from dafx_actors import sync
from dafx_actors._durable import connections
from dafx_actors._durable import credentials as _credentials
from dafx_actors._durable.backend import Backend
from dafx_actors._durable.connect import Address, make_client
from dafx_actors.client import _decisions as _async_decisions
from dafx_actors.client import _inbox as _async_inbox
from dafx_actors.client import _threads as _async_threads
from dafx_actors.decisions import DecisionAccepted, PendingOutcome
from dafx_actors.errors import (
    ClientOfAnotherLoop,
    ConfigurationError,
    DecisionRefused,
    InvalidAnswer,
    LoopWouldBlock,
    OrchestrationFailed,
    RetryRefused,
    SchedulerRefused,
    SchedulerUnreachable,
    TurnCancelled,
    TurnNotFound,
    TurnTimeout,
)
from dafx_actors.sync import DecisionStored, DurableAIAgentClient
from dafx_actors.sync import _decisions as _sync_decisions
from dafx_actors.sync import _inbox as _sync_inbox
from dafx_actors.sync import _threads as _sync_threads
from tests.conftest import free_port
from tests.sync_side import count
from tests.test_connect import Faulty

PORTAL = "dafx-sync"


@pytest.fixture(scope="module")
def endpoint() -> Generator[str]:
    """A scheduler and a worker in a process of their own: gRPC's servers are not there in the programs that fork."""
    command = [sys.executable, "-m", "tests.sync_side", "serve"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as served:
        assert served.stdin is not None
        assert served.stdout is not None
        yield served.stdout.readline().strip()
        served.stdin.close()
        assert served.wait(60) == 0


@pytest.fixture
def client(endpoint: str) -> Generator[DurableAIAgentClient]:
    with DurableAIAgentClient.connect(endpoint) as client:
        yield client


def ran(name: str, endpoint: str) -> list[str]:
    """The lines that a program prints, which has nothing to complain of; its children end with it."""
    command = [sys.executable, "-W", "error", "-X", "faulthandler", "-m", "tests.sync_side", name, endpoint]
    how: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, start_new_session=True, **how) as process:
        try:
            out, err = process.communicate(timeout=100)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    complaints = [line for line in err.splitlines() if "fork_posix.cc" not in line]  # where a program forks wrongly
    assert (process.returncode, complaints) == (0, []), out + err
    lines: list[str] = out.splitlines()
    return lines


def until(check: Callable[[], Any]) -> Any:
    """Wait for a fact that nobody announces."""
    late = time.monotonic() + 60
    while not (found := check()):
        assert time.monotonic() < late
        time.sleep(0.005)
    return found


def portals() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == PORTAL]


# --- As the async client ------------------------------------------------------------------------------------------


def test_the_peers_programs_run_as_they_are_written(endpoint: str) -> None:
    task_hub_client = TaskHubGrpcClient(host_address=endpoint.removeprefix("http://"))
    agent_client = DurableAIAgentClient(task_hub_client)
    joker = agent_client.get_agent("Joker")
    session = joker.create_session()
    assert joker.run("Tell me a joke.", session=session).text == "Tell me a joke. (1 messages)"
    response = joker.run("Another one.", session=session)
    assert (response.text, str(response)) == ("Another one. (3 messages)",) * 2
    assert [message.text for message in joker.get_transcript(session)][::2] == ["Tell me a joke.", "Another one."]
    agent_client.close()
    assert task_hub_client.get_orchestration_state("nobody") is None
    task_hub_client.close()


def test_only_durabletasks_sync_client_can_be_wrapped() -> None:
    with pytest.raises(ConfigurationError, match=r"`DurableAIAgentClient\.connect\(endpoint\)` makes one"):
        DurableAIAgentClient(AsyncTaskHubGrpcClient(host_address="h:1"))  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]


def test_turns_are_started_looked_at_decided_and_cancelled(client: DurableAIAgentClient) -> None:
    client.ping(timeout=60)
    payer = client.get_agent("Payer")
    thread = payer.get_new_thread()
    turn = payer.start("Pay.", thread=thread, timeout=60)
    assert (str(turn), turn.agent, turn.thread(timeout=60)) == (turn.correlation_id, "Payer", thread)
    asked = until(lambda: client.pending_approvals("Payer", thread, timeout=60))[0]
    assert client.pending_outcomes("Payer", thread) == []
    assert turn.status(timeout=60).state == "waiting"
    with pytest.raises(TurnTimeout):
        turn.result(timeout=0.01)
    decision = client.approve(asked, arguments={"amount": 6}, by="ana", reason="why not", timeout=60)
    assert (decision.action, decision.by, decision.reason) == ("approve", "ana", "why not")
    assert payer.get_turn(turn.correlation_id).result(60).text == "paid 6"
    with pytest.raises(DecisionRefused):
        client.deny(asked, "too late", by="bob", timeout=60)
    given = {field.name: getattr(asked, field.name) for field in attrs.fields(PendingOutcome) if field.init}
    gone = PendingOutcome(**given)
    with pytest.raises(DecisionRefused):
        client.resolve(gone, "retry", timeout=60)
    named = payer.start("Pay.", thread=payer.get_new_thread())
    key = until(lambda: client.pending_approvals("Payer", named.thread()))[0].key
    accepted = client.approve(key=key, thread=named, timeout=60)
    assert isinstance(accepted, DecisionAccepted)
    assert accepted.tool == "pay"
    named.result(60)
    with pytest.raises(RetryRefused, match="answered"):
        named.retry(timeout=60)
    other = payer.start("Pay.")
    assert other.cancel("enough", by="ana", timeout=60)
    with pytest.raises(TurnCancelled):
        other.result()
    assert other.status().state == "cancelled"
    with pytest.raises(TurnNotFound):
        payer.get_turn("nobody").status()
    joker = client.get_agent("Joker")
    assert joker.run("Hello", correlation_id="hello-sync", wait_for_response=False) == "hello-sync"
    assert joker.get_turn("hello-sync").result().text == "Hello (1 messages)"
    with pytest.raises(InvalidAnswer):
        joker.run("Hello", response_format=int)


def test_updates_of_a_turn_are_read(client: DurableAIAgentClient) -> None:
    joker = client.get_agent("Joker")
    with joker.run_stream("Hi.", timeout=60) as stream:
        told = list(stream)
        assert stream.response().text == "Hi. (1 messages)"
    assert [update.kind for update in told if update.kind != "state"] == ["step", "text", "ended"]
    turn = joker.get_turn(stream.turn.correlation_id)
    with turn.updates(timeout=60) as again:
        assert "".join(again.text(on_reset=print)) == "Hi. (1 messages)"
    with turn.updates(after=told[-1].cursor) as nothing:
        assert list(nothing) == []
    with joker.start("Ho.", stream=True).updates() as other:
        assert list(other.snapshots())[-1] == "Ho. (1 messages)"


def test_a_decision_that_nobody_hears_is_stored(client: DurableAIAgentClient) -> None:
    stored = client.approve(key="k", thread="t1", agent="Nobody", by="ana", timeout=0.2)
    assert isinstance(stored, DecisionStored)
    assert (stored.by, stored.key, stored.thread.agent) == ("ana", "k", "Nobody")
    assert "is stored" in str(stored)
    with pytest.raises(TurnTimeout):
        stored.outcome(timeout=0.1)


def test_threads_are_exported_imported_reset_and_deleted(client: DurableAIAgentClient) -> None:
    joker = client.get_agent("Joker")
    thread, copy = joker.get_new_thread(), joker.get_new_thread()
    joker.run("Hi.", thread=thread)
    lines = list(client.threads.export(thread, timeout=60))
    assert len(lines) == 3
    client.threads.import_(copy, iter(lines), timeout=60)
    assert joker.run("Again.", thread=copy).text == "Again. (3 messages)"
    client.threads.reset(copy, timeout=60)
    client.threads.delete(thread, timeout=60)
    assert [len(list(joker.get_transcript(each))) for each in (thread, copy)] == [0, 0]


def test_what_a_task_hub_holds_is_listed(client: DurableAIAgentClient) -> None:
    joker = client.get_agent("Joker")
    thread = joker.get_thread("listed")
    joker.run("Hi.", thread=thread, correlation_id="listed-1")
    assert [each.thread for each in client.threads.list("Joker", prefix="listed", details=True)] == [thread]
    assert [type(each).__name__ for each in client.threads.history(thread)] == ["Request", "Response"]
    assert [each.state for each in client.turns.list(thread=thread)] == ["completed"]
    assert client.turns.history("listed-1").name == "dafx-Joker.turn"
    started = client.schedule_new_orchestration(count, input=2, instance_id="listed-2", timeout=60)
    started.suspend("look")
    until(lambda: list(client.orchestrations.list(prefix="listed-2", state="suspended")))
    started.resume()
    started.raise_event("more", 3)
    assert started.result(60) == 5
    assert started.history().name == "count"
    assert started.purge()
    assert {"Joker", "Payer"} <= {each.name for each in client.agents(timeout=60) or ()}
    stats = client.scheduler.stats(timeout=60)
    assert stats.database == ":memory:"
    with pytest.raises(SchedulerRefused):
        client.scheduler.backup("no/name", timeout=60)


def test_orchestrations_are_started_waited_for_and_ended(client: DurableAIAgentClient) -> None:
    started = client.schedule_new_orchestration(count, input=2, timeout=60)
    until(lambda: started.custom_status(timeout=60) == "counts")
    assert started.pending_steps(timeout=60) == ()
    with pytest.raises(TimeoutError):
        started.wait(timeout=0.01)
    started.raise_event("more", 3, timeout=60)
    assert started.result(60) == 5
    assert started.wait(60).runtime_status is OrchestrationStatus.COMPLETED
    assert client.get_orchestration(started.instance_id, return_type=int).result() == 5
    other = client.schedule_new_orchestration("count", input=2, instance_id="counts-sync")
    assert str(other) == "counts-sync"
    other.terminate("enough", timeout=60)
    with pytest.raises(OrchestrationFailed, match="enough"):
        other.result()
    assert client.get_orchestration("nobody").state() is None


MIRRORED: list[tuple[Any, Any]] = [
    *(
        (getattr(dafx_actors, name), getattr(sync, name))
        for name in ("DurableAIAgentClient", "DurableAIAgent", "TurnHandle", "TurnStream", "OrchestrationHandle")
    ),
    (_async_inbox.Inbox, _sync_inbox.Inbox),
    (_async_decisions.Deciding, _sync_decisions.Deciding),
    (_async_threads.Threads, _sync_threads.Threads),
]


@pytest.mark.parametrize(("asynchronous", "synchronous"), MIRRORED, ids=lambda each: each.__name__)
def test_it_has_each_call_of_the_async_client_with_the_same_parameters(asynchronous: Any, synchronous: Any) -> None:
    calls = {
        name for name, each in vars(asynchronous).items() if name[0] != "_" and name != "aclose" and callable(each)
    }
    assert calls
    assert calls <= {*vars(synchronous)}
    for name in calls | {"connect"} & {*dir(asynchronous)}:
        theirs = inspect.signature(getattr(asynchronous, name)).parameters
        ours = inspect.signature(getattr(synchronous, name)).parameters
        # An async iterable is of no use to a program without an event loop.
        assert [str(each).replace(" | AsyncIterable[str | bytes]", "") for each in theirs.values()] == [
            str(each) for each in ours.values()
        ], name
        assert not inspect.iscoroutinefunction(getattr(synchronous, name))


# --- Threads ------------------------------------------------------------------------------------------------------


def test_one_client_serves_many_threads(client: DurableAIAgentClient) -> None:
    joker = client.get_agent("Joker")

    def ask(number: int) -> str:
        return joker.run(f"{number}", timeout=60).text

    with ThreadPoolExecutor(40) as threads:
        answers = list(threads.map(ask, range(80)))
    assert answers == [f"{number} (1 messages)" for number in range(80)]
    assert len(portals()) == 1


def test_the_thread_ends_with_the_last_client_that_is_closed(endpoint: str) -> None:
    first, second = DurableAIAgentClient.connect(endpoint), DurableAIAgentClient.connect(endpoint)
    assert portals() == []
    first.ping()
    second.ping()
    first.close()
    first.close()
    with pytest.raises(SchedulerUnreachable, match="this client was closed"):
        first.ping()
    assert len(portals()) == 1
    second.ping()
    second.close()
    assert portals() == []
    DurableAIAgentClient.connect(endpoint).close()
    assert portals() == []


def test_whoever_waits_hears_that_the_client_was_closed(endpoint: str) -> None:
    client = DurableAIAgentClient.connect(endpoint)
    turn = client.get_agent("Payer").start("Pay.")
    heard: list[BaseException] = []

    def wait() -> None:
        try:
            turn.result()
        except SchedulerUnreachable as error:
            heard.append(error)

    waits = [threading.Thread(target=wait) for _ in range(5)]
    for each in waits:
        each.start()
    until(lambda: turn.status().state == "waiting")
    client.close()
    for each in waits:
        each.join(60)
    assert len(heard) == 5
    assert all("this client was closed" in str(error) for error in heard)


def test_a_timeout_bounds_a_call_while_nothing_answers() -> None:
    with DurableAIAgentClient.connect(f"http://127.0.0.1:{free_port()}") as client:
        with pytest.raises(SchedulerUnreachable):
            client.ping(timeout=0.1)
        with pytest.raises((SchedulerUnreachable, TurnTimeout)):
            client.get_agent("Joker").run("Hello", timeout=0.1)


def test_ctrl_c_leaves_the_call_and_not_the_program_and_the_turn_goes_on(endpoint: str) -> None:
    assert ran("interrupted", endpoint) == ["interrupted", "waiting", "paid 5"]


def test_a_call_that_was_left_is_not_made_on(client: DurableAIAgentClient, monkeypatch: pytest.MonkeyPatch) -> None:
    turn = client.get_agent("Payer").start("Pay.")
    ended: list[str] = []

    async def result(timeout: float | None = None) -> Any:
        try:
            await anyio.sleep_forever()
        finally:
            ended.append("left")

    monkeypatch.setattr(turn._turn, "result", result)

    def interrupt(futures: Any, timeout: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("dafx_actors.sync._portal.wait_for", interrupt)
    with pytest.raises(KeyboardInterrupt):
        turn.result()
    monkeypatch.undo()
    client.ping()
    assert until(lambda: ended) == ["left"]


def test_a_program_ends_though_nothing_was_closed_and_a_thread_waits(endpoint: str) -> None:
    assert ran("leaves", endpoint) == ["leaves"]


# --- Event loops --------------------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_where_an_event_loop_runs_it_says_to_use_the_async_client(endpoint: str) -> None:
    client = DurableAIAgentClient.connect(endpoint)
    with pytest.raises(LoopWouldBlock, match=r"`run`.*dafx_actors\.DurableAIAgentClient") as caught:
        client.get_agent("Joker").run("Hello")
    assert caught.value.call == "run"
    assert portals() == []
    await asyncio.to_thread(client.ping)
    client.close()
    assert portals() == []


async def answered(client: dafx_actors.DurableAIAgentClient) -> None:
    assert (await client.get_agent("Joker").run("Hello", timeout=60)).text == "Hello (1 messages)"


def test_an_async_client_has_a_connection_for_each_event_loop(endpoint: str) -> None:
    client = dafx_actors.DurableAIAgentClient.connect(endpoint)
    asyncio.run(answered(client))
    asyncio.run(answered(client))
    assert len(client._backend._connections._by_loop) == 1  # and not those of loops that have ended

    async def beside() -> None:
        for _ in range(3):
            await asyncio.gather(answered(client), *[asyncio.to_thread(asyncio.run, answered(client)) for _ in "ab"])
        elsewhere = asyncio.Event()

        async def waits() -> str:
            turn = await client.get_agent("Payer").start("Pay.")
            running.call_soon_threadsafe(elsewhere.set)
            try:
                await turn
            except SchedulerUnreachable as error:
                return str(error)
            return ""

        running = asyncio.get_running_loop()
        heard = asyncio.ensure_future(asyncio.to_thread(asyncio.run, waits()))
        await elsewhere.wait()
        await client.close()
        assert "this client was closed" in await heard

    asyncio.run(beside())


def test_a_durabletask_client_that_is_wrapped_belongs_to_its_event_loop(endpoint: str) -> None:
    async def one() -> dafx_actors.DurableAIAgentClient:
        wrapped = AsyncTaskHubGrpcClient(host_address=endpoint.removeprefix("http://"))
        client = dafx_actors.DurableAIAgentClient(wrapped)
        await answered(client)
        with pytest.raises(ClientOfAnotherLoop, match="Wrap one in each event loop"):
            await asyncio.to_thread(asyncio.run, client.ping())
        await answered(client)
        await wrapped.close()
        return client

    client = asyncio.run(one())
    with pytest.raises(ClientOfAnotherLoop):
        asyncio.run(client.ping())
    threaded = TaskHubGrpcClient(host_address=endpoint.removeprefix("http://"))
    client = dafx_actors.DurableAIAgentClient(threaded)
    asyncio.run(answered(client))
    asyncio.run(answered(client))
    threaded.close()


# --- Forks --------------------------------------------------------------------------------------------------------

forking = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")


@forking
def test_a_child_makes_connections_of_its_own_whenever_it_was_forked(endpoint: str) -> None:
    children = ["in the child", "in its child", "in the child again"]
    assert ran("forks", endpoint) == [
        *children,
        "in the parent",
        *children * 4,
        "paid 5",
        "in the parent again",
        "in a new client",
    ]


@forking
def test_where_a_child_cannot_connect_it_says_what_to_do(endpoint: str) -> None:
    assert ran("spoiled", endpoint) == [
        "in the parent",
        "after its event loop",
        "wrapped",
        "connections",
        "connections",
        "after it was closed",
    ]


@forking
def test_a_web_server_forks_after_its_application_was_loaded(endpoint: str) -> None:
    assert ran("preloaded", endpoint) == [f"hello-{number} (1 messages)" for number in range(3)]


@forking
def test_a_pool_of_forked_processes_uses_the_client_of_its_parent(endpoint: str) -> None:
    assert ran("pooled", endpoint) == [f"task {number} (1 messages)" for number in range(5)]


class Stuck(Faulty):
    """Takes events, and never says so."""

    async def RaiseEvent(self, request: Any, context: Any) -> Any:
        self.raised += 1
        await anyio.sleep_forever()


@pytest.mark.anyio
async def test_a_call_under_which_a_fork_comes_is_made_again_where_it_may_arrive_twice(endpoint: str) -> None:
    servicer, server = Stuck(), grpc.aio.server()
    add: Callable[..., None] = stubs.add_TaskHubSidecarServiceServicer_to_server
    add(servicer, server)
    where = Address(f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}", "default")
    await server.start()
    stuck = Backend(functools.partial(make_client, where), where)
    async with dafx_actors.DurableAIAgentClient.connect(endpoint) as client:
        waited = await client.schedule_new_orchestration("nobody's")
        heard: list[str] = []

        async def wait() -> None:
            heard.append(str((await waited.wait()).runtime_status))

        async def send() -> None:
            with pytest.raises(SchedulerUnreachable, match="to fork; what was sent may have arrived"):
                await stuck.raise_event("o1", "more", 1)
            heard.append("an event")

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            tasks.start_soon(send)
            connection = await client._backend._connections.here()
            await until_busy(connection)
            with anyio.fail_after(60):
                while not servicer.raised:
                    await anyio.sleep(0.005)
            await connections.rest()
            assert connection.idle.is_set()
            tasks.start_soon(answered, client)
            await connections.go_on()
            await waited.terminate("enough")
    assert sorted(heard) == ["TERMINATED", "an event"]
    assert servicer.raised == 1
    await stuck.close()
    await server.stop(0)


async def until_busy(connection: connections.Connection) -> None:
    with anyio.fail_after(60):
        while connection.idle.is_set():
            await anyio.sleep(0.005)


def test_a_credential_of_our_own_is_made_anew_in_a_child(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    class Made:
        def __init__(self) -> None:
            made.append(len(made))
            self.number = len(made)

        def get_token(self, *_: str) -> int:
            return self.number

    monkeypatch.setattr(_credentials, "default_credential", Made)
    credential = _credentials.OwnCredential()
    assert [credential.get_token("x"), credential.get_token("x")] == [1, 1]
    monkeypatch.setattr(os, "getpid", lambda: -1)
    assert [credential.get_token("x"), credential.get_token("x")] == [2, 2]
