"""What is stored: every form in, the same form out; what cannot be read is refused, never emptied."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]  # its stubs are a package of their own
import pytest
from durabletask.task import RetryPolicy
from hypothesis import given
from hypothesis import strategies as st

from dafx_actors._json import peer as _peer_forms
from dafx_actors._json import shapes as _json
from dafx_actors._json.books import DecisionRecord, QuestionRecord
from dafx_actors._json.crossing import crosses, dump_error, error_content, load_error
from dafx_actors._json.document import load_transcript
from dafx_actors._json.messages import dump_entry, dump_message, load_entry, load_message, load_messages, load_usage
from dafx_actors._json.requests import (
    dump_decision,
    dump_request,
    dump_response,
    dump_retry,
    finish_reason_in,
    load_cancellation,
    load_decision,
    load_limits,
    load_request,
    load_response,
    load_retry,
    raise_error_in,
    request_digest,
)
from dafx_actors._rules import state as _state
from dafx_actors.decisions import Decision
from dafx_actors.errors import (
    CorrelationConflict,
    DafxError,
    ModelError,
    ThreadBusy,
    TurnCancelled,
    TurnError,
    TurnFailed,
    UnsupportedTranscript,
)
from dafx_actors.exchange import Limits, RunRequest
from dafx_actors.ids import AgentThread
from dafx_actors.transcript import (
    ChatMessage,
    DataContent,
    ErrorContent,
    FunctionCallContent,
    FunctionResultContent,
    HostedFileContent,
    HostedVectorStoreContent,
    OpaqueContent,
    OpaqueEntry,
    Request,
    Response,
    TextContent,
    TextReasoningContent,
    UnknownContent,
    UriContent,
    UsageContent,
    UsageStats,
)

SCHEMA: dict[str, Any] = json.loads((Path(__file__).parent / "data" / "durable-agent-entity-state.json").read_text())
"""Microsoft's published schema; see `data/README.md`."""
THREAD = AgentThread("Joker", "t1")
NOON = datetime(2025, 1, 2, 12, tzinfo=UTC)


def valid(document: Any, part: str | None = None) -> None:
    """Fail unless `document` fits the published schema, or that part of it."""
    wanted = SCHEMA if part is None else {"$defs": SCHEMA["$defs"], "$ref": f"#/$defs/{part}"}
    validator: Any = jsonschema.Draft202012Validator(wanted)
    validator.validate(document)


CONTENTS: list[dict[str, Any]] = [
    {"$type": "text", "text": "Hello"},
    {"$type": "text", "text": ""},
    {"$type": "reasoning", "text": "Hm."},
    {"$type": "reasoning"},
    {"$type": "data", "uri": "data:text/plain;base64,eA==", "mediaType": "text/plain"},
    {"$type": "data", "uri": "data:,x"},
    {"$type": "uri", "uri": "https://example.com/a.png", "mediaType": "image/png"},
    {"$type": "error"},
    {"$type": "error", "message": "no", "errorCode": "E1", "details": {"deep": [None, {"null": None}]}},
    {"$type": "error", "details": "text"},
    {"$type": "functionCall", "callId": "c", "name": "f"},
    {"$type": "functionCall", "callId": "c", "name": "f", "arguments": {"x": None, "y": [1, 2.5, True]}},
    {"$type": "functionResult", "callId": "c"},
    {"$type": "functionResult", "callId": "c", "result": ["a", {"b": None}]},
    {"$type": "functionResult", "callId": "c", "result": False},
    {"$type": "functionResult", "callId": "c", "result": 0},
    {"$type": "functionResult", "callId": "c", "result": ""},
    {"$type": "hostedFile", "fileId": "f"},
    {"$type": "hostedVectorStore", "vectorStoreId": "v"},
    {"$type": "usage", "usage": {"inputTokenCount": 1, "outputTokenCount": 2, "totalTokenCount": 3}},
    {"$type": "usage", "usage": {}},
    {"$type": "usage", "usage": {"inputTokenCount": 1, "cachedTokenCount": 7}},
    {"$type": "unknown", "content": {"what": None}},
    {"$type": "unknown", "content": None},
]


@pytest.mark.parametrize("raw", CONTENTS, ids=json.dumps)
def test_each_content_of_the_schema_comes_back_as_it_was(raw: dict[str, Any]) -> None:
    stored = {"role": "assistant", "contents": [raw]}
    valid(stored, "chatMessage")
    message = load_message(stored)
    assert not isinstance(message.contents[0], OpaqueContent)
    assert dump_message(message) == stored


