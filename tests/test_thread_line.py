"""The line of requests that wait for their thread: ids and digests; the text comes with the turn whose turn it is."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from dafx_actors._json import books as _books
from dafx_actors._json.crossing import dump_error
from dafx_actors._json.document import load_transcript
from dafx_actors._json.messages import dump_message
from dafx_actors._json.operations import Ask, Ended, Granted, Outcome, Queued, Refused, Wanted, place_of
from dafx_actors._json.requests import dump_request, load_request
from dafx_actors._rules import joining as _joining
from dafx_actors._rules import operations as _operations
from dafx_actors._rules import state as _state
from dafx_actors._rules import thread as _thread
from dafx_actors._rules.state import ThreadState
from dafx_actors.agents import AgentDefinition
from dafx_actors.errors import CorrelationConflict, ModelError, ThreadBusy, TurnCancelled, TurnTerminated
from dafx_actors.exchange import Overlap, RunRequest
from dafx_actors.ids import AgentThread
from dafx_actors.transcript import ChatMessage, Request

THREAD = AgentThread("Joker", "t1")
NOW = datetime(2025, 1, 2, 12, tzinfo=UTC)
LONG = "x" * 60_000
MARK = {"by": "Ann", "reason": "enough"}


def request(turn: str, text: str | None = None) -> RunRequest:
    return RunRequest(correlation_id=turn, messages=(ChatMessage("user", text or f"{turn}? {LONG}"),))


def stored(state: ThreadState) -> Any:
    return json.loads(json.dumps(_state.dump(state)))


def size(state: ThreadState) -> int:
    return len(json.dumps(_state.dump(state)))


def begin(state: ThreadState, turn: str, overlap: Overlap = "queue") -> tuple[ThreadState, Outcome]:
    """As it is told, and with the thread stored and read after it."""
    return told(state, "begin", dump_request(request(turn)), overlap)


def question(asked: RunRequest) -> dict[str, Any]:
    return Ask(place_of(asked)).dump()


def asks(state: ThreadState, turn: str, overlap: Overlap = "queue") -> tuple[ThreadState, Outcome]:
    return told(state, "begin", question(request(turn)), overlap)


def told(state: ThreadState, operation: str, raw: Any, overlap: Overlap = "queue") -> tuple[ThreadState, Outcome]:
    definition = AgentDefinition(name="Joker", overlap=overlap)
    message = _operations.Incoming(thread=THREAD, raw=json.loads(json.dumps(raw)), now=NOW, definition=definition)
    state, outcome = _operations.OPERATIONS[operation](state, message)
    return _state.load(stored(state)), outcome


def begun(*turns: str, overlap: Overlap = "queue") -> ThreadState:
    state = ThreadState()
    for turn in turns:
        state, _ = begin(state, turn, overlap)
    return state


def commit(state: ThreadState, turn: str) -> tuple[ThreadState, Outcome]:
    message = dump_message(ChatMessage("assistant", f"{turn}!"))
    return told(state, "commit", {"correlationId": turn, "messages": [message]})


def line(state: ThreadState) -> list[str]:
    return [place.correlation_id for place in state.waiting]


def story(state: ThreadState) -> list[str]:
    return [raw["correlationId"] + ("?" if raw["$type"] == "request" else "!") for raw in state.history]


def asked_in(state: ThreadState, turn: str) -> tuple[ChatMessage, ...]:
    entries = load_transcript(stored(state)).entries
    return next(e.messages for e in entries if isinstance(e, Request) and e.correlation_id == turn)


def test_what_waits_takes_no_more_than_an_id_and_a_digest() -> None:
    one, twenty = begun("c0"), begun(*(f"c{n}" for n in range(20)))
    assert line(twenty) == [f"c{n}" for n in range(1, 20)]
    assert size(twenty) - size(one) < 19 * 120
    assert "xxx" not in json.dumps(stored(twenty)["data"]["dafx"])


def test_twenty_requests_are_answered_one_after_the_other() -> None:
    turns = [f"c{n}" for n in range(20)]
    state = begun(*turns)
    for turn, following in zip(turns, [*turns[1:], None], strict=True):
        state, outcome = begin(state, turn)
        assert outcome == Granted(state.length)
        assert asked_in(state, turn) == request(turn).messages
        state, outcome = commit(state, turn)
        assert isinstance(outcome, Ended)
        assert outcome.next_id == following
    assert "dafx" not in stored(state)["data"]


def test_a_turn_asks_how_it_stands_without_its_text() -> None:
    assert len(json.dumps(question(request("c1")))) < 150
    state = begun("c1", "c2", "c3")
    assert asks(state, "c1") == (state, Granted(1))
    assert asks(state, "c2") == (state, Queued("c1"))
    assert asks(state, "c9") == (state, Wanted()), "the thread does not know it"
    state, _ = commit(state, "c1")
    assert asks(state, "c2") == (state, Wanted()), "it is its turn"
    assert asks(state, "c3") == (state, Queued("c2"))
    _, outcome = asks(state, "c1")
    assert isinstance(outcome, Ended)


def test_another_request_of_the_same_id_is_refused_by_its_digest() -> None:
    state = begun("c1", "c2")
    for ask in (question, dump_request):
        same, outcome = told(state, "begin", ask(request("c2", "another")))
        assert same == state
        assert isinstance(outcome, Refused)
        assert isinstance(outcome.error, CorrelationConflict)


def test_nobody_overtakes_the_first_in_line() -> None:
    state, _ = commit(begun("c1", "c2"), "c1")
    state, outcome = begin(state, "c3")
    assert (outcome, line(state), state.active) == (Queued("c2"), ["c2", "c3"], None)
    assert [_thread.is_granted(state, turn) for turn in ("c2", "c3", "c9")] == [False, False, None]


@pytest.mark.parametrize("overlap", ["queue", "steer"])
def test_the_line_has_an_end(overlap: Overlap) -> None:
    state = begun("c")
    places = tuple(_books.Place(f"c{n}", "d") for n in range(_thread.MOST_WAITING))
    full = _state.ThreadState(history=state.history, active="c", waiting=places)
    same, outcome = begin(full, "one more", overlap)
    assert line(same) == line(full)
    assert isinstance(outcome, Refused)
    assert isinstance(outcome.error, ThreadBusy)
    assert (outcome.error.active, outcome.error.waiting) == ("c", _thread.MOST_WAITING)
    assert "as many as may" in str(outcome.error)
    assert size(full) - size(state) < 100_000


def test_a_newer_request_takes_the_place_of_a_full_line() -> None:
    state = begun("c1", "c2", "c3")
    state, outcome = begin(state, "c4", "cancel_previous")
    assert outcome == Queued("c1", ("c1", "c2", "c3"))
    idle, _ = commit(begun("c1", "c2", "c3"), "c1")
    state, outcome = begin(idle, "c4", "cancel_previous")
    assert outcome == Granted(state.length, ("c2", "c3"))
    assert (state.active, line(state)) == ("c4", [])


# --- Who leaves it ------------------------------------------------------------------------------------------------


def cancelled(state: ThreadState, turn: str) -> tuple[ThreadState, Outcome]:
    return told(state, "cancel", {"correlationId": turn, "mark": MARK})


def leaves(state: ThreadState, turn: str, **more: Any) -> tuple[ThreadState, Outcome]:
    error = dump_error(TurnCancelled("Joker", turn, "enough", "Ann"))
    return told(state, "abort", {"correlationId": turn, "error": error, **more})


def test_a_cancelled_turn_brings_its_request_for_the_transcript_when_it_hears_of_it() -> None:
    state, outcome = cancelled(begun("c1", "c2"), "c2")
    assert isinstance(outcome, Ended)
    assert (line(state), asked_in(state, "c2")) == ([], ())
    length = state.length
    state, again = leaves(state, "c2", request=dump_request(request("c2")))
    assert again == Ended(outcome.response)
    assert asked_in(state, "c2") == request("c2").messages
    assert (state.length, story(state)) == (length, ["c1?", "c2?", "c2!"])
    assert "dafx" not in state.history[1]


def test_it_brings_it_also_where_it_only_finds_that_it_has_ended() -> None:
    state, _ = cancelled(begun("c1", "c2"), "c2")
    assert asks(state, "c2") == (state, Wanted())
    state, outcome = begin(state, "c2")
    assert isinstance(outcome, Ended)
    assert asked_in(state, "c2") == request("c2").messages
    assert asks(state, "c2") == (state, outcome)


def test_what_is_brought_late_does_not_change_what_the_active_turn_knows() -> None:
    state, _ = cancelled(begun("c1", "c2", "c3"), "c2")
    state, _ = commit(state, "c1")
    state, granted = begin(state, "c3")
    assert isinstance(granted, Granted)
    state, _ = leaves(state, "c2", request=dump_request(request("c2")))
    state, outcome = _thread.record(state, THREAD, "c3", (ChatMessage("assistant", "Hm."),), granted.length)
    assert outcome == Granted(granted.length + 1)
    assert [message.text for message in state.draft] == ["Hm."]


def test_another_request_is_not_taken_for_it() -> None:
    state, _ = cancelled(begun("c1", "c2"), "c2")
    other = dump_request(request("c2", "another"))
    assert leaves(state, "c2", request=other)[0] == state
    state, _ = leaves(begun("c1", "c2"), "c2", request=other)
    assert asked_in(state, "c2") == ()


def test_a_turn_that_leaves_by_itself_brings_its_request() -> None:
    state, _ = leaves(begun("c1", "c2"), "c2", request=dump_request(request("c2")))
    assert asked_in(state, "c2") == request("c2").messages


def test_when_the_first_in_line_leaves_an_idle_thread_the_next_one_is_told() -> None:
    idle, _ = commit(begun("c1", "c2", "c3", "c4"), "c1")
    for leave in (cancelled, leaves):
        _, outcome = leave(idle, "c2")
        assert isinstance(outcome, Ended)
        assert outcome.next_id == "c3"
        _, outcome = leave(idle, "c3")
        assert isinstance(outcome, Ended)
        assert outcome.next_id is None


def test_a_dead_turn_that_is_first_in_line_is_ended_by_the_next() -> None:
    idle, _ = commit(begun("c1", "c2", "c3"), "c1")
    state, outcome = _thread.abort(idle, THREAD, "c2", TurnTerminated("Joker", "c2"), NOW)
    assert isinstance(outcome, Ended)
    assert outcome.next_id == "c3"
    whole = _thread.commit(idle, THREAD, "c2", (ChatMessage("assistant", "."),), None, NOW, whole=True)
    assert isinstance(whole[1], Ended)
    assert begin(state, "c3")[1] == begin(whole[0], "c3")[1] == Granted(5)


# --- Steered ------------------------------------------------------------------------------------------------------


def test_what_is_to_join_a_turn_has_a_bound_and_the_rest_waits_for_a_turn_of_its_own() -> None:
    turns = [f"c{n}" for n in range(20)]
    state = begun(*turns, overlap="steer")
    steered = [each.correlation_id for each in state.steered]
    assert steered == ["c1", "c2"]
    assert line(state) == turns[3:]
    assert size(state) < size(begun("c0")) + _joining.MOST_STEERED + 17 * 120
    state, _ = _thread.record(state, THREAD, "c0", (ChatMessage("assistant", "Hm."),), 1)
    assert state.books.joined == tuple(steered)
    state, _ = begin(state, "late", "steer")
    assert (state.steered, line(state)[-1]) == ((), "late"), "what has joined counts until the turn ends"


# --- Between versions ---------------------------------------------------------------------------------------------


def test_a_line_of_whole_requests_is_read_and_goes_on() -> None:
    document = stored(begun("c1"))
    old = {key: value for key, value in dump_request(request("c2")).items() if key != "messages"}
    old["messages"] = [dump_message(message) for message in request("c2").messages]
    document["data"]["dafx"]["waiting"] = [old]
    state = _state.load(document)
    assert (line(state), asks(state, "c2")[1]) == (["c2"], Queued("c1"))
    state, _ = commit(state, "c1")
    assert begin(state, "c2")[1] == Granted(3)
    assert "waiting" not in stored(state)["data"]["dafx"]


def test_who_does_not_see_the_line_may_let_somebody_of_it_have_the_thread() -> None:
    """A worker of an earlier version keeps the field, and grants the thread to whoever asks it first."""
    document = stored(begun("c1", "c2", "c3"))
    ours = document["data"]["dafx"]
    document["data"]["dafx"] = {**ours, "active": "c3"}
    assert line(_state.load(document)) == ["c2"]
    document["data"]["dafx"] = {**ours, "steered": [dump_request(request("c3"))], "joined": ["c2"]}
    assert line(_state.load(document)) == []
    ended, _ = _thread.abort(begun("c2"), THREAD, "c2", ModelError("error", "x"), NOW)
    document["data"]["conversationHistory"] = stored(ended)["data"]["conversationHistory"]
    document["data"]["dafx"] = {"line": ours["line"]}
    state = _state.load(document)
    assert asks(state, "c3") == (state, Wanted())
    state, outcome = begin(state, "c3")
    assert (outcome, line(state)) == (Granted(3), [])


def test_an_earlier_version_refuses_a_question_as_a_request_without_a_message() -> None:
    """So nothing is recorded for it, and the turn asks with the whole request."""
    with pytest.raises(ValueError, match="needs a message"):
        load_request(question(request("c1")))
