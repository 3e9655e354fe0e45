"""The worker, as its agents see it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

from durabletask.client import TaskHubGrpcClient

from dafx_actors._json.operations import Note
from dafx_actors.agents import Agent
from dafx_actors.ids import AgentThread
from dafx_actors.models import Model

T = TypeVar("T")


class TurnEnded(Exception):
    """The turn of a step has ended before the step: nobody waits for its answer."""


class Host(Protocol):
    """The worker, as its agents see it."""

    @property
    def reader(self) -> TaskHubGrpcClient:
        """A client to read threads and turns with, from any thread."""
        ...

    @property
    def is_stopping(self) -> bool:
        """True while the worker stops: a step that does not end soon is handed out again, to another worker."""
        ...

    @property
    def registered_agent_names(self) -> list[str]:
        """The agents that it hosts."""
        ...

    def run_operation(self, entity_id: str, step: Callable[[], Awaitable[T]]) -> T:
        """Run what an operation of this thread waits for on the agents' loop, and wait for it here."""
        ...

    async def blocking(self, call: Callable[[], T]) -> T:
        """Make a call that blocks, such as one of `reader`, on a thread, and wait for it on the loop."""
        ...

    async def until_ended(self, turn: str, step: Callable[[], Awaitable[T]]) -> T:
        """Await a step of a turn, unless the turn ends before it.

        Raises:
            TurnEnded: It has; the step was cancelled.
        """
        ...

    def report(self, thread: AgentThread, note: Note) -> None:
        """Send a tool's progress to its thread, some time soon; the latest of each call."""
        ...

    def words(self, step: int) -> Callable[[str], None]:
        """What tells the readers of the turn, in the step that runs, what its model says; it never waits nor raises.

        Args:
            step: The number of the reply, from 1.
        """
        ...

    def model_of(self, agent: Agent) -> Model:
        """The model of an agent, made when it is first asked for.

        Raises:
            ConfigurationError: None is configured.
        """
        ...
