"""Whatever a thread is told, in whatever state: it answers or refuses in clear words, and forgets nothing."""

from __future__ import annotations

import copy
import json
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import attrs
import pytest
from durabletask.entities import EntityInstanceId
from hypothesis import given
from hypothesis import strategies as st

from dafx_actors import durable_agent
from dafx_actors._json.asks import Asks
from dafx_actors._json.crossing import load_error
from dafx_actors._json.document import load_transcript
from dafx_actors._json.requests import dump_request, load_request
from dafx_actors._rules import state as _state
from dafx_actors._rules.operations import OPERATIONS
from dafx_actors._turns.hosted import HostedAgent
from dafx_actors.agents import AgentRegistry
from dafx_actors.errors import DafxError, UnsupportedTranscript
from dafx_actors.ids import AgentThread, tell_name, telling_prefix
from dafx_actors.testing import ScriptedModel
from tests.fuzz.inputs import examples, json_objects, json_values, mangled

NOW = "2026-01-01T00:00:00Z"
CALL = {"$type": "functionCall", "callId": "call_0", "name": "pay", "arguments": {"amount": 3}}
DIGEST = "0123456789abcdef0123456789abcdef"
ASK = {
    "key": "k1", "kind": "approval", "callId": "call_0", "tool": "pay", "arguments": {"amount": 3}, "digest": DIGEST,
    "askedAt": NOW, "deadline": NOW,
}  # fmt: skip
DECISION = {"action": "approve", "by": "ana", "at": NOW}


def request(turn: str, text: str = "Hello") -> dict[str, Any]:
    return {
        "message": text, "role": "user", "correlationId": turn, "created_at": NOW, "enable_tool_calls": True,
        "options": {"seed": 1}, "limits": {"steps": 3, "tokens": None, "seconds": 2.5}, "orchestrationId": "o1",
        "messages": [{"role": "user", "contents": [{"$type": "text", "text": text}]}],
    }  # fmt: skip


def entries(turn: str, **about: Any) -> list[dict[str, Any]]:
    says = [{"role": "assistant", "contents": [{"$type": "text", "text": "Hi"}]}]
    asked = [{"role": "user", "contents": [{"$type": "text", "text": "Hello"}]}]
    return [
        {"$type": "request", "correlationId": turn, "createdAt": NOW, "messages": asked},
        {"$type": "response", "correlationId": turn, "createdAt": NOW, "messages": says, "dafx": about},
    ]


def document(**ours: Any) -> dict[str, Any]:
    history = [*entries("old", joined=["older"], steps=2), entries("c1")[0]]
    data: dict[str, Any] = {"conversationHistory": history if ours else history[:2]}
    return {"schemaVersion": "1.1.0", "data": {**data, **({"dafx": ours} if ours else {})}}


ACTIVE = document(
    active="c1",
    draft=[{"role": "assistant", "contents": [CALL]}],
    waiting=[request("c2")],
    steered=[request("c3")],
    joined=["c4"],
    cancelled={"c9": {"by": "ana", "reason": "late"}},
    asks={"k1": ASK, "k2": {**ASK, "key": "k2", "decision": {**DECISION, "digest": DIGEST}}},
    attempts={"k1": {"number": 1, "token": "t"}},
    children={"k3": {"key": "k3", "agent": "Other", "thread": "t2", "correlationId": "k3"}},
    progress={"k1": {"percent": 3}},
    remains={"turns": ["c0"], "ending": ["c1"]},
)
STATES: list[Any] = [None, document(), document(active="c1"), ACTIVE]
TOLD: dict[str, dict[str, Any]] = {
    "begin": request("c1"),
    "record": {
        "correlationId": "c1", "length": 3, "messages": [{"role": "assistant", "contents": [CALL]}], "asks": [ASK],
        "children": [{"key": "k3", "agent": "Other", "thread": "t2", "correlationId": "k3"}],
    },
    "commit": {
        "correlationId": "c1", "messages": [{"role": "assistant", "contents": [{"$type": "text", "text": "Hi"}]}],
        "usage": {"inputTokenCount": 1, "outputTokenCount": 2, "totalTokenCount": 3}, "about": {"steps": 3},
        "whole": False,
    },
    "abort": {
        "correlationId": "c1", "messages": [], "usage": None, "about": {},
        "error": {"type": "TurnTimeout", "message": "late", "fields": {"agent": "A", "thread_id": "t",
                  "correlation_id": "c1", "seconds": 3}},
    },
    "cancel": {"correlationId": "c1", "mark": {"by": "ana", "reason": "late"}},
    "decide": {"correlationId": "c1", "key": "k1", "digest": DIGEST, "decision": DECISION},
    "attempt": {"correlationId": "c1", "key": "k1", "number": 1, "token": "t"},
    "note": {"correlationId": "c1", "key": "k1", "progress": 3},
    "reset": {},
    "clear": {"mark": {"by": "", "reason": "gone"}, "deletes": True, "ended": ["c1", "c2", "c3", "c4"]},
    "sweep": {"remains": {"turns": ["c0", "c1"], "children": []}, "deletes": True},
    "import": {"entries": [{"$type": "request", "correlationId": "c1"}], "document": {}},
    "run": {**request("c7"), "orchestrationId": None},
    "delete": {},
}  # fmt: skip


