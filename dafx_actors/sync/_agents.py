"""An agent, for programs without an event loop: send it requests, read its threads, find its turns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeVar, overload

from dafx_actors.client import _handles as _async
from dafx_actors.client._proxies import DurableAIAgent as AsyncAgent
from dafx_actors.exchange import AgentRunResponse, Limits, Messages
from dafx_actors.ids import AgentThread
from dafx_actors.sync._calls import Caller
from dafx_actors.sync._handles import TurnHandle, TurnStream
from dafx_actors.transcript import Json, Transcript

T = TypeVar("T")


class DurableAIAgent:
    """An agent, as a client sees it. Each call waits in the thread that makes it; any thread may."""

    def __init__(self, caller: Caller, agent: AsyncAgent) -> None:
        self.name = agent.name
        self._caller = caller
        self._agent = agent

    def get_new_thread(self) -> AgentThread:
        """A new conversation. Nothing is stored until it is used."""
        return self._agent.get_new_thread()

    def get_thread(self, thread_id: str) -> AgentThread:
        """A conversation by its id (`str(thread)`), begun here or elsewhere.

        Raises:
            InvalidThreadId: It cannot be one.
        """
        return self._agent.get_thread(thread_id)

    def create_session(self, *, session_id: str | None = None) -> AgentThread:
        """A conversation, new or by its id: what the peer's users call a session is a thread here.

        Raises:
            InvalidThreadId: It cannot be one.
        """
        return self._agent.create_session(session_id=session_id)

    def get_transcript(self, thread: AgentThread | str, *, timeout: float | None = None) -> Transcript:
        """The transcript of a thread; it is empty if the thread has not been used.

        Args:
            thread: The thread, or its id.
            timeout: Seconds to wait, outages of the scheduler included; by default as long as it takes.

        Raises:
            UnsupportedTranscript: It was stored by a newer version.
            SchedulerUnreachable: Nothing answers, or not within `timeout`.
        """
        return self._caller.call(self._agent.get_transcript, thread, timeout=timeout)

    @overload
    def run(
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
    def run(
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
    def run(
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
    def run(
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

    def run(
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
        """Send a request and wait for the answer. Interrupted, as by Ctrl+C, it leaves the turn to itself.

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
            LoopWouldBlock: An event loop runs in this thread; nothing was sent.
            TypeError, ValueError: An argument is wrong; nothing was sent.
        """
        run: Any = self._agent.run
        answer: AgentRunResponse[Any] | str = self._caller.call(
            run,
            messages,
            response_format=response_format,
            thread=thread,
            session=session,
            correlation_id=correlation_id,
            options=options,
            tool_choice=tool_choice,
            enable_tool_calls=enable_tool_calls,
            limits=limits,
            timeout=timeout,
            cancel_on_timeout=cancel_on_timeout,
            wait_for_response=wait_for_response,
        )
        return answer

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
        """Send a request, and follow its turn: use it with `with`, and iterate; see `TurnStream`.

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
        stream: Any = self._agent.run_stream
        opened: _async.TurnStream[Any] = stream(
            messages,
            response_format=response_format,
            thread=thread,
            session=session,
            correlation_id=correlation_id,
            options=options,
            tool_choice=tool_choice,
            enable_tool_calls=enable_tool_calls,
            limits=limits,
            timeout=timeout,
            cancel_on_timeout=cancel_on_timeout,
        )
        return TurnStream(self._caller, opened)

    @overload
    def start(
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
    def start(
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
    def start(
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

    def start(
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
        """Send a request, and get a handle: ask it for the answer, or the status, or cancel the turn.

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
            LoopWouldBlock: An event loop runs in this thread; nothing was sent.
            TypeError, ValueError: An argument is wrong; nothing was sent.
        """
        start: Any = self._agent.start
        turn: _async.TurnHandle[Any] = self._caller.call(
            start,
            messages,
            response_format=response_format,
            thread=thread,
            session=session,
            correlation_id=correlation_id,
            options=options,
            tool_choice=tool_choice,
            enable_tool_calls=enable_tool_calls,
            limits=limits,
            stream=stream,
            timeout=timeout,
        )
        return TurnHandle(self._caller, turn)

    @overload
    def get_turn(self, correlation_id: str) -> TurnHandle[None]: ...

    @overload
    def get_turn(self, correlation_id: str, *, response_format: type[T]) -> TurnHandle[T]: ...

    @overload
    def get_turn(self, correlation_id: str, *, response_format: Any) -> TurnHandle[Any]: ...

    def get_turn(self, correlation_id: str, *, response_format: Any = None) -> TurnHandle[Any]:
        """A turn that was started before, perhaps by another process."""
        return TurnHandle(self._caller, self._agent.get_turn(correlation_id, response_format=response_format))
