"""The turns of a task hub, for programs without an event loop."""

from __future__ import annotations

from datetime import timedelta

from dafx_actors._durable.recorded import History
from dafx_actors.client import _turns as _async
from dafx_actors.client._handles import TurnState
from dafx_actors.client._turns import TurnInfo
from dafx_actors.ids import AgentThread
from dafx_actors.sync._calls import Caller
from dafx_actors.sync._listing import Listing

__all__ = ["Turns"]


class Turns:
    """The turns of a task hub, as `client.turns`: list them, and read what was recorded of one."""

    def __init__(self, caller: Caller, turns: _async.Turns) -> None:
        self._caller = caller
        self._turns = turns

    def list(
        self,
        agent: str | type | object | None = None,
        *,
        thread: AgentThread | None = None,
        state: TurnState | None = None,
        older: timedelta | None = None,
        timeout: float | None = None,
    ) -> Listing[TurnInfo]:
        """The turns, in the order in which they were started where the scheduler keeps it, as the embedded one does.

        On any backend. The scheduler looks for `state` and `older`; all else is looked for here, so that the other
        orchestrations and turns of the hub are read as well, each with its input, 100 in a call. A turn that the peer's
        worker has costs a call more, which reads its thread. Turns that were purged, or deleted with their thread, are
        not there.

        Args:
            agent: Of this agent, by name or class.
            thread: Of this thread.
            state: In this state.
            older: Started so long ago, or before.
            timeout: Seconds for each page, outages of the scheduler included; by default as long as it takes.

        Raises:
            ConfigurationError: `agent` is none.
            ValueError: `state` is none, or `older` is negative.
        """
        found = self._turns.list(agent, thread=thread, state=state, older=older, timeout=timeout)
        return Listing(self._caller, found)

    def history(self, correlation_id: str, *, timeout: float | None = None) -> History:
        """What was recorded of a turn: each step that it asked for and was given, with arguments and results.

        On any backend. The history is read whole: it grows with the steps of the turn, and not with its thread.
        `dafx_actors.testing.replay` runs today's code against it.

        Args:
            correlation_id: The turn.
            timeout: Seconds to wait, outages of the scheduler included; by default as long as it takes.

        Raises:
            OrchestrationNotFound: There is no such turn.
            SchedulerUnreachable: Nothing answers, or not within `timeout`.
        """
        return self._caller.call(self._turns.history, correlation_id, timeout=timeout)
