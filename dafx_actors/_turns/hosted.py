"""What a worker does for an agent: its thread entity, its orchestrations, its activities.

::

    client.run --start--> turn: call_entity(thread, begin)     -> granted | queued | answered
                                call_activity(model step)      -> reply
                                call_activity(tool step)*      -> results
                                call_entity(thread, commit)    -> response; wakes the next turn in line

The rules are in `_thread.py` and `_turn.py`; the turn's orchestration is in `_turn_steps.py`; here they are carried
out. Steps are coroutines on the loop where agents run; operations of threads are plain functions, also the one that a
whole turn can be (`_whole_turn.py`).
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from datetime import datetime, timezone
from typing import Any, TypeVar, cast

import anyio
import attrs
from durabletask import task
from durabletask.client import OrchestrationState, OrchestrationStatus
from durabletask.entities import EntityContext

from dafx_actors._durable.hosted_names import hosts
from dafx_actors._json import messages as _codec
from dafx_actors._json import peer as _peer_forms
from dafx_actors._json.forms import in_form
from dafx_actors._json.shapes import as_object, as_text, dump_time, load_time, object_in
from dafx_actors._rules import operations as _operations
from dafx_actors._rules import thread as _thread
from dafx_actors._rules import tree as _tree
from dafx_actors._rules.given_up import is_given_up
from dafx_actors._turns import above as _above
from dafx_actors._turns.asking import AgentSteps
from dafx_actors._turns.host import Host, TurnEnded
from dafx_actors._turns.recent import RecentDocuments, RecentEntries
from dafx_actors._turns.steps import TurnSteps, tell
from dafx_actors._turns.whole import WholeTurn
from dafx_actors.agents import Agent
from dafx_actors.decisions import call_digest
from dafx_actors.errors import (
    DafxError,
    StaleTranscript,
    ThreadBusy,
    TurnCancelled,
    TurnSuperseded,
)
from dafx_actors.exchange import RunRequest
from dafx_actors.ids import AgentThread, model_step_name, new_id, probe_name, tell_name, tool_step_name, turn_name
from dafx_actors.orchestration._agents import TELL_BEGUN, CrossingError, turn_input
from dafx_actors.orchestration._context import OrchestrationContext, orchestrator
from dafx_actors.tools import Tool
from dafx_actors.tools._toolbox import Toolbox
from dafx_actors.transcript import Json, Request, Transcript

T = TypeVar("T")

_logger = logging.getLogger("dafx_actors.worker")

_ENDED = {OrchestrationStatus.COMPLETED, OrchestrationStatus.FAILED, OrchestrationStatus.TERMINATED}
_MARGIN = 1.0
"""Seconds by which the clocks of two workers may differ, and a time limit be late."""
_PAUSES = (0.005, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6)
"""Seconds between looks at a thread that is on its way to what a step has to see."""
_POLL, _POLLS = 5, 120
"""Seconds that a step waits at a time for the record of its attempt, so that it can be ended, and how often."""


def _toolbox_of(hosted: HostedAgent) -> Toolbox:
    agent, host = hosted.agent, hosted.host
    bound = agent.definition.max_result_bytes
    return Toolbox(agent.tools, max_result_bytes=bound, is_stopping=lambda: host.is_stopping)


def _asking_of(hosted: HostedAgent) -> AgentSteps:
    return AgentSteps(hosted.agent, hosted.host, hosted.toolbox)


def _whole_of(hosted: HostedAgent) -> WholeTurn:
    return WholeTurn(hosted.asking, hosted.read)


@attrs.frozen
class HostedAgent:
    """An agent on a worker."""

    agent: Agent
    host: Host
    toolbox: Toolbox = attrs.field(init=False, default=attrs.Factory(_toolbox_of, takes_self=True))
    recent: RecentDocuments = attrs.field(init=False, factory=RecentDocuments)
    read: RecentEntries = attrs.field(init=False, factory=RecentEntries)
    asking: AgentSteps = attrs.field(init=False, default=attrs.Factory(_asking_of, takes_self=True))
    whole: WholeTurn = attrs.field(init=False, default=attrs.Factory(_whole_of, takes_self=True))

    @property
    def activities(self) -> Mapping[str, Callable[..., Awaitable[Json]]]:
        """The activities, by their names."""
        tools = {tool_step_name(self.agent.name, name): self.tool_step for name in self.toolbox.activities}
        return {model_step_name(self.agent.name): self.model_step, probe_name(self.agent.name): self.probe, **tools}

    # --- The thread entity ----------------------------------------------------------------------------------------

    def entity(self, context: EntityContext, raw: Json) -> Json:
        """One operation of a thread. Refusals are values: durabletask keeps only a text of what is raised."""
        thread = AgentThread(self.agent.name, context.entity_id.key)
        try:
            if (decide := _operations.OPERATIONS.get(context.operation)) is not None:
                return self._change(context, thread, raw, decide)
            if context.operation == "run":
                return self._run(context, thread, raw)
        except DafxError as error:
            if context.operation == "run" and _peer_forms.sent_by_peer(raw):
                raise  # the peer's caller knows no errors as values: its task is to fail
            return {"error": _codec.dump_error(error)}
        if context.operation == "delete":
            context.set_state(None)
            return None
        known = ", ".join([*_operations.OPERATIONS, "run", "delete"])
        raise ValueError(f"threads have no operation {context.operation!r}; they have {known}")

    def _change(self, context: EntityContext, thread: AgentThread, raw: Json, decide: _operations.Decide) -> Json:
        """Let the rules decide, and store what they say."""
        state = _thread.load(context.get_state())
        definition = self.agent.definition
        told = _operations.Message(thread=thread, raw=raw, now=datetime.now(timezone.utc), definition=definition)
        changed, outcome = decide(state, told)
        dumped = _operations.dump_outcome(outcome)
        if context.operation == "abort":
            dumped = _operations.in_short(dumped)
        if changed is not state:
            document = _thread.dump(changed)
            context.set_state(document)
            if isinstance(outcome, _thread.Granted):
                token = _begin_token(thread, told.turn) if context.operation == "begin" else None
                dumped["state"] = self.recent.keep(document, changed.length, token)
        if context.operation == "begin" and not isinstance(outcome, _thread.Granted):
            self.recent.keep(None, 0, _begin_token(thread, told.turn))
        return {**dumped, "settings": self._settings()} if context.operation == "begin" else dumped

    def _settings(self) -> Json:
        """What a turn keeps of the agent's declaration, so that a newer one does not change what has begun."""
        definition = self.agent.definition
        retry = _codec.dump_retry(definition.retry) if definition.retry else None
        return {"limits": _codec.dump_limits(definition.limits), **({"retry": retry} if retry else {})}

    def _run(self, context: EntityContext, thread: AgentThread, raw: Json) -> Json:
        """A whole turn in one operation, for `durability="turn"` and for the peer's callers, which send this.

        A request that nobody waits for, a signal, starts the turn's orchestration instead. While another turn is active
        this one fails at once: the operation cannot wait for it without stopping the thread. The peer's callers get
        the form that they read, in which a turn's error is one of its contents.
        """
        request, by_peer = _codec.load_request(raw), _peer_forms.sent_by_peer(raw)
        if not _peer_forms.waits_for_answer(raw):
            sent = turn_input(thread, request)
            context.schedule_new_orchestration(turn_name(thread.agent), sent, request.correlation_id)
            return None
        before = _thread.load(context.get_state())
        state, outcome = _thread.begin(before, thread, request, datetime.now(timezone.utc))
        if isinstance(outcome, _thread.Queued):
            busy = ThreadBusy(thread.agent, thread.thread_id, outcome.active)
            if not (by_peer and request.orchestration_id == request.correlation_id):
                raise busy
            # Handed over by a client of ours, which reads the thread.
            now = datetime.now(timezone.utc)
            state, _ = _thread.abort(state, thread, request.correlation_id, busy, now, request=request)
            context.set_state(_thread.dump(state))
            return None
        if isinstance(outcome, _thread.Granted):
            taken = functools.partial(self.whole.take, thread, request, state, raw)
            state, outcome = self.host.run_step(taken)
        if state is not before:
            context.set_state(_thread.dump(state))
        if isinstance(outcome, _thread.Refused):
            raise outcome.error
        response = cast("_thread.Ended", outcome).response
        return _peer_forms.dump_agent_response(response) if by_peer else response

    # --- Orchestrations -------------------------------------------------------------------------------------------

    def turn(self) -> Callable[..., Any]:
        """The turn's orchestration."""
        name, by_turn = self.agent.name, self.agent.definition.durability == "turn"

        async def turn(context: OrchestrationContext, raw: Json) -> Json:
            # Anybody can start one: what is wrong with its input is said in the words of a ValueError.
            sent = as_object(raw)
            thread = AgentThread(name, as_text(sent.get("thread")))
            begun = load_time(sent["begun"]) if sent.get("begun") else None
            request, eager = _codec.load_request(sent.get("request")), bool(sent.get("eager")) and begun is None
            form = sent.get("form") or 0
            if begun is None and (told := object_in(sent.get(TELL_BEGUN))):
                context.send_event(as_text(told.get("orchestration")), as_text(told.get("event")))
            callers = _tree.load_callers(sent.get("callers"))
            steps = TurnSteps(context, thread, request, begun=begun, eager=eager, form=form, callers=callers)
            response: Json = None
            try:
                response = await (steps.in_one_operation() if by_turn else steps.step_by_step())
                if response is None:
                    context.continue_as_new({**raw, "begun": dump_time(steps.begun)}, save_events=True)
                else:
                    _codec.raise_error_in(response, thread)
            except DafxError as error:
                failed = error
            else:
                return response
            # Out here, where no other error is told with it. The turn above counts what this one took.
            raise CrossingError(failed, steps.spent(response)) if callers and _codec.crosses(failed) else failed

        turn.__name__ = turn.__qualname__ = turn_name(name)
        return orchestrator(turn)

    def tell(self) -> Callable[..., Any]:
        """The orchestration by which clients and steps tell a thread something."""
        name = self.agent.name

        async def telling(context: OrchestrationContext, raw: Json) -> Json:
            sent = as_object(raw)
            thread = AgentThread(name, as_text(sent.get("thread")))
            return await tell(context, thread, as_text(sent.get("operation")), sent.get("input"))

        telling.__name__ = telling.__qualname__ = tell_name(name)
        return orchestrator(telling)

    # --- Activities -----------------------------------------------------------------------------------------------

    async def model_step(self, _: task.ActivityContext, raw: Json) -> Json:
        """A model call of a turn, as a value: the reply with a plan of its tool calls, or the error."""
        thread, turn = AgentThread(self.agent.name, raw["thread"]), raw["correlationId"]
        if raw.get("begins"):
            return await self._first_model_step(thread, raw)
        try:
            if (document := self.recent.take(raw.get("state"))) is not None:
                state = _thread.load(document)
            else:
                document, state = await self._read(thread, turn, raw["length"])
        except DafxError as error:
            return {"error": _codec.dump_error(error)}
        return await self._model_step(thread, raw, document, state)

    async def _first_model_step(self, thread: AgentThread, raw: Json) -> Json:
        """A model call that is made together with `begin`: with its result comes what that gave, as `begun`.

        Without it, the turn was not granted its thread, or nobody knows yet. Without a result, the turn has to see to a
        time limit first.
        """
        turn, seconds = raw["correlationId"], self.agent.definition.limits.seconds
        if (document := await self._begun(thread, turn)) is None:
            return {}
        state = _thread.load(document)
        begun = {"granted": state.length, "settings": self._settings()}
        if seconds is not None and not raw.get("limited") and not seconds >= raw.get("seconds", math.inf):
            return {"begun": {**begun, "state": self.recent.keep(document, state.length)}}
        return {**await self._model_step(thread, raw, document, state), "begun": begun}

    async def _begun(self, thread: AgentThread, turn: str) -> Json:
        """The thread as soon as this turn is active in it; None if it is not, or this takes long.

        Another worker may see to its `begin`, which is then found by reading.
        """
        token = _begin_token(thread, turn)
        for pause in _PAUSES:
            if await self.recent.wait_for(token, pause):
                return self.recent.take(token)
            document = await self._document(thread)
            if (granted := _thread.is_granted(_thread.load(document), turn)) is not None:
                return document if granted else None
        return None

    async def _model_step(self, thread: AgentThread, raw: Json, document: Json, state: _thread.ThreadState) -> Json:
        turn = raw["correlationId"]
        if (mark := state.cancelled.get(turn)) is not None:
            cancelled = TurnCancelled(thread.agent, turn, str(mark.get("reason") or ""), str(mark.get("by") or ""))
            return {"error": _codec.dump_error(cancelled)}
        transcript = _codec.load_transcript(document, functools.partial(self.read.load, thread.thread_id))
        request = _request_of(transcript, turn, raw)
        first = raw.get("reply", 1) == 1
        callers = _tree.load_callers(raw.get("callers"))
        reply = functools.partial(self.asking.reply, thread, request, transcript, first=first, callers=callers)
        try:
            return await self.host.until_ended(turn, reply)
        except TurnEnded:
            _logger.info("The model call of turn %s was aborted: the turn has ended.", turn)
            return {"error": _codec.dump_error(TurnCancelled(self.agent.name, turn))}

    async def tool_step(self, _: task.ActivityContext, raw: Json) -> Json:
        """A tool call of a turn, in the form of values that it was planned in; see `_tool_step`."""
        with in_form(raw.get("form", 1)):
            return await self._tool_step(raw)

    async def _tool_step(self, raw: Json) -> Json:
        """The outcome as a value: see `Toolbox.call`; `unknown`, `notDone`, or `stopped`.

        It acts only after it has read in the thread that the turn goes on, and that what needs approval has it; one
        that may act only once, after its attempt is on record.
        """
        thread, turn, key = AgentThread(self.agent.name, raw["thread"]), raw["correlationId"], raw["key"]
        name, arguments = raw["name"], raw["arguments"]
        source, offer = raw.get("source"), raw.get("offer")
        needs_approval = await self.toolbox.needs_approval(name, arguments, source)
        # As late as can be: what is cancelled after this does not reach the tool any more.
        try:
            document, state = await self._read(thread, turn, raw["length"])
        except DafxError as error:
            return {"error": str(error)}
        if not _thread.may_act(state, turn):
            return {"error": "the turn was cancelled", "stopped": True}
        if is_given_up(state, key, raw.get("attempt", 1)):
            return {"error": "the call was given up, since no worker had its tool", "stopped": True}
        if needs_approval and not _thread.is_approved(state, key, call_digest(name, arguments)):
            return {"error": "the call was not made: it needs approval, and nobody has given it"}
        context = self.asking.tool_context(thread, raw, lambda: _codec.load_transcript(document))
        tool = None if source else self.toolbox.tool(name)
        # What the turn was told of the tool counts as well: a newer declaration must not let it act twice.
        if tool is None or not (tool.effect == "once" or raw.get("once")):
            calling = functools.partial(
                self.toolbox.call, name, arguments, context, source=source, offer=offer, waited=needs_approval
            )
            return await self._stopped_above(raw) or await calling()
        go, since = await self._attempt(thread, raw)
        if go == "unknown":
            if (seconds := _may_still_run(tool, since)) > 0:
                return {"wait": seconds}
            return await self.toolbox.reconcile(tool, arguments, context)
        if go != "go":
            return {"error": "the turn was cancelled", "stopped": True} if go == "stop" else {"notDone": True}
        # After the record, which takes a while; that it has not acted is on record by what this gives.
        outcome = await self._stopped_above(raw) or await self.toolbox.call(name, arguments, context)
        if not outcome.get("timedOut"):
            return outcome
        found = await self.toolbox.reconcile(tool, arguments, context)
        # What has not happened yet may still be on its way: that it has happened is believed, that it has not is not.
        return found if "result" in found else {"unknown": True}

    async def _stopped_above(self, raw: Json) -> Json:
        """The outcome of a call that is not made since a turn above does not want it any more; None where all do."""
        try:
            callers = _tree.load_callers(raw.get("callers"))
            await _above.check(self.host, callers, self.agent.name, raw["correlationId"])
        except TurnCancelled:
            return {"error": "the turn was cancelled", "stopped": True}
        return None

    async def probe(self, _: task.ActivityContext, raw: Json) -> Json:
        """What became of another turn: `alive`, or ended, with what it gave. Or `hosts`: which of `names` workers have.

        Any worker of the agent can tell; nothing is said of a name of which this one cannot.
        """
        if "names" in raw:
            own = {*self.activities, *map(turn_name, self.host.registered_agent_names)}
            looking = functools.partial(hosts, self.host.reader, own, raw["names"])
            return {"alive": True, "hosts": await self.host.blocking(looking)}
        asking = functools.partial(self.host.reader.get_orchestration_state, raw["correlationId"])
        state = await self.host.blocking(asking)
        if state is not None and state.runtime_status not in _ENDED:
            return {"alive": True}
        completed = state is not None and state.runtime_status is OrchestrationStatus.COMPLETED
        return {"alive": False, "response": cast("OrchestrationState", state).get_output() if completed else None}

    async def _read(self, thread: AgentThread, turn: str, length: int) -> tuple[Json, _thread.ThreadState]:
        """The thread with at least what the turn had recorded; a scheduler may answer with older state for a while."""
        found = 0
        for pause in (0.0, *_PAUSES[2:]):
            await anyio.sleep(pause)
            document = await self._document(thread)
            state = _thread.load(document)
            if (found := state.length) >= length and state.active == turn:
                return document, state
            if any(raw.get("$type") == "response" and raw.get("correlationId") == turn for raw in state.history):
                raise TurnSuperseded(thread.thread_id, turn)
        raise StaleTranscript(thread.thread_id, length, found)

    async def _document(self, thread: AgentThread) -> Json:
        return await _above.document_of(self.host, thread)

    async def _attempt(self, thread: AgentThread, raw: Json) -> tuple[str, datetime | None]:
        """Record the attempt of a call that may act only once, by an orchestration; `lost` where that did not end.

        With `unknown`, since when somebody else has made it.
        """
        told = {
            "correlationId": raw["correlationId"],
            "key": raw["key"],
            "number": raw["attempt"],
            "token": new_id(),
        }
        sent = {"thread": thread.thread_id, "operation": "attempt", "input": told}

        reader = self.host.reader
        telling = await self.host.blocking(
            functools.partial(reader.schedule_new_orchestration, tell_name(thread.agent), input=sent)
        )
        waiting = functools.partial(reader.wait_for_orchestration_completion, telling, timeout=_POLL)
        state: OrchestrationState | None = None
        for _ in range(_POLLS):
            with suppress(TimeoutError):
                state = await self.host.blocking(waiting)
                break
        if state is None or state.runtime_status is not OrchestrationStatus.COMPLETED:
            return "lost", None
        outcome: Json = state.get_output()
        return outcome["attempt"], load_time(outcome["since"]) if outcome.get("since") else None


def _begin_token(thread: AgentThread, turn: str) -> str:
    """Under which what a `begin` stored is kept: its turn's first step comes by itself, and knows no other."""
    return f"{thread.thread_id}/{turn}"


def _may_still_run(tool: Tool, since: datetime | None) -> float:
    """Seconds in which an attempt that was cut off may not be over yet.

    A worker that lost its connection may live, and be about to act: that a call has not acted means something only when
    its time is over. Of a tool without a time limit nobody can tell when that is.
    """
    if tool.timeout is None or since is None:
        return 0.0
    return tool.timeout + _MARGIN - (datetime.now(timezone.utc) - since).total_seconds()


def _request_of(transcript: Transcript, turn: str, raw: Json) -> RunRequest:
    asked = transcript.request(turn)
    assert isinstance(asked, Request)  # `begin` recorded it, and the length says that it was read
    return RunRequest(
        correlation_id=turn,
        messages=asked.messages,
        response_schema=asked.response_schema,
        options=raw.get("options") or {},
        tool_choice=raw.get("toolChoice"),
        enable_tool_calls=raw.get("enableToolCalls", True),
        created_at=asked.created_at,
        orchestration_id=asked.orchestration_id,
    )
