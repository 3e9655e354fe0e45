"""What a thread does with a message: in order, one at a time, and nothing twice."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import attrs
import jsonschema  # type: ignore[import-untyped]  # its stubs are a package of their own
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from dafx_actors._json import operations as _ops
from dafx_actors._json.document import load_transcript
from dafx_actors._json.operations import Ended, Granted, Queued, Refused
from dafx_actors._json.requests import load_response
from dafx_actors._rules import state as _state
from dafx_actors._rules import thread as _thread
from dafx_actors._rules.state import ThreadState
from dafx_actors.errors import CorrelationConflict, ModelError, TurnSuperseded, TurnTerminated
from dafx_actors.exchange import RunRequest
from dafx_actors.ids import AgentThread
from dafx_actors.transcript import ChatMessage, UsageStats

SCHEMA = json.loads((Path(__file__).parent / "data" / "durable-agent-entity-state.json").read_text())
VALIDATOR: Any = jsonschema.Draft202012Validator(SCHEMA)
THREAD = AgentThread("Joker", "t1")
NOW = datetime(2025, 1, 2, 12, tzinfo=UTC)
LATER = datetime(2025, 1, 2, 13, tzinfo=UTC)
EMPTY = ThreadState()


def ask(turn: str, text: str | None = None, **fields: Any) -> RunRequest:
    return RunRequest(correlation_id=turn, messages=(ChatMessage("user", text or f"{turn}?"),), **fields)


def say(text: str) -> tuple[ChatMessage, ...]:
    return (ChatMessage("assistant", text),)


def begun(*turns: str) -> ThreadState:
    """A thread where these turns have begun: the first is active, the others wait."""
    state = EMPTY
    for turn in turns:
        state, _ = _thread.begin(state, THREAD, ask(turn), NOW)
    return state


def committed(state: ThreadState, turn: str, text: str = "!") -> ThreadState:
    return _thread.commit(state, THREAD, turn, say(text), None, NOW)[0]


def story(state: ThreadState) -> list[str]:
    """The history as text: `c1?` is a request, `c1` its response."""
    return [raw["correlationId"] + ("?" if raw["$type"] == "request" else "") for raw in state.history]


# --- begin --------------------------------------------------------------------------------------------------------


def test_a_turn_that_finds_the_thread_free_is_granted() -> None:
    state, outcome = _thread.begin(EMPTY, THREAD, ask("c1"), NOW)
    assert outcome == Granted(1)
    assert (state.active, state.waiting, story(state)) == ("c1", (), ["c1?"])


def test_a_turn_that_finds_the_thread_busy_is_queued() -> None:
    state, outcome = _thread.begin(begun("c1"), THREAD, ask("c2"), NOW)
    assert outcome == Queued("c1")
    assert (state.active, story(state)) == ("c1", ["c1?"])


def test_beginning_again_gives_the_same_outcome_and_changes_nothing() -> None:
    state = begun("c1", "c2", "c3")
    for turn, expected in [("c1", Granted(1)), ("c2", Queued("c1")), ("c3", Queued("c1"))]:
        assert _thread.begin(state, THREAD, ask(turn), LATER) == (state, expected)


def test_a_turn_that_has_ended_is_answered_again() -> None:
    state = committed(begun("c1"), "c1", "Ha.")
    same, outcome = _thread.begin(state, THREAD, ask("c1"), LATER)
    assert same is state
    assert isinstance(outcome, Ended)
    assert load_response(outcome.response, THREAD).text == "Ha."
    assert outcome.next_id is None


@pytest.mark.parametrize("stage", ["active", "waiting", "ended"])
@pytest.mark.parametrize("other", [ask("c1", "another"), ask("c1", response_schema={"type": "object"})])
def test_the_same_id_for_another_request_is_refused(stage: str, other: RunRequest) -> None:
    state = begun("c0", "c1") if stage == "waiting" else begun("c1")
    state = committed(state, "c1") if stage == "ended" else state
    assert _thread.begin(state, THREAD, other, NOW)[0] is state
    outcome = _thread.begin(state, THREAD, other, NOW)[1]
    assert isinstance(outcome, Refused)
    assert isinstance(outcome.error, CorrelationConflict)


def test_the_same_request_sent_at_another_time_is_the_same() -> None:
    state, _ = _thread.begin(EMPTY, THREAD, ask("c1", created_at=NOW), NOW)
    assert _thread.begin(state, THREAD, ask("c1", created_at=LATER), LATER)[1] == Granted(1)


def test_a_request_is_dated_by_its_sender_else_by_its_arrival() -> None:
    sent, _ = _thread.begin(EMPTY, THREAD, ask("c1", created_at=NOW), LATER)
    unsent, _ = _thread.begin(EMPTY, THREAD, ask("c1"), LATER)
    assert [state.history[0]["createdAt"] for state in (sent, unsent)] == [
        "2025-01-02T12:00:00+00:00",
        "2025-01-02T13:00:00+00:00",
    ]


# --- record -------------------------------------------------------------------------------------------------------


def test_what_is_recorded_stands_in_the_draft_and_then_in_the_response() -> None:
    state, outcome = _thread.record(begun("c1"), THREAD, "c1", say("Hm. "), 1)
    assert outcome == Granted(2)
    assert load_transcript(_state.dump(state)).draft == say("Hm. ")
    state, ended = _thread.commit(state, THREAD, "c1", say("Ha."), UsageStats(1, 2, 3), NOW)
    assert isinstance(ended, Ended)
    assert load_response(ended.response, THREAD).messages == say("Hm. ") + say("Ha.")
    assert state.draft == ()


def test_recording_again_adds_nothing() -> None:
    state, first = _thread.record(begun("c1"), THREAD, "c1", say("a"), 1)
    assert _thread.record(state, THREAD, "c1", say("a"), 1) == (state, first)


def test_recording_goes_on_when_a_turn_that_waited_gave_up() -> None:
    state, _ = _thread.abort(begun("c1", "c2"), THREAD, "c2", TurnTerminated("Joker", "c2"), NOW)
    state, outcome = _thread.record(state, THREAD, "c1", say("a"), 1)
    assert (state.draft, outcome) == (say("a"), Granted(2))


def test_the_length_tells_old_state_from_new_within_a_turn() -> None:
    old = begun("c1")
    new, outcome = _thread.record(old, THREAD, "c1", say("a"), 1)
    assert isinstance(outcome, Granted)
    stale, _ = _thread.abort(old, THREAD, "c2", TurnTerminated("Joker", "c2"), NOW)
    assert old.length < outcome.length
    assert stale.length < outcome.length
    assert new.length == outcome.length


# --- commit and abort ---------------------------------------------------------------------------------------------


def test_the_next_in_line_may_have_the_thread_when_a_turn_ends() -> None:
    state, outcome = _thread.commit(begun("c1", "c2", "c3"), THREAD, "c1", say("!"), None, NOW)
    assert isinstance(outcome, Ended)
    assert (outcome.next_id, state.active, story(state)) == ("c2", None, ["c1?", "c1"])
    assert _thread.begin(state, THREAD, ask("c3"), NOW) == (state, Queued("c2"))
    state, granted = _thread.begin(state, THREAD, ask("c2"), NOW)
    assert granted == Granted(3)
    assert (state.active, story(state)) == ("c2", ["c1?", "c1", "c2?"])


def test_turns_are_answered_in_the_order_in_which_they_began() -> None:
    state = begun("c1", "c2", "c3")
    for turn in ("c1", "c2", "c3"):
        state = committed(_thread.begin(state, THREAD, ask(turn), NOW)[0], turn)
    assert story(state) == ["c1?", "c1", "c2?", "c2", "c3?", "c3"]


def test_a_whole_response_takes_the_place_of_the_draft_that_it_begins_with() -> None:
    state, _ = _thread.record(begun("c1"), THREAD, "c1", say("first"), 1)
    _, outcome = _thread.commit(state, THREAD, "c1", say("first") + say("last"), None, NOW, whole=True)
    assert isinstance(outcome, Ended)
    assert [message["contents"][0]["text"] for message in outcome.response["messages"]] == ["first", "last"]


def test_committing_again_gives_the_first_answer_and_changes_nothing() -> None:
    state = committed(begun("c1", "c2"), "c1", "first")
    same, outcome = _thread.commit(state, THREAD, "c1", say("second"), None, LATER)
    assert same is state
    assert isinstance(outcome, Ended)
    assert load_response(outcome.response, THREAD).text == "first"
    assert outcome.next_id is None


def test_an_error_after_an_answer_does_not_replace_it() -> None:
    state = committed(begun("c1"), "c1", "first")
    assert _thread.abort(state, THREAD, "c1", ModelError("error", "late"), LATER)[0] is state


def test_an_aborted_turn_keeps_its_draft_and_says_why() -> None:
    state, _ = _thread.record(begun("c1"), THREAD, "c1", say("so far"), 1)
    state, outcome = _thread.abort(state, THREAD, "c1", ModelError("rate_limit", "slow down"), NOW)
    assert isinstance(outcome, Ended)
    assert outcome.response["messages"][0]["contents"][0]["text"] == "so far"
    with pytest.raises(ModelError, match="slow down"):
        load_response(outcome.response, THREAD)


def test_a_waiting_turn_that_is_aborted_leaves_the_line_and_a_trace() -> None:
    state, outcome = _thread.abort(begun("c1", "c2", "c3"), THREAD, "c2", TurnTerminated("Joker", "c2"), NOW)
    assert isinstance(outcome, Ended)
    assert outcome.next_id is None
    assert (state.active, [waiting.correlation_id for waiting in state.waiting]) == ("c1", ["c3"])
    assert story(state) == ["c1?", "c2?", "c2"]


@pytest.mark.parametrize("turn", ["c2", "unheard of"])
def test_a_turn_that_is_not_active_changes_nothing(turn: str) -> None:
    state = begun("c1", "c2")
    error = ModelError("error", "x")
    outcomes = [
        _thread.record(state, THREAD, turn, say("x"), 1),
        _thread.commit(state, THREAD, turn, say("x"), None, NOW),
        *([_thread.abort(state, THREAD, turn, error, NOW)] if turn != "c2" else []),
    ]
    for same, outcome in outcomes:
        assert same is state
        assert isinstance(outcome, Refused)
        assert isinstance(outcome.error, TurnSuperseded)


# --- reset --------------------------------------------------------------------------------------------------------


def test_a_reset_forgets_and_takes_the_thread_from_its_turn() -> None:
    state = _thread.reset(begun("c1", "c2"))[0]
    assert (state.history, state.active, state.draft) == ((), None, ())
    assert isinstance(_thread.commit(state, THREAD, "c1", say("x"), None, NOW)[1], Refused)


def test_after_a_reset_those_that_waited_go_first() -> None:
    state, outcome = _thread.begin(_thread.reset(begun("c1", "c2", "c3"))[0], THREAD, ask("c4"), NOW)
    assert outcome == Queued("c2")
    assert [waiting.correlation_id for waiting in state.waiting] == ["c2", "c3", "c4"]
    assert _thread.begin(state, THREAD, ask("c2"), NOW)[1] == Granted(1)


# --- what is stored -----------------------------------------------------------------------------------------------


def test_an_idle_thread_stores_nothing_of_ours() -> None:
    document = _state.dump(committed(begun("c1"), "c1"))
    assert set(document) == {"schemaVersion", "data"}
    assert set(document["data"]) == {"conversationHistory"}
    assert next(iter(document)) == "schemaVersion"


def test_unknown_fields_and_the_version_that_was_found_survive() -> None:
    stored: dict[str, Any] = {
        "schemaVersion": "1.2.0",
        "etag": None,
        "data": {
            "conversationHistory": [{"$type": "summary", "of": [None]}],
            "compaction": {"at": 3},
            "dafx": {"active": None, "colour": "red"},
        },
    }
    assert _state.dump(_state.load(stored)) == {
        **stored,
        "data": {**stored["data"], "dafx": {"colour": "red"}},
    }


def test_nulls_among_our_own_fields_count_as_absent() -> None:
    empty = _state.dump(EMPTY)
    nothing: list[Any] = [None, {}, {"active": None, "draft": None, "waiting": None}]
    for ours in nothing:
        stored = {**empty, "data": {**empty["data"], "dafx": ours}}
        assert _state.dump(_state.load(stored)) == empty


# --- any order of any messages ------------------------------------------------------------------------------------

TURNS = [f"c{n}" for n in range(6)]
turns = st.sampled_from(TURNS)
FOREIGN = {"$type": "somethingElse", "correlationId": "c1", "nested": {"null": None}}
"""An entry of a kind that nobody knows, which even names a turn."""


@attrs.define
class Known:
    """What a turn, and whoever watches the thread, may rely on."""

    arrived: list[str] = attrs.field(factory=list[str])
    """Turns in the order of their first `begin`, without those that ended."""
    answers: dict[str, Any] = attrs.field(factory=dict[str, Any])
    """The response of each turn that has ended."""
    order: list[str] = attrs.field(factory=list[str])
    """Turns in the order of their answers."""
    drafts: dict[str, list[str]] = attrs.field(factory=dict[str, "list[str]"])
    """What each turn has recorded."""
    unsaid: set[str] = attrs.field(factory=set[str])
    """Turns that left the line without having brought their requests."""
    lengths: dict[str, int] = attrs.field(factory=dict[str, int])
    """The length that each turn was told last."""


class ThreadMachine(RuleBasedStateMachine):
    """Messages of six turns in any order, any of them repeated, with the thread stored and read at any point."""

    def __init__(self) -> None:
        super().__init__()
        self.state = EMPTY
        self.known = Known()

    @initialize(foreign=st.booleans())
    def stored_before(self, foreign: bool) -> None:
        if foreign:
            data = {"conversationHistory": [FOREIGN], "theirs": {"x": None}}
            self.state = _state.load({"schemaVersion": "1.1.0", "more": 1, "data": data})
        self.foreign = foreign

    def granted(self, turn: str, length: int) -> None:
        assert self.known.arrived[0] == turn, "only the first in line may be granted"
        self.known.lengths[turn] = length

    @rule(turn=turns)
    def begin(self, turn: str) -> None:
        before, known = self.state, self.known
        self.state, outcome = _thread.begin(before, THREAD, ask(turn), NOW)
        if turn in known.answers:
            assert outcome == Ended(known.answers[turn])
            assert (self.state is before) == (turn not in known.unsaid), "it brings the request that was missing"
            known.unsaid.discard(turn)
            return
        repeated = turn in known.arrived
        if not repeated:
            known.arrived.append(turn)
            known.drafts[turn] = []
        if known.arrived[0] == turn:
            assert isinstance(outcome, Granted)
            self.granted(turn, outcome.length)
        else:
            assert outcome == Queued(known.arrived[0])
        if repeated and before.active is not None:
            assert self.state == before

    @rule(turn=turns)
    def begin_with_another_request(self, turn: str) -> None:
        if turn in self.known.arrived or turn in self.known.answers:
            same, outcome = _thread.begin(self.state, THREAD, ask(turn, "something else"), NOW)
            assert isinstance(outcome, Refused)
            assert same is self.state

    @rule(turn=turns, text=st.sampled_from("xyz"), times=st.integers(1, 2))
    def record(self, turn: str, text: str, times: int) -> None:
        at = self.known.lengths.get(turn, 0)
        if turn == self.state.active and not at:
            return  # it became active while nobody told it, after a reset; it will find out by its next `begin`
        for _ in range(times):
            before = self.state
            self.state, outcome = _thread.record(before, THREAD, turn, say(text), at)
            if before.active != turn:
                assert isinstance(outcome, Refused)
                assert self.state is before
                return
            assert isinstance(outcome, Granted)
            self.known.lengths[turn] = outcome.length
        self.known.drafts[turn].append(text)

    @precondition(lambda self: self.state.active)
    @rule(text=st.sampled_from("xyz"))
    def record_active(self, text: str) -> None:
        self.record(self.state.active or "", text, 2)

    @precondition(lambda self: self.state.waiting)
    @rule(data=st.data())
    def abort_waiting(self, data: st.DataObject) -> None:
        waiting = [request.correlation_id for request in self.state.waiting]
        self.abort(data.draw(st.sampled_from(waiting)), data.draw(st.booleans()))

    @rule(turn=turns)
    def commit(self, turn: str) -> None:
        before = self.state
        self.state, outcome = _thread.commit(before, THREAD, turn, say("."), UsageStats(1, 1, 2), NOW)
        self.ended(before, turn, outcome, may_wait=False)

    @rule(turn=turns, brings=st.booleans())
    def abort(self, turn: str, brings: bool) -> None:
        before, error = self.state, ModelError("error", "x")
        request = ask(turn) if brings else None
        self.state, outcome = _thread.abort(before, THREAD, turn, error, NOW, request=request)
        if turn in self.known.unsaid and brings:
            assert outcome == Ended(self.known.answers[turn])
            assert self.state.length == before.length
            self.known.unsaid.discard(turn)
            return
        if turn in self.known.arrived and before.active != turn and not brings:
            self.known.unsaid.add(turn)
        self.ended(before, turn, outcome, may_wait=True)

    def ended(self, before: ThreadState, turn: str, outcome: _ops.Outcome, *, may_wait: bool) -> None:
        known = self.known
        if turn in known.answers:
            assert outcome == Ended(known.answers[turn])
            assert self.state is before
            return
        waits = turn in known.arrived and before.active != turn
        if turn not in known.arrived or (waits and not may_wait):
            assert isinstance(outcome, Refused)
            assert self.state is before
            return
        assert isinstance(outcome, Ended)
        known.answers[turn] = outcome.response
        known.arrived.remove(turn)
        texts = [content.get("text") for m in outcome.response["messages"] for content in m["contents"]]
        assert texts[:-1] == known.drafts[turn], "every message that was recorded, once"
        if not waits:
            known.order.append(turn)
            assert outcome.next_id == (known.arrived[0] if known.arrived else None)
        elif before.active is None and before.waiting[0].correlation_id == turn:
            assert outcome.next_id == (known.arrived[0] if known.arrived else None)
        else:
            assert outcome.next_id is None

    @precondition(lambda self: len(self.state.history) > 3)
    @rule()
    def reset(self) -> None:
        active = self.state.active
        self.state = _thread.reset(self.state)[0]
        waiting = [turn for turn in self.known.arrived if turn != active]
        self.known = Known(arrived=waiting, drafts={turn: [] for turn in waiting})
        self.foreign = False

    @rule()
    def store_and_read(self) -> None:
        read = _state.load(json.loads(json.dumps(_state.dump(self.state))))
        assert (read.active, read.draft, read.history, read.length) == (
            self.state.active,
            self.state.draft,
            self.state.history,
            self.state.length,
        )
        assert [w.correlation_id for w in read.waiting] == [w.correlation_id for w in self.state.waiting]
        self.state = read

    @invariant()
    def documents_are_valid(self) -> None:
        document = _state.dump(self.state)
        others = [raw for raw in document["data"]["conversationHistory"] if raw != FOREIGN]
        VALIDATOR.validate({**document, "data": {**document["data"], "conversationHistory": others}})
        assert (FOREIGN in self.state.history) == self.foreign

    @invariant()
    def each_turn_is_in_the_history_once(self) -> None:
        told = [each for each in story(self.state) if each != "c1" or not self.foreign]
        assert sorted(told) == sorted(set(told))
        if not self.foreign:
            committed = [turn for turn in story(self.state) if turn in self.known.order]
            assert committed == self.known.order

    @invariant()
    def only_the_first_in_line_is_active(self) -> None:
        if self.state.active is not None:
            assert self.state.active == self.known.arrived[0]
        waiting = [request.correlation_id for request in self.state.waiting]
        assert waiting == [turn for turn in self.known.arrived if turn != self.state.active]

    def teardown(self) -> None:
        """Every turn that has begun can end, and then the thread is idle."""
        for turn in list(self.known.arrived):
            self.begin(turn)
            self.commit(turn)
        assert (self.state.active, self.state.waiting, self.known.arrived) == (None, (), [])


TestAnyOrder = ThreadMachine.TestCase
TestAnyOrder.settings = settings(max_examples=100, stateful_step_count=30, deadline=None, derandomize=True)
