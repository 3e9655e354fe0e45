"""What a model is shown of turns that ended without an answer."""

from __future__ import annotations

import json
from typing import Any

import pytest

from dafx_actors._json.crossing import error_content
from dafx_actors._rules.conversation import conversation
from dafx_actors._rules.open_calls import closed
from dafx_actors.errors import DafxError, ModelError, TurnCancelled, TurnFailed, TurnTerminated
from dafx_actors.transcript import (
    ChatMessage,
    Content,
    DataContent,
    Entry,
    ErrorContent,
    FunctionCallContent,
    FunctionResultContent,
    HostedFileContent,
    Request,
    Response,
    TextContent,
    TextReasoningContent,
    Transcript,
    UriContent,
)

MB = 2**20
IMAGE = DataContent.from_bytes(b"\x89PNG" * 1_000, "image/png")
PAY = FunctionCallContent("x", "pay", {"order": "A-1", "amount": 950})
PAID = FunctionResultContent("x", "receipt 17", extra={"dafx": {"key": "c1.1.0"}})


def refusal(kind: Any = "bad_request") -> ModelError:
    return ModelError(kind, "the text that was refused")


def asked(turn: str, *contents: Content) -> Request:
    return Request(correlation_id=turn, messages=(ChatMessage("user", contents or (TextContent(f"{turn}?"),)),))


def answered(turn: str) -> Response:
    return Response(correlation_id=turn, messages=(ChatMessage("assistant", f"{turn}!"),))


def failed(turn: str, error: DafxError, *messages: ChatMessage) -> Response:
    told = (*closed(messages), ChatMessage("assistant", (error_content(error),)))
    return Response(correlation_id=turn, messages=told)


def paid(result: Content = PAID, call: Content = PAY) -> tuple[ChatMessage, ...]:
    return ChatMessage("assistant", (call,)), ChatMessage("tool", (result,))


def shown(*entries: Entry) -> tuple[ChatMessage, ...]:
    """What the next turn's model sees; the speakers take turns, and nothing but text is in it."""
    messages = conversation(Transcript(entries=(*entries, asked("now"))), "now")
    assert [message.role for message in messages] == ["user", "assistant"] * (len(messages) // 2) + ["user"]
    assert all(isinstance(content, TextContent) and content.text for each in messages for content in each.contents)
    return messages


def texts(*entries: Entry) -> list[str]:
    return [message.text for message in shown(*entries)]


KINDS = ("bad_request", "content_filter", "context_length")


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_paid_before_the_provider_refused_is_shown(kind: str) -> None:
    request, told, _ = texts(asked("c1"), failed("c1", refusal(kind), *paid()))
    assert request == "c1?"
    assert 'pay({"order": "A-1", "amount": 950}): receipt 17' in told
    assert f"refused to go on ({kind})" in told
    assert "the text that was refused" not in told


@pytest.mark.parametrize("kind", KINDS)
def test_a_turn_that_made_no_call_and_was_refused_is_left_out(kind: str) -> None:
    assert texts(asked("c0"), answered("c0"), asked("c1", IMAGE), failed("c1", refusal(kind))) == ["c0?", "c0!", "now?"]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ModelError("rate_limit", "slow down"), "slow down"),
        (TurnCancelled("Joker", "c1", "enough", "Ann"), "it was cancelled by Ann: enough"),
        (TurnCancelled("Joker", "c1"), "it was cancelled."),
        (TurnTerminated("Joker", "c1", "it ended without a word"), "it ended without a word"),
        (TurnFailed("Joker", "c1", "KeyError", "'x'"), "KeyError"),
    ],
)
def test_how_a_turn_ended_is_told_also_where_it_made_no_call(error: DafxError, words: str) -> None:
    request, told, _ = texts(asked("c1"), failed("c1", error))
    assert request == "c1?"
    assert words in told
    assert "No tool was called in it." in told


def test_an_error_that_somebody_else_stored_is_told_in_its_words() -> None:
    broken = Response(correlation_id="c1", messages=(ChatMessage("assistant", (ErrorContent("it rains", "E1"),)),))
    assert "it rains" in texts(asked("c1"), broken)[1]


@pytest.mark.parametrize("result", ["x" * 3 * MB, {"rows": ["y" * 3 * MB]}, ["z"] * MB], ids=["text", "rows", "list"])
def test_a_result_of_three_megabytes_is_cut(result: Any) -> None:
    large = FunctionResultContent("x", result)
    call = FunctionCallContent("x", "pay", {"note": "n" * 3 * MB})
    messages = shown(
        asked("c1", TextContent("q" * 3 * MB)), failed("c1", refusal("context_length"), *paid(large, call))
    )
    sizes = [len(message.text) for message in messages]
    assert 2_000 <= sizes[0] < 2_100
    assert 4_000 <= sizes[1] < 4_500
    assert "cut off here; 3,145,728 characters in all" in messages[0].text


