"""What a turn shares with the turns of agents that it uses as tools."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dafx_actors import AgentThread, Limits
from dafx_actors._json.crossing import CrossingError, load_error
from dafx_actors._json.messages import dump_usage
from dafx_actors._json.requests import dump_limits, load_limits
from dafx_actors._json.steps import Caller, Spent, dump_callers, load_callers
from dafx_actors._rules.tree import shares, waits_for, within
from dafx_actors._rules.turn import Progress, over_limit, with_spent
from dafx_actors.errors import TurnCancelled
from dafx_actors.transcript import UsageStats

A_MINUTE = timedelta(minutes=1)
USED = UsageStats(200, 100, 300)


def left(limits: Limits, *, steps: int = 3, count: int = 1, waited: timedelta = A_MINUTE) -> list[Limits | str]:
    return shares(limits, steps, USED, waited, count)


# --- Limits of an agent and of a request --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "asked", "held"),
    [
        (Limits(steps=5), Limits(steps=50), {"steps": 5}),
        (Limits(steps=50), Limits(steps=5), {"steps": 5}),
        (Limits(steps=5), Limits(steps=None), {"steps": 5}),
        (Limits(steps=500), Limits(tokens=10), {"steps": 500, "tokens": 10}),
        (Limits(), Limits(steps=500), {"steps": 500}),
        (Limits(), Limits(steps=None), {"steps": None}),
        (Limits(steps=None), Limits(), {"steps": None}),
        (Limits(), Limits(), {"steps": 100, "depth": 8, "tokens": None, "seconds": None}),
        (Limits(tokens=10, seconds=3), Limits(seconds=9), {"tokens": 10, "seconds": 3, "steps": 100}),
        (Limits(tokens=10), Limits(tokens=None), {"tokens": 10}),
        (Limits(depth=2), Limits(depth=9), {"depth": 2}),
        (Limits(depth=2), Limits(depth=0), {"depth": 0}),
        (Limits(), Limits(depth=9), {"depth": 9}),
    ],
)
def test_a_request_lowers_what_was_written_and_replaces_what_was_not(
    written: Limits, asked: Limits, held: dict[str, Any]
) -> None:
    travelled = [load_limits(dump_limits(limits)) for limits in (written, asked)]
    for given_, request in ((written, asked), travelled):
        found = within(given_, request)
        assert {name: getattr(found, name) for name in held} == held
    assert within(written, None) == written


def test_a_limit_that_older_clients_send_counts_as_written() -> None:
    """They send all of them, and not which of them somebody wrote."""
    theirs = load_limits({"steps": 100, "tokens": 50, "seconds": None})
    assert within(Limits(steps=5), theirs) == Limits(steps=5, tokens=50)


def test_what_nobody_wrote_does_not_travel() -> None:
    assert dump_limits(Limits()) == {"tokens": None, "seconds": None}
    assert dump_limits(Limits(steps=100, depth=8)) == {"steps": 100, "tokens": None, "seconds": None, "depth": 8}


@pytest.mark.parametrize("depth", [-1, -8])
def test_a_depth_is_not_negative(depth: int) -> None:
    with pytest.raises(ValueError, match="depth"):
        Limits(depth=depth)


# --- What is left to those below ----------------------------------------------------------------------------------


def test_one_agent_gets_all_that_is_left_but_the_step_after_it() -> None:
    limits = Limits(steps=10, tokens=1000, seconds=90, depth=3)
    assert left(limits) == [Limits(steps=6, tokens=700, seconds=30, depth=2)]


def test_what_has_no_limit_is_not_limited_by_the_turn_above() -> None:
    [share] = left(Limits(steps=None, depth=None))
    assert isinstance(share, Limits)
    assert dump_limits(share) == {"tokens": None, "seconds": None}


def test_those_at_the_same_time_share_it() -> None:
    assert [each.steps for each in left(Limits(steps=12), count=3) if isinstance(each, Limits)] == [3, 3, 2]


@given(steps=st.integers(1, 50), tokens=st.integers(1, 500), taken=st.integers(0, 60), count=st.integers(1, 12))
def test_together_they_never_get_more_than_there_is(steps: int, tokens: int, taken: int, count: int) -> None:
    given_ = shares(Limits(steps=steps, tokens=tokens), taken, None, A_MINUTE, count)
    assert len(given_) == count
    limits = [each for each in given_ if isinstance(each, Limits)]
    assert sum(each.steps or 0 for each in limits) <= max(steps - taken - 1, 0)
    assert sum(each.tokens or 0 for each in limits) <= tokens


@pytest.mark.parametrize(
    ("limits", "word"),
    [
        (Limits(steps=4), "steps"),
        (Limits(tokens=300), "tokens"),
        (Limits(seconds=60), "seconds"),
        (Limits(depth=0), "deeper"),
    ],
)
def test_where_nothing_is_left_the_model_is_told_so(limits: Limits, word: str) -> None:
    [refusal] = left(limits)
    assert isinstance(refusal, str)
    assert "was not made" in refusal
    assert word in refusal


@pytest.mark.parametrize(("limits", "limit"), [(Limits(steps=5), "steps"), (Limits(tokens=200), "tokens")])
def test_a_turn_ends_at_its_limit_when_those_below_came_to_it(limits: Limits, limit: str) -> None:
    progress = with_spent(Progress(steps=2), 3, USED)
    assert (progress.steps, progress.usage) == (5, USED)
    over = over_limit(progress, limits, "t1", "Worker")
    assert over is not None
    assert over.limit == limit
    assert over_limit(progress, Limits(steps=6, tokens=300), "t1", "Worker") is None


# --- What they took -----------------------------------------------------------------------------------------------


def test_a_response_says_what_its_turn_took() -> None:
    usage = dump_usage(USED)
    assert Spent.in_response({"usage": usage, "dafx": {"steps": 4}}) == Spent(4, USED)
    assert Spent.in_response({}) == Spent(1, None)


@pytest.mark.parametrize("spent", [Spent(), Spent(4, USED)])
def test_an_error_has_beside_it_what_its_turn_took(spent: Spent) -> None:
    error = TurnCancelled("Worker", "t1", "enough", "ana")
    crossing = str(CrossingError(error, spent.dump()))
    assert Spent.beside_error(crossing) == spent
    assert str(load_error(crossing)) == str(error)
    assert Spent.beside_error(str(CrossingError(error))) is None


@pytest.mark.parametrize("text", ["", "no JSON", "[]", '{"spent": 5}', '{"spent": {"steps": "x"}}'])
def test_what_others_failed_with_says_nothing_of_it(text: str) -> None:
    assert Spent.beside_error(text) is None


# --- Those above --------------------------------------------------------------------------------------------------

ABOVE = (Caller(AgentThread("Writer", "t1"), "c1"), Caller(AgentThread("Editor", "t2"), "c2"))


def test_the_turns_above_survive_the_way() -> None:
    assert load_callers(dump_callers(ABOVE)) == ABOVE
    assert load_callers(None) == ()


@pytest.mark.parametrize("raw", ["x", [5], [{"agent": "Writer"}], [{"agent": 1, "thread": "t", "correlationId": "c"}]])
def test_what_is_no_list_of_turns_is_refused(raw: Any) -> None:
    with pytest.raises(ValueError, match=r"."):
        load_callers(raw)


def test_a_thread_that_is_waited_in_is_known_by_agent_and_id() -> None:
    assert waits_for(ABOVE, AgentThread("writer", "t1"))
    assert not waits_for(ABOVE, AgentThread("Writer", "t2"))
    assert not waits_for(ABOVE, AgentThread("Editor", "t1"))
