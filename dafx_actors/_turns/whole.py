"""A whole turn inside one operation of its thread: for `durability="turn"`, and for the peer's callers.

The same decisions as those of the turn's orchestration, `_turn_steps.py`, with nothing recorded between them. The
operation itself is a plain function, which durabletask calls; what of it waits for models and tools is a coroutine. So
that no thread has to wait, the intake runs that first (`ahead`), and then has durabletask call the operation, which
finds the turn done.
"""

from __future__ import annotations

import functools
import time
from datetime import datetime, timedelta, timezone

import anyio
import attrs

from dafx_actors._json import messages as _codec
from dafx_actors._json import peer as _peer_forms
from dafx_actors._json.shapes import as_object, load_json
from dafx_actors._rules import operations as _operations
from dafx_actors._rules import thread as _thread
from dafx_actors._rules import turn as _turn
from dafx_actors._rules.tree import Caller, load_callers, within
from dafx_actors._turns import above as _above
from dafx_actors._turns.asking import AgentSteps
from dafx_actors._turns.recent import RecentEntries
from dafx_actors._turns.steps import seconds_at_most
from dafx_actors.errors import DafxError, McpUnreachable, ModelError, TurnCancelled, TurnDeadlineExceeded
from dafx_actors.exchange import Limits, RunRequest
from dafx_actors.ids import AgentThread, new_id
from dafx_actors.orchestration._agents import keys_of
from dafx_actors.transcript import ChatMessage, Json, Transcript

_ONLY_IN_STEPS = "it cannot be called here: the whole turn runs in one operation, which can wait for nobody"
"""For calls that wait for a person or another agent, or that must be recorded before they act."""


@attrs.frozen
class _Asked:
    """What a turn is to do, and within what."""

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

    async def ahead(self, key: str, document: Json, raw: Json) -> tuple[_thread.ThreadState, _thread.Outcome] | None:
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
        thread, request = AgentThread(self.steps.agent.name, key), _codec.load_request(raw)
        state, outcome = _thread.begin(_thread.load(document), thread, request, datetime.now(timezone.utc))
        return await self.take(thread, request, state, raw) if isinstance(outcome, _thread.Granted) else None

    async def take(
        self, thread: AgentThread, request: RunRequest, state: _thread.ThreadState, raw: Json
    ) -> tuple[_thread.ThreadState, _thread.Outcome]:
        """Take a turn that has been granted its thread, within its time: the thread after it, and how it ended.

        `raw` is the request as the operation was told it, with what it says of the turn's form and of those above.
        """
        told = as_object(load_json(raw) if isinstance(raw, str) else raw)
        turn, form = request.correlation_id, told.get("form") or 0
        limits = seconds_at_most(within(self.steps.agent.definition.limits, request.limits), request.deadline)
        asked = _Asked(thread, request, limits, keys_of(thread, turn, form), load_callers(told.get("callers")))
        with anyio.move_on_after(limits.seconds):
            return await self._take(asked, state)
        error = TurnDeadlineExceeded(thread.agent, turn, limits.seconds or 0.0)
        return _thread.abort(state, thread, turn, error, datetime.now(timezone.utc))

    async def _take(self, asked: _Asked, state: _thread.ThreadState) -> tuple[_thread.ThreadState, _thread.Outcome]:
        thread, request, turn, progress = asked.thread, asked.request, asked.request.correlation_id, _turn.Progress()
        begun, failures = time.monotonic(), 0
        """Of the model call that is made now."""
        messages: tuple[ChatMessage, ...]
        while True:
            transcript = _codec.load_transcript(
                _thread.dump(state), functools.partial(self.read.load, thread.thread_id)
            )
            first = not progress.replies
            result = await self.steps.reply(thread, request, transcript, first=first, callers=asked.callers)
            if "error" in result:
                error, failures = _operations.error_in(result, thread), failures + 1
                if (pause := self._pause_before_retry(error, failures, begun)) is not None:
                    note = _turn.retry_note(progress.replies + 1, failures, result["error"])
                    progress = attrs.evolve(progress, retries=(*progress.retries, note))
                    await anyio.sleep(pause)
                    continue
                if isinstance(error, ModelError):
                    error = attrs.evolve(error, attempts=failures)
                step: _turn.Step = _turn.Fail(error)
            else:
                begun, failures = time.monotonic(), 0
                progress, step = _turn.next_step(result, progress, asked.limits, turn, thread.agent, asked.key_of)
            now = datetime.now(timezone.utc)
            match step:
                case _turn.Finish(message):
                    usage, about = progress.usage, progress.about
                    return _thread.commit(state, thread, turn, (message,), usage, now, about=about)
                case _turn.Fail(error, messages):
                    messages = _turn.with_calls_not_made(messages)
                    usage, about = progress.usage, progress.about
                    return _thread.abort(state, thread, turn, error, now, messages=messages, usage=usage, about=about)
                case _turn.Repair(messages):
                    pass
                case _turn.CallTools(message, calls):
                    messages = (message, *await self._make_calls(asked, calls, transcript))
            state, _ = _thread.record(state, thread, turn, messages, state.length)

    def _pause_before_retry(self, error: DafxError, failures: int, begun: float) -> float | None:
        """Seconds until a model call is made again; here the operation itself waits."""
        if not isinstance(error, McpUnreachable) and not (isinstance(error, ModelError) and error.retryable):
            return None
        policy = self.steps.agent.definition.retry or _turn.MODEL_RETRIES
        waited = timedelta(seconds=time.monotonic() - begun)
        after = error.retry_after if isinstance(error, ModelError) else None
        pause = _turn.pause_before(failures, policy, waited, new_id(), at_least=after)
        return None if pause is None else pause.total_seconds()

    async def _make_calls(
        self, asked: _Asked, calls: tuple[_turn.Call, ...], transcript: Transcript
    ) -> list[ChatMessage]:
        thread, turn = asked.thread, asked.request.correlation_id
        outcomes: dict[str, Json] = {}

        async def make(call: _turn.Call) -> None:
            if call.refusal is not None:
                outcomes[call.key] = {"error": call.refusal}
            elif call.plan.get("approval") or call.plan.get("agent") or call.plan.get("once"):
                outcomes[call.key] = {"error": _ONLY_IN_STEPS}
            else:
                raw = {"correlationId": turn, "key": call.key, "callId": call.content.call_id, "attempt": 1}
                context = self.steps.tool_context(thread, raw, lambda: transcript)
                try:
                    await _above.check(self.steps.host, asked.callers, thread.agent, turn)
                    called = self.steps.toolbox.call(
                        call.content.name,
                        call.content.arguments,
                        context,
                        source=call.plan["activity"] if "offer" in call.plan else None,
                        offer=call.plan.get("offer"),
                    )
                    outcomes[call.key] = await called
                except TurnCancelled as error:
                    outcomes[call.key] = {"error": f"the call was not made: {error}"}

        for batch in _turn.batches(calls):
            async with anyio.create_task_group() as group:
                for call in batch:
                    group.start_soon(make, call)
        results = _turn.results_message(calls, outcomes)
        return [results] if results else []
