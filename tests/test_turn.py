"""What a turn does next, and what its model is shown."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from dafx_actors._turn import Fail, Finish, conversation, next_step
from dafx_actors.errors import ModelError
from dafx_actors.models import FinishReason, ModelReply
from dafx_actors.transcript import (
    ChatMessage,
    Content,
    ErrorContent,
    FunctionCallContent,
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


def test_it_does_not_see_turns_that_failed() -> None:
    assert shown(request("c1"), response("c1", ErrorContent("too long")), request("now")) == ["now?"]


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


def test_a_text_is_the_answer() -> None:
    message = ChatMessage("assistant", "Ha.")
    assert next_step(ModelReply(message=message)) == Finish(message)


@pytest.mark.parametrize("reason", get_args(FinishReason))
def test_only_a_filter_turns_a_text_into_a_failure(reason: FinishReason) -> None:
    step = next_step(ModelReply(message=ChatMessage("assistant", "Ha."), finish_reason=reason))
    assert isinstance(step, Fail) == (reason == "content_filter")


def test_a_filters_own_words_are_kept() -> None:
    step = next_step(ModelReply(message=ChatMessage("assistant", "I cannot"), finish_reason="content_filter"))
    assert isinstance(step, Fail)
    assert isinstance(step.error, ModelError)
    assert (step.error.kind, step.error.message) == ("content_filter", "I cannot")


def test_a_call_of_a_tool_that_was_not_offered_is_the_models_mistake() -> None:
    step = next_step(ModelReply(message=ChatMessage("assistant", (FunctionCallContent("c", "shoot"),))))
    assert isinstance(step, Fail)
    assert isinstance(step.error, ModelError)
    assert step.error.kind == "bad_response"
    assert "'shoot'" in step.error.message
