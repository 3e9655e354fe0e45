"""How a client's agents are run: a turn's orchestration is started and waited for; a thread is told things."""

from __future__ import annotations

import functools
import json
import math
import time
from collections.abc import Awaitable, Callable, Generator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import anyio
import attrs
from durabletask.client import OrchestrationState, OrchestrationStatus

from dafx_actors._durable.backend import Backend
from dafx_actors._durable.calls import Sent, within
from dafx_actors._json.answers import answer
from dafx_actors._json.crossing import load_error
from dafx_actors._json.document import Outline, load_transcript
from dafx_actors._json.operations import (
    Decide,
    Decided,
    Outcome,
    Refused,
    Telling,
    ToThread,
    load_outcome,
    place_of,
)
from dafx_actors._json.peer import dump_for_peer
from dafx_actors._json.shapes import object_in
from dafx_actors._json.steps import ShownStatus, StartedTurn, TurnInput
from dafx_actors._rules import resuming as _resuming
from dafx_actors._rules import state as _state
from dafx_actors.client._peer import PeerThreads, handed_over, request_in
from dafx_actors.client._views import Views
from dafx_actors.decisions import PendingApproval, PendingOutcome
from dafx_actors.errors import (
    AgentNotHosted,
    CorrelationConflict,
    RetryRefused,
    SchedulerUnreachable,
    TurnCancelled,
    TurnFailed,
    TurnNotFound,
    TurnSuperseded,
    TurnTerminated,
    TurnTimeout,
    UnsupportedByPeer,
)
from dafx_actors.exchange import AgentRunResponse, RunRequest
from dafx_actors.ids import AgentThread, agent_of_turn, entity_name, tell_name, telling_id, turn_name
from dafx_actors.transcript import Json, Transcript

ENDED = (OrchestrationStatus.COMPLETED, OrchestrationStatus.FAILED, OrchestrationStatus.TERMINATED)
_GRACE = 1.0
"""Seconds that a worker which starts at the same time as its client has, where the scheduler tells what is hosted."""
_START_TIMEOUT = 10.0
"""Seconds that it has where the scheduler cannot tell."""
AWAY = 30.0
"""Seconds that it has where the agent was hosted a while ago: it is being deployed, or restarted. A caller who has said
how long to wait waits so long."""
_LOOK_AGAIN, _LONGEST_PAUSE = 10.0, 60.0
"""Seconds between two looks at a turn that no worker has begun; they grow."""
_A_WHILE = 600.0
"""Seconds for which an agent that was hosted is taken to come back."""


class _Vigil:
    """When a turn that no worker has begun is looked at."""

    def __init__(self, first: float, patience: float | None = None) -> None:
        """Begin it.

        Args:
            first: Seconds until the first look.
            patience: Seconds for which an agent is waited for that was hosted a while ago; None: as for a turn.
        """
        self.patience = patience
        self.begin()
        self._look = self._since + first

    def begin(self) -> None:
        """Workers are there: from now on one may go away."""
        self._since = time.monotonic()
        self._pause = _LOOK_AGAIN
        self._look = self._since + self._pause

    def go_on(self, patience: float) -> None:
        """Look again when patience is over, and before."""
        now = time.monotonic()
        self._look = min(self._since + patience, now + self._pause)
        self._pause = min(self._pause * 2, _LONGEST_PAUSE)

    def end(self) -> None:
        """A worker has begun it: it needs no looks."""
        self._look = math.inf

    @property
    def waited(self) -> float:
        """Seconds without a worker."""
        return time.monotonic() - self._since

    @property
    def is_due(self) -> bool:
        """Say whether it is time to look for a worker."""
        return self._look <= time.monotonic()

    @property
    def left(self) -> float:
        """The seconds until the next look."""
        return max(self._look - time.monotonic(), 0.001)


