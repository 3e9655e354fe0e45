"""The turns of a task hub, as `client.turns`: listed, and looked into."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import cast

import attrs
from durabletask.client import OrchestrationQuery, OrchestrationState, OrchestrationStatus

from dafx_actors._durable.admin import Hosted
from dafx_actors._durable.backend import Backend
from dafx_actors._durable.recorded import History
from dafx_actors._json.crossing import load_error
from dafx_actors._json.steps import ShownStatus, thread_in
from dafx_actors.client._executor import ClientAgentExecutor
from dafx_actors.client._handles import TurnHandle, TurnState, history_of
from dafx_actors.client._listing import Listing, Page, before
from dafx_actors.client._peer import handed_over
from dafx_actors.errors import InvalidThreadId, TurnCancelled
from dafx_actors.ids import AgentThread, agent_name, agent_of_turn, turn_name

__all__ = ["TurnInfo", "Turns"]

_RUNNING = OrchestrationStatus.RUNNING
_STATUSES: Mapping[TurnState, tuple[OrchestrationStatus, ...]] = {
    # Of a turn that the peer's worker has, the record has been terminated.
    "pending": (OrchestrationStatus.PENDING,),
    "queued": (_RUNNING,),
    "running": (_RUNNING, OrchestrationStatus.CONTINUED_AS_NEW, OrchestrationStatus.TERMINATED),
    "waiting": (_RUNNING,),
    "blocked": (_RUNNING, OrchestrationStatus.PENDING),
    "retrying": (_RUNNING,),
    "completed": (OrchestrationStatus.COMPLETED, OrchestrationStatus.TERMINATED),
    "failed": (OrchestrationStatus.FAILED, OrchestrationStatus.TERMINATED),
    "cancelled": (OrchestrationStatus.FAILED,),
    "terminated": (OrchestrationStatus.TERMINATED,),
    "suspended": (OrchestrationStatus.SUSPENDED,),
}
"""The statuses that the orchestration of a turn may have which is in a state."""
_BY_STATUS: Mapping[OrchestrationStatus, TurnState] = {
    OrchestrationStatus.PENDING: "pending",
    OrchestrationStatus.COMPLETED: "completed",
    OrchestrationStatus.FAILED: "failed",
    OrchestrationStatus.TERMINATED: "terminated",
    OrchestrationStatus.SUSPENDED: "suspended",
}


@attrs.frozen(kw_only=True)
class TurnInfo:
    """A turn of a list: where it stood when it was read."""

    agent: str
    correlation_id: str
    thread: AgentThread | None
    """None where the turn's request is so large that the list comes without it; `TurnHandle.thread` tells then."""
    state: TurnState
    created_at: datetime
    updated_at: datetime
    steps: int = 0
    """Model calls and tool calls so far."""
    waits_for: tuple[str, ...] = ()
    """While `blocked`; see `TurnStatus.waits_for`."""
    error: str | None = None
    """While `retrying`, what the latest attempt failed with; of a turn that failed, its error."""


class Turns:
    """The turns of a task hub, as `client.turns`: list them, and read what was recorded of one."""

    def __init__(self, backend: Backend, executor: ClientAgentExecutor) -> None:
        self._backend = backend
        self._executor = executor

    def list(
        self,
        agent: str | type | object | None = None,
        *,
        thread: AgentThread | None = None,
        state: TurnState | None = None,
        older: timedelta | None = None,
        timeout: float | None = None,
    ) -> Listing[TurnInfo]:
        """The turns, in the order in which they were started where the scheduler keeps it, as the embedded one does.

        On any backend. The scheduler looks for `state` and `older`; all else is looked for here, so that the other
        orchestrations and turns of the hub are read as well, each with its input, 100 in a call. A turn that the peer's
        worker has costs a call more, which reads its thread. Turns that were purged, or deleted with their thread, are
        not there.

        Args:
            agent: Of this agent, by name or class.
            thread: Of this thread.
            state: In this state.
            older: Started so long ago, or before.
            timeout: Seconds for each page, outages of the scheduler included; by default as long as it takes.

        Raises:
            ConfigurationError: `agent` is none.
            ValueError: `state` is none, or `older` is negative.
        """
        if state is not None and state not in _STATUSES:
            raise ValueError(f"{state!r} is no state of a turn; these are: {', '.join(_STATUSES)}")
        name = None if agent is None else turn_name(agent_name(agent))
        query = OrchestrationQuery(
            created_time_to=before(older),
            runtime_status=None if state is None else [*_STATUSES[state]],
            fetch_inputs_and_outputs=True,
        )

        async def read(size: int, after: str) -> Page[TurnInfo]:
            sized = dataclasses.replace(query, max_instance_count=size)
            with self._backend.bounded(timeout):
                records, token = await self._backend.page_of_instances(sized, after)
                chosen = [each for each in records if agent_of_turn(each.name) and name in (None, each.name)]
                pending = any(each.runtime_status is OrchestrationStatus.PENDING for each in chosen)
                hosted = await self._backend.hosted() if pending else None
                turns = [await self._info(each, hosted) for each in chosen]
            found = [turn for turn in turns if state in (None, turn.state) and thread in (None, turn.thread)]
            return Page(items=tuple(found), next=token)

        return Listing(read)

    async def history(self, correlation_id: str, *, timeout: float | None = None) -> History:
        """What was recorded of a turn: each step that it asked for and was given, with arguments and results.

        On any backend. The history is read whole: it grows with the steps of the turn, and not with its thread.
        `dafx_actors.testing.replay` runs today's code against it.

        Args:
            correlation_id: The turn.
            timeout: Seconds to wait, outages of the scheduler included; by default as long as it takes.

        Raises:
            OrchestrationNotFound: There is no such turn.
            SchedulerUnreachable: Nothing answers, or not within `timeout`.
        """
        with self._backend.bounded(timeout):
            return await history_of(self._backend, correlation_id)

    async def _info(self, record: OrchestrationState, hosted: Hosted | None) -> TurnInfo:
        agent = agent_of_turn(record.name) or ""
        shown, thread = _shown(record), _thread(agent, record)
        state, error, waits_for = _BY_STATUS.get(record.runtime_status, shown.state), shown.error, shown.waits_for
        if handed_over(record) and thread is not None:
            status = await TurnHandle(self._executor, agent, record.instance_id, thread, None).status()
            state, error = status.state, status.error
        elif state == "pending":
            if hosted is not None and not hosted.orchestrations.take(record.name):
                state, waits_for = "blocked", (agent,)
        elif state == "failed":
            message = record.failure_details.message if record.failure_details else ""
            failure = load_error(message)
            state = "cancelled" if isinstance(failure, TurnCancelled) else "failed"
            error = str(failure) if failure else message or None
        return TurnInfo(
            agent=agent,
            correlation_id=record.instance_id,
            thread=thread,
            state=cast("TurnState", state),
            created_at=record.created_at.replace(tzinfo=UTC),
            updated_at=record.last_updated_at.replace(tzinfo=UTC),
            steps=shown.steps,
            waits_for=waits_for,
            error=error,
        )


def _shown(record: OrchestrationState) -> ShownStatus:
    """What the turn shows; anybody may start an orchestration of its name, which shows anything."""
    try:
        return ShownStatus.of(record.serialized_custom_status)
    except (ValueError, TypeError):
        return ShownStatus()


def _thread(agent: str, record: OrchestrationState) -> AgentThread | None:
    found = thread_in(record.serialized_input)
    try:
        return None if found is None else AgentThread(agent, found)
    except InvalidThreadId:
        return None