@pytest.mark.parametrize("raw", CONTENTS, ids=json.dumps)
def test_fields_that_a_content_does_not_know_survive(raw: dict[str, Any]) -> None:
    stored = {"role": "user", "contents": [{**raw, "annotations": [{"a": None}], "nothing": None}]}
    assert dump_message(load_message(stored)) == stored


def test_the_samples_name_every_content_of_the_schema() -> None:
    kinds = {ref["$ref"].split("/")[-1] for ref in SCHEMA["$defs"]["chatContentItem"]["oneOf"]}
    named = {SCHEMA["$defs"][kind]["properties"]["$type"]["const"] for kind in kinds}
    assert {raw["$type"] for raw in CONTENTS} == named


@pytest.mark.parametrize(
    "raw",
    [
        {"$type": "hologram", "rays": 3},
        {"$type": "text"},
        {"$type": "text", "text": 5},
        {"$type": ["text"], "text": "x"},
        {"$type": None, "text": "x"},
        {"text": "no type"},
        {"$type": "functionCall", "callId": "c", "name": "f", "arguments": "{}"},
    ],
    ids=json.dumps,
)
def test_a_content_of_an_unknown_or_broken_kind_is_kept_whole(raw: dict[str, Any]) -> None:
    stored = {"role": "user", "contents": [{"$type": "text", "text": "x"}, raw]}
    message = load_message(stored)
    assert message.contents == (TextContent("x"), OpaqueContent(raw))
    assert dump_message(message) == stored


def test_a_null_field_counts_as_absent() -> None:
    message = load_message({"role": "user", "authorName": None, "createdAt": None, "contents": None})
    assert message == ChatMessage("user")


ENTRIES: list[dict[str, Any]] = [
    {"$type": "request", "correlationId": "c", "messages": []},
    {
        "$type": "request",
        "correlationId": "c",
        "messages": [{"role": "user", "contents": [{"$type": "text", "text": "x"}], "extraProperty": 1}],
        "createdAt": "2025-01-02T12:00:00+00:00",
        "orchestrationId": "o",
        "responseType": "json",
        "responseSchema": {"type": "object", "default": None},
        "unheardOf": {"a": None},
    },
    {
        "$type": "response",
        "correlationId": "c",
        "messages": [{"role": "assistant", "authorName": "J", "createdAt": "2025-01-02T12:00:00.123456+00:00"}],
        "createdAt": "2025-01-02T12:00:00+00:00",
        "usage": {"inputTokenCount": 1, "outputTokenCount": 2, "totalTokenCount": 3},
        "isContinuable": None,
    },
]


@pytest.mark.parametrize("raw", ENTRIES, ids=json.dumps)
def test_an_entry_comes_back_as_it_was(raw: dict[str, Any]) -> None:
    entry = load_entry(raw)
    assert isinstance(entry, Request | Response)
    # A message without contents gains the empty list that stands for them; nothing else changes.
    expected = json.loads(json.dumps(raw))
    for message in expected["messages"]:
        message.setdefault("contents", [])
    dumped = dump_entry(entry)
    for message in dumped["messages"]:
        message.setdefault("contents", [])
    assert dumped == expected


def test_an_entry_without_a_correlation_id_stays_valid() -> None:
    entry = load_entry({"$type": "response"})
    assert entry == Response(correlation_id=None, messages=())
    dumped = dump_entry(entry)
    assert "correlationId" not in dumped
    valid(dumped, "agentResponse")


def test_an_entry_whose_messages_are_null_has_none() -> None:
    entry = load_entry({"$type": "response", "correlationId": "c", "messages": None})
    assert entry == Response(correlation_id="c", messages=())


BROKEN_ENTRIES: list[dict[str, Any]] = [
    {"$type": "compaction", "of": 3},
    {"$type": ["request"]},
    {"$type": {"a": 1}},
    {},
    {"$type": "request", "messages": {}},
    {"$type": "request", "messages": [{"role": "boss"}]},
    {"$type": "request", "messages": [{"role": ["user"]}]},
    {"$type": "request", "messages": [{"role": "user", "contents": {}}]},
    {"$type": "request", "messages": [{"role": "user", "contents": "text"}]},
    {"$type": "request", "messages": [5]},
    {"$type": "request", "createdAt": "yesterday"},
    {"$type": "request", "createdAt": 5},
    {"$type": "response", "usage": {"inputTokenCount": "many"}},
    {"$type": "response", "correlationId": 5},
]


@pytest.mark.parametrize("raw", BROKEN_ENTRIES, ids=json.dumps)
def test_an_entry_of_an_unknown_or_broken_kind_is_kept_whole(raw: dict[str, Any]) -> None:
    entry = load_entry(raw)
    assert entry == OpaqueEntry(raw)
    assert dump_entry(entry) == raw


