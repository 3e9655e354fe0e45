"""The tool calls of a turn in its orchestration: those that a model asked for at once are made together.

A call may wait for a person, for days if need be, and holds no worker then; it may be the turn of another agent; it may
be made again. What a person decided is on record in the thread, and the event that tells of it is only a knock.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

from durabletask import task

from dafx_actors._json import messages as _codec
from dafx_actors._json.shapes import dump_time, object_in
from dafx_actors._rules import turn as _turn
from dafx_actors._rules.operations import error_in
from dafx_actors._turns.agents import Agents
from dafx_actors._turns.hosting import Hosting, given_up
from dafx_actors._turns.link import TurnBase, is_too_large
from dafx_actors.decisions import call_digest
from dafx_actors.errors import ApprovalExpired, DafxError, OutcomeUnknown, ResultNotKept
from dafx_actors.ids import tool_step_name
from dafx_actors.orchestration._coroutines import DurableTask, when_all, when_any
from dafx_actors.transcript import ChatMessage, Json

_CUT_OFF = "The turn ended before this call was answered. It may have acted, or not."


def decision_event(key: str) -> str:
    """The event that tells a turn what was decided about one of its calls."""
    return f"decision.{key}"


def _of_broken(call: _turn.Call, error: Json) -> Json:
    """What becomes of a call whose step failed as a whole, and did not say what the tool did."""
    if call.plan.get("once"):
        return {"unknown": True}
    if is_too_large(error):
        return _unkept(call.content.name)
    return {"error": error["message"]}


def _unkept(name: str) -> Json:
    return {"result": str(ResultNotKept("it is too large for the scheduler or the thread", name)), "unkept": True}


class ToolCalls:
    """Makes the calls of one turn."""

    def __init__(self, turn: TurnBase) -> None:
        """Begin with none."""
        self._turn = turn
        self._hosting = Hosting(turn)
        self._agents = Agents(turn, self._hosting)
        self._calls: tuple[_turn.Call, ...] = ()
        """On their way: recorded without their results."""
        self._outcomes: dict[str, Json] = {}
        self._begun: set[str] = set()
        """The keys of those that a step or another agent was given: they may have acted."""
        self._decided: dict[str, dict[str, Json]] = {}
        """What persons decided about them, for the record: the `decision` of an approval, and what was `resolved`."""
        self.fatal: DafxError | None = None
        """What one of them ended the turn with."""
        self._waits: list[DurableTask[None]] = []
        """For persons, a task each, which completes when there is no sense any more in waiting."""
        self._deadlines: dict[str, datetime] = {}
        """Of approvals, by the keys of their calls."""

    async def make(self, step: _turn.CallTools) -> None:
        """Record the calls, make them, record their results; unless one of them ends the turn."""
        # What is decided by whom is on record before anything acts.
        asks = [self._ask("approval", c, c.content.arguments) for c in step.calls if c.plan.get("approval")]
        children = self._agents.plan(step.calls)
        await self._turn.record((step.message,), asks=asks, children=children)
        self._calls, self._outcomes, self._decided = step.calls, {}, {}
        self._turn.show("running")
        for batch in _turn.batches(step.calls):
            await self._turn.check_stops()
            self._agents.share(batch)
            await self._turn.unless_stopped(when_all([self._make_one(call) for call in batch]))
            if self.fatal is not None:
                return
        await self._turn.record(self.unrecorded())
        self._calls = ()
        self._agents.done()

    def unrecorded(self, *, kept: bool = True) -> Sequence[ChatMessage]:
        """The results that the thread does not have yet; of calls that were decided about, also where there is none.

        `kept`: False where they are more than the thread can hold, so that it only learns which calls were made.
        """
        if not kept:
            made = [call for call in self._calls if "result" in self._outcomes.get(call.key, {})]
            self._outcomes |= {call.key: _unkept(call.content.name) for call in made}
        open_ = [call.key for call in self._calls if call.key not in self._outcomes]
        cut_off: dict[str, Json] = {key: {"result": _CUT_OFF} for key in open_ if key in self._decided}
        # What no step was given cannot have acted, whatever becomes of the turn.
        cut_off |= {key: {"error": _turn.NOT_MADE} for key in open_ if key not in self._begun}
        outcomes = {key: {**outcome, **self._decided.get(key, {})} for key, outcome in self._outcomes.items()}
        known = {key: {**outcome, **self._decided.get(key, {})} for key, outcome in cut_off.items()}
        results = _turn.results_message(self._calls, {**outcomes, **known})
        return [results] if results else []

    async def _make_one(self, call: _turn.Call) -> None:
        outcome = await self._outcome(call)
        self._outcomes[call.key] = outcome
        if "fatal" in outcome and self.fatal is None:
            # Those that run are left to finish; nobody is waited for any more.
            self.fatal = error_in({"error": outcome["fatal"]}, self._turn.thread)
            self.cancel_children(self.fatal)
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
        edited = decision.get("arguments")
        return await self._perform(call, call.content.arguments if edited is None else edited)

    async def _perform(self, call: _turn.Call, arguments: Mapping[str, Json]) -> Json:
        self._begun.add(call.key)
        if call.plan.get("agent"):
            return await self._agents.ask(call)
        policy = _codec.load_retry(call.plan["retry"]) if call.plan.get("retry") else None
        begun, number, failures = self._turn.context.current_utc_datetime, 1, 1
        while True:
            asked = {
                "thread": self._turn.thread.thread_id,
                "correlationId": self._turn.id,
                "length": self._turn.length,
                "key": call.key,
                "callId": call.content.call_id,
                "name": call.content.name,
                "arguments": dict(arguments),
                "attempt": number,
                **({"once": True} if call.plan.get("once") else {}),
                **({"form": call.plan["form"]} if "form" in call.plan else {}),
                **({"source": call.plan["activity"], "offer": call.plan["offer"]} if "offer" in call.plan else {}),
                **self._turn.above,
            }
            outcome = await self._turn.as_value(self._step(call, number, asked))
            if outcome.get("broken"):
                outcome = _of_broken(call, outcome["error"])
            if "unknown" in outcome:
                outcome = await self._resolved(call, arguments, number)
            if "wait" in outcome:
                await self._turn.context.sleep(outcome["wait"])
                continue
            if "notDone" not in outcome:
                pause = None
                if outcome.get("failed") and policy is not None and self.fatal is None:
                    pause = self._turn.pause(failures, policy, begun, call.key)
                if pause is None:
                    return outcome
                failures += 1
                await self._turn.context.sleep(pause)
            number += 1

    async def _step(self, call: _turn.Call, number: int, asked: Json) -> Json:
        """What a step gave; or that it was given up, because no worker has its tool any more."""
        activity = tool_step_name(self._turn.thread.agent, call.plan["activity"])
        step = self._turn.context.call_activity(activity, input=asked)

        async def give_up() -> Json:
            told = {"correlationId": self._turn.id, "key": call.key, "number": number}
            try:
                outcome = object_in(await self._turn.call_thread("giveUp", told))
            except (DafxError, task.TaskFailedError):
                return None  # a worker of an older version has the thread: another look comes
            return outcome if outcome.get("givenUp") else None

        done, outcome = await self._hosting.outcome(
            step, "activity", activity, shown=call.content.name, give_up=give_up
        )
        if done:
            return outcome
        return given_up(call.content.name, once=bool(call.plan.get("once")), begun=bool(outcome.get("begun")))

    async def _resolved(self, call: _turn.Call, arguments: Mapping[str, Json], number: int) -> Json:
        """Ask a person what became of an attempt that was cut off; `notDone`, where it is to be made again."""
        ask = self._ask("outcome", call, arguments, key=f"{call.key}.outcome{number}")
        await self._turn.record((), asks=[ask])
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

    def cancel_children(self, error: DafxError) -> None:
        """Cancel the turns of agents that this one waits for, on record and at once."""
        self._agents.cancel(error, over=self._outcomes)

    # --- People ---------------------------------------------------------------------------------------------------

    def _ask(self, kind: str, call: _turn.Call, arguments: Mapping[str, Json], *, key: str | None = None) -> Json:
        """What a person is to decide; an approval, before its deadline."""
        now = self._turn.context.current_utc_datetime
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
        timer = None if deadline is None else self._turn.context.create_timer(deadline)
        decision = await self._decision(call.key, timer)
        if decision is not None or deadline is None or self.fatal is not None:
            return decision
        told = {
            "correlationId": self._turn.id,
            "key": call.key,
            "digest": call_digest(call.content.name, call.content.arguments),
            "decision": {"action": "expire", "by": "the deadline", "at": dump_time(deadline)},
        }
        outcome = object_in(await self._turn.call_thread("decide", told))
        # Refused: the turn was cancelled, and is about to hear of it.
        return outcome.get("decided")

    async def _decision(self, key: str, timer: DurableTask[None] | None = None) -> Json:
        """What is decided, as the thread has it on record; None where the timer came first, or the turn ends.

        The event is only a knock at the door, and what comes with it is not looked at: anybody could raise it.
        """
        no_sense = DurableTask[None]()
        self._waits.append(no_sense)
        self._turn.show("waiting")
        decision: Json = None
        while self.fatal is None and decision is None:
            knock = self._turn.context.wait_for_external_event(decision_event(key))
            await when_any([knock, no_sense, *([timer] if timer else [])])
            if not knock.is_complete:
                break
            known = await self._turn.call_thread("decision", {"correlationId": self._turn.id, "key": key})
            decision = object_in(known).get("decided")
        self._waits.remove(no_sense)
        if not self._waits:
            self._turn.show("running")
        return decision
