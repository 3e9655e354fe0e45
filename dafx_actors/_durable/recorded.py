"""The history of an orchestration as a file: durabletask's events, in protobuf's own JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from datetime import datetime
from os import PathLike
from pathlib import Path
from typing import Any

import attrs
from durabletask.history import HistoryEvent
from durabletask.task import FailureDetails

from dafx_actors.transcript import Json


@attrs.frozen(kw_only=True)
class History:
    """The history of an orchestration, or of a turn: what it has done and been told so far."""

    name: str
    """The name of the orchestration; that of a turn is `dafx-{agent}.turn`."""
    instance_id: str
    events: Sequence[Json]
    """durabletask's history events, oldest first, as JSON: in protobuf's own form, that of `HistoryEvent`."""

    @classmethod
    def load(cls, file: str | PathLike[str]) -> History:
        """Read what `save` wrote.

        Raises:
            ValueError: That is no history, or one of a newer version of this package.
        """
        document: Json = json.loads(Path(file).read_text("utf-8"))
        match document:
            case {"version": 1, "name": str(name), "instanceId": str(instance_id), "events": [*events]}:
                return cls(name=name, instance_id=instance_id, events=events)
            case _:
                raise ValueError(f"{file} holds no history of version 1")

    def save(self, file: str | PathLike[str]) -> None:
        """Write it as JSON, for `load`."""
        document = {
            "version": 1,
            "name": self.name,
            "instanceId": self.instance_id,
            "events": self.events,
        }
        Path(file).write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", "utf-8")

    @classmethod
    def of(cls, instance_id: str, recorded: Iterable[HistoryEvent]) -> History | None:
        """Make it of what durabletask's client gives; None where the orchestration has not begun."""
        events = [_dumped(event) for event in recorded]
        started = next((event["executionStarted"] for event in events if "executionStarted" in event), None)
        return None if started is None else cls(name=started["name"], instance_id=instance_id, events=events)


_NAMES = {"generic": "genericEvent", "orchestration_span_id": "orchestrationSpanID", "span_id": "spanID"}
"""Where protobuf's name is not ours in camel case."""


def _dumped(event: HistoryEvent) -> dict[str, Json]:
    name = type(event).__name__.removesuffix("Event")
    kind = name[0].lower() + name[1:]
    fields = _fields(event)
    common = {key: fields.pop(key) for key in ("eventId", "timestamp")}
    return {**common, _NAMES.get(kind, kind): fields}


def _fields(message: Any) -> dict[str, Json]:
    values = {field.name: getattr(message, field.name) for field in dataclasses.fields(message)}
    return {_NAMES.get(name, _camel(name)): _plain(value) for name, value in values.items() if value is not None}


def _plain(value: Any) -> Json:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, FailureDetails):
        # Without its stack trace, which no decision should hang on and which names files of the machine.
        return {"errorType": value.error_type, "errorMessage": value.message}
    return _fields(value) if dataclasses.is_dataclass(value) else value


def _camel(name: str) -> str:
    first, *others = name.split("_")
    return first + "".join(word.capitalize() for word in others)
