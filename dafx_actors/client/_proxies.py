"""An agent, as a client sees it: send it requests, read its threads, find its turns."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any, Literal, TypedDict, TypeVar, overload

from typing_extensions import Unpack

from dafx_actors._durable.calls import Sent
from dafx_actors._json.values import json_schema
from dafx_actors.client._executor import ClientAgentExecutor
from dafx_actors.client._handles import TurnHandle
from dafx_actors.exchange import AgentRunResponse, Limits, Messages, RunRequest, as_messages
from dafx_actors.ids import AgentThread, instance_id_mistake, new_id, new_id_mistake, thread_of
from dafx_actors.transcript import Json, Transcript

__all__ = ["DurableAIAgent", "RunOptions"]

T = TypeVar("T")


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
    """What the turn may take at most. It can lower what is written for the agent, and not lift it; defaults it can."""


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
        if mistake := instance_id_mistake(request.correlation_id) or new_id_mistake(request.correlation_id):
            raise ValueError(f"{request.correlation_id!r} cannot be a correlation id: {mistake}")
        return self.get_new_thread() if thread is None else thread_of(self.name, thread), request
