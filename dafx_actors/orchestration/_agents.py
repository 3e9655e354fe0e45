"""Agents inside an orchestration: their turns as tasks, and how typed errors get out of an orchestration."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta, timezone
from typing import Any, Generic, TypeVar, overload

import attrs
from durabletask import task

from dafx_actors._json import messages as _codec
from dafx_actors._json import peer as _peer_forms
from dafx_actors._json.answers import answer_mismatch, values_in
from dafx_actors._json.schema_limits import look
from dafx_actors._json.shapes import MOST_LEVELS, as_object, check_json
from dafx_actors._json.values import json_schema, load_value
from dafx_actors._raised import safe
from dafx_actors._rules.tree import Caller, dump_callers
from dafx_actors.errors import AgentNotHosted, DafxError, InvalidAnswer, UnsupportedByPeer, ValueMismatch
from dafx_actors.exchange import AgentRunResponse, Messages, RunRequest, as_messages
from dafx_actors.ids import AgentThread, call_key, earlier_call_key, thread_of, turn_name
from dafx_actors.orchestration._coroutines import DurableTask, when_complete
from dafx_actors.transcript import Json

T = TypeVar("T")

FORM = 3
"""In which a turn's orchestration goes, on record in its input: what began under an older one goes on under that.

0: turns of versions that wrote none. 1: a turn looks after names that nobody hosts, and says that it has begun.
2: see `OF_THE_TREE`. 3: see `SHORT_QUESTIONS`.
"""
OF_THE_TREE = 2
"""From this form on, limits and cancels are of the whole tree of agents, a request cannot lift what an agent's author
wrote, and the keys of calls are hashes."""
SHORT_QUESTIONS = 3
"""From this form on, a turn that waits in line asks its thread without its request, if that is large; and a source of
tools that is down is tried again as a model is."""

_KINDS = {"object": dict, "array": list, "string": str, "integer": int, "number": float, "boolean": bool}
"""What an answer must be at least where a JSON schema was asked for; the model's provider holds it to the rest."""


class CrossingError(Exception):
    """Carries a typed error out of an orchestration: its text is the error as JSON (durabletask keeps a text only)."""

    def __init__(self, error: DafxError, spent: Json = None) -> None:
        """Say it.

        Args:
            error: The error.
            spent: What the turn took that ended with it, for the turn above it; see `_tree.Spent`.
        """
        super().__init__(json.dumps({**_codec.dump_error(error), **({"spent": spent} if spent else {})}))


def told(error: BaseException) -> Exception:
    """An error as it is told outside: typed where that is possible, and always so that durabletask can record it.

    Raise it where no other error is being handled; see `_raised.safe`.
    """
    if isinstance(error, CrossingError):
        return error
    return CrossingError(error) if _codec.crosses(error) else safe(error)


def crossed(error: Exception) -> Exception:
    """The typed error that another orchestration ended with, or what durabletask made of it."""
    if not isinstance(error, task.TaskFailedError):
        return error
    inner = error.details.inner_failure  # where an operation of an entity failed, the error is in there
    said = [error.details.message, *([inner.message] if inner else [])]
    return next(filter(None, map(_codec.load_error, said)), error)


TELL_BEGUN = "tellBegun"
"""In a turn's input: the `orchestration` that is to be told, by an `event`, when a worker has taken the turn."""


class DurableAgentTask(DurableTask[AgentRunResponse[T]], Generic[T]):
    """An agent's turn, which completes with its `AgentRunResponse` or fails with the typed error it ended with."""

    def __init__(
        self,
        turn: task.Task[Any],
        thread: AgentThread,
        response_format: Any,
        stored: Callable[[Json], Json] = lambda raw: raw,
    ) -> None:
        super().__init__()
        self.thread = thread
        self.follow(turn, lambda raw: answer(stored(raw), thread, response_format), crossed)

    def give_up(self, begun: task.Task[Any], timer: task.Task[Any], withdraw: Callable[[], DafxError]) -> None:
        """Withdraw the turn when `timer` completes before it has begun, and fail with what `withdraw` gives."""

        def too_late() -> None:
            if not (self.is_complete or begun.is_complete):
                self.fail_with(withdraw())

        when_complete(timer, too_late)

    def _take_over(
        self, child: task.Task[Any], convert: Callable[[Any], Any], explain: Callable[[Exception], Exception]
    ) -> None:
        if not self.is_complete:  # else it was given up, and this is the end of what was withdrawn
            super()._take_over(child, convert, explain)


