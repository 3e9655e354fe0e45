"""What the peer (`agent-framework-durabletask`) sends and what it wants back: JSON to JSON, and nothing else.

Threads are stored in the same form by both. What differs is what travels: the peer sends one text, and its callers in
orchestrations read an `AgentResponse` of its framework, whose contents have other names than the stored ones.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import attrs

from dafx_actors._json.requests import dump_request
from dafx_actors._json.shapes import as_list, as_object, load_json
from dafx_actors.errors import UnsupportedByPeer
from dafx_actors.exchange import RunRequest
from dafx_actors.transcript import ChatMessage, Json, TextContent

_KINDS: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "text": ("text", {"text": "text"}),
    "reasoning": ("text_reasoning", {"text": "text"}),
    "data": ("data", {"uri": "uri", "mediaType": "media_type"}),
    "uri": ("uri", {"uri": "uri", "mediaType": "media_type"}),
    "error": ("error", {"message": "message", "errorCode": "error_code", "details": "error_details"}),
    "functionCall": ("function_call", {"callId": "call_id", "name": "name", "arguments": "arguments"}),
    "functionResult": ("function_result", {"callId": "call_id", "result": "result"}),
    "hostedFile": ("hosted_file", {"fileId": "file_id"}),
    "hostedVectorStore": ("hosted_vector_store", {"vectorStoreId": "vector_store_id"}),
    "usage": ("usage", {"usage": "usage_details"}),
}
"""Contents and their fields: as they are stored, and as the peer's framework names them."""
_STORED = {theirs: (ours, {b: a for a, b in fields.items()}) for ours, (theirs, fields) in _KINDS.items()}
_COUNTS = {
    "inputTokenCount": "input_token_count",
    "outputTokenCount": "output_token_count",
    "totalTokenCount": "total_token_count",
}
_STORED_COUNTS = {theirs: ours for ours, theirs in _COUNTS.items()}


# --- Requests -----------------------------------------------------------------------------------------------------


def sent_by_peer(raw: Json) -> bool:
    """Whether a request has the peer's form: one text, where ours has whole messages."""
    document: Json = _parsed(raw)
    return isinstance(document, Mapping) and "messages" not in document


def waits_for_answer(raw: Json) -> bool:
    """Whether the sender of a request waits inside an orchestration, so that the operation must give the answer.

    An entity is not told whether it was called or signalled: all requests of an orchestration name it, and those that
    are signalled say that nobody waits.
    """
    document = as_object(_parsed(raw))
    return bool(document.get("orchestrationId")) and document.get("wait_for_response") is not False


def dump_for_peer(agent: str, request: RunRequest) -> dict[str, Json]:
    """A request in the peer's form.

    A schema travels as the option `response_format`, which the peer gives to its model as it is: the peer's own field
    names a class that its worker would import.

    Raises:
        UnsupportedByPeer: It asks for what the peer cannot do.
    """
    if request.limits is not None or request.deadline is not None:
        raise UnsupportedByPeer(agent, "hold a turn to limits or to a deadline of its own")
    contents = [content for message in request.messages for content in message.contents]
    if not all(isinstance(content, TextContent) for content in contents):
        raise UnsupportedByPeer(agent, "take other contents than text")
    role = request.messages[0].role
    if any(message.role != role for message in request.messages):
        raise UnsupportedByPeer(agent, "take messages of several roles in one request")
    text = "\n".join(message.text for message in request.messages)
    options = dict(request.options)
    if request.response_schema is not None:
        asked = {"name": "answer", "schema": dict(request.response_schema)}
        options.setdefault("response_format", {"type": "json_schema", "json_schema": asked})
    if request.tool_choice is not None:
        options.setdefault("tool_choice", request.tool_choice)
    one = attrs.evolve(
        request,
        messages=(ChatMessage(role, text),),
        options=options,
        response_schema=None,
        tool_choice=None,
        stream=False,
    )
    return {key: value for key, value in dump_request(one).items() if key != "messages"}


