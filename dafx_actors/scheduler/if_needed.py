"""A scheduler for whoever has none: what the examples start from."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import anyio

from dafx_actors.scheduler.embedded import EmbeddedScheduler

_ENDPOINT = "http://localhost:8080"


@asynccontextmanager
async def scheduler_if_needed(
    db: str | os.PathLike[str] = "dafx.db", *, say: Callable[[str], object] = print
) -> AsyncGenerator[str]:
    """Start the embedded scheduler at `http://localhost:8080`, unless ENDPOINT is set or something listens there.

    Gives the endpoint to use. What runs here ends with the `async with`; what it stored in `db` is there next time.

    Args:
        db: The database file, made if it is missing.
        say: Told in a line when a scheduler is started.

    Raises:
        SchedulerError: It cannot be started.
    """
    endpoint = os.environ.get("ENDPOINT")
    if endpoint or await _listens(_ENDPOINT):
        yield endpoint or _ENDPOINT
        return
    async with EmbeddedScheduler(db=db, port=urlsplit(_ENDPOINT).port or 0):
        say(f"Nothing listens at {_ENDPOINT}: the embedded scheduler runs in this process, with its state in {db}.")
        yield _ENDPOINT


async def _listens(endpoint: str) -> bool:
    parts = urlsplit(endpoint)
    try:
        with anyio.fail_after(2.0):
            stream = await anyio.connect_tcp(parts.hostname or "localhost", parts.port or 80)
    except (OSError, TimeoutError):
        return False
    await stream.aclose()
    return True
