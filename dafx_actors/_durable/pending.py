"""What an orchestration has asked for and not been answered yet, read from its history."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import TYPE_CHECKING, Literal, TypeAlias

import attrs
from durabletask import history

from dafx_actors.ids import agent_of_turn

if TYPE_CHECKING:
    from dafx_actors._durable.admin import Hosted

StepKind: TypeAlias = Literal["activity", "agent", "orchestration"]

_ENDED = (
    history.TaskCompletedEvent,
    history.TaskFailedEvent,
    history.SubOrchestrationInstanceCompletedEvent,
    history.SubOrchestrationInstanceFailedEvent,
)


@attrs.frozen(kw_only=True)
class PendingStep:
    """A step of an orchestration that has no result yet."""

    kind: StepKind
    name: str
    """Of the activity, the agent or the orchestration."""
    since: datetime
    """When the orchestration asked for it."""
    is_hosted: bool | None = None
    """Whether a connected worker takes that name: False where the step waits for a worker that has it. None where the
    scheduler cannot tell."""


def pending_steps(events: Iterable[history.HistoryEvent], hosted: Hosted | None) -> tuple[PendingStep, ...]:
    """The steps without a result, oldest first.

    Args:
        events: The orchestration's history.
        hosted: What connected workers take, where the scheduler can tell.
    """
    steps: dict[int, PendingStep] = {}
    for event in events:
        if isinstance(event, history.TaskScheduledEvent):
            has = None if hosted is None else hosted.activities.take(event.name)
            steps[event.event_id] = PendingStep(kind="activity", name=event.name, since=event.timestamp, is_hosted=has)
        elif isinstance(event, history.SubOrchestrationInstanceCreatedEvent):
            has = None if hosted is None else hosted.orchestrations.take(event.name)
            agent = agent_of_turn(event.name)
            steps[event.event_id] = PendingStep(
                kind="agent" if agent else "orchestration",
                name=agent or event.name,
                since=event.timestamp,
                is_hosted=has,
            )
        elif isinstance(event, _ENDED):
            steps.pop(event.task_scheduled_id, None)
    return tuple(steps.values())
