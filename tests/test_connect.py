"""Between a client and a scheduler: what is sent again, what is not, and where things are."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import durabletask.internal.orchestrator_service_pb2 as pb
import durabletask.internal.orchestrator_service_pb2_grpc as stubs  # pyright: ignore[reportMissingTypeStubs]
import grpc
import grpc.aio
import pytest

from dafx_actors import DurableAIAgentClient, DurableAIAgentWorker
from dafx_actors._durable.backend import Backend
from dafx_actors._durable.connect import Address, address, make_client
from dafx_actors.errors import ConfigurationError, SchedulerRefused, SchedulerUnreachable, TurnTimeout

pytestmark = pytest.mark.anyio


class Faulty(stubs.TaskHubSidecarServiceServicer):
    """A scheduler that fails its first calls with the statuses it is given, and then works."""

    def __init__(self, *failures: grpc.StatusCode) -> None:
        self.failures = list(failures)
        self.started: list[str] = []
        self.raised = 0

    async def StartInstance(self, request: Any, context: Any) -> Any:
        self.started.append(request.instanceId)
        if self.failures:
            await context.abort(self.failures.pop(0), "for the test")
        return pb.CreateInstanceResponse(instanceId=request.instanceId)

    async def RaiseEvent(self, request: Any, context: Any) -> Any:
        self.raised += 1
        await context.abort(grpc.StatusCode.UNAVAILABLE, "for the test")

    async def WaitForInstanceCompletion(self, request: Any, context: Any) -> Any:
        await context.abort(grpc.StatusCode.UNAVAILABLE, "for the test")


@asynccontextmanager
async def backend_of(servicer: Faulty) -> AsyncGenerator[Backend]:
    server = grpc.aio.server()
    add: Callable[..., None] = stubs.add_TaskHubSidecarServiceServicer_to_server
    add(servicer, server)
    where = Address(f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}", "default")
    await server.start()
    backend = Backend(make_client(where), where)
    try:
        yield backend
    finally:
        await backend.close()
        await server.stop(0)


@pytest.mark.parametrize(
    "lost",
    [
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.DEADLINE_EXCEEDED,  # found by killing a scheduler that was slow: it came out as gRPC's error
    ],
)
async def test_a_start_that_the_transport_lost_is_sent_again_with_the_same_id(lost: grpc.StatusCode) -> None:
    servicer = Faulty(lost, lost)
    async with backend_of(servicer) as backend:
        assert await backend.start("name", "turn-1", None)
    assert servicer.started == ["turn-1"] * 3


async def test_a_start_that_had_arrived_before_it_was_lost_is_not_an_error() -> None:
    servicer = Faulty(grpc.StatusCode.CANCELLED, grpc.StatusCode.ALREADY_EXISTS)
    async with backend_of(servicer) as backend:
        assert not await backend.start("name", "turn-1", None)


async def test_what_the_scheduler_refuses_is_not_sent_again() -> None:
    servicer = Faulty(grpc.StatusCode.INVALID_ARGUMENT)
    async with backend_of(servicer) as backend:
        with pytest.raises(grpc.RpcError):
            await backend.start("name", "turn-1", None)
    assert servicer.started == ["turn-1"]


@pytest.mark.parametrize("status", [grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAUTHENTICATED])
async def test_a_full_disk_or_a_missing_token_is_an_error_of_ours(status: grpc.StatusCode) -> None:
    """Found by the chaos run: a full disk came out of `run()` as an error of gRPC."""
    servicer = Faulty(status)
    async with backend_of(servicer) as backend:
        with pytest.raises(SchedulerRefused, match="for the test") as caught:
            await backend.start("name", "turn-1", None)
    assert (caught.value.status, servicer.started) == (status.name, ["turn-1"])


async def test_an_event_that_got_lost_is_not_sent_again_for_it_may_have_arrived() -> None:
    servicer = Faulty()
    async with backend_of(servicer) as backend:
        with pytest.raises(SchedulerUnreachable, match="for the test"):
            await backend.raise_event("turn-1", "granted", 1)
    assert servicer.raised == 1


@pytest.mark.parametrize("start_timeout", [0.05, 10.0])
async def test_a_timeout_is_kept_also_while_the_scheduler_is_away(start_timeout: float) -> None:
    async with backend_of(Faulty()) as backend:
        client = DurableAIAgentClient(backend._client, start_timeout=start_timeout)
        orchestration = await client.schedule_new_orchestration("name")
        with anyio.fail_after(30):  # it is sent again for 60 s where nobody sets a bound
            with pytest.raises(TurnTimeout):
                await client.get_agent("Joker").run("Hello", timeout=0.1)
            with pytest.raises(TimeoutError, match="has not ended within"):
                await orchestration.wait(timeout=0.1)


@pytest.mark.parametrize("wrapper", [DurableAIAgentClient, DurableAIAgentWorker])
def test_only_durabletasks_own_can_be_wrapped(wrapper: Any) -> None:
    with pytest.raises(
        ConfigurationError, match=rf"not 'http://h'; `{wrapper.__name__}\.connect\(endpoint\)` makes one"
    ):
        wrapper("http://h")


def test_the_address_is_what_is_given_else_the_environments_else_the_emulators() -> None:
    environ = {"ENDPOINT": "https://deployed.example/", "TASKHUB": "mine"}
    assert address("http://here:1", "given", environ) == Address("http://here:1", "given")
    assert address(environ=environ) == Address("https://deployed.example", "mine")
    assert address(environ={}) == Address("http://localhost:8080", "default")
    assert address(environ=environ).is_secure
    assert not address(environ={}).is_secure


def test_an_endpoint_without_a_scheme_is_a_mistake_because_it_decides_about_tls() -> None:
    with pytest.raises(ConfigurationError, match="has no scheme"):
        address("localhost:8080")
