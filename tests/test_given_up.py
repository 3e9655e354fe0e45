"""The pure rules of calls that are given up, and of the patience before that."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from dafx_actors._json.operations import Attempted, GivenUp, Refused
from dafx_actors._rules import calls as _calls
from dafx_actors._rules import state as _state
from dafx_actors._rules import thread as _thread
from dafx_actors._rules.state import ThreadState
from dafx_actors._turns.hosting import LONGEST_PAUSE, Missing, pause
from dafx_actors.exchange import RunRequest
from dafx_actors.ids import AgentThread
from dafx_actors.transcript import ChatMessage

THREAD = AgentThread("Joker", "t1")
NOW = datetime(2025, 1, 2, 12, tzinfo=UTC)
KEY = "c1.1.0"


def active() -> ThreadState:
    request = RunRequest(correlation_id="c1", messages=(ChatMessage("user", "Pay."),))
    return _thread.begin(ThreadState(), THREAD, request, NOW)[0]


def test_what_is_given_up_is_not_attempted_any_more_and_a_later_attempt_is() -> None:
    state, outcome = _calls.give_up(active(), THREAD, "c1", KEY, 1)
    assert outcome == GivenUp(begun=False)
    assert _calls.is_given_up(state, KEY, 1)
    assert not _calls.is_given_up(state, KEY, 2)
    assert not _calls.is_given_up(state, "c1.1.1", 1)
    assert _calls.attempt(state, "c1", KEY, 1, "A", NOW) == (state, Attempted("stop"))
    assert _calls.attempt(state, "c1", KEY, 2, "A", NOW)[1] == Attempted("go")


def test_it_is_told_whether_a_step_had_begun() -> None:
    state, _ = _calls.attempt(active(), "c1", KEY, 1, "A", NOW)
    assert _calls.give_up(state, THREAD, "c1", KEY, 1)[1] == GivenUp(begun=True)
    assert _calls.give_up(state, THREAD, "c1", KEY, 2)[1] == GivenUp(begun=False)


def test_it_may_be_given_up_twice_late_or_by_a_turn_that_is_over() -> None:
    state, _ = _calls.give_up(active(), THREAD, "c1", KEY, 2)
    assert _calls.give_up(state, THREAD, "c1", KEY, 2) == (state, GivenUp(begun=False))
    assert _calls.give_up(state, THREAD, "c1", KEY, 1)[0] == state
    refused, outcome = _calls.give_up(state, THREAD, "c2", KEY, 1)
    assert refused == state
    assert isinstance(outcome, Refused)


def test_it_is_stored_and_gone_with_the_turn() -> None:
    state, _ = _calls.give_up(active(), THREAD, "c1", KEY, 1)
    stored = _state.dump(state)
    assert stored["data"]["dafx"]["givenUp"] == {KEY: 1}
    assert _calls.is_given_up(_state.load(stored), KEY, 1)
    ended, _ = _thread.commit(state, THREAD, "c1", (ChatMessage("assistant", "Gone."),), None, NOW)
    assert "dafx" not in _state.dump(ended)["data"]


def seen(*looks: tuple[float, bool | None]) -> Missing:
    missing = Missing()
    for seconds, has in looks:
        missing = missing.looked(has, NOW + timedelta(seconds=seconds))
    return missing


@pytest.mark.parametrize(
    ("looks", "is_over"),
    [
        ([(5, False)], False),
        ([(5, False), (20, False), (35, False), (50, False)], False),
        ([(5, False), (20, False), (35, False), (50, False), (65, False)], True),
        # Somebody had it in between.
        ([(5, False), (20, False), (35, True), (50, False), (65, False)], False),
        # All workers were away, and nobody could look.
        ([(5, False), (20, False), (80, False)], False),
        ([(5, False), (3600, False), (3615, False), (3630, False), (3645, False)], False),
        # Whoever looked could not tell.
        ([(5, None), (20, None), (35, None), (50, None), (65, None), (80, None)], False),
        ([(5, False), (20, None), (35, False), (50, False), (65, False)], True),
    ],
)
def test_it_is_over_when_nobody_had_it_for_a_minute_while_workers_were_there(
    looks: list[tuple[float, bool | None]], is_over: bool
) -> None:
    assert seen(*looks).is_over == is_over


def test_what_somebody_has_is_looked_at_ever_more_seldom() -> None:
    assert pause(True, timedelta(hours=9)) == timedelta(seconds=15)
    assert pause(False, timedelta(seconds=5)) == timedelta(seconds=15)
    assert pause(False, timedelta(minutes=8)) == timedelta(minutes=1)
    assert pause(False, timedelta(days=1)) == LONGEST_PAUSE
