"""Hosting agents: from a registry to a running durabletask worker, and a stop that loses nothing."""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
import os
import signal
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, Literal, TypeVar

import anyio
import anyio.from_thread
import anyio.to_thread
from durabletask import task
from durabletask.worker import TaskHubGrpcWorker

from dafx_actors._durable import credentials as _credentials
from dafx_actors._durable.connect import (
    Address,
    address,
    check_wrapped,
    credential_for,
    make_worker,
)
from dafx_actors._durable.private import PrivateWorker
from dafx_actors._json.steps import ToolStep
from dafx_actors._json.values import dump_result, load_stored, parameters_of, returned_by
from dafx_actors._raised import contained
from dafx_actors._turns.entity import hear
from dafx_actors._turns.hosted import HostedAgent
from dafx_actors.agents import Agent, AgentRegistry
from dafx_actors.errors import ConfigurationError
from dafx_actors.ids import asks_name, entity_name, model_step_name, probe_name, tell_name, turn_name
from dafx_actors.orchestration._agents import recordable
from dafx_actors.orchestration._context import is_orchestrator, orchestrator
from dafx_actors.transcript import Json
from dafx_actors.worker import _exit
from dafx_actors.worker._gate import Gate
from dafx_actors.worker._host import WorkerHost
from dafx_actors.worker._intake import AsyncActivity, Intake, activity_work
from dafx_actors.worker._loop import AgentLoop
from dafx_actors.worker._sessions import Sessions
from dafx_actors.worker._work import Work, WorkKind

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

_logger = logging.getLogger("dafx_actors.worker")
_ORCHESTRATIONS = 16
"""How many orchestrations take a step at once: they only compute, so that more would only wait for each other, here in
the order in which they came; in the scheduler they wait by name, in turns, and a crowd of one kind lets others pass."""

_ENDED_WITHIN = 5.0
"""Seconds that steps get which were cancelled since their worker stops."""


