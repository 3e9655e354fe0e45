"""`EmbeddedScheduler`: a durable Durable Task backend inside any asyncio program, or on a thread of its own."""

from __future__ import annotations

import ipaddress
import logging
import socket
import sys
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs
import grpc
import grpc.aio
from anyio.from_thread import start_blocking_portal

from dafx_actors._secrets import keep, key_given
from dafx_actors.errors import ConfigurationError, SchedulerCannotListen, SchedulerNotSecured
from dafx_actors.scheduler._ground.clock import SystemClock
from dafx_actors.scheduler._hub.engine import Engine, Patience, Retention
from dafx_actors.scheduler._serve.service import PING_EVERY, Service

if TYPE_CHECKING:
    import os
    from collections.abc import Generator
    from types import TracebackType
    from typing import Self

    from dafx_actors.scheduler._ground.clock import Clock
    from dafx_actors.scheduler.storage.database import Synchronous

logger = logging.getLogger(__name__)

MAX_MESSAGE_BYTES: Final = 64 * 2**20
"""The largest message that the scheduler receives; gRPC refuses a larger one and names this limit."""

_MANY_PENDING: Final = 100_000
"""Requests that may wait to be accepted. gRPC's own limits cancel some calls of a burst of 2,000."""

_GRACE: Final = 3.0
"""Seconds that calls have to end when the scheduler stops: all are told at once, and a busy machine takes a while."""


@attrs.frozen(kw_only=True)
class Tls:
    """A certificate with its private key, both as PEM files."""

    certificate: Path = attrs.field(converter=Path)
    key: Path = attrs.field(converter=Path)

    def credentials(self) -> Any:
        """What gRPC wants.

        Raises:
            ConfigurationError: a file cannot be read.
        """
        try:
            pair = (self.key.read_bytes(), self.certificate.read_bytes())
        except OSError as error:
            raise ConfigurationError((f"The TLS certificate or its key cannot be read: {error}",)) from error
        return grpc.ssl_server_credentials([pair])


