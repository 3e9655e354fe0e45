"""How a client deletes or resets a thread: step by step, each of which may come twice.

What is to be done still is kept in the thread itself, see `_rules/clearing.py`. So whoever dies between two steps
leaves nothing behind that the next one does not find.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Generator, Iterable
from contextlib import contextmanager
from typing import TypeVar

import anyio
from durabletask.client import OrchestrationState, OrchestrationStatus

from dafx_actors._durable.backend import ENDED, Backend
from dafx_actors._durable.calls import Sent
from dafx_actors._json.books import CancelMark, ChildRecord, Remains
from dafx_actors._json.document import Outline, check_document
from dafx_actors._json.operations import Clear, Cleared, Clearing, Outcome, Sweep, ToThread
from dafx_actors._json.steps import thread_in
from dafx_actors.client._executor import AWAY, ClientAgentExecutor
from dafx_actors.errors import AgentNotHosted, DafxError, ThreadTimeout, TurnSuperseded, UnsupportedTranscript
from dafx_actors.ids import AgentThread, telling_prefix, turn_name

T = TypeVar("T")

_PATIENCE = 60.0
"""Seconds that one thing may take to end, for a caller who has not said how long to wait."""
_LOOK_AGAIN = 0.5
"""Seconds between looks whether a turn that runs is one of before, or a new one of the same id."""
_AT_ONCE = 16
"""Turns that are seen to at the same time."""
_REASON = {"delete": "the thread was deleted", "reset": "the thread was reset"}


class Clearance:
    """One deletion, or one reset, of a thread."""

    def __init__(
        self,
        backend: Backend,
        executor: ClientAgentExecutor,
        thread: AgentThread,
        operation: str,
        timeout: float | None,
    ) -> None:
        self._backend = backend
        self._executor = executor
        self._thread = thread
        self._operation = operation
        self._timeout = timeout
        self._mark = CancelMark.of(by="", reason=_REASON[operation])
        self._sent = Sent()
        self._waits: dict[str, None] = {}
        """What is waited for, in words."""
        self._seen: set[AgentThread] = set()
        """Threads that are being cleared, or were: agents may use each other in a circle."""

    def late(self) -> Exception:
        """What is raised when the caller's `timeout` is over."""
        if not self._sent.maybe:
            return self._backend.silence(self._timeout)
        return self._error(self._timeout or 0.0)

    async def carry_out(self) -> None:
        """Do it; see `Threads.delete`."""
        await self._clear(self._thread, deletes=self._operation == "delete")

    # --- A thread -------------------------------------------------------------------------------------------------

    async def _clear(self, thread: AgentThread, *, deletes: bool) -> None:
        if thread in self._seen:
            return
        self._seen.add(thread)
        try:
            remains = await self._emptied(thread, deletes=deletes)
        except AgentNotHosted:
            if await self._executor.document(thread) is None:
                return  # nothing is there
            if thread is self._thread:
                raise
            with self._waiting(f"thread {thread} of agent {thread.agent!r}, which no worker hosts"):
                raise self._error(self._executor.start_timeout) from None
        children: dict[AgentThread, list[ChildRecord]] = {}
        for child in remains.children:
            children.setdefault(child.thread, []).append(child)
        for below, turns in children.items():
            await self._clear_below(below, turns)
        await _each(remains.turns, lambda turn: self._remove(thread, turn))
        told = [state.instance_id for state in await self._backend.ended(telling_prefix(thread))]
        await _each(told, self._backend.purge)
        if remains != Remains():
            await self._tell(thread, Sweep(remains=remains, deletes=deletes))

    async def _emptied(self, thread: AgentThread, *, deletes: bool) -> Remains:
        """Have the thread forget what was said, when its turns have ended; what is to be deleted now."""
        ended: dict[str, None] = {}
        while True:
            outcome = await self._tell(thread, Clear(mark=self._mark, deletes=deletes, ended=tuple(ended)))
            if isinstance(outcome, Cleared):
                return outcome.remains
            if not isinstance(outcome, Clearing):
                raise UnsupportedTranscript(f"the thread said {type(outcome).__name__}", "Cleared")
            for turn in outcome.turns:
                await self._wait(thread, turn)
                ended[turn] = None

    async def _clear_below(self, thread: AgentThread, turns: Iterable[ChildRecord]) -> None:
        """Delete a thread in which turns of ours were, with those that have not begun yet."""
        await self._clear(thread, deletes=True)
        late = False
        for child in turns:
            state = await self._backend.state(child.turn)
            if state is None or not _belongs(state, thread):
                continue
            if state.runtime_status not in ENDED:
                late = True
                if not await self._is_withdrawn(thread, state):
                    await self._wait(thread, child.turn)
            await self._backend.purge(child.turn)
        if late:  # it may have begun behind our back
            self._seen.discard(thread)
            await self._clear(thread, deletes=True)

    async def _tell(self, thread: AgentThread, message: ToThread) -> Outcome:
        with self._waiting(f"thread {thread} of agent {thread.agent!r} has not answered {message.operation!r}"):
            return await self._bounded(self._told(thread, message), self._patience)

    async def _told(self, thread: AgentThread, message: ToThread) -> Outcome:
        while True:
            try:
                # The bound of a minute is not the caller's word, which would have it wait for a worker so long.
                patience = AWAY if self._timeout is None else None
                return await self._executor.tell(thread, message, self._sent, leaves_record=False, patience=patience)
            except TurnSuperseded:  # somebody else deletes the thread, and has removed the record of our words
                continue

    # --- Its turns ------------------------------------------------------------------------------------------------

    async def _wait(self, thread: AgentThread, turn: str) -> None:
        """Wait until the orchestration of a turn that was cancelled has ended, or is not there."""
        state = await self._backend.state(turn)
        if state is None or not _runs(state, thread):
            return
        status = state.runtime_status.name.lower()
        with self._waiting(f"turn {turn} of agent {thread.agent!r} in thread {thread} is {status}"):
            await self._bounded(self._ended(thread, turn), self._patience)

    async def _ended(self, thread: AgentThread, turn: str) -> None:
        while await self._backend.wait(turn, math.inf) is None:
            state = await self._backend.state(turn)
            if state is None or not _runs(state, thread):
                return

    async def _remove(self, thread: AgentThread, turn: str) -> None:
        """Remove the orchestration of a turn that the thread has forgotten.

        Not the turn of another thread, from which the transcript was imported; and not one that has begun since.
        """
        with self._waiting(f"turn {turn} of agent {thread.agent!r}"):
            await self._bounded(self._removed(thread, turn), self._patience)

    async def _removed(self, thread: AgentThread, turn: str) -> None:
        state = await self._backend.state(turn)
        while state is not None and _belongs(state, thread):
            if state.runtime_status in ENDED:
                await self._backend.purge(turn)
                return
            if state.runtime_status is OrchestrationStatus.PENDING or await self._is_anew(thread, turn):
                return
            await self._backend.wait(turn, _LOOK_AGAIN)
            state = await self._backend.state(turn)

    async def _is_anew(self, thread: AgentThread, turn: str) -> bool:
        """Say whether the thread knows a turn of this id, which has begun since it forgot those of before."""
        document = await self._executor.document(thread)
        outline, history = Outline.of(document), check_document(document).get("conversationHistory", [])
        return turn in (outline.active, *outline.line) or any(raw.get("correlationId") == turn for raw in history)

    async def _is_withdrawn(self, thread: AgentThread, state: OrchestrationState) -> bool:
        """Withdraw a turn that no worker has begun, where none hosts its agent."""
        if state.runtime_status is not OrchestrationStatus.PENDING or not await self._executor.is_unhosted(
            thread.agent
        ):
            return False
        return await self._backend.withdraw(state.instance_id, self._mark.reason)

    # --- How long -------------------------------------------------------------------------------------------------

    @property
    def _patience(self) -> float:
        return _PATIENCE if self._timeout is None else math.inf

    async def _bounded(self, waiting: Awaitable[T], seconds: float) -> T:
        with anyio.move_on_after(seconds) as scope:
            return await waiting
        assert scope.cancelled_caught
        raise self._error(seconds)

    @contextmanager
    def _waiting(self, what: str) -> Generator[None]:
        """Note what is waited for inside, for the error; what fails there is said by its own error."""
        self._waits[what] = None
        try:
            yield
        except Exception:
            self._waits.pop(what, None)
            raise
        # Not where the caller's time is over: that error is made when this has been left.
        self._waits.pop(what, None)

    def _error(self, seconds: float) -> DafxError:
        return ThreadTimeout(self._thread.agent, self._thread.thread_id, self._operation, seconds, tuple(self._waits))


def _belongs(state: OrchestrationState, thread: AgentThread) -> bool:
    """Say whether an orchestration is a turn of this thread; others may have its id."""
    return state.name == turn_name(thread.agent) and thread_in(state.serialized_input) == thread.thread_id


def _runs(state: OrchestrationState, thread: AgentThread) -> bool:
    return _belongs(state, thread) and state.runtime_status not in ENDED


async def _each(items: Iterable[str], see_to: Callable[[str], Awaitable[None]]) -> None:
    """See to each of these, several at a time; the first error ends it."""
    todo = list(items)

    async def some() -> None:
        while todo:
            await see_to(todo.pop())

    try:
        async with anyio.create_task_group() as group:
            for _ in range(min(_AT_ONCE, len(todo))):
                group.start_soon(some)
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None
