"""A client's calls to a scheduler: how one is made, how often, for how long, and what is raised if none is answered."""

from __future__ import annotations

import asyncio
import logging
import math
import re
import time
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from typing import TypeVar, cast

import anyio
import attrs
import grpc
import grpc.aio

from dafx_actors._durable.credentials import credential_error
from dafx_actors._durable.outages import Outage
from dafx_actors.errors import SchedulerRefused, SchedulerUnreachable

T = TypeVar("T")

_logger = logging.getLogger("dafx_actors.client")

_LOST = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.DEADLINE_EXCEEDED,  # of calls that have one for themselves; durabletask's polls raise TimeoutError
}
"""The transport's own failures: the call may or may not have arrived, and may be made again."""
_BROKEN_OFF = ("Stream removed", "RST_STREAM", "GOAWAY")
"""In the details of other statuses: the transport's failures, too."""
_NOT_CONNECTED = ("failed to connect to all addresses", "errors resolving", "DNS resolution failed")
"""How the details of a call begin that was never sent."""

_REFUSED = {
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.DATA_LOSS,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.PERMISSION_DENIED,
}
"""The scheduler's own state, or ours, and not what it was asked: a full disk, a token that is missing."""

_TOO_LARGE = re.compile(r"larger than max|exceeds the (maximum|configured)|serializing request", re.IGNORECASE)
"""What gRPC says of a message, here, and in the servers of others."""
_BOUND = re.compile(r"vs\. (\d+)\)")

