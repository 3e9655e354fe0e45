"""What the inbox is told of a thread, and what it keeps: in any order, twice, or not at all."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime
from typing import Any

import pytest

from dafx_actors._json.asks import Asks
from dafx_actors._json.books import CancelMark, DecisionRecord, QuestionRecord
from dafx_actors._rules import asks as _asks
from dafx_actors._rules import calls as _calls
from dafx_actors._rules import state as _state
from dafx_actors._rules import thread as _thread
from dafx_actors._rules.state import ThreadState
from dafx_actors.errors import ConfigurationError, TurnTerminated
from dafx_actors.exchange import RunRequest
from dafx_actors.ids import AgentThread, agent_name, agent_of_entity, asks_id, asks_prefix
from dafx_actors.transcript import ChatMessage, FunctionCallContent

THREAD = AgentThread("Cashier", "t1")
NOW = datetime(2025, 1, 2, 12, tzinfo=UTC)


def question(key: str, minute: int = 0, **more: Any) -> QuestionRecord:
    return QuestionRecord.of(
        key=key,
        kind="approval",
        call_key=key,
        call_id=key,
        tool="pay",
        arguments=more.pop("arguments", {"amount": 5}),
        asked_at=NOW.replace(minute=minute),
        **more,
    )


def begun(turn: str = "c1") -> ThreadState:
    request = RunRequest(correlation_id=turn, messages=(ChatMessage("user", "Pay."),))
    return _thread.begin(ThreadState(), THREAD, request, NOW)[0]


def asking(*questions: QuestionRecord, state: ThreadState | None = None) -> ThreadState:
    state = state or begun()
    calls = ChatMessage("assistant", tuple(FunctionCallContent(each.key, "pay", {}) for each in questions))
    return _thread.record(state, THREAD, "c1", (calls,), state.length, questions=questions)[0]


def decided(state: ThreadState, key: str) -> ThreadState:
    decision = DecisionRecord({"action": "approve", "at": "2025-01-02T12:00:00+00:00"})
    return _calls.decide(state, "c1", key, "", decision)[0]


def keys(asks: Asks) -> list[Any]:
    return [each["key"] for each in asks.questions]


def life() -> list[ThreadState]:
    """A turn that asks twice, is answered in between, and ends."""
    one = asking(question("a"), question("b"))
    two = decided(one, "a")
    three = asking(question("c", 1), state=two)
    four = decided(decided(three, "b"), "c")
    five = asking(question("d", 2), state=four)
    ended = _thread.abort(five, THREAD, "c1", TurnTerminated("Cashier", "c1", ""), NOW)[0]
    return [begun(), one, two, three, four, five, ended]


def told() -> list[Asks]:
    return [each for one, two in itertools.pairwise(life()) for each in _asks.told(one, two, THREAD)]


def test_it_is_told_all_that_is_open_with_each_change_and_the_end() -> None:
    assert [keys(each) for each in told()] == [["a", "b"], ["b"], ["b", "c"], [], ["d"], []]
    ranks = [each.rank for each in told()]
    assert ranks == sorted(set(ranks))


def test_it_is_told_nothing_where_nothing_has_changed_for_a_person() -> None:
    state = asking(question("a"))
    noted = _calls.note(state, "c1", "a", {"percent": 5})[0]
    assert noted != state
    assert _asks.told(state, noted, THREAD) == ()
    assert _asks.told(ThreadState(), begun(), THREAD) == ()


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
def test_what_comes_late_or_twice_or_not_at_all_does_no_harm_while_something_waits(order: tuple[int, ...]) -> None:
    """Whatever of the first messages came before the latest one, or comes after it: the latest counts."""
    *before, latest = told()[:3]
    messages = [*before, latest, latest]
    for left_out in (None, 0, 1):
        stored: Any = None
        for number in order:
            if number != left_out:
                stored = _asks.kept(stored, Asks.load(messages[number].dump()))
        assert Asks.load(stored) == latest


def test_an_end_takes_away_what_was_told_before_and_nothing_that_is_asked_later() -> None:
    *_, gone, again, end = told()
    assert _asks.kept(told()[2].dump(), gone) is None
    assert _asks.kept(again.dump(), gone) == again.dump()
    assert _asks.kept(again.dump(), end) is None
    assert _asks.kept(None, end) is None


def test_a_turn_that_was_cancelled_asks_no_more_and_neither_does_one_whose_thread_forgets_it() -> None:
    state = asking(question("a"))
    cancelled = _thread.cancel(state, THREAD, "c1", CancelMark.of(by="", reason=""), NOW)[0]
    for after in (cancelled, _thread.reset(state)[0], ThreadState()):
        (gone,) = _asks.told(state, after, THREAD)
        assert (gone.turn, gone.questions) == ("c1", ())
        assert _asks.kept(_asks.told(begun(), state, THREAD)[0].dump(), gone) is None
    assert _asks.told(cancelled, ThreadState(), THREAD) == ()


def test_long_arguments_are_left_out_and_it_is_told_so() -> None:
    many = [question(str(number), arguments={"text": "x" * 3_000}) for number in range(40)]
    (asks,) = _asks.told(begun(), asking(question("long", arguments={"text": "x" * 5_000}), *many), THREAD)
    assert asks.is_cut
    assert asks.questions[0]["arguments"] == {}
    assert asks.questions[1]["arguments"] == {"text": "x" * 3_000}
    assert len(str(asks.dump())) < 100_000
    assert not told()[0].is_cut


@pytest.mark.parametrize(
    "stored", [None, 5, "x", [], {}, {"agent": "A"}, {"agent": "A", "thread": "", "questions": []}]
)
def test_what_others_keep_under_such_a_name_is_not_read_and_is_made_good(stored: Any) -> None:
    assert Asks.read(stored) is None
    first = told()[0]
    assert _asks.kept(stored, first) == first.dump()


def test_a_question_says_whose_it_is_and_one_of_before_is_still_the_same() -> None:
    top = AgentThread("Boss", "b1")
    below = question("a", top=(top, "boss-turn"))
    pending = below.pending(THREAD, "c1")
    assert (pending.top_thread, pending.top_turn) == (top, "boss-turn")
    own = question("a").pending(THREAD, "c1")
    assert (own.top_thread, own.top_turn) == (THREAD, "c1")
    odd = QuestionRecord({**question("a").raw, "top": {"agent": 5}}).pending(THREAD, "c1")
    assert odd.top_thread == THREAD
    stored = question("a").decided(DecisionRecord({"action": "approve"}))
    assert stored.asks_the_same(below)
    assert not stored.asks_the_same(question("a", 1))
    assert _state.load(_state.dump(asking(below))).books.asks["a"] == below


def test_the_ids_fit_and_are_no_threads() -> None:
    longest = "A" * 57
    assert len(str(asks_id(longest, "x" * 100))) <= 100
    assert str(asks_id("Cashier", "c1")) == "@dafx-asks-cashier@c1"
    assert asks_id("Cashier", "x" * 100) != asks_id("Cashier", "x" * 99)
    assert str(asks_id("Cashier", "c1")).startswith((asks_prefix(None), asks_prefix("Cashier")))
    assert agent_of_entity("dafx-asks-cashier") is None
    assert agent_of_entity("dafx-cashier") == "cashier"
    with pytest.raises(ConfigurationError, match="those of the inbox"):
        agent_name("Asks-Cashier")
