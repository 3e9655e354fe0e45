"""Agents whose worker is the peer's (`agent-framework-durabletask`), as a client of ours runs them.

That worker has the thread's entity, with an operation `run` that is the whole turn, and no orchestration for turns.
So a turn is *handed over*: signalled to the thread, whose state is read at growing intervals until the answer is there.

The turn's orchestration is started all the same, and ended at once: it is the record by which the same correlation id
is not sent twice, and by which any program finds the turn again. It cannot tell whether the signal arrived; one that
was lost with the program that sent it is not sent again, since the peer would answer it twice.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Collection

import anyio
import attrs
from durabletask.client import OrchestrationState, OrchestrationStatus

from dafx_actors._durable.backend import Backend
from dafx_actors._json import peer as _peer_forms
from dafx_actors._json.document import SCHEMA_VERSION, response_in
from dafx_actors._json.steps import StartedTurn
from dafx_actors.exchange import RunRequest
from dafx_actors.ids import AgentThread, entity_name, new_id, turn_name
from dafx_actors.transcript import Json

_HANDED_OVER = "handed over to the peer's worker"
_FIRST_PAUSE, _LONGEST_PAUSE = 0.02, 2.0
_MOST_REMEMBERED = 10_000
_TIME_FOR_A_SIGN = 2.0
"""Seconds that a worker has to show that it hosts an agent's threads."""


def handed_over(state: OrchestrationState) -> bool:
    """Say whether the peer's worker has to answer the turn that this orchestration stands for."""
    ended = state.runtime_status is OrchestrationStatus.TERMINATED
    return ended and _HANDED_OVER in (state.serialized_output or "")


def _was_not_known(record: OrchestrationState) -> bool:
    """Say whether a worker without work-item filters took the turn, and failed it as one that it does not know."""
    failure = record.failure_details
    return failure is not None and failure.error_type.endswith("OrchestratorNotRegisteredError")


def pause_after(pause: float, waited: float) -> float:
    """Seconds until a state is read again: a tenth of what was waited so far, within bounds."""
    return min(max(pause, waited / 10), _LONGEST_PAUSE)


def hosted_by_peer(agent: str, *, entities: Collection[str], has_turns: bool) -> bool:
    """Say whether connected workers take the agent's threads by name, and none takes its turns."""
    return entity_name(agent).lower() in entities and not has_turns


class PeerThreads:
    """Threads of agents that the peer hosts."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._given: OrderedDict[str, None] = OrderedDict()
        """Turns that were handed over here, whose orchestrations the scheduler may still show as they were."""

    def has_given(self, correlation_id: str) -> bool:
        """Say whether this client has handed a turn over lately."""
        return correlation_id in self._given

    async def hosts(self, agent: str) -> bool:
        """Find out whether the peer hosts the agent; for when no worker of ours has taken a turn.

        Where the scheduler cannot tell, a new thread is given an empty state, by an operation that every
        entity written as a class has, as the peer's is and ours is not. It is deleted again; if nobody hosts the agent,
        both messages wait for a worker that will. (Not by `reset`: the peer's calls itself without end.)
        """
        if (hosted := await self._backend.hosted()) is not None:
            # The scheduler knows entities by their names in small letters: in whatever letters the turns of such an
            # agent are hosted, it is one of ours, and the name that was asked for is misspelt.
            ours = turn_name(agent).lower()
            known = hosted.orchestrations
            has_turns = known.take(turn_name(agent)) or ours in map(str.lower, known.names)
            return hosted_by_peer(agent, entities=hosted.entities.names, has_turns=has_turns)
        sign = AgentThread(agent, new_id()).entity_id
        empty: Json = {"schemaVersion": SCHEMA_VERSION, "data": {"conversationHistory": []}}
        await self._backend.signal(sign, "set_state", empty)
        started, pause, answer = time.monotonic(), _FIRST_PAUSE, None
        while answer is None and (waited := time.monotonic() - started) < _TIME_FOR_A_SIGN:
            await anyio.sleep(pause := pause_after(pause, waited))
            answer = await self._backend.thread(sign)
        await self._backend.signal(sign, "delete", None)
        return answer is not None

    async def hand_over(
        self, thread: AgentThread, request: RunRequest, *, created: bool = False
    ) -> OrchestrationState | None:
        """Give a turn whose orchestration no worker has taken to the peer; once, whoever else is about to.

        With `created`, the caller has just started that orchestration, and nobody else is about to.

        Gives the orchestration: that was handed over, or as it ended where our own worker took it at the last moment.

        Raises:
            UnsupportedByPeer: The peer cannot take it. Nothing was sent.
        """
        # In the name of an orchestration, its record: a worker of ours that comes meanwhile answers it there and then,
        # and starts no turn of that id, which has ended.
        asked = attrs.evolve(request, orchestration_id=request.correlation_id)
        sent = _peer_forms.dump_for_peer(thread.agent, asked)
        token = new_id()
        await self._backend.terminate(request.correlation_id, f"{_HANDED_OVER} ({token})")
        # A scheduler may show the end only once some worker takes it; the embedded one shows it at once.
        ended = await self._backend.wait(request.correlation_id, 0.5)
        unknown = created and ended is not None and _was_not_known(ended)
        if ended is None or unknown or token in (ended.serialized_output or ""):
            # Said before it is done: to give it twice would have the peer do it twice.
            self._given[request.correlation_id] = None
            if len(self._given) > _MOST_REMEMBERED:
                self._given.popitem(last=False)
            await self._backend.signal(thread.entity_id, "run", sent)
        return ended or await self._backend.state(request.correlation_id)

    async def response(self, thread: AgentThread, correlation_id: str, timeout: float | None) -> Json:
        """Wait for the stored response of a turn; None where it has not ended in time.

        Raises:
            UnsupportedTranscript: The thread is in a form that this version does not know.
        """
        started, pause = time.monotonic(), _FIRST_PAUSE
        while True:
            response = response_in(await self._backend.thread(thread.entity_id), correlation_id)
            waited = time.monotonic() - started
            if response is not None or (timeout is not None and waited >= timeout):
                return response
            pause = pause_after(pause, waited)
            await anyio.sleep(pause if timeout is None else min(pause, timeout - waited))


def request_in(record: OrchestrationState) -> RunRequest | None:
    """The request that a turn's orchestration was started with; None where it is one of something else."""
    return StartedTurn.of(record.serialized_input).request