# --- Times --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2025-01-02T12:00:00Z", NOON),
        ("2025-01-02T12:00:00z", NOON),
        ("2025-01-02T12:00:00", NOON),
        ("2025-01-02T14:00:00+02:00", NOON),
        ("2025-01-02T12:00:00.1234567Z", NOON.replace(microsecond=123456)),
        ("2025-01-02T14:00:00.1234567+02:00", NOON.replace(microsecond=123456)),
        ("2025-01-02T12:00:00.5Z", NOON.replace(microsecond=500000)),
        ("2025-01-02T12:00:00.123Z", NOON.replace(microsecond=123000)),
    ],
)
def test_times_of_dotnet_python_and_javascript_are_read(text: str, moment: datetime) -> None:
    assert _json.load_time(text) == moment
    assert _json.load_time(text).tzinfo is not None


@pytest.mark.parametrize("bad", ["", "Z", "noon", 5, None, [], "2025-13-01T00:00:00Z", "0001-01-01T00:00:00+05:00"])
def test_what_is_no_time_is_a_value_error(bad: Any) -> None:
    with pytest.raises(ValueError, match=r".+"):
        _json.load_time(bad)


def test_a_time_is_written_in_utc() -> None:
    assert _json.dump_time(NOON.astimezone(timezone(timedelta(hours=5)))) == "2025-01-02T12:00:00+00:00"


@pytest.fixture
def far_from_utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.usefixtures("far_from_utc")
def test_a_time_without_a_zone_is_utc_on_every_machine() -> None:
    assert _json.dump_time(datetime(2025, 1, 2, 12)) == "2025-01-02T12:00:00+00:00"


@given(st.datetimes(min_value=datetime(1, 1, 3), max_value=datetime(9999, 12, 29), timezones=st.timezones()))
def test_every_time_survives(moment: datetime) -> None:
    # In UTC: Python holds no two times equal where one is of an hour that daylight saving repeats.
    assert _json.load_time(_json.dump_time(moment)) == moment.astimezone(UTC)


# --- The whole document -------------------------------------------------------------------------------------------


def document(version: str = "1.1.0", *entries: Any, **data: Any) -> dict[str, Any]:
    return {"schemaVersion": version, "data": {"conversationHistory": list(entries), **data}}


@pytest.mark.parametrize("version", ["1.0.0", "1.1.0", "1.2.0", "1.99.7", "0.9.0"])
def test_every_version_up_to_the_same_major_is_read(version: str) -> None:
    transcript = load_transcript(document(version, *ENTRIES))
    assert (len(transcript.entries), transcript.schema_version) == (3, version)


@pytest.mark.parametrize("version", ["2.0.0", "10.0.0", f"{'9' * 5000}.0.0"])
def test_a_newer_major_version_is_refused(version: str) -> None:
    with pytest.raises(UnsupportedTranscript, match="Upgrade dafx_actors"):
        load_transcript(document(version))
    with pytest.raises(UnsupportedTranscript, match="Nothing was changed"):
        _state.load(document(version))


BROKEN: list[Any] = [
    {},
    [],
    "",
    0,
    False,
    "text",
    {"schemaVersion": "1.1.0"},
    {"schemaVersion": "1.1.0", "data": None},
    {"schemaVersion": "1.1.0", "data": []},
    {"schemaVersion": "1.1.0", "data": {"conversationHistory": None}},
    {"schemaVersion": "1.1.0", "data": {"conversationHistory": {}}},
    {"schemaVersion": "1.1.0", "data": {"conversationHistory": [1]}},
    {"schemaVersion": "1.1", "data": {"conversationHistory": []}},
    {"schemaVersion": 1, "data": {"conversationHistory": []}},
    {"data": {"conversationHistory": []}},
    document(dafx=[]),
    document(dafx="x"),
    document(dafx={"draft": 5}),
    document(dafx={"draft": [{"role": "boss"}]}),
    document(dafx={"waiting": 5}),
    document(dafx={"waiting": [5]}),
    document(dafx={"waiting": [{"correlationId": "c", "messages": []}]}),
    document(dafx={"active": 5}),
    document(dafx={"steered": [5]}),
    document(dafx={"line": [5]}),
    document(dafx={"line": [{"correlationId": "c2"}]}),
    document(dafx={"joined": "c2"}),
    document(dafx={"cancelled": []}),
    document(dafx={"asks": "x"}),
    document(dafx={"attempts": 5}),
]


