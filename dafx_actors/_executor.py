"""How a client's agents are run: a turn's orchestration is started and waited for; a thread is told things."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from typing import Any

from durabletask.client import OrchestrationState, OrchestrationStatus

from dafx_actors import _codec
from dafx_actors._agent_tasks import answer, turn_input
from dafx_actors._connect import MARGIN, Backend
from dafx_actors._json import object_in
from dafx_actors._peer import PeerThreads, handed_over, request_in
from dafx_actors._peer_forms import dump_for_peer
from dafx_actors.decisions import PendingDecision
from dafx_actors.errors import (
    AgentNotHosted,
    CorrelationConflict,
    SchedulerUnreachable,
    TurnFailed,
    TurnNotFound,
    TurnTerminated,
    TurnTimeout,
    UnsupportedByPeer,
)
from dafx_actors.exchange import AgentRunResponse, RunRequest
from dafx_actors.ids import AgentThread, agent_of_turn, entity_name, new_id, tell_name, turn_name
from dafx_actors.transcript import Json, Transcript

_GRACE = 1.0
"""Seconds that a worker which starts at the same time as its client has, where the scheduler tells what is hosted."""
_START_TIMEOUT = 10.0
"""Seconds that it has where the scheduler cannot tell, or where the agent was hosted before."""


class ClientAgentExecutor:
    """Runs agents from outside: starts a turn's orchestration and waits for it to end.

    Agents that the peer hosts are run by `_peer.py`: those that the caller says are, with `hosted_by_peer`; where the
    scheduler tells what is hosted, those of which it says so; elsewhere, those whose turns no worker takes within
    `start_timeout` although their threads answer.
    """

    def __init__(self, backend: Backend, start_timeout: float | None, *, hosted_by_peer: bool = False) -> None:
        self._backend = backend
        self._looks = (_GRACE, _START_TIMEOUT) if start_timeout is None else (start_timeout,)
        self.start_timeout = self._looks[-1]
        self._hosted_by_peer = hosted_by_peer
        self._peer = PeerThreads(backend)
        self._seen: set[str] = set()
        """Agents that workers of ours have hosted."""
        self._by_peer: set[str] = set()
        """Agents that the peer hosts, where it took a while to find out."""

    async def transcript(self, thread: AgentThread) -> Transcript:
        """See `DurableAIAgent.get_transcript`."""
        return _codec.load_transcript(await self._backend.thread(thread.entity_id))

    async def start(self, thread: AgentThread, request: RunRequest) -> None:
        """Start the turn, unless it was started before.

        Raises:
            CorrelationConflict: Something else has that id.
            UnsupportedByPeer: The peer hosts the agent, and cannot take this.
        """
        by_peer = await self._is_by_peer(thread.agent)
        if by_peer:
            dump_for_peer(thread.agent, request)  # refused before anything is on record
        sent = turn_input(thread, request)
        if await self._backend.start(turn_name(thread.agent), request.correlation_id, sent):
            if by_peer:
                await self._peer.hand_over(thread, request, created=True)
            return
        state = await self._backend.state(request.correlation_id)
        if state is not None and (differs := _difference(state, thread, request)):
            raise CorrelationConflict(request.correlation_id, differs)

    async def wait(
        self, thread: AgentThread, correlation_id: str, timeout: float | None, response_format: Any
    ) -> AgentRunResponse[Any]:
        """Wait for the turn's end, by long polls; withdraw a turn that no worker takes within `start_timeout`."""
        begun = time.monotonic()
        try:
            if not self._hosted_by_peer:
                state = await self._end_of(thread.agent, correlation_id, timeout)
                if state is None:
                    raise TurnTimeout(thread.agent, thread.thread_id, correlation_id, timeout or 0.0)
                if not _is_by_peer(state):
                    return self._answer(state, thread, correlation_id, response_format)
            left = None if timeout is None else max(0.0, begun + timeout - time.monotonic())
            response = await self._peer.response(thread, correlation_id, left)
        except SchedulerUnreachable as error:
            resume = f"the turn may still be running; pick it up with correlation_id={correlation_id!r}"
            raise SchedulerUnreachable(error.endpoint, f"{error.detail}; {resume}") from error
        if response is None:
            raise TurnTimeout(thread.agent, thread.thread_id, correlation_id, timeout or 0.0)
        return answer(response, thread, response_format)

    async def tell(self, thread: AgentThread, operation: str, input: Mapping[str, Json]) -> Json:
        """Tell a thread something, and hear what it says. A worker that hosts the agent carries it there.

        Raises:
            AgentNotHosted: None does; nothing was changed.
            UnsupportedByPeer: The peer hosts it.
            TurnError: The thread refused.
        """
        if await self._is_by_peer(thread.agent):
            raise UnsupportedByPeer(thread.agent, f"hear of a turn while it runs ({operation!r})")
        telling = new_id()
        sent = {"thread": thread.thread_id, "operation": operation, "input": dict(input)}
        await self._backend.start(tell_name(thread.agent), telling, sent)
        state = await self._end_of(thread.agent, telling, None)
        assert state is not None  # waited for without an end
        if state.runtime_status is not OrchestrationStatus.COMPLETED:
            raise _failure(state, thread.agent, telling)
        outcome = output_of(state)
        if outcome and "error" in outcome:
            raise _codec.load_error(outcome["error"]) or TurnFailed(
                thread.agent, telling, "an unknown error", str(outcome["error"])
            )
        return outcome

    async def turn(self, agent: str, correlation_id: str) -> tuple[AgentThread, OrchestrationState]:
        """A turn that was started before, with its thread.

        Raises:
            TurnNotFound: There is no such turn of that agent.
        """
        state = await self._backend.state(correlation_id)
        if state is None or state.name != turn_name(agent):
            raise TurnNotFound(agent, correlation_id)
        return AgentThread(agent, json.loads(state.serialized_input or "{}")["thread"]), state

    def is_handed_over(self, record: OrchestrationState) -> bool:
        """Whether the peer has the turn that this orchestration stands for."""
        return self._hosted_by_peer or handed_over(record)

    async def document(self, thread: AgentThread) -> Json:
        """The stored document of a thread, or None."""
        return await self._backend.thread(thread.entity_id)

    async def pending(self, agent: str, thread: AgentThread | None) -> list[PendingDecision]:
        """All that waits for a person in a thread and the turns of agents that it uses as tools; or in all threads."""
        if thread is None:
            documents = await self._backend.threads(entity_name(agent))
            todo = [(AgentThread(agent, key), document) for key, document in documents.items()]
        else:
            todo = [(thread, await self.document(thread))]
        found: list[PendingDecision] = []
        while todo:
            where, document = todo.pop(0)
            ours = unfinished(document)
            if (active := ours.get("active")) is None or active in object_in(ours.get("cancelled")):
                continue
            asks = object_in(ours.get("asks")).values()
            found += [_codec.load_pending(where, active, ask) for ask in asks if "decision" not in ask]
            if thread is not None:
                below = [
                    AgentThread(each["agent"], each["thread"]) for each in object_in(ours.get("children")).values()
                ]
                todo += [(child, await self.document(child)) for child in below]
        return found

    async def _is_by_peer(self, agent: str) -> bool:
        """Whether the peer hosts the agent, as far as that is known at once. One of ours is not asked for again."""
        if self._hosted_by_peer or agent in self._seen:
            return self._hosted_by_peer
        hosted = await self._backend.hosted()
        if hosted is None:
            return agent in self._by_peer
        if hosted.orchestrations.take(turn_name(agent)):
            self._seen.add(agent)
        return await self._peer.hosts(agent)

    async def _end_of(self, agent: str, correlation_id: str, timeout: float | None) -> OrchestrationState | None:
        """An orchestration when it has ended, or when its turn was handed over; None where neither came in time."""
        begun = time.monotonic()
        give_up = math.inf if timeout is None else begun + timeout
        looks = [begun + wait for wait in self._looks]
        while (left := give_up - time.monotonic()) > 0:
            poll = min(left, max(looks[0] - time.monotonic(), 0.001)) if looks else left
            state = await self._backend.wait(correlation_id, poll, at_most=left)
            if state is None and looks and looks[0] <= time.monotonic() < give_up + MARGIN:
                waited = looks.pop(0) - begun
                state = await self._withdraw_if_pending(agent, correlation_id, waited, last=not looks)
            if state is not None:
                if not _is_by_peer(state):
                    self._seen.add(agent)
                return state
        return None

    async def _withdraw_if_pending(
        self, agent: str, correlation_id: str, waited: float, *, last: bool
    ) -> OrchestrationState | None:
        """Terminate a turn that no worker has taken, at the last look, or where it is known that none will.

        Gives the turn's state if it ended by itself in that moment, or if the peer has it now. An agent that was hosted
        before may just be starting again, and gets the whole `start_timeout`.

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
        request = request_in(state)
        if request is not None and (last or known is not None) and await self._peer.hosts(agent):
            self._by_peer.add(agent)
            thread = AgentThread(agent, json.loads(state.serialized_input or "{}")["thread"])
            return await self._peer.hand_over(thread, request)
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
            return answer(output_of(state), thread, response_format)
        if state.runtime_status is OrchestrationStatus.TERMINATED:
            raise TurnTerminated(thread.agent, correlation_id, str(output_of(state) or ""))
        raise _failure(state, thread.agent, correlation_id)


def _is_by_peer(record: OrchestrationState) -> bool:
    """Whether a turn that need not be waited for was handed over: not every scheduler shows the end of its record."""
    return handed_over(record) or record.runtime_status is OrchestrationStatus.PENDING


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


def unfinished(document: Json) -> Mapping[str, Json]:
    """`data.dafx` of a stored thread: its turns that have not ended."""
    return object_in(object_in(object_in(document).get("data")).get("dafx"))


def output_of(state: OrchestrationState) -> Json:
    if state.serialized_output is None:
        return None
    try:
        return json.loads(state.serialized_output)
    except json.JSONDecodeError:
        return state.serialized_output  # others may terminate with a plain text
