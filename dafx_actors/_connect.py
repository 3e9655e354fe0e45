"""Between this process and a scheduler: addresses, credentials, clients and workers of durabletask.

The only place that knows which of durabletask's classes to make and how, that a client may be a sync or an async
one, and what gRPC's status codes mean to us. Only `reader_of` and `EndWatch` read private names of a worker, and only
`address_of` those of a client.
"""

from __future__ import annotations

import functools
import logging
import math
import os
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, cast

import anyio
import anyio.to_thread
import attrs
import grpc
import grpc.aio
from durabletask.client import AsyncTaskHubGrpcClient, EntityQuery, OrchestrationState, TaskHubGrpcClient
from durabletask.entities import EntityInstanceId
from durabletask.grpc_options import GrpcChannelOptions, GrpcWorkerResiliencyOptions
from durabletask.internal.orchestrator_service_pb2 import GetInstanceRequest
from durabletask.internal.orchestrator_service_pb2_grpc import (  # pyright: ignore[reportMissingTypeStubs]
    TaskHubSidecarServiceStub,
)
from durabletask.internal.shared import get_grpc_channel  # pyright: ignore[reportMissingTypeStubs]
from durabletask.worker import TaskHubGrpcWorker

from dafx_actors.errors import ConfigurationError, SchedulerRefused, SchedulerUnreachable
from dafx_actors.transcript import Json

if TYPE_CHECKING:
    from dafx_actors.scheduler.hosted import Hosted

T = TypeVar("T")
DurableTaskClient: TypeAlias = TaskHubGrpcClient | AsyncTaskHubGrpcClient

DEFAULT_ENDPOINT = "http://localhost:8080"
DEFAULT_TASK_HUB = "default"
_MAX_MESSAGE_BYTES = 128 * 1024 * 1024
"""A thread is read whole; gRPC's own limit of 4 MiB is a long conversation with a few pictures."""

_sdk_logger = logging.getLogger("dafx_actors.durabletask")
_sdk_logger.setLevel(logging.WARNING)  # durabletask tells of every call at INFO
# Every orderly stop ends the stream of work items, which it tells as a warning.
_sdk_logger.addFilter(lambda record: "Locally cancelled by application" not in record.getMessage())


@attrs.frozen
class Address:
    """Where a scheduler is, and which of its task hubs is meant."""

    endpoint: str
    task_hub: str

    @property
    def is_secure(self) -> bool:
        """Whether the endpoint wants TLS and a credential."""
        return self.endpoint.lower().startswith(("https://", "grpcs://"))


def address(
    endpoint: str | None = None, task_hub: str | None = None, environ: Mapping[str, str] = os.environ
) -> Address:
    """What was given, else ENDPOINT and TASKHUB of the environment, else the emulator's defaults.

    Raises:
        ConfigurationError: The endpoint has no scheme: it decides about TLS and is not guessed.
    """
    found = Address(
        (endpoint or environ.get("ENDPOINT") or DEFAULT_ENDPOINT).rstrip("/"),
        task_hub or environ.get("TASKHUB") or DEFAULT_TASK_HUB,
    )
    if not found.endpoint.lower().startswith(("http://", "https://", "grpc://", "grpcs://")):
        raise ConfigurationError(
            f"ENDPOINT {found.endpoint!r} has no scheme: write http:// for a scheduler without TLS (the emulator, the "
            "embedded one), or https:// for a deployed one"
        )
    return found


def make_client(where: Address, credential: Any = None) -> AsyncTaskHubGrpcClient:
    """An async client. A secure endpoint gets `credential`, or Azure's default one."""
    from durabletask.azuremanaged.client import AsyncDurableTaskSchedulerClient

    if where.is_secure and credential is None:
        from azure.identity.aio import DefaultAzureCredential

        credential = DefaultAzureCredential()
    return AsyncDurableTaskSchedulerClient(
        host_address=where.endpoint,
        taskhub=where.task_hub,
        token_credential=credential,
        secure_channel=where.is_secure,
        channel_options=_channel_options(),
        logger=_sdk_logger,
    )


