"""What an orchestration asks of its context: as its history records it, and as its code asks it when it is replayed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import attrs
from durabletask.internal.orchestrator_service_pb2 import HistoryEvent, OrchestratorAction

from dafx_actors._durable.private import history_here, on_confirmed


@attrs.frozen
class Asked:
    """One call of the context."""

    kind: str
    """In words: `activity`, `orchestration`, `timer`, `call`, `signal`, `lock`, `event`."""
    name: str = ""
    """The name of what is called."""
    of: str = ""
    """Whose it is: `@entity@key`, or the id of an orchestration."""
    sent: str | None = None
    """The input, as JSON text; None where nothing is said of it, as in the histories of some schedulers."""
    instance: str = ""
    """The id that another orchestration is started with."""


def _sent(value: Any) -> str | None:
    text: str = value.value
    return text or None


_THEN: Mapping[str, Callable[[Any], Asked]] = {
    "taskScheduled": lambda it: Asked("activity", it.name, sent=_sent(it.input)),
    "subOrchestrationInstanceCreated": lambda it: Asked(
        "orchestration", it.name, sent=_sent(it.input), instance=it.instanceId
    ),
    "timerCreated": lambda _: Asked("timer"),
    "entityOperationCalled": lambda it: Asked("call", it.operation, it.targetInstanceId.value, _sent(it.input)),
    "entityOperationSignaled": lambda it: Asked("signal", it.operation, it.targetInstanceId.value),
    "entityLockRequested": lambda it: Asked("lock", ", ".join(it.lockSet)),
    "eventSent": lambda it: Asked("event", it.name.casefold(), it.instanceId),
}
"""By the events that confirm a call."""
_NOW: Mapping[str, Callable[[Any], Asked]] = {
    "scheduleTask": _THEN["taskScheduled"],
    "createSubOrchestration": _THEN["subOrchestrationInstanceCreated"],
    "createTimer": _THEN["timerCreated"],
    "entityOperationCalled": _THEN["entityOperationCalled"],
    "entityOperationSignaled": _THEN["entityOperationSignaled"],
    "entityLockRequested": _THEN["entityLockRequested"],
    "sendEvent": lambda it: Asked("event", it.name.casefold(), it.instance.instanceId),
}
"""By the actions of an orchestration."""


def asked_then(event: HistoryEvent) -> Asked | None:
    """What an event says was asked; None for an event that says something else."""
    kind = event.WhichOneof("eventType") or ""
    return _THEN[kind](getattr(event, kind)) if kind in _THEN else None


def asked_now(action: OrchestratorAction) -> Asked | None:
    """What an action asks; None for an end, or the opening of a lock."""
    kind = action.WhichOneof("orchestratorActionType") or ""
    asked: Any = getattr(action, kind) if kind else None
    if kind == "sendEntityMessage":
        kind = asked.WhichOneof("EntityMessageType")
        asked = getattr(asked, kind)
    return _NOW[kind](asked) if kind in _NOW else None


def recorded_here() -> tuple[str, dict[int, Asked]]:
    """The name of the orchestration that this thread replays, and what it has asked so far, by the number of the call.

    Nothing, where no worker of ours replays one.
    """
    name, asked = "", dict[int, Asked]()
    for event in history_here():
        if event.HasField("executionStarted"):
            name = event.executionStarted.name
        elif (then := asked_then(event)) is not None:
            asked[event.eventId] = then
    return name, asked


def look_at(context: object, confirm: Callable[[int, Asked | None], None]) -> bool:
    """Have `confirm` called with what an orchestration asks, by its number, when its history has that number.

    What `confirm` raises fails the orchestration, past its code. It is given None where nothing is asked by a number.

    Args:
        context: durabletask's.
        confirm: Called once for each number, and again where a timer is given up.

    Returns:
        False where that cannot be: the orchestration has asked for something already, or durabletask is another.
    """
    return on_confirmed(context, lambda number, action: confirm(number, None if action is None else asked_now(action)))
