"""The streams on which workers get their work, and some give their answers."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

import grpc.aio

from dafx_actors._durable.bundles import ITEM, KEPT, REFUSED, UNWANTED, USUAL, Piece, answer_of, pack, pieces_in
from dafx_actors.errors import SchedulerError
from dafx_actors.scheduler._ground.proto import HEALTH_PING, LARGE, pb
from dafx_actors.scheduler._hub.hub import Refused
from dafx_actors.scheduler._rules.dispatch import Worker
from dafx_actors.scheduler._rules.filters import read_filters

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from dafx_actors.scheduler._hub.hub import TaskHub

logger = logging.getLogger("dafx_actors.scheduler._streams")

Context = Any
"""`grpc.aio.ServicerContext`, whose stubs ask for the types of every request and reply."""

_KEPT_WITHIN = 0.02
"""Seconds that the word of an answer may wait for work to travel with: only a worker that stops waits for it."""
_COMPANY = 4
"""So many pieces of work that have just been given make it worth waiting for more, to travel with."""
_MOST_UNDER_WAY = 1_000
"""Answers of one worker that are being taken, or whose outcome it has not been told, before more of them are read."""
_PIECES_AT_ONCE = 100
"""Answers that are looked at between two turns of the event loop."""
_ROUNDS = 8
"""Of the event loop, for which it is waited then: an answer that has arrived needs some to make more work ready. To
send a message, and to take it, costs as much as all that is done for a piece of work."""


class WorkStream:
    """One worker's stream of work items."""

    def __init__(self, hub: TaskHub, request: pb.GetWorkItemsRequest, name: str, since: int) -> None:
        self._hub = hub
        self._awake = asyncio.Event()
        self._pings = False
        self._ended = False
        self.worker = Worker(
            name=name,
            since=since,
            filters=read_filters(request),
            limits={
                "orchestration": request.maxConcurrentOrchestrationWorkItems,
                "activity": request.maxConcurrentActivityWorkItems,
                "entity": request.maxConcurrentEntityWorkItems,
            },
            wake=self._awake.set,
        )

    def ping(self) -> None:
        """Say that the stream is alive."""
        self._pings = True
        self._awake.set()

    def end(self) -> None:
        """Close the stream in an orderly way."""
        self._ended = True
        self._awake.set()

    async def run(self, context: Context) -> None:
        """Send work until the stream ends.

        An item is made from what is known at the moment when it is sent, and counts as held from then on; whatever
        ends this coroutine, the caller has it handed out again.
        """
        about = {"task_hub": self._hub.name, "worker": self.worker.name}
        logger.info("Worker %s has connected to task hub %s", self.worker.name, self._hub.name, extra=about)
        self._hub.lately.note(self.worker.filters)
        self._hub.delivery.queue.connect(self.worker)
        try:
            while not self._ended:
                self._awake.clear()
                await self._send(context)
                if not self.worker.outbox and not self._pings and not self._ended:
                    await self._awake.wait()
        finally:
            logger.info("Worker %s has left task hub %s", self.worker.name, self._hub.name, extra=about)

    async def _send(self, context: Context) -> None:
        if self._pings:
            self._pings = False
            await context.write(HEALTH_PING)
        while not self._ended and (item := await self._hub.next_item(self.worker)) is not None:
            await context.write(item)


class BundleStream(WorkStream):
    """One worker's work and answers; see `_durable/bundles.py`."""

    def __init__(
        self,
        hub: TaskHub,
        request: pb.GetWorkItemsRequest,
        name: str,
        since: int,
        answered: Callable[[TaskHub, Worker, str, bytes], Awaitable[None]],
    ) -> None:
        super().__init__(hub, request, name, since)
        self._answered = answered
        self.worker.unwanted = self._unwanted = list[str]()
        self._told: list[Piece] = []
        """What becomes of answers, to be sent."""
        self._telling: asyncio.TimerHandle | None = None
        self._under_way: set[asyncio.Task[None]] = set()
        self._room = asyncio.Event()
        """Set whenever an answer was taken, or outcomes were sent."""
        self._refused: Refused | None = None

    async def run(self, context: Context) -> None:
        """Send work and take answers until the stream ends.

        Raises:
            Refused: What the worker sends is no bundle.
        """
        reading = asyncio.create_task(self._read(context))
        try:
            await super().run(context)
            if self._under_way:  # an orderly end: what has arrived counts
                await asyncio.wait(self._under_way)
            await self._send(context)
        finally:
            if self._telling is not None:
                self._telling.cancel()
            reading.cancel()
        if self._refused is not None:
            raise self._refused

    async def _send(self, context: Context) -> None:
        if self._hub.delivery.crowded(_COMPANY):
            for _ in range(_ROUNDS):
                await asyncio.sleep(0)
        pieces, self._told = self._told, []
        self._room.set()
        pieces += [Piece(UNWANTED, payload=token.encode()) for token in self._unwanted]
        self._unwanted.clear()
        if self._telling is not None:
            self._telling.cancel()
            self._telling = None
        if self._pings:
            self._pings = False
            pieces.append(Piece(ITEM, payload=HEALTH_PING))
        size = 0
        while not self._ended and (item := await self._hub.next_item(self.worker)) is not None:
            if pieces and size + len(item) > USUAL:
                await context.write(pack(pieces))
                pieces, size = [], 0
            if len(item) >= LARGE:
                await context.write(await asyncio.to_thread(pack, [Piece(ITEM, payload=item)]))
                continue
            pieces.append(Piece(ITEM, payload=item))
            size += len(item)
        if pieces:
            await context.write(pack(pieces))

    async def _read(self, context: Context) -> None:
        try:
            while (message := await context.read()) is not grpc.aio.EOF:
                for count, (kind, number, payload) in enumerate(pieces_in(message), 1):
                    # Each is decided before the next is looked at, and may wait for the disk after that.
                    task = asyncio.create_task(self._take(answer_of(kind), number, payload))
                    self._under_way.add(task)
                    task.add_done_callback(self._taken)
                    if count % _PIECES_AT_ONCE == 0:
                        await asyncio.sleep(0)
                    while len(self._under_way) + len(self._told) >= _MOST_UNDER_WAY:
                        self._room.clear()
                        self._awake.set()
                        await self._room.wait()
        except ValueError as error:
            self._refused = Refused("INVALID_ARGUMENT", f"What the worker sent cannot be read: {error}.")
        except grpc.aio.UsageError:
            logger.debug("The stream of worker %s broke off", self.worker.name)
        finally:
            self.end()

    def _taken(self, task: asyncio.Task[None]) -> None:
        self._under_way.discard(task)
        self._room.set()

    async def _take(self, answer: str, number: int, payload: bytes) -> None:
        try:
            await self._answered(self._hub, self.worker, answer, payload)
        except (Refused, SchedulerError) as error:
            self._told.append(Piece(REFUSED, number, str(error).encode()))
        except Exception:
            logger.exception("An answer could not be taken")
            self._told.append(Piece(REFUSED, number, b"The scheduler failed; its log says why."))
        else:
            self._told.append(Piece(KEPT, number))
        if self._telling is None:
            self._telling = asyncio.get_running_loop().call_later(_KEPT_WITHIN, self._awake.set)
