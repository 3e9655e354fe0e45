"""What a worker does for an agent: its thread entity, its turn orchestration, its activities.

::

    client.run --start--> turn: call_entity(thread, begin)     -> granted | queued | answered
                                call_activity(model step)      -> reply
                                call_entity(thread, commit)    -> response; wakes the next turn in line

The rules are in `_thread.py` and `_turn.py`; here they are carried out. Activities and entities of durabletask are
plain functions on threads of its pool; `Host` is how they reach the loop where agents run, and the scheduler.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta, timezone
from typing import Any, Protocol, cast

import attrs
from durabletask import task
from durabletask.client import OrchestrationState, OrchestrationStatus, TaskHubGrpcClient
from durabletask.entities import EntityContext

from dafx_actors import _codec, _thread, _turn
from dafx_actors._coroutines import when_any
from dafx_actors.agents import Agent, Turn
from dafx_actors.errors import DafxError, StaleTranscript, ThreadBusy, TurnFailed, TurnTerminated
from dafx_actors.exchange import RunRequest
from dafx_actors.ids import AgentThread, model_step_name, probe_name, turn_name
from dafx_actors.models import Model, ModelReply, ModelRequest
from dafx_actors.orchestration import DurableTask, OrchestrationContext, orchestrator
from dafx_actors.transcript import ChatMessage, Json, Request, Transcript

_logger = logging.getLogger("dafx_actors.worker")

_GRANTED = "granted"
_FIRST_LOOK = timedelta(seconds=1)
_LONGEST_PAUSE = timedelta(minutes=5)
_ENDED = {OrchestrationStatus.COMPLETED, OrchestrationStatus.FAILED, OrchestrationStatus.TERMINATED}


class Host(Protocol):
    """What the worker lends to its agents."""

    @property
    def reader(self) -> TaskHubGrpcClient:
        """A client to read threads and turns with, from any thread."""
        ...

    def run_step(self, step: Callable[[], Any]) -> Any:
        """Run a coroutine function on the agents' loop, and wait for it on this thread."""
        ...

    def model_of(self, agent: Agent) -> Model:
        """The model of an agent, made when it is first asked for.

        Raises:
            ConfigurationError: None is configured.
        """
        ...


