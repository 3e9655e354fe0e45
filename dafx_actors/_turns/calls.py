"""The tool calls of a turn in its orchestration: those that a model asked for at once are made together.

A call may wait for a person, for days if need be, and holds no worker then; it may be the turn of another agent; it may
be made again. What a person decided is on record in the thread, and the event that tells of it is only a knock.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

import attrs
from durabletask import task

from dafx_actors._json.books import DecisionRecord, QuestionRecord
from dafx_actors._json.operations import Decide, Decided, GivenUp, GiveUp, ReadDecision
from dafx_actors._json.steps import (
    Failed,
    NotMade,
    NotRecorded,
    Returned,
    StillRunning,
    ToolOutcome,
    ToolStep,
    Unknown,
    length_seen,
    load_tool_outcome,
)
from dafx_actors._rules import turn as _turn
from dafx_actors._rules.open_calls import CUT_OFF
from dafx_actors._rules.turn import CallOutcome
from dafx_actors._turns.agents import Agents
from dafx_actors._turns.hosting import Hosting, given_up
from dafx_actors._turns.link import Broken, TurnBase
from dafx_actors._turns.tell import decision_event
from dafx_actors.decisions import DecisionKind, call_digest
from dafx_actors.errors import ApprovalExpired, DafxError, OutcomeUnknown, ResultNotKept
from dafx_actors.ids import tool_step_name
from dafx_actors.orchestration._coroutines import DurableTask, when_all, when_any
from dafx_actors.transcript import ChatMessage, Json


def _of_broken(call: _turn.Call, broken: Broken) -> ToolOutcome:
    """The outcome of a call whose step failed as a whole, and did not say what the tool did."""
    if call.plan.once:
        return Unknown()
    return _unkept(call.content.name) if broken.is_too_large else Failed(str(broken.error))


def _unkept(name: str) -> Returned:
    return Returned(str(ResultNotKept("it is too large for the scheduler or the thread", name)), unkept=True)


class ToolCalls:
    """Makes the calls of one turn."""

    def __init__(self, turn: TurnBase) -> None:
        """Begin with none."""
        self._turn = turn
        self._hosting = Hosting(turn)
        self._agents = Agents(turn, self._hosting)
        self._calls: tuple[_turn.Call, ...] = ()
        """On their way: recorded without their results."""
        self._outcomes: dict[str, CallOutcome] = {}
        self._are_told = False
        """Whether the thread was told the results together with a step that has not said yet that they are there."""
        self._begun: set[str] = set()
        """The keys of those that a step or another agent was given: they may have acted."""
        self._decisions: dict[str, DecisionRecord] = {}
        """The decisions about the calls, of persons or deadlines, for the record."""
        self._resolved: dict[str, tuple[DecisionRecord, ...]] = {}
        """The answers of persons about attempts that were cut off, for the record."""
        self.fatal: DafxError | None = None
        """The error of a call that ends the turn."""
        self._waits: list[DurableTask[None]] = []
        """For persons, a task each, which completes when there is no sense any more in waiting."""
        self._deadlines: dict[str, datetime] = {}
        """The deadlines of approvals, by the keys of their calls."""

    async def make(self, asked: _turn.CallTools) -> None:
        """Record the calls, make them, record their results; unless one of them ends the turn."""
        # What is decided by whom is on record before anything acts.
        questions = [
            self._question("approval", call, call.content.arguments) for call in asked.calls if call.plan.approval
        ]
        children = self._agents.plan(asked.calls)
        acts = any(call.plan.activity and call.plan.refusal is None for call in asked.calls)
        if acts and not questions and not children and self._turn.can_tell((asked.message,)):
            self._turn.tell((asked.message,))
        else:
            await self._turn.record((asked.message,), questions=questions, children=children)
        self._calls, self._outcomes, self._decisions, self._resolved = asked.calls, {}, {}, {}
        self._turn.show("running")
        for batch in _turn.batches(asked.calls):
            await self._turn.check_stops()
            self._agents.share(batch)
            await self._turn.unless_stopped(when_all([self._make_one(call) for call in batch]))
            if self.fatal is not None:
                return
        await self._turn.make_sure()
        if self._turn.can_tell(unrecorded := self.unrecorded()):
            self._turn.tell(unrecorded)
            self._are_told = True
        else:
            await self._turn.record(unrecorded)
            self.settle()
        self._agents.done()

    def settle(self) -> None:
        """The results are in the thread."""
        self._calls, self._are_told = (), False

    def unrecorded(self, *, kept: bool = True) -> Sequence[ChatMessage]:
        """The results that the thread does not have yet; of calls that were decided about, also where there is none.

        `kept`: False where they are more than the thread can hold, so that it only learns which calls were made.
        """
        results: dict[str, CallOutcome] = {}
        if self._are_told and kept:
            return []
        for call in self._calls:
            outcome = self._outcomes.get(call.key)
            if outcome is None:
                # What no step was given cannot have acted, whatever becomes of the turn.
                if call.key not in self._begun:
                    outcome = CallOutcome(Failed(_turn.NOT_MADE))
                elif call.key in self._decisions or call.key in self._resolved:
                    outcome = CallOutcome(Returned(CUT_OFF))
                else:
                    continue
            elif not kept and isinstance(outcome.made, Returned):
                outcome = attrs.evolve(outcome, made=_unkept(call.content.name))
            results[call.key] = self._with_decisions(call.key, outcome)
        message = _turn.results_message(self._calls, results)
        return [message] if message else []

    def _with_decisions(self, key: str, outcome: CallOutcome) -> CallOutcome:
        decision, resolved = self._decisions.get(key, outcome.decision), self._resolved.get(key, ())
        return attrs.evolve(outcome, decision=decision, resolved=resolved)

    async def _make_one(self, call: _turn.Call) -> None:
        outcome = await self._outcome(call)
        self._outcomes[call.key] = outcome
        if outcome.fatal is not None and self.fatal is None:
            # Those that run are left to finish; nobody is waited for any more.
            self.fatal = outcome.fatal
            self.cancel_children(self.fatal)
            for wait in self._waits:
                wait.complete(None)

    async def _outcome(self, call: _turn.Call) -> CallOutcome:
        """Bring a call to its outcome."""
        if call.plan.refusal is not None:
            return CallOutcome(Failed(call.plan.refusal))
        if (approval := call.plan.approval) is None:
            return await self._perform(call, call.content.arguments)
        decision = await self._approval(call)
        if decision is None:
            return CallOutcome(Failed("the call was not made: the turn ended before anybody approved it"))
        self._decisions[call.key] = decision
        if decision.action == "expire" and approval.on_timeout == "fail":
            expired = ApprovalExpired(call.content.name, call.key, approval.seconds or 0.0)
            return attrs.evolve(_turn.denied(decision), fatal=expired)
        if decision.action != "approve":
            return _turn.denied(decision)
        edited = decision.arguments
        return await self._perform(call, call.content.arguments if edited is None else edited)

    async def _perform(self, call: _turn.Call, arguments: Mapping[str, Json]) -> CallOutcome:
        self._begun.add(call.key)
        if call.plan.agent is not None:
            return CallOutcome(await self._agents.ask(call, call.plan.agent))
        policy, began_at, number, failures = call.plan.retry, self._turn.context.current_utc_datetime, 1, 1
        while True:
            outcome = await self._attempt(call, arguments, number)
            if isinstance(outcome, NotRecorded):
                await self._turn.make_sure()
                continue
            if isinstance(outcome, Unknown):
                resolved = await self._resolve(call, arguments, number)
                if resolved is not None:
                    return resolved
                outcome = NotMade()
            match outcome:
                case StillRunning(seconds):
                    await self._turn.context.create_timer(timedelta(seconds=seconds))
                    continue
                case Returned():
                    return CallOutcome(outcome)
                case Failed():
                    pause = None
                    if outcome.by_tool and policy is not None and self.fatal is None:
                        pause = self._turn.pause(failures, policy, began_at, call.key)
                    if pause is None:
                        return CallOutcome(outcome)
                    failures += 1
                    await self._turn.context.create_timer(pause)
                case _:
                    pass  # it is certain that it has not acted: at once, then
            number += 1

    async def _attempt(self, call: _turn.Call, arguments: Mapping[str, Json], number: int) -> ToolOutcome:
        """One attempt of a call."""
        plan = call.plan
        asked = ToolStep(
            thread_id=self._turn.thread.thread_id,
            turn=self._turn.id,
            length=self._turn.length,
            key=call.key,
            call_id=call.content.call_id,
            name=call.content.name,
            arguments=arguments,
            attempt=number,
            once=plan.once,
            form=plan.form,
            source=plan.source,
            offer=plan.offer,
            callers=self._turn.callers,
            retry=self._turn.retry,
            records=self._turn.told is not None,
        )
        outcome = await self._turn.as_value(self._step(call, number, asked), lambda outcome: outcome)
        return _of_broken(call, outcome) if isinstance(outcome, Broken) else outcome

    async def _step(self, call: _turn.Call, number: int, asked: ToolStep) -> ToolOutcome | None:
        """The outcome of a step; or that the call was given up, because no worker has its tool any more."""
        activity = tool_step_name(self._turn.thread.agent, call.plan.activity)
        step = self._turn.context.call_activity(activity, input=asked.dump())

        async def give_up() -> GivenUp | None:
            try:
                reply = await self._turn.tell_thread(GiveUp(turn=self._turn.id, key=call.key, number=number))
            except (DafxError, task.TaskFailedError):
                return None  # a worker of an older version has the thread: another look comes
            return reply.outcome if isinstance(reply.outcome, GivenUp) else None

        record = await self._hosting.unless_gone(step, "activity", activity, shown=call.content.name, give_up=give_up)
        if record is not None:
            return given_up(call.content.name, once=call.plan.once, begun=record.begun)
        raw = await step
        self._turn.see(length_seen(raw))
        return None if raw is None else load_tool_outcome(raw)

    async def _resolve(self, call: _turn.Call, arguments: Mapping[str, Json], number: int) -> CallOutcome | None:
        """Ask a person what became of an attempt that was cut off; None where it is to be made again."""
        question = self._question("outcome", call, arguments, key=f"{call.key}.outcome{number}")
        await self._turn.record((), questions=[question])
        decision = await self._decision(question.key)
        if decision is None:
            return CallOutcome(Failed("nobody knows whether this call acted: the turn ended before anybody said so"))
        self._resolved[call.key] = (*self._resolved.get(call.key, ()), decision)
        if decision.action == "retry":
            return None
        if decision.action == "result":
            return CallOutcome(Returned(decision.result))
        unknown = OutcomeUnknown(call.content.name, call.key, decision.reason)
        return CallOutcome(Failed("nobody knows whether this call acted"), fatal=unknown)

    def cancel_children(self, error: DafxError) -> None:
        """Cancel the turns of agents that this one waits for, on record and at once."""
        self._agents.cancel(error, over=self._outcomes)

    # --- People ---------------------------------------------------------------------------------------------------

    def _question(
        self, kind: DecisionKind, call: _turn.Call, arguments: Mapping[str, Json], *, key: str | None = None
    ) -> QuestionRecord:
        """Make a question for a person; an approval has its deadline."""
        now = self._turn.context.current_utc_datetime
        approval = call.plan.approval if kind == "approval" else None
        deadline = None
        if approval is not None and approval.seconds is not None:
            self._deadlines[call.key] = deadline = now + timedelta(seconds=approval.seconds)
        return QuestionRecord.of(
            key=key or call.key,
            kind=kind,
            call_key=call.key,
            call_id=call.content.call_id,
            tool=call.content.name,
            arguments=arguments,
            asked_at=now,
            deadline=deadline,
            top=next(((caller.thread, caller.turn) for caller in self._turn.callers), None),
        )

    async def _approval(self, call: _turn.Call) -> DecisionRecord | None:
        """Wait for a person's decision about the call, or for `expire`.

        If both come at once, the thread says which counts.
        """
        deadline = self._deadlines.get(call.key)
        timer = None if deadline is None else self._turn.context.create_timer(deadline)
        decision = await self._decision(call.key, timer)
        if decision is not None or deadline is None or self.fatal is not None:
            return decision
        digest = call_digest(call.content.name, call.content.arguments)
        expire = Decide(turn=self._turn.id, key=call.key, digest=digest, decision=DecisionRecord.expired(deadline))
        outcome = (await self._turn.tell_thread(expire)).outcome
        # Refused: the turn was cancelled, and is about to hear of it.
        return outcome.decision if isinstance(outcome, Decided) else None

    async def _decision(self, key: str, timer: DurableTask[None] | None = None) -> DecisionRecord | None:
        """Wait for a decision, and read it in the thread; None if the timer came first, or the turn ends.

        The event is only a knock at the door, and what comes with it is not looked at: anybody could raise it.
        """
        no_sense = DurableTask[None]()
        self._waits.append(no_sense)
        self._turn.show("waiting")
        decision: DecisionRecord | None = None
        while self.fatal is None and decision is None:
            knock = self._turn.context.wait_for_external_event(decision_event(key))
            await when_any([knock, no_sense, *([timer] if timer else [])])
            if not knock.is_complete:
                break
            outcome = (await self._turn.tell_thread(ReadDecision(turn=self._turn.id, key=key))).outcome
            decision = outcome.decision if isinstance(outcome, Decided) else None
        self._waits.remove(no_sense)
        if not self._waits:
            self._turn.show("running")
        return decision
