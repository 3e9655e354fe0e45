"""Talking to agents, from any asyncio program."""

from __future__ import annotations

import functools
from collections.abc import Callable, Coroutine, Mapping
from datetime import datetime, timezone
from types import TracebackType
from typing import Any, Literal, TypedDict, TypeVar, overload

from durabletask.client import AsyncTaskHubGrpcClient, TaskHubGrpcClient
from typing_extensions import Unpack

from dafx_actors import _codec, _credentials
from dafx_actors._backend import Backend
from dafx_actors._calls import Sent
from dafx_actors._connect import (
    Address,
    DurableTaskClient,
    address,
    address_of,
    check_wrapped,
    make_client,
)
from dafx_actors._executor import ClientAgentExecutor
from dafx_actors._values import dump_value, json_schema, returned_by
from dafx_actors.agents import agent_name
from dafx_actors.decisions import ACTIONS, Action, Decision, PendingDecision
from dafx_actors.exchange import AgentRunResponse, Limits, Messages, RunRequest, as_messages
from dafx_actors.handles import OrchestrationHandle, TurnHandle
from dafx_actors.ids import AgentThread, instance_id_mistake, new_id, thread_of
from dafx_actors.orchestration import OrchestrationContext, definition_of
from dafx_actors.transcript import Json, Transcript

T = TypeVar("T")
In = TypeVar("In")
Out = TypeVar("Out")


class RunOptions(TypedDict, total=False):
    """What `run` and `start` take besides."""

    thread: AgentThread | str | None
    """The conversation, or its id; a new one by default."""
    correlation_id: str | None
    """Names the turn; a new one by default. The same id gives the same answer, from one model call, however often and
    from wherever it is sent."""
    options: Mapping[str, Json] | None
    """Parameters of the model, by the provider's names."""
    tool_choice: str | None
    """For the first model call: `auto`, `none`, `required`, or a tool's name."""
    enable_tool_calls: bool
    """False: the model is offered no tools."""
    limits: Limits | None
    """What the turn may take at most, instead of the agent's `limits`."""


