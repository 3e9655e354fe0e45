"""The gRPC server: with `streams.py` all of the scheduler that speaks gRPC (its small clients are in `hosted.py`).

Calls are looked up by name in tables, and answered by functions that know nothing of gRPC. Two things are done
here and nowhere else: finding the task hub and checking the token in the metadata of a call, and turning errors
into statuses.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
from typing import TYPE_CHECKING, Any, cast

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from dafx_actors._durable.bundles import CONNECT, unpack
from dafx_actors._durable.bundles import SERVICE as WORK_SERVICE
from dafx_actors.errors import SchedulerError, SchedulerReadFailed, SchedulerWriteFailed
from dafx_actors.scheduler._ground.proto import LARGE, pb, serialize
from dafx_actors.scheduler._hub.hub import Refused
from dafx_actors.scheduler._serve import admin as _admin
from dafx_actors.scheduler._serve import pages as _pages
from dafx_actors.scheduler._serve import requests as _requests
from dafx_actors.scheduler._serve import updates as _updates
from dafx_actors.scheduler._serve.streams import BundleStream, Context, WorkStream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable

    from dafx_actors.scheduler._hub.engine import Engine
    from dafx_actors.scheduler._hub.hub import TaskHub
    from dafx_actors.scheduler._rules.dispatch import Worker

logger = logging.getLogger("dafx_actors.scheduler._service")

SERVICE = "TaskHubSidecarService"
DEFAULT_HUB = "default"
PING_EVERY = 30.0
"""Seconds; workers give up a stream that was silent for 120."""


class _Guarded(grpc.GenericRpcHandler):
    """Handlers behind a guard, who looks at the metadata only: a call without the token is ended unread."""

    def __init__(self, handlers: Any, is_authorized: Callable[[Iterable[tuple[str, str | bytes]]], bool]) -> None:
        self._handlers = handlers
        self._is_authorized = is_authorized
        self._refusal: Any = grpc.stream_stream_rpc_method_handler(self._refuse)

    def service(self, handler_call_details: Any) -> Any:
        """The handler of a call; None where there is none of that name."""
        handler = self._handlers.service(handler_call_details)
        if handler is None or self._is_authorized(handler_call_details.invocation_metadata or ()):
            return handler
        return self._refusal

    async def _refuse(self, _: object, context: Context) -> None:
        await context.abort(
            grpc.StatusCode.UNAUTHENTICATED, "This scheduler wants its token, as `authorization: Bearer ...`."
        )


class Service:
    """Answers calls for an engine."""

    def __init__(self, engine: Engine, *, token: str | None, ping_every: float = PING_EVERY) -> None:
        """Answer nobody yet.

        Args:
            engine: does what calls ask for.
            token: what every call must carry as `authorization: Bearer ...`; None asks for nothing.
            ping_every: seconds between signs of life on idle streams.
        """
        self._engine = engine
        self._authorization = None if token is None else f"Bearer {token}".encode()
        self._ping_every = ping_every
        self._streams: set[WorkStream] = set()
        self._stopping = False
        self._pinger: asyncio.TimerHandle | None = None

    def handlers(self) -> tuple[Any, ...]:
        """What to register with a server.

        Each asks for the token before it reads what was sent, which may be large.
        """
        return tuple(_Guarded(handlers, self._is_authorized) for handlers in self._handlers())

    def _handlers(self) -> tuple[Any, ...]:
        tasks: dict[str, Any] = {name: self._unary(cls, handler) for name, (cls, handler) in _requests.UNARY.items()}
        tasks.update({name: self._unary(cls, handler) for name, (cls, handler) in _pages.UNARY.items()})
        tasks["Hello"] = grpc.unary_unary_rpc_method_handler(self._hello)
        tasks["GetWorkItems"] = grpc.unary_stream_rpc_method_handler(self._get_work_items)
        tasks["StreamInstanceHistory"] = grpc.unary_stream_rpc_method_handler(
            self._stream_history, response_serializer=serialize
        )
        admin: dict[str, Any] = {
            name: grpc.unary_unary_rpc_method_handler(self._administer(handler))
            for name, handler in _admin.METHODS.items()
        }
        updates: dict[str, Any] = {
            name: grpc.unary_unary_rpc_method_handler(self._administer(handler))
            for name, handler in _updates.METHODS.items()
        }
        work: dict[str, Any] = {
            "Hello": grpc.unary_unary_rpc_method_handler(self._hello),
            "Connect": grpc.stream_stream_rpc_method_handler(self._connect),
        }
        return (
            grpc.method_handlers_generic_handler(SERVICE, tasks),
            grpc.method_handlers_generic_handler(WORK_SERVICE, work),
            grpc.method_handlers_generic_handler(_admin.SERVICE, admin),
            grpc.method_handlers_generic_handler(_updates.SERVICE, updates),
        )

    async def stop(self) -> None:
        """End every stream and every wait, so that workers and clients look for the next scheduler."""
        self._stopping = True
        if self._pinger is not None:
            self._pinger.cancel()
        for stream in self._streams:
            stream.end()
        for hub in self._engine.hubs.values():
            hub.waiters.stop(Refused("UNAVAILABLE", "The scheduler is stopping."))
            hub.views.stop(Refused("UNAVAILABLE", "The scheduler is stopping."))

    # --- every call ------------------------------------------------------------------------------------------------

    def _is_authorized(self, metadata: Iterable[tuple[str, str | bytes]]) -> bool:
        if self._authorization is None:
            return True
        sent = [value for key, value in metadata if key == "authorization"]
        value = sent[-1] if sent else b""
        return hmac.compare_digest(value if isinstance(value, bytes) else value.encode(), self._authorization)

    async def _hub(self, context: Context) -> TaskHub:
        """The task hub that a call is for; ends the call if it may not be answered."""
        name = DEFAULT_HUB
        for key, value in context.invocation_metadata() or ():
            if key == "taskhub":
                name = cast("str", value) or DEFAULT_HUB
        if self._stopping:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "The scheduler is stopping.")
        try:
            return self._engine.hub(name)
        except Refused as error:
            await _abort(context, error)
            raise

    def _unary(self, cls: Any, handler: Callable[[TaskHub, Any], Awaitable[Any]]) -> Any:
        async def answer(sent: bytes, context: Context) -> bytes:
            hub = await self._hub(context)
            try:
                reply = await handler(hub, await _read(cls, sent))
            except (Refused, SchedulerError) as error:
                await _abort(context, error)
                raise
            if isinstance(reply, bytes):
                return reply
            if reply.ByteSize() > LARGE:
                return await asyncio.to_thread(serialize, reply)
            return serialize(reply)

        made: Any = grpc.unary_unary_rpc_method_handler
        return made(answer)

    def _administer(self, handler: Callable[[Engine, TaskHub, bytes], Awaitable[bytes]]) -> Any:
        async def answer(request: bytes, context: Context) -> bytes:
            hub = await self._hub(context)
            try:
                return await handler(self._engine, hub, request)
            except (Refused, SchedulerError) as error:
                await _abort(context, error)
                raise

        return answer

    async def _hello(self, _: bytes, context: Context) -> bytes:
        await self._hub(context)
        return b""

    # --- streams ---------------------------------------------------------------------------------------------------

    async def _get_work_items(self, sent: bytes, context: Context) -> None:
        hub = await self._hub(context)
        try:
            request: pb.GetWorkItemsRequest = await _read(pb.GetWorkItemsRequest, sent)
        except Refused as error:
            await _abort(context, error)
            raise
        await self._serve(hub, WorkStream(hub, request, *self._about(request, context)), context)

    async def _connect(self, _: object, context: Context) -> None:
        hub = await self._hub(context)
        try:
            sent = await context.read()
            request: pb.GetWorkItemsRequest = await _read(pb.GetWorkItemsRequest, _first_piece(sent))
            stream = BundleStream(hub, request, *self._about(request, context), _answered)
            await self._serve(hub, stream, context)
        except Refused as error:
            await _abort(context, error)
            raise

    def _about(self, request: pb.GetWorkItemsRequest, context: Context) -> tuple[str, int]:
        return _worker_name(request, context), self._engine.clock.now()

    async def _serve(self, hub: TaskHub, stream: WorkStream, context: Context) -> None:
        self._streams.add(stream)
        if self._pinger is None:
            self._ping()
        try:
            await stream.run(context)
        except grpc.aio.InternalError:
            # The worker has gone while something was sent to it.
            logger.debug("The stream of worker %s broke off", stream.worker.name)
        finally:
            self._streams.discard(stream)
            hub.disconnect(stream.worker)

    def _ping(self) -> None:
        """One timer for all streams."""
        for stream in self._streams:
            stream.ping()
        self._pinger = asyncio.get_running_loop().call_later(self._ping_every, self._ping)

    async def _stream_history(self, sent: bytes, context: Context) -> AsyncIterator[pb.HistoryChunk]:
        hub = await self._hub(context)
        try:
            chunks = await _pages.history(hub, await _read(pb.StreamInstanceHistoryRequest, sent))
        except (Refused, SchedulerError) as error:
            await _abort(context, error)
            raise
        for chunk in chunks:
            yield chunk


async def _read(cls: Any, sent: bytes) -> Any:
    """A request. Not left to gRPC, which makes a fault of the server out of bytes that are none, and logs it as such.

    Raises:
        Refused: The bytes are something else.
    """
    _requests.size.set(len(sent))
    try:
        return cls.FromString(sent) if len(sent) < LARGE else await asyncio.to_thread(cls.FromString, sent)
    except DecodeError as error:
        raise Refused("INVALID_ARGUMENT", f"The request cannot be read: {error}") from error


async def _abort(context: Context, error: Refused | SchedulerError) -> None:
    """End a call with the status that says what happened."""
    if isinstance(error, Refused):
        await context.abort(grpc.StatusCode[error.code], error.message)
    elif isinstance(error, SchedulerWriteFailed):
        await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, str(error))
    elif isinstance(error, SchedulerReadFailed):
        await context.abort(grpc.StatusCode.UNAVAILABLE, str(error))
    else:
        await context.abort(grpc.StatusCode.DATA_LOSS, str(error))


async def _answered(hub: TaskHub, worker: Worker, answer: str, sent: bytes) -> None:
    """A worker's answer that came in a bundle; over when what it changes is on disk.

    It counts only for work that went out on the stream on which it comes.
    """
    cls, handler = _requests.UNARY[answer]
    request = await _read(cls, sent)
    if not hub.delivery.is_with(worker, request.completionToken):
        raise Refused("FAILED_PRECONDITION", _requests.TOO_LATE)
    await handler(hub, request)


def _first_piece(sent: object) -> bytes:
    """The `GetWorkItemsRequest` that a bundle of one begins with."""
    try:
        [(kind, _, payload)] = unpack(sent) if isinstance(sent, bytes) else []
    except ValueError as error:
        raise Refused("INVALID_ARGUMENT", f"The stream does not begin with one piece: {error}.") from error
    if kind != CONNECT:
        raise Refused("INVALID_ARGUMENT", f"The stream begins with a piece of kind {kind}, not {CONNECT}.")
    return payload


def _worker_name(request: pb.GetWorkItemsRequest, context: Context) -> str:
    metadata: dict[str, str | bytes] = dict(context.invocation_metadata() or ())
    return request.worker_instance_id or str(metadata.get("workerid", "")) or str(context.peer())
