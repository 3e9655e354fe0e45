"""The orchestration of a turn in memory: what it waits for stays open until somebody completes it, in any order."""

from __future__ import annotations

import json
from collections.abc import Coroutine, Generator
from datetime import datetime, timedelta
from typing import Any, Protocol, TypeVar

import attrs
from durabletask.entities import EntityInstanceId

from dafx_actors.orchestration._coroutines import DurableTask, Loop, as_durable_task
from dafx_actors.transcript import Json

T = TypeVar("T")


@attrs.define(eq=False)
class Open:
    """Something that an orchestration waits for."""

    owner: Execution
    kind: str
    """`operation`, `activity`, `child`, `timer` or `event`."""
    name: str
    input: Json
    task: DurableTask[Any]
    at: datetime | None = None
    """Of a timer."""

    def complete(self, value: Json) -> None:
        """It is there; the orchestration goes on."""
        self.owner.open.remove(self)
        self.task.complete(json.loads(json.dumps(value)))
        self.owner.go_on()


class World(Protocol):
    """Where orchestrations run."""

    @property
    def now(self) -> datetime: ...

    def send(self, turn: str, event: str, data: Json) -> None:
        """Raise an event for a turn, which arrives some time."""

    def signal(self, turn: str, operation: str, raw: Json) -> None:
        """Send the thread a message of a turn, which arrives some time."""


class Execution:
    """An orchestration, and its context."""

    def __init__(self, world: World, turn: str) -> None:
        self.world = world
        self.turn = turn
        self.open: list[Open] = []
        """In the order in which it began to wait for them."""
        self.outcome: Json = None
        """What it gave."""
        self.error: Exception | None = None
        """What it ended with instead."""
        self.is_over = False
        self.has_returned = False
        self._events: list[tuple[str, Json]] = []
        """That have come before anybody waited for them."""
        self._ids = 0
        self._loop = Loop(self)
        self._run: Generator[Any, Any, Any] | None = None

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        """Begin; goes on until it waits for something that is open."""
        self._run = self._loop.run(coroutine)
        self._advance()

    def go_on(self) -> None:
        """Go on, where something has come."""
        if not self.is_over:
            self._advance()

    def _advance(self) -> None:
        assert self._run is not None
        try:
            while self._run.send(None).is_complete:
                pass
        except StopIteration as end:
            self.outcome, self.is_over, self.has_returned = end.value, True, True
        except Exception as error:
            self.error, self.is_over = error, True
        if self.is_over:
            self.open = []

    def end(self) -> None:
        """It is terminated; nothing of it is left for the garbage collector to end."""
        if self._run is not None:
            self._run.close()
        self._loop.close()
        self.is_over, self.open = True, []

    def hear(self, name: str, data: Json) -> None:
        """An event arrives; it goes to whoever has waited for it longest."""
        waiting = next((each for each in self.open if each.kind == "event" and each.name == name), None)
        if waiting is not None:
            waiting.complete(data)
        elif not self.is_over:
            self._events.append((name, data))

    def _wait(self, kind: str, name: str, input: Json, at: datetime | None = None) -> DurableTask[Any]:
        opened = Open(self, kind, name, json.loads(json.dumps(input)), DurableTask[Any](), at)
        self.open.append(opened)
        return opened.task

    # --- As `TurnContext` ---

    @property
    def current_utc_datetime(self) -> datetime:
        return self.world.now

    def new_uuid(self) -> str:
        self._ids += 1
        return f"{self.turn}-id{self._ids}"

    def create_timer(self, fire_at: datetime | timedelta) -> DurableTask[None]:
        at = fire_at if isinstance(fire_at, datetime) else self.world.now + fire_at
        return self._wait("timer", "", None, at)

    def wait_for_external_event(self, name: str) -> DurableTask[Any]:
        early = next((each for each in self._events if each[0] == name), None)
        if early is None:
            return self._wait("event", name, None)
        self._events.remove(early)
        come = DurableTask[Any]()
        come.complete(early[1])
        return come

    def create_task(self, coroutine: Coroutine[Any, Any, T]) -> DurableTask[T]:
        return as_durable_task(coroutine)

    def call_activity(self, activity: str, *, input: Json) -> DurableTask[Json]:
        return self._wait("activity", activity, input)

    def call_sub_orchestrator(self, orchestrator: str, *, input: Json, instance_id: str) -> DurableTask[Json]:
        return self._wait("child", instance_id, input)

    def call_entity(self, entity: EntityInstanceId, operation: str, input: Json) -> DurableTask[Json]:
        return self._wait("operation", operation, input)

    def signal_entity(self, entity: EntityInstanceId, operation: str, input: Json) -> None:
        self.world.signal(self.turn, operation, json.loads(json.dumps(input)))

    def send_event(self, instance_id: str, name: str, *, data: Json = None) -> None:
        self.world.send(instance_id, name, json.loads(json.dumps(data)))

    def set_custom_status(self, status: Json) -> None:
        json.dumps(status)