@pytest.mark.parametrize("load", [load_transcript, _state.load], ids=["transcript", "thread"])
@pytest.mark.parametrize("broken", BROKEN, ids=json.dumps)
def test_what_is_no_thread_is_refused_and_not_taken_for_an_empty_one(load: Callable[[Any], Any], broken: Any) -> None:
    with pytest.raises(UnsupportedTranscript):
        load(broken)


def test_no_document_is_an_empty_thread() -> None:
    assert load_transcript(None).entries == ()
    assert _state.load(None).length == 0


def test_iterating_gives_the_messages_and_the_draft() -> None:
    draft = [{"role": "assistant", "contents": [{"$type": "text", "text": "so far"}]}]
    transcript = load_transcript(document("1.1.0", *ENTRIES, {"$type": "other"}, dafx={"draft": draft}))
    assert [message.text for message in transcript] == ["x", "", "so far"]


# --- What we write fits the schema --------------------------------------------------------------------------------

texts = st.text(max_size=20)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=8,
)
objects = st.dictionaries(texts, json_values, max_size=3)
counts = st.integers(min_value=0)
usages = st.builds(UsageStats, counts, counts, counts)
contents = st.one_of(
    st.builds(TextContent, texts),
    st.builds(TextReasoningContent, texts),
    st.builds(DataContent, texts, st.none() | texts),
    st.builds(UriContent, texts, texts),
    st.builds(ErrorContent, st.none() | texts, st.none() | texts, json_values),
    st.builds(FunctionCallContent, texts, texts, objects),
    st.builds(FunctionResultContent, texts, json_values),
    st.builds(HostedFileContent, texts),
    st.builds(HostedVectorStoreContent, texts),
    st.builds(UsageContent, usages),
    st.builds(UnknownContent, json_values),
)
moments = st.datetimes(min_value=datetime(1, 1, 3), max_value=datetime(9999, 12, 29)).map(
    lambda moment: moment.replace(tzinfo=UTC)
)
messages = st.builds(
    ChatMessage,
    st.sampled_from(["user", "assistant", "system", "tool"]),
    st.lists(contents, max_size=4).map(tuple),
    author_name=st.none() | texts,
    created_at=st.none() | moments,
)
entries = st.one_of(
    st.builds(
        Request,
        correlation_id=st.none() | texts,
        messages=st.lists(messages, max_size=3).map(tuple),
        created_at=st.none() | moments,
        orchestration_id=st.none() | texts,
        response_type=st.none() | texts,
        response_schema=st.none() | objects,
    ),
    st.builds(
        Response,
        correlation_id=st.none() | texts,
        messages=st.lists(messages, max_size=3).map(tuple),
        created_at=st.none() | moments,
        usage=st.none() | usages,
    ),
)


@given(entries)
def test_every_entry_that_we_write_is_valid_and_is_read_back_equal(entry: Request | Response) -> None:
    raw = json.loads(json.dumps(dump_entry(entry)))
    valid(document("1.1.0", raw))
    valid(raw, "agentRequest" if isinstance(entry, Request) else "agentResponse")
    assert load_entry(raw) == entry


# --- Requests -----------------------------------------------------------------------------------------------------

amounts = st.none() | st.integers(min_value=1)
limits = st.builds(Limits, steps=amounts, tokens=amounts, seconds=st.none() | st.floats(min_value=0.1, max_value=1e9))


def test_the_peers_request_is_read() -> None:
    raw = {
        "message": "Tell me a joke",
        "enable_tool_calls": True,
        "wait_for_response": True,
        "role": "user",
        "request_response_format": "text",
        "created_at": "2025-01-02T12:00:00+00:00",
        "correlationId": "c1",
        "orchestrationId": "o1",
        "options": {"temperature": 0.5},
    }
    assert load_request(raw) == RunRequest(
        correlation_id="c1",
        messages=(ChatMessage("user", "Tell me a joke"),),
        options={"temperature": 0.5},
        created_at=NOON,
        orchestration_id="o1",
    )


def test_the_peers_request_may_come_as_text_and_shout_its_role() -> None:
    request = load_request(json.dumps({"message": "x", "role": " SYSTEM ", "correlationId": "c"}))
    assert request.messages == (ChatMessage("system", "x"),)


def test_a_class_that_a_request_names_is_not_imported() -> None:
    named = {"__response_schema_type__": "pydantic_model", "module": "os", "qualname": "system"}
    request = load_request({"message": "x", "correlationId": "c", "response_format": named})
    assert request.response_schema is None


