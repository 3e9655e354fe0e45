"""What a turn does next, and what its model is shown."""

from __future__ import annotations

import functools
import itertools
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import attrs
import pytest
from durabletask.task import RetryPolicy

from dafx_actors._json.books import DecisionRecord
from dafx_actors._json.messages import dump_message, dump_usage
from dafx_actors._json.steps import Failed, ModelResult, Plan, Returned
from dafx_actors._rules.conversation import conversation
from dafx_actors._rules.retries import MODEL_RETRIES, pause_before, retry_note
from dafx_actors._rules.turn import (
    Call,
    CallOutcome,
    CallTools,
    Fail,
    Finish,
    Move,
    Progress,
    Repair,
    batches,
    denied,
    next_move,
    result_of,
    results_message,
    told_to_caller,
)
from dafx_actors.errors import InvalidAnswer, ModelError, TurnLimitExceeded
from dafx_actors.exchange import AgentRunResponse, Limits
from dafx_actors.ids import AgentThread, call_key
from dafx_actors.models import ending_of
from dafx_actors.transcript import (
    ChatMessage,
    Content,
    FunctionCallContent,
    FunctionResultContent,
    OpaqueContent,
    OpaqueEntry,
    Request,
    Response,
    TextContent,
    TextReasoningContent,
    Transcript,
    UsageContent,
    UsageStats,
)


def request(turn: str, text: str = "") -> Request:
    return Request(correlation_id=turn, messages=(ChatMessage("user", text or f"{turn}?"),))


def response(turn: str, *contents: Content) -> Response:
    return Response(correlation_id=turn, messages=(ChatMessage("assistant", contents or (TextContent(turn),)),))


def shown(*entries: Any, turn: str = "now", draft: tuple[ChatMessage, ...] = ()) -> list[str]:
    return [message.text for message in conversation(Transcript(entries=entries, draft=draft), turn)]


def test_a_model_sees_what_was_asked_and_answered_and_the_turns_own_request() -> None:
    assert shown(request("c1"), response("c1"), request("now")) == ["c1?", "c1", "now?"]


def test_it_does_not_see_requests_that_were_never_answered() -> None:
    assert shown(request("c1"), request("now")) == ["now?"]


def test_it_does_not_see_entries_that_nobody_can_read() -> None:
    assert shown(OpaqueEntry({"$type": "summary", "correlationId": "now"}), request("now")) == ["now?"]


def test_it_sees_what_its_turn_has_recorded() -> None:
    assert shown(request("now"), draft=(ChatMessage("assistant", "Hm."),)) == ["now?", "Hm."]


def test_it_is_not_shown_reasoning_usage_or_errors() -> None:
    thought = response("c1", TextReasoningContent("Hm."), TextContent("Ha."), UsageContent(UsageStats(1, 1, 2)))
    silent = response("c2", TextReasoningContent("Hm."))
    messages = conversation(Transcript(entries=(request("c1"), thought, request("c2"), silent, request("now"))), "now")
    assert [message.contents for message in messages] == [
        (TextContent("c1?"),),
        (TextContent("Ha."),),
        (TextContent("c2?"),),
        (TextContent("now?"),),
    ]


def test_contents_that_we_cannot_read_are_left_to_the_model_to_judge() -> None:
    opaque = OpaqueContent({"$type": "hologram"})
    messages = conversation(Transcript(entries=(request("c1"), response("c1", opaque), request("now"))), "now")
    assert messages[1].contents == (opaque,)


def test_a_call_that_has_no_result_gets_one_that_says_so() -> None:
    call = response("c1", FunctionCallContent("x", "look"))
    messages = conversation(Transcript(entries=(request("c1"), call, request("now"))), "now")
    assert [message.role for message in messages] == ["user", "assistant", "tool", "user"]


# --- After a model call -------------------------------------------------------------------------------------------

