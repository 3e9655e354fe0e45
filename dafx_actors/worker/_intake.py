"""How work comes from the scheduler to what does it, and its answer goes back.

durabletask's own worker hands each item on through four threads and three queues, 0.9 ms of CPU; a turn is half a dozen
of them. So items are taken off the stream by the thread that reads it::

    the stream ── reader ──┬── of agents, what only computes: in place
                           ├── steps, and turns in one operation: coroutines on the agents' loop, as many as may
                           └── all else: on a thread of the pool, likewise

durabletask keeps the connection, for which it sees a sign of life now and then, and runs what is in an item; see
`_durable/private.py`.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any, TypeAlias

import attrs
import grpc
from durabletask import task
from durabletask.internal.orchestrator_service_pb2 import HealthPing, WorkItem
from durabletask.worker import TaskHubGrpcWorker

from dafx_actors._durable.connect import intercepts, traces
from dafx_actors._durable.private import PrivateWorker
from dafx_actors._raised import contained, has_loop, safe
from dafx_actors.orchestration._coroutines import work_item
from dafx_actors.transcript import Json
from dafx_actors.worker._gate import Gate, HandedBack
from dafx_actors.worker._last_line import Answering, details_of, failed
from dafx_actors.worker._lines import Line, Watch, line_maker
from dafx_actors.worker._loop import AgentLoop
from dafx_actors.worker._sessions import Sessions

AsyncActivity: TypeAlias = Callable[[task.ActivityContext, Json], Awaitable[Json]]
Ahead: TypeAlias = Callable[[str, Json, Json], Awaitable[Any]]
"""What an entity will wait for in the operation `run`: by its key, its state, and what it is told."""

_ANSWERS = {
    "orchestratorRequest": "CompleteOrchestratorTask",
    "activityRequest": "CompleteActivityTask",
    "entityRequest": "CompleteEntityTask",
    "entityRequestV2": "CompleteEntityTask",
}
"""By which call each kind of work is answered."""

_logger = logging.getLogger("dafx_actors.worker")

_WHOLE_TURN = "run"
"""The one operation of a thread that waits for models and tools, and so does not run in place."""
_SIGN_OF_LIFE = 0.5
"""Seconds; durabletask drops a stream on which it sees nothing for its `silent_disconnect_timeout_seconds`."""
_SETTLED_WITHIN = 30.0
"""Seconds that are waited for the last answers of a worker that has stopped."""


watch_of_step: ContextVar[Watch | None] = ContextVar("dafx_actors_watch", default=None)
"""Of the step that runs: how to hear that nobody waits for it any more, where the scheduler says so by itself."""


token_of_step: ContextVar[str | None] = ContextVar("dafx_actors_token", default=None)
"""The completion token of the step that runs."""


class Prepared(threading.local):
    """Keeps the outcome of a step that ran before durabletask is called for it on this thread.

    durabletask calls a step by its name alone. So what was prepared is kept under the name of the work, and nothing
    else gets it: a step that is called for other work runs, as if nothing had been prepared.
    """

    _work: str | None = None
    _outcome: Callable[[], Any] | None = None

    @contextmanager
    def outcome(self, work: str, outcome: Callable[[], Any]) -> Generator[None]:
        """Keep what this work gave, for as long as durabletask is called for it."""
        self._work, self._outcome = work, outcome
        try:
            yield
        finally:
            self._work = self._outcome = None

    def of(self, work: str) -> Callable[[], Any] | None:
        """Take the outcome of this work, once; None where the work has not run."""
        if self._work != work:
            return None
        outcome, self._work, self._outcome = self._outcome, None, None
        return outcome


prepared = Prepared()


def activity_work(orchestration_id: str, task_id: int) -> str:
    """The name of an activity's work."""
    return f"activity {orchestration_id}/{task_id}"


def thread_work(entity_id: str) -> str:
    """The name of the work that an operation of a thread is."""
    return f"entity {entity_id.lower()}"


def _work_in(request: Any) -> str:
    """The name of the work in an item, as `activity_work` or `thread_work` gives it."""
    if hasattr(request, "orchestrationInstance"):
        return activity_work(request.orchestrationInstance.instanceId, request.taskId)
    return thread_work(request.instanceId)


def _give(result: Any) -> Any:
    return result


def _fail(error: Exception) -> Any:
    raise error


