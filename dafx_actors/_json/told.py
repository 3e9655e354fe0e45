"""Updates of a running turn as JSON: for browsers and other programs, which read it without us."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any, cast, get_args

import attrs

from dafx_actors._json.crossing import crosses, dump_error
from dafx_actors._json.messages import dump_message, dump_usage
from dafx_actors._json.requests import dump_decision
from dafx_actors._json.shapes import dump_time
from dafx_actors._raised import kind_of, text_of
from dafx_actors.decisions import Decision, PendingDecision
from dafx_actors.exchange import AgentRunResponse
from dafx_actors.ids import AgentThread
from dafx_actors.transcript import ChatMessage, Content, Json


def told_as_json(kind: str, fields: Mapping[str, Any]) -> str:
    """An update as a JSON object in one line: its kind, and its fields; messages and contents as they are stored."""
    said = {_camel(name): _json_of(value) for name, value in fields.items()}
    return json.dumps({"kind": kind, **said}, separators=(",", ":"))


def content_as_json(content: Content) -> Json:
    """A content as it is stored in a message."""
    return dump_message(ChatMessage("assistant", (content,)))["contents"][0]


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(word.capitalize() for word in rest)


def _json_of(value: Any) -> Json:
    if isinstance(value, ChatMessage):
        return dump_message(value)
    if isinstance(value, get_args(Content)):
        return content_as_json(value)
    if isinstance(value, PendingDecision):
        return {_camel(field.name): _json_of(getattr(value, field.name)) for field in attrs.fields(type(value))}
    if isinstance(value, Decision):
        return dump_decision(value)
    if isinstance(value, AgentRunResponse):
        return _response(cast("AgentRunResponse[Any]", value))
    if isinstance(value, Exception):
        said = {"type": kind_of(value), "message": text_of(value)}
        return dump_error(value) if crosses(value) else said
    if isinstance(value, AgentThread):
        return {"agent": value.agent, "thread": value.thread_id}
    if isinstance(value, datetime):
        return dump_time(value)
    if isinstance(value, tuple):
        return [_json_of(each) for each in cast("tuple[Any, ...]", value)]
    return value


def _response(response: AgentRunResponse[Any]) -> Json:
    return {
        "text": response.text,
        "messages": [dump_message(message) for message in response.messages],
        "usage": dump_usage(response.usage),
        "correlationId": response.correlation_id,
        "thread": _json_of(response.thread),
        "createdAt": dump_time(response.created_at),
        "finishReason": response.finish_reason,
    }
