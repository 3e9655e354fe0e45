"""Agents inside an orchestration: their turns as tasks, and how typed errors get out of an orchestration."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Generic, TypeVar, overload

import attrs
from durabletask import task

from dafx_actors._durable.private import history_here
from dafx_actors._json import peer as _peer_forms
from dafx_actors._json.answers import answer
from dafx_actors._json.books import CancelMark
from dafx_actors._json.crossing import CrossingError, crossed, crosses
from dafx_actors._json.operations import Cancel
from dafx_actors._json.steps import Listener, TurnInput
from dafx_actors._json.values import json_schema
from dafx_actors._raised import safe
from dafx_actors.errors import AgentNotHosted, DafxError, TurnTimeout, UnsupportedByPeer
from dafx_actors.exchange import AgentRunResponse, Limits, Messages, RunRequest, as_messages
from dafx_actors.ids import AgentThread, agent_of_turn, check_correlation_id, conversation, thread_of, turn_name
from dafx_actors.orchestration._coroutines import DurableTask, hosted_here, when_complete
from dafx_actors.transcript import Json

T = TypeVar("T")

_CANCEL = "cancel"
"""The event by which a turn hears that it is cancelled."""


def _was_sent(turn_id: str) -> bool:
    """Say whether the orchestration had told a turn before that it is cancelled, by its history."""
    return any(
        event.HasField("eventSent") and (event.eventSent.instanceId, event.eventSent.name) == (turn_id, _CANCEL)
        for event in history_here()
    )


def recordable(error: BaseException) -> Exception:
    """Make of an error what leaves an orchestration: typed where possible, and such that it can be recorded.

    Raise it where no other error is being handled; see `_raised.safe`.
    """
    if isinstance(error, CrossingError):
        return error
    return CrossingError(error) if crosses(error) else safe(error)


class DurableAgentTask(DurableTask[AgentRunResponse[T]], Generic[T]):
    """An agent's turn, which completes with its `AgentRunResponse` or fails with the typed error it ended with."""

    def __init__(
        self,
        turn: task.Task[Any],
        thread: AgentThread,
        response_format: Any,
        stored: Callable[[Json], Json] = lambda raw: raw,
        cancel: Callable[[], bool] = lambda: False,
    ) -> None:
        super().__init__()
        self.thread = thread
        self._cancel = cancel
        self.follow(turn, lambda raw: answer(stored(raw), thread, response_format), crossed)

    def give_up(
        self, timer: task.Task[Any], why: Callable[[], DafxError], *, unless: task.Task[Any] | None = None
    ) -> None:
        """Fail with what `why` gives when `timer` completes before the turn has, and before `unless` has."""

        def too_late() -> None:
            if not (self.is_complete or (unless is not None and unless.is_complete)):
                self.fail_with(why())

        when_complete(timer, too_late)

    def cancel(self) -> bool:
        """Cancel the turn; whoever awaits the task gets durabletask's `TaskCancelledError`, at once.

        None of the turn's tools begins to act once its thread has heard of it, which is when this episode of the
        orchestration has been recorded. The turn ends with `TurnCancelled`. A coroutine that is given up cancels the
        turns that it waits for.

        Returns:
            False where it has ended, or cannot be cancelled: a turn of the peer's, and one that an orchestration of an
            earlier version left to itself, when that is replayed.
        """
        if self.is_complete or not self._cancel():
            return False
        self.fail_with(task.TaskCancelledError(f"the turn in thread {self.thread} was cancelled"))
        return True

    def _take_over(
        self, child: task.Task[Any], convert: Callable[[Any], Any], explain: Callable[[Exception], Exception]
    ) -> None:
        if not self.is_complete:  # else it was given up, and this is the end of what was withdrawn
            super()._take_over(child, convert, explain)


