"""The orchestrations of a task hub, as `client.orchestrations`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Literal, TypeAlias, get_args

import attrs
from durabletask.client import OrchestrationQuery, OrchestrationState, OrchestrationStatus

from dafx_actors._durable.backend import Backend
from dafx_actors.client._listing import Listing, Page, before
from dafx_actors.ids import is_ours
from dafx_actors.transcript import Json

__all__ = ["OrchestrationInfo", "OrchestrationPhase", "Orchestrations"]

OrchestrationPhase: TypeAlias = Literal["pending", "running", "completed", "failed", "terminated", "suspended"]
"""The status of an orchestration, in small letters: durabletask's, without what lasts a moment only."""

_PHASES: Mapping[OrchestrationStatus, OrchestrationPhase] = {
    OrchestrationStatus.PENDING: "pending",
    OrchestrationStatus.RUNNING: "running",
    OrchestrationStatus.CONTINUED_AS_NEW: "running",
    OrchestrationStatus.COMPLETED: "completed",
    OrchestrationStatus.FAILED: "failed",
    OrchestrationStatus.TERMINATED: "terminated",
    OrchestrationStatus.SUSPENDED: "suspended",
}


@attrs.frozen(kw_only=True)
class OrchestrationInfo:
    """An orchestration of a list: where it stood when it was read."""

    instance_id: str
    name: str
    state: OrchestrationPhase
    created_at: datetime
    updated_at: datetime
    custom_status: Json = attrs.field(default=None, hash=False)
    """What it gave to `context.set_custom_status`."""
    error: str | None = None
    """Of one that failed, what it failed with."""


class Orchestrations:
    """The orchestrations of a task hub, as `client.orchestrations`. `client.get_orchestration` looks after one."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def list(
        self,
        name: str | None = None,
        *,
        prefix: str = "",
        state: OrchestrationPhase | None = None,
        older: timedelta | None = None,
        of_agents: bool = False,
        timeout: float | None = None,
    ) -> Listing[OrchestrationInfo]:
        """The orchestrations, in the order in which they were started where the scheduler keeps it.

        On any backend. The scheduler looks for `prefix`, `state` and `older`; for `name` it is looked here, so that the
        others are read as well, without their inputs and results, 100 in a call.

        Args:
            name: Of this name.
            prefix: Whose ids begin so.
            state: In this state.
            older: Started so long ago, or before.
            of_agents: Also those that are turns of agents, or tell their threads something.
            timeout: Seconds for each page, outages of the scheduler included; by default as long as it takes.

        Raises:
            ValueError: `state` is none, or `older` is negative.
        """
        if state is not None and state not in get_args(OrchestrationPhase):
            raise ValueError(f"{state!r} is no state of an orchestration: {', '.join(get_args(OrchestrationPhase))}")
        statuses = [status for status, phase in _PHASES.items() if phase == state]
        query = OrchestrationQuery(
            created_time_to=before(older), runtime_status=statuses or None, instance_id_prefix=prefix or None
        )

        async def read(size: int, after: str) -> Page[OrchestrationInfo]:
            sized = dataclasses.replace(query, max_instance_count=size)
            with self._backend.bounded(timeout):
                records, token = await self._backend.page_of_instances(sized, after)
            found = [_info(each) for each in records if name in (None, each.name)]
            return Page(items=tuple(each for each in found if of_agents or not is_ours(each.name)), next=token)

        return Listing(read)


def _info(record: OrchestrationState) -> OrchestrationInfo:
    try:
        custom = json.loads(record.serialized_custom_status or "null")
    except (ValueError, RecursionError):
        custom = record.serialized_custom_status  # others may write what is no JSON
    return OrchestrationInfo(
        instance_id=record.instance_id,
        name=record.name,
        state=_PHASES[record.runtime_status],
        created_at=record.created_at.replace(tzinfo=UTC),
        updated_at=record.last_updated_at.replace(tzinfo=UTC),
        custom_status=custom,
        error=record.failure_details.message if record.failure_details else None,
    )
