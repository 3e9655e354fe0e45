"""The orchestrations of a task hub, for programs without an event loop."""

from __future__ import annotations

from datetime import timedelta

from dafx_actors.client import _orchestrations as _async
from dafx_actors.client._orchestrations import OrchestrationInfo, OrchestrationPhase
from dafx_actors.sync._calls import Caller
from dafx_actors.sync._listing import Listing

__all__ = ["Orchestrations"]


class Orchestrations:
    """The orchestrations of a task hub, as `client.orchestrations`. `client.get_orchestration` looks after one."""

    def __init__(self, caller: Caller, orchestrations: _async.Orchestrations) -> None:
        self._caller = caller
        self._orchestrations = orchestrations

    def list(
        self,
        name: str | None = None,
        *,
        prefix: str = "",
        state: OrchestrationPhase | None = None,
        older: timedelta | None = None,
        of_agents: bool = False,
        timeout: float | None = None,
    ) -> Listing[OrchestrationInfo]:
        """The orchestrations, in the order in which they were started where the scheduler keeps it.

        On any backend. The scheduler looks for `prefix`, `state` and `older`; for `name` it is looked here, so that the
        others are read as well, without their inputs and results, 100 in a call.

        Args:
            name: Of this name.
            prefix: Whose ids begin so.
            state: In this state.
            older: Started so long ago, or before.
            of_agents: Also those that are turns of agents, or tell their threads something.
            timeout: Seconds for each page, outages of the scheduler included; by default as long as it takes.

        Raises:
            ValueError: `state` is none, or `older` is negative.
        """
        found = self._orchestrations.list(
            name, prefix=prefix, state=state, older=older, of_agents=of_agents, timeout=timeout
        )
        return Listing(self._caller, found)
