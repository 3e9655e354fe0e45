"""What waits for a person, over all threads, for programs without an event loop."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

from dafx_actors.client._client import DurableAIAgentClient
from dafx_actors.client._inbox import Agents
from dafx_actors.decisions import InboxEvent, PendingApproval, PendingOutcome
from dafx_actors.sync._calls import Caller
from dafx_actors.sync._listing import Listing


class Inbox:
    """The part of a client that finds what waits for a person."""

    _wrapped: DurableAIAgentClient
    _caller: Caller

    def inbox(
        self,
        agents: Agents = None,
        *,
        verify: bool = True,
        thorough: bool = False,
        timeout: float | None = None,
    ) -> Listing[PendingApproval | PendingOutcome]:
        """What waits for a person: for `approve` and `deny`, or for `resolve`, as of `pending_approvals`.

        ::

            for question in client.inbox():
                print(question.top_thread, question.tool, question.arguments)

        What it costs and promises is that of the async client's `inbox`.

        Args:
            agents: Of these alone, by name or class: those whose tool is to be called.
            verify: Whether to read the threads of what is found. Without, what was decided a moment ago may be shown.
            thorough: Ask all running turns instead of what threads told; it finds as well what a version before this
                one has asked.
            timeout: Seconds for each page, outages of the scheduler included; by default as long as it takes.

        Raises:
            ConfigurationError: One of `agents` is none.
        """
        found = self._wrapped.inbox(agents, verify=verify, thorough=thorough, timeout=timeout)
        return Listing(self._caller, found)

    def watch_inbox(self, agents: Agents = None, *, every: float = 2.0) -> Iterator[InboxEvent]:
        """What comes into the inbox and what leaves it, from what is in it now on. It does not end by itself.

        ::

            for event in client.watch_inbox():
                match event:
                    case InboxAsked(question=question): ...
                    case InboxGone(question=question): ...

        Args:
            agents: As of `inbox`.
            every: Seconds between two looks.

        Raises:
            ConfigurationError: One of `agents` is none.
            ValueError: `every` is not positive.
            SchedulerRefused: The scheduler answers that it cannot list entities.
        """
        events = self._wrapped.watch_inbox(agents, every=every)
        return self._each(events)

    def _each(self, events: AsyncIterator[InboxEvent]) -> Iterator[InboxEvent]:
        while True:
            yield self._caller.call(events.__anext__)
