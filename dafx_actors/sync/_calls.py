"""How a sync client's calls are made, by all that it has given out."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import ParamSpec, TypeVar

from dafx_actors.client._client import DurableAIAgentClient
from dafx_actors.errors import SchedulerUnreachable
from dafx_actors.sync import _portal

P = ParamSpec("P")
T = TypeVar("T")


class Caller:
    """Makes the calls of one client."""

    def __init__(self, client: DurableAIAgentClient, endpoint: str) -> None:
        self._client = client
        self._endpoint = endpoint
        self._is_closed = False

    def call(self, function: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Make an async call, and wait for its end.

        Raises:
            LoopWouldBlock: An event loop runs in this thread.
            SchedulerUnreachable: The client was closed.
        """
        if self._is_closed:
            raise self._closed()
        try:
            return _portal.call(self, function, *args, **kwargs)
        except _portal.Closed:
            raise self._closed() from None

    def close(self) -> None:
        """Close the client. Whoever waits for an answer hears `SchedulerUnreachable`."""
        if self._is_closed:
            return
        self._is_closed = True
        _portal.call_anywhere(self, self._client.close)
        _portal.leave(self)

    def _closed(self) -> SchedulerUnreachable:
        return SchedulerUnreachable(self._endpoint, "this client was closed")
