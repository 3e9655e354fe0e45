"""A short form of `python -m tests.integration.faults`."""

from __future__ import annotations

import pytest

from tests.integration.faults import Report, crash_at_every_point, crash_at_random

pytestmark = pytest.mark.anyio


def assert_clean(report: Report) -> None:
    assert report.completed_steps_run_again == []
    assert report.lost == []
    assert report.answered_twice == []
    assert report.repeated_effects == []
    assert report.silent_reruns == []


async def test_a_crash_at_any_point_of_a_turn_loses_and_repeats_nothing() -> None:
    report = await crash_at_every_point(most=30, seed=4)
    assert_clean(report)
    assert report.crashes + len(report.not_met) == 30


async def test_crashes_at_random_points_lose_and_repeat_nothing() -> None:
    report = await crash_at_random(30, seed=4)
    assert_clean(report)
    assert report.crashes == 30
