"""What a thread keeps of tool calls: who decided about them, who attempts them, and that each has its result."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from dafx_actors._json.books import CancelMark, DecisionRecord, QuestionRecord
from dafx_actors._json.operations import Attempted, Decided, Ended, Granted, Noted, Outcome, Refused
from dafx_actors._rules import calls as _calls
from dafx_actors._rules import state as _state
from dafx_actors._rules import thread as _thread
from dafx_actors._rules.open_calls import closed, open_calls
from dafx_actors._rules.state import ThreadState
from dafx_actors.decisions import call_digest
from dafx_actors.errors import DecisionRefused, TurnTerminated
from dafx_actors.exchange import RunRequest
from dafx_actors.ids import AgentThread
from dafx_actors.transcript import ChatMessage, FunctionCallContent, FunctionResultContent

THREAD = AgentThread("Joker", "t1")
NOW = datetime(2025, 1, 2, 12, tzinfo=UTC)
LATER = datetime(2025, 1, 2, 13, tzinfo=UTC)
KEY = "c1.1.0"
PAY = {"to": "Bob", "amount": 5}
DIGEST = call_digest("pay", PAY)


def calls(*ids: str) -> ChatMessage:
    return ChatMessage("assistant", tuple(FunctionCallContent(call_id, "pay", PAY) for call_id in ids))


def results(*ids: str) -> ChatMessage:
    return ChatMessage("tool", tuple(FunctionResultContent(call_id, "paid") for call_id in ids))


def question(kind: str = "approval", **more: Any) -> QuestionRecord:
    told = {"key": KEY, "kind": kind, "callId": "x", "tool": "pay", "arguments": PAY, "digest": DIGEST}
    return QuestionRecord({**told, "askedAt": "2025-01-02T12:00:00+00:00", **more})


def asked(kind: str = "approval") -> ThreadState:
    """A turn c1 whose call waits for a person."""
    request = RunRequest(correlation_id="c1", messages=(ChatMessage("user", "Pay."),))
    state, _ = _thread.begin(ThreadState(), THREAD, request, NOW)
    return _thread.record(state, THREAD, "c1", (calls("x"),), 1, questions=[question(kind)])[0]


def decide(state: ThreadState, action: str, digest: str = DIGEST, **more: Any) -> tuple[ThreadState, Outcome]:
    return _calls.decide(state, "c1", KEY, digest, DecisionRecord({"action": action, **more}))


def why(outcome: Outcome) -> str:
    assert isinstance(outcome, Refused)
    assert isinstance(outcome.error, DecisionRefused)
    return outcome.error.why


# --- decide -------------------------------------------------------------------------------------------------------


def test_nothing_is_approved_until_somebody_approves() -> None:
    state = asked()
    assert not _calls.is_approved(state, KEY, DIGEST)
    state, outcome = decide(state, "approve", by="Ann")
    assert outcome == Decided(DecisionRecord({"action": "approve", "by": "Ann", "digest": DIGEST}))
    assert _calls.is_approved(state, KEY, DIGEST)
    assert not _calls.is_approved(state, KEY, call_digest("pay", {**PAY, "amount": 6}))
    assert not _calls.is_approved(state, "c1.1.1", DIGEST)


@pytest.mark.parametrize("action", ["deny", "expire"])
def test_what_was_denied_or_too_late_is_not_approved(action: str) -> None:
    state, outcome = decide(asked(), action)
    assert isinstance(outcome, Decided)
    assert not _calls.is_approved(state, KEY, DIGEST)


def test_edited_arguments_are_approved_and_no_others() -> None:
    edited = {**PAY, "amount": 1}
    state, _ = decide(asked(), "approve", arguments=edited)
    assert _calls.is_approved(state, KEY, call_digest("pay", edited))
    assert not _calls.is_approved(state, KEY, DIGEST)


def test_a_decision_again_is_fine_and_another_is_too_late() -> None:
    state, first = decide(asked(), "approve", by="Ann")
    assert decide(state, "approve", by="Bob") == (state, first)
    assert why(decide(state, "deny")[1]) == "decided"
    assert why(decide(state, "approve", arguments={"amount": 1})[1]) == "decided"


@pytest.mark.parametrize("action", ["approve", "deny"])
def test_a_deadline_that_is_late_hears_what_was_decided(action: str) -> None:
    state, first = decide(asked(), action)
    assert decide(state, "expire") == (state, first)


def test_who_comes_after_the_deadline_is_too_late() -> None:
    state, first = decide(asked(), "expire", by="the deadline")
    assert decide(state, "expire", by="the deadline") == (state, first)
    refused = decide(state, "approve")[1]
    assert why(refused) == "decided"
    assert "expire by the deadline" in str(refused.error)  # type: ignore[union-attr]


def test_a_decision_is_for_this_very_call() -> None:
    assert why(decide(asked(), "approve", digest=call_digest("pay", {**PAY, "amount": 500}))[1]) == "changed"


def test_without_turn_and_digest_it_is_for_the_call_that_stands_there() -> None:
    edited = {**PAY, "amount": 1}
    for arguments, digest in ((None, DIGEST), (edited, call_digest("pay", edited))):
        more = {} if arguments is None else {"arguments": arguments}
        record = DecisionRecord({"action": "approve", **more})
        state, outcome = _calls.decide(asked(), "", KEY, "", record)
        assert isinstance(outcome, Decided)
        assert _calls.is_approved(state, KEY, digest)
    for idle in (ThreadState(), _thread.cancel(asked(), THREAD, "c1", CancelMark({}), NOW)[0]):
        assert why(_calls.decide(idle, "", KEY, "", DecisionRecord({"action": "approve"}))[1]) == "not_pending"


def test_who_saw_another_call_is_shown_the_one_that_stands_there() -> None:
    refused = decide(asked(), "approve", digest="another")[1]
    assert isinstance(refused, Refused)
    assert isinstance(error := refused.error, DecisionRefused)
    assert (error.tool, error.arguments, error.digest) == ("pay", PAY, DIGEST)


@pytest.mark.parametrize(
    ("kind", "action", "fits"),
    [
        ("approval", "approve", True),
        ("approval", "retry", False),
        ("approval", "result", False),
        ("approval", "fail", False),
        ("outcome", "retry", True),
        ("outcome", "result", True),
        ("outcome", "fail", True),
        ("outcome", "approve", False),
        ("outcome", "deny", False),
        ("outcome", "expire", False),
    ],
)
def test_a_decision_fits_what_was_asked(kind: str, action: str, fits: bool) -> None:
    outcome = decide(asked(kind), action)[1]
    assert isinstance(outcome, Decided) if fits else why(outcome) == "unfit"


def test_only_a_turn_that_goes_on_waits_for_decisions() -> None:
    state = asked()
    ended, _ = _thread.abort(state, THREAD, "c1", TurnTerminated("Joker", "c1"), NOW)
    cancelled, _ = _thread.cancel(state, THREAD, "c1", CancelMark({}), NOW)
    for each in (ended, cancelled, _thread.reset(state)[0], ThreadState()):
        same, outcome = decide(each, "approve")
        assert same is each
        assert why(outcome) == "not_pending"
    assert why(_calls.decide(state, "c1", "c1.9.9", DIGEST, DecisionRecord({"action": "approve"}))[1]) == "not_pending"


def test_a_question_that_arrives_again_keeps_its_decision() -> None:
    state, _ = decide(asked("outcome"), "retry")
    again, _ = _thread.record(state, THREAD, "c1", (), 2, questions=[question("outcome")])
    assert again == state


def test_a_question_of_a_turn_that_was_begun_anew_takes_the_place_of_the_old_one() -> None:
    state, _ = decide(asked(), "approve")
    later = question(askedAt="2025-01-02T13:00:00+00:00")
    state, _ = _thread.record(state, THREAD, "c1", (calls("x"),), 2, questions=[later])
    assert state.books.asks[KEY] == later


def test_a_digest_depends_on_the_tool_and_its_arguments_and_not_on_their_order() -> None:
    assert DIGEST == call_digest("pay", {"amount": 5, "to": "Bob"}) == call_digest("pay", json.loads(json.dumps(PAY)))
    others = [call_digest("pay", {}), call_digest("give", PAY), call_digest("pay", {**PAY, "amount": "5"})]
    assert len({DIGEST, *others}) == 4


# --- attempt and note ---------------------------------------------------------------------------------------------


def test_the_first_to_come_with_a_number_goes() -> None:
    state, outcome = _calls.attempt(asked(), "c1", KEY, 1, "A", NOW)
    assert outcome == Attempted("go")
    for number, token, answer in [(1, "A", "go"), (1, "B", "unknown"), (0, "A", "unknown")]:
        assert _calls.attempt(state, "c1", KEY, number, token, LATER) == (state, Attempted(answer, NOW.isoformat()))  # type: ignore[arg-type]
    assert _calls.attempt(state, "c1", "c1.1.1", 1, "B", NOW)[1] == Attempted("go")


def test_a_later_number_goes_and_the_earlier_ones_do_not_any_more() -> None:
    state, _ = _calls.attempt(asked(), "c1", KEY, 1, "A", NOW)
    state, outcome = _calls.attempt(state, "c1", KEY, 2, "B", NOW)
    assert outcome == Attempted("go")
    assert _calls.attempt(state, "c1", KEY, 1, "A", NOW)[1] == Attempted("unknown", NOW.isoformat())
    assert _calls.attempt(state, "c1", KEY, 1, "B", NOW)[1] == Attempted("unknown", NOW.isoformat())


def test_no_attempt_is_made_when_the_turn_is_over() -> None:
    state = asked()
    cancelled, _ = _thread.cancel(state, THREAD, "c1", CancelMark({}), NOW)
    for each in (cancelled, _thread.reset(state)[0], ThreadState()):
        assert _calls.attempt(each, "c1", KEY, 1, "A", NOW) == (each, Attempted("stop"))
        assert not _calls.may_act(each, "c1")
    assert _calls.may_act(state, "c1")


def test_the_latest_progress_of_each_call_is_kept_while_the_turn_runs() -> None:
    state = asked()
    for key, progress in [("k1", 1), ("k2", 5), ("k1", 2)]:
        state, outcome = _calls.note(state, "c1", key, progress)
        assert outcome == Noted()
    assert state.books.progress == {"k1": 2, "k2": 5}
    assert _calls.note(state, "c2", "k1", 9) == (state, Noted())


def test_the_books_are_closed_with_the_turn() -> None:
    state, _ = decide(asked(), "approve", at=NOW.isoformat())
    state, _ = _calls.attempt(state, "c1", KEY, 1, "A", NOW)
    state, _ = _calls.note(state, "c1", KEY, 1)
    assert _state.load(json.loads(json.dumps(_state.dump(state)))).books == state.books
    state, _ = _thread.record(state, THREAD, "c1", (results("x"),), 2)
    state, _ = _thread.commit(state, THREAD, "c1", (ChatMessage("assistant", "Paid."),), None, NOW)
    assert set(_state.dump(state)["data"]) == {"conversationHistory"}


# --- each call has its result -------------------------------------------------------------------------------------

USER, ANSWER = ChatMessage("user", "?"), ChatMessage("assistant", "!")


def shape(messages: Any) -> list[str]:
    """`x` is a call, `x=` its result, `x-` a result that says that there is none; texts are themselves."""
    found: list[str] = []
    for message in messages:
        for content in message.contents:
            if isinstance(content, FunctionCallContent):
                found.append(content.call_id)
            elif isinstance(content, FunctionResultContent):
                found.append(content.call_id + ("-" if "dafx" in content.extra else "="))
            else:
                found.append(message.text)
    return found


@pytest.mark.parametrize(
    ("messages", "closed_as"),
    [
        ([], ""),
        ([USER, ANSWER], "? !"),
        ([calls("x"), results("x"), ANSWER], "x x= !"),
        ([calls("x")], "x x-"),
        ([calls("x"), ANSWER], "x x- !"),
        ([calls("x", "y"), results("y"), ANSWER], "x y y= x- !"),
        ([calls("x", "y"), results("y"), results("x")], "x y y= x="),
        ([calls("x", "x"), results("x"), ANSWER], "x x x= x- !"),
        ([calls("x"), results("x"), calls("x"), ANSWER], "x x= x x- !"),
        ([calls("x"), USER, calls("x"), results("x")], "x x- ? x x="),
        ([calls("x"), calls("y")], "x x- y y-"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_call_is_closed_before_anything_else_comes(messages: list[ChatMessage], closed_as: str) -> None:
    assert shape(closed(messages)) == closed_as.split()
    assert open_calls(closed(messages)) == ()
    assert closed(closed(messages)) == closed(messages)


def test_a_turn_that_is_taken_over_has_its_calls_closed() -> None:
    state, _ = _thread.record(asked(), THREAD, "c1", (results("x"), calls("y", "y")), 2)
    _, outcome = _thread.abort(state, THREAD, "c1", TurnTerminated("Joker", "c1"), NOW, messages=(results("y"),))
    assert isinstance(outcome, Ended)
    kinds = [content["$type"] for message in outcome.response["messages"] for content in message["contents"]]
    assert kinds == ["functionCall", "functionResult", *["functionCall"] * 2, *["functionResult"] * 2, "error"]


def test_a_turn_that_was_begun_anew_leaves_no_call_open_behind_it() -> None:
    state, outcome = _thread.record(asked(), THREAD, "c1", (ANSWER,), 2)
    assert shape(state.draft) == ["x", "x-", "!"]
    assert outcome == Granted(4)