@attrs.frozen
class HostedAgent:
    """An agent on a worker."""

    agent: Agent
    host: Host

    @property
    def functions(self) -> Mapping[str, Callable[..., Any]]:
        """The activities, by their names."""
        return {model_step_name(self.agent.name): self.model_step, probe_name(self.agent.name): self.probe}

    # --- The thread entity ----------------------------------------------------------------------------------------

    def entity(self, context: EntityContext, raw: Json) -> Json:
        """One operation of a thread. Refusals are values: durabletask keeps only a text of what is raised."""
        thread = AgentThread(self.agent.name, context.entity_id.key)
        operation = _OPERATIONS.get(context.operation)
        if operation is None:
            raise ValueError(f"threads have no operation {context.operation!r}; they have {', '.join(_OPERATIONS)}")
        try:
            return operation(self, context, thread, raw)
        except DafxError as error:
            return {"error": _codec.dump_error(error)}

    def change(self, context: EntityContext, thread: AgentThread, raw: Json, decide: Decision) -> Json:
        """Let the rules decide, and store what they say."""
        state = _thread.load(context.get_state())
        changed, outcome = decide(state, thread, raw, datetime.now(timezone.utc))
        if changed is not state:
            context.set_state(_thread.dump(changed))
        return _OUTCOMES[type(outcome)](outcome)

    def run(self, context: EntityContext, thread: AgentThread, raw: Json) -> Json:
        """A whole turn in one operation, for `durability="turn"` and for the peer's callers, which send this.

        A signal (nobody waits) starts the turn's orchestration instead. While another turn is active this one fails at
        once: the operation cannot wait for it without stopping the thread.
        """
        request = _codec.load_request(raw)
        if request.orchestration_id is None:
            sent = {"thread": thread.thread_id, "request": _codec.dump_request(request)}
            context.schedule_new_orchestration(turn_name(thread.agent), sent, request.correlation_id)
            return None
        state, outcome = _thread.begin(_thread.load(context.get_state()), request, datetime.now(timezone.utc))
        if isinstance(outcome, _thread.Queued):
            raise ThreadBusy(thread.agent, thread.thread_id, outcome.active)
        if isinstance(outcome, _thread.Granted):
            transcript = _codec.load_transcript(_thread.dump(state))
            result = self.host.run_step(lambda: self._reply(thread, request, transcript))
            state, outcome = _concluded(state, thread, request.correlation_id, result)
            context.set_state(_thread.dump(state))
        if isinstance(outcome, _thread.Refused):
            raise outcome.error
        return cast("_thread.Ended", outcome).response

    # --- The turn -------------------------------------------------------------------------------------------------

    def turn(self) -> Callable[..., Any]:
        """The turn's orchestration."""
        name, by_turn = self.agent.name, self.agent.definition.durability == "turn"

        async def turn(context: OrchestrationContext, raw: Json) -> Json:
            thread = AgentThread(name, raw["thread"])
            steps = _TurnSteps(context, thread, _codec.load_request(raw["request"]))
            response: Json = await (steps.in_one_operation() if by_turn else steps.step_by_step())
            _codec.load_response(response, thread)  # raises the error that the response holds, if it does
            return response

        turn.__name__ = turn.__qualname__ = turn_name(name)
        return orchestrator(turn)

    # --- Activities -----------------------------------------------------------------------------------------------

    def model_step(self, _: task.ActivityContext, raw: Json) -> Json:
        """A model call of a turn, as a value: the reply, or the error."""
        thread, turn = AgentThread(self.agent.name, raw["thread"]), raw["correlationId"]
        try:
            transcript = self._read(thread, turn, raw["length"])
        except DafxError as error:
            return {"error": _codec.dump_error(error)}
        request = _request_of(transcript, turn, raw.get("options") or {})
        return self.host.run_step(lambda: self._reply(thread, request, transcript))

    def probe(self, _: task.ActivityContext, raw: Json) -> Json:
        """What became of another turn: `alive`, or ended, with what it gave."""
        state = self.host.reader.get_orchestration_state(raw["correlationId"])
        if state is not None and state.runtime_status not in _ENDED:
            return {"alive": True}
        completed = state is not None and state.runtime_status is OrchestrationStatus.COMPLETED
        return {"alive": False, "response": cast("OrchestrationState", state).get_output() if completed else None}

    def _read(self, thread: AgentThread, turn: str, length: int) -> Transcript:
        """The thread with at least what the turn had recorded; a scheduler may answer with older state for a while."""
        found = 0
        for pause in (0.0, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6):
            time.sleep(pause)
            entity = self.host.reader.get_entity(thread.entity_id)
            document = entity.get_typed_state() if entity else None
            state = _thread.load(document)
            if (found := state.length) >= length and state.active == turn:
                return _codec.load_transcript(document)
        raise StaleTranscript(thread.thread_id, length, found)

    async def _reply(self, thread: AgentThread, request: RunRequest, transcript: Transcript) -> Json:
        """Ask the agent's code or model. Whatever it raises is the outcome of the step, and not of the worker."""
        try:
            reply = await self._ask(thread, request, transcript)
            return {
                "message": _codec.dump_message(reply.message),
                "usage": _codec.dump_usage(reply.usage) if reply.usage else None,
                "finishReason": reply.finish_reason,
            }
        except Exception as error:
            if _codec.crosses(error):
                return {"error": _codec.dump_error(error)}
            _logger.exception("Turn %s of agent %s failed.", request.correlation_id, thread.agent)
            failed = TurnFailed(thread.agent, request.correlation_id, type(error).__name__, str(error))
            return {"error": _codec.dump_error(failed)}

    async def _ask(self, thread: AgentThread, request: RunRequest, transcript: Transcript) -> ModelReply:
        async def complete(asked: ModelRequest) -> ModelReply:
            options = {**self.agent.definition.options, **asked.options}
            return await self.host.model_of(self.agent).complete(attrs.evolve(asked, options=options))

        conversation = _turn.conversation(transcript, request.correlation_id)
        turn = Turn(thread=thread, request=request, transcript=transcript, messages=conversation, complete=complete)
        instructions = await self.agent.instructions(turn)
        if instructions:
            turn = attrs.evolve(turn, messages=(ChatMessage("system", instructions), *conversation))
        return await self.agent.respond(turn)


