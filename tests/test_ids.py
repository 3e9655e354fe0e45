"""Names and ids: what a scheduler can hold, and nothing that it would change."""

from __future__ import annotations

import hashlib
import re
import uuid
from datetime import UTC, datetime
from typing import Any

import pytest
from durabletask.entities import EntityInstanceId
from hypothesis import given
from hypothesis import strategies as st

from dafx_actors import AgentThread, ids
from dafx_actors._json import operations as _ops
from dafx_actors._rules import state as _state
from dafx_actors._rules import thread as _thread
from dafx_actors.errors import InvalidThreadId
from dafx_actors.exchange import RunRequest
from dafx_actors.ids import new_id_mistake
from dafx_actors.transcript import ChatMessage


@pytest.mark.parametrize("name", ["Joker", "_x", "a-b_c9", "A" * 57])
def test_a_name_of_letters_digits_and_dashes_is_one(name: str) -> None:
    assert ids.agent_name_mistake(name) is None
    assert len(str(AgentThread(name, ids.new_id()).entity_id)) <= 100


@pytest.mark.parametrize("name", ["", None, 5, "9lives", "-x", "a b", "a@b", "ä", "a.turn", "a\n", "A" * 58])
def test_another_name_is_a_mistake_that_is_explained(name: object) -> None:
    assert ids.agent_name_mistake(name)


def test_names_on_the_wire_are_the_peers() -> None:
    assert ids.entity_name("Joker") == "dafx-Joker"
    assert str(AgentThread("Joker", "T1").entity_id) == "@dafx-joker@T1"
    names = [ids.turn_name("Joker"), ids.model_step_name("Joker"), ids.probe_name("Joker"), ids.tell_name("Joker")]
    assert names == ["dafx-Joker.turn", "dafx-Joker.model", "dafx-Joker.probe", "dafx-Joker.tell"]
    assert ids.tool_step_name("Joker", "look") == "dafx-Joker.tool.look"


def test_the_agent_of_a_turn_is_found_by_its_orchestration() -> None:
    assert ids.agent_of_turn(ids.turn_name("Joker")) == "Joker"
    assert ids.agent_of_turn("Joker.turn") is None
    assert ids.agent_of_turn("dafx-Joker.model") is None


JOKER = AgentThread("Joker", "t1")


def test_a_call_is_named_by_its_place_and_by_nothing_else() -> None:
    threads = [JOKER, AgentThread("Joker", "t2"), AgentThread("Clown", "t1")]
    places = [
        (t, turn, step, index) for t in threads for turn in ("c1", "c1.1") for step in (1, 11) for index in (0, 1)
    ]
    assert len({ids.call_key(*place) for place in places}) == len(places)
    assert ids.call_key(AgentThread("JOKER", "t1"), "c1", 2, 0) == ids.call_key(JOKER, "c1", 2, 0)


@given(st.text(min_size=1, max_size=100), st.integers(1, 10_000), st.integers(0, 10_000))
def test_a_calls_name_can_be_the_id_of_a_turn_and_says_nothing_of_it(turn: str, step: int, index: int) -> None:
    key = ids.call_key(JOKER, turn, step, index)
    assert re.fullmatch("[0-9a-f]{40}", key)
    assert ids.instance_id_mistake(key) is None


def test_calls_of_long_turns_do_not_share_a_name_with_those_of_other_turns() -> None:
    """What went before did: the first of these is longer than it took whole, the other is what it made of it."""
    turn = "customer-4711-" + "o" * 60
    other = hashlib.sha256(turn.encode()).hexdigest()[:32]
    assert ids.earlier_call_key(turn, 1, 0) == ids.earlier_call_key(other, 1, 0)
    assert ids.call_key(JOKER, turn, 1, 0) != ids.call_key(JOKER, other, 1, 0)


def test_turns_that_began_before_keep_the_names_of_their_calls() -> None:
    assert ids.earlier_call_key("c1", 2, 0) == "c1.2.0"
    assert ids.earlier_call_key("c" * 70, 2, 0) == hashlib.sha256(b"c" * 70).hexdigest()[:32] + ".2.0"


def test_a_new_id_is_a_uuid_and_another_each_time() -> None:
    made = {ids.new_id() for _ in range(10)}
    assert len(made) == 10
    assert all(str(uuid.UUID(each)) == each for each in made)


def test_a_thread_is_its_id_as_text() -> None:
    thread = AgentThread("Joker", "t1")
    assert str(thread) == "t1"
    assert AgentThread("Joker", str(thread)) == thread


@pytest.mark.parametrize("bad", ["", "a@b", "a/b", "a\\b", "a#b", "a?b", "a b", "a\tb", "a\nb", "\x7f", "x" * 101])
def test_what_a_key_cannot_hold_is_refused(bad: str) -> None:
    with pytest.raises(InvalidThreadId) as caught:
        AgentThread("Joker", bad)
    assert caught.value.thread_id == bad


def test_an_id_that_is_too_long_for_its_agent_says_by_how_much() -> None:
    with pytest.raises(InvalidThreadId, match="3 characters too long for agent 'Joker'"):
        AgentThread("Joker", "x" * 91)


@given(st.text(max_size=120))
def test_a_thread_id_is_refused_or_survives_the_wire(thread_id: str) -> None:
    try:
        thread = AgentThread("Joker", thread_id)
    except InvalidThreadId:
        return
    parsed = EntityInstanceId.parse(str(thread.entity_id))
    assert parsed == thread.entity_id
    assert parsed.key == thread_id


@pytest.mark.parametrize("bad", [5, None, b"t1", ["t1"]])
def test_an_id_that_is_no_text_is_refused(bad: Any) -> None:
    with pytest.raises(InvalidThreadId, match=f"no text but a {type(bad).__name__}"):
        ids.thread_of("Joker", bad)


def test_a_thread_is_named_by_itself_or_by_its_id() -> None:
    thread = AgentThread("Joker", "t1")
    assert ids.thread_of("Joker", thread) is thread
    assert ids.thread_of("Joker", "t1") == thread


def test_another_agents_thread_is_refused() -> None:
    with pytest.raises(ValueError, match="thread t1 belongs to agent 'Joker', not to 'Pirate'; take one of 'Pirate'"):
        ids.thread_of("Pirate", AgentThread("Joker", "t1"))


@pytest.mark.parametrize("character", ["\x85", "\ud83d", "\u2028", "\u2029", "\u202e", "\u2066", "\u200f"])
def test_what_nobody_can_see_is_refused_in_new_ids_only(character: str) -> None:
    """A thread that was begun under such an id before goes on under it."""
    mistake = new_id_mistake(f"a{character}b")
    assert mistake is not None
    assert mistake.isascii()
    thread = AgentThread("Joker", f"a{character}b")
    request = RunRequest(correlation_id="c1", messages=(ChatMessage("user", "Hello"),))
    now = datetime(2026, 1, 1, tzinfo=UTC)
    state, refused = _thread.begin(_state.ThreadState(), thread, request, now)
    assert state == _state.ThreadState()
    assert isinstance(refused, _ops.Refused)
    assert isinstance(refused.error, InvalidThreadId)
    begun, _ = _thread.begin(_state.ThreadState(), AgentThread("Joker", "fine"), request, now)
    later = RunRequest(correlation_id="c2", messages=(ChatMessage("user", "Hello"),))
    assert not isinstance(_thread.begin(begun, thread, later, now)[1], _ops.Refused)
    assert new_id_mistake("Zoë-7") is None