class DurableAIAgentWorker:
    """Hosts agents, orchestrations and activities on a durabletask worker.

    ::

        agent_worker = DurableAIAgentWorker(worker)          # any durabletask worker, not yet started
        agent_worker.add_agent(Joker)
        agent_worker.start()                                 # or `worker.start()`
        ...
        agent_worker.stop()

        async with DurableAIAgentWorker.connect() as agent_worker:  # by ENDPOINT and TASKHUB, on this event loop
            ...
            await agent_worker.serve()                       # until Ctrl+C or SIGTERM
    """

    def __init__(
        self,
        worker: TaskHubGrpcWorker,
        *,
        max_concurrent_steps: int = 2048,
        stop_timeout: float = 20.0,
        extended_sessions: int = 4096,
        on_work: Callable[[Work], None] | None = None,
    ) -> None:
        """Wrap `worker`, which takes only work that is registered from now on: other workers can share its task hub.

        Args:
            worker: A `DurableTaskSchedulerWorker` or a `TaskHubGrpcWorker` that has not been started.
            max_concurrent_steps: How many model calls and other activities run at once, and how many turns of agents
                with `durability="turn"`. It takes effect unless the worker was given limits of its own.
            stop_timeout: Seconds that `stop()` gives running steps before it hands them back.
            extended_sessions: How many orchestrations are kept in memory between their episodes, some 30 KB each, and
                need not be replayed each time. With 0, or after a minute without an episode, they are.
            on_work: Called before each activity, each operation of a thread and each episode of an orchestration, on
                the thread that runs it and sends its answer; each step has one then, and each episode is replayed.
                `dafx_actors.testing` crashes workers there.

        Raises:
            ConfigurationError: It is no durabletask worker.
            IncompatibleDurableTask: It is one of a version that was not tested.
        """
        check_wrapped("Worker", worker, TaskHubGrpcWorker)
        self.stop_timeout = stop_timeout
        self._on_work = on_work
        self._worker = worker
        self._private = PrivateWorker(worker)
        self._private.is_strict = on_work is not None
        self._registry = AgentRegistry()
        self._hosted: list[HostedAgent] = []
        self._loop = AgentLoop()
        self._gate = Gate()
        self._host = WorkerHost(self._private, self._registry, self._gate, self._loop)
        self._stack: AsyncExitStack | None = None
        self._sign_in: Callable[[], None] | None = None
        self._max_concurrent_steps = max_concurrent_steps
        self._limit("activity", max_concurrent_steps)
        self._limit("orchestration", _ORCHESTRATIONS)
        worker.use_work_item_filters()
        sessions = Sessions(self._private, extended_sessions if on_work is None else 0)
        self._intake = Intake(worker, self._private, self._gate, self._loop, sessions)

    @classmethod
    def connect(
        cls,
        endpoint: str | None = None,
        taskhub: str | None = None,
        *,
        credential: Any = None,
        max_concurrent_steps: int = 2048,
        stop_timeout: float = 20.0,
        extended_sessions: int = 4096,
    ) -> DurableAIAgentWorker:
        """Make a worker for what is given, else for ENDPOINT and TASKHUB of the environment.

        Args:
            endpoint: `http://host:port`, or `https://...` for a deployed scheduler.
            taskhub: The task hub.
            credential: An Azure credential; by default as of `DurableAIAgentClient.connect`.
            max_concurrent_steps: See `__init__`.
            stop_timeout: See `__init__`.
            extended_sessions: See `__init__`.

        Raises:
            ConfigurationError: The endpoint has no scheme, the credential would be sent unencrypted, or azure-identity
                is set up wrongly.
        """
        where = address(endpoint, taskhub)
        credential = credential_for(where, credential)
        if where.is_secure and credential is None:
            credential = _credentials.default_credential()
        made = cls(
            make_worker(where, credential),
            max_concurrent_steps=max_concurrent_steps,
            stop_timeout=stop_timeout,
            extended_sessions=extended_sessions,
        )
        if where.is_secure:
            made._sign_in = functools.partial(_credentials.check, credential, where.endpoint)
        return made

    # --- What is hosted -------------------------------------------------------------------------------------------

    @property
    def registered_agent_names(self) -> list[str]:
        """The agents, in the order in which they were added."""
        return self._registry.names

    @property
    def is_stopping(self) -> bool:
        """True while the worker stops: a step that does not end soon is handed out again, to another worker."""
        return self._gate.is_closed

    def add_agent(self, *agents: object) -> None:
        """Host agents: classes, or instances of those that needed arguments.

        Raises:
            ConfigurationError: Lists all that is wrong with any of them, or what of their names the worker has already;
                none is hosted then.
            RuntimeError: The worker is running.
        """
        added = self._registry.add(*agents)
        try:
            hosted = [HostedAgent.on(self._host, agent) for agent in added]
            self._check_names(hosted)
        except (ConfigurationError, RuntimeError):
            self._registry.discard(added)
            raise
        for each in hosted:
            self._add_hosted(each)

    def _check_names(self, hosted: Iterable[HostedAgent]) -> None:
        """See that all of these can be hosted, before any is.

        Raises:
            ConfigurationError: The wrapped worker has something of one of the names.
            RuntimeError: The worker is running.
        """
        if self._private.is_running:
            raise RuntimeError("agents cannot be added while the worker is running; add them before")
        names = [
            name
            for each in hosted
            for agent in [each.agent.name]
            for name in (entity_name(agent), asks_name(agent), turn_name(agent), tell_name(agent), *each.activities)
        ]
        if taken := self._private.registered(names):
            raise ConfigurationError(f"the worker has {', '.join(taken)} already, which an agent of ours needs")

    def _add_hosted(self, hosted: HostedAgent) -> None:
        agent = hosted.agent
        name = agent.name
        self._hosted.append(hosted)
        self._worker.add_entity(self._announced("thread", name, hosted.entity), entity_name(name))
        self._worker.add_entity(hear, asks_name(name))
        self._worker.add_orchestrator(self._announced("turn", name, hosted.turn()))
        self._worker.add_orchestrator(self._announced("tell", name, hosted.tell()))
        kinds: dict[str, WorkKind] = {model_step_name(name): "model", probe_name(name): "probe"}
        for step_name, step in hosted.activities.items():
            self._add_step(kinds.get(step_name, "tool"), name, step_name, step)
        self._intake.entities |= {entity_name(name).lower(), asks_name(name).lower()}
        if agent.definition.durability == "turn":
            self._limit("entity", self._max_concurrent_steps)
        if self._on_work is None:
            self._intake.turns[entity_name(name).lower()] = hosted.whole.ahead
        self._intake.orchestrations |= {turn_name(name), tell_name(name)}

    def add_orchestrator(self, function: Callable[..., Any]) -> str:
        """Host an orchestration: decorated with `@orchestrator`, or what that could decorate. Gives its name.

        Raises:
            ConfigurationError: It cannot be one.
        """
        made = function if is_orchestrator(function) else orchestrator(function)
        return self._worker.add_orchestrator(self._announced("orchestration", made.__name__, made))

    def add_activity(self, function: Callable[..., Any]) -> str:
        """Host an activity, sync (on a thread) or async (on the agents' loop). Gives its name.

        It takes nothing, its input, or durabletask's `ActivityContext` and its input; the input is converted by its
        annotation, as is the result.

        Raises:
            ConfigurationError: It takes something else.
        """
        takes = len(parameters_of(function))
        if takes > 2:
            raise ConfigurationError(f"activity {function.__qualname__} takes an input, or a context and an input")

        name = function.__name__

        def bind(context: task.ActivityContext, raw: Json) -> Callable[[], Any]:
            arguments = [load_stored(raw, annotation) for _, annotation in parameters_of(function)[-1:]]
            return functools.partial(function, *([context] if takes == 2 else []), *arguments)

        async def step(context: task.ActivityContext, raw: Json) -> Json:
            try:
                returns = returned_by(function)
                return dump_result(name, await contained(bind(context, raw), lambda: self._gate.is_closed), returns)
            except Exception as error:  # noqa: BLE001 - it is the activity's outcome
                failed = error
            raise recordable(failed)

        def run(context: task.ActivityContext, raw: Json) -> Json:
            failed: BaseException
            with self._gate.pass_through():
                try:
                    returns = returned_by(function)
                    return dump_result(name, bind(context, raw)(), returns)
                except BaseException as error:
                    if isinstance(error, asyncio.CancelledError) and self._gate.is_closed:
                        raise
                    failed = error
            raise recordable(failed)

        if inspect.iscoroutinefunction(function):
            return self._add_step("activity", name, name, step)
        return self._worker.add_activity(_named(self._announced("activity", name, run), name))

    # --- Lifecycle ------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start to take work, on threads of the worker's own; agents run on an event loop of their own.

        Call `stop()` before the program ends, in a `finally` block: where it was forgotten, the worker is stopped when
        the main thread has ended, with a warning. A program that does nothing else is `await worker.serve()`.

        Raises:
            RuntimeError: The worker is running.
            SchedulerCredentialError: The scheduler wants a token, and there is none; nothing was started.
        """
        if self._sign_in is not None:
            self._sign_in()
        self._start()
        _exit.began(self)

    def _start(self) -> None:
        if _logger.isEnabledFor(logging.INFO):  # what it says takes milliseconds to find out
            _logger.info("Worker starts: %s.", self._described())
        self._warn_of_mistakes()
        self._worker.start()  # type: ignore[no-untyped-call]  # durabletask leaves it without types

    def _warn_of_mistakes(self) -> None:
        """Say which agents cannot answer as they are configured; it starts all the same, since others may."""
        for each in self._hosted:
            if each.agent.responds or not isinstance(each.agent.definition.model, str | None):
                continue
            try:
                self._host.model_of(each.agent)
            except ConfigurationError as error:
                _logger.warning("Agent %s cannot answer as it is configured: %s", each.agent.name, error)

    def _described(self) -> str:
        """What it hosts, where, and by which versions, for the log."""
        from importlib.metadata import version  # which takes a while

        agents = ", ".join(f"{each.agent.name} ({_model_name(each.agent)})" for each in self._hosted) or "no agents"
        metadata = dict(self._private.metadata)
        where = self._private.host_address or "over the channel that it was given"
        hub = metadata.get("taskhub", "default")
        versions = f"dafx_actors {version('dafx-actors')}, durabletask {self._private.version}"
        return f"{agents}; scheduler {where}, task hub {hub}; {versions}"

    def stop(self) -> None:
        """Finish what is running, for `stop_timeout` seconds at most; the rest is handed out again. Nothing is lost.

        Where the scheduler does not answer, a worker that was wrapped takes its `hello_timeout_seconds` besides.
        """
        self._drain()
        self._loop.call(self._close_agents).result()
        self._loop.stop()

    async def aclose(self) -> None:
        """`stop()`, from an event loop; for a worker that `start()` has started."""
        await self._shielded(functools.partial(anyio.to_thread.run_sync, self.stop))

    def abandon(self) -> None:
        """Let nothing that runs come to its end, as if the process died; `stop()` still has to follow. For tests.

        A plain function that blocks a thread cannot be cut off; what it gives is not answered.
        """
        self._gate.close(0)

    async def __aenter__(self) -> DurableAIAgentWorker:
        if self._sign_in is not None:  # it may take many seconds, and leaves nothing behind
            await anyio.to_thread.run_sync(self._sign_in, abandon_on_cancel=True)
        async with AsyncExitStack() as stack:
            self._loop.use(await stack.enter_async_context(anyio.from_thread.BlockingPortal()))
            stack.callback(self._loop.use, None)
            stack.push_async_callback(self._shielded, self._close_agents)
            # Not on this loop: the steps that are waited for run on it.
            stack.push_async_callback(self._shielded, functools.partial(anyio.to_thread.run_sync, self._drain))
            self._start()
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # Not `__aexit__` of the stack: the portal's task group would wrap the caller's error in a group.
        if self._stack is not None:
            stack, self._stack = self._stack, None
            await stack.aclose()

    async def serve(self) -> None:
        """Work until SIGINT (Ctrl+C) or SIGTERM; then stop, here or at the end of the `async with` around it."""
        if self._stack is None:
            async with self:
                await self.serve()
            return
        with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            async for received in signals:
                _logger.info("Stopping after %s.", signal.Signals(received).name)
                return

    # --- Inside ---------------------------------------------------------------------------------------------------

    def _limit(self, kind: Literal["activity", "entity", "orchestration"], most: int) -> None:
        """Bound how much of a kind runs at once, unless the wrapped worker was given a limit of its own."""
        options, name = self._worker.concurrency_options, f"maximum_concurrent_{kind}_work_items"
        if getattr(options, name) == 100 * (os.cpu_count() or 1):  # durabletask's default
            setattr(options, name, most)

    def _add_step(self, kind: WorkKind, about: str, name: str, step: AsyncActivity) -> str:
        """Host an activity that is a coroutine function.

        Where the intake cannot run it by itself, durabletask does, on a thread that waits for it.
        """

        def run(context: task.ActivityContext, raw: Json) -> Json:
            return self._host.run_step(
                activity_work(context.orchestration_id, context.task_id), lambda: step(context, raw)
            )

        if self._on_work is None:
            self._intake.steps[name] = step
        return self._worker.add_activity(_named(self._announced(kind, about, run), name))

    def _announced(self, kind: WorkKind, name: str, function: Callable[..., T]) -> Callable[..., T]:
        """`function`, of which `on_work` is told before it runs: the one place that all work passes. Itself, untold."""
        on_work = self._on_work
        if on_work is None:
            return function

        def announced(context: Any, raw: Json = None) -> T:
            on_work(_work_of(kind, name, context, raw))
            return function(context, raw)

        return _named(announced, function.__name__)

    def _drain(self) -> None:
        _exit.ended(self)
        # With the stream still open: durabletask's own `stop` closes it first, and all that is in flight would be
        # handed out a second time.
        ended = self._gate.close(self.stop_timeout)
        if ended:
            _logger.warning("%d steps did not end within %g s; they are handed out again.", ended, self.stop_timeout)
        self._gate.emptied(_ENDED_WITHIN)
        self._intake.settle(self.stop_timeout)
        self._worker.stop()  # type: ignore[no-untyped-call]  # likewise
        self._host.close()

    @staticmethod
    async def _shielded(clean_up: Callable[[], Awaitable[None]]) -> None:
        """Clean up also when the task is being cancelled: what is in flight must not be lost for that."""
        with anyio.CancelScope(shield=True):
            await clean_up()

    async def _close_agents(self) -> None:
        """Give back what models and tools hold, on the loop that they were used on."""
        for hosted in self._hosted:
            await hosted.toolbox.aclose()
        await self._host.aclose_models()


def _model_name(agent: Agent) -> str:
    """The model of an agent in words: what its declaration says."""
    if agent.responds:
        return "answers by its own code"
    model = agent.definition.model
    if model is None:
        return "the environment's model"
    named = model if isinstance(model, str) else getattr(model, "model", None)
    return f"model {named!r}" if isinstance(named, str) else type(model).__name__


def _work_of(kind: WorkKind, name: str, context: Any, raw: Json) -> Work:
    """Describe the work of one of durabletask's contexts."""
    if kind == "thread":
        return Work(kind=kind, name=context.operation, instance_id=str(context.entity_id))
    if kind in ("turn", "tell", "orchestration"):
        return Work(kind=kind, name=name, instance_id=context.instance_id)
    called = ToolStep.name_in(raw) if kind == "tool" else name
    return Work(kind=kind, name=called, instance_id=context.orchestration_id, task_id=context.task_id)


def _named(function: Callable[..., T], name: str) -> Callable[..., T]:
    """`function` under another name: durabletask registers by `__name__`, and would convert by annotations."""

    def named(context: Any, raw: Json = None) -> T:
        return function(context, raw)

    named.__name__ = named.__qualname__ = name
    return named


__all__ = ["Address", "DurableAIAgentWorker"]