class OrchestrationAgentExecutor:
    """Runs agents inside an orchestration: as tasks, where a client's proxy would wait."""

    def __init__(self, context: task.OrchestrationContext, *, hosted_by_peer: bool = False) -> None:
        self._context = context
        self._hosted_by_peer = hosted_by_peer

    def run(
        self,
        agent: str,
        messages: Messages,
        *,
        thread: AgentThread | str | None = None,
        response_format: Any = None,
        correlation_id: str | None = None,
        options: Mapping[str, Json] | None = None,
        tool_choice: str | None = None,
        enable_tool_calls: bool = True,
        limits: Limits | None = None,
        timeout: float | None = None,
        cancel_on_timeout: bool = False,
        start_timeout: float | None = None,
    ) -> DurableAgentTask[Any]:
        """Start a turn of `agent`, in a new thread unless one is given.

        Raises:
            TypeError, ValueError: `messages` are none, `thread` is not the agent's, or an argument is wrong.
            ValueMismatch: `response_format` has no JSON schema.
            UnsupportedByPeer: The peer hosts the agent, and cannot take this.
        """
        if timeout is not None and not timeout > 0:
            raise ValueError(f"`timeout` must be more than {timeout!r} seconds")
        request = RunRequest(
            correlation_id=correlation_id or self._context.new_uuid(),
            messages=as_messages(messages),
            response_schema=None if response_format is None else json_schema(response_format),
            options=options or {},
            tool_choice=tool_choice,
            enable_tool_calls=enable_tool_calls,
            limits=limits,
            deadline=timeout if cancel_on_timeout else None,
            created_at=in_utc(self._context.current_utc_datetime),
            orchestration_id=self._context.instance_id,
        )
        check_correlation_id(request.correlation_id)
        where = self.new_thread(agent) if thread is None else thread_of(agent, thread)
        durable = self._start(where, request, response_format, start_timeout)
        if timeout is not None and not cancel_on_timeout:
            late = TurnTimeout(agent, where.thread_id, request.correlation_id, timeout)
            timer: task.Task[Any] = self._context.create_timer(timedelta(seconds=timeout))
            durable.give_up(timer, lambda: late)
        return durable

    def _start(
        self, where: AgentThread, request: RunRequest, response_format: Any, start_timeout: float | None
    ) -> DurableAgentTask[Any]:
        turn: task.Task[Any]
        agent = where.agent
        if self._hosted_by_peer:
            if start_timeout is not None:
                raise UnsupportedByPeer(agent, "say that it has begun with a turn (`start_timeout`)")
            turn = self._context.call_entity(where.entity_id, "run", _peer_forms.dump_for_peer(agent, request))
            stored = functools.partial(_peer_forms.load_agent_response, correlation_id=request.correlation_id)
            return DurableAgentTask(turn, where, response_format, stored)
        sent = TurnInput(thread_id=where.thread_id, request=request)
        if start_timeout is None:
            turn = self._context.call_sub_orchestrator(
                turn_name(agent), input=sent.dump(), instance_id=request.correlation_id
            )
            cancel = functools.partial(self._cancel, where, request.correlation_id, "the orchestration gave it up")
            return DurableAgentTask(turn, where, response_format, cancel=cancel)
        return self._run_in_time(where, request.correlation_id, sent, response_format, start_timeout)

    def _run_in_time(
        self, where: AgentThread, turn_id: str, sent: TurnInput, response_format: Any, seconds: float
    ) -> DurableAgentTask[Any]:
        """A turn that is withdrawn unless a worker takes it in time: it tells when one has."""
        event = f"dafx.begun.{turn_id}"
        sent = attrs.evolve(sent, listener=Listener(self._context.instance_id, event))
        taken: task.Task[Any] = self._context.wait_for_external_event(event)
        turn: task.Task[Any] = self._context.call_sub_orchestrator(
            turn_name(where.agent), input=sent.dump(), instance_id=turn_id
        )
        timer: task.Task[Any] = self._context.create_timer(timedelta(seconds=seconds))

        def withdraw() -> DafxError:
            self._tell_cancelled(where, turn_id, f"no worker took the turn within {seconds:g} s")
            beside = sorted(filter(None, map(agent_of_turn, hosted_here())))
            return AgentNotHosted(where.agent, "", "", seconds, beside=beside)

        cancel = functools.partial(self._cancel, where, turn_id, "the orchestration gave it up")
        durable = DurableAgentTask[Any](turn, where, response_format, cancel=cancel)
        durable.give_up(timer, withdraw, unless=taken)
        return durable

    def _cancel(self, where: AgentThread, turn_id: str, reason: str) -> bool:
        """Cancel a turn; False where the history says that this was not done the first time.

        Earlier versions left turns to themselves: an orchestration that one of them began is replayed as it went.
        """
        if self._context.is_replaying and not _was_sent(turn_id):
            return False
        self._tell_cancelled(where, turn_id, reason)
        return True

    def _tell_cancelled(self, where: AgentThread, turn_id: str, reason: str) -> None:
        # The mark is in the thread's mailbox before the turn's own `begin`, and the event in the turn's before all
        # else: whichever worker comes one day, it finds a turn that was cancelled.
        cancel = Cancel(turn=turn_id, mark=CancelMark.of(by=self._context.instance_id, reason=reason))
        self._context.signal_entity(where.entity_id, cancel.operation, cancel.dump())
        self._context.send_event(turn_id, _CANCEL, data=dict(cancel.mark.raw))

    def new_thread(self, agent: str) -> AgentThread:
        """A new thread of `agent`, the same at every replay."""
        return AgentThread(agent, self._context.new_uuid())