class ClientAgentExecutor:
    """Runs agents from outside: starts a turn's orchestration and waits for it to end.

    Agents that the peer hosts are run by `_peer.py`: those that the caller says are, see `PeerExecutor`; where the
    scheduler tells what is hosted, those of which it says so; elsewhere, those whose turns no worker takes within
    `start_timeout` although their threads answer.
    """

    def __init__(self, backend: Backend, start_timeout: float | None) -> None:
        self._backend = backend
        self._given = start_timeout
        self.start_timeout = _START_TIMEOUT if start_timeout is None else start_timeout
        self._peer = PeerThreads(backend)
        self.views = Views(backend)
        """What turns say just now, where the scheduler shows that."""
        self._seen: dict[str, float] = {}
        """Agents that workers of ours have hosted, and when that was seen."""
        self._by_peer: set[str] = set()
        """Agents that the peer hosts, where it took a while to find out."""

    async def transcript(self, thread: AgentThread, timeout: float | None = None) -> Transcript:
        """See `DurableAIAgent.get_transcript`."""
        with self.bounded(timeout):
            return load_transcript(await self._backend.thread(thread.entity_id))

    async def is_unhosted(self, agent: str) -> bool:
        """Say whether the scheduler knows that no worker hosts the agent; False where the scheduler cannot tell.

        Raises:
            SchedulerUnreachable: Nothing answers.
        """
        hosted = await self._backend.hosted()
        return hosted is not None and not hosted.orchestrations.take(turn_name(agent))

    def bounded(self, timeout: float | None) -> AbstractContextManager[None]:
        """Bound what is asked of the scheduler inside: `SchedulerUnreachable` where it has not answered by then."""
        return self._backend.bounded(timeout)

    @contextmanager
    def bounded_turn(
        self, agent: str, thread: AgentThread | None, turn: str, timeout: float | None, sent: Sent, operation: str = ""
    ) -> Generator[None]:
        """Bound what is sent to a turn inside.

        Raises:
            TurnTimeout: It may have arrived, but has no answer yet.
            SchedulerUnreachable: It has not arrived.
        """
        late = TurnTimeout(agent, "" if thread is None else thread.thread_id, turn, timeout or 0.0, operation)
        with within(timeout, lambda: late if sent.maybe else self._backend.silence(timeout)):
            yield

    async def start(self, thread: AgentThread, request: RunRequest, sent: Sent | None = None) -> None:
        """Start the turn, unless it was started before. One that was withdrawn, so that nobody did anything, was not.

        Raises:
            CorrelationConflict: Something else has that id.
            UnsupportedByPeer: The peer hosts the agent, and cannot take this.
        """
        by_peer = await self._is_by_peer(thread.agent)
        if by_peer:
            dump_for_peer(thread.agent, request)  # refused before anything is on record
        started = functools.partial(
            self._backend.start,
            turn_name(thread.agent),
            request.correlation_id,
            TurnInput(thread_id=thread.thread_id, request=request).dump(),
            sent=sent,
        )
        created = await started()
        state = None if created else await self._backend.state(request.correlation_id)
        if state is not None and await self._was_withdrawn(state):
            # Where another client does the same in this moment, one of the two starts it, and both wait for it.
            created = await started(replaces=OrchestrationStatus.TERMINATED)
            state = None if created else await self._backend.state(request.correlation_id)
        if state is not None and _is_unpaid(state) and _difference(state, thread, request) is None:
            created = await self._take_up(state, sent)
            state = None if created else await self._backend.state(request.correlation_id)
        if created and by_peer:
            await self._peer.hand_over(thread, request, created=True)
        if state is not None and (differs := _difference(state, thread, request)):
            raise CorrelationConflict(request.correlation_id, differs)

    async def wait(
        self,
        thread: AgentThread,
        correlation_id: str,
        response_format: Any,
        *,
        again: Callable[[], Awaitable[object]] | None = None,
    ) -> AgentRunResponse[Any]:
        """Wait for the turn's end, by long polls; withdraw a turn that no worker takes within `start_timeout`.

        Args:
            thread: Its thread.
            correlation_id: The turn.
            response_format: Of the answer.
            again: Starts it. A turn that somebody else withdraws meanwhile is started anew, once: some schedulers show
                that only when there is a worker again.
        """
        try:
            response = await self._response(thread, correlation_id, again)
        except SchedulerUnreachable as error:
            resume = f"the turn may still be running; pick it up with correlation_id={correlation_id!r}"
            raise SchedulerUnreachable(error.endpoint, f"{error.detail}; {resume}") from error
        return answer(response, thread, response_format)

    async def _response(
        self, thread: AgentThread, correlation_id: str, again: Callable[[], Awaitable[object]] | None
    ) -> Json:
        """The stored response of a turn, when it has ended."""
        vigil = self._vigil()
        state = await self._end_of(thread, correlation_id, vigil)
        if again is not None and await self._was_withdrawn(state):
            await again()
            state = await self._end_of(thread, correlation_id, vigil)
        if _is_left_to_peer(state) or self._is_given(correlation_id, state):
            return await self._peer.response(thread, correlation_id, None)
        return await self._completed(state, thread, correlation_id)

    async def tell(
        self,
        thread: AgentThread,
        message: ToThread,
        sent: Sent | None = None,
        *,
        leaves_record: bool = True,
        patience: float | None = None,
    ) -> Outcome:
        """Tell a thread something, and hear what it says. A worker that hosts the agent carries it there.

        Args:
            thread: The thread.
            message: What it is told.
            sent: Told whether it may have arrived.
            leaves_record: False: the orchestration that carried it is removed when it has ended.
            patience: Seconds to wait for a worker where one hosted the agent a while ago; by default as for a turn.

        Raises:
            AgentNotHosted: None does; nothing was changed.
            UnsupportedByPeer: The peer hosts it.
            TurnError: The thread refused.
        """
        if await self._is_by_peer(thread.agent):
            what = "hear of a turn while it runs" if leaves_record else "be told what becomes of a thread"
            raise UnsupportedByPeer(thread.agent, f"{what} ({message.operation!r})")
        telling = telling_id(thread)
        telling_input = Telling.of(thread, message).dump()
        await self._backend.start(tell_name(thread.agent), telling, telling_input, sent=sent)
        try:
            state = await self._end_of(thread, telling, _Vigil(self._first_look, patience))
        except AgentNotHosted as error:
            if not leaves_record:
                await self._backend.purge(telling)
            raise attrs.evolve(error, operation=message.operation) from None
        if not leaves_record:
            await self._backend.purge(telling)
        return _said(state, thread)

    async def store(self, thread: AgentThread, decide: Decide, sent: Sent) -> str:
        """Have a thread told of a decision as soon as a worker of the agent is there: the id under which it is stored.

        The same decision, sent again while it waits or after it was accepted, is stored once. Nobody else's is taken
        for it: where anything else has its id, it gets another.

        Raises:
            UnsupportedByPeer: The peer hosts the agent.
        """
        if await self._is_by_peer(thread.agent):
            raise UnsupportedByPeer(thread.agent, f"hear of a turn while it runs ({decide.operation!r})")
        name, telling = tell_name(thread.agent), Telling.of(thread, decide).dump()
        first = telling_id(thread, decide.timeless)
        if await self._backend.start(name, first, telling, sent=sent):
            return first
        state = await self._backend.state(first)
        if state is not None and state.name == name and _tells_the_same(state, thread, decide):
            return first
        await self._backend.start(name, another := telling_id(thread), telling, sent=sent)
        return another

    async def said(self, thread: AgentThread, telling: str) -> Outcome:
        """What a thread says to what it was told; waits as long as it takes, also for a worker.

        Raises:
            TurnNotFound: The scheduler has no record of it any more.
            TurnTerminated: Somebody has ended what was to tell it.
            TurnError: The thread refused.
        """
        while (state := await self._backend.wait(telling, math.inf)) is None:
            if await self._backend.state(telling) is None:
                raise TurnNotFound(thread.agent, telling)
        self._see(thread.agent)
        return _said(state, thread)

    async def retry(self, agent: str, correlation_id: str, sent: Sent) -> bool:
        """Take up a turn that failed; False where it has not ended, or somebody else has taken it up in this moment.

        Raises:
            TurnNotFound: There is no such turn of that agent.
            RetryRefused: It has ended otherwise.
            UnsupportedByPeer: The peer hosts it.
        """
        thread, state = await self.turn(agent, correlation_id)
        if self.is_handed_over(state):
            raise UnsupportedByPeer(agent, "take up a turn that failed")
        if state.runtime_status not in ENDED:
            return False
        if StartedTurn.of(state.serialized_input).callers:
            raise RetryRefused(agent, correlation_id, "nested")
        if await self._was_withdrawn(state):
            started = StartedTurn.of(state.serialized_input)
            return await self._backend.start(
                state.name, correlation_id, started.raw, replaces=OrchestrationStatus.TERMINATED, sent=sent
            )
        if state.runtime_status is OrchestrationStatus.TERMINATED:
            raise RetryRefused(agent, correlation_id, "terminated")
        if state.runtime_status is OrchestrationStatus.COMPLETED:
            raise RetryRefused(agent, correlation_id, "answered")
        if isinstance(_failure(state, agent, correlation_id), TurnCancelled):
            raise RetryRefused(agent, correlation_id, "cancelled")
        # The orchestration may have failed over something else than its turn.
        if (why := _resuming.refusal(_state.load(await self.document(thread)), correlation_id)) is not None:
            raise RetryRefused(agent, correlation_id, why)
        return await self._take_up(state, sent)

    async def _take_up(self, failed: OrchestrationState, sent: Sent | None) -> bool:
        """Start a new execution of a turn that failed; False where another client has done so in this moment."""
        before = StartedTurn.of(failed.serialized_input)
        return await self._backend.start(
            failed.name,
            failed.instance_id,
            TurnInput.retried(before.raw, before.retry + 1),
            replaces=OrchestrationStatus.FAILED,
            sent=sent,
        )

    async def turn(self, agent: str, correlation_id: str) -> tuple[AgentThread, OrchestrationState]:
        """A turn that was started before, with its thread.

        Raises:
            TurnNotFound: There is no such turn of that agent.
        """
        state = await self._backend.state(correlation_id)
        if state is None or state.name != turn_name(agent):
            raise TurnNotFound(agent, correlation_id)
        return _thread_of(agent, state), state

    def is_handed_over(self, record: OrchestrationState) -> bool:
        """Say whether the peer's worker has the turn that this orchestration stands for."""
        return handed_over(record)

    async def document(self, thread: AgentThread) -> Json:
        """The stored document of a thread, or None."""
        return await self._backend.thread(thread.entity_id)

    async def pending(self, agent: str, thread: AgentThread | None) -> list[PendingApproval | PendingOutcome]:
        """List the questions of a thread, and of the turns of agents that it uses as tools; or those of all threads."""
        if thread is None:
            documents = await self._backend.threads(entity_name(agent))
            todo = [(AgentThread(agent, key), document) for key, document in documents.items()]
        else:
            todo = [(thread, await self.document(thread))]
        pending: list[PendingApproval | PendingOutcome] = []
        seen: set[str] = set()  # turns of earlier versions may wait for each other in a circle
        while todo:
            where, document = todo.pop(0)
            if str(where.entity_id) in seen:
                continue
            seen.add(str(where.entity_id))
            outline = Outline.of(document)
            if outline.active is None or outline.is_cancelled:
                continue
            pending += outline.asked_by(outline.active, where)
            if thread is not None:
                todo += [(child.thread, await self.document(child.thread)) for child in outline.children]
        return pending

    async def _is_by_peer(self, agent: str) -> bool:
        """Say whether the peer hosts the agent, as far as that is known at once.

        An agent of ours is not asked about again.
        """
        if agent in self._seen:
            return False
        hosted = await self._backend.hosted()
        if hosted is None:
            return agent in self._by_peer
        if hosted.orchestrations.take(turn_name(agent)):
            self._see(agent)
        return await self._peer.hosts(agent)

    def _see(self, agent: str) -> None:
        self._seen[agent] = time.monotonic()

    def _patience(self, agent: str, vigil: _Vigil, *, is_told: bool, had_workers: bool) -> float:
        """Seconds that a turn is left to wait for a worker, where none takes the agent's turns now.

        Args:
            agent: The agent.
            vigil: Says how long, where that is not for a turn.
            is_told: Whether the scheduler tells what is hosted.
            had_workers: Whether it tells that somebody took them a while ago.
        """
        if self._given is not None:
            return self._given
        if had_workers or time.monotonic() - self._seen.get(agent, -math.inf) < _A_WHILE:
            if vigil.patience is not None:
                return vigil.patience
            return AWAY if math.isinf(anyio.current_effective_deadline()) else math.inf
        return _GRACE if is_told else _START_TIMEOUT

    def _vigil(self) -> _Vigil:
        return _Vigil(self._first_look)

    @property
    def _first_look(self) -> float:
        return _GRACE if self._given is None else self._given

    async def _end_of(self, thread: AgentThread, correlation_id: str, vigil: _Vigil) -> OrchestrationState:
        """An orchestration when it has ended, or when its turn was handed over.

        Raises:
            AgentNotHosted: No worker took it in time, and it was withdrawn.
            TurnSuperseded: It is not there any more: its thread was deleted, or reset.
        """
        agent = thread.agent
        while True:
            state = await self._backend.wait(correlation_id, vigil.left)
            if state is None:
                if (there := await self._backend.state(correlation_id)) is None:
                    raise TurnSuperseded(thread.thread_id, correlation_id)
                if vigil.is_due:
                    state = await self._look(agent, there, vigil)
            if state is not None:
                if not (_is_left_to_peer(state) or self._is_given(correlation_id, state)):
                    self._see(agent)
                return state

    def _is_given(self, correlation_id: str, state: OrchestrationState) -> bool:
        """Whether this client has handed the turn over, and no worker of ours has answered it all the same."""
        return self._peer.has_given(correlation_id) and state.runtime_status is not OrchestrationStatus.COMPLETED

    async def _look(self, agent: str, state: OrchestrationState, vigil: _Vigil) -> OrchestrationState | None:
        """See to a turn that has not ended: whether a worker has it, and whether one will.

        Gives its state if the peer has it now, or if it ended by itself in this moment; None where it is to be waited
        for, and looked at again if the vigil says so.

        Raises:
            AgentNotHosted: The turn was withdrawn. A scheduler may show its end only once some worker takes it.
        """
        correlation_id = state.instance_id
        if self._is_given(correlation_id, state):
            return state  # some schedulers show its end late
        if state.runtime_status is not OrchestrationStatus.PENDING:
            self._see(agent)
            vigil.end()
            return None
        hosted = await self._backend.hosted()
        names = None if hosted is None else hosted.orchestrations
        if names is not None and names.take(turn_name(agent)):
            self._see(agent)
            vigil.begin()
            return None  # its workers are busy, and will come to it
        had_workers = hosted is not None and hosted.lately.orchestrations.take(turn_name(agent))
        patience = self._patience(agent, vigil, is_told=names is not None, had_workers=had_workers)
        is_last = vigil.waited >= patience
        request = request_in(state)
        if request is not None and (is_last or names is not None) and await self._peer.hosts(agent):
            self._by_peer.add(agent)
            thread = _thread_of(agent, state)
            return await self._peer.hand_over(thread, request)
        if not is_last:
            vigil.go_on(patience)
            return None
        agents = None if names is None else sorted(filter(None, map(agent_of_turn, names.names)))
        return await self._withdraw(agent, correlation_id, patience, agents)

    async def _withdraw(
        self, agent: str, correlation_id: str, waited: float, agents: list[str] | None
    ) -> OrchestrationState | None:
        if not await self._backend.withdraw(correlation_id, _withdrawal(waited, agents)):
            return None  # a worker has begun it in this moment
        ended = await self._backend.wait(correlation_id, 0.5)
        if ended is None or await self._was_withdrawn(ended):
            where = self._backend.where
            raise AgentNotHosted(agent, where.endpoint, where.task_hub, waited, agents)
        return ended

    async def _was_withdrawn(self, state: OrchestrationState) -> bool:
        """Say whether a turn was withdrawn before any worker had begun it."""
        return _withdrawal_in(state) is not None and not await self._backend.was_begun(state.instance_id)

    async def _completed(self, state: OrchestrationState, thread: AgentThread, correlation_id: str) -> Json:
        if state.runtime_status is OrchestrationStatus.COMPLETED:
            return output_of(state)
        if state.runtime_status is OrchestrationStatus.TERMINATED:
            mark = _withdrawal_in(state)
            if mark is not None and await self._was_withdrawn(state):  # by another client
                where = self._backend.where
                seconds, agents = float(mark.get("seconds") or 0.0), mark.get("hosted")
                raise AgentNotHosted(thread.agent, where.endpoint, where.task_hub, seconds, agents)
            detail = output_of(state) if mark is None else mark.get("reason")
            raise TurnTerminated(thread.agent, correlation_id, str(detail or ""))
        raise _failure(state, thread.agent, correlation_id)


