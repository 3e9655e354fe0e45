"""Fixtures that every test may use."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.interop import environment

settings.register_profile("usual", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("usual")
"""How long an example takes says how busy the machine is."""
settings.register_profile("thorough", max_examples=20_000, stateful_step_count=60, deadline=None)
"""For `pytest --hypothesis-profile=thorough`: minutes instead of seconds, and other examples each time."""


@pytest.fixture
def anyio_backend() -> str:
    """gRPC's async API runs on asyncio only."""
    return "asyncio"


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def peer_python_or_skip() -> Path:
    """The Python of the peer's environment. Without one a test is skipped, unless `DAFX_REQUIRE_PEER` is set.

    Raises:
        NoPeer: It is set, and there is none.
    """
    try:
        return environment.peer_python()
    except environment.NoPeer as error:
        if os.environ.get("DAFX_REQUIRE_PEER"):
            raise
        pytest.skip(str(error))
