"""Where a turn stands, as its orchestration and its thread show it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias, cast

import attrs
from durabletask.client import OrchestrationStatus

from dafx_actors._json.crossing import load_error
from dafx_actors._json.document import Outline, response_in
from dafx_actors._json.requests import finish_reason_in, load_response
from dafx_actors._json.steps import ShownStatus
from dafx_actors.client._executor import ClientAgentExecutor, output_of
from dafx_actors.errors import DafxError, TurnCancelled
from dafx_actors.ids import AgentThread
from dafx_actors.transcript import Json

TurnState: TypeAlias = Literal[
    "pending",
    "queued",
    "running",
    "waiting",
    "blocked",
    "retrying",
    "completed",
    "failed",
    "cancelled",
    "terminated",
    "suspended",
]
"""`pending`: no worker has taken it yet. `queued`: it waits for the turns before it. `waiting`: for a person.
`blocked`: for a worker that has a tool, or hosts an agent, of that name; see `TurnStatus.waits_for`."""

_BY_STATUS: Mapping[OrchestrationStatus, TurnState] = {
    OrchestrationStatus.PENDING: "pending",
    OrchestrationStatus.COMPLETED: "completed",
    OrchestrationStatus.TERMINATED: "terminated",
    OrchestrationStatus.SUSPENDED: "suspended",
}


@attrs.frozen(kw_only=True)
class TurnStatus:
    """Where a turn stands.

    `state` is one of `pending` (no worker has taken it yet), `queued` (it waits for the turns before it), `running`,
    `waiting` (for a person, about the tools in `waits_for`), `blocked` (for a worker that has what `waits_for` names),
    `retrying` (after `attempt` failures of a model call, the latest `error`), `completed` (with a `finish_reason`),
    `failed` (with an `error`), `cancelled`, `terminated` and `suspended`. `steps` counts model calls and tool calls.
    """

    state: TurnState
    steps: int = 0
    """Model calls and tool calls so far."""
    progress: Mapping[str, Json] = attrs.field(factory=dict[str, Json], hash=False)
    """The latest progress report of each running tool, by the key of its call."""
    attempt: int | None = None
    """While `retrying`: the model call's attempts that failed."""
    waits_for: tuple[str, ...] = ()
    """While `blocked`: the tools and agents that no worker has; the turn's own agent, where no worker hosts that and
    the scheduler can tell. While `waiting`: the tools whose calls a person is asked about."""
    error: str | None = None
    """While `retrying`, what the latest attempt failed with; of a turn that failed, its error."""
    finish_reason: str | None = None
    """The reason why the answer ended, once there is one; see `AgentRunResponse.finish_reason`."""


async def look_at(executor: ClientAgentExecutor, agent: str, correlation_id: str) -> tuple[TurnStatus, Json]:
    """Where a turn stands now, and the document of its thread, which is read only while the turn runs.

    Raises:
        TurnNotFound: There is no such turn.
        SchedulerUnreachable: Nothing answers.
    """
    thread, state = await executor.turn(agent, correlation_id)
    shown = ShownStatus.of(state.serialized_custom_status)
    steps = shown.steps
    if executor.is_handed_over(state):
        document = await executor.document(thread)
        return _status_by_peer(document, thread, correlation_id), document
    if state.runtime_status is OrchestrationStatus.FAILED:
        failure = state.failure_details
        error = load_error(failure.message) if failure else None
        ended: TurnState = "cancelled" if isinstance(error, TurnCancelled) else "failed"
        text = str(error) if error else failure.message if failure else None
        return TurnStatus(state=ended, steps=steps, error=text), None
    if state.runtime_status is OrchestrationStatus.PENDING and await executor.is_unhosted(agent):
        return TurnStatus(state="blocked", waits_for=(agent,)), None
    if (state_name := _BY_STATUS.get(state.runtime_status)) is not None:
        reason = finish_reason_in(output_of(state)) if state_name == "completed" else None
        return TurnStatus(state=state_name, steps=steps, finish_reason=reason), None
    document = await executor.document(thread)
    outline, waits_for = Outline.of(document), shown.waits_for
    if shown.state == "waiting" and outline.active == correlation_id:
        waits_for = tuple(asked.tool for asked in outline.questions if asked.decision is None)
    status = TurnStatus(
        state=cast("TurnState", shown.state),
        steps=steps,
        progress=outline.progress.get(correlation_id, {}),
        attempt=shown.attempt,
        waits_for=waits_for,
        error=shown.error,
    )
    return status, document


def _status_by_peer(document: Json, thread: AgentThread, turn: str) -> TurnStatus:
    """The status of a turn that the peer's worker has. Its thread shows the turn only when it has ended."""
    if (response := response_in(document, turn)) is None:
        return TurnStatus(state="running")
    try:
        load_response(response, thread)
    except DafxError as error:
        return TurnStatus(state="failed", error=str(error))
    return TurnStatus(state="completed")
