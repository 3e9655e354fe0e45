"""Clients of `dafx.scheduler.v1.Admin`, the embedded scheduler's own service: see `scheduler/_serve/admin.py`.

Each function takes a gRPC channel and the metadata of every other call (`taskhub`, `authorization`). Another
backend does not know the service; then the answer is None, which means that nobody can tell.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import attrs
import grpc

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Self

_SERVICE = "/dafx.scheduler.v1.Admin/"
_TIMEOUT = 10.0
_UNKNOWN = {grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.NOT_FOUND}

Metadata: TypeAlias = "Sequence[tuple[str, str]]"


@attrs.frozen(kw_only=True)
class Names:
    """Names of one kind that connected workers take."""

    names: frozenset[str]
    all: bool = False
    """Some worker takes whatever comes; whether it knows a name only it can tell."""

    def take(self, name: str) -> bool:
        """Whether some worker takes this."""
        return self.all or name in self.names

    @classmethod
    def load(cls, raw: Mapping[str, Any]) -> Self:
        """From JSON."""
        return cls(names=frozenset(raw["names"]), all=bool(raw["all"]))


@attrs.frozen(kw_only=True)
class Lately:
    """What the workers take, or took, that were connected within the last ten minutes; those of now included.

    A scheduler remembers it across its own restart. Who is missing from `Hosted` and stands here is about to come back,
    most likely.
    """

    orchestrations: Names
    activities: Names
    entities: Names
    """In lower case."""

    @classmethod
    def load(cls, raw: Mapping[str, Any]) -> Self:
        """From JSON."""
        return cls(
            orchestrations=Names.load(raw["orchestration"]),
            activities=Names.load(raw["activity"]),
            entities=Names.load(raw["entity"]),
        )


@attrs.frozen(kw_only=True)
class Hosted:
    """What the workers take that are connected to a task hub at this moment."""

    task_hub: str
    workers: int
    orchestrations: Names
    activities: Names
    entities: Names
    """In lower case."""
    lately: Lately
    """The same of the last ten minutes. A scheduler that does not remember it shows what is hosted now."""

    @classmethod
    def load(cls, raw: Mapping[str, Any]) -> Self:
        """From JSON."""
        return cls(
            task_hub=raw["task_hub"],
            workers=raw["workers"],
            orchestrations=Names.load(raw["orchestration"]),
            activities=Names.load(raw["activity"]),
            entities=Names.load(raw["entity"]),
            lately=Lately.load(raw.get("lately") or raw),
        )


def hosted(channel: Any, metadata: Metadata = (), *, timeout: float = _TIMEOUT) -> Hosted | None:
    """What is hosted, over a `grpc.Channel`; None if the backend cannot tell.

    Raises:
        grpc.RpcError: the backend cannot be reached, or refuses the caller.
    """
    reply = _call(channel, "Hosted", {}, metadata, timeout)
    return None if reply is None else Hosted.load(reply)


async def hosted_async(channel: Any, metadata: Metadata = (), *, timeout: float = _TIMEOUT) -> Hosted | None:
    """What is hosted, over a `grpc.aio.Channel`; None if the backend cannot tell.

    Raises:
        grpc.RpcError: the backend cannot be reached, or refuses the caller.
    """
    reply = await _call_async(channel, "Hosted", {}, metadata, timeout)
    return None if reply is None else Hosted.load(reply)


async def withdraw_async(
    channel: Any, metadata: Metadata = (), *, instance_id: str, output: str, timeout: float = _TIMEOUT
) -> bool | None:
    """End an orchestration that no worker has begun, over a `grpc.aio.Channel`; None if the backend does not know how.

    Args:
        channel: To the scheduler.
        metadata: Of every call.
        instance_id: The orchestration.
        output: Its output, as JSON.
        timeout: Seconds.

    Returns:
        False where a worker has begun it, or it is over, or there is none; nothing was changed then.

    Raises:
        grpc.RpcError: the backend cannot be reached, or refuses the caller.
    """
    request = {"instance_id": instance_id, "output": output}
    reply = await _call_async(channel, "Withdraw", request, metadata, timeout)
    return None if reply is None else bool(reply["withdrawn"])


def stats(channel: Any, metadata: Metadata = (), *, timeout: float = _TIMEOUT) -> dict[str, Any] | None:
    """Counts, queues and workers of every task hub, as JSON, over a `grpc.Channel`."""
    return _call(channel, "Stats", {}, metadata, timeout)


async def stats_async(channel: Any, metadata: Metadata = (), *, timeout: float = _TIMEOUT) -> dict[str, Any] | None:
    """Counts, queues and workers of every task hub, as JSON, over a `grpc.aio.Channel`."""
    return await _call_async(channel, "Stats", {}, metadata, timeout)


def back_up(channel: Any, name: str, metadata: Metadata = (), *, timeout: float = 600.0) -> Path:
    """Have the scheduler copy its database, while it works, into a new file in its folder for backups.

    Returns:
        Where the file is, on the scheduler's machine.

    Raises:
        grpc.RpcError: it could not, or there is a file of that name, or the backend is another one.
    """
    request = json.dumps({"name": name}).encode()
    reply = _method(channel, "Backup")(request, metadata=tuple(metadata), timeout=timeout)
    return Path(json.loads(reply)["path"])


async def back_up_async(
    channel: Any, metadata: Metadata = (), *, name: str, timeout: float = 600.0
) -> tuple[Path, int] | None:
    """Have the scheduler copy its database, over a `grpc.aio.Channel`; None if the backend does not know how.

    Returns:
        Where the file is, on the scheduler's machine, and its size in bytes.

    Raises:
        grpc.RpcError: it could not, or there is a file of that name; or the backend cannot be reached.
    """
    reply = await _call_async(channel, "Backup", {"name": name}, metadata, timeout)
    return None if reply is None else (Path(reply["path"]), int(reply["bytes"]))


def _method(channel: Any, name: str) -> Any:
    return channel.unary_unary(_SERVICE + name)


def _call(channel: Any, name: str, request: object, metadata: Metadata, timeout: float) -> dict[str, Any] | None:
    try:
        reply = _method(channel, name)(json.dumps(request).encode(), metadata=tuple(metadata), timeout=timeout)
    except grpc.RpcError as error:
        if error.code() in _UNKNOWN:
            return None
        raise
    return cast("dict[str, Any]", json.loads(reply))


async def _call_async(
    channel: Any, name: str, request: object, metadata: Metadata, timeout: float
) -> dict[str, Any] | None:
    try:
        reply = await _method(channel, name)(json.dumps(request).encode(), metadata=tuple(metadata), timeout=timeout)
    except grpc.RpcError as error:
        if error.code() in _UNKNOWN:
            return None
        raise
    return cast("dict[str, Any]", json.loads(reply))
