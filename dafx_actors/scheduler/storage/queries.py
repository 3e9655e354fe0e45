"""Reads that a client asks for: pages of instances and entities, and counts."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import attrs

from dafx_actors.scheduler.storage import tables

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from dafx_actors.scheduler._ground.records import Entity, Orchestration
    from dafx_actors.scheduler.storage.store import Store

T = TypeVar("T")

_SURROGATES, _BEHIND_SURROGATES = 0xD800, 0xE000
"""UTF-8 has no form for the code points in between."""

ENDED = "(1, 3, 5)"
"""The statuses that are final, in SQL."""


@attrs.frozen
class Page(Generic[T]):
    """Some of what was found."""

    items: list[T]
    more: bool
    """Whether there is another page behind it."""


class Conditions:
    """A WHERE clause that grows, with its values."""

    def __init__(self, first: str, *values: object) -> None:
        self._clauses = [first]
        self.values: list[Any] = list(values)

    def add(self, clause: str, *values: object) -> None:
        """One more condition."""
        self._clauses.append(clause)
        self.values += values

    def one_of(self, column: str, values: Sequence[int]) -> None:
        """The column has one of these values; no values, no condition."""
        if values:
            self.add(f"{column} IN ({', '.join('?' * len(values))})", *values)

    def between(self, column: str, start: int | None, end: int | None) -> None:
        """The column is at or after `start` and before `end`, where they are given."""
        if start is not None:
            self.add(f"{column} >= ?", start)
        if end is not None:
            self.add(f"{column} < ?", end)

    def prefix(self, column: str, prefix: str) -> None:
        """The column begins with this; upper and lower case differ.

        Said as a range: SQLite compares texts by their UTF-8 bytes, which sorts them by code points, whereas its
        functions of texts stop at a NUL.
        """
        if prefix:
            self.add(f"{column} >= ?", prefix)
            if (end := _behind(prefix)) is not None:
                self.add(f"{column} < ?", end)

    def __str__(self) -> str:
        return " AND ".join(self._clauses)


def _behind(prefix: str) -> str | None:
    """The first text that is behind all that begin with this; None where there is none."""
    kept = prefix.rstrip(chr(sys.maxunicode))
    if not kept:
        return None
    code = ord(kept[-1]) + 1
    return kept[:-1] + chr(_BEHIND_SURROGATES if code == _SURROGATES else code)


def _page(rows: Iterable[T], size: int) -> Page[T]:
    found = list(rows)
    return Page(found[:size], more=len(found) > size)


@attrs.frozen(kw_only=True)
class InstanceFilter:
    """Which orchestrations a query is about."""

    statuses: tuple[int, ...] = ()
    created_from: int | None = None
    created_to: int | None = None
    prefix: str = ""


def _matching(hub: int, wanted: InstanceFilter) -> Conditions:
    where = Conditions("o.hub = ?", hub)
    where.one_of("o.status", wanted.statuses)
    where.between("o.created", wanted.created_from, wanted.created_to)
    where.prefix("o.instance_id", wanted.prefix)
    return where


async def instances(
    store: Store, hub: int, wanted: InstanceFilter, *, after: int, size: int, payloads: bool
) -> Page[Orchestration]:
    """Orchestrations in order of creation, from behind the row `after`."""
    where = _matching(hub, wanted)
    where.add("o.id > ?", after)
    columns = f"{tables.ORCHESTRATION_COLUMNS}, {tables.PAYLOAD_COLUMNS}"
    if not payloads:
        # Tags belong to every answer, inputs and outputs do not.
        columns = columns.replace("p.input, p.output", "NULL, NULL")
    rows = await store.query(
        f"SELECT {columns} FROM orchestrations o LEFT JOIN payloads p ON p.id = o.id WHERE {where}"  # noqa: S608
        " ORDER BY o.id LIMIT ?",
        *where.values,
        size + 1,
    )

    def read(row: tuple[Any, ...]) -> Orchestration:
        found = tables.read_orchestration(row[:-6])
        tables.read_payload(found, row[-6:])
        return found

    return _page(map(read, rows), size)


async def ended_rows(store: Store, hub: int, wanted: InstanceFilter) -> list[int]:
    """The rows of ended orchestrations, for a purge."""
    where = _matching(hub, wanted)
    where.add(f"o.status IN {ENDED}")
    sql = f"SELECT o.id FROM orchestrations o WHERE {where} ORDER BY o.id"  # noqa: S608
    return [row[0] for row in await store.query(sql, *where.values)]


async def ended_ids(
    store: Store,
    hub: int,
    *,
    statuses: tuple[int, ...],
    completed_from: int | None,
    completed_to: int | None,
    after: tuple[int, int] | None,
    size: int,
) -> Page[tuple[str, int, int]]:
    """Instance id, time of completion and row of ended orchestrations, in order of completion."""
    where = Conditions("hub = ? AND completed IS NOT NULL", hub)
    where.one_of("status", statuses)
    where.between("completed", completed_from, completed_to)
    if after is not None:
        where.add("(completed, id) > (?, ?)", *after)
    rows = await store.query(
        f"SELECT instance_id, completed, id FROM orchestrations WHERE {where} ORDER BY completed, id LIMIT ?",  # noqa: S608
        *where.values,
        size + 1,
    )
    return _page(((row[0], row[1], row[2]) for row in rows), size)


@attrs.frozen(kw_only=True)
class EntityFilter:
    """Which entities a query is about."""

    prefix: str = ""
    modified_from: int | None = None
    modified_to: int | None = None
    transient: bool = False
    """Also those that only have a backlog or a lock, and no state."""


async def entities(
    store: Store, hub: int, wanted: EntityFilter, *, after: str, size: int, state: bool
) -> Page[tuple[Entity, int]]:
    """Entities in order of their ids, from behind `after`, with the length of their backlog."""
    where = Conditions("hub = ?", hub)
    where.prefix("entity_id", wanted.prefix)
    where.between("modified", wanted.modified_from, wanted.modified_to)
    if not wanted.transient:
        where.add("state IS NOT NULL")
    if after:
        where.add("entity_id > ?", after)
    columns = tables.ENTITY_COLUMNS if state else tables.ENTITY_COLUMNS.replace("state", "NULL")
    rows = await store.query(
        f"SELECT {columns}, (SELECT count(*) FROM operations m WHERE m.entity = entities.id) FROM entities"  # noqa: S608
        f" WHERE {where} ORDER BY entity_id LIMIT ?",
        *where.values,
        size + 1,
    )
    return _page(((tables.read_entity(row[:-1]), row[-1]) for row in rows), size)


async def count_instances(store: Store, hub: int) -> dict[int, int]:
    """How many orchestrations have each status."""
    rows = await store.query("SELECT status, count(*) FROM orchestrations WHERE hub = ? GROUP BY status", hub)
    return {row[0]: row[1] for row in rows}


async def count_entities(store: Store, hub: int) -> int:
    """How many entities have state."""
    rows = await store.query("SELECT count(*) FROM entities WHERE hub = ? AND state IS NOT NULL", hub)
    return int(rows[0][0])


async def expired(store: Store, hub: int, *, before: int | None, keep: int | None, most: int) -> list[int]:
    """Ended orchestrations that nothing says to keep: too old, or too many; the oldest first.

    A child stays as long as its parent is running, which may yet be rewound.
    """
    rows: dict[int, None] = {}
    base = (
        "SELECT o.id FROM orchestrations o WHERE o.hub = ? AND o.completed IS NOT NULL AND NOT EXISTS"
        " (SELECT 1 FROM orchestrations p WHERE p.id = o.parent AND p.completed IS NULL)"
    )
    if before is not None:
        sql = f"{base} AND o.completed < ? ORDER BY o.completed LIMIT ?"
        rows.update((row[0], None) for row in await store.query(sql, hub, before, most))
    if keep is not None:
        ended = "SELECT max(0, count(*) - ?) FROM orchestrations WHERE hub = ? AND completed IS NOT NULL"
        surplus = (await store.query(ended, keep, hub))[0][0]
        if surplus:
            sql = f"{base} ORDER BY o.completed LIMIT ?"
            rows.update((row[0], None) for row in await store.query(sql, hub, min(surplus, most)))
    return list(rows)
