"""Which names the workers of a task hub have, as one of them can tell."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Set
from typing import TYPE_CHECKING, cast

import grpc
from durabletask.client import TaskHubGrpcClient

from dafx_actors._durable.private import channel_of

if TYPE_CHECKING:
    from dafx_actors._durable.admin import Hosted

_SILENT = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED}


def hosts(reader: TaskHubGrpcClient, own: Set[str], names: Iterable[tuple[str, str]]) -> dict[str, bool]:
    """Which of these names some worker has; a name of which that cannot be told now is left out.

    Args:
        reader: A client of the worker that is asked.
        own: What it has itself.
        names: Each after its kind, `activity` or `orchestration`.
    """
    asked = list(names)
    found = {name: True for _, name in asked if name in own}
    others = [(kind, name) for kind, name in asked if name not in own]
    if not others:
        return found
    try:
        hosted = _told_by_scheduler(reader)
    except grpc.RpcError:
        return found
    for kind, name in others:
        those = None if hosted is None else hosted.activities if kind == "activity" else hosted.orchestrations
        found[name] = those is not None and those.take(name)
    return found


def _told_by_scheduler(reader: TaskHubGrpcClient) -> Hosted | None:
    """What all connected workers take, where the scheduler can tell; None where it cannot.

    Raises:
        grpc.RpcError: It does not answer.
    """
    # A service of the embedded scheduler alone: programs that never ask need not import any of it.
    from dafx_actors._durable.admin import hosted

    channel = channel_of(reader)
    if channel is None:
        return None
    try:
        return hosted(channel)
    except grpc.RpcError as error:
        code = cast("Callable[[], grpc.StatusCode]", getattr(error, "code", lambda: grpc.StatusCode.UNKNOWN))()
        if code in _SILENT:
            raise
        return None  # whatever another scheduler says to a question that it does not know
