"""A whole turn inside one operation of its thread: for `durability="turn"`, and for the peer's callers.

The same decisions as those of the turn's orchestration, `steps.py`, with nothing recorded between them. The
operation itself is a plain function, which durabletask calls; what of it waits for models and tools is a coroutine. So
that no thread has to wait, the intake runs that first (`ahead`), and then has durabletask call the operation, which
finds the turn done.
"""

from __future__ import annotations

import functools
import time
from datetime import UTC, datetime, timedelta

import anyio
import attrs

from dafx_actors._json import peer as _peer_forms
from dafx_actors._json.document import load_transcript
from dafx_actors._json.operations import ANY_TIME, Granted, Outcome
from dafx_actors._json.requests import load_request
from dafx_actors._json.steps import Caller, Failed, ModelAnswer, WholeTurnInput
from dafx_actors._rules import thread as _thread
from dafx_actors._rules import turn as _turn
from dafx_actors._rules.retries import MODEL_RETRIES, pause_before, retry_note, seconds_at_most
from dafx_actors._rules.state import ThreadState, dump, load
from dafx_actors._rules.tree import within
from dafx_actors._rules.turn import CallOutcome
from dafx_actors._turns import above as _above
from dafx_actors._turns.asking import AgentSteps
from dafx_actors._turns.link import keys_of
from dafx_actors._turns.recent import RecentEntries
from dafx_actors.errors import DafxError, McpUnreachable, ModelError, TurnCancelled, TurnDeadlineExceeded
from dafx_actors.exchange import Limits, RunRequest
from dafx_actors.ids import AgentThread, new_id
from dafx_actors.transcript import ChatMessage, Json, Transcript

_ONLY_IN_STEPS = "it cannot be called here: the whole turn runs in one operation, which can wait for nobody"
"""For calls that wait for a person or another agent, or that must be recorded before they act."""


@attrs.frozen
class _Asked:
    """The request of a turn, with its limits."""

    thread: AgentThread
    request: RunRequest
    limits: Limits
    key_of: _turn.KeyOf
    callers: tuple[Caller, ...]
    """The turns that wait for it, from the first."""


