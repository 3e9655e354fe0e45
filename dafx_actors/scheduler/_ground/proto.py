"""The wire's messages: the generated classes, and bytes assembled without them.

The `TaskHubSidecarService` messages come from `durabletask`, so no .proto is needed here; this module is the one
place that imports them. A work item carries the whole history of its orchestration, and building that from
message objects again and again would cost time that grows with the square of its length. So a history is kept as
bytes, in the very form in which it is sent: each event framed as one `OrchestratorRequest.pastEvents`. A work
item is then put together by joining bytes, and what is stored can be read back as a (partial)
`OrchestratorRequest`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, cast

from durabletask.internal import orchestrator_service_pb2 as pb
from google.protobuf import timestamp_pb2, wrappers_pb2

from dafx_actors.scheduler._ground.clock import SECOND

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = [
    "HEALTH_PING",
    "LARGE",
    "Status",
    "activity_item",
    "entity_item",
    "frame",
    "frame_past",
    "history_events",
    "micros",
    "orchestrator_item",
    "pb",
    "serialize",
    "stamp",
    "text",
    "text_of",
    "timestamp",
]

LARGE: Final = 2**20
"""Bytes of what is read, taken apart, put together and copied on a thread, so that it does not hold the loop."""
_LENGTH_DELIMITED = 2


class Status:
    """The numbers of `OrchestrationStatus`, by shorter names."""

    RUNNING: Final = 0
    COMPLETED: Final = 1
    CONTINUED_AS_NEW: Final = 2
    FAILED: Final = 3
    TERMINATED: Final = 5
    PENDING: Final = 6
    SUSPENDED: Final = 7

    LIVE: Final = frozenset({RUNNING, PENDING, SUSPENDED})
    ENDED: Final = frozenset({COMPLETED, FAILED, TERMINATED})
    """What an instance never leaves by itself."""

    NAMES: Final = {0: "running", 1: "completed", 3: "failed", 5: "terminated", 6: "pending", 7: "suspended"}


def serialize(message: object) -> bytes:
    """A message's bytes."""
    return cast("bytes", cast("Any", message).SerializeToString())


def text(value: str | None) -> Any:
    """A `StringValue`, or None, which leaves the field absent."""
    return None if value is None else wrappers_pb2.StringValue(value=value)


def text_of(message: object, field: str) -> str | None:
    """The `StringValue` in this field, or None where it is absent."""
    found = cast("Any", message)
    return cast("str", getattr(found, field).value) if found.HasField(field) else None


def timestamp(at: int) -> timestamp_pb2.Timestamp:
    """Microseconds since 1970 as a `Timestamp`."""
    seconds, rest = divmod(at, SECOND)
    return timestamp_pb2.Timestamp(seconds=seconds, nanos=rest * 1_000)


_FARTHEST = 2**62
"""Microseconds, before or after 1970; SQLite holds twice as much, protobuf a million times."""


def micros(stamp: timestamp_pb2.Timestamp) -> int:
    """A `Timestamp` as microseconds since 1970, rounded up: nothing is due before its time."""
    return max(-_FARTHEST, min(_FARTHEST, stamp.seconds * SECOND - (-stamp.nanos // 1_000)))


def _varint(value: int) -> bytes:
    if value < 0x80:
        return bytes((value,))
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def frame(field: int, payload: bytes | bytearray) -> bytes:
    """A length-delimited field: its tag, its length, its bytes."""
    return b"".join((bytes((field << 3 | _LENGTH_DELIMITED,)), _varint(len(payload)), payload))


def stamp(event: bytes, at: int) -> bytes:
    """The event with this timestamp: of a field that occurs twice, the last one counts."""
    return event + frame(2, serialize(timestamp(at)))


def frame_past(events: Iterable[bytes]) -> bytes:
    """Serialized events as they stand in a history."""
    return b"".join([frame(3, event) for event in events])


def history_events(history: bytes | bytearray) -> Sequence[pb.HistoryEvent]:
    """The events of a history kept as bytes."""
    return pb.OrchestratorRequest.FromString(bytes(history)).pastEvents


def orchestrator_item(
    *,
    token: str,
    instance_id: str,
    execution_id: str,
    past: Iterable[bytes | bytearray],
    new: Iterable[bytes],
    trace: bytes,
) -> bytes:
    """A `WorkItem` that asks for an orchestration's next episode; its history comes in parts."""
    request = b"".join(
        [
            frame(1, instance_id.encode()),
            frame(2, frame(1, execution_id.encode())),
            *past,
            *[frame(4, event) for event in new],
            frame(8, trace) if trace else b"",
        ]
    )
    return frame(1, request) + frame(10, token.encode())


def activity_item(*, token: str, request: bytes) -> bytes:
    """A `WorkItem` around a serialized `ActivityRequest`."""
    return frame(2, request) + frame(10, token.encode())


def entity_item(*, token: str, entity_id: str, state: str | None, operations: Iterable[bytes]) -> bytes:
    """A `WorkItem` that asks an entity to carry out a batch of operations."""
    request = b"".join(
        [
            frame(1, entity_id.encode()),
            b"" if state is None else frame(3, frame(1, state.encode())),
            *[frame(4, operation) for operation in operations],
        ]
    )
    return frame(5, request) + frame(10, token.encode())


HEALTH_PING: Final = serialize(pb.WorkItem(healthPing=pb.HealthPing()))
"""A `WorkItem` that only says that the stream is alive."""