def answer(raw: Json, thread: AgentThread, response_format: Any) -> AgentRunResponse[Any]:
    """What a turn gave, with its value where one was asked for.

    Raises:
        InvalidAnswer: The text does not fit `response_format`.
        TurnError: The turn had ended with this error.
    """
    response = _codec.load_response(raw, thread)
    if response_format is None:
        return response
    annotation = response_format
    if isinstance(response_format, Mapping):
        annotation = _KINDS.get(str(as_object(response_format).get("type")), Any)
    try:
        values = list(values_in(response.text))
    except ValueError as error:
        raise InvalidAnswer(response.text, f"it is not JSON ({error})") from error
    schema: Mapping[str, Json] = as_object(response_format) if isinstance(response_format, Mapping) else {}
    if schema and len(values) > 1 and not look(schema).may_be_slow:
        # The one that the worker took; a single one is taken as it is.
        values = [value for value in values if answer_mismatch(json.dumps(value), schema) is None] or values
    mismatches: list[ValueMismatch] = []
    for value in values:
        try:
            return attrs.evolve(response, value=load_value(value, annotation))
        except ValueMismatch as error:  # noqa: PERF203 - there are few
            mismatches.append(error)
    raise InvalidAnswer(response.text, str(mismatches[0])) from mismatches[0]


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
        options: Mapping[str, Json] | None = None,
        start_timeout: float | None = None,
    ) -> DurableAgentTask[Any]:
        """Start a turn of `agent`, in a new thread unless one is given.

        Raises:
            TypeError, ValueError: `messages` are none, or `thread` is not the agent's.
            ValueMismatch: `response_format` has no JSON schema.
            UnsupportedByPeer: The peer hosts the agent, and cannot take this.
        """
        request = RunRequest(
            correlation_id=self._context.new_uuid(),
            messages=as_messages(messages),
            response_schema=None if response_format is None else json_schema(response_format),
            options=options or {},
            created_at=in_utc(self._context.current_utc_datetime),
            orchestration_id=self._context.instance_id,
        )
        where = self.new_thread(agent) if thread is None else thread_of(agent, thread)
        turn: task.Task[Any]
        if self._hosted_by_peer:
            if start_timeout is not None:
                raise UnsupportedByPeer(agent, "say that it has begun with a turn (`start_timeout`)")
            turn = self._context.call_entity(where.entity_id, "run", _peer_forms.dump_for_peer(agent, request))
            stored = functools.partial(_peer_forms.load_agent_response, correlation_id=request.correlation_id)
            return DurableAgentTask(turn, where, response_format, stored)
        sent = turn_input(where, request)
        if start_timeout is None:
            turn = self._context.call_sub_orchestrator(turn_name(agent), input=sent, instance_id=request.correlation_id)
            return DurableAgentTask(turn, where, response_format)
        return self._run_in_time(where, request.correlation_id, sent, response_format, start_timeout)

    def _run_in_time(
        self, where: AgentThread, turn_id: str, sent: dict[str, Json], response_format: Any, seconds: float
    ) -> DurableAgentTask[Any]:
        """A turn that is withdrawn unless a worker takes it in time: it tells when one has."""
        event = f"dafx.begun.{turn_id}"
        sent = {**sent, TELL_BEGUN: {"orchestration": self._context.instance_id, "event": event}}
        begun: task.Task[Any] = self._context.wait_for_external_event(event)
        turn: task.Task[Any] = self._context.call_sub_orchestrator(
            turn_name(where.agent), input=sent, instance_id=turn_id
        )
        timer: task.Task[Any] = self._context.create_timer(timedelta(seconds=seconds))

        def withdraw() -> DafxError:
            # The mark is in the thread's mailbox before the turn's own `begin`, and the event in the turn's before all
            # else: whichever worker comes one day, it finds a turn that was cancelled.
            mark = {"by": self._context.instance_id, "reason": f"no worker took the turn within {seconds:g} s"}
            self._context.signal_entity(where.entity_id, "cancel", {"correlationId": turn_id, "mark": mark})
            self._context.send_event(turn_id, "cancel", data=mark)
            return AgentNotHosted(where.agent, "", "", seconds)

        durable = DurableAgentTask[Any](turn, where, response_format)
        durable.give_up(begun, timer, withdraw)
        return durable

    def new_thread(self, agent: str) -> AgentThread:
        """A new thread of `agent`, the same at every replay."""
        return AgentThread(agent, self._context.new_uuid())