class DurableAIAgentClient:
    """Finds agents and starts orchestrations on one task hub.

    Wraps a durabletask client, sync or async; an async one is better for many conversations at a time, since each
    call of a sync one holds a thread while it waits.
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
        self._peers_executor = ClientAgentExecutor(backend, start_timeout, hosted_by_peer=True)

    @classmethod
    def connect(
        cls,
        endpoint: str | None = None,
        taskhub: str | None = None,
        *,
        credential: Any = None,
        start_timeout: float | None = None,
    ) -> DurableAIAgentClient:
        """Make a client of what is given, else of ENDPOINT and TASKHUB. Use it with `async with`, or `close()` it.

        Args:
            endpoint: `http://host:port`, or `https://...` for a deployed scheduler.
            taskhub: The task hub.
            credential: For `https` only: an Azure credential, of either kind, which stays the caller's to close; by
                default azure-identity's `DefaultAzureCredential`.
            start_timeout: See `__init__`.

        Raises:
            ConfigurationError: The endpoint has no scheme, or azure-identity is set up wrongly.
        """
        where = address(endpoint, taskhub)
        own = _credentials.default_credential() if where.is_secure and credential is None else None
        client = make_client(where, credential if own is None else own)
        made = cls(client, where=where, start_timeout=start_timeout)
        made._use(Backend(client, where, is_ours=True, credential=own), start_timeout)
        made._owned = True
        return made

    async def close(self) -> None:
        """Close the connection, if `connect()` made it. Whoever waits for an answer hears `SchedulerUnreachable`."""
        if self._owned:
            await self._backend.close()

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
        orchestrator: Callable[[OrchestrationContext, In], Coroutine[Any, Any, Out]],
        *,
        input: In,
        instance_id: str | None = None,
        timeout: float | None = None,
    ) -> OrchestrationHandle[Out]: ...

    @overload
    async def schedule_new_orchestration(
        self,
        orchestrator: Callable[[OrchestrationContext], Coroutine[Any, Any, Out]],
        *,
        instance_id: str | None = None,
        timeout: float | None = None,
    ) -> OrchestrationHandle[Out]: ...

    @overload
    async def schedule_new_orchestration(
        self,
        orchestrator: str | Callable[..., Any],
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
    ) -> list[PendingDecision]:
        """Tool calls that wait for `approve` or `deny`.

        Args:
            agent: By name or class.
            thread: Of this thread, and of the agents that it uses as tools; by default of all threads of the agent.
            timeout: Seconds to wait, outages of the scheduler included; by default as long as it takes.

        Raises:
            SchedulerUnreachable: Nothing answers, or not within `timeout`.
        """
        return [asked for asked in await self._pending(agent, thread, timeout) if asked.kind == "approval"]

    async def pending_outcomes(
        self, agent: str | type | object, thread: AgentThread | str | None = None, *, timeout: float | None = None
    ) -> list[PendingDecision]:
        """Tool calls with `effect="once"` that were cut off, so that nobody knows whether they acted: `resolve` them.

        Args:
            agent: By name or class.
            thread: As of `pending_approvals`.
            timeout: Likewise.

        Raises:
            SchedulerUnreachable: Nothing answers, or not within `timeout`.
        """
        return [asked for asked in await self._pending(agent, thread, timeout) if asked.kind == "outcome"]

    async def approve(
        self,
        approval: PendingDecision,
        *,
        arguments: Mapping[str, Json] | None = None,
        by: str = "",
        reason: str = "",
        timeout: float | None = None,
    ) -> Decision:
        """Let a tool call be made. When this returns, the decision is on record; the same one again is fine.

        Args:
            approval: The call. The decision counts for its name and arguments as they are there, and for no others.
            arguments: Makes it with these instead of those that the model wrote.
            by: Who decided; kept in the transcript.
            reason: Likewise.
            timeout: Seconds to wait, outages of the scheduler included; by default as long as it takes.

        Raises:
            DecisionRefused: The turn does not wait for it any more, or somebody has decided otherwise.
            AgentNotHosted: No worker hosts the agent; nothing was changed.
            TurnTimeout: Not within `timeout`; it may be on record, or will be.
            SchedulerUnreachable: Nothing answers; nothing was sent.
        """
        return await self._decide(approval, "approve", timeout, by=by, reason=reason, arguments=arguments)

    async def deny(
        self, approval: PendingDecision, reason: str = "", *, by: str = "", timeout: float | None = None
    ) -> Decision:
        """Do not let a tool call be made. The model is told, with the reason, and goes on. See `approve`."""
        return await self._decide(approval, "deny", timeout, by=by, reason=reason)

    async def resolve(
        self,
        outcome: PendingDecision,
        action: Literal["retry", "result", "fail"],
        *,
        result: Any = None,
        by: str = "",
        reason: str = "",
        timeout: float | None = None,
    ) -> Decision:
        """Say what became of a tool call that was cut off, after you have looked at what it acts on.

        Args:
            outcome: The call.
            action: `retry`: it did not act; make it again. `result`: it acted, and this is what it gave. `fail`: end
                the turn, with `OutcomeUnknown`.
            result: With `result`.
            by: Who decided; kept in the transcript.
            reason: Likewise.
            timeout: As of `approve`.

        Raises:
            DecisionRefused: The turn does not wait for it any more, or somebody has decided otherwise.
            ValueMismatch: JSON cannot hold `result`.
            AgentNotHosted, TurnTimeout, SchedulerUnreachable: As of `approve`.
        """
        return await self._decide(outcome, action, timeout, by=by, reason=reason, result=dump_value(result))

    async def _pending(
        self, agent: str | type | object, thread: AgentThread | str | None, timeout: float | None
    ) -> list[PendingDecision]:
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
    ) -> Decision:
        if action not in ACTIONS[asked.kind]:
            words = " or ".join(ACTIONS[asked.kind])
            raise ValueError(f"{asked.tool!r} waits for {words}, not {action!r}: it is a pending {asked.kind}")
        decision = Decision(
            action=action,
            by=by,
            at=datetime.now(timezone.utc),
            reason=reason,
            arguments=None if arguments is None else dump_value(arguments),
            result=result,
        )
        told = {
            "correlationId": asked.correlation_id,
            "key": asked.key,
            "digest": asked.digest,
            "decision": _codec.dump_decision(decision),
        }
        sent, thread = Sent(), asked.thread
        with self._executor.bounded_turn(thread.agent, thread, asked.correlation_id, timeout, sent, operation="decide"):
            outcome = await self._executor.tell(thread, "decide", told, sent)
        return _codec.load_decision(outcome["decided"])

    def get_orchestration(self, instance_id: str, *, return_type: Any = Any) -> OrchestrationHandle[Any]:
        """An orchestration that was started before, perhaps by another process."""
        return OrchestrationHandle(self._backend, instance_id, return_type)


class DurableAIAgent:
    """An agent, as a client sees it."""

    def __init__(self, name: str, executor: ClientAgentExecutor) -> None:
        self.name = name
        self._executor = executor

    def get_new_thread(self) -> AgentThread:
        """A new conversation. Nothing is stored until it is used."""
        return AgentThread(self.name, new_id())

    def get_thread(self, thread_id: str) -> AgentThread:
        """A conversation by its id (`str(thread)`), begun here or elsewhere.

        Raises:
            InvalidThreadId: It cannot be one.
        """
        return AgentThread(self.name, thread_id)

    async def get_transcript(self, thread: AgentThread | str, *, timeout: float | None = None) -> Transcript:
        """What a thread remembers; empty where it has not been used.

        Args:
            thread: The thread, or its id.
            timeout: Seconds to wait, outages of the scheduler included; by default as long as it takes.

        Raises:
            UnsupportedTranscript: It was stored by a newer version.
            SchedulerUnreachable: Nothing answers, or not within `timeout`.
        """
        return await self._executor.transcript(thread_of(self.name, thread), timeout)

    @overload
    async def run(
        self,
        messages: Messages,
        *,
        timeout: float | None = None,
        cancel_on_timeout: bool = False,
        wait_for_response: Literal[True] = True,
        **how: Unpack[RunOptions],
    ) -> AgentRunResponse[None]: ...

    @overload
    async def run(
        self,
        messages: Messages,
        *,
        response_format: type[T],
        timeout: float | None = None,
        cancel_on_timeout: bool = False,
        wait_for_response: Literal[True] = True,
        **how: Unpack[RunOptions],
    ) -> AgentRunResponse[T]: ...

    @overload
    async def run(
        self,
        messages: Messages,
        *,
        response_format: Any,
        timeout: float | None = None,
        cancel_on_timeout: bool = False,
        wait_for_response: Literal[True] = True,
        **how: Unpack[RunOptions],
    ) -> AgentRunResponse[Any]: ...

    @overload
    async def run(
        self,
        messages: Messages,
        *,
        wait_for_response: Literal[False],
        response_format: Any = None,
        timeout: float | None = None,
        cancel_on_timeout: bool = False,
        **how: Unpack[RunOptions],
    ) -> str: ...

    async def run(
        self,
        messages: Messages,
        *,
        response_format: Any = None,
        timeout: float | None = None,
        cancel_on_timeout: bool = False,
        wait_for_response: bool = True,
        **how: Unpack[RunOptions],
    ) -> AgentRunResponse[Any] | str:
        """Send a request and wait for the answer.

        Args:
            messages: A text, a content such as an image, a message, or a list of them.
            response_format: The type of `response.value`: a pydantic model, an attrs class, a dataclass, a TypedDict;
                or a JSON schema. An answer that does not fit goes back to the model once.
            timeout: Seconds to wait, outages of the scheduler included; by default as long as it takes. The turn goes
                on when it is over.
            cancel_on_timeout: Makes `timeout` the turn's own deadline, kept by the scheduler whether or not this
                program lives: it is stopped then, and ends with `TurnDeadlineExceeded`. Where no worker is left to
                stop it, `TurnTimeout` is raised a while later.
            wait_for_response: False gives the correlation id as soon as the request is stored; the same `run()` with
                that id picks up the answer. See also `start`.
            **how: See `RunOptions`.

        Raises:
            AgentNotHosted: No worker took it in time; nothing was done.
            CorrelationConflict: The correlation id names another request.
            TurnTimeout: No answer in time; the turn may still be running, or be taken up by the scheduler's return.
            TurnCancelled, TurnDeadlineExceeded, TurnLimitExceeded: It was stopped.
            InvalidAnswer: The answer does not fit `response_format`.
            ModelError: The model's call failed.
            TurnError: Any other end of the turn without an answer.
            UnsupportedByPeer: A worker of the peer hosts the agent, and cannot do this; nothing was sent.
            SchedulerUnreachable: Nothing answers at the endpoint. Where `timeout` is over, nothing was sent.
            SchedulerRefused: It answers that it cannot; its disk is full, for example.
            TypeError, ValueError: An argument is wrong; nothing was sent.
        """
        deadline = timeout if cancel_on_timeout else None
        where, request = self._request(messages, response_format, deadline, how)
        # Its own deadline ends the turn, which is what is waited for; a while longer, for where no worker is left.
        bound = timeout if deadline is None else deadline + self._executor.start_timeout
        sent = Sent()
        with self._executor.bounded_turn(self.name, where, request.correlation_id, bound, sent):
            start = functools.partial(self._executor.start, where, request, sent)
            await start()
            if not wait_for_response:
                return request.correlation_id
            return await self._executor.wait(where, request.correlation_id, response_format, again=start)

    @overload
    async def start(
        self, messages: Messages, *, timeout: float | None = None, **how: Unpack[RunOptions]
    ) -> TurnHandle[None]: ...

    @overload
    async def start(
        self, messages: Messages, *, response_format: type[T], timeout: float | None = None, **how: Unpack[RunOptions]
    ) -> TurnHandle[T]: ...

    @overload
    async def start(
        self, messages: Messages, *, response_format: Any, timeout: float | None = None, **how: Unpack[RunOptions]
    ) -> TurnHandle[Any]: ...

    async def start(
        self,
        messages: Messages,
        *,
        response_format: Any = None,
        timeout: float | None = None,
        **how: Unpack[RunOptions],
    ) -> TurnHandle[Any]:
        """Send a request, and get a handle: await it for the answer, ask it for the status, cancel the turn.

        Args:
            messages: See `run`.
            response_format: See `run`.
            timeout: Seconds that the scheduler has to take it, outages included; by default as long as it takes.
            **how: See `RunOptions`.

        Raises:
            CorrelationConflict: The correlation id names another request.
            TurnTimeout: Not within `timeout`; the turn may have been started.
            SchedulerUnreachable: Nothing answers at the endpoint. Where `timeout` is over, nothing was sent.
            SchedulerRefused: It answers that it cannot; its disk is full, for example.
            TypeError, ValueError: An argument is wrong; nothing was sent.
        """
        where, request = self._request(messages, response_format, None, how)
        sent = Sent()
        with self._executor.bounded_turn(self.name, where, request.correlation_id, timeout, sent):
            await self._executor.start(where, request, sent)
        return TurnHandle(self._executor, self.name, request.correlation_id, where, response_format)

    def get_turn(self, correlation_id: str, *, response_format: Any = None) -> TurnHandle[Any]:
        """A turn that was started before, perhaps by another process."""
        return TurnHandle(self._executor, self.name, correlation_id, None, response_format)

    def _request(
        self, messages: Messages, response_format: Any, deadline: float | None, how: RunOptions
    ) -> tuple[AgentThread, RunRequest]:
        if unknown := how.keys() - RunOptions.__annotations__.keys():
            raise TypeError(f"run() takes no argument {', '.join(sorted(unknown))}")
        if deadline is not None and not deadline > 0:
            raise ValueError(f"`timeout` must be more than {deadline!r} seconds where it is the turn's own deadline")
        thread = how.get("thread")
        request = RunRequest(
            correlation_id=how.get("correlation_id") or new_id(),
            messages=as_messages(messages),
            response_schema=None if response_format is None else json_schema(response_format),
            options=how.get("options") or {},
            tool_choice=how.get("tool_choice"),
            enable_tool_calls=how.get("enable_tool_calls", True),
            limits=how.get("limits"),
            deadline=deadline,
            created_at=datetime.now(timezone.utc),
        )
        if mistake := instance_id_mistake(request.correlation_id):
            raise ValueError(f"{request.correlation_id!r} cannot be a correlation id: {mistake}")
        return self.get_new_thread() if thread is None else thread_of(self.name, thread), request