def test_what_fits_is_not_cut() -> None:
    request, told, _ = texts(asked("c1", TextContent("q" * 2_000)), failed("c1", refusal(), *paid()))
    assert request == "q" * 2_000
    assert "cut off" not in told


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (IMAGE, "[image/png, not shown again]"),
        (UriContent("https://example.com/secret.png", "image/png"), "[image/png, not shown again]"),
        (HostedFileContent("file-1"), "[not shown again]"),
    ],
)
def test_images_and_files_are_named_and_not_shown(content: Content, named: str) -> None:
    request, _, _ = texts(asked("c1", TextContent("Pay this."), content), failed("c1", refusal(), *paid()))
    assert request == f"Pay this.\n{named}"


@pytest.mark.parametrize("result", [IMAGE.uri, {"picture": IMAGE.uri}, [{"$type": "data", "uri": IMAGE.uri}]])
def test_an_image_that_a_tool_gave_is_not_shown(result: Any) -> None:
    _, told, _ = texts(asked("c1"), failed("c1", refusal(), *paid(FunctionResultContent("x", result))))
    assert "[image/png, not shown again]" in told
    assert "base64" not in told


def test_reasoning_is_not_shown() -> None:
    thought = ChatMessage("assistant", (TextReasoningContent("secretly"), PAY))
    _, told, _ = texts(asked("c1"), failed("c1", refusal(), thought, paid()[1]))
    assert "secretly" not in told
    assert "receipt 17" in told


def test_a_call_without_a_result_is_told_as_not_known() -> None:
    _, told, _ = texts(asked("c1"), failed("c1", TurnCancelled("Joker", "c1"), paid()[0]))
    assert "950}): its outcome is not known: it may have acted, or not" in told


def test_calls_that_share_an_id_keep_their_own_results() -> None:
    calls = ChatMessage("assistant", (PAY, FunctionCallContent("x", "pay", {"order": "B-2"})))
    results = ChatMessage("tool", (PAID, FunctionResultContent("x", "receipt 18")))
    again = paid(FunctionResultContent("x", "receipt 19"), FunctionCallContent("x", "pay", {"order": "C-3"}))
    _, told, _ = texts(asked("c1"), failed("c1", refusal(), calls, results, *again))
    lines = [line for line in told.splitlines() if line.startswith("- ")]
    assert [line.rpartition(": ")[2].rstrip(")") for line in lines] == ["receipt 17", "receipt 18", "receipt 19"]
    assert ["A-1" in lines[0], "B-2" in lines[1], "C-3" in lines[2]] == [True] * 3


def test_arguments_that_a_person_changed_are_those_that_are_told() -> None:
    decided = {"action": "approve", "by": "Ann", "arguments": {"amount": 5}}
    _, told, _ = texts(
        asked("c1"),
        failed("c1", refusal(), *paid(FunctionResultContent("x", "ok", extra={"dafx": {"decision": decided}}))),
    )
    assert 'pay({"amount": 5}): ok' in told


def test_what_joined_a_turn_is_told_too() -> None:
    joined = ChatMessage("user", "And B-2.", extra={"correlationId": "c2"})
    repair = ChatMessage("user", "Your answer does not fit.")
    _, told, _ = texts(asked("c1"), failed("c1", refusal(), *paid(), joined, repair))
    assert "- The user added: And B-2." in told
    assert "does not fit" not in told


def test_a_turn_whose_request_is_not_kept_is_told_all_the_same() -> None:
    assert "receipt 17" in texts(failed("c1", refusal(), *paid()))[1]


def test_what_was_withdrawn_while_a_turn_ran_does_not_come_between_its_request_and_its_answer() -> None:
    withdrawn = (asked("c2"), failed("c2", TurnCancelled("Joker", "c2")))
    found = texts(asked("c1"), *withdrawn, answered("c1"))
    assert [found[0], *found[2:]] == ["c2?", "c1?", "c1!", "now?"]


def test_a_result_that_the_provider_refuses_again_is_not_repeated_any_more() -> None:
    """Else every later turn would be refused for it."""
    poison = paid(FunctionResultContent("x", "a rude word"))
    first = (asked("c1"), failed("c1", refusal("content_filter"), *poison))
    assert "a rude word" in texts(*first)[1]
    told = texts(*first, asked("c2"), failed("c2", refusal("content_filter")))
    assert 'pay({"order": "A-1", "amount": 950}): its result is not repeated here' in told[1]
    assert not any("a rude word" in text or "c2?" in text for text in told)


def test_a_result_that_was_taken_since_is_not_suspected() -> None:
    first = (asked("c1"), failed("c1", refusal("content_filter"), *paid()), asked("c2"), answered("c2"))
    other = (asked("c1"), failed("c1", refusal("content_filter"), *paid()), asked("c2"), failed("c2", refusal()))
    for entries in (
        (*first, asked("c3"), failed("c3", refusal("content_filter"))),
        other,
    ):
        assert any("receipt 17" in text for text in texts(*entries))


def test_a_result_that_is_no_text_is_told_as_json() -> None:
    result = {"paid": 950, "to": "Zoë"}
    _, told, _ = texts(asked("c1"), failed("c1", refusal(), *paid(FunctionResultContent("x", result))))
    assert json.dumps(result, ensure_ascii=False) in told