@durable_agent(model=ScriptedModel())
class Clerk:
    instructions = "You are a clerk."


class NoHost:
    """No operation of a thread needs its worker, but for a turn in one operation, which goes no further here."""

    def run_operation(self, entity_id: str, step: object) -> Any:
        raise ValueError("there is no worker")


@attrs.define
class Context:
    """What durabletask gives an entity, as far as a thread uses it; state is kept as JSON, as durabletask does."""

    operation: str
    state: str
    scheduled: list[Any] = attrs.field(factory=list[Any])
    signalled: list[Asks] = attrs.field(factory=list[Asks])
    entity_id: EntityInstanceId = attrs.field(factory=lambda: EntityInstanceId("dafx-clerk", "t1"))

    def get_state(self) -> Any:
        return json.loads(self.state)

    def set_state(self, value: Any) -> None:
        self.state = json.dumps(value)

    def schedule_new_orchestration(self, *what: Any) -> None:
        self.scheduled.append(json.dumps(what))

    def signal_entity(self, entity: EntityInstanceId, operation: str, raw: Any) -> None:
        """The inbox is told what a turn asks of persons, in a form that it reads."""
        assert (entity.entity, operation) == ("dafx-asks-clerk", Asks.operation)
        self.signalled.append(Asks.load(json.loads(json.dumps(raw))))


def hosted() -> HostedAgent:
    (agent,) = AgentRegistry().add(Clerk)
    host: Any = NoHost()
    return HostedAgent.on(host, agent)


CLERK = hosted()


def tell(operation: str, raw: Any, state: Any) -> Any:
    """The state after an operation. It was answered, or refused in words, and the state is one that can be read."""
    context: Any = Context(operation, json.dumps(state))
    try:
        answer = CLERK.entity(context, copy.deepcopy(raw))
    except (ValueError, DafxError):
        assert json.loads(context.state) == state, "refused, and changed all the same"
        return state
    json.dumps(answer)
    after = json.loads(context.state)
    if isinstance(answer, dict) and "error" in answer:
        assert isinstance(load_error(answer["error"]), DafxError), answer
    if operation not in {"reset", "delete", "clear", "sweep"}:
        before = (state or {}).get("data", {}).get("conversationHistory", [])
        assert (after or {}).get("data", {}).get("conversationHistory", [])[: len(before)] == before
    load_transcript(after)
    _state.load(after)
    return after


def refuse(operation: str, raw: Any, state: Any) -> None:
    """A state that cannot be read is refused, and stays as it is."""
    context: Any = Context(operation, json.dumps(state))
    with suppress(ValueError, DafxError):  # the latter for callers of the peer, who know no errors as values
        answer = CLERK.entity(context, raw)
        assert context.scheduled or "error" in answer, answer
    assert json.loads(context.state) == state


some_told = st.one_of(*(st.tuples(st.just(name), st.just(raw) | mangled(raw)) for name, raw in TOLD.items()))
any_told = st.tuples(st.sampled_from([*OPERATIONS, "run", "delete"]) | st.text(max_size=8), json_values | json_objects)


@examples(300)
@given(state=st.sampled_from(STATES), told=st.lists(some_told | some_told | any_told, min_size=1, max_size=4))
def test_any_operation_in_any_state(state: Any, told: list[tuple[str, Any]]) -> None:
    for operation, raw in told:
        state = tell(operation, raw, state)


