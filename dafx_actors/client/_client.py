"""Talking to agents, from any asyncio program."""

from __future__ import annotations

import functools
from collections.abc import Callable, Coroutine, Generator, Mapping
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Literal, TypeVar, overload

from durabletask.client import AsyncTaskHubGrpcClient, TaskHubGrpcClient

from dafx_actors._durable import credentials as _credentials
from dafx_actors._durable.backend import Backend
from dafx_actors._durable.calls import Sent
from dafx_actors._durable.connect import (
    Address,
    DurableTaskClient,
    address,
    address_of,
    check_wrapped,
    credential_for,
    make_client,
)
from dafx_actors._json.books import DecisionRecord
from dafx_actors._json.operations import Decide, Decided
from dafx_actors._json.requests import dump_decision, load_decision
from dafx_actors._json.values import dump_value, returned_by
from dafx_actors.client._executor import ClientAgentExecutor, PeerExecutor
from dafx_actors.client._handles import OrchestrationHandle
from dafx_actors.client._proxies import DurableAIAgent
from dafx_actors.decisions import (
    ACTIONS,
    Action,
    Decision,
    DecisionSigner,
    PendingApproval,
    PendingDecision,
    PendingOutcome,
)
from dafx_actors.ids import AgentThread, agent_name, new_id, thread_of
from dafx_actors.orchestration._context import definition_of
from dafx_actors.transcript import Json

T = TypeVar("T")
In = TypeVar("In")
Out = TypeVar("Out")


