"""What a thread does with requests that overlap, and with whoever cancels them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from dafx_actors._json.books import CancelMark
from dafx_actors._json.operations import Cancelled, Ended, Granted, Outcome, Queued, Refused
from dafx_actors._json.requests import load_cancellation, load_response
from dafx_actors._rules import calls as _calls
from dafx_actors._rules import operations as _operations
from dafx_actors._rules import state as _state
from dafx_actors._rules import thread as _thread
from dafx_actors._rules.state import ThreadState
from dafx_actors.agents import AgentDefinition
from dafx_actors.errors import (
    CorrelationConflict,
    ModelError,
    ThreadBusy,
    TurnCancelled,
    TurnDeadlineExceeded,
    TurnSuperseded,
    TurnTerminated,
)
from dafx_actors.exchange import Overlap, RunRequest
from dafx_actors.ids import AgentThread
from dafx_actors.transcript import ChatMessage, FunctionCallContent, FunctionResultContent

THREAD = AgentThread("Joker", "t1")
NOW = datetime(2025, 1, 2, 12, tzinfo=UTC)
MARK = CancelMark({"by": "Ann", "reason": "enough"})
CALL = ChatMessage("assistant", (FunctionCallContent("x", "look"),))
RESULT = ChatMessage("tool", (FunctionResultContent("x", "seen"),))


def ask(turn: str, text: str | None = None, **fields: Any) -> RunRequest:
    return RunRequest(correlation_id=turn, messages=(ChatMessage("user", text or f"{turn}?"),), **fields)


def say(text: str) -> tuple[ChatMessage, ...]:
    return (ChatMessage("assistant", text),)


def begin(state: ThreadState, turn: str, overlap: Overlap = "queue", **fields: Any) -> tuple[ThreadState, Outcome]:
    return _thread.begin(state, THREAD, ask(turn, **fields), NOW, overlap)


def begun(*turns: str, overlap: Overlap = "queue") -> ThreadState:
    """A thread where these turns have begun: the first is active."""
    state = ThreadState()
    for turn in turns:
        state, _ = begin(state, turn, overlap)
    return state


def cancel(state: ThreadState, turn: str) -> tuple[ThreadState, Outcome]:
    return _thread.cancel(state, THREAD, turn, MARK, NOW)


def commit(state: ThreadState, turn: str, **fields: Any) -> tuple[ThreadState, Outcome]:
    return _thread.commit(state, THREAD, turn, say(f"{turn}!"), None, NOW, **fields)


def cancelled_by(outcome: Outcome) -> tuple[str, str] | None:
    assert isinstance(outcome, Ended)
    error = load_cancellation(outcome.response)
    return None if error is None else (error.by, error.reason)


def next_of(outcome: Outcome) -> str | None:
    """The turn that may have the thread after one that ended."""
    assert isinstance(outcome, Ended)
    return outcome.next_id


def texts(state: ThreadState) -> list[str]:
    return [message.text for message in state.draft]


def line(state: ThreadState) -> list[str]:
    return [request.correlation_id for request in state.waiting]


# --- reject and cancel_previous -----------------------------------------------------------------------------------


def test_a_request_that_may_not_overlap_is_refused() -> None:
    state = begun("c1")
    same, outcome = begin(state, "c2", "reject")
    assert same is state
    assert isinstance(outcome, Refused)
    assert isinstance(outcome.error, ThreadBusy)
    assert outcome.error.active == "c1"


def test_a_request_finds_those_that_waited_when_the_thread_was_reset() -> None:
    state = _thread.reset(begun("c1", "c2"))[0]
    same, outcome = begin(state, "c3", "reject")
    assert same is state
    assert isinstance(outcome, Refused)


def test_a_newer_request_takes_the_place_of_all_before_it() -> None:
    state, outcome = begin(begun("c1", "c2", "c3"), "c4", "cancel_previous")
    assert outcome == Queued("c1", ("c1", "c2", "c3"))
    assert (state.active, line(state), list(state.cancelled)) == ("c1", ["c4"], ["c1"])
    for turn in ("c2", "c3"):
        assert cancelled_by(begin(state, turn)[1]) == ("c4", "a newer request took its place")
    state, ended = commit(state, "c1")
    assert cancelled_by(ended) == ("c4", "a newer request took its place")
    assert next_of(ended) == "c4"


def test_it_takes_the_place_of_those_that_were_to_join_too() -> None:
    state, outcome = begin(begun("c1", "c2", overlap="steer"), "c3", "cancel_previous")
    assert outcome == Queued("c1", ("c1", "c2"))
    assert (state.steered, line(state)) == ((), ["c3"])


def test_who_waits_for_a_cancelled_turn_hears_of_it_each_time() -> None:
    """Else a turn whose cancellation got lost on the way could wait for a person for ever."""
    state, _ = begin(begun("c1"), "c2", "cancel_previous")
    assert begin(state, "c2", "cancel_previous") == (state, Queued("c1", ("c1",)))


def test_asked_again_it_names_all_that_it_cancelled() -> None:
    """Whoever heard the first answer may have died before it told them; or nobody heard it, as it was a signal."""
    state, outcome = begin(begun("c1", "c2", "c3"), "c4", "cancel_previous")
    assert isinstance(outcome, Queued)
    again, repeated = begin(state, "c4", "cancel_previous")
    assert again == state
    assert isinstance(repeated, Queued)
    assert set(repeated.cancelled) == set(outcome.cancelled) == {"c1", "c2", "c3"}


def test_it_names_them_also_where_it_is_active_by_then() -> None:
    state, _ = begin(begun("c1", "c2"), "c3", "cancel_previous")
    state, _ = commit(state, "c1")
    state, outcome = begin(state, "c3", "cancel_previous")
    assert outcome == Granted(state.length, ("c2", "c1"))


def test_it_does_not_name_those_that_ended_otherwise() -> None:
    state = begun("c1", "c2", "c3")
    state, _ = cancel(state, "c2")  # by somebody else
    state, _ = begin(state, "c4", "cancel_previous")
    _, repeated = begin(state, "c4", "cancel_previous")
    assert isinstance(repeated, Queued)
    assert set(repeated.cancelled) == {"c1", "c3"}


def test_whether_a_begin_was_granted_shows_in_the_thread() -> None:
    """None while it may still be on its way; a thread that works on another turn has not granted it, whatever comes."""
    assert _thread.is_granted(ThreadState(), "c1") is None
    state = begun("c1", "c2")
    assert [_thread.is_granted(state, turn) for turn in ("c1", "c2", "c3")] == [True, False, False]
    ended, _ = commit(begun("c1"), "c1")
    assert [_thread.is_granted(ended, turn) for turn in ("c1", "c2")] == [False, None]
    assert begin(cancel(begun("c1"), "c1")[0], "c2")[1] == Queued("c1", ("c1",))


# --- steer --------------------------------------------------------------------------------------------------------


def test_a_steered_request_joins_before_the_next_model_call() -> None:
    state, outcome = begin(begun("c1"), "c2", "steer")
    assert outcome == Queued("c1")
    state, outcome = _thread.record(state, THREAD, "c1", (CALL,), 1)
    assert (outcome, texts(state)) == (Granted(2), [""])
    state, outcome = _thread.record(state, THREAD, "c1", (RESULT,), 2)
    assert (outcome, texts(state)) == (Granted(4), ["", "", "c2?"])
    assert begin(state, "c2", "steer") == (state, Queued("c1"))
    state, outcome = commit(state, "c1")
    assert isinstance(outcome, Ended)
    assert outcome.joined == ("c2",)
    assert begin(state, "c2")[1] == Ended(outcome.response)


def test_a_turn_that_others_join_with_its_answer_goes_on() -> None:
    state = begun("c1", "c2", overlap="steer")
    state, outcome = commit(state, "c1", at=1)
    assert (outcome, texts(state), state.active) == (Granted(3), ["c1!", "c2?"], "c1")
    assert commit(state, "c1", at=1) == (state, Granted(3)), "the same commit again does not end it"
    state, outcome = commit(state, "c1", at=3)
    assert isinstance(outcome, Ended)
    assert [message["role"] for message in outcome.response["messages"]] == ["assistant", "user", "assistant"]


@pytest.mark.parametrize("ending", [{"last": True}, {"whole": True}])
def test_nobody_joins_a_turn_that_cannot_go_on(ending: dict[str, bool]) -> None:
    state, outcome = commit(begun("c1", "c2", overlap="steer"), "c1", **ending)
    assert isinstance(outcome, Ended)
    assert (outcome.next_id, outcome.joined, state.active) == ("c2", (), None)
    assert begin(state, "c2")[1] == Granted(3)


def test_nobody_joins_a_cancelled_turn() -> None:
    state, _ = cancel(begun("c1", "c2", overlap="steer"), "c1")
    state, outcome = _thread.record(state, THREAD, "c1", say("Hm."), 1)
    assert (outcome, texts(state)) == (Granted(2), ["Hm."])
    state, outcome = commit(state, "c1")
    assert cancelled_by(outcome) == ("Ann", "enough")
    assert next_of(outcome) == "c2"


def test_those_that_did_not_join_go_before_those_that_wait() -> None:
    state, _ = begin(begun("c1", "c2"), "c3", "steer")
    state, outcome = _thread.abort(state, THREAD, "c1", ModelError("error", "x"), NOW)
    assert (next_of(outcome), line(state)) == ("c3", ["c3", "c2"])


def test_a_request_for_another_form_of_answer_queues() -> None:
    state, _ = begin(begun("c1"), "c2", "steer", response_schema={"type": "object"})
    assert (state.steered, line(state)) == ((), ["c2"])


def joined() -> ThreadState:
    """A turn c1 that c2 has joined."""
    state = begun("c1", "c2", overlap="steer")
    return _thread.record(state, THREAD, "c1", say("Hm."), 1)[0]


def test_a_joined_request_fails_with_its_turn() -> None:
    state, outcome = _thread.abort(joined(), THREAD, "c1", ModelError("error", "x"), NOW)
    assert isinstance(outcome, Ended)
    assert outcome.joined == ("c2",)
    with pytest.raises(ModelError):
        load_response(begin(state, "c2")[1].response, THREAD)  # type: ignore[union-attr]


def test_to_cancel_a_joined_request_is_to_cancel_its_turn() -> None:
    state, outcome = cancel(joined(), "c2")
    assert outcome == Cancelled("c1", MARK)
    assert not _calls.may_act(state, "c1")


def test_a_joined_request_cannot_leave() -> None:
    state = joined()
    same, outcome = _thread.abort(state, THREAD, "c2", TurnDeadlineExceeded("Joker", "c2", 5.0), NOW)
    assert same is state
    assert isinstance(outcome, Refused)
    assert isinstance(outcome.error, TurnSuperseded)


def test_a_joined_request_begins_anew_when_the_thread_was_reset() -> None:
    assert begin(_thread.reset(joined())[0], "c2")[1] == Granted(1)


def found_completed(state: ThreadState, *joined: str) -> tuple[ThreadState, Outcome]:
    """Somebody finds c1 active and its orchestration completed, with an answer from before the thread was reset."""
    labelled = tuple(ChatMessage("user", f"{turn}?", extra={"correlationId": turn}) for turn in joined)
    about = {"joined": list(joined), "structured": {"mode": "native"}}
    return _thread.commit(state, THREAD, "c1", (*labelled, *say("c1!")), None, NOW, whole=True, about=about)


def test_an_answer_from_before_a_reset_does_not_end_those_that_had_joined_it() -> None:
    state, _ = cancel(begun("c1"), "c2")
    state, outcome = found_completed(state, "c2")
    assert isinstance(outcome, Ended)
    assert outcome.joined == ()
    assert outcome.response["dafx"] == {"structured": {"mode": "native"}}
    assert [message.get("correlationId") for message in outcome.response["messages"]] == [None, None]
    assert cancelled_by(begin(state, "c2")[1]) == ("Ann", "enough")


def test_an_answer_from_before_a_reset_lets_those_that_joined_since_go_on() -> None:
    state, outcome = found_completed(joined())
    assert isinstance(outcome, Ended)
    assert (outcome.joined, outcome.next_id) == ((), "c2")
    assert begin(state, "c2")[1] == Granted(state.length + 1)


@pytest.mark.parametrize("ended", [False, True])
def test_a_joined_requests_id_names_it_for_ever(ended: bool) -> None:
    state = commit(joined(), "c1")[0] if ended else joined()
    outcome = _thread.begin(state, THREAD, ask("c2", "another"), NOW)[1]
    assert isinstance(outcome, Refused)
    assert isinstance(outcome.error, CorrelationConflict)


# --- cancel -------------------------------------------------------------------------------------------------------


def test_the_active_turn_is_marked_and_ends_itself() -> None:
    state, outcome = cancel(begun("c1"), "c1")
    assert outcome == Cancelled("c1", MARK)
    assert (state.active, _calls.may_act(state, "c1")) == ("c1", False)
    assert begin(state, "c1")[1] == Granted(1)


def test_the_first_cancellation_counts() -> None:
    state, _ = cancel(begun("c1"), "c1")
    again = _thread.cancel(state, THREAD, "c1", CancelMark({"by": "Bob"}), NOW)
    assert again == (state, Cancelled("c1", MARK))


@pytest.mark.parametrize("overlap", ["queue", "steer"])
def test_a_turn_that_waits_ends_at_once(overlap: Overlap) -> None:
    state, outcome = cancel(begun("c1", "c2", overlap=overlap), "c2")
    assert cancelled_by(outcome) == ("Ann", "enough")
    assert (line(state), state.steered, dict(state.cancelled)) == ([], (), {})


def test_a_turn_that_has_ended_stays_as_it_is() -> None:
    state, answered = commit(begun("c1"), "c1")
    same, outcome = cancel(state, "c1")
    assert same is state
    assert isinstance(answered, Ended)
    assert outcome == Ended(answered.response)


def test_a_turn_that_is_on_its_way_ends_when_it_begins() -> None:
    state, outcome = cancel(ThreadState(), "c1")
    assert outcome == Cancelled("c1", MARK)
    state, outcome = begin(state, "c1")
    assert cancelled_by(outcome) == ("Ann", "enough")
    assert "dafx" not in _state.dump(state)["data"]


def test_marks_for_turns_that_never_begin_are_bounded() -> None:
    state, _ = cancel(begun("c0"), "c0")
    for n in range(150):
        state, _ = cancel(state, f"ghost{n}")
    assert list(state.cancelled)[:2] == ["c0", "ghost50"]
    assert len(state.cancelled) == 101


@pytest.mark.parametrize(
    "error", [ModelError("error", "x"), TurnTerminated("Joker", "c1"), TurnCancelled("Joker", "c1")]
)
def test_however_a_cancelled_turn_ends_it_was_cancelled(error: Any) -> None:
    state, _ = cancel(begun("c1"), "c1")
    assert cancelled_by(_thread.abort(state, THREAD, "c1", error, NOW)[1]) == ("Ann", "enough")


@pytest.mark.parametrize("whole", [False, True])
def test_a_commit_after_a_cancellation_keeps_what_was_said_once(whole: bool) -> None:
    state, _ = _thread.record(begun("c1"), THREAD, "c1", say("Hm."), 1)
    state, _ = cancel(state, "c1")
    messages = say("Hm.") + say("Ha.") if whole else say("Ha.")
    state, outcome = _thread.commit(state, THREAD, "c1", messages, None, NOW, whole=whole)
    assert cancelled_by(outcome) == ("Ann", "enough")
    assert isinstance(outcome, Ended)
    said = [content.get("text") for message in outcome.response["messages"] for content in message["contents"]]
    assert said == ["Hm.", "Ha.", None]


def test_a_mark_outlives_a_reset() -> None:
    state = _thread.reset(cancel(begun("c1"), "c1")[0])[0]
    assert cancelled_by(begin(state, "c1")[1]) == ("Ann", "enough")


# --- reset and repeats --------------------------------------------------------------------------------------------


def test_those_that_were_to_join_wait_when_the_thread_is_reset() -> None:
    state, _ = begin(begun("c1", "c2"), "c3", "steer")
    assert line(_thread.reset(state)[0]) == ["c3", "c2"]


@pytest.mark.parametrize("operation", ["record", "commit"])
def test_a_turn_that_knows_more_than_the_thread_was_reset(operation: str) -> None:
    state = begun("c1")
    told = {"correlationId": "c1", "length": 3, "messages": [], "usage": None}
    message = _operations.Incoming(thread=THREAD, raw=told, now=NOW, definition=AgentDefinition(name="Joker"))
    same, outcome = _operations.OPERATIONS[operation](state, message)
    assert same is state
    assert isinstance(outcome, Refused)
    assert isinstance(outcome.error, TurnSuperseded)
