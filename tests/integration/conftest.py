"""A real scheduler over a socket, a worker and a client on the test's own event loop."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Protocol

import pytest
from durabletask.testing import create_test_backend

from dafx_actors import DurableAIAgentClient, DurableAIAgentWorker
from tests.conftest import free_port


@pytest.fixture
def endpoint() -> Generator[str]:
    """durabletask's own in-memory backend: what the rest of the world takes for a scheduler."""
    port = free_port()
    backend = create_test_backend(port=port)
    yield f"http://127.0.0.1:{port}"
    backend.stop()


class Hosting(Protocol):
    """Hosts what it is given, and gives a client."""

    def __call__(
        self,
        *agents: object,
        orchestrators: tuple[Callable[..., Any], ...] = (),
        activities: tuple[Callable[..., Any], ...] = (),
    ) -> AbstractAsyncContextManager[DurableAIAgentClient]: ...


@pytest.fixture
def hosting(endpoint: str) -> Hosting:
    @asynccontextmanager
    async def host(
        *agents: object,
        orchestrators: tuple[Callable[..., Any], ...] = (),
        activities: tuple[Callable[..., Any], ...] = (),
    ) -> AsyncGenerator[DurableAIAgentClient]:
        worker = DurableAIAgentWorker.connect(endpoint)
        worker.add_agent(*agents)
        for orchestrator in orchestrators:
            worker.add_orchestrator(orchestrator)
        for activity in activities:
            worker.add_activity(activity)
        async with DurableAIAgentClient.connect(endpoint) as client, worker:
            yield client

    return host
