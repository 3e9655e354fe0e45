"""A scheduler, a worker and a client inside a test, with a clock that the test moves and crashes that it plans."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import AsyncExitStack
from datetime import datetime, timedelta
from functools import partial
from types import TracebackType
from typing import Any, Protocol, TypeVar

import anyio
import anyio.abc
import attrs
from durabletask.client import AsyncTaskHubGrpcClient
from durabletask.grpc_options import GrpcChannelOptions
from durabletask.worker import TaskHubGrpcWorker

from dafx_actors._durable.connect import DEFAULT_TASK_HUB
from dafx_actors.agents import definition_of
from dafx_actors.client._client import DurableAIAgentClient
from dafx_actors.client._handles import OrchestrationHandle, TurnHandle
from dafx_actors.scheduler import EmbeddedScheduler
from dafx_actors.testing._clock import HandClock
from dafx_actors.testing._faults import LIFE, Cable, Fault, FaultPlan, Faults, Point, When
from dafx_actors.testing._replay import History, history_of
from dafx_actors.worker._work import WorkKind
from dafx_actors.worker._worker import DurableAIAgentWorker

T = TypeVar("T")

_LOOK_AGAIN = 0.001
"""Seconds between two looks at whether all is quiet."""
_ANSWER_TAKES = 0.1
"""Seconds after which an awaitable that no client call stands for counts as waiting."""
_SURELY = 5.0
"""Seconds of quiet after which nothing comes any more."""
_MOST_BYTES = 128 * 2**20

_sdk_logger = logging.getLogger("dafx_actors.durabletask")


class NotSettled(AssertionError):
    """Things did not come to rest, or have come to rest without what was waited for."""


class AgentHost:
    """Hosts agents, orchestrations and activities inside a test, over a real scheduler in memory.

    ::

        async with AgentHost(Cashier) as host:
            cashier = host.client.get_agent(Cashier)
            turn = await cashier.start("Refund order 17")
            await host.advance(timedelta(days=30))           # nobody approves it, with `Approval(timeout=86400)`
            assert "nobody approved it in time" in str((await turn).messages)

    Time stands still until `advance` or `fast_forward` moves it: timers, deadlines of approvals and turns, and the
    pauses between retries go by the clock of the scheduler. What runs inside one step (a tool's `timeout`, a
    `sleep`, all of a turn with `durability="turn"`) and what a client waits for (`run(timeout=)`) go by real time.
    After a few crashes over the same work the scheduler hands it out again after a pause, which time must bring too.
    """

    def __init__(
        self,
        *agents: object,
        orchestrators: Iterable[Callable[..., Any]] = (),
        activities: Iterable[Callable[..., Any]] = (),
        faults: Faults | None = None,
        start: datetime | None = None,
        patience: float = 30.0,
    ) -> None:
        """Describe a host; nothing is started yet.

        Args:
            agents: As for `DurableAIAgentWorker.add_agent`.
            orchestrators: As for `add_orchestrator`.
            activities: As for `add_activity`.
            faults: Says at each point whether the worker crashes there; see `crash` for single ones.
            start: What the clock shows at first, with its time zone; by default the machine's time.
            patience: Real seconds that `settled`, `advance` and `fast_forward` wait before they give up.
        """
        self._agents = agents
        self._orchestrators: Sequence[Callable[..., Any]] = tuple(orchestrators)
        self._activities: Sequence[Callable[..., Any]] = tuple(activities)
        self._patience = patience
        self._clock = HandClock(start)
        self._plan = FaultPlan(faults)
        self._running: _Running | None = None
        self._task: asyncio.Task[None] | None = None
        self._over = asyncio.Event()

    async def __aenter__(self) -> AgentHost:
        """Start.

        Raises:
            ConfigurationError: An agent, orchestrator or activity cannot be hosted.
        """
        # In a task of its own: so it can be entered in a fixture and left elsewhere, or inside a task group that ends.
        ready = asyncio.get_running_loop().create_future()
        self._over.clear()
        self._task = asyncio.create_task(self._run(ready), name="agent host")
        try:
            self._running = await asyncio.shield(ready)
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._stop()

    # --- What a test uses -----------------------------------------------------------------------------------------

    @property
    def client(self) -> DurableAIAgentClient:
        """For the test's own conversations. It does not notice crashes of the worker."""
        return self._up.client

    @property
    def endpoint(self) -> str:
        """Where the scheduler listens, for further clients: `http://127.0.0.1:...`."""
        return self._up.scheduler.endpoint

    @property
    def now(self) -> datetime:
        """The time that the clock shows, in UTC."""
        return self._clock.time

    async def settled(self) -> None:
        """Wait until all that can run has run: what is left waits for the clock, a client, or a worker that hosts it.

        Raises:
            NotSettled: Something still goes on after `patience` seconds; the message says what.
        """
        give_up = time.monotonic() + self._patience
        while goes_on := self._up.goes_on():
            if time.monotonic() > give_up:
                raise NotSettled(f"after {self._patience:g} s there still goes on: {', '.join(goes_on)}")
            await anyio.sleep(_LOOK_AGAIN)

    async def advance(self, by: timedelta | float) -> None:
        """Let time pass: all that is due by then happens, each thing at its own time and with all that follows from it.

        Args:
            by: How much, as a timedelta or in seconds.

        Raises:
            NotSettled: As `settled`.
        """
        until = self.now + (by if isinstance(by, timedelta) else timedelta(seconds=by))
        await self.settled()
        while (due := self._clock.next_alarm) is not None and due <= until:
            self._clock.move_to(max(due, self.now))
            await self.settled()
        self._clock.move_to(until)
        await self.settled()

    async def fast_forward(self, awaited: Awaitable[T]) -> T:
        """Await something, such as a turn's handle, and let time pass whenever nothing else can happen.

        Raises:
            NotSettled: It waits for something that time does not bring, such as a person.
            Exception: What `awaited` raises.
        """
        waiting = asyncio.ensure_future(_awaited(awaited))
        try:
            while not await self._done_at_this_time(waiting):
                due = self._clock.next_alarm
                if due is None:
                    # Before that is said, a busy machine has time to bring the answer.
                    if await self._done_at_this_time(waiting, quiet=_SURELY):
                        break
                    nothing = "nothing is left that could happen by itself, and this is still waited for"
                    raise NotSettled(f"{nothing}{await self._asked_of_persons()}")
                self._clock.move_to(max(due, self.now))
            return await waiting
        finally:
            waiting.cancel()

    def crash(
        self,
        *,
        before: WorkKind | None = None,
        after: WorkKind | None = None,
        recorded: WorkKind | None = None,
        name: str | None = None,
        nth: int = 1,
    ) -> Fault:
        """Plan a crash of the worker, which is started again at once: `host.crash(after="tool", name="charge")`.

        Give one of `before` (nothing of it has run), `after` (it has run, and its answer gets lost) and `recorded` (its
        result has just been recorded), with the kind of work: see `Point.kind`. Async code that runs on the worker is
        cancelled; a plain function that blocks its thread runs on, but what it gives is not recorded.

        Args:
            before: The kind of work.
            after: The kind of work.
            recorded: The kind of work.
            name: Only work of this name; see `Point.name`.
            nth: At which of these points, counted from now on.

        Returns:
            Its `point` says whether, and where, it has happened.

        Raises:
            TypeError: Not exactly one of `before`, `after` and `recorded` is given.
        """
        points: list[tuple[When, WorkKind | None]] = [("before", before), ("after", after), ("recorded", recorded)]
        given: list[tuple[When, WorkKind]] = [(when, kind) for when, kind in points if kind is not None]
        if len(given) != 1:
            raise TypeError("crash() takes exactly one of before=, after= and recorded=")
        fault = Fault(when=given[0][0], kind=given[0][1], name=name, nth=nth)
        with self._plan.lock:
            self._plan.planned.append(fault)
        return fault

    @property
    def crashes(self) -> tuple[Point, ...]:
        """Where the worker has crashed so far."""
        with self._plan.lock:
            return tuple(self._plan.crashes)

    @property
    def passed(self) -> tuple[Point, ...]:
        """The points that the workers have passed, oldest first."""
        with self._plan.lock:
            return tuple(self._plan.passed)

    async def history(self, of: TurnHandle[Any] | OrchestrationHandle[Any] | str) -> History:
        """The history of a turn or an orchestration, to be kept and replayed; see `replay`.

        Args:
            of: Its handle, or its id.

        Raises:
            LookupError: There is none.
        """
        return await history_of(self._up.durabletask, str(of))

    # --- Inside ---------------------------------------------------------------------------------------------------

    @property
    def _up(self) -> _Running:
        if self._running is None:
            raise RuntimeError("the host is not running: use it with `async with`")
        return self._running

    async def _asked_of_persons(self) -> str:
        """What persons are asked, for the end of a sentence."""
        waits: list[str] = []
        for agent in self._agents:
            if definition_of(agent) is None:
                continue
            waits += [f"{each.tool!r} for an approval" for each in await self.client.pending_approvals(agent)]
            waits += [f"{each.tool!r} for its outcome" for each in await self.client.pending_outcomes(agent)]
        return f": a person is asked about {', '.join(waits)}" if waits else ""

    async def _done_at_this_time(self, waiting: asyncio.Future[Any], *, quiet: float | None = None) -> bool:
        """Whether it is done when all that can happen at this time has happened, or after so long a quiet."""
        give_up, quiet_since = time.monotonic() + self._patience, None
        while not waiting.done():
            goes_on = self._up.goes_on()
            now = time.monotonic()
            if goes_on:
                quiet_since = None
                if now > give_up:
                    raise NotSettled(f"after {self._patience:g} s there still goes on: {', '.join(goes_on)}")
            elif quiet_since is None:
                quiet_since = now
            elif now - quiet_since > (quiet or _ANSWER_TAKES) or (quiet is None and self._up.has_waiting_clients):
                return False
            await anyio.sleep(_LOOK_AGAIN)
        return True

    async def _run(self, ready: asyncio.Future[_Running]) -> None:
        try:
            async with AsyncExitStack() as stack:
                scheduler = await stack.enter_async_context(EmbeddedScheduler(clock=self._clock))
                client = await stack.enter_async_context(
                    DurableAIAgentClient.connect(scheduler.endpoint, DEFAULT_TASK_HUB)
                )
                durabletask = AsyncTaskHubGrpcClient(
                    host_address=scheduler.endpoint, channel_options=_channel_options(), logger=_sdk_logger
                )
                stack.push_async_callback(durabletask.close)
                first = _Life(scheduler.endpoint, self._make_worker, self._plan)
                async with anyio.create_task_group() as lives:
                    running = _Running(
                        scheduler=scheduler, client=client, durabletask=durabletask, clock=self._clock, life=first
                    )
                    lives.start_soon(self._live, running, first, lives)
                    ready.set_result(running)
                    await self._over.wait()
                    running.is_stopping = True
                    running.life.over.set()
        except BaseException as error:
            if ready.done():
                raise
            ready.set_exception(error)

    async def _live(self, running: _Running, life: _Life, lives: anyio.abc.TaskGroup) -> None:
        """One life of the worker. The next one begins with its end: what still waits in it may need that one."""
        async with life.worker:
            await life.over.wait()
            if not running.is_stopping:
                running.life = _Life(running.scheduler.endpoint, self._make_worker, self._plan)
                lives.start_soon(self._live, running, running.life, lives)

    def _make_worker(self, worker: TaskHubGrpcWorker, cable: Cable) -> DurableAIAgentWorker:
        made = DurableAIAgentWorker(worker, stop_timeout=0, on_work=cable.on_work)
        made.add_agent(*self._agents)
        for orchestrator in self._orchestrators:
            made.add_orchestrator(orchestrator)
        for activity in self._activities:
            made.add_activity(activity)
        return made

    async def _stop(self) -> None:
        self._running = None
        self._over.set()
        if self._task is not None:
            task, self._task = self._task, None
            # Also when the test is cancelled: threads would be left behind.
            with anyio.CancelScope(shield=True):
                await task