class DurableAIAgentClient:
    """Finds agents and starts orchestrations on one task hub.

    Wraps a durabletask client, sync or async; an async one is better for many conversations at a time, since each
    call of a sync one holds a thread while it waits. An async one belongs to the first event loop that uses it: calls
    from another raise `ClientOfAnotherLoop`. None is used on after a fork: `ForkedWhileConnected`.
    """

    def __init__(
        self, client: DurableTaskClient, *, where: Address | None = None, start_timeout: float | None = None
    ) -> None:
        """Wrap `client`, which stays the caller's to close.

        Args:
            client: A `DurableTaskSchedulerClient`, a `TaskHubGrpcClient`, or the async form of one.
            where: The client's endpoint and task hub, for error messages; by default what the client tells.
            start_timeout: Seconds that a turn waits for a worker that takes it, before it is withdrawn; by default 10,
                or 1 where the scheduler tells that no worker has the agent. Where one had it within the last ten
                minutes, a turn waits as long as the caller's `timeout`, without one 30 seconds; where the scheduler
                tells that a connected worker hosts the agent, as long as it takes.

        Raises:
            ConfigurationError: It is no durabletask client.
        """
        check_wrapped("Client", client, TaskHubGrpcClient, AsyncTaskHubGrpcClient)
        self._use(Backend(client, where or address_of(client)), start_timeout)
        self._owned = False

    def _use(self, backend: Backend, start_timeout: float | None) -> None:
        self._backend = backend
        self._executor = ClientAgentExecutor(backend, start_timeout)
        self._peers_executor = PeerExecutor(backend, start_timeout)

    @classmethod
    def connect(
        cls,
        endpoint: str | None = None,
        taskhub: str | None = None,
        *,
        credential: Any = None,
        start_timeout: float | None = None,
    ) -> DurableAIAgentClient:
        """Make a client of what is given, else of ENDPOINT and TASKHUB. Use it with `async with`, or `aclose()` it.

        Nothing is reached yet: the first call does that, or `ping()`. There is a connection for each event loop that
        the client is used from. Programs without one use `dafx_actors.sync`.

        Args:
            endpoint: `http://host:port`, or `https://...` for a deployed scheduler.
            taskhub: The task hub.
            credential: An Azure credential, of either kind, which stays the caller's to close; by default the token of
                an embedded scheduler, where one is known (see `dafx scheduler --token`, DAFX_TOKEN_FILE), and for
                `https` azure-identity's `DefaultAzureCredential`. Never sent over plain `http`, but on this machine.
            start_timeout: See `__init__`.

        Raises:
            ConfigurationError: The endpoint has no scheme, the credential would be sent unencrypted, or azure-identity
                is set up wrongly.
        """
        where = address(endpoint, taskhub)
        credential = credential_for(where, credential)
        own = _credentials.OwnCredential() if where.is_secure and credential is None else None
        make = functools.partial(make_client, where, credential if own is None else own)
        made = cls(make(), where=where, start_timeout=start_timeout)
        made._use(Backend(make, where, credential=own, sent=credential), start_timeout)
        made._owned = True
        return made

    async def close(self) -> None:
        """Close the connection, if `connect()` made it. Whoever waits for an answer hears `SchedulerUnreachable`."""
        if self._owned:
            await self._backend.close()

    async def aclose(self) -> None:
        """Another name of `close`."""
        await self.close()

    async def ping(self, *, timeout: float | None = None) -> None:
        """See that the scheduler answers. `connect()` itself reaches nothing: the first call does.

        Args:
            timeout: Seconds to wait, outages of the scheduler included; by default as long as it takes to say so.

        Raises:
            SchedulerUnreachable: Nothing answers, or not within `timeout`.
            SchedulerRefused: It answers that it cannot, or that a token is missing.
            SchedulerCredentialError: It wants a token of Azure's, and there is none to be had.
        """
        with self._backend.bounded(timeout):
            await self._backend.state(new_id())

    async def __aenter__(self) -> DurableAIAgentClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def get_agent(self, agent: str | type | object, *, hosted_by_peer: bool = False) -> DurableAIAgent:
        """An agent by its name, or by its class; whether a worker hosts it shows when it is run.

        Args:
            agent: By name or class.
            hosted_by_peer: A worker of `agent-framework-durabletask` hosts it. The embedded scheduler tells that by
                itself; elsewhere it is found out only when `start_timeout` is over and somebody awaits the turn.

        Raises:
            ConfigurationError: A class that is no agent, or a name that cannot be one.
        """
        return DurableAIAgent(agent_name(agent), self._peers_executor if hosted_by_peer else self._executor)

    @overload
    async def schedule_new_orchestration(
        self,
        orchestrator: Callable[[Any, In], Coroutine[Any, Any, Out] | Generator[Any, Any, Out]],
        *,
        input: In,
        instance_id: str | None = None,
        timeout: float | None = None,
    ) -> OrchestrationHandle[Out]: ...

    @overload
    async def schedule_new_orchestration(
        self,
        orchestrator: Callable[[Any], Coroutine[Any, Any, Out] | Generator[Any, Any, Out]],
        *,
        instance_id: str | None = None,
        timeout: float | None = None,
    ) -> OrchestrationHandle[Out]: ...

    @overload
    async def schedule_new_orchestration(
        self,
        orchestrator: str,
        *,
        input: Any = None,
        instance_id: str | None = None,
        timeout: float | None = None,
    ) -> OrchestrationHandle[Any]: ...

    async def schedule_new_orchestration(
        self,
        orchestrator: str | Callable[..., Any],
        *,
        input: Any = None,
        instance_id: str | None = None,
        timeout: float | None = None,
    ) -> OrchestrationHandle[Any]:
        """Start an orchestration; await the handle for its result.

        Args:
            orchestrator: The decorated function, or its name.
            input: What it is given.
            instance_id: Where an orchestration of this id exists, it is taken up instead of a new one.
            timeout: Seconds that the scheduler has to take it, outages included; by default as long as it takes.

        Raises:
            ValueMismatch: JSON cannot hold `input`.
            SchedulerUnreachable: Nothing answers, or not within `timeout`; it may have been started, as it says.
            SchedulerRefused: It answers that it cannot.
        """
        name = orchestrator if isinstance(orchestrator, str) else orchestrator.__name__
        annotation = Any if isinstance(orchestrator, str) else returned_by(definition_of(orchestrator))
        instance_id = instance_id or new_id()
        sent = Sent()
        with self._backend.bounded(timeout, sent):
            await self._backend.start(name, instance_id, dump_value(input), sent=sent)
        return OrchestrationHandle(self._backend, instance_id, annotation)

    # --- What waits for a person ----------------------------------------------------------------------------------

    async def pending_approvals(
        self, agent: str | type | object, thread: AgentThread | str | None = None, *, timeout: float | None = None
    ) -> list[PendingApproval]:
        """Tool calls that wait for `approve` or `deny`.

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

    async def approve(
        self,
        approval: PendingApproval,
        *,
        arguments: Mapping[str, Json] | None = None,
        by: str = "",
        reason: str = "",
        signer: DecisionSigner | None = None,
        timeout: float | None = None,
    ) -> Decision:
        """Let a tool call be made. When this returns, the decision is on record; the same one again is fine.

        Args:
            approval: The call. The decision counts for its name and arguments as they are there, and for no others.
            arguments: Makes it with these instead of those that the model wrote.
            by: Who decided, as you say; kept in the transcript. Nobody checks it: whoever reaches the task hub may
                decide, unless the agent has `deciders`.
            reason: Kept in the transcript, too.
            signer: Signs the decision, for an agent with `deciders`; `by` is then its name.
            timeout: Seconds to wait, outages of the scheduler included; by default as long as it takes.

        Raises:
            DecisionRefused: The turn does not wait for it any more, or somebody has decided otherwise.
            AgentNotHosted: No worker hosts the agent; nothing was changed.
            TurnTimeout: Not within `timeout`; it may be on record, or will be.
            SchedulerUnreachable: Nothing answers; nothing was sent.
        """
        return await self._decide(
            approval, "approve", timeout, by=by, reason=reason, arguments=arguments, signer=signer
        )

    async def deny(
        self,
        approval: PendingApproval,
        reason: str = "",
        *,
        by: str = "",
        signer: DecisionSigner | None = None,
        timeout: float | None = None,
    ) -> Decision:
        """Do not let a tool call be made. The model is told, with the reason, and goes on. See `approve`."""
        return await self._decide(approval, "deny", timeout, by=by, reason=reason, signer=signer)

    async def resolve(
        self,
        outcome: PendingOutcome,
        action: Literal["retry", "result", "fail"],
        *,
        result: Any = None,
        by: str = "",
        reason: str = "",
        signer: DecisionSigner | None = None,
        timeout: float | None = None,
    ) -> Decision:
        """Say what became of a tool call that was cut off, after you have looked at what it acts on.

        Args:
            outcome: The call.
            action: `retry`: it did not act; make it again. `result`: it acted, and this is what it gave. `fail`: end
                the turn, with `OutcomeUnknown`.
            result: With `result`.
            by: As of `approve`.
            reason: As of `approve`.
            signer: As of `approve`.
            timeout: As of `approve`.

        Raises:
            DecisionRefused: The turn does not wait for it any more, or somebody has decided otherwise.
            ValueMismatch: JSON cannot hold `result`.
            AgentNotHosted, TurnTimeout, SchedulerUnreachable: As of `approve`.
        """
        return await self._decide(
            outcome, action, timeout, by=by, reason=reason, result=dump_value(result), signer=signer
        )

    async def _pending(
        self, agent: str | type | object, thread: AgentThread | str | None, timeout: float | None
    ) -> list[PendingApproval | PendingOutcome]:
        name = agent_name(agent)
        with self._backend.bounded(timeout):
            return await self._executor.pending(name, None if thread is None else thread_of(name, thread))

    async def _decide(
        self,
        asked: PendingDecision,
        action: Action,
        timeout: float | None,
        *,
        by: str,
        reason: str,
        arguments: Mapping[str, Json] | None = None,
        result: Json = None,
        signer: DecisionSigner | None = None,
    ) -> Decision:
        if action not in ACTIONS[asked.kind]:
            words = " or ".join(ACTIONS[asked.kind])
            raise ValueError(f"{asked.tool!r} waits for {words}, not {action!r}: it is a pending {asked.kind}")
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
            dumped = signer.sign(asked.thread, asked.correlation_id, asked.key, asked.digest, dumped)
        decide = Decide(turn=asked.correlation_id, key=asked.key, digest=asked.digest, decision=DecisionRecord(dumped))
        sent, thread = Sent(), asked.thread
        with self._executor.bounded_turn(thread.agent, thread, asked.correlation_id, timeout, sent, operation="decide"):
            outcome = await self._executor.tell(thread, decide, sent)
        assert isinstance(outcome, Decided), "a decision is on record, or refused"
        return load_decision(outcome.decision)

    @overload
    def get_orchestration(self, instance_id: str) -> OrchestrationHandle[Any]: ...

    @overload
    def get_orchestration(self, instance_id: str, *, return_type: type[T]) -> OrchestrationHandle[T]: ...

    @overload
    def get_orchestration(self, instance_id: str, *, return_type: Any) -> OrchestrationHandle[Any]: ...

    def get_orchestration(self, instance_id: str, *, return_type: Any = Any) -> OrchestrationHandle[Any]:
        """An orchestration that was started before, perhaps by another process."""
        return OrchestrationHandle(self._backend, instance_id, return_type)