# --- Operations of a thread: JSON to a decision, and its outcome to JSON ------------------------------------------

Decision = Callable[[_thread.ThreadState, AgentThread, Json, datetime], "tuple[_thread.ThreadState, _thread.Outcome]"]
Operation = Callable[[HostedAgent, EntityContext, AgentThread, Json], Json]


def _begin(
    state: _thread.ThreadState, _: AgentThread, raw: Json, now: datetime
) -> tuple[_thread.ThreadState, _thread.Outcome]:
    return _thread.begin(state, _codec.load_request(raw), now)


def _record(
    state: _thread.ThreadState, thread: AgentThread, raw: Json, _: datetime
) -> tuple[_thread.ThreadState, _thread.Outcome]:
    return _thread.record(state, thread, raw["correlationId"], _codec.load_messages(raw["messages"]), raw["length"])


def _commit(
    state: _thread.ThreadState, thread: AgentThread, raw: Json, now: datetime
) -> tuple[_thread.ThreadState, _thread.Outcome]:
    messages, usage = _codec.load_messages(raw["messages"]), _codec.load_usage(raw.get("usage"))
    return _thread.commit(state, thread, raw["correlationId"], messages, usage, now, whole=bool(raw.get("whole")))


def _abort(
    state: _thread.ThreadState, thread: AgentThread, raw: Json, now: datetime
) -> tuple[_thread.ThreadState, _thread.Outcome]:
    return _thread.abort(state, thread, raw["correlationId"], _error_in(raw, thread), now)


def _changing(decide: Decision) -> Operation:
    return lambda hosted, context, thread, raw: hosted.change(context, thread, raw, decide)


def _reset(_: HostedAgent, context: EntityContext, __: AgentThread, ___: Json) -> Json:
    context.set_state(_thread.dump(_thread.reset(_thread.load(context.get_state()))))


def _delete(_: HostedAgent, context: EntityContext, __: AgentThread, ___: Json) -> Json:
    context.set_state(None)


_OPERATIONS: Mapping[str, Operation] = {
    "begin": _changing(_begin),
    "record": _changing(_record),
    "commit": _changing(_commit),
    "abort": _changing(_abort),
    "run": HostedAgent.run,
    "reset": _reset,
    "delete": _delete,
}

_OUTCOMES: Mapping[type[Any], Callable[[Any], Json]] = {
    _thread.Granted: lambda outcome: {"granted": outcome.length},
    _thread.Queued: lambda outcome: {"queued": outcome.active},
    _thread.Ended: lambda outcome: {
        "ended": outcome.response,
        "next": outcome.next_id,
        "granted": outcome.next.length if outcome.next else None,
    },
    _thread.Refused: lambda outcome: {"error": _codec.dump_error(outcome.error)},
}


def _error_in(raw: Json, thread: AgentThread) -> DafxError:
    """The error that a step or an operation gave as a value."""
    return _codec.load_error(raw["error"]) or TurnFailed(
        thread.agent, raw.get("correlationId") or "?", "an unknown error", str(raw["error"])
    )


def _concluded(
    state: _thread.ThreadState, thread: AgentThread, turn: str, result: Json
) -> tuple[_thread.ThreadState, _thread.Outcome]:
    """The thread after the only step of a turn that runs inside an operation."""
    now = datetime.now(timezone.utc)
    step = _step_after(result, thread)
    if isinstance(step, _turn.Fail):
        return _thread.abort(state, thread, turn, step.error, now)
    return _thread.commit(state, thread, turn, (step.message,), _codec.load_usage(result.get("usage")), now)


def _step_after(result: Json, thread: AgentThread) -> _turn.Step:
    if "error" in result:
        return _turn.Fail(_error_in(result, thread))
    message = _codec.load_message(result["message"])
    return _turn.next_step(ModelReply(message=message, finish_reason=result["finishReason"]))


def _request_of(transcript: Transcript, turn: str, options: Mapping[str, Json]) -> RunRequest:
    asked = transcript.request(turn)
    assert isinstance(asked, Request)  # `begin` recorded it, and the length says that it was read
    return RunRequest(
        correlation_id=turn,
        messages=asked.messages,
        response_schema=asked.response_schema,
        options=options,
        created_at=asked.created_at,
        orchestration_id=asked.orchestration_id,
    )


