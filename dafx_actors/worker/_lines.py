"""How a worker is connected to a scheduler: two lines, which look the same to whoever takes the work.

`CallLine` is Durable Task's protocol, which every backend speaks: a stream of work, and a call for each answer.
`BundleLine` is what the embedded scheduler offers besides (`_durable/bundles.py` says why): answers go back on a stream
as well.
"""

from __future__ import annotations

import functools
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeAlias

import attrs
import grpc
from durabletask.internal.orchestrator_service_pb2 import GetWorkItemsRequest, WorkItem
from google.protobuf.message import EncodeError

from dafx_actors._durable import bundles as _bundles
from dafx_actors._durable.bundles import Piece
from dafx_actors._durable.calls import details_of
from dafx_actors._durable.connect import channels_of, is_plain
from dafx_actors._durable.outages import Seldom, one_line
from dafx_actors._durable.private import PrivateWorker, stub_on
from dafx_actors.worker._last_line import is_too_large, limit_in, without_secrets

_logger = logging.getLogger("dafx_actors.worker")

_DELIVERY = 30.0
"""Seconds that an answer may take to reach the scheduler, which may be restarting. One that comes too late is refused,
and the work is handed out again."""


Watch: TypeAlias = Callable[[Callable[[bool], None]], Callable[[], object]]
"""Begins to wait; see `EndWatch.watch`."""

Instead: TypeAlias = Callable[[int, "int | None"], Any]
"""Makes the answer that counts in place of one that is too large: by its size in bytes, and the bound."""


_SOME = 8
"""So many answers are sent while more are being made: the scheduler has a processor of its own."""
_CLOSED_WITHIN = 1.0
"""Seconds that calls get which have begun when their channel is closed."""


class Line(Protocol):
    """A connection: the stream of work, and the way back for answers."""

    blocks: bool
    """True if sending an answer may block from the start, as with interceptors of users."""
    takes_back: bool
    """True if the scheduler gives what is given back to another worker, if it can."""

    @property
    def is_over(self) -> bool:
        """True once no answer on this line counts any more: work that came on it need not be begun."""
        ...

    @property
    def at_once(self) -> Any:
        """The stub that durabletask answers by, whose calls are made and not waited for."""
        ...

    @property
    def waiting(self) -> Any:
        """The stub that durabletask answers by, whose calls may wait until the answer has arrived."""
        ...

    def items(self, request: GetWorkItemsRequest) -> Iterator[WorkItem]:
        """Ask for work; the iterator blocks while there is none.

        Raises:
            grpc.RpcError: From the iterator: the stream has ended.
        """
        ...

    def hang_up(self) -> None:
        """End the stream; answers that are under way may still arrive, by `CallLine`."""
        ...

    def hold(self, token: str) -> None:
        """Claim the work that came under a token: somebody will answer it, and call `release` then."""
        ...

    def release(self, token: str) -> None:
        """Give up the claim that `hold` made, whether or not an answer was sent."""
        ...

    def watch(self, token: str) -> Watch | None:
        """Give a watch, which tells when nobody waits any more for the work under a token; None if nobody will tell."""
        ...

    def settle(self, seconds: float) -> None:
        """Wait, for at most so many seconds, until all answers that were sent have arrived."""
        ...

    def retire(self) -> None:
        """Close this line as soon as nobody needs it to answer, since there is a newer line."""
        ...

    def close(self) -> None:
        """Close the connection; answers that are under way are lost."""
        ...


def line_maker(worker: PrivateWorker) -> Callable[[], Line]:
    """Makes lines with the settings of `worker`; each asks the scheduler what it knows, since that may change.

    Interceptors of users' own want to see each call, so that theirs is the protocol that has some.
    """
    connect, plain = channels_of(worker), is_plain(worker)

    def make() -> Line:
        channel, is_ours = connect()
        if plain and _bundles.offers_bundles(channel):
            return BundleLine(channel)
        return CallLine(channel, is_ours=is_ours, blocks=not plain)

    return make


_lost_answers = Seldom()


def _lost(what: BaseException | str) -> None:
    why = what if isinstance(what, str) else one_line(details_of(what))
    line = _lost_answers.say(f"An answer did not reach the scheduler, which will hand out its work again: {why}")
    if line is not None:
        _logger.warning("%s", line)


class _Stub:
    """The calls by which durabletask sends answers. Each takes a replacement for an answer that is too large."""

    def __init__(self, send: Callable[[str, Any, Instead | None], None]) -> None:
        self._send = send

    def __getattr__(self, name: str) -> Callable[..., None]:
        def call(answer: Any, instead: Instead | None = None) -> None:
            self._send(name, without_secrets(answer), instead)

        return call


