"""What a worker lends to its agents: a reader of threads, threads to block on, their loop, their models."""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from durabletask.client import TaskHubGrpcClient

from dafx_actors._durable.connect import EndWatch, reader_of
from dafx_actors._durable.private import PrivateWorker, channel_of
from dafx_actors._durable.words import tell_words
from dafx_actors._json.operations import Note
from dafx_actors._raised import attempted, in_words
from dafx_actors.agents import Agent, AgentRegistry
from dafx_actors.ids import AgentThread
from dafx_actors.models import Model
from dafx_actors.worker._gate import Gate, until_turn_ends
from dafx_actors.worker._intake import prepared, thread_work, token_of_step, watch_of_step
from dafx_actors.worker._loop import AgentLoop
from dafx_actors.worker._words import Words

T = TypeVar("T")

_logger = logging.getLogger("dafx_actors.worker")
_CALLS = 64
"""How many reads of threads are made at once; a few records of attempts wait here too, for as long as they take."""
_TELLERS = 8
"""How many steps tell their words at once; of those that have to wait the words come in larger pieces."""


class WorkerHost:
    """The host that a worker gives to its agents; see `_turns.host.Host`."""

    def __init__(self, worker: PrivateWorker, registry: AgentRegistry, gate: Gate, loop: AgentLoop) -> None:
        """Lend nothing yet: what agents use is made when they first do."""
        self._worker = worker
        self._registry = registry
        self._gate = gate
        self._loop = loop
        self._models: dict[Any, Model] = {}
        self._made: list[Model] = []
        self._reader: TaskHubGrpcClient | None = None
        self._end_watch: EndWatch | None = None
        self._making_reader = threading.Lock()
        self._calls: ThreadPoolExecutor | None = None
        self._tellers: ThreadPoolExecutor | None = None
        self._reports: dict[str, tuple[AgentThread, Note]] = {}
        self._reporting = threading.Lock()
        # A thread of its own, since tools report from any thread, and from the agents' loop, which must not wait.
        self._reporter: ThreadPoolExecutor | None = None

    @property
    def registered_agent_names(self) -> list[str]:
        """The agents that it hosts."""
        return self._registry.names

    @property
    def is_stopping(self) -> bool:
        """True while the worker stops: a step that does not end soon is handed out again, to another worker."""
        return self._gate.is_closed

    @property
    def reader(self) -> TaskHubGrpcClient:
        """A client to read threads and turns with, from any thread."""
        with self._making_reader:
            if self._reader is None:
                self._reader = reader_of(self._worker)
            return self._reader

    def run_step(self, work: str, step: Callable[[], Awaitable[T]]) -> T:
        """Run a coroutine function on the agents' loop, and wait for it on this thread.

        Where the intake has run it already, for this work, give what it gave.

        Raises:
            HandedBack: The worker is stopping.
        """
        if (outcome := prepared.of(work)) is not None:
            result: T = outcome()
            return result
        with self._gate.pass_through():
            return self._gate.wait_for(self._loop.call(step))

    def run_operation(self, entity_id: str, step: Callable[[], Awaitable[T]]) -> T:
        """Run what an operation of a thread waits for, as `run_step` does."""
        return self.run_step(thread_work(entity_id), step)

    async def blocking(self, call: Callable[[], T]) -> T:
        """Make a call that blocks, on a thread, and wait for it on the loop."""
        with self._making_reader:
            self._calls = calls = self._calls or ThreadPoolExecutor(_CALLS, "dafx-calls")
        return await asyncio.wrap_future(calls.submit(call))

    async def until_ended(self, turn: str, step: Callable[[], Awaitable[T]]) -> T:
        """Await a step of a turn, unless the turn ends before it.

        Raises:
            TurnEnded: It has; the step was cancelled.
        """
        if (watch := watch_of_step.get()) is not None:
            return await until_turn_ends(step, watch, after=0)
        return await until_turn_ends(step, functools.partial(self._watch_end, turn))

    def _watch_end(self, turn: str, heard: Callable[[bool], None]) -> Callable[[], None]:
        with self._making_reader:
            if self._end_watch is None:
                self._end_watch = EndWatch(self._worker)
            return self._end_watch.watch(turn, heard)

    def report(self, thread: AgentThread, note: Note) -> None:
        """Send a tool's progress to its thread, some time soon; the latest of each call."""
        with self._reporting:
            is_sending = bool(self._reports)
            self._reports[note.key] = (thread, note)
            if not is_sending:
                self._reporter = self._reporter or ThreadPoolExecutor(1, "dafx-progress")
                self._reporter.submit(self._send_reports)

    def _send_reports(self) -> None:
        while True:
            with self._reporting:
                if not self._reports:
                    return
                key = next(iter(self._reports))
                thread, note = self._reports[key]
            try:
                self.reader.signal_entity(thread.entity_id, note.operation, input=note.dump())
            except Exception as error:  # noqa: BLE001 - the reports after this one are to be sent
                # Progress is for people who watch: the next report makes up for this one.
                _logger.warning("The progress of call %s could not be reported: %s", key, in_words(error))
            with self._reporting:
                if self._reports[key] == (thread, note):
                    del self._reports[key]

    def words(self, step: int) -> Callable[[str], None]:
        """What tells the readers of the turn, in the step that runs, what its model says; it never waits nor raises.

        Args:
            step: The number of the reply, from 1.
        """
        token = token_of_step.get()
        if token is None:
            return lambda _: None
        with self._making_reader:
            self._tellers = tellers = self._tellers or ThreadPoolExecutor(_TELLERS, "dafx-words")
        return Words(tellers, lambda position, text: tell_words(channel_of(self.reader), token, step, position, text))

    def model_of(self, agent: Agent) -> Model:
        """The model of an agent, made when it is first asked for.

        Raises:
            ConfigurationError: None is configured.
        """
        declared = agent.definition.model
        # A class has the methods, too: it is a function that makes a model.
        if isinstance(declared, Model) and not isinstance(declared, type):
            return declared
        if declared not in self._models:
            # Not at the top: what providers need is imported by programs that use one.
            from dafx_actors.models.environment import model_from_environment

            self._models[declared] = made = (
                declared() if callable(declared) else model_from_environment(os.environ, declared)
            )
            self._made.append(made)
        return self._models[declared]

    def close(self) -> None:
        """Give back threads and connections, when all steps are over; what was reported is sent."""
        with self._reporting:
            reporter, self._reporter = self._reporter, None
        if reporter is not None:
            reporter.shutdown()  # what was reported is sent
        tellers, self._tellers = self._tellers, None
        if tellers is not None:
            tellers.shutdown(cancel_futures=True)
        calls, self._calls = self._calls, None
        if calls is not None:
            # None begins any more: gRPC crashes the process over a call on a channel that is closed.
            calls.shutdown(wait=False, cancel_futures=True)
        if self._reader is not None:
            self._reader.close()
            self._reader = None
        if calls is not None:
            calls.shutdown()
        if self._end_watch is not None:
            self._end_watch.close()
            self._end_watch = None

    async def aclose_models(self) -> None:
        """Give back what models hold, on the loop that they were used on."""
        while self._made:
            await attempted(self._made.pop().aclose, _logger, "A model")
        self._models.clear()