class AgentHosts(Protocol):
    """Starts a host that ends with the test: what the fixture `agent_host` of pytest gives."""

    def __call__(
        self,
        *agents: object,
        orchestrators: Iterable[Callable[..., Any]] = ...,
        activities: Iterable[Callable[..., Any]] = ...,
        faults: Faults | None = ...,
        start: datetime | None = ...,
        patience: float = ...,
    ) -> Awaitable[AgentHost]:
        """See `AgentHost`."""
        ...


class _Life:
    """A worker from its start to its crash, or to the end of the host."""

    def __init__(
        self, endpoint: str, make: Callable[[TaskHubGrpcWorker, Cable], DurableAIAgentWorker], plan: FaultPlan
    ) -> None:
        self.over = asyncio.Event()
        self.cable = Cable(plan, partial(self._crashed, asyncio.get_running_loop()))
        inner = TaskHubGrpcWorker(
            host_address=endpoint,
            interceptors=[self.cable],
            channel_options=_channel_options(),
            logger=_sdk_logger,
        )
        self.worker = make(inner, self.cable)

    def _crashed(self, loop: asyncio.AbstractEventLoop) -> None:
        self.worker.abandon()
        loop.call_soon_threadsafe(self.over.set)


@attrs.define(kw_only=True, eq=False)
class _Running:
    """What a host is while it runs."""

    scheduler: EmbeddedScheduler
    client: DurableAIAgentClient
    durabletask: AsyncTaskHubGrpcClient
    clock: HandClock
    life: _Life
    is_stopping: bool = False

    def goes_on(self) -> list[str]:
        """What happens by itself now, in words."""
        found = self.scheduler.engine.under_way()
        due = self.clock.next_alarm
        if due is not None and due <= self.clock.time:
            found.append("a timer that is due")
        if not self._is_connected:
            found.append("the start of a worker")
        return found

    @property
    def has_waiting_clients(self) -> bool:
        """Whether a client waits for the end of something."""
        return any(hub.waiters for hub in self.scheduler.engine.hubs.values())

    @property
    def _is_connected(self) -> bool:
        """Whether the scheduler knows the worker that lives now, and has seen that those before it are gone."""
        hubs = self.scheduler.engine.hubs.values()
        known = {worker.name for hub in hubs for worker in hub.delivery.queue.workers}
        return {name for name in known if name.startswith(LIFE)} == {self.life.cable.name}


async def _awaited(awaited: Awaitable[T]) -> T:
    return await awaited


def _channel_options() -> GrpcChannelOptions:
    return GrpcChannelOptions(max_receive_message_length=_MOST_BYTES, max_send_message_length=_MOST_BYTES)
