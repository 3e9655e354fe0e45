"""What the peer sends and reads, without the peer; `tests/interop` does it with."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from dafx_actors._json import peer as _peer_forms
from dafx_actors._json.document import response_in
from dafx_actors._json.messages import load_usage
from dafx_actors._json.requests import dump_request, load_request, load_response
from dafx_actors.client import _peer
from dafx_actors.errors import TurnFailed, UnsupportedByPeer
from dafx_actors.exchange import Limits, RunRequest
from dafx_actors.ids import AgentThread
from dafx_actors.transcript import ChatMessage, DataContent
from tests.test_codec import CONTENTS

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)
ITS_REQUEST = {"message": "Hello", "role": "user", "correlationId": "c1", "wait_for_response": True, "options": {}}


def request(*messages: ChatMessage, **more: Any) -> RunRequest:
    given = messages or (ChatMessage("user", "Hello"),)
    return RunRequest(correlation_id="c1", messages=given, created_at=NOON, **more)


def test_a_request_of_the_peer_is_told_from_ours() -> None:
    assert _peer_forms.sent_by_peer(ITS_REQUEST)
    assert _peer_forms.sent_by_peer(json.dumps(ITS_REQUEST))
    assert not _peer_forms.sent_by_peer(dump_request(request()))
    assert not any(_peer_forms.sent_by_peer(raw) for raw in ("{", "[]", 5, None))


@pytest.mark.parametrize(
    ("fields", "waits"),
    [
        ({}, False),
        ({"orchestrationId": None}, False),
        ({"orchestrationId": "o1"}, True),
        ({"orchestrationId": "o1", "wait_for_response": True}, True),
        ({"orchestrationId": "o1", "wait_for_response": False}, False),
    ],
)
def test_only_an_orchestration_that_waits_wants_the_answer(fields: dict[str, Any], waits: bool) -> None:
    assert _peer_forms.waits_for_answer({**ITS_REQUEST, **fields}) is waits


def test_a_request_becomes_one_text() -> None:
    sent = _peer_forms.dump_for_peer("Joker", request(ChatMessage("user", "One"), ChatMessage("user", "Two")))
    assert sent == {
        "message": "One\nTwo",
        "role": "user",
        "correlationId": "c1",
        "request_response_format": "text",
        "created_at": sent["created_at"],
        "enable_tool_calls": True,
    }
    assert _peer_forms.sent_by_peer(sent)
    assert load_request(sent).messages == (ChatMessage("user", "One\nTwo"),)


def test_what_the_peer_has_no_field_for_travels_as_options() -> None:
    sent = _peer_forms.dump_for_peer("Joker", request(response_schema={"type": "object"}, tool_choice="none"))
    schema = {"name": "answer", "schema": {"type": "object"}}
    assert sent["options"] == {
        "response_format": {"type": "json_schema", "json_schema": schema},
        "tool_choice": "none",
    }


@pytest.mark.parametrize(
    "asked",
    [
        request(ChatMessage("user", (DataContent.from_bytes(b"x", "image/png"),))),
        request(ChatMessage("system", "Be brief."), ChatMessage("user", "Hello")),
        request(limits=Limits(steps=1)),
    ],
    ids=["a picture", "roles", "limits"],
)
def test_what_the_peer_cannot_do_is_refused(asked: RunRequest) -> None:
    with pytest.raises(UnsupportedByPeer):
        _peer_forms.dump_for_peer("Joker", asked)


@pytest.mark.parametrize("raw", CONTENTS, ids=json.dumps)
def test_a_stored_content_comes_back_from_the_form_that_travels(raw: dict[str, Any]) -> None:
    stored = {
        "$type": "response",
        "correlationId": "c1",
        "createdAt": "2026-01-02T12:00:00+00:00",
        "messages": [{"role": "assistant", "authorName": "Joker", "contents": [raw]}],
        "usage": {"inputTokenCount": 1, "outputTokenCount": 2, "totalTokenCount": 3},
    }
    travelling = _peer_forms.dump_agent_response(stored)
    back = _peer_forms.load_agent_response(json.loads(json.dumps(travelling)), "c1")
    if raw["$type"] == "unknown":
        # What has no name of its own is kept as the peer wraps it.
        assert back["messages"][0]["contents"][0]["$type"] == "unknown"
    elif raw.get("details") and not isinstance(raw["details"], str):
        assert json.loads(back["messages"][0]["contents"][0]["details"]) == raw["details"]
    elif raw["$type"] == "usage":
        assert load_usage(back["messages"][0]["contents"][0]["usage"]) is not None
    else:
        assert back == stored


def test_arguments_come_as_a_text_or_as_an_object() -> None:
    def loaded(arguments: Any) -> Any:
        call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": arguments, "hosted": False}
        message = {"type": "message", "role": "assistant", "contents": [call]}
        return _peer_forms.load_agent_response({"type": "agent_response", "messages": [message]}, "c1")

    for given, read in [('{"x": 1}', {"x": 1}), ({"x": 1}, {"x": 1}), ("{", {}), ("[]", {})]:
        (call,) = loaded(given)["messages"][0]["contents"]
        assert call == {"$type": "functionCall", "callId": "c", "name": "f", "arguments": read}


def test_an_error_in_its_answer_is_typed() -> None:
    content = {"type": "error", "message": "down", "error_code": "RuntimeError"}
    message = {"type": "message", "role": "assistant", "contents": [content]}
    stored = _peer_forms.load_agent_response({"type": "agent_response", "messages": [message]}, "c1")
    with pytest.raises(TurnFailed, match="failed with RuntimeError: down"):
        load_response(stored, AgentThread("Joker", "t1"))


@pytest.mark.parametrize("raw", [None, [], {}, {"$type": "response"}, {"error": {"type": "x"}}])
def test_what_is_no_response_of_the_peer_is_refused(raw: Any) -> None:
    with pytest.raises(ValueError, match=r"expected|not a response"):
        _peer_forms.load_agent_response(raw, "c1")


# --- `_peer.py` ---------------------------------------------------------------------------------------------------


def test_the_peer_hosts_what_has_threads_and_no_turns() -> None:
    assert _peer.hosted_by_peer("Joker", entities={"dafx-joker"}, has_turns=False)
    assert not _peer.hosted_by_peer("Joker", entities={"dafx-joker"}, has_turns=True)
    assert not _peer.hosted_by_peer("Joker", entities={"dafx-other"}, has_turns=False)


def test_pauses_grow_with_what_was_waited_up_to_a_bound() -> None:
    pause, waited, pauses = 0.02, 0.0, []
    while waited < 120:
        pause = _peer.pause_after(pause, waited)
        pauses.append(pause)
        waited += pause
    assert pauses == sorted(pauses)
    assert (pauses[0], pauses[-1]) == (0.02, 2.0)
    assert len(pauses) < 120


def test_the_response_of_a_turn_is_found_in_its_thread() -> None:
    history = [{"$type": "request", "correlationId": "c1"}, {"$type": "response", "correlationId": "c1"}]
    document = {"schemaVersion": "1.1.0", "data": {"conversationHistory": history}}
    assert response_in(document, "c1") == history[1]
    assert response_in(document, "c2") is None
    assert response_in(None, "c1") is None