# --- The steps of a turn, as its orchestration takes them ---------------------------------------------------------


class _TurnSteps:
    """One turn inside its orchestration."""

    def __init__(self, context: OrchestrationContext, thread: AgentThread, request: RunRequest) -> None:
        self._context = context
        self._thread = thread
        self._request = request
        self._id = request.correlation_id

    async def in_one_operation(self) -> Json:
        """The whole turn inside the thread; it names an orchestration that waits, so that it is run there and then."""
        request = attrs.evolve(self._request, orchestration_id=self._request.orchestration_id or self._id)
        return self._checked(await self._call("run", _codec.dump_request(request)))

    async def step_by_step(self) -> Json:
        """Each step recorded."""
        begun = await self._begin()
        if "ended" in begun:
            return begun["ended"]
        result = await self._model_step(begun["granted"])
        step = _step_after(result, self._thread)
        if isinstance(step, _turn.Fail):
            return await self._abort(step.error)
        return await self._commit([_codec.dump_message(step.message)], result.get("usage"))

    async def _model_step(self, length: int) -> Json:
        """The reply as a value; also what the activity itself raises, lest the thread be left with a dead turn."""
        asked = {
            "thread": self._thread.thread_id,
            "correlationId": self._id,
            "length": length,
            "options": dict(self._request.options),
        }
        kind, text = "an error", "the step gave no result"
        try:
            if (
                result := await self._context.call_activity(model_step_name(self._thread.agent), input=asked)
            ) is not None:
                return result
        except task.TaskFailedError as error:
            kind, text = error.details.error_type, error.details.message
        return {"error": _codec.dump_error(TurnFailed(self._thread.agent, self._id, kind, text))}

    async def _begin(self) -> Json:
        """Ask for the thread, and wait in line where it works on another turn."""
        asked = _codec.dump_request(self._request)
        begun = self._checked(await self._call("begin", asked))
        if "queued" not in begun:
            return begun
        # One wait, made once: a new one each time round would lose the event to the old one.
        granted = self._context.wait_for_external_event(_GRANTED)
        pause = _FIRST_LOOK
        while "queued" in begun:
            await self._look_after(begun["queued"])
            if granted.is_complete or await when_any([granted, self._context.sleep(pause)]) is granted:
                return {"granted": await granted}
            begun = self._checked(await self._call("begin", asked))
            pause = min(pause * 2, _LONGEST_PAUSE)
        return begun

    async def _look_after(self, active: str) -> None:
        """End the turn that holds the thread if it is dead; then its thread, or the next in line, is woken.

        A refusal means that somebody else ended it in the meantime, or reset the thread.
        """
        probe = probe_name(self._thread.agent)
        fate: Json = await self._context.call_activity(probe, input={"correlationId": active})
        if fate["alive"]:
            return
        if response := fate["response"]:
            messages, usage = response["messages"], response.get("usage")
            ending = {"correlationId": active, "messages": messages, "usage": usage, "whole": True}
            self._wake_next(await self._call("commit", ending))
        else:
            error = TurnTerminated(self._thread.agent, active, "it ended without a word")
            self._wake_next(await self._call("abort", {"correlationId": active, "error": _codec.dump_error(error)}))

    async def _commit(self, messages: Json, usage: Json) -> Json:
        ending = {"correlationId": self._id, "messages": messages, "usage": usage}
        return self._ended(await self._call("commit", ending))

    async def _abort(self, error: DafxError) -> Json:
        ending = {"correlationId": self._id, "error": _codec.dump_error(error)}
        return self._ended(await self._call("abort", ending))

    def _ended(self, outcome: Json) -> Json:
        self._wake_next(self._checked(outcome))
        return outcome["ended"]

    def _wake_next(self, outcome: Json) -> None:
        """Tell the turn that is active now."""
        if outcome.get("next"):
            self._context.send_event(outcome["next"], _GRANTED, data=outcome["granted"])

    def _call(self, operation: str, input: Json) -> DurableTask[Json]:
        return self._context.call_entity(self._thread.entity_id, operation, input)

    def _checked(self, outcome: Json) -> Json:
        if "error" in outcome:
            raise _error_in(outcome, self._thread)
        return outcome