def make_worker(where: Address, credential: Any = None) -> TaskHubGrpcWorker:
    """A worker. A secure endpoint gets `credential`, or Azure's default one."""
    from durabletask.azuremanaged.worker import DurableTaskSchedulerWorker

    if where.is_secure and credential is None:
        from azure.identity import DefaultAzureCredential

        credential = DefaultAzureCredential()
    return DurableTaskSchedulerWorker(
        host_address=where.endpoint,
        taskhub=where.task_hub,
        token_credential=credential,
        secure_channel=where.is_secure,
        channel_options=_channel_options(),
        resiliency_options=GrpcWorkerResiliencyOptions(
            # A lost one is not noticed before, and `stop` waits for it.
            hello_timeout_seconds=5.0,
            reconnect_backoff_base_seconds=0.2,
            reconnect_backoff_cap_seconds=5.0,
        ),
        logger=_sdk_logger,
    )


def check_wrapped(what: str, given: object, *kinds: type) -> None:
    """See that `DurableAIAgentClient` or `DurableAIAgentWorker` wraps what it can.

    Raises:
        ConfigurationError: It is something else.
    """
    if not isinstance(given, kinds):
        ours = f"DurableAIAgent{what}"
        raise ConfigurationError(
            f"{ours} wraps a durabletask {what.lower()}, such as a DurableTaskScheduler{what}, not {given!r}; "
            f"`{ours}.connect(endpoint)` makes one"
        )


def address_of(client: DurableTaskClient) -> Address:
    """Where a client that was wrapped is connected to, for error messages; as far as it can be told."""
    private: Any = client
    owns = getattr(private, "_owns_channel", False)
    endpoint = getattr(private, "_host_address", None) if owns else None
    sent = [getattr(each, "_metadata", None) or () for each in getattr(private, "_interceptors", None) or ()]
    hubs = [value for metadata in sent for key, value in metadata if key == "taskhub"]
    # Without its scheme, by which `hosted` would take it for one that it can ask without the client's own settings.
    return Address((endpoint or "the client's endpoint").split("://")[-1], hubs[0] if hubs else DEFAULT_TASK_HUB)


def _channel_options() -> GrpcChannelOptions:
    return GrpcChannelOptions(max_receive_message_length=_MAX_MESSAGE_BYTES, max_send_message_length=_MAX_MESSAGE_BYTES)


def reader_of(worker: TaskHubGrpcWorker) -> TaskHubGrpcClient:
    """A client with the settings of `worker`, to read threads with.

    durabletask has no public way to ask a worker for them; `tests/test_private_names.py` says so when they change.
    """
    private: Any = worker
    return TaskHubGrpcClient(
        host_address=private._host_address,  # noqa: SLF001 - see above
        secure_channel=private._secure_channel,  # noqa: SLF001
        interceptors=private._interceptors,  # noqa: SLF001
        channel=None if private._owns_channel else private._channel,  # noqa: SLF001
        channel_options=private._channel_options or _channel_options(),  # noqa: SLF001
        payload_store=private._payload_store,  # noqa: SLF001
        data_converter=private._data_converter,  # noqa: SLF001
        logger=_sdk_logger,
    )


def channels_of(worker: TaskHubGrpcWorker) -> Callable[[], tuple[grpc.Channel, bool]]:
    """Makes channels with the settings of `worker`, or gives the one that it was given; whether it is to be closed."""
    private: Any = worker
    if not private._owns_channel:  # noqa: SLF001 - see above
        given: grpc.Channel = private._channel  # noqa: SLF001
        return lambda: (given, False)
    settings = (private._host_address, private._secure_channel, private._interceptors)  # noqa: SLF001
    options = private._channel_options or _channel_options()  # noqa: SLF001
    return lambda: (get_grpc_channel(*settings, options), True)


def intercepts(worker: TaskHubGrpcWorker) -> bool:
    """Whether users' own code looks at each call of `worker`."""
    private: Any = worker
    interceptors = private._interceptors or ()  # noqa: SLF001 - see above
    return not all(type(each).__module__.startswith("durabletask.") for each in interceptors)


def is_plain(worker: TaskHubGrpcWorker) -> bool:
    """Whether `worker` makes its own channels, without TLS, and nobody looks at its calls."""
    private: Any = worker
    host = (private._host_address or "").lower()  # noqa: SLF001 - see above
    is_secure = private._secure_channel or host.startswith(("https://", "grpcs://"))  # noqa: SLF001
    return bool(private._owns_channel and not is_secure and not intercepts(worker))  # noqa: SLF001


def traces(worker: TaskHubGrpcWorker) -> bool:
    """Whether `worker` makes OpenTelemetry's spans: without a provider, which the program sets, they are nothing."""
    api: Any = sys.modules.get("opentelemetry.trace") if worker.emit_trace_spans else None
    return api is not None and not type(api.get_tracer_provider()).__module__.startswith("opentelemetry.trace")


