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
agent's declaration, which may be another one when the history is replayed. `settings` come with the grant.

Anybody who reaches the scheduler can raise an event for a turn, with any data. `granted` only makes the turn ask its
thread again; `cancel` cancels it, whatever comes with it; what is no decision is left aside.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, TypeVar, cast

import attrs
from durabletask import task
from durabletask.task import RetryPolicy

from dafx_actors import _codec, _turn
from dafx_actors._agent_tasks import turn_input
from dafx_actors._coroutines import DurableTask, when_all, when_any
from dafx_actors._json import dump_time, object_in
from dafx_actors._operations import error_in
from dafx_actors.decisions import call_digest
from dafx_actors.errors import (
    ApprovalExpired,
    DafxError,
    ModelError,
    OutcomeUnknown,
    ThreadBusy,
    TurnCancelled,
    TurnDeadlineExceeded,
    TurnFailed,
    TurnTerminated,
)
from dafx_actors.exchange import Limits, RunRequest
from dafx_actors.ids import AgentThread, model_step_name, probe_name, tool_step_name, turn_name
from dafx_actors.orchestration import OrchestrationContext
from dafx_actors.transcript import ChatMessage, Json

T = TypeVar("T")

_GRANTED = "granted"
_CANCEL = "cancel"
_FIRST_LOOK = timedelta(seconds=1)
_CUT_OFF = "The turn ended before this call was answered. It may have acted, or not."
_LONGEST_PAUSE = timedelta(minutes=5)
_LOOKS = 30
"""How often a turn that waits in line looks after the one before it, until it starts again with an empty history."""


def seconds_at_most(limits: Limits, deadline: float | None) -> Limits:
    """The limits of a turn that has a deadline besides."""
    given = [seconds for seconds in (limits.seconds, deadline) if seconds is not None]
    return attrs.evolve(limits, seconds=min(given, default=None))


def decision_event(key: str) -> str:
    """The event that tells a turn what was decided about one of its calls."""
    return f"decision.{key}"


class _Stopped(Exception):
    """Ends a turn from outside: cancelled, or out of time."""

    def __init__(self, error: DafxError) -> None:
        super().__init__(error)
        self.error = error


async def tell(context: OrchestrationContext, thread: AgentThread, operation: str, input: Json) -> Json:
    """Tell a thread something on behalf of a client or a step, and wake the turns that are to know of it.

    Only orchestrations can call an entity and hear what it says; and what one has begun, it ends, whoever dies.
    """
    outcome: Json = await context.call_entity(thread.entity_id, operation, input)
    if outcome and "cancelled" in outcome:
        context.send_event(outcome["turn"], _CANCEL, data=outcome["cancelled"])
    elif outcome and "ended" in outcome and operation == "cancel":
        # It waited in line, and has left it; one that had ended before is not there to hear.
        context.send_event(input["correlationId"], _CANCEL, data=input["mark"])
    elif outcome and "decided" in outcome:
        context.send_event(input["correlationId"], decision_event(input["key"]), data=outcome["decided"])
    return outcome


