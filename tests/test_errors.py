"""Errors say what to do, and survive pickle, JSON and other versions."""

from __future__ import annotations

import inspect
import json
import pickle
import traceback

import attrs
import pytest

from dafx_actors import errors
from dafx_actors._json.crossing import crosses, dump_error, load_error
from dafx_actors.errors import (
    AgentNotHosted,
    ApprovalExpired,
    ClientOfAnotherLoop,
    ConfigurationError,
    CorrelationConflict,
    DafxError,
    DecisionRefused,
    ForkedWhileConnected,
    InvalidAnswer,
    InvalidArguments,
    InvalidCursor,
    InvalidThreadExport,
    InvalidThreadId,
    LoopWouldBlock,
    McpConnectionLost,
    McpToolFailed,
    McpUnreachable,
    MessageTooLarge,
    ModelError,
    ModelNotConfigured,
    NotDone,
    NotDurableError,
    OrchestrationChanged,
    OrchestrationFailed,
    OrchestrationNotFound,
    OutcomeUnknown,
    ResultNotKept,
    RetryRefused,
    SchedulerCannotListen,
    SchedulerCredentialError,
    SchedulerDatabaseError,
    SchedulerInUse,
    SchedulerNotSecured,
    SchedulerReadFailed,
    SchedulerRefused,
    SchedulerUnreachable,
    SchedulerWriteFailed,
    StaleTranscript,
    ThreadBusy,
    ThreadNotEmpty,
    ThreadTimeout,
    ThreadTooLarge,
    TurnCancelled,
    TurnDeadlineExceeded,
    TurnFailed,
    TurnLimitExceeded,
    TurnNotFound,
    TurnSuperseded,
    TurnTerminated,
    TurnTimeout,
    UnsupportedByPeer,
    UnsupportedByScheduler,
    UnsupportedTranscript,
    ValueMismatch,
)