class PeerExecutor(ClientAgentExecutor):
    """Runs agents of which the caller says that the peer hosts them: no worker of ours is waited for."""

    async def _response(
        self, thread: AgentThread, correlation_id: str, again: Callable[[], Awaitable[object]] | None
    ) -> Json:
        return await self._peer.response(thread, correlation_id, None)

    def is_handed_over(self, record: OrchestrationState) -> bool:
        """True: the peer's worker has each of these turns."""
        return True

    async def _is_by_peer(self, agent: str) -> bool:
        return True


_WITHDRAWN = "withdrawn: no worker took the turn"


def _withdrawal(waited: float, hosted: list[str] | None) -> Json:
    """The output of a turn that was withdrawn. An object, so that nobody's reason to terminate one looks like it."""
    return {"dafx": "withdrawn", "reason": _WITHDRAWN, "seconds": round(waited, 3), "hosted": hosted}


def _withdrawal_in(state: OrchestrationState) -> Mapping[str, Json] | None:
    """The withdrawal that a turn ended with; None where the turn ended otherwise."""
    if state.runtime_status is not OrchestrationStatus.TERMINATED:
        return None
    output: Json = output_of(state)
    if not isinstance(output, dict):
        return None
    withdrawal = object_in(output)
    return withdrawal if withdrawal.get("dafx") == "withdrawn" else None