ANSWER = ChatMessage("assistant", "Ha.")
LOOK = FunctionCallContent("x", "look", {"at": "me"})
ONE_USAGE = UsageStats(1, 1, 2)


def reply(message: ChatMessage = ANSWER, **fields: Any) -> dict[str, Any]:
    plans = {"calls": [{"activity": "look"}] * sum(isinstance(c, FunctionCallContent) for c in message.contents)}
    usage = {"usage": dump_usage(ONE_USAGE)}
    return {"message": dump_message(message), "finishReason": "stop", **usage, **plans, **fields}


def asks_for(*calls: FunctionCallContent) -> ChatMessage:
    return ChatMessage("assistant", calls)


KEY_OF = functools.partial(call_key, AgentThread("Joker", "t1"), "c1")


def after(result: Any, progress: Progress | None = None, **limits: Any) -> tuple[Progress, Move]:
    return next_move(ModelResult.load(result), progress or Progress(), Limits(**limits), "c1", "Joker", KEY_OF)


def test_a_text_is_the_answer() -> None:
    progress, step = after(reply())
    assert step == Finish(ANSWER)
    assert progress == Progress(replies=1, steps=1, usage=ONE_USAGE)


@pytest.mark.parametrize("reason", ["stop", "length", "tool_calls", "content_filter"])
def test_of_steps_of_earlier_versions_only_a_filter_turns_a_text_into_a_failure(reason: str) -> None:
    progress, step = after(reply(finishReason=reason))
    assert isinstance(step, Fail) == (reason == "content_filter")
    assert (progress.finish_reason, progress.about) == (None, {})


# --- How a reply ended --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ending", "reasons"),
    {
        "whole": ["stop", "tool_calls", "end_turn", "STOP", "eos_token", "a word that nobody knows", ""],
        "cut": ["length", "max_tokens", "MAX_TOKENS", "model_length", "model_context_window_exceeded"],
        "withheld": ["content_filter", "SAFETY", "refusal", "guardrail_intervened"],
        "broken": ["error", "abort", "insufficient_system_resource", "network_error", "MALFORMED_FUNCTION_CALL"],
    }.items(),
)
def test_the_words_of_providers_mean(ending: str, reasons: list[str]) -> None:
    assert [ending_of(reason) for reason in reasons] == [ending] * len(reasons)


def ended(reason: str, message: ChatMessage = ANSWER, **fields: Any) -> dict[str, Any]:
    """What a step of today gives."""
    ending = ending_of(reason)
    plans: dict[str, Any] = {} if ending == "whole" else {"calls": []}
    limit = {"limit": "max_tokens=7"} if ending == "cut" else {}
    return reply(message, finishReason=reason, ending=ending, **plans, **limit, **fields)


@pytest.mark.parametrize("reason", ["stop", "length", "MAX_TOKENS", "recess"])
def test_a_text_is_answered_with_its_finish_reason(reason: str) -> None:
    progress, step = after(ended(reason))
    assert step == Finish(ANSWER)
    assert progress.about == {"finishReason": reason}


def test_what_was_withheld_says_what_the_filter_found() -> None:
    withheld = ChatMessage("assistant", (), extra={"filtered": ["violence"]})
    _, step = after(reply(withheld, finishReason="content_filter"))
    assert isinstance(step, Fail)
    assert isinstance(step.error, ModelError)
    assert step.error.data == {"categories": ["violence"]}
    assert "violence" in step.error.message


@pytest.mark.parametrize("reason", ["content_filter", "SAFETY"])
def test_what_was_withheld_is_a_failure(reason: str) -> None:
    _, step = after(ended(reason))
    assert isinstance(step, Fail)
    assert isinstance(step.error, ModelError)
    assert step.error.kind == "content_filter"