@given(
    st.builds(
        RunRequest,
        correlation_id=st.text(min_size=1),
        messages=st.lists(messages, min_size=1, max_size=3).map(tuple),
        response_schema=st.none() | objects,
        options=objects,
        tool_choice=st.none() | texts,
        enable_tool_calls=st.booleans(),
        limits=st.none() | limits,
        created_at=st.none() | moments,
        orchestration_id=st.none() | texts,
    )
)
def test_every_request_survives(request: RunRequest) -> None:
    read = load_request(json.loads(json.dumps(dump_request(request))))
    assert read == request
    asked = (request_digest(each.messages, each.response_schema) for each in (request, read))
    assert len(set(asked)) == 1


def test_a_request_shows_its_text_to_the_peer() -> None:
    raw = dump_request(RunRequest(correlation_id="c", messages=(ChatMessage("user", "Hello"),)))
    assert (raw["message"], raw["role"], raw["request_response_format"]) == ("Hello", "user", "text")


LONG = "x" * 700_000
PICTURE = UriContent("https://example.com/a.png", "image/png")


@pytest.mark.parametrize(
    "asked",
    [
        (ChatMessage("user", LONG),),
        (ChatMessage("system", LONG),),
        (ChatMessage("user", (TextContent(LONG), PICTURE)),),
        (ChatMessage("user", LONG), ChatMessage("user", "Again")),
        (ChatMessage("user", LONG, author_name="Ann"),),
        (ChatMessage("user", (TextContent(LONG, extra={"more": 1}),)),),
    ],
    ids=["a text", "of the system", "with a picture", "two messages", "by somebody", "with more"],
)
def test_a_request_holds_its_text_once(asked: tuple[ChatMessage, ...]) -> None:
    request = RunRequest(correlation_id="c", messages=asked)
    raw = json.loads(json.dumps(dump_request(request)))
    assert json.dumps(raw).count("x" * 1_000) == 700
    assert load_request(raw) == request


def test_a_request_of_the_form_that_held_its_text_twice_is_read() -> None:
    messages = [dump_message(ChatMessage("user", "Hello"))]
    raw = {"message": "Hello", "role": "user", "correlationId": "c", "messages": messages, "enable_tool_calls": True}
    assert load_request(raw).messages == (ChatMessage("user", "Hello"),)


@pytest.mark.parametrize(("said", "offered"), [({}, True), ({"enable_tool_calls": False}, False)])
def test_a_request_is_offered_the_tools_unless_it_says_otherwise(said: dict[str, Any], offered: bool) -> None:
    """Other clients leave the field out."""
    assert load_request({"message": "x", "correlationId": "c", **said}).enable_tool_calls is offered


def test_a_question_about_a_cut_off_call_has_the_key_that_the_tool_was_given() -> None:
    """By that key the person finds in the books whether it acted."""
    asked: dict[str, Any] = {
        "key": "c1.1.0.outcome1",
        "callKey": "c1.1.0",
        "kind": "outcome",
        "callId": "x",
        "tool": "pay",
        "arguments": {},
        "digest": "d",
        "askedAt": "2025-01-02T12:00:00+00:00",
    }
    thread = AgentThread("Joker", "t1")
    assert QuestionRecord(asked).pending(thread, "c1").idempotency_key == "c1.1.0"
    approval = {**{name: each for name, each in asked.items() if name != "callKey"}, "kind": "approval"}
    assert QuestionRecord(approval).pending(thread, "c1").idempotency_key == "c1.1.0.outcome1"


@pytest.mark.parametrize(
    "bad",
    [
        None,
        [],
        "",
        "{",
        {},
        {"correlationId": 5, "message": "x"},
        {"correlationId": "", "message": "x"},
        {"correlationId": "c", "messages": []},
        {"correlationId": "c", "messages": "x"},
        {"correlationId": "c", "message": "x", "role": "boss"},
        {"correlationId": "c", "message": "x", "options": [1]},
        {"correlationId": "c", "message": "x", "responseSchema": "x"},
        {"correlationId": "c", "message": "x", "created_at": "yesterday"},
        {"correlationId": "c", "message": "x", "orchestrationId": 5},
        {"correlationId": "c", "message": 5},
        {"correlationId": "c", "message": "x", "tool_choice": 5},
        {"correlationId": "c", "message": "x", "limits": 5},
        {"correlationId": "c", "message": "x", "limits": {"steps": "many"}},
        {"correlationId": "c", "message": "x", "limits": {"tokens": 0}},
        {"correlationId": "c", "message": "x", "deadline": []},
        {"correlationId": "c", "message": "x", "deadline": "5"},
        {"correlationId": "c", "message": "x", "deadline": 10**400},
        {"correlationId": "c", "message": "x", "deadline": float("nan")},
        "[" * 100_000,
    ],
    ids=lambda bad: json.dumps(bad)[:80],
)
def test_what_is_no_request_is_a_value_error(bad: Any) -> None:
    with pytest.raises(ValueError, match=r".+"):
        load_request(bad)


