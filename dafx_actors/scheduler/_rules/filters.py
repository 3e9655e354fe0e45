"""Which work a worker takes: rules without I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from dafx_actors.scheduler._ground.records import WORK_KINDS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from dafx_actors.scheduler._ground.proto import pb
    from dafx_actors.scheduler._ground.records import WorkKind

ANY_VERSION: frozenset[str] = frozenset()


@attrs.frozen(kw_only=True)
class Lane:
    """What makes two pieces of work the same to every filter."""

    kind: WorkKind
    name: str
    version: str = ""
    """A missing version counts as the empty one. Entities have none."""


@attrs.frozen(kw_only=True)
class Filters:
    """The work that a worker asked for."""

    names: Mapping[WorkKind, Mapping[str, frozenset[str]]] | None = None
    """For each kind the versions of each name, none meaning any. None: the worker takes everything."""

    def take(self, lane: Lane) -> bool:
        """Whether the worker wants this."""
        if self.names is None:
            return True
        versions = self.names[lane.kind].get(lane.name)
        return versions is not None and (not versions or lane.version in versions)

    def of(self, kind: WorkKind) -> tuple[str, ...] | None:
        """The names of this kind that the worker takes; None for all."""
        return None if self.names is None else tuple(sorted(self.names[kind]))


def _versions(filters: Iterable[pb.OrchestrationFilter | pb.ActivityFilter]) -> dict[str, frozenset[str]]:
    names: dict[str, frozenset[str]] = {}
    for wanted in filters:
        versions = frozenset(wanted.versions)
        known = names.get(wanted.name)
        # The same name twice: either versions add up, or one of the two wants any.
        names[wanted.name] = versions if known is None else (known | versions if known and versions else ANY_VERSION)
    return names


def read_filters(request: pb.GetWorkItemsRequest) -> Filters:
    """The filters of a worker's request.

    Without the field the worker takes everything. With it, it takes what is listed: a kind with an empty list
    means none of that kind.
    """
    if not request.HasField("workItemFilters"):
        return Filters()
    wanted = request.workItemFilters
    names: dict[WorkKind, Mapping[str, frozenset[str]]] = {kind: {} for kind in WORK_KINDS}
    names["orchestration"] = _versions(wanted.orchestrations)
    names["activity"] = _versions(wanted.activities)
    names["entity"] = {entity.name.lower(): ANY_VERSION for entity in wanted.entities}
    return Filters(names=names)
