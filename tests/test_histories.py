"""Turns and orchestrations that began yesterday go on with today's code."""

from __future__ import annotations

from operator import attrgetter
from pathlib import Path

import pytest

from dafx_actors.testing import History, replay
from tests.histories.runs import FOLDER, HOSTED, RUNS, record


@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.json")), ids=attrgetter("stem"))
def test_a_recorded_history_still_replays(file: Path) -> None:
    replay(History.load(file), *HOSTED)


@pytest.mark.anyio
@pytest.mark.parametrize("name", RUNS)
async def test_what_today_would_be_recorded_replays(name: str) -> None:
    replay(await record(name), *HOSTED)


def test_there_is_a_history_of_each_run() -> None:
    assert {file.stem for file in FOLDER.glob("*.json")} >= set(RUNS)
