"""What waits for a person, and what a person says to it.

A decision is told to its thread by a small orchestration, whose start is the store: it waits for a worker of the agent
as long as it takes, and is not withdrawn. Its id is made of what was decided, so that the same decision, sent again, is
one. The thread decides what counts, in the order in which decisions arrive.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal, overload

import anyio
import attrs

from dafx_actors._durable.backend import Backend
from dafx_actors._durable.calls import Sent
from dafx_actors._json.books import DecisionRecord
from dafx_actors._json.operations import Decide, Decided
from dafx_actors._json.requests import dump_decision, load_decision
from dafx_actors._json.values import dump_value
from dafx_actors.client._executor import ClientAgentExecutor
from dafx_actors.client._handles import TurnHandle
from dafx_actors.decisions import (
    ACTIONS,
    Action,
    Decision,
    DecisionAccepted,
    DecisionKind,
    DecisionSigner,
    PendingApproval,
    PendingDecision,
    PendingOutcome,
)
from dafx_actors.errors import DecisionRefused, SchedulerUnreachable, ValueMismatch
from dafx_actors.ids import AgentThread, agent_name, thread_of
from dafx_actors.transcript import Json

WAITS = 10.0
"""Seconds that whoever decides waits for what the thread says, unless they say otherwise."""


@attrs.frozen(kw_only=True)
class _Call:
    """The call that a decision is about, as far as whoever decides knows it."""

    thread: AgentThread
    turn: str
    key: str
    digest: str
    tool: str = ""
    arguments: Mapping[str, Json] = attrs.field(factory=dict[str, Json])

    @classmethod
    def listed(cls, asked: PendingDecision) -> _Call:
        return cls(
            thread=asked.thread,
            turn=asked.correlation_id,
            key=asked.key,
            digest=asked.digest,
            tool=asked.tool,
            arguments=asked.arguments,
        )


@attrs.frozen(kw_only=True)
class DecisionStored(Decision):
    """A decision that the scheduler keeps, and that its thread has not said anything to yet.

    The thread is told of it as soon as a worker of the agent is there, whatever becomes of this program; only then is
    it known whether it is accepted: the call's own deadline goes on meanwhile. Await `outcome()`, or send the same
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
    _call: _Call = attrs.field(repr=False, eq=False, alias="call")
    _executor: ClientAgentExecutor = attrs.field(repr=False, eq=False, alias="executor")

    def __str__(self) -> str:
        return (
            f"The decision about call {self.key} ({self.action}) is stored. Its thread is told of it as soon as a "
            f"worker of agent {self.thread.agent!r} is there."
        )

    async def outcome(self, timeout: float | None = None) -> DecisionAccepted:
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
        thread, turn = self.thread, self.correlation_id
        with self._executor.bounded_turn(thread.agent, thread, turn, timeout, Sent(maybe=True), operation="decide"):
            return _accepted(self._call, await self._executor.said(thread, self.instance_id))


