"""Fixtures of the scheduler's tests: a real scheduler, real clients and workers, a real file."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.scheduler.bench import Bench

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    """A scheduler over a file, a client, and workers on demand."""
    async with Bench(tmp_path / "dafx.db") as running:
        yield running
