"""The one place where our types become JSON values and come back.

The stored shapes are those of `durable-agent-entity-state.json`; the shapes of a request are the peer's, with our
own fields beside them. Fields that a type does not know are kept in its `extra`; contents and entries of an
unknown or broken kind are kept whole, as `OpaqueContent` and `OpaqueEntry`. A document that is not a transcript,
or whose major version is newer, is refused.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any, TypeGuard, cast

import attrs
from durabletask.task import RetryPolicy

from dafx_actors._json.shapes import (
    as_list,
    as_number,
    as_object,
    as_text,
    as_whole_number,
    check_json,
    dump_time,
    load_json,
    load_time,
    shown,
)
from dafx_actors._secrets import without, without_in
from dafx_actors.decisions import ACTIONS, Decision, PendingDecision
from dafx_actors.errors import (
    ConfigurationError,
    DafxError,
    InvalidThreadId,
    McpUnreachable,
    MessageTooLarge,
    ModelNotConfigured,
    ResultNotKept,
    TurnCancelled,
    TurnError,
    TurnFailed,
    UnsupportedTranscript,
)
from dafx_actors.exchange import AgentRunResponse, Limits, RunRequest, Unwritten
from dafx_actors.ids import AgentThread
from dafx_actors.transcript import (
    ChatMessage,
    Entry,
    ErrorContent,
    Json,
    Response,
    Transcript,
    UsageStats,
)

if TYPE_CHECKING:
    from cattrs import Converter

_ACTIONS = (*(action for actions in ACTIONS.values() for action in actions), "expire")
SCHEMA_VERSION = "1.1.0"
"""The version of the stored form that is written, and the newest that is understood in full."""


@functools.cache
def _converter() -> Converter:
    # Not at the top: it takes long to make, and programs that only declare agents never need it.
    from dafx_actors._json.stored import make_converter

    return make_converter()


# --- Messages and entries -----------------------------------------------------------------------------------------


def dump_message(message: ChatMessage) -> dict[str, Json]:
    """A message as it is stored."""
    return cast("dict[str, Json]", _converter().unstructure(message))


def load_message(raw: Json) -> ChatMessage:
    """Read a stored message.

    Raises:
        ValueError: It is none: no role, or contents that are not a list of objects.
    """
    try:
        return _converter().structure(raw, ChatMessage)
    except (KeyError, TypeError) as error:
        raise ValueError(f"not a message: {error!r}") from error


def load_messages(raw: Json) -> tuple[ChatMessage, ...]:
    """Read a list of stored messages.

    Raises:
        ValueError: It is none.
    """
    return tuple(load_message(item) for item in as_list(raw))


def dump_usage(usage: UsageStats) -> dict[str, Json]:
    """Token counts as they are stored."""
    return cast("dict[str, Json]", _converter().unstructure(usage))


def load_usage(raw: Json) -> UsageStats:
    """Read stored token counts; none at all count as zero.

    Raises:
        ValueError: It is something else.
    """
    return _converter().structure(_or(raw, {}), UsageStats)


def dump_entry(entry: Entry) -> dict[str, Json]:
    """An entry as it is stored."""
    return cast("dict[str, Json]", _converter().unstructure(entry))


def load_entry(raw: Json) -> Entry:
    """Read a stored entry; one of an unknown or broken kind is kept whole.

    Raises:
        ValueError: It is not even an object.
    """
    kind: Any = Entry
    return cast("Entry", _converter().structure(raw, kind))


# --- The whole document -------------------------------------------------------------------------------------------


def check_document(document: Json) -> Mapping[str, Json]:
    """The `data` of a stored thread, after its version was checked; `{}` where there is no thread yet.

    Raises:
        UnsupportedTranscript: A newer major version, or not a thread at all.
    """
    if document is None:
        return {}
    version = as_object(document).get("schemaVersion") if isinstance(document, Mapping) else None
    if not isinstance(version, str) or not re.fullmatch(r"\d{1,9}\.\d+\.\d+", version):
        raise UnsupportedTranscript(f"schemaVersion is {version!r}", SCHEMA_VERSION)
    if int(version.split(".")[0]) > int(SCHEMA_VERSION.split(".")[0]):
        raise UnsupportedTranscript(f"schemaVersion {version}", SCHEMA_VERSION)
    data: Json = as_object(document).get("data")
    history: Json = as_object(data).get("conversationHistory", []) if isinstance(data, Mapping) else None
    if not isinstance(history, list) or not all(isinstance(entry, Mapping) for entry in cast("list[Json]", history)):
        raise UnsupportedTranscript("`data.conversationHistory` is not a list of objects", SCHEMA_VERSION)
    return as_object(data)


@attrs.frozen(kw_only=True)
class Unfinished:
    """`data.dafx`: the turns of a thread that have not ended."""

    active: str | None
    draft: tuple[ChatMessage, ...]
    waiting: tuple[RunRequest, ...]
    """As versions before `line` kept it: requests as a whole."""
    line: tuple[Mapping[str, Json], ...]
    steered: tuple[RunRequest, ...]
    joined: tuple[str, ...]
    cancelled: Mapping[str, Json]
    asks: Mapping[str, Json]
    attempts: Mapping[str, Json]
    children: Mapping[str, Json]
    progress: Mapping[str, Json]
    given_up: Mapping[str, int]


def load_unfinished(data: Mapping[str, Json]) -> Unfinished:
    """Read `data.dafx` of a stored thread; there is none while no turn runs.

    Raises:
        UnsupportedTranscript: It is broken. Only this package writes it, so it is not guessed at.
    """
    try:
        ours = as_object(_or(data.get("dafx"), {}))
        return Unfinished(
            active=_text(ours, "active") or None,
            draft=load_messages(_or(ours.get("draft"), [])),
            waiting=tuple(load_request(raw) for raw in as_list(_or(ours.get("waiting"), []))),
            line=tuple(_check_place(raw) for raw in as_list(_or(ours.get("line"), []))),
            steered=tuple(load_request(raw) for raw in as_list(_or(ours.get("steered"), []))),
            joined=tuple(as_text(turn) for turn in as_list(_or(ours.get("joined"), []))),
            cancelled=_each(ours, "cancelled", as_object),
            asks=_each(ours, "asks", check_ask),
            attempts=_each(ours, "attempts", _check_attempt),
            children=_each(ours, "children", check_child),
            progress=as_object(_or(ours.get("progress"), {})),
            given_up=_each(ours, "givenUp", as_whole_number),
        )
    except ValueError as error:
        raise UnsupportedTranscript(f"`data.dafx` is broken: {error}", SCHEMA_VERSION) from error


def _each(ours: Mapping[str, Json], field: str, check: Callable[[Json], Json]) -> Mapping[str, Json]:
    return {key: check(raw) for key, raw in as_object(_or(ours.get(field), {})).items()}


def check_ask(raw: Json) -> Mapping[str, Json]:
    """What a person is to decide, as it is kept, if that is what it is.

    Raises:
        ValueError: It is something else.
    """
    ask = as_object(raw)
    _check_texts(ask, "key", "kind", "callId", "tool", "digest")
    if (kind := ask["kind"]) not in ACTIONS:
        raise ValueError(f"`kind` is one of {', '.join(ACTIONS)}, not {shown(kind)}")
    as_object(ask.get("arguments"))
    for field in ("askedAt", *(["deadline"] if ask.get("deadline") is not None else [])):
        load_time(ask.get(field))
    if "decision" in ask:
        check_decision(ask["decision"])
    return ask


def check_decision(raw: Json) -> Mapping[str, Json]:
    """A decision about a call, or what stands for one when nobody made it in time, if that is what it is.

    Raises:
        ValueError: It is something else.
    """
    decision = as_object(raw)
    if (action := decision.get("action")) not in _ACTIONS:
        raise ValueError(f"a decision is one of {', '.join(_ACTIONS)}, not {shown(action)}")
    load_time(decision.get("at"))
    for field in ("by", "reason", "digest", "signature"):
        _text(decision, field)
    if decision.get("arguments") is not None:
        as_object(check_json(decision["arguments"]))
    check_json(decision.get("result"))
    return decision


def check_child(raw: Json) -> Mapping[str, Json]:
    """The turn of an agent that is used as a tool, as it is kept, if that is what it is.

    Raises:
        ValueError: It is something else.
    """
    child = as_object(raw)
    _check_texts(child, "key", "agent", "thread", "correlationId")
    return child


def _check_place(raw: Json) -> Mapping[str, Json]:
    place = as_object(raw)
    _check_texts(place, "correlationId", "digest")
    return place


def _check_attempt(raw: Json) -> Mapping[str, Json]:
    made = as_object(raw)
    as_whole_number(made.get("number"))
    _check_texts(made, "token")
    return made


def _check_texts(document: Mapping[str, Json], *fields: str) -> None:
    for field in fields:
        if not isinstance(value := document.get(field), str):
            raise ValueError(f"`{field}` is a text, not {shown(value)}")  # noqa: TRY004 - bad data, not a bad program


def load_entries(stored: Iterable[Json]) -> tuple[Entry, ...]:
    """Read what a thread remembers."""
    return tuple(load_entry(raw) for raw in stored)


def load_transcript(document: Json, load: Callable[[Sequence[Json]], tuple[Entry, ...]] = load_entries) -> Transcript:
    """Read a stored thread; None is an empty one.

    Args:
        document: As it is stored.
        load: Reads its entries, for who has read most of them before.

    Raises:
        UnsupportedTranscript: A newer major version, or not a thread at all.
    """
    data = check_document(document)
    return Transcript(
        entries=load(data.get("conversationHistory", [])),
        draft=load_unfinished(data).draft,
        schema_version=document["schemaVersion"] if document else SCHEMA_VERSION,
    )


# --- Requests and responses ---------------------------------------------------------------------------------------


def digest(messages: Iterable[ChatMessage], response_schema: Json) -> str:
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
        **_without_none(
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
        "digest": digest(request.messages, request.response_schema),
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
                "contents": [{"$type": "text", "text": _text(document, "message") or ""}],
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
        options=as_object(_or(document.get("options"), {})),
        tool_choice=_text(document, "tool_choice"),
        enable_tool_calls=document.get("enable_tool_calls") is not False,
        limits=None if document.get("limits") is None else load_limits(document["limits"]),
        deadline=None if document.get("deadline") is None else as_number(document["deadline"]),
        created_at=load_time(created) if created else None,
        orchestration_id=_text(document, "orchestrationId"),
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


def _text(document: Mapping[str, Json], field: str) -> str | None:
    value = document.get(field)
    if not isinstance(value, str | None):
        raise ValueError(f"`{field}` is a text, not {value!r}")  # noqa: TRY004 - likewise
    return value


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
        created_at=entry.created_at or datetime.now(timezone.utc),
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
    contents = (as_object(content) for message in messages for content in as_list(_or(message.get("contents"), [])))
    if any(content.get("$type") == "error" for content in contents):
        load_response(raw, thread)


# --- Decisions ----------------------------------------------------------------------------------------------------


def load_pending(thread: AgentThread, turn: str, raw: Json) -> PendingDecision:
    """Read what a turn of `thread` asks, as it is kept under `data.dafx.asks`."""
    return PendingDecision(
        thread=thread,
        correlation_id=turn,
        key=raw["key"],
        idempotency_key=raw.get("callKey") or raw["key"],
        kind=raw["kind"],
        call_id=raw["callId"],
        tool=raw["tool"],
        arguments=raw["arguments"],
        digest=raw["digest"],
        asked_at=load_time(raw["askedAt"]),
        deadline=load_time(raw["deadline"]) if raw.get("deadline") else None,
    )


def dump_decision(decision: Decision) -> dict[str, Json]:
    """A decision as it travels, and as the transcript keeps it."""
    document = {
        "action": decision.action,
        "by": decision.by,
        "at": dump_time(decision.at),
        "reason": decision.reason or None,
        "arguments": None if decision.arguments is None else dict(decision.arguments),
    }
    return {**_without_none(document), **({"result": decision.result} if decision.action == "result" else {})}


def load_decision(raw: Json) -> Decision:
    """Read a decision that a thread gave."""
    return Decision(
        action=raw["action"],
        by=raw.get("by") or "",
        at=load_time(raw["at"]),
        reason=raw.get("reason") or "",
        arguments=raw.get("arguments"),
        result=raw.get("result"),
    )


def load_cancellation(response: Json) -> TurnCancelled | None:
    """The cancellation that a stored response ends with, or None."""
    entry = load_entry(response)
    content = entry.error if isinstance(entry, Response) else None
    error = None if content is None else load_error({"type": content.error_code, "fields": content.details})
    return error if isinstance(error, TurnCancelled) else None


# --- Errors -------------------------------------------------------------------------------------------------------


def _turn_errors(root: type[TurnError] = TurnError) -> dict[str, type[TurnError]]:
    found: dict[str, type[TurnError]] = {}
    for cls in root.__subclasses__():
        found |= {cls.__name__: cls, **_turn_errors(cls)}
    return found


_CROSSING: dict[str, type[DafxError]] = {
    **_turn_errors(),
    **{
        cls.__name__: cls
        for cls in (
            UnsupportedTranscript,
            InvalidThreadId,
            ConfigurationError,
            ModelNotConfigured,
            MessageTooLarge,
            ResultNotKept,
            McpUnreachable,
        )
    },
}


def dump_error(error: DafxError) -> dict[str, Json]:
    """A typed error as JSON, with its sentence for whoever reads it without us.

    Raises:
        KeyError: It is not one of those that cross processes.
    """
    _CROSSING[type(error).__name__]
    fields = without_in(attrs.asdict(error))  # type: ignore[arg-type]
    return {"message": without(str(error)), "type": type(error).__name__, "fields": fields}


def load_error(raw: Json) -> DafxError | None:
    """Rebuild a typed error from JSON or its text, or give None where it is something else.

    Fields that this version does not know are left out, so that an older client understands a newer worker.
    """
    try:
        document = as_object(load_json(raw) if isinstance(raw, str) else raw)
        cls = _CROSSING[document["type"]]
        known = {field.name for field in attrs.fields(cls)}  # type: ignore[arg-type]
        made = cls(**{name: value for name, value in as_object(document["fields"]).items() if name in known})
        str(made)  # fields of other types than it says would only show when somebody reads it
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
        return None
    return made


def crosses(error: BaseException) -> TypeGuard[DafxError]:
    """Whether `error` can be sent to another process and rebuilt there."""
    return type(error) in _CROSSING.values()


def error_content(error: DafxError) -> ErrorContent:
    """An error as a transcript keeps it."""
    document = dump_error(error)
    return ErrorContent(document["message"], document["type"], document["fields"])


def error_of(content: ErrorContent, thread: AgentThread, correlation_id: str) -> DafxError:
    """The error that a transcript kept; one stored by somebody else becomes a `TurnFailed`."""
    kept = load_error({"type": content.error_code, "fields": content.details})
    return kept or TurnFailed(
        thread.agent, correlation_id, content.error_code or "an error", content.message or str(content.details)
    )


def _or(value: Json, default: Json) -> Json:
    """`default` for null and for nothing else: what is empty but of another kind is a mistake."""
    return default if value is None else value


def _without_none(document: dict[str, Json]) -> dict[str, Json]:
    return {key: value for key, value in document.items() if value is not None}