class OrchestrationAgent:
    """An agent, as an orchestration sees it."""

    def __init__(self, name: str, executor: OrchestrationAgentExecutor) -> None:
        self.name = name
        self._executor = executor

    def get_new_thread(self) -> AgentThread:
        """A new conversation."""
        return self._executor.new_thread(self.name)

    def get_thread(self, thread_id: str) -> AgentThread:
        """A conversation by its id.

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
        start_timeout: float | None = None,
    ) -> DurableAgentTask[None]: ...

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
        start_timeout: float | None = None,
    ) -> DurableAgentTask[T]: ...

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
        start_timeout: float | None = None,
    ) -> DurableAgentTask[Any]: ...

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
        start_timeout: float | None = None,
    ) -> DurableAgentTask[Any]:
        """Send a request to the agent; await the task for its answer, or wait for several at once.

        Args:
            messages: A text, a content, a message, or a list of them.
            response_format: The type of `response.value`: a pydantic model, an attrs class, a dataclass, a TypedDict;
                or a JSON schema.
            thread: The conversation, or its id; a new one by default.
            session: Another name of `thread`.
            correlation_id: Names the turn; a new one by default. The same id gives the same answer, from one model
                call, however often and from wherever it is sent; the same at every replay, of course.
            options: Parameters of the model, by the provider's names.
            tool_choice: For the first model call: `auto`, `none`, `required`, or a tool's name.
            enable_tool_calls: False: the model is offered no tools.
            limits: What the turn may take at most. It can lower what is written for the agent, and not lift it;
                defaults it can.
            timeout: Seconds to wait, by a durable timer; then the task fails with `TurnTimeout`, and the turn goes on.
            cancel_on_timeout: Makes `timeout` the turn's own deadline: it is stopped then, and ends with
                `TurnDeadlineExceeded`.
            start_timeout: Seconds in which a worker is to take the turn, by a durable timer; else it is withdrawn and
                the task fails with `AgentNotHosted`. By default it waits for a worker as long as it takes.

        Raises:
            UnsupportedByPeer: The agent is one that the peer hosts, which cannot do this.
            TypeError, ValueError: `messages` are none, `thread` is not the agent's, `response_format` has no JSON
                schema, or another argument is wrong.
        """
        return self._executor.run(
            self.name,
            messages,
            thread=conversation(thread, session),
            response_format=response_format,
            correlation_id=correlation_id,
            options=options,
            tool_choice=tool_choice,
            enable_tool_calls=enable_tool_calls,
            limits=limits,
            timeout=timeout,
            cancel_on_timeout=cancel_on_timeout,
            start_timeout=start_timeout,
        )


def in_utc(moment: datetime) -> datetime:
    """A time of durabletask's, which are in UTC and do not say so."""
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