async def _outcome_of(ahead: Callable[[], Awaitable[Any]], is_stopping: Callable[[], bool]) -> Callable[[], Any]:
    """Await a coroutine function, and give a function that returns, or raises, its outcome to durabletask.

    Raises:
        CancelledError: The worker stops, and hands it back.
        KeyboardInterrupt: Somebody has pressed Ctrl+C.
    """
    try:
        return functools.partial(_give, await contained(ahead, is_stopping))
    except Exception as error:  # noqa: BLE001 - it is the step's result
        return functools.partial(_fail, safe(error))


def _event(event: Any) -> Any:
    """The event that is inside an entity's request."""
    return getattr(event, event.WhichOneof("eventType"))


class _Stream:
    """The scheduler's stream of work, off which `take` takes what it can."""

    def __init__(
        self, line: Line, items: Iterator[WorkItem], take: Callable[[Line, WorkItem], None], idle: Callable[[], None]
    ) -> None:
        self._line = line
        self._items = items
        self._take = take
        self._idle = idle
        self._shown = float("-inf")

    def __iter__(self) -> Iterator[WorkItem]:
        return self

    def __next__(self) -> WorkItem:
        while True:
            item = next(self._items)
            if item.HasField("healthPing"):
                self._idle()
                return item
            self._take(self._line, item)
            if (now := time.monotonic()) - self._shown > _SIGN_OF_LIFE:
                self._shown = now
                return WorkItem(healthPing=HealthPing())

    def cancel(self) -> None:
        """End it."""
        self._line.hang_up()


class Lane:
    """Work of one kind: so much of it at once, in the order in which it came."""

    def __init__(self, limit: int) -> None:
        self._free = limit
        self._waiting: deque[Callable[[], bool]] = deque()
        self._lock = threading.Lock()

    def add(self, start: Callable[[], bool]) -> None:
        """Call `start` as soon as there is room; it says whether it has, and whether `done` will follow."""
        with self._lock:
            if not self._free:
                self._waiting.append(start)
                return
            self._free -= 1
        self._start(start)

    def done(self) -> None:
        """One that was started has ended: the next in line is started."""
        self._start(lambda: False)

    def _start(self, start: Callable[[], bool]) -> None:
        while not start():
            with self._lock:
                if not self._waiting:
                    self._free += 1
                    return
                start = self._waiting.popleft()