def _is_left_to_peer(record: OrchestrationState) -> bool:
    """Whether a turn that need not be waited for was handed over: not every scheduler shows the end of its record."""
    return handed_over(record) or record.runtime_status is OrchestrationStatus.PENDING


def _failure(state: OrchestrationState, agent: str, correlation_id: str) -> Exception:
    failure = state.failure_details
    if failure is None:
        return TurnFailed(agent, correlation_id, "an error", "no details were recorded")
    return load_error(failure.message) or TurnFailed(agent, correlation_id, failure.error_type, failure.message)


def _is_unpaid(state: OrchestrationState) -> bool:
    """Say whether a turn failed for its configuration, before anybody paid for anything in it.

    One that an agent used as a tool ran is not meant: the turn above it has heard of the failure.
    """
    failure = state.failure_details
    if state.runtime_status is not OrchestrationStatus.FAILED or failure is None:
        return False
    steps = ShownStatus.of(state.serialized_custom_status).steps
    nested = StartedTurn.of(state.serialized_input).callers
    return not nested and _resuming.is_unpaid(load_error(failure.message), steps)


def _said(state: OrchestrationState, thread: AgentThread) -> Outcome:
    """What a thread has said, as the orchestration ended with it that told the thread something."""
    if state.runtime_status is OrchestrationStatus.TERMINATED:
        raise TurnTerminated(thread.agent, state.instance_id, "its thread may not have been told; send it again")
    if state.runtime_status is not OrchestrationStatus.COMPLETED:
        raise _failure(state, thread.agent, state.instance_id)
    outcome = load_outcome(output_of(state), thread, state.instance_id)
    if isinstance(outcome, Refused):
        raise outcome.error
    return outcome


