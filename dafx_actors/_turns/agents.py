"""Agents used as tools, in a turn's orchestration: their turns, what is left to them, and their cancellation.

A turn below gets what this one has left of its limits (see `_rules/tree.py`), and is told of the turns above it. Each
of its steps looks, before it begins, whether those still want it: so nothing of the tree begins once a cancel is on
record, wherever the word of it is by then. That word, an event, only makes an end of what waits.
"""

from __future__ import annotations

from collections.abc import Container, Sequence

from durabletask import task

from dafx_actors._json.books import CancelMark, ChildRecord
from dafx_actors._json.operations import Cancel
from dafx_actors._json.requests import load_response
from dafx_actors._json.steps import AgentPlan, Caller, Failed, Returned, Spent, TurnInput
from dafx_actors._rules import tree as _tree
from dafx_actors._rules import turn as _turn
from dafx_actors._turns.hosting import Hosting, not_hosted
from dafx_actors._turns.link import TurnBase
from dafx_actors._turns.tell import CANCEL
from dafx_actors.errors import DafxError
from dafx_actors.exchange import Limits, RunRequest
from dafx_actors.ids import AgentThread, turn_name
from dafx_actors.orchestration._coroutines import DurableTask
from dafx_actors.transcript import ChatMessage, Json

_NOT_STARTED = "OrchestrationAlreadyExists"
"""What a turn fails with, by the scheduler, where somebody else has taken its id."""


class Agents:
    """Makes the calls of one turn that are turns of other agents."""

    def __init__(self, turn: TurnBase, hosting: Hosting) -> None:
        """Begin with none."""
        self._turn = turn
        self._hosting = hosting
        self._children: dict[str, ChildRecord] = {}
        """The turns that are on record, by the keys of their calls."""
        self._shares: dict[str, Limits | str] = {}
        """The limits that are left to the calls of one batch, or the reasons why they do not run."""

    def plan(self, calls: Sequence[_turn.Call]) -> list[ChildRecord]:
        """The turns that these calls will be, for the record."""
        self._children = {
            call.key: self._child(call, plan) for call in calls if (plan := call.plan.agent) and self._is_to_run(call)
        }
        return list(self._children.values())

    def done(self) -> None:
        """All of them are over, and on record."""
        self._children = {}

    def share(self, batch: Sequence[_turn.Call]) -> None:
        """What is left of the turn's limits is shared by those that are asked at the same time."""
        if not self._turn.is_of_the_tree:
            return
        asked = [call for call in batch if self._is_to_run(call)]
        waited = self._turn.context.current_utc_datetime - self._turn.started_at
        progress = self._turn.progress
        shares = _tree.shares(self._turn.limits, progress.steps, progress.usage, waited, len(asked))
        self._shares = {call.key: share for call, share in zip(asked, shares, strict=True)}

    async def ask(self, call: _turn.Call, plan: AgentPlan) -> Returned | Failed:
        """A turn of another agent, in a thread of its own: what that needs approved is approved there."""
        if not self._is_to_run(call):
            return Failed(_tree.circle(plan.name))
        share = self._shares.get(call.key)
        if isinstance(share, str):
            return Failed(share)
        child = self._children[call.key]
        where = child.thread
        turn = self._start(call, plan, where, share)

        async def withdraw() -> CancelMark:
            return self._cancel(child, f"no worker hosts agent {where.agent!r}")

        gone = await self._hosting.unless_gone(
            turn, "orchestration", turn_name(where.agent), shown=where.agent, give_up=withdraw
        )
        if gone is not None:
            return not_hosted(where.agent)
        try:
            raw = await turn
            if share is not None:
                self._count(Spent.in_response(raw))
            return _kept(_turn.told_to_caller(load_response(raw, where)), plan)
        except (DafxError, task.TaskFailedError) as error:
            if share is not None:
                self._count(_spent_by_failed(turn.failure, share))
            return Failed(str(error))

    def cancel(self, error: DafxError, over: Container[str] = ()) -> None:
        """Cancel those that this turn waits for, all but those that are `over`, on record and at once."""
        for key, child in self._children.items():
            if key not in over:
                self._cancel(child, str(error))

    # --- Inside ---------------------------------------------------------------------------------------------------

    def _start(self, call: _turn.Call, plan: AgentPlan, where: AgentThread, limits: Limits | None) -> DurableTask[Json]:
        request = RunRequest(
            correlation_id=call.key,
            messages=(ChatMessage("user", plan.request),),
            limits=limits,
            created_at=self._turn.context.current_utc_datetime,
            orchestration_id=self._turn.id,
        )
        callers = self._callers if self._turn.is_of_the_tree else ()
        sent = TurnInput(thread_id=where.thread_id, request=request, callers=callers).dump()
        return self._turn.context.call_sub_orchestrator(turn_name(where.agent), input=sent, instance_id=call.key)

    @property
    def _callers(self) -> tuple[Caller, ...]:
        return (*self._turn.callers, Caller(self._turn.thread, self._turn.id))

    def _is_to_run(self, call: _turn.Call) -> bool:
        """Say whether a call is that of an agent which does not wait for this very turn."""
        plan = call.plan.agent
        if plan is None or plan.new_thread or not self._turn.is_of_the_tree:
            return plan is not None
        return not _tree.waits_for(self._callers, AgentThread(plan.name, self._turn.thread.thread_id))

    def _child(self, call: _turn.Call, plan: AgentPlan) -> ChildRecord:
        thread = self._turn.context.new_uuid() if plan.new_thread else self._turn.thread.thread_id
        return ChildRecord.of(call.key, AgentThread(plan.name, thread))

    def _count(self, spent: Spent) -> None:
        self._turn.progress = _turn.with_spent(self._turn.progress, spent.steps, spent.usage)

    def _cancel(self, child: ChildRecord, reason: str) -> CancelMark:
        mark = CancelMark.of(by=self._turn.id, reason=reason)
        cancel = Cancel(turn=child.turn, mark=mark)
        self._turn.context.signal_entity(child.thread.entity_id, cancel.operation, cancel.dump())
        self._turn.context.send_event(child.turn, CANCEL, data=dict(mark.raw))
        return mark


def _kept(answer: str, plan: AgentPlan) -> Returned | Failed:
    """The outcome of a call that was answered; plans of earlier versions have no bound."""
    size, most = len(answer.encode(errors="replace")), plan.max_result_bytes
    if most is None or size <= most:
        return Returned(answer)
    return Failed(
        f"agent {plan.name!r} has answered; the answer has {size:,} bytes, a result may have {most:,}, and "
        "so it is not shown. What the agent did is done. Ask for a shorter answer."
    )


def _spent_by_failed(failure: task.FailureDetails | None, share: Limits) -> Spent:
    """The steps and tokens of a turn that failed.

    A turn that was ended from outside does not say: all that it was given counts.
    """
    if failure is None or failure.error_type == _NOT_STARTED:
        return Spent()
    return Spent.beside_error(failure.message) or Spent(share.steps or 0)
