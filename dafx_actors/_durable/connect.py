"""Between this process and a scheduler: addresses, credentials, clients and workers of durabletask.

The only place that knows which of durabletask's classes to make and how, and that a client may be a sync or an async
one.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeAlias

import attrs
import grpc
import grpc.aio
from durabletask.client import AsyncTaskHubGrpcClient, TaskHubGrpcClient
from durabletask.grpc_options import GrpcChannelOptions, GrpcClientResiliencyOptions, GrpcWorkerResiliencyOptions
from durabletask.worker import TaskHubGrpcWorker

from dafx_actors._durable import credentials as _credentials
from dafx_actors._durable import tokens as _tokens
from dafx_actors._durable.outages import WorkerLogger
from dafx_actors._durable.private import (
    PrivateWorker,
    begin_wait_for_end,
    channel_of,
    host_of,
    metadata_of,
    stub_on,
)
from dafx_actors.errors import ConfigurationError

DurableTaskClient: TypeAlias = TaskHubGrpcClient | AsyncTaskHubGrpcClient

DEFAULT_ENDPOINT = "http://localhost:8080"
DEFAULT_TASK_HUB = "default"
_CA_VARIABLE = "DAFX_CA_FILE"
_MAX_MESSAGE_BYTES = 128 * 1024 * 1024
"""A thread is read whole; gRPC's own limit of 4 MiB is a long conversation with a few pictures."""

_CONNECTED_WITHIN = 30.0
"""Seconds that a scheduler has to be back, and to answer, when a step reads from it."""

TRANSPORT: list[tuple[str, Any]] = [
    # A connection of one's own: gRPC shares one between all channels of a process, with its growing pauses.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.min_reconnect_backoff_ms", 2000),  # which is the time that an attempt to connect may take
    # No oftener than any server puts up with. It has the system give up a connection whose other end says nothing for
    # 20 s to what was sent; else that takes a quarter of an hour.
    ("grpc.keepalive_time_ms", 330_000),
    ("grpc.keepalive_timeout_ms", 20_000),
]
"""A scheduler is back as soon as it is back, whatever its outage was like."""

_sdk_logger = logging.getLogger("dafx_actors.durabletask")
if _sdk_logger.level == logging.NOTSET:  # what a program has set stays
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
            f"the endpoint {found.endpoint!r} has no scheme: write http:// for a scheduler without TLS (the emulator, "
            "the embedded one), or https:// for a deployed one"
        )
    return found


def credential_for(where: Address, given: Any = None) -> Any:
    """What an endpoint is sent: what was given; else the token of an embedded scheduler, where one is known.

    Raises:
        ConfigurationError: It would go through a network unencrypted, or the token cannot be read.
    """
    is_told = given is not None or bool(os.environ.get(_tokens.FILE_VARIABLE))
    if not where.is_secure and is_told and not _tokens.is_loopback(where.endpoint):
        what = "the credential" if given is not None else f"the token of {_tokens.FILE_VARIABLE}"
        raise ConfigurationError(
            f"{what} is not sent to {where.endpoint}: without TLS whoever is on the way could read it; use https://"
        )
    if given is None and _tokens.token_for(where.endpoint) is not None:
        return _tokens.SchedulerToken(where.endpoint)
    return given


def make_client(where: Address, credential: Any = None) -> AsyncTaskHubGrpcClient:
    """An async client, which sends `credential`, of either kind."""
    from durabletask.azuremanaged.client import AsyncDurableTaskSchedulerClient

    _trust(where)
    _quieten_grpc()
    return AsyncDurableTaskSchedulerClient(
        host_address=where.endpoint,
        taskhub=where.task_hub,
        token_credential=None if credential is None else _credentials.on_thread(credential),
        secure_channel=where.is_secure,
        channel_options=_channel_options(),
        # It would make another channel, and close this one under the calls that wait on it.
        resiliency_options=GrpcClientResiliencyOptions(channel_recreate_failure_threshold=0),
        logger=_sdk_logger,
    )


def make_worker(where: Address, credential: Any = None) -> TaskHubGrpcWorker:
    """A worker, which sends `credential`, a synchronous one."""
    from durabletask.azuremanaged.worker import DurableTaskSchedulerWorker

    _trust(where)
    _quieten_grpc()
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
            reconnect_backoff_cap_seconds=1.0,
        ),
        logger=WorkerLogger(where.endpoint, _sdk_logger),
    )


