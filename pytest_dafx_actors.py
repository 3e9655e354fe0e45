"""Fixtures for tests of agents, for pytest with anyio. Nothing is imported before a test asks for one."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, Protocol

import pytest

if TYPE_CHECKING:
    from datetime import datetime

    from dafx_actors.testing import AgentHost, Point


class AgentHosts(Protocol):
    """Starts a host that ends with the test: what the fixture `agent_host` gives."""

    def __call__(
        self,
        *agents: object,
        orchestrators: Iterable[Callable[..., Any]] = ...,
        activities: Iterable[Callable[..., Any]] = ...,
        faults: Callable[[Point], bool] | None = ...,
        start: datetime | None = ...,
        patience: float = ...,
    ) -> Awaitable[AgentHost]:
        """See `dafx_actors.testing.AgentHost`."""
        ...


@pytest.fixture
async def agent_host(anyio_backend_name: str) -> AsyncGenerator[AgentHosts]:
    """Start hosts that end with the test.

    ::

        @pytest.mark.anyio
        async def test_it(agent_host: AgentHosts) -> None:
            host = await agent_host(Joker)
            answer = await host.client.get_agent(Joker).run("Tell me a joke")

    The arguments are those of `dafx_actors.testing.AgentHost`.
    """
    if anyio_backend_name != "asyncio":
        pytest.fail("agents run on asyncio only: give your tests a fixture `anyio_backend` that returns 'asyncio'")
    # Here, so that pytest starts as quickly as without this package.
    from dafx_actors.testing import AgentHost

    async with AsyncExitStack() as hosts:

        async def start(*agents: object, **how: Any) -> AgentHost:
            return await hosts.enter_async_context(AgentHost(*agents, **how))

        yield start
