"""Talking to agents, from any program without an event loop."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Generator
from types import TracebackType
from typing import Any, TypeVar, overload

from durabletask.client import TaskHubGrpcClient

from dafx_actors._durable.connect import Address, address, address_of, check_wrapped
from dafx_actors.client import _handles as _async
from dafx_actors.client._client import DurableAIAgentClient as AsyncClient
from dafx_actors.client._scheduler import HostedAgent
from dafx_actors.sync._agents import DurableAIAgent
from dafx_actors.sync._calls import Caller
from dafx_actors.sync._decisions import Deciding
from dafx_actors.sync._handles import OrchestrationHandle
from dafx_actors.sync._inbox import Inbox
from dafx_actors.sync._orchestrations import Orchestrations
from dafx_actors.sync._scheduler import Scheduler
from dafx_actors.sync._threads import Threads
from dafx_actors.sync._turns import Turns

T = TypeVar("T")
In = TypeVar("In")
Out = TypeVar("Out")


class DurableAIAgentClient(Deciding, Inbox):
    """Finds agents and starts orchestrations on one task hub. Each call waits in the thread that makes it; any may.

    ::

        client = DurableAIAgentClient.connect()
        joker = client.get_agent("Joker")
        session = joker.create_session()
        print(joker.run("Tell me a joke.", session=session))

    A client that `connect()` made may be used before a fork and after it: the child makes connections of its own.
    """

    def __init__(
        self,
        client: TaskHubGrpcClient | AsyncClient,
        *,
        where: Address | None = None,
        start_timeout: float | None = None,
    ) -> None:
        """Wrap `client`, which stays the caller's to close, and is of no use in a process that is forked after that.

        Args:
            client: A `DurableTaskSchedulerClient` or a `TaskHubGrpcClient`; `connect()` needs none. Or an
                async client of this package, which is closed with this one.
            where: The client's endpoint and task hub, for error messages; by default what the client tells.
            start_timeout: Seconds that a turn waits for a worker that takes it; see the async client.

        Raises:
            ConfigurationError: It is no durabletask client, or one for asyncio.
        """
        if isinstance(client, AsyncClient):
            self._wrapped, endpoint = client, "the client's endpoint" if where is None else where.endpoint
        else:
            check_wrapped("Client", client, TaskHubGrpcClient)
            where = where or address_of(client)
            self._wrapped, endpoint = AsyncClient(client, where=where, start_timeout=start_timeout), where.endpoint
        self._caller = Caller(self._wrapped, endpoint)

    @classmethod
    def connect(
        cls,
        endpoint: str | None = None,
        taskhub: str | None = None,
        *,
        credential: Any = None,
        start_timeout: float | None = None,
    ) -> DurableAIAgentClient:
        """Make a client of what is given, else of ENDPOINT and TASKHUB.

        It ends with the program; before that by `close()`, or use it with `with`.
        Nothing is reached yet: the first call does that, or `ping()`.

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
        client = AsyncClient.connect(endpoint, taskhub, credential=credential, start_timeout=start_timeout)
        return cls(client, where=address(endpoint, taskhub))

    def close(self) -> None:
        """Close the connection, if `connect()` made it. Whoever waits for an answer hears `SchedulerUnreachable`."""
        self._caller.close()

    def __enter__(self) -> DurableAIAgentClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def ping(self, *, timeout: float | None = None) -> None:
        """See that the scheduler answers. `connect()` itself reaches nothing: the first call does.

        Args:
            timeout: Seconds to wait, outages of the scheduler included; by default as long as it takes to say so.

        Raises:
            SchedulerUnreachable: Nothing answers, or not within `timeout`.
            SchedulerRefused: It answers that it cannot, or that a token is missing.
            SchedulerCredentialError: It wants a token of Azure's, and there is none to be had.
        """
        self._caller.call(self._wrapped.ping, timeout=timeout)

    @property
    def threads(self) -> Threads:
        """Lists, reads, deletes, resets, exports and imports threads."""
        return Threads(self._caller, self._wrapped.threads)

    @property
    def turns(self) -> Turns:
        """Lists turns, and reads what was recorded of them."""
        return Turns(self._caller, self._wrapped.turns)

    @property
    def orchestrations(self) -> Orchestrations:
        """Lists orchestrations."""
        return Orchestrations(self._caller, self._wrapped.orchestrations)

    @property
    def scheduler(self) -> Scheduler:
        """Figures and backups of the embedded scheduler."""
        return Scheduler(self._caller, self._wrapped.scheduler)

    def agents(self, *, timeout: float | None = None) -> list[HostedAgent] | None:
        """The agents that connected workers host, and those that they hosted within the last ten minutes, by name.

        One call. The embedded scheduler tells it, reached over plain http.

        Args:
            timeout: Seconds to wait, outages of the scheduler included; by default as long as it takes.

        Returns:
            None where the scheduler cannot tell.

        Raises:
            SchedulerUnreachable: Nothing answers, or not within `timeout`.
        """
        return self._caller.call(self._wrapped.agents, timeout=timeout)

    def get_agent(self, agent: str | type | object, *, hosted_by_peer: bool = False) -> DurableAIAgent:
        """An agent by its name, or by its class; whether a worker hosts it shows when it is run.

        Args:
            agent: By name or class.
            hosted_by_peer: A worker of `agent-framework-durabletask` hosts it. The embedded scheduler tells that by
                itself; elsewhere it is found out only when `start_timeout` is over and somebody awaits the turn.

        Raises:
            ConfigurationError: A class that is no agent, or a name that cannot be one.
        """
        return DurableAIAgent(self._caller, self._wrapped.get_agent(agent, hosted_by_peer=hosted_by_peer))

    @overload
    def schedule_new_orchestration(
        self,
        orchestrator: Callable[[Any, In], Coroutine[Any, Any, Out] | Generator[Any, Any, Out]],
        *,
        input: In,
        instance_id: str | None = None,
        timeout: float | None = None,
    ) -> OrchestrationHandle[Out]: ...

    @overload
    def schedule_new_orchestration(
        self,
        orchestrator: Callable[[Any], Coroutine[Any, Any, Out] | Generator[Any, Any, Out]],
        *,
        instance_id: str | None = None,
        timeout: float | None = None,
    ) -> OrchestrationHandle[Out]: ...

    @overload
    def schedule_new_orchestration(
        self,
        orchestrator: str,
        *,
        input: Any = None,
        instance_id: str | None = None,
        timeout: float | None = None,
    ) -> OrchestrationHandle[Any]: ...

    def schedule_new_orchestration(
        self,
        orchestrator: str | Callable[..., Any],
        *,
        input: Any = None,
        instance_id: str | None = None,
        timeout: float | None = None,
    ) -> OrchestrationHandle[Any]:
        """Start an orchestration; ask the handle for its result.

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
        schedule: Any = self._wrapped.schedule_new_orchestration
        handle: _async.OrchestrationHandle[Any] = self._caller.call(
            schedule, orchestrator, input=input, instance_id=instance_id, timeout=timeout
        )
        return OrchestrationHandle(self._caller, handle)

    @overload
    def get_orchestration(self, instance_id: str) -> OrchestrationHandle[Any]: ...

    @overload
    def get_orchestration(self, instance_id: str, *, return_type: type[T]) -> OrchestrationHandle[T]: ...

    @overload
    def get_orchestration(self, instance_id: str, *, return_type: Any) -> OrchestrationHandle[Any]: ...

    def get_orchestration(self, instance_id: str, *, return_type: Any = Any) -> OrchestrationHandle[Any]:
        """An orchestration that was started before, perhaps by another process."""
        return OrchestrationHandle(self._caller, self._wrapped.get_orchestration(instance_id, return_type=return_type))
