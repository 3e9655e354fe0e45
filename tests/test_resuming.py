"""What a thread does with a turn that failed and is taken up again."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import attrs
import pytest

from dafx_actors._json.books import CancelMark, ChildRecord, Place, Resumed
from dafx_actors._json.document import load_transcript
from dafx_actors._json.operations import (
    ANY_TIME,
    Ask,
    Attempted,
    Begin,
    Cancelled,
    Ended,
    Granted,
    Queued,
    Refused,
    Wanted,
    dump_outcome,
    load_begin,
    load_outcome,
    place_of,
)
from dafx_actors._json.requests import load_response
from dafx_actors._rules import calls as _calls
from dafx_actors._rules import resuming as _resuming
from dafx_actors._rules import state as _state
from dafx_actors._rules import thread as _thread
from dafx_actors._rules.conversation import conversation
from dafx_actors._rules.open_calls import CUT_OFF
from dafx_actors._rules.state import ThreadState
from dafx_actors._rules.turn import with_calls_not_made
from dafx_actors.errors import (
    ConfigurationError,
    DafxError,
    InvalidAnswer,
    ModelError,
    ModelNotConfigured,
    ThreadBusy,
    TurnCancelled,
    TurnFailed,
)
from dafx_actors.exchange import RunRequest
from dafx_actors.ids import AgentThread, call_key
from dafx_actors.transcript import ChatMessage, FunctionCallContent, FunctionResultContent, UsageStats

THREAD = AgentThread("Payer", "t1")
NOW, LATER = datetime(2026, 1, 2, 12, tzinfo=UTC), datetime(2026, 1, 2, 13, tzinfo=UTC)
NO_QUOTA = ModelError("rate_limit", "no quota")
PAID = (
    ChatMessage("assistant", [FunctionCallContent("call-1", "pay", {"amount": 5})]),
    ChatMessage("tool", [FunctionResultContent("call-1", "paid")]),
)


def ask(turn: str) -> RunRequest:
    return RunRequest(correlation_id=turn, messages=(ChatMessage("user", f"{turn}?"),))


def failed(
    error: DafxError = NO_QUOTA, recorded: tuple[ChatMessage, ...] = PAID, unrecorded: tuple[ChatMessage, ...] = ()
) -> ThreadState:
    """A thread whose turn `c1` has paid, and failed."""
    state, _ = _thread.begin(ThreadState(), THREAD, ask("c1"), NOW)
    state, _ = _thread.record(state, THREAD, "c1", recorded, state.length)
    usage, about = UsageStats(10, 5, 15), {"steps": 3, "retries": [{"step": 2, "attempt": 1}]}
    return _thread.abort(state, THREAD, "c1", error, NOW, messages=unrecorded, usage=usage, about=about)[0]


def again(state: ThreadState, turn: str = "c1", retry: int = 1, **how: Any) -> tuple[ThreadState, Any]:
    state, outcome = _thread.begin(state, THREAD, ask(turn), LATER, retry=retry, **how)
    return _state.load(_state.dump(state)), outcome


def commit(state: ThreadState, turn: str = "c1", text: str = "Done.") -> ThreadState:
    answer = (ChatMessage("assistant", text),)
    usage, retry = UsageStats(20, 10, 30), state.books.retry
    state, outcome = _thread.commit(state, THREAD, turn, answer, usage, LATER, about={"steps": 4}, retry=retry)
    assert isinstance(outcome, Ended)
    return state


def kinds(state: ThreadState) -> list[tuple[str, str]]:
    return [(raw["$type"], raw["correlationId"]) for raw in state.history]


def shown(state: ThreadState, turn: str = "c1") -> list[str]:
    """What the model is shown, in short."""
    said = conversation(load_transcript(_state.dump(state)), turn)
    return [f"{each.role} {each.text or [type(content).__name__ for content in each.contents]}" for each in said]


def test_it_goes_on_from_what_was_recorded() -> None:
    state, outcome = again(failed())
    assert outcome == Granted(
        3,
        (),
        Resumed(
            retry=1,
            replies=1,
            steps=3,
            usage=UsageStats(10, 5, 15),
            attempts=({"step": 2, "attempt": 1},),
            failures=outcome.resumed.failures,
        ),
    )
    assert outcome.resumed.failures[0]["error"]["type"] == "ModelError"
    assert kinds(state) == [("request", "c1")]
    assert state.draft == PAID
    assert shown(state) == ["user c1?", "assistant ['FunctionCallContent']", "tool ['FunctionResultContent']"]


def test_the_answer_takes_the_place_of_the_error_and_says_so() -> None:
    state = commit(again(failed())[0])
    assert kinds(state) == [("request", "c1"), ("response", "c1")]
    response = state.history[-1]
    assert response["dafx"]["retry"] == 1
    (told,) = response["dafx"]["retried"]
    assert (told["error"]["type"], told["at"]) == ("ModelError", "2026-01-02T12:00:00+00:00")
    assert load_response(response, THREAD).text == "Done."
    assert state.books.resumed is None


def test_it_may_fail_again_and_be_taken_up_again() -> None:
    state, _ = again(failed())
    state, _ = _thread.abort(state, THREAD, "c1", TurnFailed("Payer", "c1", "OSError", "no disk"), LATER, retry=1)
    state, outcome = again(state, retry=2)
    assert isinstance(outcome, Granted)
    assert outcome.resumed is not None
    assert [each["error"]["type"] for each in outcome.resumed.failures] == ["ModelError", "TurnFailed"]
    response = commit(state).history[-1]
    assert (response["dafx"]["retry"], len(response["dafx"]["retried"])) == (2, 2)


def test_a_begin_that_comes_twice_changes_nothing_and_tells_the_same() -> None:
    once, first = again(failed())
    twice, second = again(once)
    assert (twice, second) == (once, first)
    late, third = again(once, retry=0)
    assert (late, third) == (once, first)


def test_what_has_ended_for_this_time_is_over() -> None:
    state, _ = again(failed())
    state, _ = _thread.abort(state, THREAD, "c1", NO_QUOTA, LATER, retry=1)
    same, outcome = again(state)
    assert isinstance(outcome, Ended)
    assert same.history == state.history
    answered = commit(again(failed())[0])
    assert isinstance(again(answered, retry=2)[1], Ended)


def test_what_a_person_cancelled_is_not_taken_up_again() -> None:
    state, outcome = again(failed(TurnCancelled("Payer", "c1")))
    assert isinstance(outcome, Ended)
    assert _resuming.refusal(state, "c1") == "cancelled"


def test_it_waits_in_line_and_takes_nobodys_place() -> None:
    state, _ = _thread.begin(failed(), THREAD, ask("c2"), NOW)
    for overlap in ("queue", "steer", "cancel_previous"):
        waits, outcome = again(state, overlap=overlap)
        assert outcome == Queued("c2")
        assert waits.waiting == (place_of(ask("c1"), 1),)
    refused, outcome = again(state, overlap="reject")
    assert isinstance(outcome, Refused)
    assert isinstance(outcome.error, ThreadBusy)
    assert refused.history == state.history
    # Asked without its request, it is told the same; and that it is wanted, when its time has come.
    assert _thread.ask(waits, THREAD, place_of(ask("c1"), 1))[1] == Queued("c2")
    waits = commit(waits, "c2")
    assert isinstance(_thread.ask(waits, THREAD, place_of(ask("c1"), 1))[1], Wanted)
    state, outcome = again(waits)
    assert isinstance(outcome, Granted)
    assert kinds(commit(state)) == [("request", "c1"), ("request", "c2"), ("response", "c2"), ("response", "c1")]


def test_the_turn_between_is_shown_in_its_place() -> None:
    state, _ = _thread.begin(failed(), THREAD, ask("c2"), NOW)
    state, _ = again(commit(state, "c2", "Two."))
    assert shown(state)[:3] == ["user c2?", "assistant Two.", "user c1?"]


def test_cancelled_in_line_it_ends_where_it_stood() -> None:
    state, _ = _thread.begin(failed(), THREAD, ask("c2"), NOW)
    state, _ = again(state)
    mark = CancelMark.of(by="Ann", reason="never mind")
    state, outcome = _thread.cancel(state, THREAD, "c1", mark, LATER, 1)
    assert isinstance(outcome, Ended)
    with pytest.raises(TurnCancelled, match="never mind"):
        load_response(outcome.response, THREAD)
    assert not state.waiting
    assert kinds(state) == [("request", "c1"), ("response", "c1"), ("request", "c2")]
    response = state.history[1]
    assert [len(message["contents"]) for message in response["messages"]] == [1, 1, 1]
    assert (response["dafx"]["retry"], response["dafx"]["retried"][0]["error"]["type"]) == (1, "ModelError")
    # The turn itself then comes to leave the line, and hears how it has ended.
    assert _thread.abort(state, THREAD, "c1", NO_QUOTA, LATER, request=ask("c1"))[1].response == response  # type: ignore[union-attr]


def test_cancelled_before_it_has_begun_it_does_not_begin() -> None:
    mark = CancelMark.of(by="Ann", reason="")
    state, outcome = _thread.cancel(failed(), THREAD, "c1", mark, LATER, 1)
    assert isinstance(outcome, Cancelled)
    state, outcome = again(state)
    assert isinstance(outcome, Ended)
    with pytest.raises(TurnCancelled):
        load_response(outcome.response, THREAD)
    assert not state.cancelled
    # Without its number it is the turn that has ended.
    assert isinstance(_thread.cancel(failed(), THREAD, "c1", mark, LATER)[1], Ended)


def test_a_step_left_over_from_before_does_not_act() -> None:
    state, _ = again(failed())
    assert _calls.may_act(state, "c1", 1)
    assert not _calls.may_act(state, "c1", 0)
    assert _calls.attempt(state, "c1", "old", 1, "token", LATER) == (state, Attempted("stop"))
    assert _calls.attempt(state, "c1", "new", 1, "token", LATER, 1)[1] == Attempted("go")


def test_a_message_left_over_from_before_changes_nothing() -> None:
    state, _ = again(failed())
    said = (ChatMessage("assistant", "late"),)
    for same, outcome in (
        _thread.abort(state, THREAD, "c1", NO_QUOTA, LATER),
        _thread.commit(state, THREAD, "c1", said, None, LATER, at=state.length),
        _thread.record(state, THREAD, "c1", said, state.length),
    ):
        assert same is state
        assert isinstance(outcome, Refused)
    # Who finds it dead does not know how often it was taken up again.
    assert isinstance(_thread.abort(state, THREAD, "c1", NO_QUOTA, LATER, retry=ANY_TIME)[1], Ended)


def test_its_calls_have_names_of_their_own() -> None:
    keys = {call_key(THREAD, "c1", step, 0, retry) for step in (1, 2) for retry in (0, 1, 2)}
    assert len(keys) == 6
    assert call_key(THREAD, "c1", 1, 0) == call_key(THREAD, "c1", 1, 0, 0)


def test_an_answer_of_no_use_is_not_gone_on_from() -> None:
    wrong = ChatMessage("assistant", "no JSON")
    advice = ChatMessage("user", "Your answer does not fit.")
    state = failed(InvalidAnswer("no JSON", "it is none"), (*PAID, wrong, advice), (wrong,))
    state, _ = again(state)
    assert [message.role for message in state.draft] == ["assistant", "tool", "assistant", "user"]


def test_calls_that_a_limit_prevented_are_known_not_to_be_made() -> None:
    more = ChatMessage("assistant", [FunctionCallContent("call-2", "pay", {"amount": 6})])
    state, _ = again(failed(unrecorded=with_calls_not_made((more,))))
    assert [message.role for message in state.draft] == ["assistant", "tool", "assistant", "tool"]
    assert "not made" in str(state.draft[-1].contents[0])


def test_a_turn_that_died_without_a_word_goes_on_too() -> None:
    state, _ = _thread.begin(ThreadState(), THREAD, ask("c1"), NOW)
    state, _ = _thread.record(state, THREAD, "c1", PAID[:1], state.length)
    state, outcome = again(state)
    assert isinstance(outcome, Granted)
    assert outcome.resumed == Resumed(retry=1, replies=1, steps=2)
    # Nobody knows whether its call acted; that is what the model is told.
    (result,) = state.draft[-1].contents
    assert isinstance(result, FunctionResultContent)
    assert result.result == CUT_OFF
    response = commit(state).history[-1]
    assert response["dafx"]["retry"] == 1


def test_who_joined_it_is_answered_by_it() -> None:
    state, _ = _thread.begin(ThreadState(), THREAD, ask("c1"), NOW)
    state, _ = _thread.begin(state, THREAD, ask("c2"), NOW, "steer")
    state, _ = _thread.record(state, THREAD, "c1", PAID, state.length)
    state, _ = _thread.abort(state, THREAD, "c1", NO_QUOTA, NOW)
    assert _resuming.refusal(state, "c2") == "joined"
    assert isinstance(again(state, "c2")[1], Ended)
    state, _ = again(state)
    state = commit(state)
    assert state.history[-1]["dafx"]["joined"] == ["c2"]
    assert _resuming.refusal(state, "c1") == "answered"


@pytest.mark.parametrize(
    ("error", "steps", "unpaid"),
    [
        (ConfigurationError("x"), 0, True),
        (ModelNotConfigured("x"), 0, True),
        (ModelError("authentication", "wrong key"), 0, True),
        (ModelError("not_found", "no such model"), 0, True),
        (ModelError("authentication", "wrong key"), 1, False),
        (ModelError("rate_limit", "no quota"), 0, False),
        (TurnFailed("Payer", "c1", "OSError", ""), 0, False),
        (None, 0, False),
    ],
)
def test_what_nobody_has_paid_for(error: DafxError | None, steps: int, unpaid: bool) -> None:
    assert _resuming.is_unpaid(error, steps) == unpaid


def test_how_it_travels() -> None:
    begin = load_begin(Begin(ask("c1"), 2).dump())
    assert (begin.turn, begin.retry) == ("c1", 2) if isinstance(begin, Begin) else False
    asked = load_begin(Ask(Place("c1", "d", 2)).dump())
    assert asked == Ask(Place("c1", "d", 2))
    assert Begin(ask("c1")).dump().get("retry") is None
    assert Place("c1", "d").dump() == {"correlationId": "c1", "digest": "d"}
    _, granted = again(failed())
    assert load_outcome(dump_outcome(granted), THREAD) == granted
    with pytest.raises(ValueError, match="retry"):
        load_begin({**Begin(ask("c1")).dump(), "retry": "often"})
    assert attrs.evolve(granted, resumed=None) == Granted(granted.length)


def test_the_agents_that_it_had_used_as_tools_stay_its_own() -> None:
    child = ChildRecord.of("k1", AgentThread("Inner", "t2"))
    state, _ = _thread.begin(ThreadState(), THREAD, ask("c1"), NOW)
    state, _ = _thread.record(state, THREAD, "c1", PAID, state.length, children=[child])
    state, _ = _thread.abort(state, THREAD, "c1", NO_QUOTA, NOW)
    state, _ = again(state)
    assert _state.children_in(commit(state), THREAD) == (child,)
    died, _ = _thread.begin(ThreadState(), THREAD, ask("c1"), NOW)
    died, _ = _thread.record(died, THREAD, "c1", PAID, died.length, children=[child])
    died, _ = again(died)
    assert _state.children_in(commit(died), THREAD) == (child,)