def test_limits_that_are_not_named_are_as_ever_and_null_is_none() -> None:
    assert load_limits({"tokens": 5}) == Limits(tokens=5)
    assert load_limits({"steps": None, "dollars": 3}) == Limits(steps=None)


@pytest.mark.parametrize(
    "policy",
    [
        RetryPolicy(first_retry_interval=timedelta(seconds=1.5), max_number_of_attempts=3),
        RetryPolicy(
            first_retry_interval=timedelta(seconds=1),
            max_number_of_attempts=5,
            backoff_coefficient=2.5,
            max_retry_interval=timedelta(minutes=1),
            retry_timeout=timedelta(hours=1),
        ),
    ],
)
def test_a_retry_policy_survives(policy: RetryPolicy) -> None:
    raw = json.loads(json.dumps(dump_retry(policy)))
    assert dump_retry(load_retry(raw)) == raw
    assert (raw["first"], raw["attempts"]) == (
        policy.first_retry_interval.total_seconds(),
        policy.max_number_of_attempts,
    )


def test_a_digest_tells_requests_apart() -> None:
    hello, bye = ChatMessage("user", "Hello"), ChatMessage("user", "Bye")
    digests = {
        request_digest(messages, schema)
        for messages in ([hello], [bye], [hello, bye], [bye, hello])
        for schema in (None, {"type": "object"})
    }
    assert len(digests) == 8


def test_a_digest_does_not_look_at_the_clock_or_at_the_order_of_keys() -> None:
    later = request_digest([ChatMessage("user", "x", created_at=NOON)], {"b": 1, "a": 2})
    assert later == request_digest([ChatMessage("user", "x")], {"a": 2, "b": 1})


# --- Decisions ----------------------------------------------------------------------------------------------------


def test_what_a_turn_asks_is_read() -> None:
    raw = {"key": "c1.1.0", "kind": "approval", "callId": "x", "tool": "pay", "arguments": {"n": 1}, "digest": "d"}
    asked = {**raw, "askedAt": "2025-01-02T12:00:00Z", "decision": None}
    pending = QuestionRecord(asked).pending(THREAD, "c1")
    assert (pending.thread, pending.correlation_id, pending.asked_at, pending.deadline) == (THREAD, "c1", NOON, None)
    assert (pending.key, pending.kind, pending.call_id, pending.tool) == ("c1.1.0", "approval", "x", "pay")
    later = QuestionRecord({**asked, "deadline": "2025-01-02T12:00:05Z"}).pending(THREAD, "c1")
    assert later.deadline == NOON + timedelta(seconds=5)


@pytest.mark.parametrize(
    "decision",
    [
        Decision(action="approve", by="Ann", at=NOON),
        Decision(action="approve", at=NOON, arguments={}),
        Decision(action="deny", by="Ann", at=NOON, reason="too dear"),
        Decision(action="result", at=NOON, result=None),
        Decision(action="result", at=NOON, result={"paid": [1]}),
        Decision(action="fail", at=NOON, reason="who knows"),
    ],
    ids=lambda decision: decision.action,
)
def test_a_decision_survives(decision: Decision) -> None:
    assert load_decision(DecisionRecord.load(json.loads(json.dumps(dump_decision(decision))))) == decision


def test_only_a_result_travels_with_a_result() -> None:
    assert "result" not in dump_decision(Decision(action="approve", at=NOON))
    assert dump_decision(Decision(action="result", at=NOON))["result"] is None


def test_a_cancellation_is_found_in_a_response() -> None:
    def ended(error: DafxError) -> Any:
        message = ChatMessage("assistant", (error_content(error),))
        return dump_response(Response(correlation_id="c", messages=(message,)))

    found = load_cancellation(ended(TurnCancelled("Joker", "c", "enough", "Ann")))
    assert found is not None
    assert (found.reason, found.by) == ("enough", "Ann")
    assert load_cancellation(ended(ModelError("timeout", "x"))) is None
    assert load_cancellation(ENTRIES[2]) is None
    assert load_cancellation(ENTRIES[0]) is None


# --- Responses and errors -----------------------------------------------------------------------------------------