def test_a_call_that_was_cut_is_not_made_and_asked_for_once_more() -> None:
    cut = ended("length", asks_for(LOOK))
    progress, step = after(cut)
    assert isinstance(step, Repair)
    asked, told = step.messages
    assert asked == asks_for(LOOK)
    [result] = told.contents
    assert isinstance(result, FunctionResultContent)
    assert (result.call_id, result.extra["dafx"]["failed"]) == ("x", True)
    assert "was not made" in result.result
    assert "max_tokens=7" in result.result
    _, step = after(cut, progress)
    assert isinstance(step, Fail)
    assert isinstance(step.error, ModelError)
    assert (step.error.kind, step.error.attempts, step.messages) == ("length", 2, (asks_for(LOOK),))
    assert "max_tokens=7" in step.error.message


def test_a_model_that_says_a_whole_thing_in_between_is_asked_again() -> None:
    progress, _ = after(ended("length", asks_for(LOOK)))
    progress, step = after(ended("tool_calls", asks_for(LOOK), calls=[{"activity": "look"}]), progress)
    assert isinstance(step, CallTools)
    assert isinstance(after(ended("length", asks_for(LOOK)), progress)[1], Repair)


def test_nothing_but_a_limit_is_a_failure_that_names_it() -> None:
    _, step = after(ended("length", ChatMessage("assistant", (TextReasoningContent("Hm."),))))
    assert isinstance(step, Fail)
    assert "max_tokens=7" in str(step.error)


@pytest.mark.parametrize("message", [ANSWER, asks_for(LOOK), ChatMessage("assistant", ())])
def test_what_the_provider_broke_off_is_asked_for_once_more(message: ChatMessage) -> None:
    progress, step = after(ended("error", message))
    assert step == Repair(())
    _, step = after(ended("error", message), progress)
    assert isinstance(step, Fail)
    assert isinstance(step.error, ModelError)
    assert (step.error.kind, step.error.attempts) == ("bad_response", 2)


def test_a_turn_at_its_limit_of_steps_is_not_asked_again() -> None:
    assert isinstance(after(ended("error"), steps=1)[1], Fail)


def test_another_agents_model_is_told_that_an_answer_was_cut_off() -> None:
    answer = AgentRunResponse[None](
        messages=(ChatMessage("assistant", "The dose is 10"),),
        correlation_id="c1",
        thread=AgentThread("Joker", "t1"),
        created_at=datetime(2026, 1, 2, tzinfo=UTC),
        finish_reason="length",
    )
    assert "cut off" in told_to_caller(answer)
    assert told_to_caller(attrs.evolve(answer, finish_reason="stop")) == "The dose is 10"


def test_a_filters_own_words_are_kept() -> None:
    _, step = after(reply(ChatMessage("assistant", "I cannot"), finishReason="content_filter"))
    assert isinstance(step, Fail)
    assert isinstance(step.error, ModelError)
    assert (step.error.kind, step.error.message) == ("content_filter", "I cannot")


def test_calls_are_made_as_the_worker_planned_them() -> None:
    message = asks_for(LOOK, FunctionCallContent("x", "shoot"))
    plans = [{"activity": "look", "alone": True}, {"refusal": "no such tool"}]
    progress, step = after(reply(message, calls=plans), Progress(replies=2, steps=5))
    assert isinstance(step, CallTools)
    assert step.message == message
    assert [(call.key, call.content, call.plan.alone, call.plan.refusal) for call in step.calls] == [
        (KEY_OF(3, 0), LOOK, True, None),
        (KEY_OF(3, 1), message.contents[1], False, "no such tool"),
    ]
    assert (progress.replies, progress.steps) == (3, 8)


def test_calls_of_the_same_id_have_keys_of_their_own() -> None:
    progress, keys = Progress(), list[str]()
    for _ in range(2):
        progress, step = after(reply(asks_for(LOOK, LOOK)), progress)
        assert isinstance(step, CallTools)
        keys += [call.key for call in step.calls]
    assert len(set(keys)) == 4