class CallLine:
    """The line that every Durable Task backend offers.

    A backend may take an answer after the stream on which its work came has ended, as streams do from time to time: so
    that what was done is not done again, a line is kept for those who have not answered.

    Stream and answers share a channel, so that gRPC keeps the thread that hears of arrived answers: without a stream
    it makes a new one for each.
    """

    is_over = False

    takes_back = False

    def __init__(self, channel: grpc.Channel, *, is_ours: bool, blocks: bool) -> None:
        """Make it over a channel.

        Args:
            channel: To the scheduler.
            is_ours: Whether to close that.
            blocks: Whether a call may take its time even to begin: an interceptor, or a token that is fetched.
        """
        self.blocks = blocks
        self._stub: Any = stub_on(channel)
        self.at_once = _Stub(self._send)
        self.waiting = _Stub(self._call) if blocks else self.at_once
        self._channel = channel
        self._is_ours = is_ours
        self._stream: Any = None
        self._changed = threading.Condition()
        self._under_way: set[grpc.Future[Any]] = set()
        self._held = 0
        """How many will answer; not which: in durabletask's in-memory backend several can have one token."""
        self._calling = 0
        self._is_closed = False

    def items(self, request: GetWorkItemsRequest) -> Iterator[WorkItem]:
        """See `Line`."""
        self._stream = self._stub.GetWorkItems(request)
        stream: Iterator[WorkItem] = self._stream
        return stream

    def hang_up(self) -> None:
        """See `Line`."""
        self._stream.cancel()

    def _call(self, name: str, answer: Any, instead: Instead | None = None) -> None:
        if self._may_call():
            try:
                getattr(self._stub, name)(answer)
            except grpc.RpcError as error:
                if instead is None or not is_too_large(error):
                    raise
                getattr(self._stub, name)(instead(answer.ByteSize(), limit_in(error)))
            finally:
                self._called()

    def _send(
        self, name: str, answer: Any, instead: Instead | None = None, before: grpc.Future[Any] | None = None
    ) -> None:
        """Send an answer; `before` is the call whose answer was too large, which is under way until this one is not."""
        if not self._may_call():
            return
        try:
            try:
                call: grpc.Future[Any] = getattr(self._stub, name).future(
                    answer, timeout=_DELIVERY, wait_for_ready=True
                )
            except grpc.RpcError as error:  # it does not even fit into what gRPC can send
                if instead is None or not is_too_large(error):
                    raise
                self._send(name, instead(answer.ByteSize(), limit_in(error)))
                return
            with self._changed:
                self._under_way.add(call)
            call.add_done_callback(functools.partial(self._sent, name, answer, instead, before))
        finally:
            self._called()

    def _may_call(self) -> bool:
        """Say whether the channel is open: gRPC crashes the process over a call on a closed channel."""
        with self._changed:
            if not self._is_closed:
                self._calling += 1
                return True
        _lost("the connection was closed")
        return False

    def _called(self) -> None:
        with self._changed:
            self._calling -= 1
            self._changed.notify_all()

    def _sent(
        self,
        name: str,
        answer: Any,
        instead: Instead | None,
        before: grpc.Future[Any] | None,
        call: grpc.Future[Any],
    ) -> None:
        error: Any = None if call.cancelled() else call.exception()
        if instead is not None and isinstance(error, grpc.RpcError) and is_too_large(error):
            _logger.error("An answer was too large for the scheduler, and has failed for that: %s", error)
            self._send(name, instead(answer.ByteSize(), limit_in(error)), None, call)
            return
        with self._changed:
            self._under_way -= {call, before}
            self._changed.notify_all()
        if error is not None:
            _lost(error)

    def hold(self, token: str) -> None:
        """See `Line`."""
        with self._changed:
            self._held += 1

    def release(self, token: str) -> None:
        """See `Line`."""
        with self._changed:
            self._held -= 1
            self._changed.notify_all()

    def settle(self, seconds: float) -> None:
        """See `Line`."""
        with self._changed:
            before = set(self._under_way)
            self._changed.wait_for(lambda: before.isdisjoint(self._under_way), seconds)

    def watch(self, token: str) -> Watch | None:
        """See `Line`."""
        return None

    def retire(self) -> None:
        """See `Line`."""
        # Not by whoever is the last: that may be gRPC's own thread, which a channel waits for when it is closed.
        threading.Thread(target=self._close_when_idle, name="dafx-retired-line", daemon=True).start()

    def _close_when_idle(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not self._held and not self._under_way)
        self.close()

    def close(self) -> None:
        """See `Line`."""
        with self._changed:
            self._is_closed = True
            self._changed.wait_for(lambda: not self._calling, _CLOSED_WITHIN)
        if self._is_ours:
            self._channel.close()