def test_a_response_is_read_as_an_answer() -> None:
    answer = load_response(
        {
            "$type": "response",
            "correlationId": "c",
            "messages": [{"role": "assistant", "contents": [{"$type": "text", "text": "Ha."}]}],
            "createdAt": "2025-01-02T12:00:00Z",
            "usage": {"inputTokenCount": 1, "outputTokenCount": 2, "totalTokenCount": 3},
        },
        THREAD,
    )
    assert (answer.text, answer.usage, answer.created_at) == ("Ha.", UsageStats(1, 2, 3), NOON)
    assert (answer.thread, answer.correlation_id, answer.value) == (THREAD, "c", None)


def test_a_response_that_holds_our_error_raises_it() -> None:
    error = ModelError("rate_limit", "slow down", status=429, retry_after=2.5)
    stored = Response(correlation_id="c", messages=(ChatMessage("assistant", (error_content(error),)),))
    with pytest.raises(ModelError) as caught:
        load_response(dump_response(stored), THREAD)
    assert (caught.value.kind, caught.value.status, caught.value.retry_after) == ("rate_limit", 429, 2.5)


def test_a_response_that_holds_somebody_elses_error_raises_turn_failed() -> None:
    content = {"$type": "error", "message": "boom", "errorCode": "ValueError", "details": "at line 3"}
    raw = {"$type": "response", "correlationId": "c", "messages": [{"role": "assistant", "contents": [content]}]}
    with pytest.raises(TurnFailed) as caught:
        load_response(raw, THREAD)
    assert (caught.value.error_type, caught.value.detail) == ("ValueError", "boom")


def test_an_error_stays_readable_for_whoever_does_not_know_us() -> None:
    error = ThreadBusy("Joker", "t1", "c0")
    assert error_content(error).message == str(error)


def test_only_errors_that_can_be_rebuilt_cross() -> None:
    assert crosses(CorrelationConflict("c", "agent"))
    assert not crosses(ValueError("x"))
    assert not crosses(TurnError("bare"))
    assert not crosses(DafxError("bare"))


def test_an_error_that_could_not_be_shown_is_not_rebuilt() -> None:
    raw = dump_error(ModelError("timeout", "x"))
    assert load_error({**raw, "type": "TurnTimeout", "fields": {"seconds": "many"}}) is None
    fields = {"agent": "A", "thread_id": "t", "correlation_id": "c", "seconds": "many"}
    assert load_error({"type": "TurnTimeout", "fields": fields}) is None
    assert load_error({"type": "TurnTimeout", "fields": {**fields, "seconds": 10**400}}) is None
    assert load_error("[" * 100_000) is None


# --- Anything at all ----------------------------------------------------------------------------------------------

WORDS = """
    $type text reasoning usage request response role user contents messages correlationId schemaVersion 1.1.0 data
    dafx draft waiting steered joined cancelled asks attempts active
    conversationHistory createdAt message options type fields ThreadBusy TurnTimeout
"""
words = st.sampled_from(WORDS.split())
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts | words,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(words | texts, inner, max_size=6),
    max_leaves=25,
)
OURS = st.sampled_from(["active", "draft", "waiting", "steered", "joined", "cancelled", "asks", "attempts"])
nearly: st.SearchStrategy[Any] = st.fixed_dictionaries(
    {
        "schemaVersion": st.just("1.1.0"),
        "data": st.fixed_dictionaries(
            {"conversationHistory": st.lists(st.dictionaries(words, anything, max_size=4), max_size=3)},
            optional={"dafx": st.dictionaries(OURS, anything) | anything},
        ),
    }
)


@given(anything | nearly)
def test_any_document_is_read_or_refused(raw: Any) -> None:
    with contextlib.suppress(UnsupportedTranscript):
        state, transcript = _state.load(raw), load_transcript(raw)
        assert len(transcript.entries) == len(state.history)
        assert json.dumps([dump_entry(entry) for entry in transcript.entries])
        assert list(state.history) == ([] if raw is None else raw["data"]["conversationHistory"])
        assert _state.load(json.loads(json.dumps(_state.dump(state)))).active == state.active


@given(anything)
def test_any_message_request_or_usage_is_read_or_a_value_error(raw: Any) -> None:
    loaders: list[Callable[[Any], Any]] = [
        load_message,
        load_messages,
        load_request,
        load_usage,
        _json.load_time,
    ]
    for load in loaders:
        with contextlib.suppress(ValueError):
            load(raw)


@given(anything)
def test_any_response_is_read_or_a_value_error_or_a_turn_error(raw: Any) -> None:
    with contextlib.suppress(ValueError, DafxError):
        load_response(raw, THREAD)


@given(anything | st.fixed_dictionaries({"type": words, "fields": anything}))
def test_any_error_is_rebuilt_or_none(raw: Any) -> None:
    error = load_error(raw)
    assert error is None or str(error)


