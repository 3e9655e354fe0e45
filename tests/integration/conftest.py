"""A real scheduler over a socket, a worker and a client on the test's own event loop."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

import pytest
from durabletask.testing import create_test_backend

from dafx_actors import DurableAIAgentClient, DurableAIAgentWorker
from dafx_actors.scheduler import EmbeddedScheduler
from tests.conftest import free_port


@pytest.fixture(params=["embedded", "durabletask"])
def endpoint(request: pytest.FixtureRequest, tmp_path: Path) -> Generator[str]:
    """Our scheduler, and durabletask's own in-memory backend: the same program runs on both."""
    if request.param == "embedded":
        with EmbeddedScheduler(db=tmp_path / "dafx.db").on_a_thread() as scheduler:
            yield scheduler.endpoint
        return
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