class EndWatch:
    """Waits for orchestrations to end, without a thread for each: durabletask's own call blocks one.

    On a channel of its own, so that reads never queue behind these long calls. Private names again: those of
    `reader_of`, and durabletask's messages.
    """

    def __init__(self, worker: TaskHubGrpcWorker) -> None:
        self._channel, self._owns_channel = channels_of(worker)()
        self._stub: Any = TaskHubSidecarServiceStub(self._channel)  # type: ignore[no-untyped-call]
        # Interceptors may block, for a token or until the answer is there: not where agents run.
        self._thread = ThreadPoolExecutor(1, "dafx-watch")

    def watch(self, instance_id: str, heard: Callable[[bool], None]) -> Callable[[], None]:
        """Call `heard` from another thread: True when the orchestration has ended, False where the call got lost.

        Gives a function that stops it; `heard` may still be called after that.
        """
        calls: list[grpc.Future[Any]] = []
        stopped = False

        def begin() -> None:
            if stopped:
                return
            request = GetInstanceRequest(instanceId=instance_id, getInputsAndOutputs=False)
            call: grpc.Future[Any] = self._stub.WaitForInstanceCompletion.future(request)
            calls.append(call)
            call.add_done_callback(lambda done: heard(not done.cancelled() and done.exception() is None))
            if stopped:
                call.cancel()

        def stop() -> None:
            nonlocal stopped
            stopped = True
            for call in calls:
                call.cancel()

        self._thread.submit(begin)
        return stop

    def close(self) -> None:
        """Give back the connection; what is still waited for counts as lost."""
        if self._owns_channel:
            self._channel.close()
        self._thread.shutdown(wait=False, cancel_futures=True)


# --- Calls, and what becomes of them ------------------------------------------------------------------------------

MARGIN = 0.25
"""Seconds that a scheduler has to say that a poll is over, before it is not waited for any more."""
_LOST = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.ABORTED}
"""The transport's own failures: the call may or may not have arrived, and may be made again."""

_REFUSED = {
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.DATA_LOSS,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.PERMISSION_DENIED,
}
"""The scheduler's own state, or ours, and not what it was asked: a full disk, a token that is missing."""

_FIRST_PATIENCE, _PATIENCE = 5.0, 60.0
"""Seconds that calls are made again when they get lost: at first, and once the scheduler has answered."""


def code_of(error: BaseException) -> grpc.StatusCode | None:
    """The status of a failed call, or None if `error` is something else."""
    call: Any = error
    return call.code() if isinstance(error, grpc.RpcError) and hasattr(error, "code") else None


