"""What waits for a person, and what a person says to it, for programs without an event loop."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Literal, overload

import attrs

from dafx_actors.client import _decisions as _async
from dafx_actors.client._client import DurableAIAgentClient
from dafx_actors.client._decisions import WAITS
from dafx_actors.decisions import Decision, DecisionAccepted, DecisionSigner, PendingApproval, PendingOutcome
from dafx_actors.ids import AgentThread
from dafx_actors.sync._calls import Caller
from dafx_actors.sync._handles import TurnHandle
from dafx_actors.transcript import Json


@attrs.frozen(kw_only=True)
class DecisionStored(Decision):
    """A decision that the scheduler keeps, and that its thread has not said anything to yet.

    The thread is told of it as soon as a worker of the agent is there, whatever becomes of this program; only then is
    it known whether it is accepted: the call's own deadline goes on meanwhile. Ask `outcome()`, or send the same
    decision again, from anywhere: it is one decision.
    """

    thread: AgentThread
    correlation_id: str
    """The turn; empty where whoever decided did not name it."""
    key: str
    """Of the question; see `PendingDecision.key`."""
    digest: str
    """Of the call that was seen; empty where the decision is about the call as it stands when the thread is told."""
    instance_id: str
    """The orchestration that tells the thread."""
    _stored: _async.DecisionStored = attrs.field(repr=False, eq=False, alias="stored")
    _caller: Caller = attrs.field(repr=False, eq=False, alias="caller")

    def __str__(self) -> str:
        return str(self._stored)

    def outcome(self, timeout: float | None = None) -> DecisionAccepted:
        """Wait for what the thread says.

        Args:
            timeout: Seconds to wait, outages of the scheduler included; by default as long as it takes, which is until
                a worker of the agent is there.

        Raises:
            DecisionRefused: The turn did not wait for it any more, or somebody had decided otherwise before.
            TurnTimeout: The thread has said nothing yet; the decision stays stored.
            TurnNotFound: The scheduler has removed its record; the transcript says what was decided.
            TurnTerminated: Somebody has ended the orchestration that was to tell the thread.
            SchedulerUnreachable: Nothing answers; the decision stays stored.
        """
        return self._caller.call(self._stored.outcome, timeout)


class Deciding:
    """The part of a client that lists what waits for a person, and takes decisions."""

    _wrapped: DurableAIAgentClient
    _caller: Caller

    def pending_approvals(
        self, agent: str | type | object, thread: AgentThread | str | None = None, *, timeout: float | None = None
    ) -> list[PendingApproval]:
        """Tool calls that wait for `approve` or `deny`. No worker is needed for that, nor for a decision.

        Args:
            agent: By name or class.
            thread: Of this thread, and of the agents that it uses as tools; by default of all threads of the agent,
                each of which is read whole.
            timeout: Seconds to wait, outages of the scheduler included; by default as long as it takes.

        Raises:
            SchedulerUnreachable: Nothing answers, or not within `timeout`.
        """
        return self._caller.call(self._wrapped.pending_approvals, agent, thread, timeout=timeout)

    def pending_outcomes(
        self, agent: str | type | object, thread: AgentThread | str | None = None, *, timeout: float | None = None
    ) -> list[PendingOutcome]:
        """Tool calls with `effect="once"` that were cut off, so that nobody knows whether they acted: `resolve` them.

        Args:
            agent: By name or class.
            thread: As of `pending_approvals`.
            timeout: As of `pending_approvals`.

        Raises:
            SchedulerUnreachable: Nothing answers, or not within `timeout`.
        """
        return self._caller.call(self._wrapped.pending_outcomes, agent, thread, timeout=timeout)

    @overload
    def approve(
        self,
        approval: PendingApproval,
        *,
        arguments: Mapping[str, Json] | None = None,
        by: str = "",
        reason: str = "",
        signer: DecisionSigner | None = None,
        timeout: float | None = WAITS,
    ) -> DecisionAccepted | DecisionStored: ...

    @overload
    def approve(
        self,
        *,
        key: str,
        thread: AgentThread | TurnHandle[Any] | str,
        agent: str | type | object | None = None,
        digest: str | None = None,
        arguments: Mapping[str, Json] | None = None,
        by: str = "",
        reason: str = "",
        signer: DecisionSigner | None = None,
        timeout: float | None = WAITS,
    ) -> DecisionAccepted | DecisionStored: ...

    def approve(
        self,
        approval: PendingApproval | None = None,
        *,
        key: str | None = None,
        thread: AgentThread | TurnHandle[Any] | str | None = None,
        agent: str | type | object | None = None,
        digest: str | None = None,
        arguments: Mapping[str, Json] | None = None,
        by: str = "",
        reason: str = "",
        signer: DecisionSigner | None = None,
        timeout: float | None = WAITS,
    ) -> DecisionAccepted | DecisionStored:
        """Let a tool call be made. It needs no worker: once the scheduler has the decision, it is not lost.

        Of several decisions about a call the first that arrives at its thread counts. The same one again is fine.

        Args:
            approval: The call, as `pending_approvals` lists it. The decision counts for its name and arguments as they
                are there, and for no others.
            key: The call's `PendingApproval.key`, where it is known without a listing; with `thread`.
            thread: The thread that waits, or its turn's handle, or the thread's id.
            agent: By name or class, where `thread` is an id.
            digest: The call's `PendingApproval.digest`. Without one the decision counts for the call as it stands when
                the thread is told; what that was is in `call_arguments` of what this returns.
            arguments: Makes it with these instead of those that the model wrote.
            by: Who decided, as you say; kept in the transcript. Nobody checks it: whoever reaches the task hub may
                decide, unless the agent has `deciders`.
            reason: Kept in the transcript, too.
            signer: Signs the decision, for an agent with `deciders`; `by` is then its name. It signs the call's
                arguments, so it needs `approval` or `digest`.
            timeout: Seconds to wait for what the thread says, outages of the scheduler included; None: as long as it
                takes.

        Returns:
            `DecisionAccepted` where the decision is on record in the thread. `DecisionStored` where the thread has said
            nothing within `timeout`, since no worker of the agent is there or all are busy: the scheduler keeps the
            decision, and tells the thread as soon as one is.

        Raises:
            DecisionRefused: The turn does not wait for it any more, or somebody has decided otherwise.
            ValueMismatch: The decision cannot be stored; nothing was sent.
            UnsupportedByPeer: A worker of the peer hosts the agent; nothing was sent.
            TurnTimeout: The scheduler has not said within `timeout` that it keeps the decision; it may.
            SchedulerUnreachable: Nothing answers; nothing was sent.
            TypeError, ValueError: The call is not named as it must be; nothing was sent.
        """
        return self._decided(
            self._wrapped.approve,
            approval,
            key=key,
            thread=thread,
            agent=agent,
            digest=digest,
            arguments=arguments,
            reason=reason,
            by=by,
            signer=signer,
            timeout=timeout,
        )

    @overload
    def deny(
        self,
        approval: PendingApproval,
        reason: str = "",
        *,
        by: str = "",
        signer: DecisionSigner | None = None,
        timeout: float | None = WAITS,
    ) -> DecisionAccepted | DecisionStored: ...

    @overload
    def deny(
        self,
        *,
        key: str,
        thread: AgentThread | TurnHandle[Any] | str,
        reason: str = "",
        agent: str | type | object | None = None,
        digest: str | None = None,
        by: str = "",
        signer: DecisionSigner | None = None,
        timeout: float | None = WAITS,
    ) -> DecisionAccepted | DecisionStored: ...

    def deny(
        self,
        approval: PendingApproval | None = None,
        reason: str = "",
        *,
        key: str | None = None,
        thread: AgentThread | TurnHandle[Any] | str | None = None,
        agent: str | type | object | None = None,
        digest: str | None = None,
        by: str = "",
        signer: DecisionSigner | None = None,
        timeout: float | None = WAITS,
    ) -> DecisionAccepted | DecisionStored:
        """Do not let a tool call be made. The model is told, with the reason, and goes on. See `approve`."""
        return self._decided(
            self._wrapped.deny,
            approval,
            reason,
            key=key,
            thread=thread,
            agent=agent,
            digest=digest,
            by=by,
            signer=signer,
            timeout=timeout,
        )

    @overload
    def resolve(
        self,
        outcome: PendingOutcome,
        action: Literal["retry", "result", "fail"],
        *,
        result: Any = None,
        by: str = "",
        reason: str = "",
        signer: DecisionSigner | None = None,
        timeout: float | None = WAITS,
    ) -> DecisionAccepted | DecisionStored: ...

    @overload
    def resolve(
        self,
        *,
        action: Literal["retry", "result", "fail"],
        key: str,
        thread: AgentThread | TurnHandle[Any] | str,
        agent: str | type | object | None = None,
        digest: str | None = None,
        result: Any = None,
        by: str = "",
        reason: str = "",
        signer: DecisionSigner | None = None,
        timeout: float | None = WAITS,
    ) -> DecisionAccepted | DecisionStored: ...

    def resolve(
        self,
        outcome: PendingOutcome | None = None,
        action: Literal["retry", "result", "fail"] | None = None,
        *,
        key: str | None = None,
        thread: AgentThread | TurnHandle[Any] | str | None = None,
        agent: str | type | object | None = None,
        digest: str | None = None,
        result: Any = None,
        by: str = "",
        reason: str = "",
        signer: DecisionSigner | None = None,
        timeout: float | None = WAITS,
    ) -> DecisionAccepted | DecisionStored:
        """Say what became of a tool call that was cut off, after you have looked at what it acts on.

        Args:
            outcome: The call, as `pending_outcomes` lists it.
            action: `retry`: it did not act; make it again. `result`: it acted, and this is what it gave. `fail`: end
                the turn, with `OutcomeUnknown`.
            key: As of `approve`, with `PendingOutcome.key`, and so the next three.
            thread: The thread that waits, or its turn's handle, or the thread's id.
            agent: By name or class, where `thread` is an id.
            digest: The call's `PendingOutcome.digest`.
            result: With `result`.
            by: As of `approve`.
            reason: As of `approve`.
            signer: As of `approve`.
            timeout: As of `approve`.

        Returns:
            As `approve`.

        Raises:
            DecisionRefused: The turn does not wait for it any more, or somebody has decided otherwise.
            ValueMismatch: JSON cannot hold `result`.
            UnsupportedByPeer, TurnTimeout, SchedulerUnreachable, TypeError, ValueError: As of `approve`.
        """
        return self._decided(
            self._wrapped.resolve,
            outcome,
            action,
            key=key,
            thread=thread,
            agent=agent,
            digest=digest,
            result=result,
            reason=reason,
            by=by,
            signer=signer,
            timeout=timeout,
        )

    def _decided(
        self,
        decide: Callable[..., Awaitable[DecisionAccepted | _async.DecisionStored]],
        *given: Any,
        thread: AgentThread | TurnHandle[Any] | str | None,
        **named: Any,
    ) -> DecisionAccepted | DecisionStored:
        where = thread.as_async if isinstance(thread, TurnHandle) else thread
        decided = self._caller.call(decide, *given, thread=where, **named)
        if isinstance(decided, DecisionAccepted):
            return decided
        shared = {each.name: getattr(decided, each.name) for each in attrs.fields(Decision)}
        return DecisionStored(
            **shared,
            thread=decided.thread,
            correlation_id=decided.correlation_id,
            key=decided.key,
            digest=decided.digest,
            instance_id=decided.instance_id,
            stored=decided,
            caller=self._caller,
        )
