"""A short form of `python -m tests.integration.deployments`."""

from __future__ import annotations

import pytest

from tests.integration import deployments

pytestmark = pytest.mark.anyio


@pytest.mark.timeout(300)  # much of it is waiting for processes to start, on a machine that does other things, too
async def test_a_client_that_sends_again_is_answered_once_through_kills_and_deployments() -> None:
    report = await deployments.run(turns=16, kills=4, pause=1.0, away=2.5, seed=3)
    assert report.clean, report
    assert (report.turns, report.kills, report.outages) == (16, 4, 1)
