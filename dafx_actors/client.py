"""Talking to agents, from any asyncio program."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Coroutine, Generator, Mapping
from datetime import datetime, timezone
from types import TracebackType
from typing import Any, Generic, Literal, TypeVar, overload

from durabletask.client import AsyncTaskHubGrpcClient, OrchestrationState, OrchestrationStatus, TaskHubGrpcClient

from dafx_actors import _codec
from dafx_actors._agent_tasks import answer, turn_input
from dafx_actors._connect import (
    MARGIN,
    Address,
    Backend,
    DurableTaskClient,
    address,
    address_of,
    check_wrapped,
    make_client,
)
from dafx_actors._values import dump_value, json_schema, load_value, returned_by
from dafx_actors.agents import agent_name
from dafx_actors.errors import (
    AgentNotHosted,
    CorrelationConflict,
    OrchestrationFailed,
    SchedulerUnreachable,
    TurnFailed,
    TurnTerminated,
    TurnTimeout,
)
from dafx_actors.exchange import AgentRunResponse, Messages, RunRequest, as_messages
from dafx_actors.ids import AgentThread, agent_of_turn, instance_id_mistake, new_id, thread_of, turn_name
from dafx_actors.orchestration import OrchestrationContext, definition_of
from dafx_actors.transcript import Json, Transcript

T = TypeVar("T")
In = TypeVar("In")
Out = TypeVar("Out")

_GRACE = 1.0
"""Seconds that a worker which starts at the same time as its client has, where the scheduler tells what is hosted."""


class DurableAIAgentClient:
    """Finds agents and starts orchestrations on one task hub.

    Wraps a durabletask client, sync or async; an async one is better for many conversations at a time, since each
    call of a sync one holds a thread while it waits.
    """

    def __init__(self, client: DurableTaskClient, *, where: Address | None = None, start_timeout: float = 10.0) -> None:
        """Wrap `client`, which stays the caller's to close.

        Args:
            client: A `DurableTaskSchedulerClient`, a `TaskHubGrpcClient`, or the async form of one.
            where: The client's endpoint and task hub, for error messages; by default what the client tells.
            start_timeout: Seconds that a turn waits for a worker that takes it, before it is withdrawn; where the
                scheduler tells that a connected worker hosts the agent, as long as it takes.

        Raises:
            ConfigurationError: It is no durabletask client.
        """
        check_wrapped("Client", client, TaskHubGrpcClient, AsyncTaskHubGrpcClient)
        self._backend = Backend(client, where or address_of(client))
        self._owned = False
        self._executor = ClientAgentExecutor(self._backend, start_timeout)

    @classmethod
    def connect(
        cls,
        endpoint: str | None = None,
        taskhub: str | None = None,
        *,
        credential: Any = None,
        start_timeout: float = 10.0,
    ) -> DurableAIAgentClient:
        """Make a client of what is given, else of ENDPOINT and TASKHUB. Use it with `async with`, or `close()` it.

        Args:
            endpoint: `http://host:port`, or `https://...` for a deployed scheduler.
            taskhub: The task hub.
            credential: For `https` only: an async Azure credential; by default `DefaultAzureCredential`.
            start_timeout: See `__init__`.

        Raises:
            ConfigurationError: The endpoint has no scheme.
        """
        where = address(endpoint, taskhub)
        made = cls(make_client(where, credential), where=where, start_timeout=start_timeout)
        made._owned = True
        return made

    async def close(self) -> None:
        """Close the connection, if `connect()` made it."""
        if self._owned:
            await self._backend.close()

    async def __aenter__(self) -> DurableAIAgentClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def get_agent(self, agent: str | type | object) -> DurableAIAgent:
        """An agent by its name, or by its class; whether a worker hosts it shows when it is run.

        Raises:
            ConfigurationError: A class that is no agent, or a name that cannot be one.
        """
        return DurableAIAgent(agent_name(agent), self._executor)

    @overload
    async def schedule_new_orchestration(
        self,
        orchestrator: Callable[[OrchestrationContext, In], Coroutine[Any, Any, Out]],
        *,
        input: In,
        instance_id: str | None = None,
    ) -> OrchestrationHandle[Out]: ...

    @overload
    async def schedule_new_orchestration(
        self,
        orchestrator: Callable[[OrchestrationContext], Coroutine[Any, Any, Out]],
        *,
        instance_id: str | None = None,
    ) -> OrchestrationHandle[Out]: ...

    @overload
    async def schedule_new_orchestration(
        self, orchestrator: str | Callable[..., Any], *, input: Any = None, instance_id: str | None = None
    ) -> OrchestrationHandle[Any]: ...

    async def schedule_new_orchestration(
        self, orchestrator: str | Callable[..., Any], *, input: Any = None, instance_id: str | None = None
    ) -> OrchestrationHandle[Any]:
        """Start an orchestration; await the handle for its result.

        Args:
            orchestrator: The decorated function, or its name.
            input: What it is given.
            instance_id: Where an orchestration of this id exists, it is taken up instead of a new one.

        Raises:
            ValueMismatch: JSON cannot hold `input`.
            SchedulerUnreachable: Nothing answers.
        """
        name = orchestrator if isinstance(orchestrator, str) else orchestrator.__name__
        annotation = Any if isinstance(orchestrator, str) else returned_by(definition_of(orchestrator))
        instance_id = instance_id or new_id()
        await self._backend.start(name, instance_id, dump_value(input))
        return OrchestrationHandle(self._backend, instance_id, annotation)

    def get_orchestration(self, instance_id: str, *, return_type: Any = Any) -> OrchestrationHandle[Any]:
        """An orchestration that was started before, perhaps by another process."""
        return OrchestrationHandle(self._backend, instance_id, return_type)


class OrchestrationHandle(Generic[T]):
    """An orchestration that was started. Await it for its result."""

    def __init__(self, backend: Backend, instance_id: str, annotation: Any) -> None:
        self.instance_id = instance_id
        self._backend = backend
        self._annotation = annotation

    def __str__(self) -> str:
        return self.instance_id

    def __await__(self) -> Generator[Any, None, T]:
        return self.result().__await__()

    async def result(self, timeout: float | None = None) -> T:
        """The result, as the function's annotation says.

        Args:
            timeout: Seconds to wait; as long as it takes by default.

        Raises:
            OrchestrationFailed: It failed, or was terminated; `__cause__` is the agent's error where there is one.
            TimeoutError: It has not ended; it goes on.
            ValueMismatch: The result does not fit.
        """
        state = await self.wait(timeout)
        if state.runtime_status is OrchestrationStatus.COMPLETED:
            result: T = load_value(_output(state), self._annotation)
            return result
        failure = state.failure_details
        cause = _codec.load_error(failure.message) if failure else None
        raise OrchestrationFailed(
            self.instance_id,
            str(state.runtime_status),
            type(cause).__name__ if cause else failure.error_type if failure else "",
            str(cause) if cause else failure.message if failure else str(_output(state) or ""),
        ) from cause

    async def wait(self, timeout: float | None = None) -> OrchestrationState:
        """Wait for the end, whatever it is; see `result`.

        Raises:
            TimeoutError: It has not ended; it goes on.
        """
        give_up = math.inf if timeout is None else time.monotonic() + timeout
        while (left := give_up - time.monotonic()) > 0:
            if (state := await self._backend.wait(self.instance_id, left, at_most=left)) is not None:
                return state
        raise TimeoutError(
            f"orchestration {self.instance_id} has not ended within {timeout} s; it goes on, if a worker hosts it"
        )

    async def state(self) -> OrchestrationState | None:
        """What durabletask knows of it now, or None if there is no such orchestration."""
        return await self._backend.state(self.instance_id)

    async def raise_event(self, name: str, data: Any = None) -> None:
        """Raise an event for it.

        Raises:
            ValueMismatch: JSON cannot hold `data`.
        """
        await self._backend.raise_event(self.instance_id, name, dump_value(data))

    async def terminate(self, reason: str = "") -> None:
        """End it, and the turns that it waits for."""
        await self._backend.terminate(self.instance_id, reason)


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

    async def get_transcript(self, thread: AgentThread | str) -> Transcript:
        """What a thread remembers; empty where it has not been used.

        Raises:
            UnsupportedTranscript: It was stored by a newer version.
        """
        return await self._executor.transcript(thread_of(self.name, thread))

    @overload
    async def run(
        self,
        messages: Messages,
        *,
        thread: AgentThread | str | None = None,
        timeout: float | None = None,
        correlation_id: str | None = None,
        options: Mapping[str, Json] | None = None,
        wait_for_response: Literal[True] = True,
    ) -> AgentRunResponse[None]: ...

    @overload
    async def run(
        self,
        messages: Messages,
        *,
        response_format: type[T],
        thread: AgentThread | str | None = None,
        timeout: float | None = None,
        correlation_id: str | None = None,
        options: Mapping[str, Json] | None = None,
        wait_for_response: Literal[True] = True,
    ) -> AgentRunResponse[T]: ...

    @overload
    async def run(
        self,
        messages: Messages,
        *,
        response_format: Any,
        thread: AgentThread | str | None = None,
        timeout: float | None = None,
        correlation_id: str | None = None,
        options: Mapping[str, Json] | None = None,
        wait_for_response: Literal[True] = True,
    ) -> AgentRunResponse[Any]: ...

    @overload
    async def run(
        self,
        messages: Messages,
        *,
        wait_for_response: Literal[False],
        response_format: Any = None,
        thread: AgentThread | str | None = None,
        timeout: float | None = None,
        correlation_id: str | None = None,
        options: Mapping[str, Json] | None = None,
    ) -> str: ...

    async def run(
        self,
        messages: Messages,
        *,
        thread: AgentThread | str | None = None,
        timeout: float | None = None,
        response_format: Any = None,
        correlation_id: str | None = None,
        options: Mapping[str, Json] | None = None,
        wait_for_response: bool = True,
    ) -> AgentRunResponse[Any] | str:
        """Send a request and wait for the answer.

        Args:
            messages: A text, a content such as an image, a message, or a list of them.
            thread: The conversation, or its id; a new one by default.
            timeout: Seconds to wait; by default as long as it takes. The turn goes on when it is over.
            response_format: The type of `response.value`: a pydantic model, an attrs class, a dataclass, a TypedDict;
                or a JSON schema.
            correlation_id: Names the turn; a new one by default. The same id gives the same answer, from one model
                call, however often and from wherever it is sent.
            options: Parameters of the model, by the provider's names.
            wait_for_response: False gives the correlation id as soon as the request is stored; the same `run()` with
                that id picks up the answer.

        Raises:
            AgentNotHosted: No worker took it in time; nothing was done.
            CorrelationConflict: The correlation id names another request.
            TurnTimeout: No answer in time; the turn may still be running.
            InvalidAnswer: The answer does not fit `response_format`.
            ModelError: The model's call failed.
            TurnError: Any other end of the turn without an answer.
            SchedulerUnreachable: Nothing answers at the endpoint.
            TypeError, ValueError: An argument is wrong; nothing was sent.
        """
        request = RunRequest(
            correlation_id=correlation_id or new_id(),
            messages=as_messages(messages),
            response_schema=None if response_format is None else json_schema(response_format),
            options=options or {},
            created_at=datetime.now(timezone.utc),
        )
        if mistake := instance_id_mistake(request.correlation_id):
            raise ValueError(f"{request.correlation_id!r} cannot be a correlation id: {mistake}")
        where = self.get_new_thread() if thread is None else thread_of(self.name, thread)
        await self._executor.start(where, request)
        if not wait_for_response:
            return request.correlation_id
        return await self._executor.wait(where, request.correlation_id, timeout, response_format)


class ClientAgentExecutor:
    """Runs agents from outside: starts a turn's orchestration and waits for it to end."""

    def __init__(self, backend: Backend, start_timeout: float) -> None:
        self._backend = backend
        self._start_timeout = start_timeout
        self._seen: set[str] = set()

    async def transcript(self, thread: AgentThread) -> Transcript:
        """See `DurableAIAgent.get_transcript`."""
        return _codec.load_transcript(await self._backend.thread(thread.entity_id))

    async def start(self, thread: AgentThread, request: RunRequest) -> None:
        """Start the turn, unless it was started before.

        Raises:
            CorrelationConflict: Something else has that id.
        """
        sent = turn_input(thread, request)
        if await self._backend.start(turn_name(thread.agent), request.correlation_id, sent):
            return
        state = await self._backend.state(request.correlation_id)
        if state is not None and (differs := _difference(state, thread, request)):
            raise CorrelationConflict(request.correlation_id, differs)

    async def wait(
        self, thread: AgentThread, correlation_id: str, timeout: float | None, response_format: Any
    ) -> AgentRunResponse[Any]:
        """Wait for the turn's end, by long polls; withdraw a turn that no worker takes within `start_timeout`."""
        try:
            return await self._wait(thread, correlation_id, timeout, response_format)
        except SchedulerUnreachable as error:
            resume = f"the turn may still be running; pick it up with correlation_id={correlation_id!r}"
            raise SchedulerUnreachable(error.endpoint, f"{error.detail}; {resume}") from error

    async def _wait(
        self, thread: AgentThread, correlation_id: str, timeout: float | None, response_format: Any
    ) -> AgentRunResponse[Any]:
        begun = time.monotonic()
        give_up = math.inf if timeout is None else begun + timeout
        looks = [begun + wait for wait in (_GRACE, self._start_timeout) if wait <= self._start_timeout]
        while (left := give_up - time.monotonic()) > 0:
            poll = min(left, max(looks[0] - time.monotonic(), 0.001)) if looks else left
            state = await self._backend.wait(correlation_id, poll, at_most=left)
            if state is None and looks and looks[0] <= time.monotonic() < give_up + MARGIN:
                waited = looks.pop(0) - begun
                state = await self._withdraw_if_pending(thread.agent, correlation_id, waited, last=not looks)
            if state is not None:
                self._seen.add(thread.agent)
                return self._answer(state, thread, correlation_id, response_format)
        raise TurnTimeout(thread.agent, thread.thread_id, correlation_id, timeout or 0.0)

    async def _withdraw_if_pending(
        self, agent: str, correlation_id: str, waited: float, *, last: bool
    ) -> OrchestrationState | None:
        """Terminate a turn that no worker has taken, at the last look, or where it is known that none will.

        Gives the turn's state if it ended by itself in that moment. An agent that was hosted before may just be
        starting again, and gets the whole `start_timeout`.

        Raises:
            AgentNotHosted: The turn was withdrawn. A scheduler may show its end only once some worker takes it.
        """
        state = await self._backend.state(correlation_id)
        if state is None or state.runtime_status is not OrchestrationStatus.PENDING:
            self._seen.add(agent)
            return None
        hosted = await self._backend.hosted()
        known = None if hosted is None else hosted.orchestrations
        if known is not None and known.take(turn_name(agent)):
            return None  # its workers are busy, and will come to it
        if not last and (known is None or agent in self._seen):
            return None
        await self._backend.terminate(correlation_id, "withdrawn: no worker took the turn")
        ended = await self._backend.wait(correlation_id, 0.5)
        if ended is not None and ended.runtime_status is not OrchestrationStatus.TERMINATED:
            return ended
        agents = None if known is None else sorted(filter(None, map(agent_of_turn, known.names)))
        where = self._backend.where
        raise AgentNotHosted(agent, where.endpoint, where.task_hub, waited, agents)

    def _answer(
        self, state: OrchestrationState, thread: AgentThread, correlation_id: str, response_format: Any
    ) -> AgentRunResponse[Any]:
        if state.runtime_status is OrchestrationStatus.COMPLETED:
            return answer(_output(state), thread, response_format)
        if state.runtime_status is OrchestrationStatus.TERMINATED:
            raise TurnTerminated(thread.agent, correlation_id, str(_output(state) or ""))
        raise _failure(state, thread.agent, correlation_id)


def _failure(state: OrchestrationState, agent: str, correlation_id: str) -> Exception:
    failure = state.failure_details
    if failure is None:
        return TurnFailed(agent, correlation_id, "an error", "no details were recorded")
    return _codec.load_error(failure.message) or TurnFailed(agent, correlation_id, failure.error_type, failure.message)


def _difference(state: OrchestrationState, thread: AgentThread, request: RunRequest) -> str | None:
    """In what a turn that was started before differs from this one, or None where it is the same."""
    if state.name != turn_name(thread.agent):
        return "agent"
    sent = json.loads(state.serialized_input or "{}")
    if sent.get("thread") != thread.thread_id:
        return "thread"
    earlier = _codec.load_request(sent.get("request"))
    asked = [_codec.digest(each.messages, each.response_schema) for each in (earlier, request)]
    return "request" if asked[0] != asked[1] else None


def _output(state: OrchestrationState) -> Json:
    if state.serialized_output is None:
        return None
    try:
        return json.loads(state.serialized_output)
    except json.JSONDecodeError:
        return state.serialized_output  # others may terminate with a plain text
