"""How a reader follows a turn: what is known of it is fetched from time to time, and what is new is told.

The turn's status and its thread are read, at intervals that grow while nothing happens; this needs nothing of a
scheduler or a worker. What a model says meanwhile is in the turn's view, where the scheduler has views (`_views.py`);
a view of a step later than the thread's draft has the thread read at once. What is told of that, and what is taken
back, `updates/_reading.py` decides. The end is waited for as by everybody who awaits a turn.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import attrs

from dafx_actors._durable.calls import within
from dafx_actors._json.books import QuestionRecord
from dafx_actors._json.messages import load_entry
from dafx_actors._json.requests import load_decision
from dafx_actors._rules import state as _state
from dafx_actors._rules.beside import seen_by
from dafx_actors.client._executor import ClientAgentExecutor
from dafx_actors.client._status import TurnStatus, look_at
from dafx_actors.client._views import Watch
from dafx_actors.errors import DafxError, SchedulerUnreachable, TurnNotFound, TurnTimeout
from dafx_actors.exchange import AgentRunResponse
from dafx_actors.ids import AgentThread
from dafx_actors.transcript import Json, Response
from dafx_actors.updates._cursors import Cursor
from dafx_actors.updates._reading import Known, Reading
from dafx_actors.updates._words import Asked, Decided, Ended, Progress, State, Update

_FIRST_PAUSE, _LONGEST_PAUSE, _GROWS = 1.0, 5.0, 1.5
"""Seconds between two looks at a turn; they grow while nothing happens."""
_OVER = frozenset({"completed", "failed", "cancelled", "terminated"})
"""States of which `ended` tells."""


@attrs.frozen(kw_only=True)
class Followed:
    """A turn that is followed, and how it is begun and waited for."""

    executor: ClientAgentExecutor
    agent: str
    turn: str
    begin: Callable[[], Awaitable[AgentThread]]
    """Starts it, or finds it; gives its thread."""
    wait: Callable[[AgentThread], Awaitable[AgentRunResponse[Any]]]
    """Waits for its answer."""
    timeout: float | None
    """Seconds for all of it."""


class Following:
    """One reader of one turn. A call that is cancelled loses nothing: the next one goes on."""

    def __init__(self, followed: Followed, after: str | None) -> None:
        """Follow nothing yet.

        Args:
            followed: The turn.
            after: The cursor of the last update that was told before.

        Raises:
            InvalidCursor: It is none.
        """
        cursor = None if after is None else Cursor.parse(after)
        self._followed = followed
        self._was_end = cursor is not None and cursor.is_end
        self._reading = Reading(cursor)
        self._ready: deque[Update] = deque()
        self._is_opened = self._is_over = False
        self._ending: asyncio.Task[AgentRunResponse[Any]] | None = None
        self._ends_at = math.inf
        self._pause, self._next_look = _FIRST_PAUSE, -math.inf
        self._thread: AgentThread | None = None
        self._status: TurnStatus | None = None
        self._watch: Watch | None = None
        self._draft = Known.drafted(())
        self._looked_for = 0
        """The latest step for which the thread was read at once."""
        self._progress: dict[str, Json] = {}
        self._asked: set[tuple[str, str]] = set()
        """The questions that were told and are open: their turns and keys."""

    async def begin(self) -> None:
        """Start the turn, or find it, and begin to wait for its end.

        Raises:
            RuntimeError: That was done before.
        """
        if self._is_opened:
            raise RuntimeError("a stream is opened once: take another by `turn.updates(after=cursor)`")
        self._is_opened = True
        followed = self._followed
        if followed.timeout is not None:
            self._ends_at = time.monotonic() + followed.timeout
        with self._bounded():
            thread = self._thread = await followed.begin()

        async def wait() -> AgentRunResponse[Any]:
            with self._bounded():  # in here, too: how long a worker is waited for depends on it
                return await followed.wait(thread)

        self._watch = followed.executor.views.watch(followed.turn)
        self._ending = asyncio.create_task(wait(), name=f"end of turn {followed.turn}")
        self._ending.add_done_callback(_forget)

    async def leave(self) -> None:
        """Follow it no more; the turn goes on."""
        ending, watch = self._ending, self._watch
        self._watch = None
        if ending is not None:
            ending.cancel()  # before anything is awaited, which may be cancelled
        if watch is not None:
            await self._followed.executor.views.leave(self._followed.turn, watch)
        if ending is not None:
            await asyncio.wait({ending})

    async def response(self) -> AgentRunResponse[Any]:
        """The answer, or what the turn ended with is raised."""
        ending = self._begun
        await asyncio.wait({ending})
        return ending.result()

    async def next(self) -> Update | None:
        """The next update; None after the last."""
        ending = self._begun
        while not self._ready and not self._is_over:
            pause = self._next_look - time.monotonic()
            if pause > 0:
                news = set[asyncio.Future[Any]]() if self._watch is None else {self._watch.news()}
                await asyncio.wait({ending, *news}, timeout=pause, return_when=asyncio.FIRST_COMPLETED)
            if ending.done():
                await self._end(ending)
                continue
            self._see_view()
            if self._next_look <= time.monotonic():
                with self._bounded():
                    await self._look()
        return self._ready.popleft() if self._ready else None

    # --- Inside ---------------------------------------------------------------------------------------------------

    @property
    def _begun(self) -> asyncio.Task[AgentRunResponse[Any]]:
        if self._ending is None:
            raise RuntimeError("the stream is not open: use it with `async with`")
        return self._ending

    def _bounded(self) -> Any:
        followed = self._followed
        left = None if math.isinf(self._ends_at) else max(self._ends_at - time.monotonic(), 0.0)
        thread_id = "" if self._thread is None else self._thread.thread_id
        return within(left, lambda: TurnTimeout(followed.agent, thread_id, followed.turn, followed.timeout or 0.0, ""))

    def _tell(self, updates: Iterable[Update]) -> None:
        self._ready.extend(updates)

    def _at(self) -> dict[str, Any]:
        """Where an update stands that is told beside the messages."""
        return {"step": self._reading.step, "cursor": self._reading.cursor()}

    def _see_view(self) -> None:
        """Tell what is on its way."""
        view = None if self._watch is None else self._watch.view
        if view is None:
            return
        if not self._draft.misses(view):
            self._tell(self._reading.see(self._draft.with_view(view)))
        elif self._looked_for < view.step:
            self._looked_for, self._next_look = view.step, -math.inf

    async def _look(self) -> None:
        """Fetch what is known, and tell what is new."""
        followed = self._followed
        status, document = await look_at(followed.executor, followed.agent, followed.turn)
        seen = seen_by(_state.load(document), followed.turn)
        is_at_work = followed.turn in (seen.active, *seen.books.joined)
        asked = await self._questions(seen.books) if is_at_work else {}
        # From here on nothing is awaited: a call that is cancelled has told all of a look, or nothing.
        self._show(status)
        if is_at_work:
            self._draft = Known.drafted(seen.draft)
            self._tell(self._reading.see(self._draft))
            self._see_view()
            self._tell_progress(seen.books.progress)
            self._tell_questions(asked, seen.books.asks)
        self._pause = _FIRST_PAUSE if self._ready else min(self._pause * _GROWS, _LONGEST_PAUSE)
        self._next_look = time.monotonic() + self._pause

    async def _questions(self, books: _state.Books) -> dict[tuple[str, str], Any]:
        """What persons are asked now: by the turn, and by those of agents that it uses as tools."""
        thread, turn = self._thread, self._followed.turn
        assert thread is not None
        open_here = (each for each in books.asks.values() if each.decision is None)
        found = [each.pending(thread, turn) for each in open_here]
        for child in books.children.values():
            found += await self._followed.executor.pending(child.thread.agent, child.thread)
        return {(each.correlation_id, each.key): each for each in found}

    def _show(self, status: TurnStatus) -> None:
        if status.state in _OVER:
            return
        told, self._status = self._status, attrs.evolve(status, steps=0, progress={})
        if told != self._status:
            shown = State(
                **self._at(),
                state=status.state,
                attempt=status.attempt,
                waits_for=status.waits_for,
                error=status.error,
            )
            self._tell([shown])

    def _tell_progress(self, progress: Any) -> None:
        for key, each in progress.items():
            if key not in self._progress or self._progress[key] != each:
                self._progress[key] = each
                self._tell([Progress(**self._at(), key=key, progress=each)])

    def _tell_questions(self, asked: dict[tuple[str, str], Any], own: Any) -> None:
        for turn, key in [each for each in self._asked if each not in asked]:
            self._asked.discard((turn, key))
            record: QuestionRecord | None = own.get(key) if turn == self._followed.turn else None
            decision = None if record is None or record.decision is None else load_decision(record.decision)
            self._tell([Decided(**self._at(), key=key, decision=decision)])
        for name, question in asked.items():
            if name not in self._asked:
                self._asked.add(name)
                self._tell([Asked(**self._at(), approval=question)])

    async def _end(self, ending: asyncio.Task[AgentRunResponse[Any]]) -> None:
        """Tell what is missing, and the end."""
        response: AgentRunResponse[Any] | None = None
        error: DafxError | None = None
        try:
            response = ending.result()
        except (SchedulerUnreachable, TurnNotFound, TurnTimeout):
            raise  # nothing is known of the end
        except DafxError as failed:
            error = failed
        messages = response.messages if response is not None else await self._messages_of_failed()
        told = list(self._reading.see(Known.ended(messages)))
        # A reader that was told the end is told it again only where it is another one.
        if told or not self._was_end:
            cursor = self._reading.cursor(is_end=True)
            told.append(Ended(step=self._reading.step, cursor=cursor, response=response, error=error))
        self._tell(told)
        self._is_over = True

    async def _messages_of_failed(self) -> Any:
        """The messages in the transcript of a turn that ended with an error."""
        assert self._thread is not None
        with self._bounded():
            document = await self._followed.executor.document(self._thread)
        stored = _state.ended_in(_state.load(document), self._followed.turn)
        entry = None if stored is None else load_entry(stored)
        return entry.messages if isinstance(entry, Response) else ()


def _forget(ending: asyncio.Task[Any]) -> None:
    """Whoever has left does not want to hear what it ended with."""
    if not ending.cancelled():
        ending.exception()
