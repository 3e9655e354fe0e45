"""A thread is emptied step by step, whoever dies between the steps, and takes over a transcript."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dafx_actors._json.books import CancelMark, ChildRecord, Remains
from dafx_actors._json.operations import Clear, Cleared, Clearing, Ended, Granted, Import, Noted, Refused, Sweep
from dafx_actors._json.requests import load_response
from dafx_actors._rules import clearing as _clearing
from dafx_actors._rules import state as _state
from dafx_actors._rules import thread as _thread
from dafx_actors._rules.state import ThreadState
from dafx_actors.errors import ThreadNotEmpty, TurnCancelled, TurnSuperseded, UnsupportedTranscript
from dafx_actors.ids import AgentThread
from tests.test_thread import NOW, THREAD, ask, begun, committed, say, story

MARK = CancelMark.of(by="", reason="the thread was deleted")
CHILD = ChildRecord.of("k1", AgentThread("Other", "t2"))


def clear(state: ThreadState, *ended: str, deletes: bool = True) -> tuple[ThreadState, Any]:
    before = state
    state, outcome = _clearing.clear(state, THREAD, Clear(mark=MARK, deletes=deletes, ended=ended), NOW)
    assert _state.load(_state.dump(state) if state != ThreadState() else None).remains == state.remains
    again, same = _clearing.clear(state, THREAD, Clear(mark=MARK, deletes=deletes, ended=ended), NOW)
    assert (again.history, again.remains, same) == (state.history, state.remains, outcome), "it may come twice"
    assert before.document == state.document or deletes
    return state, outcome


def end(state: ThreadState, turn: str) -> ThreadState:
    return _thread.abort(state, THREAD, turn, MARK.error("Joker", turn), NOW)[0]


def test_a_thread_that_is_idle_forgets_at_once_and_keeps_the_ids() -> None:
    state, outcome = clear(committed(begun("c1"), "c1"))
    assert outcome == Cleared(Remains(turns=("c1",)))
    assert (state.history, state.active) == ((), None)
    state, _ = _clearing.sweep(state, Sweep(remains=outcome.remains, deletes=True))
    assert state == ThreadState()


def test_nothing_is_made_of_a_thread_that_is_not_there() -> None:
    for deletes in (True, False):
        state, outcome = clear(ThreadState(), deletes=deletes)
        assert (state, outcome) == (ThreadState(), Cleared(Remains()))
        assert _clearing.sweep(state, Sweep(remains=Remains(), deletes=deletes))[0] == ThreadState()


def test_turns_are_cancelled_first_and_nothing_goes_before_all_have_ended() -> None:
    state, outcome = clear(begun("c1", "c2", "c3"))
    assert outcome == Clearing(("c1", "c2", "c3"))
    assert (state.active, state.waiting, story(state)) == ("c1", (), ["c1?", "c2?", "c2", "c3?", "c3"])
    state = end(state, "c1")
    response = _state.ended_in(state, "c1")
    with pytest.raises(TurnCancelled, match="the thread was deleted"):
        load_response(response, THREAD)
    # Whoever was in line may ask once more: it finds that it has ended.
    state, outcome = clear(state, "c1")
    assert outcome == Clearing(("c2", "c3"))
    assert isinstance(_thread.begin(state, THREAD, ask("c3"), NOW)[1], Ended)
    state, outcome = clear(state, "c1", "c2", "c3")
    assert set(outcome.remains.turns) == {"c1", "c2", "c3"}


def test_a_turn_that_was_terminated_is_ended_by_whoever_knows() -> None:
    state, outcome = clear(begun("c1"))
    assert outcome == Clearing(("c1",))
    state, outcome = clear(state, "c1")
    assert outcome == Cleared(Remains(turns=("c1",)))


def test_requests_that_joined_a_turn_are_waited_for_as_well() -> None:
    state = begun("c1")
    state, _ = _thread.begin(state, THREAD, ask("c2"), NOW, "steer")
    state, _ = _thread.record(state, THREAD, "c1", say("x"), state.length)
    state, _ = _thread.begin(state, THREAD, ask("c3"), NOW, "steer")
    assert (state.books.joined, [each.correlation_id for each in state.steered]) == (("c2",), ["c3"])
    state, outcome = clear(state)
    assert outcome == Clearing(("c1", "c2", "c3"))
    state, outcome = clear(end(state, "c1"), "c1", "c2", "c3")
    assert set(outcome.remains.turns) == {"c1", "c2", "c3"}


def test_a_request_that_comes_after_begins_anew_and_its_thread_stays() -> None:
    state, outcome = clear(committed(begun("c1"), "c1"))
    state, granted = _thread.begin(state, THREAD, ask("c1"), NOW)
    assert granted == Granted(1)
    state, _ = _clearing.sweep(state, Sweep(remains=outcome.remains, deletes=True))
    assert (story(state), state.active, state.remains) == (["c1?"], "c1", Remains())
    late, refused = _thread.record(state, THREAD, "c0", say("late"), 1)
    assert late is state
    assert isinstance(refused, Refused)
    assert isinstance(refused.error, TurnSuperseded)


def test_a_request_that_comes_between_is_cancelled_too() -> None:
    state, _ = clear(begun("c1"))
    state, _ = _thread.begin(end(state, "c1"), THREAD, ask("c2"), NOW)
    state, outcome = clear(state, "c1")
    assert outcome == Clearing(("c2",))


def with_child(state: ThreadState, turn: str) -> ThreadState:
    state, _ = _thread.record(state, THREAD, turn, say("x"), state.length, children=[CHILD])
    return committed(state, turn)


def test_the_turns_of_agents_used_as_tools_are_kept_and_go_along() -> None:
    state = with_child(begun("c1"), "c1")
    assert state.history[1]["dafx"]["below"]["turns"] == [CHILD.raw]
    _, outcome = clear(state)
    assert outcome.remains.children == (CHILD,)
    _, outcome = _clearing.clear(state, AgentThread("Joker", "copy"), Clear(mark=MARK, deletes=True), NOW)
    assert outcome == Cleared(Remains(turns=("c1",))), "a copy of the transcript owns no threads of the original"


@pytest.mark.parametrize("below", [5, {}, {"thread": "@dafx-joker@t1", "turns": 5}, "text"])
def test_what_others_wrote_where_we_note_child_threads_stops_nothing(below: Any) -> None:
    state = committed(begun("c1"), "c1")
    history = (state.history[0], {**state.history[1], "dafx": {"below": below}})
    _, outcome = clear(attrs.evolve(state, history=history))
    assert outcome == Cleared(Remains(turns=("c1",)))


def test_a_reset_keeps_what_others_keep_beside_the_transcript() -> None:
    document = {"schemaVersion": "1.1.0", "data": {"conversationHistory": [], "extensionData": {"vip": True}}}
    state = _state.load(document)
    state = committed(_thread.begin(state, THREAD, ask("c1"), NOW)[0], "c1")
    kept, outcome = clear(state, deletes=False)
    kept, _ = _clearing.sweep(kept, Sweep(remains=outcome.remains, deletes=False))
    assert _state.dump(kept) == document
    gone, _ = clear(state)
    assert "extensionData" not in _state.dump(gone)["data"]
    gone, _ = _clearing.sweep(gone, Sweep(remains=outcome.remains, deletes=True))
    assert gone == ThreadState()


@given(st.data())
def test_in_any_order_of_turns_and_deletions_nothing_is_left(data: st.DataObject) -> None:
    """Requests come, turns end, deleters die after any of their steps; the next one finds all that is left."""
    state, ever, removed = ThreadState(), set[str](), set[str]()
    for step in range(data.draw(st.integers(0, 25))):
        running = _clearing._running(state)
        match data.draw(st.sampled_from(["begin", "end", "clear", "sweep"])):
            case "begin":
                ever.add(turn := f"c{step}")
                state, _ = _thread.begin(state, THREAD, ask(turn), NOW)
            case "end" if state.active is not None:
                state = end(state, state.active)
            case "clear":
                known = data.draw(st.sets(st.sampled_from(sorted(ever)))) if ever else set[str]()
                state, _ = clear(state, *(known - set(running)))
            case "sweep" if not state.history:
                done = Remains(turns=state.remains.turns[: data.draw(st.integers(0, 3))])
                removed.update(done.turns)
                state, _ = _clearing.sweep(state, Sweep(remains=done, deletes=True))
            case _:
                pass
    outcome: Any = Clearing(())
    ended: set[str] = set()
    for _ in range(4):
        state, outcome = _clearing.clear(state, THREAD, Clear(mark=MARK, deletes=True, ended=tuple(ended)), NOW)
        if isinstance(outcome, Cleared):
            break
        ended.update(outcome.turns)
    assert isinstance(outcome, Cleared)
    begun_ever = removed | set(outcome.remains.turns)
    assert begun_ever == ever
    state, _ = _clearing.sweep(state, Sweep(remains=outcome.remains, deletes=True))
    assert state == ThreadState()


# --- Taking over --------------------------------------------------------------------------------------------------


def test_a_transcript_goes_into_an_empty_thread_once() -> None:
    entries = committed(begun("c1"), "c1").history
    document = {"schemaVersion": "1.1.0", "data": {"extensionData": {"vip": True}}}
    message = Import(entries=entries, document=document)
    assert Import.load(message.dump()) == message
    state, outcome = _clearing.take_over(ThreadState(), THREAD, message)
    assert outcome == Noted()
    assert _state.dump(state)["data"] == {"extensionData": {"vip": True}, "conversationHistory": list(entries)}
    assert _clearing.take_over(state, THREAD, message) == (state, Noted())
    more = attrs.evolve(message, entries=(*entries, {}))
    for used in (state, begun("c1"), _thread.begin(state, THREAD, ask("c2"), NOW)[0]):
        unchanged, refused = _clearing.take_over(used, THREAD, more)
        assert unchanged is used
        assert isinstance(refused, Refused)
        assert isinstance(refused.error, ThreadNotEmpty)
    assert isinstance(_thread.begin(state, THREAD, ask("c1"), NOW)[1], Ended), "it answers to its ids"


@pytest.mark.parametrize("document", [{"schemaVersion": "2.0.0", "data": {}}, {"data": {}}, {"schemaVersion": "1.1.0"}])
def test_a_thread_of_a_newer_version_is_not_taken_over(document: Any) -> None:
    with pytest.raises(UnsupportedTranscript):
        _clearing.take_over(ThreadState(), THREAD, Import(entries=(), document=document))


@pytest.mark.parametrize("beside", [{"dafx": {"active": "c1"}}, {"conversationHistory": []}])
def test_no_running_turn_comes_with_a_transcript(beside: Any) -> None:
    with pytest.raises(ValueError, match="entries stand for themselves"):
        Import.load({"entries": [], "document": {"schemaVersion": "1.1.0", "data": beside}})


def test_an_entry_is_an_object() -> None:
    with pytest.raises(ValueError, match="expected an object"):
        Import.load({"entries": [1], "document": {}})