@attrs.frozen
class WholeTurn:
    """Takes turns of one agent on a worker."""

    steps: AgentSteps
    read: RecentEntries

    async def ahead(self, key: str, document: Json, raw: Json) -> tuple[ThreadState, Outcome] | None:
        """The turn that the operation `run` will need, as `take` gives it; None where it will need none.

        Args:
            key: The thread's.
            document: What is stored of it.
            raw: What it is told.

        Raises:
            DafxError, ValueError: The operation will fail in the same way.
        """
        if not _peer_forms.waits_for_answer(raw):
            return None
        thread, request, retry = (
            AgentThread(self.steps.agent.name, key),
            load_request(raw),
            WholeTurnInput.load(raw).retry,
        )
        state, outcome = _thread.begin(load(document), thread, request, datetime.now(UTC), retry=retry)
        return await self.take(thread, request, state, raw) if isinstance(outcome, Granted) else None

    async def take(
        self, thread: AgentThread, request: RunRequest, state: ThreadState, raw: Json
    ) -> tuple[ThreadState, Outcome]:
        """Take a turn that has been granted its thread, within its time: the thread after it, and how it ended.

        `raw` is the request as the operation was told it, with what it says of the turn's form and of those above.
        """
        turn, told = request.correlation_id, WholeTurnInput.load(raw)
        limits = seconds_at_most(within(self.steps.agent.definition.limits, request.limits), request.deadline)
        asked = _Asked(thread, request, limits, keys_of(thread, turn, told.form, told.retry), told.callers)
        with anyio.move_on_after(limits.seconds):
            return await self._take(asked, state)
        error = TurnDeadlineExceeded(thread.agent, turn, limits.seconds or 0.0)
        return _thread.abort(state, thread, turn, error, datetime.now(UTC), retry=ANY_TIME)

    async def _take(self, asked: _Asked, state: ThreadState) -> tuple[ThreadState, Outcome]:
        thread, request, turn = asked.thread, asked.request, asked.request.correlation_id
        progress = _turn.resumed(state.books.resumed) if state.books.resumed else _turn.Progress()
        began_at, failures = time.monotonic(), 0  # of the model call that is made now
        messages: tuple[ChatMessage, ...]
        while True:
            transcript = load_transcript(dump(state), functools.partial(self.read.load, thread.thread_id))
            first = not progress.replies
            answer: ModelAnswer = await self.steps.reply(
                thread, request, transcript, first=first, callers=asked.callers
            )
            if (result := answer.result) is None:
                assert answer.error is not None, "a reply, or an error"
                error, failures = answer.error, failures + 1
                if (pause := self._pause_before_retry(error, failures, began_at)) is not None:
                    note = retry_note(progress.replies + 1, failures, error)
                    progress = attrs.evolve(progress, retries=(*progress.retries, note))
                    await anyio.sleep(pause)
                    continue
                if isinstance(error, ModelError):
                    error = attrs.evolve(error, attempts=failures)
                move: _turn.Move = _turn.Fail(error)
            else:
                began_at, failures = time.monotonic(), 0
                progress, move = _turn.next_move(result, progress, asked.limits, turn, thread.agent, asked.key_of)
            now = datetime.now(UTC)
            match move:
                case _turn.Finish(message):
                    usage, about = progress.usage, progress.about
                    return _thread.commit(state, thread, turn, (message,), usage, now, about=about, retry=ANY_TIME)
                case _turn.Fail(error, messages):
                    messages = _turn.with_calls_not_made(messages)
                    usage, about = progress.usage, progress.about
                    return _thread.abort(
                        state, thread, turn, error, now, messages=messages, usage=usage, about=about, retry=ANY_TIME
                    )
                case _turn.Repair(messages):
                    pass
                case _turn.CallTools(message, calls):
                    messages = (message, *await self._make_calls(asked, calls, transcript))
            state, _ = _thread.record(state, thread, turn, messages, state.length, retry=ANY_TIME)

    def _pause_before_retry(self, error: DafxError, failures: int, began_at: float) -> float | None:
        """Seconds until a model call is made again; here the operation itself waits."""
        if not isinstance(error, McpUnreachable) and not (isinstance(error, ModelError) and error.retryable):
            return None
        policy = self.steps.agent.definition.retry or MODEL_RETRIES
        waited = timedelta(seconds=time.monotonic() - began_at)
        after = error.retry_after if isinstance(error, ModelError) else None
        pause = pause_before(failures, policy, waited, new_id(), at_least=after)
        return None if pause is None else pause.total_seconds()

    async def _make_calls(
        self, asked: _Asked, calls: tuple[_turn.Call, ...], transcript: Transcript
    ) -> list[ChatMessage]:
        thread, turn = asked.thread, asked.request.correlation_id
        outcomes: dict[str, CallOutcome] = {}

        async def make(call: _turn.Call) -> None:
            plan = call.plan
            if plan.refusal is not None:
                outcomes[call.key] = CallOutcome(Failed(plan.refusal))
            elif plan.approval or plan.agent or plan.once:
                outcomes[call.key] = CallOutcome(Failed(_ONLY_IN_STEPS))
            else:
                context = self.steps.tool_context(thread, turn, call.key, call.content.call_id, 1, lambda: transcript)
                try:
                    await _above.check(self.steps.host, asked.callers, thread.agent, turn)
                    called = self.steps.toolbox.call(
                        call.content.name,
                        call.content.arguments,
                        context,
                        source=plan.source,
                        offer=plan.offer,
                    )
                    outcomes[call.key] = CallOutcome(await called)
                except TurnCancelled as error:
                    outcomes[call.key] = CallOutcome(Failed(f"the call was not made: {error}"))

        for batch in _turn.batches(calls):
            async with anyio.create_task_group() as group:
                for call in batch:
                    group.start_soon(make, call)
        results = _turn.results_message(calls, outcomes)
        return [results] if results else []