class EmbeddedScheduler:
    """The scheduler, listening for as long as `async with` lasts.

    ::

        async with EmbeddedScheduler(db="dafx.db") as scheduler:
            client = TaskHubGrpcClient(host_address=scheduler.endpoint)

    Stopping it never loses anything that was acknowledged, nor does killing its process.
    """

    def __init__(
        self,
        db: str | os.PathLike[str] | None = None,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        synchronous: Synchronous = "full",
        token: str | None = None,
        tls: Tls | None = None,
        retention: Retention | None = None,
        patience: Patience | None = None,
        backups: str | os.PathLike[str] | None = None,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
        worker_timeout: float = 20.0,
        ping_every: float = PING_EVERY,
        clock: Clock | None = None,
    ) -> None:
        """Describe a scheduler; nothing is opened yet.

        Args:
            db: the database file, made if it is missing, in a folder that is there. None keeps everything in memory:
                nothing outlives the scheduler.
            host: where to listen. Anything but this machine itself needs both `tls` and `token`.
            port: where to listen; 0 takes any free port.
            synchronous: `full` waits for the disk at every commit, so that what was acknowledged survives a power
                cut. `normal` does not wait: the end of the process, in whatever way, loses nothing, but a power cut
                or a crash of the machine may take the last commits, never the file's consistency.
            token: what clients and workers must send as `authorization: Bearer ...`: those of durabletask with
                `metadata=[("authorization", "Bearer ...")]`, those of the hosted scheduler with a `token_credential`
                that gives it.
            tls: encrypts connections; clients and workers then need `secure_channel=True`, and, where no public
                authority has signed the certificate, GRPC_DEFAULT_SSL_ROOTS_FILE_PATH in their environment.
            retention: which ended orchestrations are removed by themselves; none by default.
            patience: how long a worker that stays connected may hold work.
            backups: the folder for backups, made by the first; by default `dafx.db-backups` beside `dafx.db`.
            max_message_bytes: the largest message that is accepted.
            worker_timeout: seconds after which a peer that does not answer (stopped, or cut off) counts as gone.
            ping_every: seconds between signs of life to idle workers.
            clock: tells the time.

        Raises:
            SchedulerNotSecured: it would listen to other machines without TLS and a token.
            ConfigurationError: the token has characters that cannot be sent.
        """
        missing = tuple(what for what, given in (("TLS", tls), ("a bearer token", token)) if not given)
        if missing and not _is_loopback(host):
            raise SchedulerNotSecured(host, missing)
        self._host = host
        self._wanted_port = port
        self._tls = tls
        self._token: str | None = key_given("`token`", token)
        keep(self, self._token)
        self._options = _options(max_message_bytes, worker_timeout)
        self._ping_every = ping_every
        self.engine = Engine(
            db,
            synchronous=synchronous,
            clock=clock or SystemClock(),
            retention=retention or Retention(),
            patience=patience or Patience(),
            backups=backups,
        )
        self._stack = AsyncExitStack()
        self.port = port
        """The port that it listens on, once it does."""

    @property
    def endpoint(self) -> str:
        """The address for clients and workers, such as `http://127.0.0.1:8080`."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"{'https' if self._tls else 'http'}://{host}:{self.port}"

    async def __aenter__(self) -> Self:
        """Open the database, take up the work in it, and listen.

        Raises:
            SchedulerInUse: another process has the database open.
            SchedulerDatabaseError: the database cannot be used.
            SchedulerCannotListen: the address cannot be had.
            ConfigurationError: the certificate cannot be read.
        """
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self.engine)
            service = Service(self.engine, token=self._token, ping_every=self._ping_every)
            server = grpc.aio.server(options=self._options)
            server.add_generic_rpc_handlers(service.handlers())
            self.port = self._bind(server)
            await server.start()
            stack.push_async_callback(server.stop, _GRACE)
            stack.push_async_callback(service.stop)
            self._stack = stack.pop_all()
        logger.info("The scheduler listens on %s; its database is %s", self.endpoint, self.engine.store.location.path)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop listening, write what is left, close the database."""
        await self._stack.aclose()

    def _bind(self, server: Any) -> int:
        self._check_port()
        address = f"[{self._host}]:{self._wanted_port}" if ":" in self._host else f"{self._host}:{self._wanted_port}"
        try:
            if self._tls is None:
                port = server.add_insecure_port(address)
            else:
                port = server.add_secure_port(address, self._tls.credentials())
        except RuntimeError as error:
            raise SchedulerCannotListen(address, str(error)) from error
        if not port:
            raise SchedulerCannotListen(address, "it could not be bound")
        return int(port)

    def _check_port(self) -> None:
        """Whether the port can be had, before gRPC tries: it would print lines of its own."""
        if not self._wanted_port:
            return
        try:
            found = socket.getaddrinfo(self._host, self._wanted_port, type=socket.SOCK_STREAM)
            for family, kind, protocol, _, where in found:
                with socket.socket(family, kind, protocol) as probe:
                    if sys.platform != "win32":  # There it would mean something else.
                        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    probe.bind(where)
        except (OSError, OverflowError) as error:
            address = f"{self._host}:{self._wanted_port}"
            raise SchedulerCannotListen(address, getattr(error, "strerror", None) or str(error)) from error

    @contextmanager
    def on_a_thread(self) -> Generator[Self]:
        """Run it on an event loop in a thread of its own, for programs that have none.

        ::

            with EmbeddedScheduler(db="dafx.db").on_a_thread() as scheduler:
                client = TaskHubGrpcClient(host_address=scheduler.endpoint)
        """
        with start_blocking_portal("asyncio", name="dafx-scheduler") as portal, portal.wrap_async_context_manager(self):
            yield self


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _options(max_message_bytes: int, worker_timeout: float) -> list[tuple[str, int]]:
    half = max(int(worker_timeout * 500), 1)
    return [
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.server.max_pending_requests", _MANY_PENDING),
        ("grpc.server.max_pending_requests_hard_limit", _MANY_PENDING),
        # Two schedulers on one port would each see half of the calls.
        ("grpc.so_reuseport", 0),
        # A peer that was stopped keeps its connection; only that it does not answer gives it away.
        ("grpc.keepalive_time_ms", half),
        ("grpc.keepalive_timeout_ms", half),
        ("grpc.http2.ping_timeout_ms", half),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.http2.max_ping_strikes", 0),
        ("grpc.http2.min_ping_interval_without_data_ms", 1_000),
    ]