class Pool(ThreadPoolExecutor):
    """Threads for work items, one for each that may run at once. durabletask shuts it down when it has stopped."""

    def __init__(self, threads: int, before_shut: Callable[[], None], when_shut: Callable[[], None]) -> None:
        super().__init__(threads, thread_name_prefix="dafx-work")
        self._before_shut = before_shut
        self._when_shut = when_shut
        self.is_shut = False

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Wait until all that was begun is done."""
        if not self.is_shut:
            self._before_shut()
        super().shutdown(wait, cancel_futures=cancel_futures)
        if not self.is_shut:
            self.is_shut = True
            self._when_shut()


@attrs.frozen(eq=False)
class _InHand:
    """A work item that was taken off the stream, on its line."""

    kind: str
    request: Any
    line: Line
    token: str
    lane: Lane

    def over(self) -> None:
        """The work is done and answered, or given back: the next in line may start."""
        self.line.release(self.token)
        self.lane.done()


class Intake(grpc.UnaryStreamClientInterceptor):
    """Takes the work of one worker."""

    def __init__(
        self, worker: TaskHubGrpcWorker, private: PrivateWorker, gate: Gate, loop: AgentLoop, sessions: Sessions
    ) -> None:
        self._worker = worker
        self._private = private
        self._sessions = sessions
        self._connect = line_maker(private)
        self._pool: Pool | None = None
        self._lanes: dict[str, Lane] = {}
        self._line: Line | None = None
        self.orchestrations: set[str] = set()
        """The names of orchestrations that run in place."""
        self.entities: set[str] = set()
        """The names of entities that run in place, in lower case, as they come."""
        self.steps: dict[str, AsyncActivity] = {}
        """Activities that are coroutine functions, by their names."""
        self.turns: dict[str, Ahead] = {}
        """The coroutine functions that entities wait for in their operation `run`, by the lower-case names of the
        entities."""
        self._gate = gate
        self._loop = loop
        self._changed = threading.Condition()
        self._steps_under_way = 0
        self._is_closing = False
        self._is_intercepted = intercepts(private)
        self._is_traced = True
        """True if each piece of work has a span on the thread that it runs on."""
        private.intercept(self)
        private.leave_queues()

    def intercept_unary_stream(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        """Open the stream of work, on a channel of its own."""
        if not client_call_details.method.endswith("/GetWorkItems"):
            return continuation(client_call_details, request)
        if self._pool is None or self._pool.is_shut:
            self._open_pool()
        # durabletask does not say so; what is more waits in the scheduler, in turns, and not in the way of all else.
        request.maxConcurrentEntityWorkItems = self._worker.concurrency_options.maximum_concurrent_entity_work_items
        before, self._line = self._line, self._connect()
        if before is not None:
            before.retire()
        return _Stream(self._line, self._line.items(request), self._take, self._sessions.drop_idle)

    def _open_pool(self) -> None:
        options = self._worker.concurrency_options
        limits = {
            "orchestratorRequest": options.maximum_concurrent_orchestration_work_items,
            "activityRequest": options.maximum_concurrent_activity_work_items,
            "entityRequest": options.maximum_concurrent_entity_work_items,
        }
        # Also where durabletask's own `start` was called, after a stop that had closed it.
        self._gate.open()
        self._is_closing = False
        self._is_traced = traces(self._worker)
        self._pool = Pool(sum(limits.values()), self._finish_steps, self._close)
        self._lanes = {kind: Lane(limit) for kind, limit in limits.items()}
        self._lanes["entityRequestV2"] = self._lanes["entityRequest"]
        self._private.use_pool(self._pool)

    def _finish_steps(self) -> None:
        """Begin no more, and wait for those that run: for as long as they take, or until the gate ends them."""
        self._is_closing = True
        with self._changed:
            self._changed.wait_for(lambda: not self._steps_under_way or self._gate.is_over)

    def _close(self) -> None:
        self._sessions.drop_all()
        line, self._line = self._line, None
        if line is not None:
            line.settle(_SETTLED_WITHIN)
            line.close()

    def settle(self, seconds: float) -> None:
        """Wait, at most so long, until what was done in place has reached the scheduler."""
        if self._line is not None:
            self._line.settle(seconds)

    def _take(self, line: Line, item: WorkItem) -> None:
        kind = item.WhichOneof("request")
        if kind not in self._lanes:
            _logger.warning("The scheduler sent work of a kind that is not known here: %s.", kind)
            return
        request = getattr(item, kind)
        token = item.completionToken
        line.hold(token)
        if self._runs_in_place(kind, request):
            self._run(kind, request, line.at_once, token)
            line.release(token)
            return
        lane = self._lanes[kind]
        work = _InHand(kind, request, line, token, lane)
        if (ahead := self._ahead(kind, request)) is not None:
            begin = functools.partial(self._begin, ahead, work)
        else:
            begin = functools.partial(self._submit, work)

        def start() -> bool:
            # What waited here while its stream ended was given to somebody else.
            if not self._is_closing and not line.is_over and begin():
                return True
            self._refuse(kind, request, line.at_once, token)
            line.release(token)
            return False

        lane.add(start)

    def _refuse(self, kind: str, request: Any, stub: Any, token: str) -> None:
        """Give back what comes while the worker still ends what it has begun, so that others need not wait for that.

        Other schedulers might hand it to this worker again and again. What is left here when the stream ends, every
        scheduler hands out again.
        """
        if self._line is None or not self._line.takes_back or not self._gate.is_closed or self._gate.is_over:
            return
        with suppress(grpc.RpcError):
            self._private.give_back(kind, request, stub, token)

    # --- On a thread ----------------------------------------------------------------------------------------------

    def _submit(self, work: _InHand) -> bool:
        def run() -> None:
            token_of_step.set(work.token)  # also on the loop, where a step runs that this thread waits for
            try:
                self._run(work.kind, work.request, work.line.waiting, work.token)
            finally:
                work.over()

        assert self._pool is not None  # it was opened before the stream
        try:
            self._pool.submit(run)
        except RuntimeError:  # shut down: the stream has ended, and all that waited is handed out again
            return False
        return True

    # --- On the agents' loop --------------------------------------------------------------------------------------

    def _ahead(self, kind: str, request: Any) -> Callable[[], Awaitable[Any]] | None:
        """The coroutine function that does the waiting of a work item; None if the item needs a thread."""
        if self._is_intercepted or self._is_traced:  # somebody follows each step on the thread that it runs on
            return None
        if self._private.payload_store is not None:  # it may take its time
            return None
        if kind == "activityRequest" and (step := self.steps.get(request.name)) is not None:
            return functools.partial(self._run_step, step, request)
        if kind == "entityRequestV2" and len(request.operationRequests) == 1:
            name, _, key = request.instanceId[1:].partition("@")
            if (turn := self.turns.get(name)) is not None:
                return functools.partial(self._run_turn, turn, key, request)
        return None

    async def _run_step(self, step: AsyncActivity, request: Any) -> Json:
        context = task.ActivityContext(request.orchestrationInstance.instanceId, request.taskId)
        return await step(context, self._loaded(request.input.value))

    async def _run_turn(self, turn: Ahead, key: str, request: Any) -> Any:
        state, request_text = request.entityState.value, _event(request.operationRequests[0]).input.value
        return await turn(key, self._loaded(state) if state else None, self._loaded(request_text))

    def _loaded(self, text: str) -> Json:
        return self._private.loaded(text)

    def _begin(self, ahead: Callable[[], Awaitable[Any]], work: _InHand) -> bool:
        try:
            inside = self._gate.enter()
        except HandedBack:
            return False
        with self._changed:
            self._steps_under_way += 1

        def leave() -> None:
            self._gate.leave(inside)
            with self._changed:
                self._steps_under_way -= 1
                self._changed.notify_all()

        def over() -> None:
            leave()
            work.over()

        async def run() -> None:
            watch_of_step.set(work.line.watch(work.token))
            token_of_step.set(work.token)
            try:
                outcome = await _outcome_of(ahead, lambda: self._gate.is_closed)
            except asyncio.CancelledError:
                over()  # handed back: no answer
                return
            except GeneratorExit as error:
                # Out of a future, so that Python has closed what awaited that; or this was left behind without a loop.
                if not has_loop():
                    raise
                outcome = functools.partial(_fail, safe(error))
            except KeyboardInterrupt:
                over()
                raise
            answer = functools.partial(self._answer, outcome, work, over)
            if not work.line.blocks:
                answer()
                return
            assert self._pool is not None
            try:
                self._pool.submit(answer)
            except RuntimeError:  # shut down
                over()

        try:
            self._loop.begin(run, functools.partial(self._gate.may_end, inside))
        except RuntimeError:  # the loop is closed: whoever ran it is gone
            leave()
            return False
        return True

    def _answer(self, outcome: Callable[[], Any], work: _InHand, over: Callable[[], None]) -> None:
        """Have durabletask do the rest, and make the answer."""
        try:
            with prepared.outcome(_work_in(work.request), outcome):
                self._run(work.kind, work.request, work.line.waiting, work.token)
        finally:
            over()

    # --- In place -------------------------------------------------------------------------------------------------

    def _runs_in_place(self, kind: str, request: Any) -> bool:
        if self._private.payload_store is not None:  # it may take its time
            return False
        if kind == "orchestratorRequest":
            for event in itertools.chain(request.pastEvents, request.newEvents):
                if event.HasField("executionStarted"):
                    return event.executionStarted.name in self.orchestrations
            return False
        if kind == "entityRequestV2":
            if request.instanceId[1:].partition("@")[0] not in self.entities:
                return False
            return not any(_event(event).operation == _WHOLE_TURN for event in request.operationRequests)
        return False

    def _run(self, kind: str, request: Any, stub: Any, token: str) -> None:
        try:
            with work_item(self.orchestrations):
                if kind == "orchestratorRequest" and not self._is_traced:
                    self._sessions.run(request, Answering(stub, request, token), token)
                else:
                    self._private.execute(kind, request, Answering(stub, request, token), token)
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError) and self._gate.is_closed:
                self._refuse(kind, request, stub, token)
                return  # handed back: no answer, so that the scheduler hands it out again
            if self._private.payload_store is not None and isinstance(error, Exception):
                # It may only be away for a while.
                _logger.exception("Work could not be done, and is given back.")
                with suppress(grpc.RpcError):
                    self._private.give_back(kind, request, stub, token)
                return
            # durabletask answers for what users' code raises, but not for all of it.
            _logger.exception("Work could not be done, and fails for that.")
            with suppress(grpc.RpcError):
                getattr(stub, _ANSWERS[kind])(failed(request, token, details_of(error)))