def test_usage_adds_up() -> None:
    progress, _ = after(reply(), Progress(usage=UsageStats(10, 1, 11)))
    assert progress.usage == UsageStats(11, 2, 13)
    assert after(reply(usage=None), progress)[0].usage == UsageStats(11, 2, 13)
    assert after(reply(usage=None))[0].usage is None


@pytest.mark.parametrize(("steps", "calls", "may"), [(3, 1, True), (3, 2, False), (1, 1, False), (None, 50, True)])
def test_calls_are_made_only_if_their_results_can_be_used(steps: int | None, calls: int, may: bool) -> None:
    _, step = after(reply(asks_for(*[LOOK] * calls)), steps=steps)
    assert isinstance(step, CallTools) == may
    if isinstance(step, Fail):
        assert isinstance(step.error, TurnLimitExceeded)
        assert (step.error.limit, step.error.most, step.error.needed) == ("steps", steps, calls + 2)
        assert step.messages == (asks_for(*[LOOK] * calls),)


def test_an_answer_at_the_limit_is_the_last() -> None:
    assert after(reply(), steps=1)[1] == Finish(ANSWER, last=True)
    assert after(reply(), steps=2)[1] == Finish(ANSWER)
    assert after(reply(), steps=None)[1] == Finish(ANSWER)


@pytest.mark.parametrize("message", [ANSWER, asks_for(LOOK)])
def test_a_turn_over_its_tokens_ends(message: ChatMessage) -> None:
    assert not isinstance(after(reply(message), tokens=2)[1], Fail)
    _, step = after(reply(message), Progress(usage=ONE_USAGE), tokens=3)
    assert isinstance(step, Fail)
    assert isinstance(step.error, TurnLimitExceeded)
    assert (step.error.limit, step.error.most, step.error.needed) == ("tokens", 3, 4)
    assert step.messages == (message,)


def test_an_answer_that_does_not_fit_is_repaired_once() -> None:
    progress, step = after(reply(invalid="it is no JSON"))
    assert isinstance(step, Repair)
    assert [message.role for message in step.messages] == ["assistant", "user"]
    assert "it is no JSON" in step.messages[1].text
    _, step = after(reply(invalid="still not"), progress)
    assert isinstance(step, Fail)
    assert isinstance(step.error, InvalidAnswer)
    assert (step.error.text, step.error.reason, step.messages) == ("Ha.", "still not", (ANSWER,))


def test_an_answer_is_not_repaired_beyond_the_limit() -> None:
    assert isinstance(after(reply(invalid="it is no JSON"), steps=1)[1], Fail)


def test_a_response_says_how_it_came_about_where_there_is_something_to_say() -> None:
    note = retry_note(1, 2, ModelError("timeout", "slow"))
    assert Progress(steps=1).about == {}
    assert Progress(steps=3, retries=(note,)).about == {"steps": 3, "retries": [note]}
    assert (note["step"], note["attempt"], note["error"]) == (1, 2, "ModelError")


@pytest.mark.parametrize(
    ("alone", "expected"),
    [("", []), ("..", [".."]), (".!.", [".", "!", "."]), ("!!", ["!", "!"]), ("..!..", ["..", "!", ".."])],
)
def test_calls_are_made_together_unless_one_wants_to_be_alone(alone: str, expected: list[str]) -> None:
    calls = [Call(key=str(n), content=LOOK, plan=Plan(alone=mark == "!")) for n, mark in enumerate(alone)]
    found = batches(calls)
    assert list(itertools.chain(*found)) == calls
    assert ["".join("!" if call.plan.alone else "." for call in batch) for batch in found] == expected


# --- After a failure ----------------------------------------------------------------------------------------------


def pauses(policy: RetryPolicy = MODEL_RETRIES, **more: Any) -> list[float | None]:
    found = (pause_before(n, policy, timedelta(), "c1/1", **more) for n in range(1, policy.max_number_of_attempts + 1))
    return [None if pause is None else pause.total_seconds() for pause in found]