@examples(300)
@given(state=mangled(document()) | mangled(ACTIVE), told=some_told)
def test_a_state_that_was_mangled_is_read_or_refused_and_never_rewritten(state: Any, told: tuple[str, Any]) -> None:
    operation, raw = told
    if operation == "delete":
        assert tell(operation, raw, state) is None
        return
    try:
        _state.load(state)
        load_transcript(state)
    except UnsupportedTranscript:
        refuse(operation, raw, state)
    else:
        tell(operation, raw, state)


@examples(200)
@given(raw=mangled(request("c1")) | mangled(request("c1")).map(json.dumps) | st.text(max_size=20) | json_values)
def test_any_request_is_read_or_refused(raw: Any) -> None:
    try:
        read = load_request(raw)
    except ValueError:
        return
    again = load_request(json.loads(json.dumps(dump_request(read))))
    assert attrs.evolve(again, created_at=None) == attrs.evolve(read, created_at=None)
    assert read.created_at is None or read.created_at <= datetime.max.replace(tzinfo=UTC)


# --- What was found -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("operation", "raw"),
    [
        ("begin", json.dumps(request("c7"))),
        ("record", None),
        ("record", {**TOLD["record"], "asks": [{"kind": "approval"}]}),
        ("record", {**TOLD["record"], "asks": [{**ASK, "kind": "?"}]}),
        ("record", {**TOLD["record"], "children": ["?"]}),
        ("commit", {"messages": []}),
        ("abort", {"correlationId": "c1"}),
        ("cancel", {"correlationId": "c1", "mark": "late"}),
        ("decide", {**TOLD["decide"], "decision": {"by": "ana"}}),
        ("decide", {**TOLD["decide"], "decision": {**DECISION, "arguments": [1]}}),
        ("attempt", {**TOLD["attempt"], "number": "1"}),
        ("note", {"correlationId": "c1"}),
    ],
)
def test_what_a_thread_cannot_take_is_refused_in_words_and_changes_nothing(operation: str, raw: Any) -> None:
    """It was a KeyError or a TypeError; a mark that is a text was stored, and the thread failed from then on."""
    context: Any = Context(operation, json.dumps(ACTIVE))
    with pytest.raises(ValueError, match=r"of what the thread was told|expected an object|is a text, not|is one of"):
        CLERK.entity(context, raw)
    assert json.loads(context.state) == ACTIVE


@pytest.mark.parametrize(
    "ours",
    [
        {"asks": {"k1": {"key": "k1"}}},
        {"asks": {"k1": {**ASK, "kind": "?"}}},
        {"asks": {"k1": {**ASK, "decision": "yes"}}},
        {"attempts": {"k1": {"number": None}}},
        {"children": {"k3": []}},
        {"cancelled": {"c1": "late"}},
        {"joined": [1]},
    ],
)
def test_broken_books_of_a_turn_are_refused_as_what_they_are(ours: Any) -> None:
    """They were taken for whole, and failed with a KeyError in the middle of a decision."""
    with pytest.raises(UnsupportedTranscript, match=r"data\.dafx"):
        _state.load(document(active="c1", **ours))


def test_a_response_without_its_messages_that_names_joined_turns_stops_no_thread() -> None:
    """It was a KeyError, where one of them was begun again."""
    state = document()
    del state["data"]["conversationHistory"][1]["messages"]
    assert tell("begin", request("older"), state) == state


@pytest.mark.parametrize("about", ["text", ["c5"], {"joined": 5}, {"joined": {"c5": 1}}])
def test_what_others_wrote_where_we_note_joined_turns_stops_no_thread(about: Any) -> None:
    state = document()
    state["data"]["conversationHistory"][1]["dafx"] = about
    assert tell("begin", request("c5"), state)["data"]["dafx"]["active"] == "c5"


def test_the_active_turn_is_told_that_its_thread_is_gone() -> None:
    for operation in ("reset", "delete"):
        context: Any = Context(operation, json.dumps(ACTIVE))
        CLERK.entity(context, {})
        ((name, telling, telling_id),) = map(json.loads, context.scheduled)
        assert (name, telling["operation"], telling["input"]["correlationId"]) == (tell_name("Clerk"), "lost", "c1")
        assert telling_id.startswith(telling_prefix(AgentThread("Clerk", "t1")))
        context = Context(operation, json.dumps(document()))
        CLERK.entity(context, {})
        assert context.scheduled == [], "nobody is there to hear"
