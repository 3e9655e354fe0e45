"""A turn as its orchestration takes it, step by step; what is decided between the steps is in `_rules/turn.py`.

::

    begin, model step ──> record, tool steps together, record ──> model step ──> ... ──> commit
       │      │  ^             │
       │      └──┘ back-off    └── waits for a person, for days if need be, and holds no worker
       └── waits in line

Most turns find their thread idle. So the first model step does not wait for the grant to come back here and go out
again: it is asked for together with `begin`, and looks in the thread whether that is granted. Where it is not, it does
nothing, and the turn asks its thread again.

What the steps gave stands in the orchestration's history, and what they were asked in it: so nothing here reads the
agent's declaration, which may be another one when the history is replayed. `settings` come with the grant. The tool
calls are in `calls.py`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime, timedelta

import attrs
from durabletask import task

from dafx_actors._json.books import CancelMark
from dafx_actors._json.operations import (
    ANY_TIME,
    Abort,
    Ask,
    Begin,
    Commit,
    Ended,
    Granted,
    Queued,
    Refused,
    Reply,
    Wanted,
    place_of,
)
from dafx_actors._json.requests import dump_request
from dafx_actors._json.steps import (
    SHORT_QUESTIONS,
    Caller,
    ModelAnswer,
    ModelStep,
    Probe,
    Probed,
    Settings,
    WholeTurnInput,
)
from dafx_actors._rules import turn as _turn
from dafx_actors._rules.retries import MODEL_RETRIES, retry_note, seconds_at_most
from dafx_actors._rules.tree import within
from dafx_actors._turns.calls import ToolCalls
from dafx_actors._turns.context import TurnContext
from dafx_actors._turns.link import Broken, Stopped, TurnBase
from dafx_actors._turns.tell import CANCEL, GRANTED
from dafx_actors.errors import (
    DafxError,
    McpUnreachable,
    MessageTooLarge,
    ModelError,
    ThreadBusy,
    TurnFailed,
    TurnTerminated,
)
from dafx_actors.exchange import RunRequest
from dafx_actors.ids import AgentThread, model_step_name, probe_name
from dafx_actors.orchestration._coroutines import when_any
from dafx_actors.transcript import ChatMessage, Json

_FIRST_LOOK = timedelta(seconds=1)
_LONGEST_PAUSE = timedelta(minutes=5)
_LARGE = 32 * 1024
"""Bytes of a request that a turn in line does not send its thread each time that it asks."""
_LOOKS = 30
"""How often a turn that waits in line looks after the one before it, until it starts again with an empty history."""


class TurnSteps(TurnBase):
    """One turn inside its orchestration."""

    def __init__(
        self,
        context: TurnContext,
        thread: AgentThread,
        request: RunRequest,
        *,
        started_at: datetime | None = None,
        eager: bool = False,
        form: int = 0,
        callers: tuple[Caller, ...] = (),
        retry: int = 0,
    ) -> None:
        """Take up a turn.

        Args:
            context: Of its orchestration.
            thread: Its thread.
            request: What it is to answer.
            started_at: When it was started, if it waited so long that its history was cut.
            eager: Whether to ask for the thread and the model at once. Turns of versions that could not are replayed.
            form: In which it was begun; see `steps.FORM`.
            callers: The turns that wait for it, from the first, where it is that of an agent used as a tool.
            retry: How often it was taken up again after it had failed, with this time.
        """
        super().__init__(context, thread, request.correlation_id, form, callers, retry)
        self._request = request
        self.started_at = started_at or self.started_at
        self._is_eager = eager
        self._retry = MODEL_RETRIES
        self._seconds: float | None = None
        """After which the turn ends, as there is a timer for."""
        self._calls = ToolCalls(self)

    async def in_one_operation(self) -> Json:
        """The whole turn inside the thread; it names an orchestration that waits, so that it is run there and then."""
        request = attrs.evolve(self._request, orchestration_id=self._request.orchestration_id or self.id)
        sent = WholeTurnInput(self.form, self.callers, self.retry).dump(request)
        said = await self.context.call_entity(self.thread.entity_id, "run", sent)
        self.checked(Reply.load(said, self.thread, self.id))
        return said

    async def step_by_step(self) -> Json:
        """Each step recorded. None where it still waits in line after a long time, and should start again."""
        # One wait, made once: a new one each time round would lose the event to the old one.
        self.stops = [self.context.wait_for_external_event(CANCEL)]
        try:
            if self._is_eager:
                outcome, answer = await self._begin_with_model()
            else:
                outcome, answer = await self._begin(), None
        except MessageTooLarge as error:
            # The thread has no room for the request. What is said of that is small, and the next in line is told.
            outcome, answer = await self._leave(error, brings=False), None
        if isinstance(outcome, Ended):
            return outcome.response
        if isinstance(outcome, Queued):
            return None
        if outcome.beside is not None:
            # Should the other be dead, nobody else would find that out while turns go on beside it.
            await self._look_after(outcome.beside)
        try:
            while (ended := await self._round(answer)) is None:
                answer = None
        except Stopped as stopped:
            self._calls.cancel_children(stopped.error)
            try:
                await self.make_sure()
            except MessageTooLarge:
                return await self._abort(stopped.error, self._calls.unrecorded(kept=False))
            return await self._abort(stopped.error, self._calls.unrecorded())
        except MessageTooLarge as error:
            # The thread cannot hold what was said, and is as it was before.
            return await self._abort(error, self._calls.unrecorded(kept=False))
        return ended

    async def _round(self, answer: ModelAnswer | Broken | None = None) -> Json:
        """A model call, unless its answer is there, and what follows; the response, where that ended the turn."""
        answer = await self._model_step(answer)
        await self.make_sure()
        self._calls.settle()
        if (result := None if isinstance(answer, Broken) else answer.result) is None:
            no_answer = TurnFailed(self.thread.agent, self.id, "an error", "the step gave no result")
            return await self._abort(answer.error or no_answer)
        self.progress, move = _turn.next_move(
            result, self.progress, self.limits, self.id, self.thread.agent, self.key_of
        )
        match move:
            case _turn.Finish():
                return await self._commit(move)
            case _turn.Repair(messages):
                await self.record(messages)
            case _turn.CallTools():
                await self._calls.make(move)
                if self._calls.fatal is not None:
                    return await self._abort(self._calls.fatal, self._calls.unrecorded())
                if self.is_of_the_tree and (over := self._over_limit()) is not None:
                    return await self._abort(over)
            case _turn.Fail(error, messages):
                return await self._abort(error, _turn.with_calls_not_made(messages))
        return None

    # --- The thread -----------------------------------------------------------------------------------------------

    async def _begin_with_model(self) -> tuple[Granted | Queued | Ended, ModelAnswer | Broken | None]:
        """Ask for the thread and the model in one episode: what `_begin` gives, and the model's answer if it has one.

        What the thread says is told by the model step, which has to know it anyway.
        """
        if self._request.limits is not None:
            self.limits = self._request.limits
        self._limit_time()
        begin = Begin(self._request)
        self.context.signal_entity(self.thread.entity_id, begin.operation, begin.dump())
        asked = attrs.evolve(self._asked(), begins=True, **self._limited())
        self.show("running")
        try:
            answer = await self._ask_model(asked)
        except Stopped as stopped:
            return await self._leave(stopped.error), None
        if isinstance(answer, Broken) or answer.begun is None:
            outcome = await self._begin()
            # What cannot be sent would not be sent the next time either.
            stays = isinstance(outcome, Granted) and isinstance(answer, Broken) and answer.is_too_large
            return outcome, answer if stays else None
        begun = answer.begun
        self._take_over(begun.settings)
        granted = Granted(begun.length, beside=begun.beside)
        self.settle(granted, begun.cache_token)
        return granted, answer if answer.result or answer.error else None

    async def _begin(self) -> Granted | Queued | Ended:
        """Ask for the thread, and wait in line where it works on another turn."""
        reply = await self._ask()
        if isinstance(reply.outcome, Refused) and isinstance(busy := reply.outcome.error, ThreadBusy):
            # Where requests that overlap are rejected, a dead turn would else hold the thread for ever.
            await self._look_after(busy.active)
            reply = await self._ask()
        self.checked(reply)
        self._take_over(reply.settings)
        outcome = self._heard(reply)
        if not isinstance(outcome, Queued):
            return outcome
        self.show("queued")
        granted = self.context.wait_for_external_event(GRANTED)
        pause = _FIRST_LOOK
        for _ in range(_LOOKS):
            if not isinstance(outcome, Queued):
                break
            await self._look_after(outcome.active)
            if not granted.is_complete:
                try:
                    await self.unless_stopped(when_any([granted, self.context.create_timer(pause)]))
                except Stopped as stopped:
                    return await self._leave(stopped.error)
            if granted.is_complete:
                # Only a reason to ask: the thread says who is active, and anybody can raise an event.
                granted = self.context.wait_for_external_event(GRANTED)
            outcome = self._heard(self.checked(await self._ask()))
            pause = min(pause * 2, _LONGEST_PAUSE)
        return outcome

    async def _ask(self) -> Reply:
        """Ask for the thread; with a large request only where the thread wants it, since a turn in line asks often.

        Each time is recorded. What is small is sent whole, as earlier versions do.
        """
        if self.form >= SHORT_QUESTIONS and len(json.dumps(dump_request(self._request))) > _LARGE:
            with suppress(task.TaskFailedError):  # a worker of an earlier version knows whole requests only
                reply = await self.tell_thread(Ask(place_of(self._request, self.retry)))
                if not isinstance(reply.outcome, Wanted):
                    return reply
        return await self.tell_thread(Begin(self._request, self.retry))

    def _heard(self, reply: Reply) -> Granted | Queued | Ended:
        """Take a reply to `begin`. Turns whose place this one took, and which may not know it, are told."""
        outcome = reply.outcome
        if isinstance(outcome, Granted):
            self.settle(outcome, reply.cache_token)
            if outcome.resumed is not None:
                self.progress = _turn.resumed(outcome.resumed)
        if isinstance(outcome, Granted | Queued):
            mark = CancelMark.of(by=self.id, reason="a newer request took its place")
            for cancelled in outcome.cancelled:
                self.context.send_event(cancelled, CANCEL, data=dict(mark.raw))
            return outcome
        assert isinstance(outcome, Ended), "`begin` gives nothing else to a turn that brings its request"
        return outcome

    def _take_over(self, settings: Settings | None) -> None:
        """Take over what the worker that began the turn says of the agent."""
        limits = settings.limits if settings else None
        if self.is_of_the_tree and limits is not None:
            self.limits = within(limits, self._request.limits)
        elif self._request.limits is not None:
            self.limits = self._request.limits
        elif limits is not None:
            self.limits = limits
        if settings is not None and settings.retry is not None:
            self._retry = settings.retry
        self._limit_time()

    def _limited(self) -> dict[str, Json]:
        """The time limit that the first model step is told: it asks no model while the agent's limit has no timer."""
        if self.is_of_the_tree:
            return {} if self._seconds is None else {"seconds": self._seconds}
        return {"limited": True} if self._request.limits else {}

    def _over_limit(self) -> DafxError | None:
        return _turn.over_limit(self.progress, self.limits, self.id, self.thread.agent)

    def _limit_time(self) -> None:
        """Have the turn end at its deadline; the earliest of several counts."""
        self.limits = seconds_at_most(self.limits, self._request.deadline)
        seconds = self.limits.seconds
        if seconds is not None and (self._seconds is None or seconds < self._seconds):
            self._seconds = seconds
            self.stops.append(self.context.create_timer(self.started_at + timedelta(seconds=seconds)))

    async def _leave(self, error: DafxError, *, brings: bool = True) -> Ended:
        """Stop waiting in line. One whose request has joined the active turn cannot take it back.

        For the transcript it brings its request, which the thread does not have while it waits.
        """
        abort = attrs.evolve(self._ending(error), request=self._request if brings else None)
        reply = await self.tell_thread(abort)
        if not isinstance(reply.outcome, Ended):
            raise error
        return self._ended(reply.outcome)

    async def _look_after(self, active: str) -> None:
        """End the turn that holds the thread if it is dead; then its thread, or the next in line, is woken.

        A refusal means that somebody else ended it in the meantime, or reset the thread.
        """
        probe = probe_name(self.thread.agent)
        fate = Probed.load(await self.context.call_activity(probe, input=Probe(turn=active).dump()))
        if fate.alive:
            return
        if fate.response:
            reply = await self.tell_thread(Commit.of_found(active, fate.response))
        else:
            error = TurnTerminated(self.thread.agent, active, "it ended without a word")
            reply = await self.tell_thread(Abort(turn=active, error=error, retry=ANY_TIME))
        if isinstance(reply.outcome, Ended):
            self._ended(reply.outcome)

    async def _commit(self, end: _turn.Finish) -> Json:
        """The response; None where others have joined the turn meanwhile, so that it goes on."""
        commit = Commit(
            turn=self.id,
            length=self.length,
            messages=(end.message,),
            usage=self.progress.usage,
            about=self.progress.about,
            last=end.last,
            retry=self.retry,
        )
        reply = self.checked(await self.tell_thread(commit))
        if isinstance(reply.outcome, Granted):
            self.settle(reply.outcome, reply.cache_token)
            return None
        return self._response(reply)

    async def _abort(self, error: DafxError, messages: Sequence[ChatMessage] = ()) -> Json:
        return self._response(self.checked(await self.tell_thread(self._ending(error, messages))))

    def _ending(self, error: DafxError, messages: Sequence[ChatMessage] = ()) -> Abort:
        return Abort(
            turn=self.id,
            error=error,
            messages=tuple(messages),
            usage=self.progress.usage,
            about=self.progress.about,
            retry=self.retry,
        )

    def _response(self, reply: Reply) -> Json:
        assert isinstance(reply.outcome, Ended), "a turn that has its thread ends, or is refused"
        return self._ended(reply.outcome).response

    def _ended(self, outcome: Ended) -> Ended:
        """Tell the turn that is active now, and those that have their answer by this one."""
        for each in (*outcome.joined, *([outcome.next_id] if outcome.next_id else [])):
            self.context.send_event(each, GRANTED)
        return outcome

    # --- Steps ----------------------------------------------------------------------------------------------------

    def _asked(self) -> ModelStep:
        return ModelStep(
            thread_id=self.thread.thread_id,
            turn=self.id,
            length=self.length,
            options=self._request.options,
            reply=self.progress.replies + 1,
            cache_token=self.cache_token,
            records=self.told is not None,
            tool_choice=self._request.tool_choice,
            enable_tool_calls=self._request.enable_tool_calls,
            callers=self.callers,
            stream=self._request.stream,
        )

    async def _ask_model(self, asked: ModelStep) -> ModelAnswer | Broken:
        """One attempt of a model call.

        Raises:
            Stopped: The turn was stopped meanwhile.
        """
        step = self.context.call_activity(model_step_name(self.thread.agent), input=asked.dump())

        def load(raw: Json) -> ModelAnswer:
            return ModelAnswer.load(raw, self.thread, self.id)

        answer = await self.as_value(self.unless_stopped(step), load)
        if isinstance(answer, ModelAnswer):
            self.see(answer.length)
        return answer

    async def _model_step(self, answer: ModelAnswer | Broken | None = None) -> ModelAnswer | Broken:
        """A model call, with its attempts: what may go better is tried again, by a durable timer.

        `answer` is that of the first attempt, where it was made with `begin`.
        """
        asked = self._asked()
        began_at, attempt = self.started_at if answer else self.context.current_utc_datetime, 1
        self.show("running")
        while True:
            if answer is None:
                answer = await self._ask_model(asked)
            if asked.records and isinstance(answer, ModelAnswer) and not (answer.result or answer.error):
                await self.make_sure()
                asked = self._asked()
                answer = await self._ask_model(asked)
            error = answer.error
            is_model = isinstance(error, ModelError) and error.retryable
            if error is None or not (is_model or (isinstance(error, McpUnreachable) and self.form >= SHORT_QUESTIONS)):
                return answer
            after = error.retry_after if isinstance(error, ModelError) else None
            pause = self.pause(attempt, self._retry, began_at, f"{self.id}/{asked.reply}", after)
            if pause is None:
                counted = attrs.evolve(error, attempts=attempt) if isinstance(error, ModelError) else error
                return ModelAnswer(error=counted)
            note = retry_note(asked.reply, attempt, error)
            self.progress = attrs.evolve(self.progress, retries=(*self.progress.retries, note))
            self.show("retrying", attempt=attempt, error=note["message"])
            await self.unless_stopped(self.context.create_timer(pause))
            attempt, answer = attempt + 1, None
