"""The scheduler's own small service, `dafx.scheduler.v1.Admin`: what is hosted, figures, withdrawals, backup.

Requests and replies are JSON objects in UTF-8, so that nobody needs generated code to use it: any gRPC client that
can send bytes will do. Metadata are those of every other call (`taskhub`, `authorization`).

=========  =====================  =====================================================================
method     request                reply
=========  =====================  =====================================================================
Hosted     `{}`                   which names the workers of the task hub take; see `hosted`
Stats      `{}`                   counts, queues and workers of every task hub; see `stats`
Withdraw   `{"instance_id": "i",  `{"withdrawn": true}`: an orchestration that no worker has begun is over, with
           "output": "null"}`     that output (JSON); false where one has, or it is over: then nothing changes
Backup     `{"name": "new.db"}`   `{"path": ..., "bytes": ...}`; a new file in the scheduler's folder for
                                  backups, by default `dafx.db-backups` beside `dafx.db`; its name ends in
                                  `.db`. One at a time, and as many as `engine.MOST_BACKUPS`
=========  =====================  =====================================================================
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dafx_actors.errors import SchedulerDatabaseError
from dafx_actors.scheduler._ground.clock import SECOND
from dafx_actors.scheduler._ground.proto import Status
from dafx_actors.scheduler._ground.records import WORK_KINDS
from dafx_actors.scheduler._hub.hub import Refused
from dafx_actors.scheduler.storage import queries

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from dafx_actors.scheduler._hub.engine import Engine
    from dafx_actors.scheduler._hub.hub import TaskHub

SERVICE = "dafx.scheduler.v1.Admin"
_LONGEST_NAME = 240
"""Bytes of a file's name; most file systems take 255."""


def hosted(hub: TaskHub) -> dict[str, Any]:
    """Which names connected workers take, by kind; `all` if one of them takes whatever comes.

    `lately` says the same of all workers that were connected within the last ten minutes, those of now included.
    """
    workers = hub.delivery.queue.workers
    reply: dict[str, Any] = {"task_hub": hub.name, "workers": len(workers)}
    for kind in WORK_KINDS:
        taken = [worker.filters.of(kind) for worker in workers]
        reply[kind] = {
            "all": any(names is None for names in taken),
            "names": sorted({name for names in taken if names is not None for name in names}),
        }
    lately = {kind: hub.lately.names(kind) for kind in WORK_KINDS}
    reply["lately"] = {kind: {"all": takes_all, "names": sorted(names)} for kind, (names, takes_all) in lately.items()}
    return reply


async def stats(engine: Engine) -> dict[str, Any]:
    """Figures for people and dashboards. Ages are in seconds."""
    store = engine.store
    return {
        "database": store.location.path,
        "bytes": store.location.size(),
        "uptime": (engine.clock.now() - engine.started) / SECOND,
        "writable": store.failure is None,
        "commits": store.committer.commits,
        "slowest_commit": store.committer.slowest,
        "timers": len(engine.timers),
        "task_hubs": {hub.name: await _hub_stats(engine, hub) for hub in list(engine.hubs.values())},
    }


async def _hub_stats(engine: Engine, hub: TaskHub) -> dict[str, Any]:
    now, queue = engine.clock.now(), hub.delivery.queue
    counts = await queries.count_instances(engine.store, hub.id)
    work: dict[str, Any] = {}
    for kind in WORK_KINDS:
        oldest = queue.oldest(kind)
        lanes = queue.waiting(kind)
        work[kind] = {
            "waiting": sum(lanes.values()),
            "oldest": None if oldest is None else max(0.0, (now - oldest) / SECOND),
            "held": sum(worker.load[kind] for worker in queue.workers),
            "lanes": [{"name": lane.name, "version": lane.version, "waiting": size} for lane, size in lanes.items()],
        }
    return {
        "orchestrations": {name: counts.get(status, 0) for status, name in Status.NAMES.items()},
        "entities": await queries.count_entities(engine.store, hub.id),
        "waiting_clients": len(hub.waiters),
        "in_memory": {"orchestrations": len(hub.orchestrations), "entities": len(hub.entities)},
        "work": work,
        "workers": [
            {"name": worker.name, "connected": (now - worker.since) / SECOND, "holds": dict(worker.load)}
            for worker in queue.workers
        ],
    }


async def _hosted(_: Engine, hub: TaskHub, __: bytes) -> bytes:
    return json.dumps(hosted(hub)).encode()


async def _stats(engine: Engine, _: TaskHub, __: bytes) -> bytes:
    return json.dumps(await stats(engine)).encode()


async def _withdraw(_: Engine, hub: TaskHub, request: bytes) -> bytes:
    try:
        asked = json.loads(request)
        instance_id, output = asked["instance_id"], asked["output"]
    except (ValueError, KeyError, TypeError, RecursionError):
        instance_id = output = None
    if not isinstance(instance_id, str) or not isinstance(output, str):
        raise Refused("INVALID_ARGUMENT", 'Send a JSON object with two texts: {"instance_id": "i", "output": "null"}.')
    it = hub.orchestrations.find(instance_id)
    withdrawn = it is not None and it.status == Status.PENDING
    if it is not None and withdrawn:
        with hub.changing() as changes:
            hub.orchestrations.terminate(changes, it, output, recurse=False)
        await changes.committed()
    return json.dumps({"withdrawn": withdrawn}).encode()


async def _backup(engine: Engine, _: TaskHub, request: bytes) -> bytes:
    try:
        name = json.loads(request)["name"]
    except (ValueError, KeyError, TypeError, RecursionError):
        name = None
    if not isinstance(name, str) or not _is_file_name(name):
        raise Refused("INVALID_ARGUMENT", 'Send a JSON object with the name of a new file: {"name": "new.db"}.')
    try:
        target, size = await engine.back_up(name)
    except SchedulerDatabaseError as error:
        raise Refused("FAILED_PRECONDITION", str(error)) from error
    return json.dumps({"path": str(target), "bytes": size}).encode()


def _is_file_name(name: str) -> bool:
    """Whether this names a file in a folder, on every file system; `.db.partial` still fits behind it."""
    return (
        name not in {"", ".."}
        and Path(name).name == name
        and name.isprintable()
        and len(name.encode()) <= _LONGEST_NAME
    )


METHODS: Mapping[str, Callable[[Engine, TaskHub, bytes], Awaitable[bytes]]] = {
    "Hosted": _hosted,
    "Stats": _stats,
    "Withdraw": _withdraw,
    "Backup": _backup,
}