def test_pauses_grow_and_end() -> None:
    *given, last = pauses()
    assert last is None
    assert [round(cast("float", pause) / 1.05) for pause in given] == [1, 2, 4, 8]
    assert pauses() == pauses(), "the same at every replay"
    others = [pause_before(1, MODEL_RETRIES, timedelta(), seed) for seed in "abc"]
    assert len(set(others)) == 3


@pytest.mark.parametrize(
    ("asked", "paused"), [(None, 1.0), (0.0, 1.0), (0.5, 1.0), (30.0, 30.0), (-5.0, 1.0), (float("nan"), 1.0)]
)
def test_the_provider_may_ask_for_a_longer_pause(asked: float | None, paused: float) -> None:
    pause = pause_before(1, MODEL_RETRIES, timedelta(), "c1/1", at_least=asked)
    assert pause is not None
    assert paused <= pause.total_seconds() <= paused * 1.1


@pytest.mark.parametrize("asked", [601.0, 1e300, float("inf")])
def test_a_turn_does_not_wait_longer_than_its_retries_may_take(asked: float) -> None:
    assert pause_before(1, MODEL_RETRIES, timedelta(), "c1/1", at_least=asked) is None
    assert pause_before(1, MODEL_RETRIES, timedelta(minutes=10), "c1/1") is None


def test_a_pause_that_no_clock_can_hold_is_the_longest() -> None:
    policy = RetryPolicy(
        first_retry_interval=timedelta(seconds=1), max_number_of_attempts=10_000, backoff_coefficient=1e9
    )
    far = pause_before(9_999, policy, timedelta(), "x", at_least=float("inf"))
    assert far is not None
    assert far > timedelta(days=36_000)


# --- Tool calls ---------------------------------------------------------------------------------------------------

CALL = Call(key="c1.1.0", content=LOOK, plan=Plan())


@pytest.mark.parametrize(
    ("outcome", "said", "noted"),
    [
        (CallOutcome(Returned({"seen": [1]})), {"seen": [1]}, {}),
        (CallOutcome(Returned(None)), None, {}),
        (CallOutcome(Returned("too large", unkept=True)), "too large", {"unkept": True}),
        (CallOutcome(Failed("it is dark")), "Error: it is dark", {"failed": True}),
        (CallOutcome(Returned(1), decision=DecisionRecord({"by": "Ann"})), 1, {"decision": {"by": "Ann"}}),
        (CallOutcome(Returned(1), resolved=(DecisionRecord({"by": "Ann"}),)), 1, {"resolved": [{"by": "Ann"}]}),
    ],
)
def test_a_model_is_told_of_its_calls(outcome: CallOutcome, said: Any, noted: dict[str, Any]) -> None:
    assert result_of(CALL, outcome) == FunctionResultContent("x", said, extra={"dafx": {"key": "c1.1.0", **noted}})


@pytest.mark.parametrize(
    ("decision", "words"),
    [
        ({"action": "deny"}, "a person denied it"),
        ({"action": "deny", "reason": "too dear"}, "a person denied it: too dear"),
        ({"action": "expire"}, "nobody approved it in time"),
    ],
)
def test_a_call_that_was_not_allowed_says_why(decision: dict[str, Any], words: str) -> None:
    outcome = denied(DecisionRecord(decision))
    assert isinstance(outcome.made, Failed)
    assert outcome.made.text.endswith(words)
    assert outcome.decision == DecisionRecord(decision)


def test_results_stand_in_the_order_of_their_calls() -> None:
    calls = [Call(key=str(n), content=LOOK, plan=Plan()) for n in range(3)]
    message = results_message(calls, {"2": CallOutcome(Returned("c")), "0": CallOutcome(Returned("a"))})
    assert message is not None
    assert message.role == "tool"
    assert [cast("FunctionResultContent", content).result for content in message.contents] == ["a", "c"]
    assert results_message(calls, {}) is None