def _trust(where: Address) -> None:
    """Have gRPC trust the authority in DAFX_CA_FILE; it reads its own variable once, before its first connection."""
    named = os.environ.get(_CA_VARIABLE)
    if not named or not where.is_secure:
        return
    if not Path(named).is_file():
        raise ConfigurationError(f"{_CA_VARIABLE} is {named!r}, and there is no such file")
    os.environ.setdefault("GRPC_DEFAULT_SSL_ROOTS_FILE_PATH", named)


def _quieten_grpc() -> None:
    """Have gRPC's core, which looks when it makes its first channel, keep what is no error from the standard error."""
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")


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
    hubs = [value for key, value in metadata_of(client) if key == "taskhub"]
    # Without its scheme, by which `hosted` would take it for one that it can ask without the client's own settings.
    endpoint = (host_of(client) or "the client's endpoint").split("://")[-1]
    return Address(endpoint, hubs[0] if hubs else DEFAULT_TASK_HUB)


def is_connected(client: DurableTaskClient) -> bool | None:
    """Whether a client that was made here has a connection now; None where that cannot be told."""
    channel = channel_of(client)
    return channel.get_state() is grpc.ChannelConnectivity.READY if isinstance(channel, grpc.aio.Channel) else None


def _channel_options() -> GrpcChannelOptions:
    return GrpcChannelOptions(
        max_receive_message_length=_MAX_MESSAGE_BYTES,
        max_send_message_length=_MAX_MESSAGE_BYTES,
        raw_options=list(TRANSPORT),
    )


def reader_of(worker: PrivateWorker) -> TaskHubGrpcClient:
    """A client with the settings of a worker, to read threads with."""
    waits = _Waits()
    return TaskHubGrpcClient(
        host_address=worker.host_address,
        secure_channel=worker.is_secure,
        interceptors=[waits, *worker.interceptors],
        channel=None if worker.owns_channel else grpc.intercept_channel(worker.channel, waits),
        # See `make_client`.
        resiliency_options=GrpcClientResiliencyOptions(channel_recreate_failure_threshold=0),
        channel_options=worker.channel_options or _channel_options(),
        payload_store=worker.payload_store,
        data_converter=worker.data_converter,
        logger=_sdk_logger,
    )


@attrs.frozen(kw_only=True)
class _CallDetails(grpc.ClientCallDetails):
    method: str
    timeout: float | None
    metadata: Any
    credentials: Any
    wait_for_ready: bool | None
    compression: Any


class _Waits(grpc.UnaryUnaryClientInterceptor):
    """Has what a step reads wait until there is a connection, as its answer does.

    The work of a scheduler that was restarted may come before the other connections of its worker are back; what they
    cannot read at once would be recorded as the step's failure.
    """

    def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        """Wait, at most `_CONNECTED_WITHIN` seconds where the call has no time of its own."""
        given = client_call_details
        details = _CallDetails(
            method=given.method,
            timeout=_CONNECTED_WITHIN if given.timeout is None else given.timeout,
            metadata=given.metadata,
            credentials=given.credentials,
            wait_for_ready=True,
            compression=given.compression,
        )
        return continuation(details, request)


def channels_of(worker: PrivateWorker) -> Callable[[], tuple[grpc.Channel, bool]]:
    """Makes channels with the settings of a worker, or gives the one that it was given; whether it is to be closed."""
    return worker.channels(_channel_options())


def intercepts(worker: PrivateWorker) -> bool:
    """Whether users' own code looks at each call of a worker."""
    return not all(type(each).__module__.startswith("durabletask.") for each in worker.interceptors)


def is_plain(worker: PrivateWorker) -> bool:
    """Whether a worker makes its own channels, without TLS, and nobody looks at its calls."""
    host = (worker.host_address or "").lower()
    is_secure = worker.is_secure or host.startswith(("https://", "grpcs://"))
    return worker.owns_channel and not is_secure and not intercepts(worker)


def traces(worker: TaskHubGrpcWorker) -> bool:
    """Whether `worker` makes OpenTelemetry's spans: without a provider, which the program sets, they are nothing."""
    api: Any = sys.modules.get("opentelemetry.trace") if worker.emit_trace_spans else None
    return api is not None and not type(api.get_tracer_provider()).__module__.startswith("opentelemetry.trace")


class EndWatch:
    """Waits for orchestrations to end, without a thread for each: durabletask's own call blocks one.

    On a channel of its own, so that reads never queue behind these long calls.
    """

    def __init__(self, worker: PrivateWorker) -> None:
        self._channel, self._owns_channel = channels_of(worker)()
        self._stub: Any = stub_on(self._channel)
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
            call = begin_wait_for_end(self._stub, instance_id)
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
