"""Requests, limits, responses and decisions, as they travel. A request has the peer's form, with our fields beside."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import attrs
from durabletask.task import RetryPolicy

from dafx_actors._json.books import DecisionRecord
from dafx_actors._json.crossing import error_of, load_error
from dafx_actors._json.messages import dump_entry, dump_message, load_entry, load_messages
from dafx_actors._json.shapes import (
    as_list,
    as_number,
    as_object,
    dump_time,
    load_json,
    load_time,
    or_default,
    text_or_none,
    without_none,
)
from dafx_actors.decisions import Action, Decision
from dafx_actors.errors import TurnCancelled
from dafx_actors.exchange import AgentRunResponse, Limits, RunRequest, Unwritten
from dafx_actors.ids import AgentThread
from dafx_actors.transcript import ChatMessage, Json, Response, UsageStats


def request_digest(messages: Iterable[ChatMessage], response_schema: Json) -> str:
    """A hash of what is asked, to tell the same request sent again from another one under the same id."""
    asked = [{**dump_message(message), "createdAt": None} for message in messages]
    return hashlib.sha256(json.dumps([asked, response_schema], sort_keys=True).encode()).hexdigest()[:32]


def dump_request(request: RunRequest) -> dict[str, Json]:
    """A request as it travels: the peer's `RunRequest`, with our own fields beside its.

    Its text is in it once. Where the request is one text it is in `message`, as the peer has it, and `messages` is null
    (the peer's own requests do not have that field); else it is in `messages`.
    """
    first = request.messages[0]
    is_one_text = request.messages == (ChatMessage(first.role, first.text),)
    return {
        **without_none(
            {
                "message": first.text if is_one_text else None,
                "role": first.role,
                "correlationId": request.correlation_id,
                "request_response_format": "text" if request.response_schema is None else "json",
                "created_at": dump_time(request.created_at) if request.created_at else None,
                "orchestrationId": request.orchestration_id,
                "options": dict(request.options) or None,
                "enable_tool_calls": request.enable_tool_calls,
                "tool_choice": request.tool_choice,
                "limits": None if request.limits is None else dump_limits(request.limits),
                "deadline": request.deadline,
                "responseSchema": request.response_schema,
                "stream": True if request.stream else None,
            }
        ),
        "messages": None if is_one_text else [dump_message(message) for message in request.messages],
    }


def dump_question(request: RunRequest) -> dict[str, Json]:
    """What a turn asks its thread with that has told it the whole request before: its id, and the digest.

    Versions that do not know this form refuse it, as a request without a message; then the whole request is sent.
    """
    return {
        "correlationId": request.correlation_id,
        "digest": request_digest(request.messages, request.response_schema),
        "messages": [],
    }


def load_request(raw: Json) -> RunRequest:
    """Read a request, of ours or of the peer's (which has one text in `message`).

    Raises:
        ValueError: It is none. A class that it names is not imported: only its JSON schema would count.
    """
    document = as_object(load_json(raw) if isinstance(raw, str) else raw)
    correlation_id = document.get("correlationId")
    if not isinstance(correlation_id, str) or not correlation_id:
        raise ValueError("a request needs a `correlationId`")
    messages = document.get("messages")
    if messages is None:
        messages = [
            {
                "role": str(document.get("role") or "user").strip().lower(),
                "contents": [{"$type": "text", "text": text_or_none(document, "message") or ""}],
            }
        ]
    if not messages:
        raise ValueError("a request needs a message")
    created = document.get("created_at")
    schema = document.get("responseSchema")
    return RunRequest(
        correlation_id=correlation_id,
        messages=load_messages(messages),
        response_schema=None if schema is None else as_object(schema),
        options=as_object(or_default(document.get("options"), {})),
        tool_choice=text_or_none(document, "tool_choice"),
        enable_tool_calls=document.get("enable_tool_calls") is not False,
        limits=None if document.get("limits") is None else load_limits(document["limits"]),
        deadline=None if document.get("deadline") is None else as_number(document["deadline"]),
        created_at=load_time(created) if created else None,
        orchestration_id=text_or_none(document, "orchestrationId"),
        stream=document.get("stream") is True,
    )


def dump_limits(limits: Limits) -> dict[str, Json]:
    """What a turn may take, as it travels: what nobody wrote is left out."""
    return {name: value for name, value in attrs.asdict(limits).items() if not isinstance(value, Unwritten)}


def load_limits(raw: Json) -> Limits:
    """Read what a turn may take. Null is no limit; what is not named is as ever, what is not known is left out.

    Raises:
        ValueError: It is something else.
    """
    document = as_object(raw)
    given = {field.name: document[field.name] for field in attrs.fields(Limits) if field.name in document}
    if wrong := [name for name, value in given.items() if not isinstance(value, int | float | None)]:
        raise ValueError(f"`limits.{wrong[0]}` is a number, not {given[wrong[0]]!r}")
    return Limits(**given)


def dump_retry(policy: RetryPolicy) -> dict[str, Json]:
    """How failures are retried, in seconds, for the history of a turn."""
    longest, timeout = policy.max_retry_interval, policy.retry_timeout
    return {
        "attempts": policy.max_number_of_attempts,
        "first": policy.first_retry_interval.total_seconds(),
        "coefficient": policy.backoff_coefficient,
        "longest": None if longest is None else longest.total_seconds(),
        "timeout": None if timeout is None else timeout.total_seconds(),
    }


def load_retry(raw: Json) -> RetryPolicy:
    """Read what `dump_retry` wrote."""
    longest, timeout = raw["longest"], raw["timeout"]
    return RetryPolicy(
        first_retry_interval=timedelta(seconds=raw["first"]),
        max_number_of_attempts=raw["attempts"],
        backoff_coefficient=raw["coefficient"],
        max_retry_interval=None if longest is None else timedelta(seconds=longest),
        retry_timeout=None if timeout is None else timedelta(seconds=timeout),
    )


def dump_response(response: Response) -> dict[str, Json]:
    """A response as a turn gives it to its caller: as it is stored."""
    return dump_entry(response)


def load_response(raw: Json, thread: AgentThread) -> AgentRunResponse[Any]:
    """Read what a turn of `thread` gave.

    Raises:
        ValueError: It is no response.
        TurnError: It is one that holds an error.
    """
    entry = load_entry(raw)
    if not isinstance(entry, Response) or entry.correlation_id is None:
        raise ValueError(f"not a response: {raw!r}")
    if entry.error is not None:
        raise error_of(entry.error, thread, entry.correlation_id)
    return AgentRunResponse(
        messages=entry.messages,
        usage=entry.usage or UsageStats(),
        correlation_id=entry.correlation_id,
        thread=thread,
        created_at=entry.created_at or datetime.now(UTC),
        finish_reason=finish_reason_in(raw),
    )


def finish_reason_in(response: Json) -> str | None:
    """Why the answer in a stored response ended, where that is known."""
    about: Json = as_object(response).get("dafx") if isinstance(response, Mapping) else None
    reason: Json = as_object(about).get("finishReason") if isinstance(about, Mapping) else None
    return reason if isinstance(reason, str) else None


def raise_error_in(raw: Json, thread: AgentThread) -> None:
    """Raise the error that a stored response of `thread` holds, if it does.

    Raises:
        ValueError: It is no response.
        TurnError: It holds this.
    """
    messages = map(as_object, as_list(as_object(raw).get("messages")))
    # A message without contents has none stored.
    contents = (
        as_object(content) for message in messages for content in as_list(or_default(message.get("contents"), []))
    )
    if any(content.get("$type") == "error" for content in contents):
        load_response(raw, thread)


def dump_decision(decision: Decision) -> dict[str, Json]:
    """A decision as it travels, and as the transcript keeps it."""
    document = {
        "action": decision.action,
        "by": decision.by,
        "at": dump_time(decision.at),
        "reason": decision.reason or None,
        "arguments": None if decision.arguments is None else dict(decision.arguments),
    }
    return {**without_none(document), **({"result": decision.result} if decision.action == "result" else {})}


def load_decision(record: DecisionRecord) -> Decision:
    """A decision that a thread has on record, as its callers get it."""
    return Decision(
        action=cast("Action", record.action),
        by=record.by,
        at=record.at,
        reason=record.reason,
        arguments=record.arguments,
        result=record.result,
    )


def load_cancellation(response: Json) -> TurnCancelled | None:
    """The cancellation that a stored response ends with, or None."""
    entry = load_entry(response)
    content = entry.error if isinstance(entry, Response) else None
    error = None if content is None else load_error({"type": content.error_code, "fields": content.details})
    return error if isinstance(error, TurnCancelled) else None
