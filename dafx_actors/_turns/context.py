"""What a turn needs of its orchestration: some ten calls, which a test can answer in any order."""

from __future__ import annotations

from collections.abc import Coroutine
from datetime import datetime, timedelta
from typing import Any, Protocol, TypeVar

from durabletask.entities import EntityInstanceId

from dafx_actors.orchestration._coroutines import DurableTask
from dafx_actors.transcript import Json

T = TypeVar("T")


class TurnContext(Protocol):
    """The orchestration of a turn; `OrchestrationContext` is one."""

    @property
    def current_utc_datetime(self) -> datetime:
        """The orchestration's time."""
        ...

    def new_uuid(self) -> str:
        """A new id, the same at every replay."""
        ...

    def create_timer(self, fire_at: datetime | timedelta) -> DurableTask[None]:
        """Wait until a time, or for a while."""
        ...

    def wait_for_external_event(self, name: str) -> DurableTask[Any]:
        """Wait until somebody raises an event."""
        ...

    def create_task(self, coroutine: Coroutine[Any, Any, T]) -> DurableTask[T]:
        """Let a coroutine run beside this one."""
        ...

    def call_activity(self, activity: str, *, input: Json) -> DurableTask[Json]:
        """Run a step, on any worker that has it."""
        ...

    def call_sub_orchestrator(self, orchestrator: str, *, input: Json, instance_id: str) -> DurableTask[Json]:
        """Run the turn of another agent."""
        ...

    def call_entity(self, entity: EntityInstanceId, operation: str, input: Json) -> DurableTask[Json]:
        """Tell a thread something, and hear what it says."""
        ...

    def signal_entity(self, entity: EntityInstanceId, operation: str, input: Json) -> None:
        """Tell a thread something, and do not wait."""
        ...

    def send_event(self, instance_id: str, name: str, *, data: Json = None) -> None:
        """Raise an event for another turn."""
        ...

    def set_custom_status(self, status: Json) -> None:
        """Show how far the turn is."""
        ...
