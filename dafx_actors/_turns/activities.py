"""The activities of an agent: model calls, tool calls, and looks at what became of others.

Each acts only after it has read in the thread that its turn goes on; what they give are values, failures too.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import cast

import anyio
import attrs
from durabletask import task
from durabletask.client import OrchestrationState, OrchestrationStatus

from dafx_actors._durable.hosted_names import hosts
from dafx_actors._json.document import load_transcript
from dafx_actors._json.forms import in_form
from dafx_actors._json.operations import Attempt, Attempted, Telling, load_outcome
from dafx_actors._json.steps import (
    Begun,
    Failed,
    ModelAnswer,
    ModelStep,
    NotMade,
    NotRecorded,
    Probe,
    Probed,
    Returned,
    StillRunning,
    ToolOutcome,
    ToolStep,
    Unknown,
    dump_tool_outcome,
)
from dafx_actors._rules import state as _state
from dafx_actors._rules.beside import seen_by, shown_beside
from dafx_actors._rules.calls import is_approved, is_given_up, may_act
from dafx_actors._rules.conversation import Waiting
from dafx_actors._rules.thread import is_granted
from dafx_actors._turns import above as _above
from dafx_actors._turns.asking import AgentSteps
from dafx_actors._turns.entity import settings_of
from dafx_actors._turns.host import TurnEnded
from dafx_actors._turns.recent import RecentDocuments, RecentEntries, begin_token, record_token
from dafx_actors.decisions import call_digest
from dafx_actors.errors import DafxError, StaleTranscript, TurnCancelled, TurnSuperseded
from dafx_actors.exchange import RunRequest
from dafx_actors.ids import (
    AgentThread,
    model_step_name,
    new_id,
    probe_name,
    tell_name,
    telling_id,
    tool_step_name,
    turn_name,
)
from dafx_actors.tools import Tool
from dafx_actors.tools._toolbox import ONLY_WITHOUT_EFFECT
from dafx_actors.transcript import Json, Request, Transcript

_logger = logging.getLogger("dafx_actors.worker")

_ENDED = {OrchestrationStatus.COMPLETED, OrchestrationStatus.FAILED, OrchestrationStatus.TERMINATED}
_MARGIN = 1.0
"""Seconds by which the clocks of two workers may differ, and a time limit be late."""
_PAUSES = (0.005, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6)
"""Seconds between looks at a thread that is on its way to what a step has to see."""
_POLL, _POLLS = 5, 120
"""Seconds that a step waits at a time for the record of its attempt, so that it can be ended, and how often."""
_CANCELLED = Failed("the turn was cancelled", stopped=True)


@attrs.frozen
class Steps:
    """The activities of one agent on a worker."""

    asking: AgentSteps
    documents: RecentDocuments
    entries: RecentEntries

    @property
    def activities(self) -> Mapping[str, Callable[..., Awaitable[Json]]]:
        """The activities, by their names."""
        agent, toolbox = self.asking.agent.name, self.asking.toolbox
        tools = {tool_step_name(agent, name): self.tool_step for name in toolbox.activities}
        return {model_step_name(agent): self.model_step, probe_name(agent): self.probe, **tools}

    # --- Model calls ----------------------------------------------------------------------------------------------

    async def model_step(self, _: task.ActivityContext, raw: Json) -> Json:
        """A model call of a turn, as a value: the reply with a plan of its tool calls, or the error."""
        asked = ModelStep.load(raw)
        thread = AgentThread(self.asking.agent.name, asked.thread_id)
        if asked.begins:
            return (await self._first_model_step(thread, asked)).dump()
        if asked.records:
            return (await self._model_step_after_record(thread, asked)).dump()
        try:
            if (document := self.documents.take(asked.cache_token)) is not None:
                state = _state.load(document)
            else:
                document, state = await self._read(thread, asked.turn, asked.length)
        except DafxError as error:
            return ModelAnswer(error=error).dump()
        return (await self._model_step(thread, asked, document, state)).dump()

    async def _model_step_after_record(self, thread: AgentThread, asked: ModelStep) -> ModelAnswer:
        """A model call that is made together with `record`: its answer says the length of the thread."""
        token = record_token(thread, asked.turn, asked.length - 1)
        if (found := await self._recorded(thread, asked.turn, asked.length, token)) is None:
            return ModelAnswer()
        document, state = found
        answer = await self._model_step(thread, asked, document, state)
        return attrs.evolve(answer, length=seen_by(state, asked.turn).length)

    async def _recorded(
        self, thread: AgentThread, turn: str, length: int, token: str, *, committed: bool = False
    ) -> tuple[Json, _state.ThreadState] | None:
        """The thread as soon as it has what was told it together with a step; None if it has not, or this takes long.

        Another worker may see to the `record`, which is then found by reading. `committed`: only what is on disk
        counts, since a tool is about to act; that this worker has stored it is but a sign that it is time to look.
        """
        for pause in _PAUSES:
            is_here = await self.documents.wait_for(token, pause)
            if is_here and not committed and (document := self.documents.take(token)) is not None:
                return document, _state.load(document)
            document = await self._document(thread)
            seen = seen_by(state := _state.load(document), turn)
            if seen.active != turn:
                return None  # the turn is over, or its thread was reset: it finds out when it asks
            if seen.length >= length:
                return document, state
            if is_here:
                await anyio.sleep(min(pause, 0.02))
        return None

    async def _first_model_step(self, thread: AgentThread, asked: ModelStep) -> ModelAnswer:
        """A model call that is made together with `begin`: its answer says whether the turn has its thread."""
        limit = self.asking.agent.definition.limits.seconds
        if (document := await self._begun(thread, asked.turn)) is None:
            return ModelAnswer()
        state = _state.load(document)
        begun = Begun(
            length=seen_by(state, asked.turn).length,
            settings=settings_of(self.asking.agent.definition),
            beside=None if state.active == asked.turn else state.active,
        )
        known = math.inf if asked.seconds is None else asked.seconds
        if limit is not None and not asked.limited and not limit >= known:
            # There is no timer yet for the agent's own limit: the turn has to see to it first.
            kept = self.documents.keep(document, begun.length)
            return ModelAnswer(begun=attrs.evolve(begun, cache_token=kept))
        return attrs.evolve(await self._model_step(thread, asked, document, state), begun=begun)

    async def _begun(self, thread: AgentThread, turn: str) -> Json:
        """The thread as soon as this turn is active in it; None if it is not, or this takes long.

        Another worker may see to its `begin`, which is then found by reading.
        """
        token = begin_token(thread, turn)
        for pause in _PAUSES:
            if await self.documents.wait_for(token, pause):
                return self.documents.take(token)
            document = await self._document(thread)
            if (granted := is_granted(_state.load(document), turn)) is not None:
                return document if granted else None
        return None

    async def _model_step(
        self, thread: AgentThread, asked: ModelStep, document: Json, state: _state.ThreadState
    ) -> ModelAnswer:
        turn = asked.turn
        if (mark := state.cancelled.get(turn)) is not None:
            return ModelAnswer(error=mark.error(thread.agent, turn))
        transcript = load_transcript(document, functools.partial(self.entries.load, thread.thread_id))
        waits = None
        if state.beside is not None and state.beside.turn == turn and state.active is not None:
            transcript = attrs.evolve(transcript, draft=seen_by(state, turn).draft)
            waits = Waiting(state.active, shown_beside(state))
        request, first = _request_of(transcript, asked), asked.reply == 1
        reply = functools.partial(
            self.asking.reply, thread, request, transcript, first=first, callers=asked.callers, beside=waits
        )
        if asked.stream:
            reply = functools.partial(reply, words=self.asking.host.words(asked.reply))
        try:
            return await self.asking.host.until_ended(turn, reply)
        except TurnEnded:
            _logger.info("The model call of turn %s was aborted: the turn has ended.", turn)
            return ModelAnswer(error=TurnCancelled(thread.agent, turn))

    # --- Tool calls -----------------------------------------------------------------------------------------------

    async def tool_step(self, _: task.ActivityContext, raw: Json) -> Json:
        """A tool call of a turn, as a value, in the form of values that it was planned in."""
        asked = ToolStep.load(raw)
        with in_form(asked.form or 1):
            seen: list[int] = []
            outcome = await self._tool_step(asked, seen)
            return dump_tool_outcome(outcome, seen[0] if asked.records and seen else None)

    async def _tool_step(self, asked: ToolStep, seen: list[int]) -> ToolOutcome:
        """Make a call, if it may be made; `seen` is given the length of the thread.

        It acts only after it has read in the thread that the turn goes on, and that what needs approval has it; one
        that may act only once, after its attempt is on record.
        """
        toolbox, turn, key = self.asking.toolbox, asked.turn, asked.key
        thread = AgentThread(self.asking.agent.name, asked.thread_id)
        needs_approval = await toolbox.needs_approval(asked.name, asked.arguments, asked.source)
        # As late as can be: what is cancelled after this does not reach the tool any more.
        try:
            if asked.records:
                token = record_token(thread, turn, asked.length - 1)
                recorded = await self._recorded(thread, turn, asked.length, token, committed=True)
                if recorded is None:
                    return NotRecorded()
                document, whole = recorded
            else:
                document, whole = await self._read(thread, turn, asked.length)
        except DafxError as error:
            return Failed(str(error))
        state = seen_by(whole, turn)
        seen.append(state.length)
        if not may_act(state, turn, asked.retry):
            return _CANCELLED
        if is_given_up(state, key, asked.attempt):
            return Failed("the call was given up, since no worker had its tool", stopped=True)
        if state is not whole and not toolbox.is_without_effect(asked.name, asked.source):
            return Failed(ONLY_WITHOUT_EFFECT)
        if needs_approval and not is_approved(state, key, call_digest(asked.name, asked.arguments)):
            return Failed("the call was not made: it needs approval, and nobody has given it")
        context = self.asking.tool_context(
            thread, turn, key, asked.call_id, asked.attempt, lambda: load_transcript(document)
        )
        calling = functools.partial(
            toolbox.call,
            asked.name,
            asked.arguments,
            context,
            source=asked.source,
            offer=asked.offer,
            waited=needs_approval,
        )
        tool = None if asked.source else toolbox.tool(asked.name)
        # What the turn was told of the tool counts as well: a newer declaration must not let it act twice.
        if tool is None or not (tool.effect == "once" or asked.once):
            return await self._stopped_above(asked) or await calling()
        attempted = await self._attempt(thread, asked)
        if attempted is None:
            return NotMade()
        if attempted.answer == "unknown":
            if (seconds := _may_still_run(tool, attempted.began_at)) > 0:
                return StillRunning(seconds)
            return await toolbox.reconcile(tool, asked.arguments, context)
        if attempted.answer == "stop":
            return _CANCELLED
        # After the record, which takes a while; that it has not acted is on record by what this gives.
        outcome = await self._stopped_above(asked) or await calling()
        if not (isinstance(outcome, Failed) and outcome.timed_out):
            return outcome
        found = await toolbox.reconcile(tool, asked.arguments, context)
        # What has not happened yet may still be on its way: that it has happened is believed, that it has not is not.
        return found if isinstance(found, Returned) else Unknown()

    async def _stopped_above(self, asked: ToolStep) -> Failed | None:
        """The outcome of a call that is not made since a turn above does not want it any more; None where all do."""
        try:
            await _above.check(self.asking.host, asked.callers, self.asking.agent.name, asked.turn)
        except TurnCancelled:
            return _CANCELLED
        return None

    async def _attempt(self, thread: AgentThread, asked: ToolStep) -> Attempted | None:
        """Record the attempt of a call that may act only once, by an orchestration; None where that did not end."""
        attempt = Attempt(turn=asked.turn, key=asked.key, number=asked.attempt, token=new_id(), retry=asked.retry)
        sent = Telling.of(thread, attempt).dump()
        host, reader = self.asking.host, self.asking.host.reader
        telling = await host.blocking(
            functools.partial(
                reader.schedule_new_orchestration,
                tell_name(thread.agent),
                input=sent,
                instance_id=telling_id(thread),
            )
        )
        waiting = functools.partial(reader.wait_for_orchestration_completion, telling, timeout=_POLL)
        state: OrchestrationState | None = None
        for _ in range(_POLLS):
            with suppress(TimeoutError):
                state = await host.blocking(waiting)
                break
        if state is None or state.runtime_status is not OrchestrationStatus.COMPLETED:
            return None
        outcome = load_outcome(state.get_output(), thread, asked.turn)
        return outcome if isinstance(outcome, Attempted) else None

    # --- Looks ----------------------------------------------------------------------------------------------------

    async def probe(self, _: task.ActivityContext, raw: Json) -> Json:
        """What became of another turn; or which of some names workers have. Any worker of the agent can tell."""
        asked, host = Probe.load(raw), self.asking.host
        if asked.names is not None:
            own = {*self.activities, *map(turn_name, host.registered_agent_names)}
            looking = functools.partial(hosts, host.reader, own, [(each.kind, each.name) for each in asked.names])
            return Probed(alive=True, hosts=await host.blocking(looking)).dump()
        state = await host.blocking(functools.partial(host.reader.get_orchestration_state, asked.turn))
        if state is not None and state.runtime_status not in _ENDED:
            return Probed(alive=True).dump()
        completed = state is not None and state.runtime_status is OrchestrationStatus.COMPLETED
        response = cast("OrchestrationState", state).get_output() if completed else None
        return Probed(alive=False, response=response).dump()

    async def _read(self, thread: AgentThread, turn: str, length: int) -> tuple[Json, _state.ThreadState]:
        """The thread with at least what the turn had recorded; a scheduler may answer with older state for a while."""
        found = 0
        for pause in (0.0, *_PAUSES[2:]):
            await anyio.sleep(pause)
            document = await self._document(thread)
            state = _state.load(document)
            seen = seen_by(state, turn)
            if (found := seen.length) >= length and seen.active == turn:
                return document, state
            if _state.has_own_response(state, turn):
                raise TurnSuperseded(thread.thread_id, turn)
        raise StaleTranscript(thread.thread_id, length, found)

    async def _document(self, thread: AgentThread) -> Json:
        return await _above.document_of(self.asking.host, thread)


def _may_still_run(tool: Tool, since: datetime | None) -> float:
    """Seconds in which an attempt that was cut off may not be over yet.

    A worker that lost its connection may live, and be about to act: that a call has not acted means something only when
    its time is over. Of a tool without a time limit nobody can tell when that is.
    """
    if tool.timeout is None or since is None:
        return 0.0
    return tool.timeout + _MARGIN - (datetime.now(UTC) - since).total_seconds()


def _request_of(transcript: Transcript, step: ModelStep) -> RunRequest:
    asked = transcript.request(step.turn)
    assert isinstance(asked, Request)  # `begin` recorded it, and the length says that it was read
    return RunRequest(
        correlation_id=step.turn,
        messages=asked.messages,
        response_schema=asked.response_schema,
        options=step.options,
        tool_choice=step.tool_choice,
        enable_tool_calls=step.enable_tool_calls,
        created_at=asked.created_at,
        orchestration_id=asked.orchestration_id,
    )