class Backend:
    """A scheduler as a client needs it: async, patient, and with errors that say something."""

    def __init__(self, client: DurableTaskClient, where: Address) -> None:
        self.where = where
        self._client: Any = client
        self._is_async = isinstance(client, AsyncTaskHubGrpcClient)
        # A sync client's calls hold a thread each while they wait; gRPC ends them, so they cannot pile up for ever.
        self._threads = anyio.CapacityLimiter(2048)
        self._longest_wait = 60.0 if self._is_async else 10.0
        self._telling: grpc.aio.Channel | None = None
        self._answered = False

    async def close(self) -> None:
        """Close the client's channel, and our own."""
        if self._telling is not None:
            await self._telling.close()
        closing = self._client.close()
        if self._is_async:
            await closing

    async def hosted(self) -> Hosted | None:
        """What the connected workers take, where the scheduler can tell: the embedded one, at an address known to us.

        Raises:
            SchedulerUnreachable: Nothing answers.
        """
        if not self.where.endpoint.lower().startswith(("http://", "grpc://")):
            return None
        # A service of the embedded scheduler alone: programs that never ask need not import any of it.
        from dafx_actors.scheduler.hosted import hosted_async

        if self._telling is None:
            self._telling = grpc.aio.insecure_channel(self.where.endpoint.split("://", 1)[1])
        asking = functools.partial(hosted_async, self._telling, [("taskhub", self.where.task_hub)])
        return await self._patiently(asking)

    async def start(self, name: str, instance_id: str, input: Json) -> bool:
        """Start an orchestration; False where the id exists already. Sent again, with the same id, when it got lost.

        Raises:
            SchedulerUnreachable: Nothing answers.
        """
        starting = functools.partial(
            self._call, "schedule_new_orchestration", name, input=input, instance_id=instance_id
        )
        try:
            await self._patiently(starting)
        except grpc.RpcError as error:
            if code_of(error) is not grpc.StatusCode.ALREADY_EXISTS:
                raise
            return False
        return True

    async def wait(self, instance_id: str, seconds: float, *, at_most: float = math.inf) -> OrchestrationState | None:
        """Wait for an orchestration to end, one long poll long; None where it has not ended by then.

        Args:
            instance_id: The orchestration.
            seconds: How long the poll may be.
            at_most: Seconds after which it is over, also where the transport loses the poll and it is made again.

        Raises:
            SchedulerUnreachable: Nothing answers.
        """
        poll = min(seconds, self._longest_wait)
        waiting = functools.partial(self._call, "wait_for_orchestration_completion", instance_id, timeout=poll)
        with anyio.move_on_after(at_most + MARGIN):
            try:
                return await self._patiently(waiting)
            except TimeoutError:
                pass
        return None

    async def state(self, instance_id: str) -> OrchestrationState | None:
        """An orchestration with its input and output, or None where there is none.

        Raises:
            SchedulerUnreachable: Nothing answers.
        """
        return await self._patiently(functools.partial(self._call, "get_orchestration_state", instance_id))

    async def terminate(self, instance_id: str, reason: str) -> None:
        """End an orchestration, wherever it stands.

        Raises:
            SchedulerUnreachable: Nothing answers.
        """
        ending = functools.partial(self._call, "terminate_orchestration", instance_id, output=reason)
        await self._patiently(ending)

    async def signal(self, entity: EntityInstanceId, operation: str, input: Json) -> None:
        """Send an operation to an entity. Not repeated when it got lost: it might arrive twice.

        Raises:
            SchedulerUnreachable: It may or may not have arrived.
        """
        signalling = functools.partial(self._call, "signal_entity", entity, operation, input)
        await self._patiently(signalling, again=False)

    async def raise_event(self, instance_id: str, name: str, data: Json) -> None:
        """Raise an event for an orchestration. Not repeated when it got lost: it might arrive twice.

        Raises:
            SchedulerUnreachable: Nothing answered; the event may have arrived.
        """
        raising = functools.partial(self._call, "raise_orchestration_event", instance_id, name, data=data)
        await self._patiently(raising, again=False)

    async def thread(self, entity_id: EntityInstanceId) -> Json:
        """The stored document of a thread, or None where there is none.

        Raises:
            SchedulerUnreachable: Nothing answers.
        """
        found = await self._patiently(functools.partial(self._call, "get_entity", entity_id))
        return None if found is None else found.get_typed_state()

    async def threads(self, entity: str) -> dict[str, Json]:
        """The stored documents of all threads of an entity, by their keys.

        Raises:
            SchedulerUnreachable: Nothing answers.
        """
        query = EntityQuery(instance_id_starts_with=f"@{entity.lower()}@")
        found = await self._patiently(functools.partial(self._call, "get_all_entities", query))
        return {each.id.key: each.get_typed_state() for each in found}

    async def _call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        call = functools.partial(getattr(self._client, method), *args, **kwargs)
        if self._is_async:
            return await call()
        return await anyio.to_thread.run_sync(call, abandon_on_cancel=True, limiter=self._threads)

    async def _patiently(self, call: Callable[[], Awaitable[T]], *, again: bool = True) -> T:
        """Make a call, `again` and again at growing intervals while the transport loses it.

        A scheduler that never answered is given up soon: it may not be there at all. One that did is being restarted.

        Raises:
            SchedulerUnreachable: Nothing answers.
            SchedulerRefused: It answers that it cannot.
        """
        give_up, pause = time.monotonic() + (_PATIENCE if self._answered else _FIRST_PATIENCE), 0.05
        while True:
            try:
                result = await call()
            except TimeoutError:
                self._answered = True
                raise
            except grpc.RpcError as error:
                code, details = code_of(error), cast("Callable[[], str | None]", getattr(error, "details", str))
                if code in _REFUSED:
                    self._answered = True
                    raise SchedulerRefused(self.where.endpoint, code.name, details() or "") from error
                if code not in _LOST:
                    self._answered = True
                    raise
                if not again or time.monotonic() + pause > give_up:
                    raise SchedulerUnreachable(self.where.endpoint, details() or "") from error
            else:
                self._answered = True
                return result
            await anyio.sleep(pause)
            pause = min(pause * 2, 1.0)
