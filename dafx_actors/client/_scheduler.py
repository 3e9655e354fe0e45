"""The scheduler itself, as `client.scheduler`: figures and backups of the embedded one. And who hosts what."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias

import attrs

from dafx_actors._durable.admin import Hosted
from dafx_actors._durable.backend import Backend
from dafx_actors._durable.calls import Sent
from dafx_actors.errors import UnsupportedByScheduler
from dafx_actors.ids import agent_of_entity, agent_of_turn, tool_of_step

__all__ = ["Backup", "HostedAgent", "HubStats", "Scheduler", "SchedulerStats", "WorkStats", "WorkerStats"]

HostedBy: TypeAlias = Literal["worker", "peer", "nobody"]


@attrs.frozen(kw_only=True)
class HostedAgent:
    """An agent that connected workers host, or hosted within the last ten minutes."""

    name: str
    """In small letters where only the peer's worker hosts it: its worker tells no more."""
    hosted_by: HostedBy
    """`worker`: a worker of this package. `peer`: one of `agent-framework-durabletask`. `nobody`: a worker did within
    the last ten minutes, and none does now."""
    tools: tuple[str, ...] = ()
    """The tools of its own that workers take calls of, or took, where `hosted_by` is `nobody`."""


@attrs.frozen(kw_only=True)
class WorkStats:
    """Work of one kind that waits for workers, or is with them."""

    waiting: int
    oldest: float | None
    """Seconds that the oldest of it has waited; None where nothing waits."""
    held: int
    """Items that workers have at this moment."""


@attrs.frozen(kw_only=True)
class WorkerStats:
    """A worker that is connected."""

    name: str
    connected: float
    """Seconds for which it has been."""
    holds: Mapping[str, int] = attrs.field(hash=False)
    """Items that it has at this moment, by kind: `orchestration`, `activity`, `entity`."""


@attrs.frozen(kw_only=True)
class HubStats:
    """A task hub of the embedded scheduler."""

    orchestrations: Mapping[str, int] = attrs.field(hash=False)
    """How many there are, turns included, by status in small letters."""
    entities: int
    """Threads among them."""
    waiting_clients: int
    """Calls that wait for an orchestration to end."""
    work: Mapping[str, WorkStats] = attrs.field(hash=False)
    """By kind: `orchestration`, `activity`, `entity`."""
    workers: tuple[WorkerStats, ...]


@attrs.frozen(kw_only=True)
class SchedulerStats:
    """Figures of the embedded scheduler."""

    database: str
    """The path of its file, on its machine; `:memory:` where it has none."""
    size: int
    """Bytes on disk, the log included."""
    uptime: float
    """Seconds since it was started."""
    is_writable: bool
    """False while its disk refuses to be written."""
    timers: int
    """What is due at some time."""
    slowest_commit: float
    """Seconds that the slowest write took since the start."""
    hubs: Mapping[str, HubStats] = attrs.field(hash=False)
    """Each task hub that was used since the start, by name."""


@attrs.frozen
class Backup:
    """A backup that was made."""

    path: Path
    """On the scheduler's machine."""
    size: int
    """Bytes."""


class Scheduler:
    """The scheduler of a client, as `client.scheduler`: where it is the embedded one, its figures and backups."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    async def stats(self, *, timeout: float | None = None) -> SchedulerStats:
        """Figures of the scheduler, of all its task hubs. One call; the scheduler counts its rows for it.

        Args:
            timeout: Seconds to wait, outages of the scheduler included; by default as long as it takes.

        Raises:
            UnsupportedByScheduler: It is not the embedded one.
            SchedulerUnreachable: Nothing answers, or not within `timeout`.
        """
        with self._backend.bounded(timeout):
            raw = await self._backend.stats()
        if raw is None:
            raise UnsupportedByScheduler(self._backend.where.endpoint, "figures")
        return _stats(raw)

    async def backup(self, name: str, *, timeout: float | None = None) -> Backup:
        """Copy the scheduler's database, while it works, into a new file in the scheduler's folder for backups.

        One call, which lasts as long as the copy: it is written and checked, some hundred megabytes a second.

        Args:
            name: Of the file, without a folder; it ends in `.db`, which is added where it is missing.
            timeout: Seconds to wait, outages of the scheduler included; by default as long as it takes.

        Raises:
            UnsupportedByScheduler: It is not the embedded one.
            SchedulerRefused: There is a file of that name, or it is no name of a file, or the disk is full.
            SchedulerUnreachable: Nothing answers, or not within `timeout`; the copy may be made all the same.
        """
        sent = Sent()
        with self._backend.bounded(timeout, sent):
            made = await self._backend.back_up(name, sent)
        if made is None:
            raise UnsupportedByScheduler(self._backend.where.endpoint, "a backup")
        return Backup(*made)


def _stats(raw: Mapping[str, Any]) -> SchedulerStats:
    return SchedulerStats(
        database=raw["database"],
        size=raw["bytes"],
        uptime=raw["uptime"],
        is_writable=raw["writable"],
        timers=raw["timers"],
        slowest_commit=raw["slowest_commit"],
        hubs={name: _hub(hub) for name, hub in raw["task_hubs"].items()},
    )


def _hub(raw: Mapping[str, Any]) -> HubStats:
    return HubStats(
        orchestrations={name.lower(): count for name, count in raw["orchestrations"].items()},
        entities=raw["entities"],
        waiting_clients=raw["waiting_clients"],
        work={
            kind: WorkStats(waiting=work["waiting"], oldest=work["oldest"], held=work["held"])
            for kind, work in raw["work"].items()
        },
        workers=tuple(
            WorkerStats(name=each["name"], connected=each["connected"], holds=each["holds"]) for each in raw["workers"]
        ),
    )


def agents_in(hosted: Hosted) -> list[HostedAgent]:
    """Who hosts what, of what a scheduler tells of the names that its workers take; by name."""
    now = _ours(hosted.orchestrations.names)
    lately = _ours(hosted.lately.orchestrations.names) - now
    ours = {name.lower() for name in now | lately}
    peers = {agent for each in hosted.entities.names if (agent := agent_of_entity(each)) and agent.lower() not in ours}
    found = [
        *[HostedAgent(name=name, hosted_by="worker", tools=_tools(name, hosted.activities.names)) for name in now],
        *[HostedAgent(name=name, hosted_by="peer") for name in peers],
        *[
            HostedAgent(name=name, hosted_by="nobody", tools=_tools(name, hosted.lately.activities.names))
            for name in lately
        ],
    ]
    return sorted(found, key=lambda agent: agent.name)


def _ours(orchestrations: Iterable[str]) -> set[str]:
    return {agent for name in orchestrations if (agent := agent_of_turn(name))}


def _tools(agent: str, activities: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(tool for name in activities if (tool := tool_of_step(agent, name)) is not None))
