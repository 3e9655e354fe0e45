"""A turn as its orchestration takes it, step by step; what is decided between the steps is in `_turn.py`.

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
calls are in `_turn_calls.py`.

Anybody who reaches the scheduler can raise an event for a turn, with any data. `granted` only makes the turn ask its
thread again; `cancel` cancels it, whatever comes with it; what is no decision is left aside.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime, timedelta

import attrs
from durabletask import task

from dafx_actors._json import messages as _codec
from dafx_actors._json.shapes import object_in
from dafx_actors._rules import turn as _turn
from dafx_actors._rules.operations import error_in
from dafx_actors._rules.tree import Caller, within
from dafx_actors._turns.calls import ToolCalls, decision_event
from dafx_actors._turns.link import CANCEL, Stopped, TurnBase, is_too_large
from dafx_actors.errors import DafxError, McpUnreachable, MessageTooLarge, ModelError, ThreadBusy, TurnTerminated
from dafx_actors.exchange import Limits, RunRequest
from dafx_actors.ids import AgentThread, model_step_name, probe_name
from dafx_actors.orchestration._agents import SHORT_QUESTIONS
from dafx_actors.orchestration._context import OrchestrationContext
from dafx_actors.orchestration._coroutines import when_any
from dafx_actors.transcript import ChatMessage, Json

_GRANTED = "granted"
_FIRST_LOOK = timedelta(seconds=1)
_LONGEST_PAUSE = timedelta(minutes=5)
_LARGE = 32 * 1024
"""Bytes of a request that a turn in line does not send its thread each time that it asks."""
_LOOKS = 30
"""How often a turn that waits in line looks after the one before it, until it starts again with an empty history."""


def seconds_at_most(limits: Limits, deadline: float | None) -> Limits:
    """The limits of a turn that has a deadline besides."""
    given = [seconds for seconds in (limits.seconds, deadline) if seconds is not None]
    return attrs.evolve(limits, seconds=min(given, default=None))


async def tell(context: OrchestrationContext, thread: AgentThread, operation: str, input: Json) -> Json:
    """Tell a thread something on behalf of a client or a step, and wake the turns that are to know of it.

    Only orchestrations can call an entity and hear what it says; and what one has begun, it ends, whoever dies.
    """
    outcome: Json = await context.call_entity(thread.entity_id, operation, input)
    if outcome and "cancelled" in outcome:
        context.send_event(outcome["turn"], CANCEL, data=outcome["cancelled"])
    elif outcome and "ended" in outcome and operation == "cancel":
        # It waited in line, and has left it; one that had ended before is not there to hear.
        context.send_event(input["correlationId"], CANCEL, data=input["mark"])
        if outcome.get("next"):
            context.send_event(outcome["next"], _GRANTED)
    elif outcome and "decided" in outcome:
        context.send_event(input["correlationId"], decision_event(input["key"]), data=outcome["decided"])
    return outcome


class TurnSteps(TurnBase):
    """One turn inside its orchestration."""

    def __init__(
        self,
        context: OrchestrationContext,
        thread: AgentThread,
        request: RunRequest,
        *,
        begun: datetime | None = None,
        eager: bool = False,
        form: int = 0,
        callers: tuple[Caller, ...] = (),
    ) -> None:
        """Take up a turn.

        Args:
            context: Of its orchestration.
            thread: Its thread.
            request: What it is to answer.
            begun: When it was started, if it waited so long that its history was cut.
            eager: Whether to ask for the thread and the model at once. Turns of versions that could not are replayed.
            form: In which it was begun; see `_agent_tasks.FORM`.
            callers: The turns that wait for it, from the first, where it is that of an agent used as a tool.
        """
        super().__init__(context, thread, request.correlation_id, form, callers)
        self._request = request
        self.begun = begun or self.begun
        self._is_eager = eager
        self._retry = _turn.MODEL_RETRIES
        self._seconds: float | None = None
        """After which the turn ends, as there is a timer for."""
        self._calls = ToolCalls(self)

    async def in_one_operation(self) -> Json:
        """The whole turn inside the thread; it names an orchestration that waits, so that it is run there and then."""
        request = attrs.evolve(self._request, orchestration_id=self._request.orchestration_id or self.id)
        sent = {**_codec.dump_request(request), **({"form": self.form} if self.is_of_the_tree else {}), **self.above}
        return self.checked(await self.call_thread("run", sent))

    async def step_by_step(self) -> Json:
        """Each step recorded. None where it still waits in line after a long time, and should start again."""
        # One wait, made once: a new one each time round would lose the event to the old one.
        self.stops = [self.context.wait_for_external_event(CANCEL)]
        try:
            begun, reply = await self._begin_with_model() if self._is_eager else (await self._begin(), None)
        except MessageTooLarge as error:
            # The thread has no room for the request. What is said of that is small, and the next in line is told.
            begun, reply = await self._leave(error, brings=False), None
        if "queued" in begun:
            return None
        if "ended" in begun:
            return begun["ended"]
        self.length, self.state = begun["granted"], begun.get("state")
        try:
            while (ended := await self._round(reply)) is None:
                reply = None
        except Stopped as stopped:
            self._calls.cancel_children(stopped.error)
            return await self._abort(stopped.error, self._calls.unrecorded())
        except MessageTooLarge as error:
            # The thread cannot hold what was said, and is as it was before.
            return await self._abort(error, self._calls.unrecorded(kept=False))
        return ended

    async def _round(self, reply: Json = None) -> Json:
        """A model call, unless its `reply` is there, and what follows; the response, where that ended the turn."""
        result = await self._model_step(reply)
        if "error" in result:
            return await self._abort(error_in(result, self.thread))
        self.progress, step = _turn.next_step(
            result, self.progress, self.limits, self.id, self.thread.agent, self.key_of
        )
        match step:
            case _turn.Finish():
                return await self._commit(step)
            case _turn.Repair(messages):
                await self.record(messages)
            case _turn.CallTools():
                await self._calls.make(step)
                if self._calls.fatal is not None:
                    return await self._abort(self._calls.fatal, self._calls.unrecorded())
                if self.is_of_the_tree and (over := self._over_limit()) is not None:
                    return await self._abort(over)
            case _turn.Fail(error, messages):
                return await self._abort(error, _turn.with_calls_not_made(messages))
        return None

    # --- The thread -----------------------------------------------------------------------------------------------

    async def _begin_with_model(self) -> tuple[Json, Json]:
        """Ask for the thread and the model in one episode: what `_begin` gives, and the model's result if it has one.

        What the thread answers is told by the model step, which has to know it anyway.
        """
        if self._request.limits is not None:
            self.limits = self._request.limits
        self._limit_time()
        self.context.signal_entity(self.thread.entity_id, "begin", _codec.dump_request(self._request))
        asked = {**self._asked(), "begins": True, **self._limited()}
        self.show("running")
        try:
            step = self.context.call_activity(model_step_name(self.thread.agent), input=asked)
            result = await self.as_value(self.unless_stopped(step))
        except Stopped as stopped:
            return await self._leave(stopped.error), None
        if "begun" not in result:
            begun = await self._begin()
            # What cannot be sent would not be sent the next time either.
            is_reply = "granted" in begun and result.get("broken") and is_too_large(result["error"])
            return begun, result if is_reply else None
        begun = result["begun"]
        self._settle(begun)
        return begun, result if len(result) > 1 else None

    async def _begin(self) -> Json:
        """Ask for the thread, and wait in line where it works on another turn."""
        begun: Json = await self._ask()
        if "error" in begun and isinstance(busy := error_in(begun, self.thread), ThreadBusy):
            # Where requests that overlap are rejected, a dead turn would else hold the thread for ever.
            await self._look_after(busy.active)
            begun = await self._ask()
        self._settle(self.checked(begun))
        self._tell_cancelled(begun)
        if "queued" not in begun:
            return begun
        self.show("queued")
        granted = self.context.wait_for_external_event(_GRANTED)
        pause = _FIRST_LOOK
        for _ in range(_LOOKS):
            if "queued" not in begun:
                break
            await self._look_after(begun["queued"])
            if not granted.is_complete:
                try:
                    await self.unless_stopped(when_any([granted, self.context.sleep(pause)]))
                except Stopped as stopped:
                    return await self._leave(stopped.error)
            if granted.is_complete:
                # Only a reason to ask: the thread says who is active, and anybody can raise an event.
                granted = self.context.wait_for_external_event(_GRANTED)
            begun = self.checked(await self._ask())
            self._tell_cancelled(begun)
            pause = min(pause * 2, _LONGEST_PAUSE)
        return begun

    async def _ask(self) -> Json:
        """Ask for the thread; with a large request only where the thread wants it, since a turn in line asks often.

        Each time is recorded. What is small is sent whole, as earlier versions do.
        """
        whole = _codec.dump_request(self._request)
        if self.form >= SHORT_QUESTIONS and len(json.dumps(whole)) > _LARGE:
            begun: Json = None
            with suppress(task.TaskFailedError):  # a worker of an earlier version knows whole requests only
                begun = await self.call_thread("begin", _codec.dump_question(self._request))
            if begun is not None and "wanted" not in begun:
                return begun
        return await self.call_thread("begin", whole)

    def _tell_cancelled(self, begun: Json) -> None:
        """Tell turns that this one took the place of, and may not know it."""
        for cancelled in begun.get("cancelled") or ():
            reason = {"by": self.id, "reason": "a newer request took its place"}
            self.context.send_event(cancelled, CANCEL, data=reason)

    def _settle(self, begun: Json) -> None:
        """Take over what the worker that began the turn says of the agent."""
        settings = object_in(begun.get("settings"))
        if self.is_of_the_tree and settings.get("limits"):
            self.limits = within(_codec.load_limits(settings["limits"]), self._request.limits)
        elif self._request.limits is not None:
            self.limits = self._request.limits
        elif settings.get("limits"):
            self.limits = _codec.load_limits(settings["limits"])
        if settings.get("retry"):
            self._retry = _codec.load_retry(settings["retry"])
        self._limit_time()

    def _limited(self) -> dict[str, Json]:
        """What the first model step is told of time: it is not made where the agent's limit is still to be seen to."""
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
            self.stops.append(self.context.create_timer(self.begun + timedelta(seconds=seconds)))

    async def _leave(self, error: DafxError, *, brings: bool = True) -> Json:
        """Stop waiting in line. One whose request has joined the active turn cannot take it back.

        For the transcript it brings its request, which the thread does not have while it waits.
        """
        brought = {"request": _codec.dump_request(self._request)} if brings else {}
        outcome = await self.call_thread("abort", {**self._ending(error), **brought})
        if "ended" not in outcome:
            raise error
        return {"ended": self._ended(outcome)}

    async def _look_after(self, active: str) -> None:
        """End the turn that holds the thread if it is dead; then its thread, or the next in line, is woken.

        A refusal means that somebody else ended it in the meantime, or reset the thread.
        """
        probe = probe_name(self.thread.agent)
        fate: Json = await self.context.call_activity(probe, input={"correlationId": active})
        if fate["alive"]:
            return
        if response := fate["response"]:
            messages, usage = response["messages"], response.get("usage")
            ending = {"correlationId": active, "messages": messages, "usage": usage, "whole": True}
            self._wake_others(await self.call_thread("commit", {**ending, "about": response.get("dafx")}))
        else:
            error = TurnTerminated(self.thread.agent, active, "it ended without a word")
            ending = {"correlationId": active, "error": _codec.dump_error(error)}
            self._wake_others(await self.call_thread("abort", ending))

    async def _commit(self, step: _turn.Finish) -> Json:
        """The response; None where others have joined the turn meanwhile, so that it goes on."""
        usage = self.progress.usage
        ending = {
            "correlationId": self.id,
            "length": self.length,
            "messages": [_codec.dump_message(step.message)],
            "usage": _codec.dump_usage(usage) if usage else None,
            "about": self.progress.about,
            **({"last": True} if step.last else {}),
        }
        outcome = self.checked(await self.call_thread("commit", ending))
        if "ended" not in outcome:
            self.length, self.state = outcome["granted"], outcome.get("state")
            return None
        return self._ended(outcome)

    async def _abort(self, error: DafxError, messages: Sequence[ChatMessage] = ()) -> Json:
        return self._ended(self.checked(await self.call_thread("abort", self._ending(error, messages))))

    def _ending(self, error: DafxError, messages: Sequence[ChatMessage] = ()) -> Json:
        usage = self.progress.usage
        return {
            "correlationId": self.id,
            "error": _codec.dump_error(error),
            "messages": [_codec.dump_message(message) for message in messages],
            "usage": _codec.dump_usage(usage) if usage else None,
            "about": self.progress.about,
        }

    def _ended(self, outcome: Json) -> Json:
        self._wake_others(outcome)
        return outcome["ended"]

    def _wake_others(self, outcome: Json) -> None:
        """Tell the turn that is active now, and those that have their answer by this one."""
        for each in (*(outcome.get("joined") or ()), *([outcome["next"]] if outcome.get("next") else [])):
            self.context.send_event(each, _GRANTED)

    # --- Steps ----------------------------------------------------------------------------------------------------

    def _asked(self) -> dict[str, Json]:
        """What a model step is told."""
        return {
            "thread": self.thread.thread_id,
            "correlationId": self.id,
            "length": self.length,
            "options": dict(self._request.options),
            "reply": self.progress.replies + 1,
            **({"state": self.state} if self.state else {}),
            **({"toolChoice": self._request.tool_choice} if self._request.tool_choice else {}),
            **({} if self._request.enable_tool_calls else {"enableToolCalls": False}),
            **self.above,
        }

    async def _model_step(self, result: Json = None) -> Json:
        """The reply as a value, or the error. What may go better is tried again, by a durable timer.

        `result` is that of the first attempt, where it was made with `begin`.
        """
        asked = self._asked()
        begun, attempt = self.begun if result else self.context.current_utc_datetime, 1
        self.show("running")
        while True:
            if result is None:
                step = self.context.call_activity(model_step_name(self.thread.agent), input=asked)
                result = await self.as_value(self.unless_stopped(step))
            error = _codec.load_error(result["error"]) if "error" in result else None
            is_model = isinstance(error, ModelError) and error.retryable
            if not is_model and not (isinstance(error, McpUnreachable) and self.form >= SHORT_QUESTIONS):
                return result
            after = error.retry_after if isinstance(error, ModelError) else None
            pause = self.pause(attempt, self._retry, begun, f"{self.id}/{asked['reply']}", after)
            if pause is None:
                counted = attrs.evolve(error, attempts=attempt) if isinstance(error, ModelError) else error
                return result if counted is None else {"error": _codec.dump_error(counted)}
            note = _turn.retry_note(self.progress.replies + 1, attempt, result["error"])
            self.progress = attrs.evolve(self.progress, retries=(*self.progress.retries, note))
            self.show("retrying", attempt=attempt, error=note["message"])
            await self.unless_stopped(self.context.sleep(pause))
            attempt, result = attempt + 1, None