class BundleLine:
    """The line that the embedded scheduler offers besides. Its answers are never waited for, except by `settle`.

    That scheduler takes no answers but while the stream lasts on which their work came. An answer that would fill a
    bundle by itself is made as a call, so that one that is too large for the scheduler fails alone.
    """

    blocks = False
    takes_back = True

    def __init__(self, channel: grpc.Channel) -> None:
        self._channel = channel
        self._calls = CallLine(channel, is_ours=False, blocks=False)
        self._stream: Any = None
        self.at_once = self.waiting = _Stub(self._send)
        self._changed = threading.Condition()
        self._unsent: deque[Piece] = deque()
        self._under_way: set[int] = set()
        """Numbers of answers that are not on disk yet, as far as is known."""
        self._held: dict[str, _Held] = {}
        """By completion tokens."""
        self._doing: int | None = None
        """The thread that does in place what came in a message, so that its answers can travel together."""
        self._number = 0
        self._is_over = False

    @property
    def is_over(self) -> bool:
        """See `Line`."""
        return self._is_over

    def items(self, request: GetWorkItemsRequest) -> Iterator[WorkItem]:
        """See `Line`."""
        self._unsent.append(Piece(_bundles.CONNECT, payload=request.SerializeToString()))
        channel: Any = self._channel
        self._stream = channel.stream_stream(f"/{_bundles.SERVICE}/Connect")(self._messages())
        return self._items()

    def _items(self) -> Iterator[WorkItem]:
        try:
            for message in self._stream:
                self._doing = threading.get_ident()
                for kind, number, payload in _bundles.unpack(message):
                    if kind == _bundles.ITEM:
                        yield WorkItem.FromString(payload)
                    elif kind == _bundles.UNWANTED:
                        self._unwanted(payload.decode())
                    else:
                        self._arrived(kind, number, payload)
                self._no_more()
        finally:
            self._hung_up()

    def _no_more(self) -> None:
        """All that came in a message is done, or under way: send what is left of its answers."""
        with self._changed:
            self._doing = None
            if self._unsent:
                self._changed.notify_all()

    def _messages(self) -> Iterator[bytes]:
        """What gRPC sends, on a thread of its own: what there is each time that it can send more."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._unsent or self._is_over)
                if self._is_over:
                    return
                pieces = [self._unsent.popleft()]
                size = len(pieces[0].payload)
                while (
                    self._unsent
                    and size + len(self._unsent[0].payload) <= _bundles.USUAL
                    and len(pieces) < _bundles.MOST_PIECES
                ):
                    pieces.append(self._unsent.popleft())
                    size += len(pieces[-1].payload)
            yield _bundles.pack(pieces)

    def _send(self, name: str, answer: Any, instead: Instead | None = None) -> None:
        try:
            payload, kind = answer.SerializeToString(), _bundles.kind_of(name)
        except EncodeError:  # it does not even fit into what protobuf can hold
            if instead is None:
                raise
            self._send(name, instead(answer.ByteSize(), None))
            return
        if len(payload) > _bundles.USUAL:
            getattr(self._calls.at_once, name)(answer, instead)
            return
        with self._changed:
            if not self._is_over:
                self._number = number = (self._number + 1) % 2**32
                self._under_way.add(number)
                self._unsent.append(Piece(kind, number, payload))
                if self._doing != threading.get_ident() or len(self._unsent) >= _SOME:
                    self._changed.notify_all()
                return
        _lost("the stream has ended")

    def _arrived(self, kind: int, number: int, said: bytes) -> None:
        if kind == _bundles.REFUSED:
            _lost(said.decode())
        with self._changed:
            self._under_way.discard(number)
            self._changed.notify_all()

    def _hung_up(self) -> None:
        with self._changed:
            self._is_over = True
            lost = len(self._under_way)
            self._under_way.clear()
            self._changed.notify_all()
            held = list(self._held)
        for token in held:
            self._unwanted(token)
        if lost:
            _lost(f"the stream ended before the scheduler had confirmed {lost}")

    def hang_up(self) -> None:
        """See `Line`."""
        self._stream.cancel()

    def hold(self, token: str) -> None:
        """See `Line`."""
        with self._changed:
            self._held[token] = _Held(is_unwanted=self._is_over)

    def release(self, token: str) -> None:
        """See `Line`."""
        with self._changed:
            self._held.pop(token, None)

    def _unwanted(self, token: str) -> None:
        with self._changed:
            held = self._held.get(token)
            if held is None:
                return
            held.is_unwanted = True
            heard, held.heard = held.heard, None
        if heard is not None:
            heard(True)

    def watch(self, token: str) -> Watch | None:
        """See `Line`. When the line is over, nobody waits for an answer on it any more."""

        def begin(heard: Callable[[bool], None]) -> Callable[[], None]:
            with self._changed:
                held = self._held.get(token)
                is_unwanted = held is None or held.is_unwanted
                if held is not None and not is_unwanted:
                    held.heard = heard
            if is_unwanted:
                heard(True)
            return stop

        def stop() -> None:
            with self._changed:
                if (held := self._held.get(token)) is not None:
                    held.heard = None

        return begin

    def settle(self, seconds: float) -> None:
        """See `Line`."""
        with self._changed:
            before = set(self._under_way)
            self._changed.wait_for(lambda: before.isdisjoint(self._under_way), seconds)
        self._calls.settle(seconds)

    def retire(self) -> None:
        """See `Line`."""
        self.close()

    def close(self) -> None:
        """See `Line`."""
        self._hung_up()
        self._calls.close()
        self._channel.close()


@attrs.define
class _Held:
    is_unwanted: bool
    heard: Callable[[bool], None] | None = None