class Deciding:
    """The part of a client that lists what waits for a person, and takes decisions."""

    _backend: Backend
    _executor: ClientAgentExecutor

    async def pending_approvals(
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
        return [asked for asked in await self._pending(agent, thread, timeout) if isinstance(asked, PendingApproval)]

    async def pending_outcomes(
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
        return [asked for asked in await self._pending(agent, thread, timeout) if isinstance(asked, PendingOutcome)]

    @overload
    async def approve(
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
    async def approve(
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

    async def approve(
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

        Of several decisions about a call the first that arrives at its thread counts. The same one again is fine,
        whoever makes it: what is returned says who made the first.

        Args:
            approval: The call, as `pending_approvals` lists it. The decision counts for its name and arguments as they
                are there, and for no others.
            key: The call's `PendingApproval.key`, where it is known without a listing; with `thread`.
            thread: The thread that waits, or its turn's handle, or the thread's id.
            agent: By name or class, where `thread` is an id.
            digest: The call's `PendingApproval.digest`. Without one the decision counts for the call as it stands when
                the thread is told; what that was is in `call_arguments` of what this returns.
            arguments: Makes it with these instead of those that the model wrote. If they do not fit the tool, that is
                `DecisionRefused`, and others can be given.
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
        return await self._decide(
            approval,
            "approval",
            "approve",
            timeout,
            named=(key, thread, agent, digest),
            by=by,
            reason=reason,
            arguments=arguments,
            signer=signer,
        )

    @overload
    async def deny(
        self,
        approval: PendingApproval,
        reason: str = "",
        *,
        by: str = "",
        signer: DecisionSigner | None = None,
        timeout: float | None = WAITS,
    ) -> DecisionAccepted | DecisionStored: ...

    @overload
    async def deny(
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

    async def deny(
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
        return await self._decide(
            approval,
            "approval",
            "deny",
            timeout,
            named=(key, thread, agent, digest),
            by=by,
            reason=reason,
            signer=signer,
        )

    @overload
    async def resolve(
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
    async def resolve(
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

    async def resolve(
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
        if action is None:
            raise TypeError("`action` is missing: what became of the call, `retry`, `result` or `fail`")
        return await self._decide(
            outcome,
            "outcome",
            action,
            timeout,
            named=(key, thread, agent, digest),
            by=by,
            reason=reason,
            result=dump_value(result),
            signer=signer,
        )

    async def _pending(
        self, agent: str | type | object, thread: AgentThread | str | None, timeout: float | None
    ) -> list[PendingApproval | PendingOutcome]:
        name = agent_name(agent)
        with self._backend.bounded(timeout):
            return await self._executor.pending(name, None if thread is None else thread_of(name, thread))

    async def _decide(
        self,
        asked: PendingDecision | None,
        kind: DecisionKind,
        action: Action,
        timeout: float | None,
        *,
        named: tuple[str | None, AgentThread | TurnHandle[Any] | str | None, Any, str | None],
        by: str,
        reason: str,
        arguments: Mapping[str, Json] | None = None,
        result: Json = None,
        signer: DecisionSigner | None = None,
    ) -> DecisionAccepted | DecisionStored:
        call = await _call_of(asked, *named, timeout=timeout)
        kind = kind if asked is None else asked.kind
        if action not in ACTIONS[kind]:
            words = " or ".join(ACTIONS[kind])
            raise ValueError(f"{call.tool or call.key!r} waits for {words}, not {action!r}: it is a pending {kind}")
        if signer is not None and not call.digest:
            detail = f"what {signer.name!r} signs is the call with its arguments: give the `digest` of what was seen"
            raise DecisionRefused(call.key, "unsigned", detail)
        decision = Decision(
            action=action,
            by=by,
            at=datetime.now(UTC),
            reason=reason,
            arguments=None if arguments is None else dump_value(arguments),
            result=result,
        )
        dumped = dump_decision(decision)
        if signer is not None:
            decision = attrs.evolve(decision, by=signer.name)
            dumped = signer.sign(call.thread, call.turn, call.key, call.digest, dumped)
        return await self._send(call, decision, _storable(dumped), timeout)

    async def _send(
        self, call: _Call, decision: Decision, record: DecisionRecord, timeout: float | None
    ) -> DecisionAccepted | DecisionStored:
        """Store a decision, and wait for what its thread says."""
        decide = Decide(turn=call.turn, key=call.key, digest=call.digest, decision=record)
        sent, thread, began = Sent(), call.thread, anyio.current_time()
        with self._executor.bounded_turn(thread.agent, thread, call.turn, timeout, sent, operation="decide"):
            instance = await self._executor.store(thread, decide, sent)
        left = None if timeout is None else max(timeout - (anyio.current_time() - began), 0.0)
        with anyio.move_on_after(left):
            try:
                return _accepted(call, await self._executor.said(thread, instance))
            except SchedulerUnreachable as error:
                raise SchedulerUnreachable(error.endpoint, f"{error.detail}; the decision is stored") from error
        return DecisionStored(
            **_fields_of(decision),
            thread=thread,
            correlation_id=call.turn,
            key=call.key,
            digest=call.digest,
            instance_id=instance,
            call=call,
            executor=self._executor,
        )


async def _call_of(
    asked: PendingDecision | None,
    key: str | None,
    thread: AgentThread | TurnHandle[Any] | str | None,
    agent: Any,
    digest: str | None,
    *,
    timeout: float | None,
) -> _Call:
    """The call that somebody decides about, listed or named."""
    if asked is not None:
        if not isinstance(asked, PendingDecision):  # pyright: ignore[reportUnnecessaryIsInstance] - callers may not type-check
            raise TypeError(f"{asked!r} is no call that was listed: give that, or its `key=` and `thread=`")
        if any(given is not None for given in (key, thread, agent, digest)):
            raise TypeError("a call that was listed has its key, thread and digest: give it alone")
        return _Call.listed(asked)
    if key is None or thread is None:
        raise TypeError("give the call that was listed, or its `key=` and `thread=`")
    turn = ""
    if isinstance(thread, TurnHandle):
        turn, thread = thread.correlation_id, await thread.thread(timeout=timeout)
    if isinstance(thread, str) and agent is None:
        raise TypeError("`thread` is an id, which tells nothing of the agent: give `agent=`, too")
    where = thread if isinstance(thread, AgentThread) else AgentThread(agent_name(agent), thread)
    where = where if agent is None else thread_of(agent_name(agent), where)
    return _Call(thread=where, turn=turn, key=key, digest=digest or "")


def _storable(decision: Mapping[str, Json]) -> DecisionRecord:
    """A decision as its thread will read it.

    Raises:
        ValueMismatch: The thread would not: it is nested too deeply, for example.
    """
    try:
        return DecisionRecord.load(decision)
    except ValueError as error:
        raise ValueMismatch(f"the decision cannot be stored: {error}") from error


def _fields_of(decision: Decision) -> dict[str, Any]:
    return {field.name: getattr(decision, field.name) for field in attrs.fields(Decision)}


def _accepted(call: _Call, outcome: object) -> DecisionAccepted:
    assert isinstance(outcome, Decided), "a decision is on record, or refused"
    decision, about = load_decision(outcome.decision), outcome.about
    # Workers of versions that do not tell the call take none that was not listed.
    edited = decision.arguments
    return DecisionAccepted(
        **_fields_of(decision),
        thread=call.thread,
        correlation_id=about.turn if about else call.turn,
        key=call.key,
        tool=about.tool if about else call.tool,
        call_arguments=about.arguments if about else call.arguments if edited is None else edited,
        note=about.note if about else "",
    )
