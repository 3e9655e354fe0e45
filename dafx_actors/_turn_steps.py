"""A turn as its orchestration takes it, step by step; what is decided between the steps is in `_turn.py`.

::

    begin ──> model step ──> record, tool steps together, record ──> model step ──> ... ──> commit
       │           │  ^             │
       │           └──┘ back-off    └── waits for a person, for days if need be, and holds no worker
       └── waits in line

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
from dafx_actors._json import dump_time
from dafx_actors._operations import error_in
from dafx_actors.decisions import ACTIONS, DecisionKind, call_digest
from dafx_actors.errors import (
    ApprovalExpired,
    DafxError,
    ModelError,
    OutcomeUnknown,
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
_LONGEST_PAUSE = timedelta(minutes=5)


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

    def __init__(self, context: OrchestrationContext, thread: AgentThread, request: RunRequest) -> None:
        self._context = context
        self._thread = thread
        self._request = request
        self._id = request.correlation_id
        self._begun = context.current_utc_datetime
        self._progress = _turn.Progress()
        self._limits = Limits()
        self._retry = _turn.MODEL_RETRIES
        self._length = 0
        """Of the thread, as the turn knows it."""
        self._stops: list[DurableTask[Any]] = []
        self._calls: tuple[_turn.Call, ...] = ()
        """On their way: recorded without their results."""
        self._outcomes: dict[str, Json] = {}
        self._children: list[Json] = []
        self._deadlines: dict[str, datetime] = {}
        """Of approvals, by the keys of their calls."""

    async def in_one_operation(self) -> Json:
        """The whole turn inside the thread; it names an orchestration that waits, so that it is run there and then."""
        request = attrs.evolve(self._request, orchestration_id=self._request.orchestration_id or self._id)
        return self._checked(await self._call_thread("run", _codec.dump_request(request)))

    async def step_by_step(self) -> Json:
        """Each step recorded."""
        # One wait, made once: a new one each time round would lose the event to the old one.
        self._stops = [self._context.wait_for_external_event(_CANCEL)]
        begun = await self._begin()
        if "ended" in begun:
            return begun["ended"]
        self._length = begun["granted"]
        try:
            while (ended := await self._round()) is None:
                pass
        except _Stopped as stopped:
            self._cancel_children(stopped.error)
            return await self._abort(stopped.error, self._unrecorded())
        return ended

    async def _round(self) -> Json:
        """A model call and what follows from it; the response, where it ended the turn."""
        result = await self._model_step()
        if "error" in result:
            return await self._abort(error_in(result, self._thread))
        self._progress, step = _turn.next_step(result, self._progress, self._limits, self._id, self._thread.agent)
        match step:
            case _turn.Finish(message):
                return await self._commit(message)
            case _turn.Repair(messages):
                await self._record(messages)
            case _turn.CallTools():
                if (error := await self._call_tools(step)) is not None:
                    return await self._abort(error, self._unrecorded())
            case _turn.Fail(error, messages):
                return await self._abort(error, messages)
        return None

    # --- The thread -----------------------------------------------------------------------------------------------

    async def _begin(self) -> Json:
        """Ask for the thread, and wait in line where it works on another turn."""
        asked = _codec.dump_request(self._request)
        begun = self._checked(await self._call_thread("begin", asked))
        self._settle(begun)
        if "queued" not in begun:
            return begun
        self._show("queued")
        granted = self._context.wait_for_external_event(_GRANTED)
        pause = _FIRST_LOOK
        while "queued" in begun:
            for cancelled in begun.get("cancelled") or ():
                reason = {"by": self._id, "reason": "a newer request took its place"}
                self._context.send_event(cancelled, _CANCEL, data=reason)
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
            pause = min(pause * 2, _LONGEST_PAUSE)
        return begun

    def _settle(self, begun: Json) -> None:
        """Take over what the worker that began the turn says of the agent."""
        settings = begun.get("settings") or {}
        if limits := self._request.limits or (settings.get("limits") and _codec.load_limits(settings["limits"])):
            self._limits = limits
        if settings.get("retry"):
            self._retry = _codec.load_retry(settings["retry"])
        if self._limits.seconds is not None:
            due = self._begun + timedelta(seconds=self._limits.seconds)
            self._stops.append(self._context.create_timer(due))

    async def _leave(self, error: DafxError) -> Json:
        """Stop waiting in line. One whose request has joined the active turn cannot take it back."""
        outcome = await self._call_thread("abort", self._ending(error))
        if "ended" not in outcome:
            raise error
        return {"ended": outcome["ended"]}

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
        self._length = self._checked(await self._call_thread("record", told))["granted"]

    async def _commit(self, answer: ChatMessage) -> Json:
        """The response; None where others have joined the turn meanwhile, so that it goes on."""
        usage = self._progress.usage
        ending = {
            "correlationId": self._id,
            "messages": [_codec.dump_message(answer)],
            "usage": _codec.dump_usage(usage) if usage else None,
            "about": self._progress.about,
        }
        outcome = self._checked(await self._call_thread("commit", ending))
        if "ended" not in outcome:
            self._length = outcome["granted"]
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

    async def _model_step(self) -> Json:
        """The reply as a value, or the error. What may go better is tried again after a while, by a durable timer."""
        asked = {
            "thread": self._thread.thread_id,
            "correlationId": self._id,
            "length": self._length,
            "options": dict(self._request.options),
            "reply": self._progress.replies + 1,
            **({"toolChoice": self._request.tool_choice} if self._request.tool_choice else {}),
            **({} if self._request.enable_tool_calls else {"enableToolCalls": False}),
        }
        self._show("running")
        begun, attempt = self._context.current_utc_datetime, 1
        while True:
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
            attempt += 1

    async def _call_tools(self, step: _turn.CallTools) -> DafxError | None:
        """Record the calls, make them, record their results; an error, where one of them ends the turn."""
        # What is decided by whom is on record before anything acts.
        asks = [self._ask("approval", c, c.content.arguments) for c in step.calls if c.plan.get("approval")]
        children = [self._child(call) for call in step.calls if call.plan.get("agent")]
        await self._record((step.message,), asks=asks, children=children)
        self._calls, self._outcomes, self._children = step.calls, {}, children
        self._show("waiting" if asks else "running")
        for batch in _turn.batches(step.calls):
            await self._unless_stopped(when_all([self._make(call) for call in batch]))
            for call in batch:
                if (fatal := self._outcomes[call.key].get("fatal")) is not None:
                    return error_in({"error": fatal}, self._thread)
        results = self._unrecorded()
        self._calls, self._children = (), []
        await self._record(results)
        return None

    def _unrecorded(self) -> Sequence[ChatMessage]:
        """The results that the thread does not have yet."""
        results = _turn.results_message(self._calls, self._outcomes)
        return [results] if results else []

    async def _make(self, call: _turn.Call) -> None:
        self._outcomes[call.key] = await self._outcome(call)

    async def _outcome(self, call: _turn.Call) -> Json:
        """What becomes of a call: `{"result": ...}`, or `{"error": text}`; `fatal`, where it ends the turn."""
        if call.refusal is not None:
            return {"error": call.refusal}
        if not (approval := call.plan.get("approval")):
            return await self._perform(call, call.content.arguments)
        decision = await self._decision(call)
        if decision["action"] == "expire" and approval["onTimeout"] == "fail":
            expired = ApprovalExpired(call.content.name, call.key, approval["seconds"])
            return {**_turn.denied(call, decision), "fatal": _codec.dump_error(expired)}
        if decision["action"] != "approve":
            return _turn.denied(call, decision)
        outcome = await self._perform(call, decision.get("arguments", call.content.arguments))
        return {"decision": decision, **outcome}

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
            }
            step = self._context.call_activity(tool_step_name(self._thread.agent, call.plan["activity"]), input=asked)
            outcome = await self._as_value(step)
            if outcome.get("broken"):
                outcome = {"unknown": True} if call.plan.get("once") else {"error": outcome["error"]["message"]}
            if "unknown" in outcome:
                decision = await self._what_became_of(call, arguments, number)
                if decision["action"] == "result":
                    return {"result": decision.get("result"), "decision": decision}
                if decision["action"] == "fail":
                    unknown = OutcomeUnknown(call.content.name, call.key, decision.get("reason") or "")
                    failed = {"error": "nobody knows whether this call acted", "decision": decision}
                    return {**failed, "fatal": _codec.dump_error(unknown)}
            elif "notDone" not in outcome:
                pause = None
                if outcome.get("failed") and policy is not None:
                    pause = self._pause(failures, policy, begun, call.key)
                if pause is None:
                    return outcome
                failures += 1
                await self._context.sleep(pause)
            number += 1

    async def _what_became_of(self, call: _turn.Call, arguments: Mapping[str, Json], number: int) -> Json:
        """Ask a person what became of an attempt that was cut off."""
        ask = self._ask("outcome", call, arguments, key=f"{call.key}.outcome{number}")
        await self._record((), asks=[ask])
        self._show("waiting")
        return await self._decided(ask["key"], "outcome")

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
            "kind": kind,
            "callId": call.content.call_id,
            "tool": call.content.name,
            "arguments": dict(arguments),
            "digest": call_digest(call.content.name, arguments),
            "askedAt": dump_time(now),
        }
        seconds = (call.plan.get("approval") or {}).get("seconds") if kind == "approval" else None
        if seconds is not None:
            self._deadlines[call.key] = due = now + timedelta(seconds=seconds)
            ask["deadline"] = dump_time(due)
        return ask

    async def _decision(self, call: _turn.Call) -> Json:
        """What a person decided about the call, or `expire`. Of both at a time the thread says which counts."""
        decided = self._context.create_task(self._decided(call.key, "approval"))
        if (deadline := self._deadlines.get(call.key)) is None:
            return await decided
        await when_any([decided, self._context.create_timer(deadline)])
        if decided.is_complete:
            return await decided
        told = {
            "correlationId": self._id,
            "key": call.key,
            "digest": call_digest(call.content.name, call.content.arguments),
            "decision": {"action": "expire", "by": "the deadline", "at": dump_time(deadline)},
        }
        outcome = await self._call_thread("decide", told)
        if "decided" in outcome:
            return outcome["decided"]
        return await decided  # refused: the turn was cancelled, and will hear of it

    async def _decided(self, key: str, kind: DecisionKind) -> Json:
        """The next event that is a decision of this kind."""
        while True:
            decision = await self._context.wait_for_external_event(decision_event(key))
            try:
                if _codec.check_decision(decision)["action"] in (*ACTIONS[kind], "expire"):
                    return decision
            except ValueError:
                pass

    # --- Waiting --------------------------------------------------------------------------------------------------

    async def _unless_stopped(self, waited: DurableTask[T]) -> T:
        """Wait, unless the turn is cancelled or its time is over.

        Raises:
            _Stopped: It is.
        """
        if not waited.is_complete and not any(stop.is_complete for stop in self._stops):
            await when_any([*self._stops, waited])
        cancelled, *deadline = self._stops
        if cancelled.is_complete:
            mark: Json = await cancelled
            if not isinstance(mark, Mapping):
                mark = {"reason": mark if isinstance(mark, str) else ""}
            reason, by = (str(cast("Mapping[str, Json]", mark).get(said) or "") for said in ("reason", "by"))
            raise _Stopped(TurnCancelled(self._thread.agent, self._id, reason, by))
        if any(timer.is_complete for timer in deadline):
            raise _Stopped(TurnDeadlineExceeded(self._thread.agent, self._id, self._limits.seconds or 0.0))
        return await waited

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