def turn_input(thread: AgentThread, request: RunRequest, callers: Sequence[Caller] = ()) -> dict[str, Json]:
    """The input of a turn's orchestration.

    Args:
        thread: Its thread.
        request: What it is to answer.
        callers: The turns that wait for it, from the first, where it is that of an agent used as a tool. Beside the
            request, which the peer may get.

    Raises:
        ValueMismatch: JSON cannot hold something in it.
    """
    sent = _codec.dump_request(request)
    try:
        check_json(sent, 2 * MOST_LEVELS)
    except ValueError as error:
        raise ValueMismatch(f"the request cannot be sent: {error}") from error
    above = {"callers": dump_callers(callers)} if callers else {}
    return {"thread": thread.thread_id, "request": sent, "eager": True, "form": FORM, **above}


def keys_of(thread: AgentThread, turn: str, form: int) -> Callable[[int, int], str]:
    """Names the tool calls of a turn that goes in this form; see `_turn.KeyOf`."""
    if form < OF_THE_TREE:
        return functools.partial(earlier_call_key, turn)
    return functools.partial(call_key, thread, turn)


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

    @overload
    def run(
        self,
        messages: Messages,
        *,
        thread: AgentThread | str | None = None,
        options: Mapping[str, Json] | None = None,
        start_timeout: float | None = None,
    ) -> DurableAgentTask[None]: ...

    @overload
    def run(
        self,
        messages: Messages,
        *,
        thread: AgentThread | str | None = None,
        response_format: type[T],
        options: Mapping[str, Json] | None = None,
        start_timeout: float | None = None,
    ) -> DurableAgentTask[T]: ...

    @overload
    def run(
        self,
        messages: Messages,
        *,
        thread: AgentThread | str | None = None,
        response_format: Any,
        options: Mapping[str, Json] | None = None,
        start_timeout: float | None = None,
    ) -> DurableAgentTask[Any]: ...

    def run(
        self,
        messages: Messages,
        *,
        thread: AgentThread | str | None = None,
        response_format: Any = None,
        options: Mapping[str, Json] | None = None,
        start_timeout: float | None = None,
    ) -> DurableAgentTask[Any]:
        """Send a request to the agent; await the task for its answer, or wait for several at once.

        Args:
            messages: A text, a content, a message, or a list of them.
            thread: The conversation, or its id; a new one by default.
            response_format: The type of `response.value`: a pydantic model, an attrs class, a dataclass, a TypedDict;
                or a JSON schema.
            options: Parameters of the model, by the provider's names.
            start_timeout: Seconds in which a worker is to take the turn, by a durable timer; else it is withdrawn and
                the task fails with `AgentNotHosted`. By default it waits for a worker as long as it takes.

        Raises:
            UnsupportedByPeer: `start_timeout`, of an agent that the peer hosts.
            TypeError, ValueError: `messages` are none, `thread` is not the agent's, or `response_format` has no JSON
                schema.
        """
        return self._executor.run(
            self.name,
            messages,
            thread=thread,
            response_format=response_format,
            options=options,
            start_timeout=start_timeout,
        )


def in_utc(moment: datetime) -> datetime:
    """A time of durabletask's, which are in UTC and do not say so."""
    return moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)