def _tells_the_same(state: OrchestrationState, thread: AgentThread, decide: Decide) -> bool:
    """Whether an orchestration tells this very decision, or has told it and the thread has accepted it."""
    try:
        told = Telling.load(json.loads(state.serialized_input or "null"))
        if (told.thread_id, told.operation) != (thread.thread_id, decide.operation):
            return False
        if Decide.load(told.input).timeless != decide.timeless:
            return False
    except ValueError:  # anybody can start one, with anything
        return False
    if state.runtime_status is OrchestrationStatus.COMPLETED:
        return isinstance(load_outcome(output_of(state), thread), Decided)
    return state.runtime_status not in (OrchestrationStatus.FAILED, OrchestrationStatus.TERMINATED)


def _difference(state: OrchestrationState, thread: AgentThread, request: RunRequest) -> str | None:
    """In what a turn that was started before differs from this one, or None where it is the same."""
    if state.name != turn_name(thread.agent):
        return "agent"
    started = StartedTurn.of(state.serialized_input)
    if started.thread_id != thread.thread_id:
        return "thread"
    same = started.request is not None and place_of(started.request) == place_of(request)
    return None if same else "request"


def _thread_of(agent: str, turn: OrchestrationState) -> AgentThread:
    return AgentThread(agent, StartedTurn.of(turn.serialized_input).thread_id or "")


def output_of(state: OrchestrationState) -> Json:
    if state.serialized_output is None:
        return None
    try:
        return json.loads(state.serialized_output)
    except json.JSONDecodeError:
        return state.serialized_output  # others may terminate with a plain text