SAMPLES: list[tuple[DafxError, str]] = [
    (ConfigurationError(["one thing", "another"]), "2 mistakes:\n  - one thing\n  - another"),
    (ModelNotConfigured("set OPENAI_API_KEY"), "set OPENAI_API_KEY"),
    (
        errors.IncompatibleDurableTask("1.13.0", "1.12.x", ("_channel",)),
        "lacks _channel; dafx_actors was tested",
    ),
    (InvalidCursor("'x'"), "as it was told, or None"),
    (InvalidThreadId("a b", "' ' is not allowed in it"), "Take `get_new_thread()`"),
    (UnsupportedTranscript("schemaVersion 2.0.0", "1.1.0"), "Upgrade dafx_actors"),
    (NotDurableError("`asyncio.sleep`", "Use `context.sleep`."), "Use `context.sleep`."),
    (ValueMismatch("'x' does not fit int: expected int, found 'x'"), "does not fit int"),
    (
        InvalidArguments("look_up", ["`key`: is missing", "`k`: is not known"]),
        "\n  - `key`: is missing\n  - `k`: is not",
    ),
    (ResultNotKept("a set is no JSON value", "pay"), "Do not make the same call again"),
    (NotDone("the parcel was never sent"), "the parcel was never sent"),
    (McpUnreachable("files", "refused"), "it is tried again at the next call"),
    (McpConnectionLost("files", "remove", "end of file"), "may have acted"),
    (McpToolFailed("files", "remove", "no such file"), "no such file"),
    (McpToolFailed("files", "remove", ""), "does not say why"),
    (SchedulerUnreachable("http://localhost:8080", "refused"), "Start one"),
    (SchedulerRefused("http://h", "RESOURCE_EXHAUSTED", "The disk is full."), "The disk is full. Nothing was changed"),
    (UnsupportedByScheduler("http://h", "figures"), "cannot be asked for figures: only the embedded scheduler"),
    (OrchestrationNotFound("i1"), "of the id 'i1' on this task hub"),
    (ClientOfAnotherLoop("http://h"), "Wrap one in each event loop"),
    (ForkedWhileConnected("http://h", "which had connections open"), "which had connections open, and gRPC does not"),
    (LoopWouldBlock("run"), "Await the same call of the async client"),
    (MessageTooLarge("activity 'fetch'", 70_000_000, 67_108_864), "more than the 67,108,864"),
    (MessageTooLarge("activity 'fetch'", 70_000_000), "than the scheduler takes"),
    (SchedulerInUse("dafx.db", 7), "in use by process 7"),
    (SchedulerInUse("dafx.db"), "connect to the scheduler that runs"),
    (SchedulerDatabaseError("dafx.db", "not a database"), "restore a backup"),
    (SchedulerWriteFailed("dafx.db", "disk full"), "send it again"),
    (SchedulerReadFailed("dafx.db", "it is locked"), "Send it again"),
    (SchedulerNotSecured("0.0.0.0", ["TLS", "a bearer token"]), "without TLS and a bearer token"),
    (SchedulerCannotListen("127.0.0.1:8080", "in use"), "Another program may have that port"),
    (
        OrchestrationChanged("refund", 2, 'agent A with "x"', 'agent A with "y"'),
        'its step 2 was agent A with "x", and is now agent A with "y"',
    ),
    (OrchestrationFailed("i1", "FAILED", "ValueError", "boom"), "ended as FAILED: ValueError: boom"),
    (AgentNotHosted("Joker", "http://h", "hub", 10.0, ["A", "B"]), "Hosted there: A, B."),
    (AgentNotHosted("Joker", "http://h", "hub", 10.0), "Start a worker that hosts it"),
    (AgentNotHosted("Joker", "http://h", "hub", 10.0, []), "Hosted there: nothing."),
    (AgentNotHosted("joker", "", "", 10.0, beside=["Joker"]), "hosts Joker. Did you mean 'Joker'? The request was"),
    (CorrelationConflict("c1", "thread"), "Use a new id"),
    (ThreadBusy("Joker", "t1", "c1"), "Send the request again"),
    (ThreadTimeout("Joker", "t1", "delete", 2.5, ["turn c1 is suspended"]), "Still there: turn c1 is suspended. What"),
    (ThreadTimeout("Joker", "t1", "import", 2.5), "within 2.5 s. What was done so far stays done"),
    (ThreadNotEmpty("Joker", "t1", 3), "Take a new thread"),
    (ThreadTooLarge("Joker", "t1", 2_000_000, 1_048_576), "may have (1,048,576). Nothing was imported"),
    (ThreadTooLarge("Joker", "t1", 2_000_000), "may have. Nothing was imported"),
    (InvalidThreadExport(3, "it is cut off"), "Line 3 of the export cannot be read: it is cut off. Nothing"),
    (TurnTimeout("Joker", "t1", "c1", 2.5), "correlation_id='c1'"),
    (TurnTimeout("Joker", "t1", "c1", 2.5, "decide"), "Send the same again"),
    (TurnTimeout("Joker", "t1", "", 2.5, "decide"), "'decide' in thread t1"),
    (SchedulerCredentialError("https://h", "no identity"), "Run `az login`"),
    (TurnSuperseded("t1", "c1"), "Send the request again"),
    (TurnTerminated("Joker", "c1", "by Ann"), "terminated (by Ann)"),
    (TurnCancelled("Joker", "c1", "enough", "Ann"), "enough"),
    (TurnCancelled("Joker", "c1"), "c1"),
    (TurnDeadlineExceeded("Joker", "c1", 2.5), "2.5 s"),
    (TurnLimitExceeded("Joker", "c1", "tokens", 1000, 1234), "limit of 1,000 tokens (it came to 1,234)"),
    (TurnNotFound("Joker", "c1"), "Check the id"),
    (RetryRefused("Joker", "c1", "answered"), "it was answered"),
    (RetryRefused("Joker", "c1", "nested"), "retry that one"),
    (DecisionRefused("c1.1.0", "not_pending"), "not any more"),
    (DecisionRefused("c1.1.0", "changed"), "other arguments"),
    (
        DecisionRefused("c1.1.0", "changed", tool="pay", arguments={"amount": 5}, digest="d5"),
        "What stands there now is 'pay' with {'amount': 5}, of digest 'd5'. Nothing was changed",
    ),
    (DecisionRefused("c1.1.0", "decided", "deny by Ann"), "somebody has decided already (deny by Ann)"),
    (DecisionRefused("c1.1.0", "unfit", "'deny' for 'outcome'"), "none that this call waits for"),
    (ApprovalExpired("pay", "c1.1.0", 60.0), "within 60 s"),
    (OutcomeUnknown("pay", "c1.1.0", "the bank says no"), "may have acted, once, or not at all (the bank says no)"),
    (UnsupportedByPeer("Joker", "take pictures"), "cannot take pictures. Nothing was sent."),
    (TurnFailed("Joker", "c1", "KeyError", "'x'"), "worker's log"),
    (StaleTranscript("t1", 5, 3), "Send the request again"),
    (InvalidAnswer("{", "not JSON"), "It is in `.text`"),
    (ModelError("rate_limit", "slow down", 429, 2.5, 3, {"code": "x"}), "HTTP 429; tried 3 times"),
    (ModelError("timeout", "nothing came"), "tried once"),
]
CROSSING = [error for error, _ in SAMPLES if crosses(error)]