# --- What is left out because it is the default -------------------------------------------------------------------

EMPTY: list[Any] = [
    TextContent(""),
    TextReasoningContent(),
    DataContent(""),
    UriContent("", ""),
    ErrorContent(),
    ErrorContent("", "", ""),
    FunctionCallContent("", ""),
    FunctionCallContent("c", "f", {}),
    FunctionResultContent("c"),
    FunctionResultContent("c", ""),
    FunctionResultContent("c", []),
    FunctionResultContent("c", False),
    HostedFileContent(""),
    HostedVectorStoreContent(""),
    UsageContent(UsageStats()),
    UnknownContent(),
    OpaqueContent({}),
]


def responses() -> Iterator[Response]:
    """Each with something that is left out, or stored empty."""
    yield Response(correlation_id="c1", messages=())
    yield Response(correlation_id="c1", messages=(ChatMessage("assistant"),), usage=UsageStats())
    yield Response(correlation_id="c1", messages=(ChatMessage("assistant"),) * 2, extra={"dafx": {}})
    for content in EMPTY:
        yield Response(correlation_id="c1", messages=(ChatMessage("assistant", (content,)),))


@pytest.mark.parametrize("response", list(responses()), ids=repr)
def test_what_is_empty_is_read_by_all_that_read_it(response: Response) -> None:
    stored = json.loads(json.dumps(dump_response(response)))
    assert load_entry(stored) == response
    without = {**stored, "messages": [{k: v for k, v in each.items() if v != []} for each in stored["messages"]]}
    assert load_entry(without) == response  # as earlier versions left it out
    travelled = _peer_forms.load_agent_response(_peer_forms.dump_agent_response(without), "c1")
    assert len(travelled["messages"]) == len(response.messages)
    if response.error is None:
        for raw in (stored, without):
            raise_error_in(raw, THREAD)
            assert load_response(raw, THREAD).messages == response.messages
    document = {"schemaVersion": "1.1.0", "data": {"conversationHistory": [without]}}
    assert _state.dump(_state.load(document))["data"]["conversationHistory"] == [without]
    assert load_transcript(document).entries == (response,)


@pytest.mark.parametrize("finish_reason", [None, "stop", "a word that nobody knows"])
def test_a_finish_reason_is_read_again(finish_reason: str | None) -> None:
    extra = {"dafx": {"finishReason": finish_reason}} if finish_reason else {"dafx": {"steps": 2}}
    stored = dump_response(Response(correlation_id="c1", messages=(), extra=extra))
    assert load_response(stored, THREAD).finish_reason == finish_reason
    assert finish_reason_in(stored) == finish_reason


@pytest.mark.parametrize("broken", [None, [], "text", {"dafx": None}, {"dafx": []}, {"dafx": {"finishReason": 5}}])
def test_where_nobody_says_so_there_is_no_finish_reason(broken: Any) -> None:
    assert finish_reason_in(broken) is None


@pytest.mark.parametrize(
    "asked",
    [
        RunRequest(correlation_id="c1", messages=(ChatMessage("user"),)),
        RunRequest(correlation_id="c1", messages=(ChatMessage("user", ""),), options={}, response_schema={}),
        RunRequest(
            correlation_id="c1", messages=(ChatMessage("user", "x"),), tool_choice="", limits=Limits(), deadline=0.0
        ),
        RunRequest(correlation_id="c1", messages=(ChatMessage("user", "x"),), enable_tool_calls=False),
    ],
    ids=repr,
)
def test_a_request_with_what_is_empty_comes_back_as_it_was(asked: RunRequest) -> None:
    assert load_request(json.loads(json.dumps(dump_request(asked)))) == asked


EMPTY_JSON: list[Any] = [None, "", [], {}, 0, False]


@pytest.mark.parametrize(
    "made",
    [
        Decision(action="approve", by="", at=NOON),
        Decision(action="approve", by="ana", at=NOON, arguments={}),
        *[Decision(action="result", by="ana", at=NOON, result=result) for result in EMPTY_JSON],
    ],
    ids=repr,
)
def test_a_decision_with_what_is_empty_comes_back_as_it_was(made: Decision) -> None:
    assert load_decision(DecisionRecord.load(json.loads(json.dumps(dump_decision(made))))) == made


def test_a_request_without_the_field_offers_the_tools() -> None:
    assert load_request({"correlationId": "c1", "message": "Hi"}).enable_tool_calls
    assert not load_request({"correlationId": "c1", "message": "Hi", "enable_tool_calls": False}).enable_tool_calls