class TurnSteps:
    """One turn inside its orchestration."""

    def __init__(
        self,
        context: OrchestrationContext,
        thread: AgentThread,
        request: RunRequest,
        *,
        begun: datetime | None = None,
        eager: bool = False,
    ) -> None:
        """Take up a turn.

        Args:
            context: Of its orchestration.
            thread: Its thread.
            request: What it is to answer.
            begun: When it was started, if it waited so long that its history was cut.
            eager: Whether to ask for the thread and the model at once. Turns of versions that could not are replayed.
        """
        self._context = context
        self._thread = thread
        self._request = request
        self._id = request.correlation_id
        self._begun = begun or context.current_utc_datetime
        self._is_eager = eager
        self._progress = _turn.Progress()
        self._limits = Limits()
        self._retry = _turn.MODEL_RETRIES
        self._seconds: float | None = None
        """After which the turn ends, as there is a timer for."""
        self._length = 0
        """Of the thread, as the turn knows it."""
        self._state: str | None = None
        """Names what the thread's last operation stored, for a worker that still has it."""
        self._stops: list[DurableTask[Any]] = []
        self._calls: tuple[_turn.Call, ...] = ()
        """On their way: recorded without their results."""
        self._outcomes: dict[str, Json] = {}
        self._decided: dict[str, dict[str, Json]] = {}
        """What persons decided about them, for the record: the `decision` of an approval, and what was `resolved`."""
        self._fatal: DafxError | None = None
        """What one of them ended the turn with."""
        self._waits: list[DurableTask[None]] = []
        """For persons, a task each, which completes when there is no sense any more in waiting."""
        self._children: list[Json] = []
        self._deadlines: dict[str, datetime] = {}
        """Of approvals, by the keys of their calls."""

    async def in_one_operation(self) -> Json:
        """The whole turn inside the thread; it names an orchestration that waits, so that it is run there and then."""
        request = attrs.evolve(self._request, orchestration_id=self._request.orchestration_id or self._id)
        return self._checked(await self._call_thread("run", _codec.dump_request(request)))

    @property
    def begun(self) -> datetime:
        """When the turn was started."""
        return self._begun

    async def step_by_step(self) -> Json:
        """Each step recorded. None where it still waits in line after a long time, and should start again."""
        # One wait, made once: a new one each time round would lose the event to the old one.
        self._stops = [self._context.wait_for_external_event(_CANCEL)]
        begun, reply = await self._begin_with_model() if self._is_eager else (await self._begin(), None)
        if "queued" in begun:
            return None
        if "ended" in begun:
            return begun["ended"]
        self._length, self._state = begun["granted"], begun.get("state")
        try:
            while (ended := await self._round(reply)) is None:
                reply = None
        except _Stopped as stopped:
            self._cancel_children(stopped.error)
            return await self._abort(stopped.error, self._unrecorded())
        return ended

    async def _round(self, reply: Json = None) -> Json:
        """A model call, unless its `reply` is there, and what follows; the response, where that ended the turn."""
        result = await self._model_step(reply)
        if "error" in result:
            return await self._abort(error_in(result, self._thread))
        self._progress, step = _turn.next_step(result, self._progress, self._limits, self._id, self._thread.agent)
        match step:
            case _turn.Finish():
                return await self._commit(step)
            case _turn.Repair(messages):
                await self._record(messages)
            case _turn.CallTools():
                await self._call_tools(step)
                if self._fatal is not None:
                    return await self._abort(self._fatal, self._unrecorded())
            case _turn.Fail(error, messages):
                return await self._abort(error, messages)
        return None

    # --- The thread -----------------------------------------------------------------------------------------------

    async def _begin_with_model(self) -> tuple[Json, Json]:
        """Ask for the thread and the model in one episode: what `_begin` gives, and the model's result if it has one.

        What the thread answers is told by the model step, which has to know it anyway.
        """
        if self._request.limits is not None:
            self._limits = self._request.limits
        self._limit_time()
        self._context.signal_entity(self._thread.entity_id, "begin", _codec.dump_request(self._request))
        asked = {**self._asked(), "begins": True, **({"limited": True} if self._request.limits else {})}
        self._show("running")
        try:
            step = self._context.call_activity(model_step_name(self._thread.agent), input=asked)
            result = await self._as_value(self._unless_stopped(step))
        except _Stopped as stopped:
            return await self._leave(stopped.error), None
        if "begun" not in result:
            return await self._begin(), None
        begun = result["begun"]
        self._settle(begun)
        return begun, result if len(result) > 1 else None

    async def _begin(self) -> Json:
        """Ask for the thread, and wait in line where it works on another turn."""
        asked = _codec.dump_request(self._request)
        begun: Json = await self._call_thread("begin", asked)
        if "error" in begun and isinstance(busy := error_in(begun, self._thread), ThreadBusy):
            # Where requests that overlap are rejected, a dead turn would else hold the thread for ever.
            await self._look_after(busy.active)
            begun = await self._call_thread("begin", asked)
        self._settle(self._checked(begun))
        self._tell_cancelled(begun)
        if "queued" not in begun:
            return begun
        self._show("queued")
        granted = self._context.wait_for_external_event(_GRANTED)
        pause = _FIRST_LOOK
        for _ in range(_LOOKS):
            if "queued" not in begun:
                break
            await self._look_after(begun["queued"])
            if not granted.is_complete:
                try:
                    await self._unless_stopped(when_any([granted, self._context.sleep(pause)]))
                except _Stopped as stopped:
                    return await self._leave(stopped.error)
            if granted.is_complete:
                # Only a reason to ask: the thread says who is active, and anybody can raise an event.
                granted = self._context.wait_for_external_event(_GRANTED)
            begun = self._checked(await self._call_thread("begin", asked))
            self._tell_cancelled(begun)
            pause = min(pause * 2, _LONGEST_PAUSE)
        return begun

    def _tell_cancelled(self, begun: Json) -> None:
        """Tell turns that this one took the place of, and may not know it."""
        for cancelled in begun.get("cancelled") or ():
            reason = {"by": self._id, "reason": "a newer request took its place"}
            self._context.send_event(cancelled, _CANCEL, data=reason)

    def _settle(self, begun: Json) -> None:
        """Take over what the worker that began the turn says of the agent."""
        settings = object_in(begun.get("settings"))
        if self._request.limits is not None:
            self._limits = self._request.limits
        elif settings.get("limits"):
            self._limits = _codec.load_limits(settings["limits"])
        if settings.get("retry"):
            self._retry = _codec.load_retry(settings["retry"])
        self._limit_time()

    def _limit_time(self) -> None:
        """Have the turn end at its deadline; the earliest of several counts."""
        self._limits = seconds_at_most(self._limits, self._request.deadline)
        seconds = self._limits.seconds
        if seconds is not None and (self._seconds is None or seconds < self._seconds):
            self._seconds = seconds
            self._stops.append(self._context.create_timer(self._begun + timedelta(seconds=seconds)))

    async def _leave(self, error: DafxError) -> Json:
        """Stop waiting in line. One whose request has joined the active turn cannot take it back."""
        outcome = await self._call_thread("abort", self._ending(error))
        if "ended" not in outcome:
            raise error
        return {"ended": self._ended(outcome)}

    async def _look_after(self, active: str) -> None:
        """End the turn that holds the thread if it is dead; then its thread, or the next in line, is woken.

        A refusal means that somebody else ended it in the meantime, or reset the thread.
        """
        probe = probe_name(self._thread.agent)
        fate: Json = await self._context.call_activity(probe, input={"correlationId": active})
        if fate["alive"]:
            return
        if response := fate["response"]:
            messages, usage = response["messages"], response.get("usage")
            ending = {"correlationId": active, "messages": messages, "usage": usage, "whole": True}
            self._wake_others(await self._call_thread("commit", {**ending, "about": response.get("dafx")}))
        else:
            error = TurnTerminated(self._thread.agent, active, "it ended without a word")
            ending = {"correlationId": active, "error": _codec.dump_error(error)}
            self._wake_others(await self._call_thread("abort", ending))

    async def _record(
        self, messages: Sequence[ChatMessage], *, asks: Sequence[Json] = (), children: Sequence[Json] = ()
    ) -> None:
        told = {
            "correlationId": self._id,
            "length": self._length,
            "messages": [_codec.dump_message(message) for message in messages],
            **({"asks": list(asks)} if asks else {}),
            **({"children": list(children)} if children else {}),
        }
        recorded = self._checked(await self._call_thread("record", told))
        self._length, self._state = recorded["granted"], recorded.get("state")

    async def _commit(self, step: _turn.Finish) -> Json:
        """The response; None where others have joined the turn meanwhile, so that it goes on."""
        usage = self._progress.usage
        ending = {
            "correlationId": self._id,
            "length": self._length,
            "messages": [_codec.dump_message(step.message)],
            "usage": _codec.dump_usage(usage) if usage else None,
            "about": self._progress.about,
            **({"last": True} if step.last else {}),
        }
        outcome = self._checked(await self._call_thread("commit", ending))
        if "ended" not in outcome:
            self._length, self._state = outcome["granted"], outcome.get("state")
            return None
        return self._ended(outcome)

    async def _abort(self, error: DafxError, messages: Sequence[ChatMessage] = ()) -> Json:
        return self._ended(self._checked(await self._call_thread("abort", self._ending(error, messages))))

    def _ending(self, error: DafxError, messages: Sequence[ChatMessage] = ()) -> Json:
        usage = self._progress.usage
        return {
            "correlationId": self._id,
            "error": _codec.dump_error(error),
            "messages": [_codec.dump_message(message) for message in messages],
            "usage": _codec.dump_usage(usage) if usage else None,
            "about": self._progress.about,
        }

    def _ended(self, outcome: Json) -> Json:
        self._wake_others(outcome)
        return outcome["ended"]

    def _wake_others(self, outcome: Json) -> None:
        """Tell the turn that is active now, and those that have their answer by this one."""
        for each in (*(outcome.get("joined") or ()), *([outcome["next"]] if outcome.get("next") else [])):
            self._context.send_event(each, _GRANTED)

    def _call_thread(self, operation: str, input: Json) -> DurableTask[Json]:
        return self._context.call_entity(self._thread.entity_id, operation, input)

    def _checked(self, outcome: Json) -> Json:
        if "error" in outcome:
            raise error_in(outcome, self._thread)
        return outcome

    # --- Steps ----------------------------------------------------------------------------------------------------

    def _asked(self) -> dict[str, Json]:
        """What a model step is told."""
        return {
            "thread": self._thread.thread_id,
            "correlationId": self._id,
            "length": self._length,
            "options": dict(self._request.options),
            "reply": self._progress.replies + 1,
            **({"state": self._state} if self._state else {}),
            **({"toolChoice": self._request.tool_choice} if self._request.tool_choice else {}),
            **({} if self._request.enable_tool_calls else {"enableToolCalls": False}),
        }

    async def _model_step(self, result: Json = None) -> Json:
        """The reply as a value, or the error. What may go better is tried again, by a durable timer.

        `result` is that of the first attempt, where it was made with `begin`.
        """
        asked = self._asked()
        begun, attempt = self._begun if result else self._context.current_utc_datetime, 1
        self._show("running")
        while True:
            if result is None:
                step = self._context.call_activity(model_step_name(self._thread.agent), input=asked)
                result = await self._as_value(self._unless_stopped(step))
            error = _codec.load_error(result["error"]) if "error" in result else None
            if not isinstance(error, ModelError) or not error.retryable:
                return result
            pause = self._pause(attempt, self._retry, begun, f"{self._id}/{asked['reply']}", error.retry_after)
            if pause is None:
                return {"error": _codec.dump_error(attrs.evolve(error, attempts=attempt))}
            note = _turn.retry_note(self._progress.replies + 1, attempt, result["error"])
            self._progress = attrs.evolve(self._progress, retries=(*self._progress.retries, note))
            self._show("retrying", attempt=attempt, error=note["message"])
            await self._unless_stopped(self._context.sleep(pause))
            attempt, result = attempt + 1, None

    async def _call_tools(self, step: _turn.CallTools) -> None:
        """Record the calls, make them, record their results; unless one of them ends the turn."""
        # What is decided by whom is on record before anything acts.
        asks = [self._ask("approval", c, c.content.arguments) for c in step.calls if c.plan.get("approval")]
        children = [self._child(call) for call in step.calls if call.plan.get("agent")]
        await self._record((step.message,), asks=asks, children=children)
        self._calls, self._outcomes, self._decided, self._children = step.calls, {}, {}, children
        self._show("running")
        for batch in _turn.batches(step.calls):
            await self._check_stops()
            await self._unless_stopped(when_all([self._make(call) for call in batch]))
            if self._fatal is not None:
                return
        results = self._unrecorded()
        self._calls, self._children = (), []
        await self._record(results)

    def _unrecorded(self) -> Sequence[ChatMessage]:
        """The results that the thread does not have yet; of calls that were decided about, also where there is none."""
        cut_off = {key: {"result": _CUT_OFF} for key in self._decided if key not in self._outcomes}
        outcomes = {key: {**outcome, **self._decided.get(key, {})} for key, outcome in self._outcomes.items()}
        known = {key: {**outcome, **self._decided[key]} for key, outcome in cut_off.items()}
        results = _turn.results_message(self._calls, {**outcomes, **known})
        return [results] if results else []

    async def _make(self, call: _turn.Call) -> None:
        outcome = await self._outcome(call)
        self._outcomes[call.key] = outcome
        if "fatal" in outcome and self._fatal is None:
            # Those that run are left to finish; nobody is waited for any more.
            self._fatal = error_in({"error": outcome["fatal"]}, self._thread)
            self._cancel_children(self._fatal)
            for wait in self._waits:
                wait.complete(None)

    async def _outcome(self, call: _turn.Call) -> Json:
        """What becomes of a call: `{"result": ...}`, or `{"error": text}`; `fatal`, where it ends the turn."""
        if call.refusal is not None:
            return {"error": call.refusal}
        if not (approval := call.plan.get("approval")):
            return await self._perform(call, call.content.arguments)
        decision = await self._approval(call)
        if decision is None:
            return {"error": "the call was not made: the turn ended before anybody approved it"}
        self._decided[call.key] = {"decision": decision}
        if decision["action"] == "expire" and approval["onTimeout"] == "fail":
            expired = ApprovalExpired(call.content.name, call.key, approval["seconds"])
            return {**_turn.denied(call, decision), "fatal": _codec.dump_error(expired)}
        if decision["action"] != "approve":
            return _turn.denied(call, decision)
        return await self._perform(call, decision.get("arguments", call.content.arguments))

    async def _perform(self, call: _turn.Call, arguments: Mapping[str, Json]) -> Json:
        if call.plan.get("agent"):
            return await self._ask_agent(call)
        policy = _codec.load_retry(call.plan["retry"]) if call.plan.get("retry") else None
        begun, number, failures = self._context.current_utc_datetime, 1, 1
        while True:
            asked = {
                "thread": self._thread.thread_id,
                "correlationId": self._id,
                "length": self._length,
                "key": call.key,
                "callId": call.content.call_id,
                "name": call.content.name,
                "arguments": dict(arguments),
                "attempt": number,
                **({"once": True} if call.plan.get("once") else {}),
            }
            step = self._context.call_activity(tool_step_name(self._thread.agent, call.plan["activity"]), input=asked)
            outcome = await self._as_value(step)
            if outcome.get("broken"):
                outcome = {"unknown": True} if call.plan.get("once") else {"error": outcome["error"]["message"]}
            if "unknown" in outcome:
                outcome = await self._resolved(call, arguments, number)
            if "wait" in outcome:
                await self._context.sleep(outcome["wait"])
                continue
            if "notDone" not in outcome:
                pause = None
                if outcome.get("failed") and policy is not None and self._fatal is None:
                    pause = self._pause(failures, policy, begun, call.key)
                if pause is None:
                    return outcome
                failures += 1
                await self._context.sleep(pause)
            number += 1

    async def _resolved(self, call: _turn.Call, arguments: Mapping[str, Json], number: int) -> Json:
        """Ask a person what became of an attempt that was cut off; `notDone`, where it is to be made again."""
        ask = self._ask("outcome", call, arguments, key=f"{call.key}.outcome{number}")
        await self._record((), asks=[ask])
        decision = await self._decision(ask["key"])
        if decision is None:
            return {"error": "nobody knows whether this call acted: the turn ended before anybody said so"}
        known = self._decided.setdefault(call.key, {})
        known["resolved"] = [*known.get("resolved", ()), decision]
        if decision["action"] == "retry":
            return {"notDone": True}
        if decision["action"] == "result":
            return {"result": decision.get("result")}
        unknown = OutcomeUnknown(call.content.name, call.key, decision.get("reason") or "")
        return {"error": "nobody knows whether this call acted", "fatal": _codec.dump_error(unknown)}

    async def _ask_agent(self, call: _turn.Call) -> Json:
        """A turn of another agent, in a thread of its own: what that needs approved is approved there."""
        child = next(child for child in self._children if child["key"] == call.key)
        where = AgentThread(child["agent"], child["thread"])
        request = RunRequest(
            correlation_id=call.key,
            messages=(ChatMessage("user", call.plan["agent"]["request"]),),
            created_at=self._context.current_utc_datetime,
            orchestration_id=self._id,
        )
        try:
            raw = await self._context.call_sub_orchestrator(
                turn_name(where.agent), input=turn_input(where, request), instance_id=call.key
            )
            return {"result": _codec.load_response(raw, where).text}
        except (DafxError, task.TaskFailedError) as error:
            return {"error": str(error)}

    def _child(self, call: _turn.Call) -> Json:
        plan = call.plan["agent"]
        thread = self._context.new_uuid() if plan["newThread"] else self._thread.thread_id
        return {"key": call.key, "agent": plan["name"], "thread": thread, "correlationId": call.key}

    def _cancel_children(self, error: DafxError) -> None:
        """Cancel the turns of agents that this one waits for, on record and at once."""
        mark = {"by": self._id, "reason": str(error)}
        for child in self._children:
            if child["key"] not in self._outcomes:
                where = AgentThread(child["agent"], child["thread"]).entity_id
                told = {"correlationId": child["correlationId"], "mark": mark}
                self._context.signal_entity(where, "cancel", told)
                self._context.send_event(child["correlationId"], _CANCEL, data=mark)

    # --- People ---------------------------------------------------------------------------------------------------

    def _ask(self, kind: str, call: _turn.Call, arguments: Mapping[str, Json], *, key: str | None = None) -> Json:
        """What a person is to decide; an approval, before its deadline."""
        now = self._context.current_utc_datetime
        ask: dict[str, Json] = {
            "key": key or call.key,
            **({"callKey": call.key} if key else {}),
            "kind": kind,
            "callId": call.content.call_id,
            "tool": call.content.name,
            "arguments": dict(arguments),
            "digest": call_digest(call.content.name, arguments),
            "askedAt": dump_time(now),
        }
        seconds = object_in(call.plan.get("approval")).get("seconds") if kind == "approval" else None
        if seconds is not None:
            self._deadlines[call.key] = due = now + timedelta(seconds=seconds)
            ask["deadline"] = dump_time(due)
        return ask

    async def _approval(self, call: _turn.Call) -> Json:
        """What a person decided about the call, or `expire`. Of both at a time the thread says which counts."""
        deadline = self._deadlines.get(call.key)
        timer = None if deadline is None else self._context.create_timer(deadline)
        decision = await self._decision(call.key, timer)
        if decision is not None or deadline is None or self._fatal is not None:
            return decision
        told = {
            "correlationId": self._id,
            "key": call.key,
            "digest": call_digest(call.content.name, call.content.arguments),
            "decision": {"action": "expire", "by": "the deadline", "at": dump_time(deadline)},
        }
        outcome = object_in(await self._call_thread("decide", told))
        # Refused: the turn was cancelled, and is about to hear of it.
        return outcome.get("decided")

    async def _decision(self, key: str, timer: DurableTask[None] | None = None) -> Json:
        """What is decided, as the thread has it on record; None where the timer came first, or the turn ends.

        The event is only a knock at the door, and what comes with it is not looked at: anybody could raise it.
        """
        no_sense = DurableTask[None]()
        self._waits.append(no_sense)
        self._show("waiting")
        decision: Json = None
        while self._fatal is None and decision is None:
            knock = self._context.wait_for_external_event(decision_event(key))
            await when_any([knock, no_sense, *([timer] if timer else [])])
            if not knock.is_complete:
                break
            known = await self._call_thread("decision", {"correlationId": self._id, "key": key})
            decision = object_in(known).get("decided")
        self._waits.remove(no_sense)
        if not self._waits:
            self._show("running")
        return decision

    # --- Waiting --------------------------------------------------------------------------------------------------

    async def _unless_stopped(self, waited: DurableTask[T]) -> T:
        """Wait, unless the turn is cancelled or its time is over.

        Raises:
            _Stopped: It is.
        """
        if not waited.is_complete and not any(stop.is_complete for stop in self._stops):
            await when_any([*self._stops, waited])
        await self._check_stops()
        return await waited

    async def _check_stops(self) -> None:
        """See that nothing has stopped the turn.

        Raises:
            _Stopped: Something has.
        """
        cancelled, *deadline = self._stops
        if cancelled.is_complete:
            mark: Json = await cancelled
            if not isinstance(mark, Mapping):
                mark = {"reason": mark if isinstance(mark, str) else ""}
            reason, by = (str(cast("Mapping[str, Json]", mark).get(said) or "") for said in ("reason", "by"))
            raise _Stopped(TurnCancelled(self._thread.agent, self._id, reason, by))
        if any(timer.is_complete for timer in deadline):
            raise _Stopped(TurnDeadlineExceeded(self._thread.agent, self._id, self._limits.seconds or 0.0))

    def _pause(
        self, attempt: int, policy: RetryPolicy, begun: datetime, seed: str, at_least: float | None = None
    ) -> timedelta | None:
        waited = self._context.current_utc_datetime - begun
        return _turn.pause_before(attempt, policy, waited, seed, at_least=at_least)

    async def _as_value(self, step: Awaitable[Json]) -> Json:
        """What a step gave: its failures are values, too, also what it raised in spite of that."""
        kind, text = "an error", "the step gave no result"
        try:
            if (result := await step) is not None:
                return result
        except task.TaskFailedError as error:
            kind, text = error.details.error_type, error.details.message
        return {"broken": True, "error": _codec.dump_error(TurnFailed(self._thread.agent, self._id, kind, text))}

    def _show(self, state: str, **more: Json) -> None:
        """What whoever asks for the turn is told."""
        self._context.set_custom_status({"state": state, "steps": self._progress.steps, **more})