_FIRST_PATIENCE, _PATIENCE = 5.0, 60.0
"""Seconds that calls are made again when they get lost: at first, and once the scheduler has answered."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 0.5
"""Seconds until a call is made again."""
_SILENCE = 60.0
"""Seconds after which a call that nobody answers has got lost: the scheduler is stopped, or the network swallows it."""


def code_of(error: BaseException) -> grpc.StatusCode | None:
    """The status of a failed call, or None if `error` is something else."""
    call = cast("grpc.Call", error)
    return call.code() if isinstance(error, grpc.RpcError) and hasattr(error, "code") else None


def details_of(error: BaseException) -> str:
    """What the transport, or the scheduler, says of a failed call."""
    return cast("Callable[[], str | None]", getattr(error, "details", str))() or ""


def is_too_large(details: str) -> bool:
    """Say whether the details of a failed call say that a message is larger than this side, or the other, takes."""
    return bool(_TOO_LARGE.search(details))


def limit_in(details: str) -> int | None:
    """The bound in bytes that the details of a failed call name, if they do."""
    match = _BOUND.search(details)
    return int(match[1]) if match else None


def is_lost(error: BaseException) -> bool:
    """Whether the transport failed, so that nobody can tell whether the call arrived."""
    code = code_of(error)
    return code in _LOST or (code is not None and any(words in details_of(error) for words in _BROKEN_OFF))


@attrs.define
class Sent:
    """Whether a request may have reached the scheduler."""

    maybe: bool = False


@contextmanager
def within(timeout: float | None, error: Callable[[], Exception]) -> Generator[None]:
    """Bound all that is awaited inside to so many seconds, outages of the scheduler included; then raise `error()`."""
    with anyio.move_on_after(timeout) as scope:
        yield
        return
    if scope.cancelled_caught:
        raise error()


async def apart(call: Callable[[], Awaitable[T]]) -> T:
    """Make a call of gRPC's asyncio in a task of its own.

    A call that is cancelled raises a new CancelledError there, without the message by which anyio knows that it was its
    own scope that cancelled; so it would pass every scope, and end the program. Here the caller is woken as by any
    other await. Where somebody else cancelled the call, since its channel was closed, it is a call that got lost.
    """
    making = asyncio.ensure_future(call())
    making.add_done_callback(forget)
    try:
        await asyncio.wait({making})
    finally:
        making.cancel()
    if making.cancelled():
        nothing = grpc.aio.Metadata()
        raise grpc.aio.AioRpcError(grpc.StatusCode.CANCELLED, nothing, nothing, "the connection was closed")
    return making.result()


def forget(made: asyncio.Future[T]) -> None:
    """Look at what became of a call that nobody waits for any more: asyncio tells of errors that nobody looked at."""
    if not made.cancelled():
        made.exception()


class Replaced(Exception):
    """The connection was closed under a call, by this program itself: the call may have arrived."""


class Calls:
    """Makes calls to one scheduler: patient, bounded, and with errors that say something."""

    def __init__(
        self,
        endpoint: str,
        is_connected: Callable[[], bool | None],
        is_there: Callable[[], bool] = lambda: False,
    ) -> None:
        """Make it.

        Args:
            endpoint: For errors.
            is_connected: Whether there is a connection now, over which a call that waits was sent; None: unknown.
            is_there: Whether the scheduler is there for certain, by a connection of another kind.
        """
        self._endpoint = endpoint
        self._is_connected = is_connected
        self._is_there = is_there
        self._outage = Outage(endpoint)
        self._answered = False
        self._is_closed = False

    def close(self) -> None:
        """No call is made any more."""
        self._is_closed = True

    async def patiently(
        self,
        call: Callable[[], Awaitable[T]],
        *,
        again: bool = True,
        sent: Sent | None = None,
        silence: float = _SILENCE,
    ) -> T:
        """Make a call, `again` and again at growing intervals while the transport loses it.

        A scheduler that never answered is given up soon: it may not be there at all. One that did is being restarted,
        and is waited for as long as the caller's own deadline, where there is one.

        Args:
            call: Makes it.
            again: Whether it may arrive twice.
            sent: Told whether it may have arrived, also where the caller does not wait for its end.
            silence: Seconds after which one that is not answered has got lost.

        Raises:
            SchedulerUnreachable: Nothing answers.
            SchedulerRefused: It answers that it cannot.
            SchedulerCredentialError: There is no token for it.
        """
        sent = sent or Sent()
        started, pause = time.monotonic(), _FIRST_PAUSE
        while True:
            if self._is_closed:
                raise SchedulerUnreachable(self._endpoint, "this client was closed")
            try:
                with self._sending(sent), anyio.move_on_after(silence):
                    result = await call()
                    self._heard()
                    return result
                detail, error = f"no answer within {silence:g} s", None
            except Replaced as gone:
                if again or self._is_closed:
                    continue  # over the connection that comes after it, if one does
                detail = "this program closed the connection, to fork; what was sent may have arrived"
                raise SchedulerUnreachable(self._endpoint, detail) from gone
            except grpc.RpcError as failed:
                detail, error = self._judge(failed), failed
            except Exception as failed:
                if self._is_closed:
                    raise SchedulerUnreachable(self._endpoint, "this client was closed") from failed
                if (known := credential_error(failed, self._endpoint)) is not None:
                    raise known from failed
                raise
            self._say(self._outage.lost(detail))
            if not again or time.monotonic() + pause > started + self._patience():
                raise SchedulerUnreachable(self._endpoint, detail) from error
            await anyio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)

    def _patience(self) -> float:
        # One that there is a connection to is there, and has very much to do.
        if not (self._answered or self._is_connected() or self._is_there()):
            return _FIRST_PATIENCE
        deadline = anyio.current_effective_deadline()
        return _PATIENCE if math.isinf(deadline) else max(_PATIENCE, deadline - anyio.current_time())

    @contextmanager
    def _sending(self, sent: Sent) -> Generator[None]:
        before, sent.maybe = sent.maybe, True
        try:
            yield
        except grpc.RpcError as error:
            if details_of(error).startswith(_NOT_CONNECTED):
                sent.maybe = before
            raise
        except BaseException:
            # Nobody waits for it any more. gRPC keeps calls back until there is a connection.
            if self._is_connected() is False:
                sent.maybe = before
            raise

    def _judge(self, error: grpc.RpcError) -> str:
        """Why a call got lost.

        Raises:
            SchedulerRefused: It was answered.
            grpc.RpcError: The call failed, for another reason than an outage.
        """
        detail = details_of(error)
        if is_lost(error):
            return detail
        self._heard()
        code = code_of(error)
        if code in _REFUSED:
            raise SchedulerRefused(self._endpoint, code.name, detail) from error
        raise error

    def _heard(self) -> None:
        self._answered = True
        self._say(self._outage.back())

    def _say(self, line: str | None) -> None:
        if line is not None:
            _logger.warning("%s", line)
