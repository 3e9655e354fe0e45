"""Calls that answer with pages, or about many instances at once."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

from dafx_actors.scheduler._ground.proto import history_events, micros, pb, text, text_of
from dafx_actors.scheduler._hub.hub import Refused, TaskHub
from dafx_actors.scheduler._serve import states as _states
from dafx_actors.scheduler.storage import queries

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

Handler: TypeAlias = Callable[[TaskHub, Any], Awaitable[Any]]

PAGE = 100
"""Items on a page, where the caller does not say."""

MOST_IDS = 10_000
"""Ids of instances that one request may name."""

_IDS_AT_ONCE = 200
"""That are looked up between two turns of the event loop."""

LARGEST_PAGE = 1_000
"""Items on a page, whatever the caller says."""

_TOO_LARGE = 2**63
"""For SQLite."""

_BYTES_ON_PAGE = 3 * 2**20
"""A client receives 4 MiB in one message, unless it is told otherwise."""

_LONG_TEXT = 10_000
"""Characters of a text that a list shows whole, also of an instance that is too large for a page."""

_LEFT_OUT = "({:,} characters, too long for a list; ask for this instance by itself)"

_LONG_HISTORY = 256 * 2**10
"""Bytes of a history that is taken apart on a thread."""

_EVENTS_IN_CHUNK = 100
_BYTES_IN_CHUNK = 2**20


def _size(wanted: int) -> int:
    return min(wanted, LARGEST_PAGE) if wanted > 0 else PAGE


def _time(message: Any, field: str) -> int | None:
    return micros(getattr(message, field)) if message.HasField(field) else None


def _position(token: str) -> tuple[int, int] | None:
    """Where a page begins, from a continuation token `time:row`, with anything behind a second colon."""
    if not token:
        return None
    try:
        at, row = map(int, token.split(":")[:2])
    except ValueError:
        at = row = _TOO_LARGE
    if max(abs(at), abs(row)) >= _TOO_LARGE:
        raise Refused("INVALID_ARGUMENT", f"{token!r} is not a continuation token of this scheduler.")
    return at, row


def _fitting(items: Sequence[Any]) -> int:
    """How many of these messages fit on one page; one at least, or there would be no end of pages."""
    size = 0
    for number, item in enumerate(items):
        size += item.ByteSize()
        if size > _BYTES_ON_PAGE:
            return max(number, 1)
    return len(items)


def _cut(state: pb.OrchestrationState) -> pb.OrchestrationState:
    """So that an instance that is too large for a page does not hide all others: its large texts say how long they are.

    Whoever wants them asks for the instance by itself.
    """
    if state.ByteSize() > _BYTES_ON_PAGE:
        for name in ("input", "output", "customStatus"):
            if len(value := getattr(state, name).value) > _LONG_TEXT:
                getattr(state, name).value = json.dumps(_LEFT_OUT.format(len(value)))
        failures = [state.failureDetails] if state.HasField("failureDetails") else []
        for failure in failures:
            for part in ("errorMessage", "errorType"):
                if len(value := getattr(failure, part)) > _LONG_TEXT:
                    setattr(failure, part, value[:_LONG_TEXT] + " " + _LEFT_OUT.format(len(value)))
            if len(failure.stackTrace.value) > _LONG_TEXT:
                failure.stackTrace.value = failure.stackTrace.value[:_LONG_TEXT]
            if failure.HasField("innerFailure"):
                failures.append(failure.innerFailure)
    if state.ByteSize() > _BYTES_ON_PAGE:
        state.tags.clear()
        state.ClearField("failureDetails")
    return state


async def query_instances(hub: TaskHub, request: pb.QueryInstancesRequest) -> pb.QueryInstancesResponse:
    """QueryInstances."""
    query = request.query
    position = _position(query.continuationToken.value)
    wanted = queries.InstanceFilter(
        statuses=tuple(int(status) for status in query.runtimeStatus),
        created_from=_time(query, "createdTimeFrom"),
        created_to=_time(query, "createdTimeTo"),
        prefix=text_of(query, "instanceIdPrefix") or "",
    )
    page = await queries.instances(
        hub.store,
        hub.id,
        wanted,
        after=0 if position is None else position[1],
        size=_size(query.maxInstanceCount),
        payloads=query.fetchInputsAndOutputs,
    )
    states = [_cut(_states.state(it, payloads=query.fetchInputsAndOutputs)) for it in page.items]
    fitting = _fitting(states)
    token = None
    if page.more or fitting < len(states):
        last = page.items[fitting - 1]
        token = f"{last.created}:{last.id}"
    return pb.QueryInstancesResponse(orchestrationState=states[:fitting], continuationToken=text(token))


async def list_instance_ids(hub: TaskHub, request: pb.ListInstanceIdsRequest) -> pb.ListInstanceIdsResponse:
    """ListInstanceIds: of orchestrations that have ended."""
    page = await queries.ended_ids(
        hub.store,
        hub.id,
        statuses=tuple(int(status) for status in request.runtimeStatus),
        completed_from=_time(request, "completedTimeFrom"),
        completed_to=_time(request, "completedTimeTo"),
        after=_position(request.lastInstanceKey.value),
        size=_size(request.pageSize),
    )
    key = None
    if page.more:
        # SDKs look for an instance id of the page in the key.
        instance_id, completed, row = page.items[-1]
        key = f"{completed}:{row}:{instance_id}"
    return pb.ListInstanceIdsResponse(instanceIds=[item[0] for item in page.items], lastInstanceKey=text(key))


async def purge(hub: TaskHub, request: pb.PurgeInstancesRequest) -> pb.PurgeInstancesResponse:
    """PurgeInstances: by id, by several ids, or by filter; what has not ended stays."""
    kind = request.WhichOneof("request")
    if kind == "purgeInstanceFilter":
        chosen = request.purgeInstanceFilter
        wanted = queries.InstanceFilter(
            statuses=tuple(int(status) for status in chosen.runtimeStatus),
            created_from=_time(chosen, "createdTimeFrom"),
            created_to=_time(chosen, "createdTimeTo"),
        )
        rows = await queries.ended_rows(hub.store, hub.id, wanted)
    else:
        batch = request.instanceBatch.instanceIds
        if len(batch) > MOST_IDS:
            raise Refused("INVALID_ARGUMENT", f"{len(batch):,} ids are too many for one request; send {MOST_IDS:,}.")
        rows = await _rows(hub, [request.instanceId] if kind == "instanceId" else batch)
    count = await hub.purge(rows, recursive=request.recursive)
    reply = pb.PurgeInstancesResponse(deletedInstanceCount=count)
    reply.isComplete.value = True
    return reply


async def _rows(hub: TaskHub, ids: Sequence[str]) -> list[int]:
    """The rows of those that there are."""
    rows: list[int] = []
    for start in range(0, len(ids), _IDS_AT_ONCE):
        found = map(hub.orchestrations.find, ids[start : start + _IDS_AT_ONCE])
        rows += [it.id for it in found if it is not None]
        await asyncio.sleep(0)
    return rows


async def query_entities(hub: TaskHub, request: pb.QueryEntitiesRequest) -> pb.QueryEntitiesResponse:
    """QueryEntities."""
    query = request.query
    wanted = queries.EntityFilter(
        prefix=text_of(query, "instanceIdStartsWith") or "",
        modified_from=_time(query, "lastModifiedFrom"),
        modified_to=_time(query, "lastModifiedTo"),
        transient=query.includeTransient,
    )
    page = await queries.entities(
        hub.store,
        hub.id,
        wanted,
        after=query.continuationToken.value,
        size=_size(query.pageSize.value),
        state=query.includeState,
    )
    found = [_states.entity_metadata(it, backlog, state=query.includeState) for it, backlog in page.items]
    for entity in found:
        if entity.ByteSize() > _BYTES_ON_PAGE:
            # Without its state, as if that had not been asked for: half a state is worse than none.
            entity.ClearField("serializedState")
    fitting = _fitting(found)
    token = found[fitting - 1].instanceId if page.more or fitting < len(found) else None
    return pb.QueryEntitiesResponse(entities=found[:fitting], continuationToken=text(token))


async def clean_entities(hub: TaskHub, request: pb.CleanEntityStorageRequest) -> pb.CleanEntityStorageResponse:
    """CleanEntityStorage. An empty entity is removed as soon as it is empty, so that none is left to be found."""
    released = 0
    if request.releaseOrphanedLocks:
        with hub.changing() as changes:
            released = hub.release_orphaned_locks(changes)
        await changes.committed()
    return pb.CleanEntityStorageResponse(orphanedLocksReleased=released)


async def history(hub: TaskHub, request: pb.StreamInstanceHistoryRequest) -> list[pb.HistoryChunk]:
    """StreamInstanceHistory."""
    it = hub.existing(request.instanceId)
    if request.executionId.value and request.executionId.value != it.execution_id:
        raise Refused(
            "NOT_FOUND", f"The orchestration {it.instance_id!r} has no execution {request.executionId.value!r} now."
        )
    await hub.store.warm(it, history=True)
    stored = hub.store.load_history(it)
    past = [*stored.parts]
    if len(stored) > _LONG_HISTORY:
        chunks = await asyncio.to_thread(lambda: list(_chunks(b"".join(past))))
    else:
        chunks = list(_chunks(b"".join(past)))
    hub.orchestrations.rest(it)
    await hub.on_disk(it)
    return chunks


def _chunks(stored: bytes | bytearray) -> Iterator[pb.HistoryChunk]:
    chunk, size = pb.HistoryChunk(), 0
    for event in history_events(stored):
        chunk.events.append(event)
        size += event.ByteSize()
        if len(chunk.events) >= _EVENTS_IN_CHUNK or size >= _BYTES_IN_CHUNK:
            yield chunk
            chunk, size = pb.HistoryChunk(), 0
    if chunk.events:
        yield chunk


UNARY: Mapping[str, tuple[type, Handler]] = {
    "QueryInstances": (pb.QueryInstancesRequest, query_instances),
    "ListInstanceIds": (pb.ListInstanceIdsRequest, list_instance_ids),
    "PurgeInstances": (pb.PurgeInstancesRequest, purge),
    "QueryEntities": (pb.QueryEntitiesRequest, query_entities),
    "CleanEntityStorage": (pb.CleanEntityStorageRequest, clean_entities),
}