def name(value: object) -> str:
    return type(value).__name__


def fields(error: DafxError) -> object:
    cls: type[object] = type(error)
    return {field.name: getattr(error, field.name) for field in attrs.fields(cls)} if attrs.has(cls) else error.args


def test_every_error_that_can_be_raised_has_a_sample() -> None:
    raised = {cls for _, cls in inspect.getmembers(errors, inspect.isclass) if issubclass(cls, DafxError)}
    assert raised - {type(error) for error, _ in SAMPLES} == {
        DafxError,
        errors.McpError,
        errors.SchedulerError,
        errors.ThreadError,
        errors.TurnError,
    }


@pytest.mark.parametrize(("error", "advice"), SAMPLES, ids=name)
def test_an_error_says_what_happened_and_what_to_do(error: DafxError, advice: str) -> None:
    assert advice in str(error)
    assert str(error) in "".join(traceback.format_exception_only(type(error), error))


@pytest.mark.parametrize("error", [error for error, _ in SAMPLES], ids=name)
def test_an_error_survives_pickle(error: DafxError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), fields(again), str(again)) == (type(error), fields(error), str(error))


@pytest.mark.parametrize("error", CROSSING, ids=name)
def test_an_error_crosses_json_and_is_the_same_there(error: DafxError) -> None:
    again = load_error(json.dumps(dump_error(error)))
    assert again is not None
    assert (type(again), fields(again), str(again)) == (type(error), fields(error), str(error))


def test_what_can_become_of_a_turn_crosses() -> None:
    crossing = {type(error) for error in CROSSING}
    turns = {type(error) for error, _ in SAMPLES if isinstance(error, errors.TurnError)}
    others = {UnsupportedTranscript, InvalidThreadId, ConfigurationError, ModelNotConfigured}
    assert crossing == turns | others | {
        MessageTooLarge,
        ResultNotKept,
        errors.McpUnreachable,
        OrchestrationChanged,
        ThreadNotEmpty,
    }


@pytest.mark.parametrize("error", CROSSING, ids=name)
def test_fields_of_a_newer_version_are_left_out(error: DafxError) -> None:
    raw = dump_error(error)
    again = load_error({**raw, "since": 2, "fields": {**raw["fields"], "of_version_2": [1]}})
    assert type(again) is type(error)


@pytest.mark.parametrize(
    "raw",
    [
        "plain text",
        "5",
        "[]",
        "{}",
        {"type": "ValueError", "fields": {}},
        {"type": "DafxError", "fields": {}},
        {"type": ["ThreadBusy"], "fields": {}},
        {"type": "ThreadBusy", "fields": {"agent": "x"}},
        {"type": "ThreadBusy"},
        None,
    ],
    ids=repr,
)
def test_what_is_no_error_of_ours_gives_none(raw: object) -> None:
    assert load_error(raw) is None


def test_builtin_kinds_are_kept_for_those_who_catch_them() -> None:
    assert issubclass(TurnTimeout, TimeoutError)
    assert issubclass(TurnDeadlineExceeded, TimeoutError)
    assert issubclass(InvalidArguments, ValueError)
    assert issubclass(SchedulerUnreachable, ConnectionError)
    assert issubclass(InvalidThreadId, ValueError)
    assert issubclass(InvalidCursor, ValueError)
    assert issubclass(InvalidAnswer, ValueError)


@pytest.mark.parametrize(
    ("kind", "retryable"), [("rate_limit", True), ("bad_response", True), ("bad_request", False), ("error", False)]
)
def test_a_model_error_knows_whether_to_try_again(kind: errors.ModelFailure, retryable: bool) -> None:
    assert ModelError(kind, "x").retryable is retryable
