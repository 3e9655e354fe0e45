"""Talking to agents, from any asyncio program."""

from __future__ import annotations

import functools
from collections.abc import Callable, Coroutine, Generator
from types import TracebackType
from typing import Any, TypeVar, overload

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
from dafx_actors._json.values import dump_value, returned_by
from dafx_actors.client._decisions import Deciding
from dafx_actors.client._executor import ClientAgentExecutor, PeerExecutor
from dafx_actors.client._handles import OrchestrationHandle
from dafx_actors.client._inbox import Inbox, Index
from dafx_actors.client._orchestrations import Orchestrations
from dafx_actors.client._proxies import DurableAIAgent
from dafx_actors.client._scheduler import HostedAgent, Scheduler, agents_in
from dafx_actors.client._threads import Threads
from dafx_actors.client._turns import Turns
from dafx_actors.ids import agent_name, new_id
from dafx_actors.orchestration._context import definition_of

T = TypeVar("T")
In = TypeVar("In")
Out = TypeVar("Out")


class DurableAIAgentClient(Deciding, Inbox):
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
        self._index = Index(backend, self._executor)
        self.threads = Threads(backend, self._executor)
        """Lists, reads, deletes, resets, exports and imports threads."""
        self.turns = Turns(backend, self._executor)
        """Lists turns, and reads what was recorded of them."""
        self.orchestrations = Orchestrations(backend)
        """Lists orchestrations."""
        self.scheduler = Scheduler(backend)
        """Figures and backups of the embedded scheduler."""

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

    async def agents(self, *, timeout: float | None = None) -> list[HostedAgent] | None:
        """The agents that connected workers host, and those that they hosted within the last ten minutes, by name.

        One call. The embedded scheduler tells it, reached over plain http.

        Args:
            timeout: Seconds to wait, outages of the scheduler included; by default as long as it takes.

        Returns:
            None where the scheduler cannot tell.

        Raises:
            SchedulerUnreachable: Nothing answers, or not within `timeout`.
        """
        with self._backend.bounded(timeout):
            hosted = await self._backend.hosted()
        return None if hosted is None else agents_in(hosted)

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

    @overload
    def get_orchestration(self, instance_id: str) -> OrchestrationHandle[Any]: ...

    @overload
    def get_orchestration(self, instance_id: str, *, return_type: type[T]) -> OrchestrationHandle[T]: ...

    @overload
    def get_orchestration(self, instance_id: str, *, return_type: Any) -> OrchestrationHandle[Any]: ...

    def get_orchestration(self, instance_id: str, *, return_type: Any = Any) -> OrchestrationHandle[Any]:
        """An orchestration that was started before, perhaps by another process."""
        return OrchestrationHandle(self._backend, instance_id, return_type)
