"""The fixture `agent_host`, for tests of agents: with anyio's pytest plugin, and with pytest-asyncio.

Nothing of `dafx_actors` is imported before a test asks for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

import pytest

if TYPE_CHECKING:
    from dafx_actors.testing import AgentHost
    from dafx_actors.testing import AgentHosts as AgentHosts


def __getattr__(name: str) -> object:
    """`AgentHosts`, which tests may import from here as well."""
    if name == "AgentHosts":
        return import_module("dafx_actors.testing").AgentHosts
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@pytest.fixture
def agent_host(request: pytest.FixtureRequest) -> AgentHosts:
    """Start hosts that end with the test.

    ::

        @pytest.mark.anyio                  # or `@pytest.mark.asyncio`, or nothing in pytest-asyncio's auto mode
        async def test_it(agent_host: AgentHosts) -> None:
            host = await agent_host(Joker)
            answer = await host.client.get_agent(Joker).run("Tell me a joke")

    The arguments are those of `dafx_actors.testing.AgentHost`. Each host has a scheduler, a clock and a worker of its
    own.
    """
    # Whoever runs the test must run the fixture that starts and ends its hosts: on one event loop.
    hosts: AgentHosts = request.getfixturevalue(_fixture_of(request))
    return hosts


_ON_ANYIO: Final = "_agent_host_on_anyio"
_ON_ASYNCIO: Final = "_agent_host_on_the_loop_of_a_{}"
_LOOP_SCOPES: Final = ("function", "class", "module", "package", "session")
_ASYNCIO_FIXTURES: Final = "dafx_actors_on_pytest_asyncio"


def _fixture_of(request: pytest.FixtureRequest) -> str:
    """The name of the fixture on the event loop of this test."""
    config, test = request.config, request.node
    marker = test.get_closest_marker("asyncio")  # in its auto mode pytest-asyncio sets it itself
    if marker is not None and config.pluginmanager.has_plugin("asyncio"):
        if not config.pluginmanager.has_plugin(_ASYNCIO_FIXTURES):
            pytest.fail("`agent_host` needs pytest-asyncio 0.24 or newer, or anyio's pytest plugin", pytrace=False)
        if "anyio_backend" in request.fixturenames:
            pytest.fail(
                "`agent_host` is run by anyio's pytest plugin or by pytest-asyncio, and both want this test: leave out "
                "one of their marks, or the auto mode of pytest-asyncio",
                pytrace=False,
            )
        return _ON_ASYNCIO.format(_loop_scope(marker, config))
    if "anyio_backend" in request.fixturenames:
        if request.getfixturevalue("anyio_backend_name") != "asyncio":
            # Unless it is told, anyio runs a copy of each test on all that is installed; one of them is on asyncio.
            is_copy = "anyio_backend" in getattr(getattr(test, "callspec", None), "params", ())
            why = "agents run on asyncio only: give your tests a fixture `anyio_backend` that returns 'asyncio'"
            pytest.skip(why) if is_copy else pytest.fail(why, pytrace=False)
        return _ON_ANYIO
    pytest.fail(
        "`agent_host` starts hosts in an `async def` test that anyio's pytest plugin or pytest-asyncio runs: "
        "mark the test with `@pytest.mark.anyio` or `@pytest.mark.asyncio`",
        pytrace=False,
    )


def _loop_scope(marker: pytest.Mark, config: pytest.Config) -> str:
    """How long the event loop of a test of pytest-asyncio lives."""
    try:
        usual = config.getini("asyncio_default_test_loop_scope")
    except ValueError:  # pytest-asyncio 0.24 has no such option
        usual = "function"
    return str(marker.kwargs.get("loop_scope") or marker.kwargs.get("scope") or usual)


@pytest.fixture(name=_ON_ANYIO)
async def _on_anyio(anyio_backend: object) -> AsyncGenerator[AgentHosts]:
    async with _hosts() as start:
        yield start


def pytest_configure(config: pytest.Config) -> None:
    """Offer the fixtures for pytest-asyncio where it is there: in its strict mode it runs only those that it made."""
    if not config.pluginmanager.has_plugin("asyncio"):
        return
    make: Any = import_module("pytest_asyncio").fixture
    try:
        fixtures = {
            scope: make(_starting(), loop_scope=scope, name=_ON_ASYNCIO.format(scope)) for scope in _LOOP_SCOPES
        }
    except TypeError:  # It is older than 0.24. Who asks for a host is told, and nobody else.
        return
    plugin = ModuleType(_ASYNCIO_FIXTURES)
    vars(plugin).update(fixtures)
    config.pluginmanager.register(plugin, _ASYNCIO_FIXTURES)


def _starting() -> Callable[[], AsyncGenerator[AgentHosts]]:
    """A function of its own for each fixture, since pytest-asyncio writes the loop's scope on it."""

    async def starting() -> AsyncGenerator[AgentHosts]:
        async with _hosts() as start:
            yield start

    return starting


@asynccontextmanager
async def _hosts() -> AsyncGenerator[AgentHosts]:
    """What starts hosts; they end with the context, the last one first."""
    # Here, so that pytest starts as quickly as without this package.
    from dafx_actors.testing import AgentHost

    home = asyncio.get_running_loop()
    async with AsyncExitStack() as hosts:

        async def start(*agents: object, **how: Any) -> AgentHost:
            if asyncio.get_running_loop() is not home:
                pytest.fail(
                    "`agent_host` was awaited on another event loop than the test's, where the host must end: give "
                    "the fixture that awaits it the `loop_scope` of the test",
                    pytrace=False,
                )
            return await hosts.enter_async_context(AgentHost(*agents, **how))

        yield start
