"""An agent, as a client sees it: send it requests, read its threads, find its turns."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal, TypedDict, TypeVar, overload

from dafx_actors._durable.calls import Sent
from dafx_actors._json.values import json_schema
from dafx_actors.client._executor import ClientAgentExecutor
from dafx_actors.client._handles import TurnHandle, TurnStream
from dafx_actors.client._updates import Followed, Following
from dafx_actors.exchange import AgentRunResponse, Limits, Messages, RunRequest, as_messages
from dafx_actors.ids import AgentThread, check_correlation_id, conversation, new_id, thread_of
from dafx_actors.transcript import Json, Transcript

__all__ = ["DurableAIAgent", "RunOptions"]

T = TypeVar("T")


class RunOptions(TypedDict, total=False):
    """Arguments that `run` and `start` share, for programs that pass them on: `agent.run(text, **options)`."""

    thread: AgentThread | str | None
    session: AgentThread | str | None
    correlation_id: str | None
    options: Mapping[str, Json] | None
    tool_choice: str | None
    enable_tool_calls: bool
    limits: Limits | None


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

    def create_session(self, *, session_id: str | None = None) -> AgentThread:
        """A conversation, new or by its id: what the peer's users call a session is a thread here.

        Raises:
            InvalidThreadId: It cannot be one.
        """
        return self.get_new_thread() if session_id is None else self.get_thread(session_id)

    async def get_transcript(self, thread: AgentThread | str, *, timeout: float | None = None) -> Transcript:
        """The transcript of a thread; it is empty if the thread has not been used.

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
        thread: AgentThread | str | None = None,
        session: AgentThread | str | None = None,
        correlation_id: str | None = None,
        options: Mapping[str, Json] | None = None,
        tool_choice: str | None = None,
        enable_tool_calls: bool = True,
        limits: Limits | None = None,
        timeout: float | None = None,
        cancel_on_timeout: bool = False,
        wait_for_response: Literal[True] = True,
    ) -> AgentRunResponse[None]: ...

    @overload
    async def run(
        self,
        messages: Messages,
        *,
        response_format: type[T],
        thread: AgentThread | str | None = None,
        session: AgentThread | str | None = None,
        correlation_id: str | None = None,
        options: Mapping[str, Json] | None = None,
        tool_choice: str | None = None,
        enable_tool_calls: bool = True,
        limits: Limits | None = None,
        timeout: float | None = None,
        cancel_on_timeout: bool = False,
        wait_for_response: Literal[True] = True,
    ) -> AgentRunResponse[T]: ...

    @overload
    async def run(
        self,
        messages: Messages,
        *,
        response_format: Any,
        thread: AgentThread | str | None = None,
        session: AgentThread | str | None = None,
        correlation_id: str | None = None,
        options: Mapping[str, Json] | None = None,
        tool_choice: str | None = None,
        enable_tool_calls: bool = True,
        limits: Limits | None = None,
        timeout: float | None = None,
        cancel_on_timeout: bool = False,
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
        session: AgentThread | str | None = None,
        correlation_id: str | None = None,
        options: Mapping[str, Json] | None = None,
        tool_choice: str | None = None,
        enable_tool_calls: bool = True,
        limits: Limits | None = None,
        timeout: float | None = None,
        cancel_on_timeout: bool = False,
    ) -> str: ...

    async def run(
        self,
        messages: Messages,
        *,
        response_format: Any = None,
        thread: AgentThread | str | None = None,
        session: AgentThread | str | None = None,
        correlation_id: str | None = None,
        options: Mapping[str, Json] | None = None,
        tool_choice: str | None = None,
        enable_tool_calls: bool = True,
        limits: Limits | None = None,
        timeout: float | None = None,
        cancel_on_timeout: bool = False,
        wait_for_response: bool = True,
    ) -> AgentRunResponse[Any] | str:
        """Send a request and wait for the answer.

        Args:
            messages: A text, a content such as an image, a message, or a list of them.
            response_format: The type of `response.value`: a pydantic model, an attrs class, a dataclass, a TypedDict;
                or a JSON schema. An answer that does not fit goes back to the model once.
            thread: The conversation, or its id; a new one by default.
            session: Another name of `thread`.
            correlation_id: Names the turn; a new one by default. The same id gives the same answer, from one model
                call, however often and from wherever it is sent.
            options: Parameters of the model, by the provider's names.
            tool_choice: For the first model call: `auto`, `none`, `required`, or a tool's name.
            enable_tool_calls: False: the model is offered no tools.
            limits: What the turn may take at most. It can lower what is written for the agent, and not lift it;
                defaults it can.
            timeout: Seconds to wait, outages of the scheduler included; by default as long as it takes. The turn goes
                on when it is over.
            cancel_on_timeout: Makes `timeout` the turn's own deadline, kept by the scheduler whether or not this
                program lives: it is stopped then, and ends with `TurnDeadlineExceeded`. Where no worker is left to
                stop it, `TurnTimeout` is raised a while later.
            wait_for_response: False gives the correlation id as soon as the request is stored; the same `run()` with
                that id picks up the answer. See also `start`.

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
        where, request = self._request(
            messages,
            conversation(thread, session),
            correlation_id=correlation_id,
            response_format=response_format,
            options=options,
            tool_choice=tool_choice,
            enable_tool_calls=enable_tool_calls,
            limits=limits,
            deadline=deadline,
        )
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
    def run_stream(
        self,
        messages: Messages,
        *,
        thread: AgentThread | str | None = None,
        session: AgentThread | str | None = None,
        correlation_id: str | None = None,
        options: Mapping[str, Json] | None = None,
        tool_choice: str | None = None,
        enable_tool_calls: bool = True,
        limits: Limits | None = None,
        timeout: float | None = None,
        cancel_on_timeout: bool = False,
    ) -> TurnStream[None]: ...

    @overload
    def run_stream(
        self,
        messages: Messages,
        *,
        response_format: type[T],
        thread: AgentThread | str | None = None,
        session: AgentThread | str | None = None,
        correlation_id: str | None = None,
        options: Mapping[str, Json] | None = None,
        tool_choice: str | None = None,
        enable_tool_calls: bool = True,
        limits: Limits | None = None,
        timeout: float | None = None,
        cancel_on_timeout: bool = False,
    ) -> TurnStream[T]: ...

    @overload
    def run_stream(
        self,
        messages: Messages,
        *,
        response_format: Any,
        thread: AgentThread | str | None = None,
        session: AgentThread | str | None = None,
        correlation_id: str | None = None,
        options: Mapping[str, Json] | None = None,
        tool_choice: str | None = None,
        enable_tool_calls: bool = True,
        limits: Limits | None = None,
        timeout: float | None = None,
        cancel_on_timeout: bool = False,
    ) -> TurnStream[Any]: ...

    def run_stream(
        self,
        messages: Messages,
        *,
        response_format: Any = None,
        thread: AgentThread | str | None = None,
        session: AgentThread | str | None = None,
        correlation_id: str | None = None,
        options: Mapping[str, Json] | None = None,
        tool_choice: str | None = None,
        enable_tool_calls: bool = True,
        limits: Limits | None = None,
        timeout: float | None = None,
        cancel_on_timeout: bool = False,
    ) -> TurnStream[Any]:
        """Send a request, and follow its turn: use it with `async with`, and iterate; see `TurnStream`.

        The turn is started when the stream is opened. Leaving the stream cancels nothing.

        Args:
            messages: See `run`.
            response_format: See `run`.
            thread: The conversation, or its id; a new one by default.
            session: Another name of `thread`.
            correlation_id: Names the turn; a new one by default. The same id gives the same answer, from one model
                call, however often and from wherever it is sent.
            options: Parameters of the model, by the provider's names.
            tool_choice: For the first model call: `auto`, `none`, `required`, or a tool's name.
            enable_tool_calls: False: the model is offered no tools.
            limits: What the turn may take at most. It can lower what is written for the agent, and not lift it;
                defaults it can.
            timeout: Seconds for opening the stream, for its updates and for `response()` together, outages of the
                scheduler included; by default as long as it takes. The turn goes on when it is over.
            cancel_on_timeout: As of `run`.

        Raises:
            TypeError, ValueError: An argument is wrong; nothing was sent.
        """
        deadline = timeout if cancel_on_timeout else None
        where, request = self._request(
            messages,
            conversation(thread, session),
            correlation_id=correlation_id,
            response_format=response_format,
            options=options,
            tool_choice=tool_choice,
            enable_tool_calls=enable_tool_calls,
            limits=limits,
            deadline=deadline,
            stream=True,
        )
        start = functools.partial(self._executor.start, where, request)

        async def begin() -> AgentThread:
            await start()
            return where

        async def wait(_: AgentThread) -> AgentRunResponse[Any]:
            return await self._executor.wait(where, request.correlation_id, response_format, again=start)

        followed = Followed(
            executor=self._executor,
            agent=self.name,
            turn=request.correlation_id,
            begin=begin,
            wait=wait,
            timeout=timeout if deadline is None else deadline + self._executor.start_timeout,
        )
        turn = TurnHandle[Any](self._executor, self.name, request.correlation_id, where, response_format)
        return TurnStream(turn, Following(followed, None))

    @overload
    async def start(
        self,
        messages: Messages,
        *,
        thread: AgentThread | str | None = None,
        session: AgentThread | str | None = None,
        correlation_id: str | None = None,
        options: Mapping[str, Json] | None = None,
        tool_choice: str | None = None,
        enable_tool_calls: bool = True,
        limits: Limits | None = None,
        stream: bool = False,
        timeout: float | None = None,
    ) -> TurnHandle[None]: ...

    @overload
    async def start(
        self,
        messages: Messages,
        *,
        response_format: type[T],
        thread: AgentThread | str | None = None,
        session: AgentThread | str | None = None,
        correlation_id: str | None = None,
        options: Mapping[str, Json] | None = None,
        tool_choice: str | None = None,
        enable_tool_calls: bool = True,
        limits: Limits | None = None,
        stream: bool = False,
        timeout: float | None = None,
    ) -> TurnHandle[T]: ...

    @overload
    async def start(
        self,
        messages: Messages,
        *,
        response_format: Any,
        thread: AgentThread | str | None = None,
        session: AgentThread | str | None = None,
        correlation_id: str | None = None,
        options: Mapping[str, Json] | None = None,
        tool_choice: str | None = None,
        enable_tool_calls: bool = True,
        limits: Limits | None = None,
        stream: bool = False,
        timeout: float | None = None,
    ) -> TurnHandle[Any]: ...

    async def start(
        self,
        messages: Messages,
        *,
        response_format: Any = None,
        thread: AgentThread | str | None = None,
        session: AgentThread | str | None = None,
        correlation_id: str | None = None,
        options: Mapping[str, Json] | None = None,
        tool_choice: str | None = None,
        enable_tool_calls: bool = True,
        limits: Limits | None = None,
        stream: bool = False,
        timeout: float | None = None,
    ) -> TurnHandle[Any]:
        """Send a request, and get a handle: await it for the answer, ask it for the status, cancel the turn.

        Args:
            messages: See `run`.
            response_format: See `run`.
            thread: The conversation, or its id; a new one by default.
            session: Another name of `thread`.
            correlation_id: Names the turn; a new one by default. The same id gives the same answer, from one model
                call, however often and from wherever it is sent.
            options: Parameters of the model, by the provider's names.
            tool_choice: For the first model call: `auto`, `none`, `required`, or a tool's name.
            enable_tool_calls: False: the model is offered no tools.
            limits: What the turn may take at most. It can lower what is written for the agent, and not lift it;
                defaults it can.
            stream: Somebody will read the turn's updates: the model is asked for its words as it says them, if it can.
                A turn that nobody reads is better without.
            timeout: Seconds that the scheduler has to take it, outages included; by default as long as it takes.

        Raises:
            CorrelationConflict: The correlation id names another request.
            TurnTimeout: Not within `timeout`; the turn may have been started.
            SchedulerUnreachable: Nothing answers at the endpoint. Where `timeout` is over, nothing was sent.
            SchedulerRefused: It answers that it cannot; its disk is full, for example.
            TypeError, ValueError: An argument is wrong; nothing was sent.
        """
        where, request = self._request(
            messages,
            conversation(thread, session),
            correlation_id=correlation_id,
            response_format=response_format,
            options=options,
            tool_choice=tool_choice,
            enable_tool_calls=enable_tool_calls,
            limits=limits,
            deadline=None,
            stream=stream,
        )
        sent = Sent()
        with self._executor.bounded_turn(self.name, where, request.correlation_id, timeout, sent):
            await self._executor.start(where, request, sent)
        return TurnHandle(self._executor, self.name, request.correlation_id, where, response_format)

    @overload
    def get_turn(self, correlation_id: str) -> TurnHandle[None]: ...

    @overload
    def get_turn(self, correlation_id: str, *, response_format: type[T]) -> TurnHandle[T]: ...

    @overload
    def get_turn(self, correlation_id: str, *, response_format: Any) -> TurnHandle[Any]: ...

    def get_turn(self, correlation_id: str, *, response_format: Any = None) -> TurnHandle[Any]:
        """A turn that was started before, perhaps by another process."""
        return TurnHandle(self._executor, self.name, correlation_id, None, response_format)

    def _request(
        self,
        messages: Messages,
        thread: AgentThread | str | None,
        *,
        correlation_id: str | None,
        response_format: Any,
        options: Mapping[str, Json] | None,
        tool_choice: str | None,
        enable_tool_calls: bool,
        limits: Limits | None,
        deadline: float | None,
        stream: bool = False,
    ) -> tuple[AgentThread, RunRequest]:
        if deadline is not None and not deadline > 0:
            raise ValueError(f"`timeout` must be more than {deadline!r} seconds where it is the turn's own deadline")
        request = RunRequest(
            correlation_id=correlation_id or new_id(),
            messages=as_messages(messages),
            response_schema=None if response_format is None else json_schema(response_format),
            options=options or {},
            tool_choice=tool_choice,
            enable_tool_calls=enable_tool_calls,
            limits=limits,
            deadline=deadline,
            created_at=datetime.now(UTC),
            stream=stream,
        )
        check_correlation_id(request.correlation_id)
        return self.get_new_thread() if thread is None else thread_of(self.name, thread), request