def _parsed(raw: Json) -> Json:
    try:
        return load_json(raw) if isinstance(raw, str) else raw
    except ValueError:
        return None


# --- Responses ----------------------------------------------------------------------------------------------------


def dump_agent_response(stored: Json) -> dict[str, Json]:
    """A stored response as an `AgentResponse` of the peer, for its callers in orchestrations."""
    response = as_object(stored)
    return {
        "type": "agent_response",
        "messages": [_dump_message(as_object(message)) for message in response["messages"]],
        **({"created_at": response["createdAt"]} if response.get("createdAt") else {}),
        **({"usage_details": _dump_usage(response["usage"])} if response.get("usage") else {}),
    }


def load_agent_response(raw: Json, correlation_id: str) -> dict[str, Json]:
    """An `AgentResponse` of the peer as a stored response.

    Raises:
        ValueError: It is none.
    """
    response = as_object(raw)
    if response.get("type") != "agent_response":
        raise ValueError(f"not a response of the peer: {raw!r}")
    messages = [_load_message(as_object(message)) for message in as_list(response.get("messages") or [])]
    return {
        "$type": "response",
        "correlationId": correlation_id,
        "messages": messages,
        **({"createdAt": response["created_at"]} if response.get("created_at") else {}),
        **({"usage": _load_usage(response["usage_details"])} if response.get("usage_details") else {}),
    }


def _dump_message(message: Mapping[str, Json]) -> dict[str, Json]:
    author = message.get("authorName")
    return {
        "type": "message",
        "role": message["role"],
        "contents": [_dump_content(as_object(content)) for content in message.get("contents") or ()],
        **({"author_name": author} if author else {}),
    }


def _load_message(message: Mapping[str, Json]) -> dict[str, Json]:
    author = message.get("author_name")
    return {
        "role": message.get("role") or "assistant",
        "contents": [_load_content(as_object(content)) for content in as_list(message.get("contents") or [])],
        **({"authorName": author} if author else {}),
    }


def _dump_content(content: Mapping[str, Json]) -> dict[str, Json]:
    kind, fields = _KINDS.get(str(content.get("$type")), ("", {}))
    if not kind:
        # What has no name of its own is what the peer wrapped, or from a version that we do not know.
        kept: Json = content.get("content", dict(content))
        if isinstance(kept, Mapping) and "type" in kept:
            return dict(as_object(kept))
        return {"type": "unknown", "additional_properties": {"content": kept}}
    found = _renamed(content, fields)
    if "usage_details" in found:
        found["usage_details"] = _dump_usage(found["usage_details"])
    if "error_details" in found and not isinstance(found["error_details"], str):
        found["error_details"] = json.dumps(found["error_details"])
    return {"type": kind, **found}


def _load_content(content: Mapping[str, Json]) -> dict[str, Json]:
    kind, fields = _STORED.get(str(content.get("type")), ("unknown", {}))
    if kind == "unknown":
        return {"$type": kind, "content": dict(content)}
    found = _renamed(content, fields)
    if kind == "text":
        found.setdefault("text", "")
    if "usage" in found:
        found["usage"] = _load_usage(found["usage"])
    if isinstance(found.get("arguments"), str):
        arguments = _parsed(found["arguments"])
        found["arguments"] = arguments if isinstance(arguments, Mapping) else {}
    return {"$type": kind, **found}


def _dump_usage(usage: Json) -> dict[str, Json]:
    counts = {_COUNTS.get(name, name): count for name, count in as_object(usage).items() if name != "extensionData"}
    return {**counts, **as_object(usage.get("extensionData") or {})}


def _load_usage(usage: Json) -> dict[str, Json]:
    counts = _renamed(as_object(usage), _STORED_COUNTS)
    others = {name: count for name, count in usage.items() if name not in _STORED_COUNTS}
    return {**counts, **({"extensionData": others} if others else {})}


def _renamed(document: Mapping[str, Json], names: Mapping[str, str]) -> dict[str, Json]:
    """The fields that `names` has, under their other names; a null counts as absent."""
    return {new: document[old] for old, new in names.items() if document.get(old) is not None}
