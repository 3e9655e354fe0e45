"""Fixtures that every test may use."""

from __future__ import annotations

import asyncio
import contextvars
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from typing_extensions import TypeVarTuple, Unpack

from tests.interop import environment

settings.register_profile("usual", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("usual")
"""How long an example takes says how busy the machine is."""
settings.register_profile("thorough", max_examples=20_000, stateful_step_count=60, deadline=None)
"""For `pytest --hypothesis-profile=thorough`: minutes instead of seconds, and other examples each time."""


Ts = TypeVarTuple("Ts")


class TestLoop(asyncio.SelectorEventLoop):
    """The event loop of one test.

    gRPC's async API has one queue for all loops of a process. What a cancelled call of an earlier test still has to say
    comes to whichever loop reads that queue, which calls it on the loop of that call. Here that says nothing if the
    loop is closed; otherwise the test that happens to run then would fail.
    """

    __test__ = False

    def call_soon_threadsafe(
        self, callback: Callable[[Unpack[Ts]], object], *args: *Ts, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        if self.is_closed() and getattr(callback, "__name__", "") == "_handle_callback_wrapper":
            return asyncio.Handle(callback, args, self, context)
        return super().call_soon_threadsafe(callback, *args, context=context)


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    """gRPC's async API runs on asyncio only."""
    return "asyncio", {"loop_factory": TestLoop}


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
