"""What a thread does with a turn that goes on beside one that waits for a person."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import attrs
import pytest

from dafx_actors._json import operations as _ops
from dafx_actors._json.books import CancelMark, DecisionRecord, QuestionRecord
from dafx_actors._json.document import Outline, load_transcript
from dafx_actors._json.operations import Ended, Granted, Message, Queued, Refused, Reply
from dafx_actors._rules import state as _state
from dafx_actors._rules import thread as _thread
from dafx_actors._rules.beside import RUNS, UNKNOWN, WAITS, seen_by, shown_beside
from dafx_actors._rules.conversation import Waiting, conversation
from dafx_actors._rules.operations import OPERATIONS, Incoming
from dafx_actors._rules.state import ThreadState
from dafx_actors.agents import AgentDefinition
from dafx_actors.decisions import call_digest
from dafx_actors.errors import ModelError, ThreadBusy
from dafx_actors.exchange import RunRequest
from dafx_actors.ids import AgentThread
from dafx_actors.transcript import ChatMessage, FunctionCallContent, FunctionResultContent

THREAD = AgentThread("Payer", "t1")
NOW = datetime(2026, 1, 2, 12, tzinfo=UTC)
BESIDE = AgentDefinition(name="Payer", overlap="beside")
PAY = FunctionCallContent("call-1", "pay", {"amount": 5})
LOOK = FunctionCallContent("call-1", "look", {})


class Thread:
    """A thread that is told what turns tell it, and is stored after each operation."""

    def __init__(self, definition: AgentDefinition = BESIDE) -> None:
        self.state = ThreadState()
        self.definition = definition

    def tell(self, message: Message) -> Any:
        incoming = Incoming(thread=THREAD, raw=message.dump(), now=NOW, definition=self.definition)
        state, outcome = OPERATIONS[message.operation](self.state, incoming)
        self.state = _state.load(_state.dump(state))
        return Reply.load(Reply(outcome=outcome).dump(), THREAD, message.turn).outcome

    def begin(self, turn: str) -> Any:
        return self.tell(_ops.Begin(RunRequest(correlation_id=turn, messages=(ChatMessage("user", f"{turn}?"),))))

    def record(self, turn: str, *messages: ChatMessage, **how: Any) -> Any:
        length = seen_by(self.state, turn).length
        return self.tell(_ops.Record(turn=turn, length=length, messages=messages, **how))

    def commit(self, turn: str, text: str) -> Any:
        return self.tell(_ops.Commit(turn=turn, messages=(ChatMessage("assistant", text),)))

    def waits(self, turn: str = "c1", key: str = "k1", kind: Any = "approval") -> Any:
        """The turn records a call that waits for a person."""
        question = QuestionRecord.of(
            key=key, kind=kind, call_key="k1", call_id=PAY.call_id, tool="pay", arguments=PAY.arguments, asked_at=NOW
        )
        return self.record(
            turn, *([ChatMessage("assistant", [PAY])] if kind == "approval" else []), questions=[question]
        )

    def decide(self, turn: str = "c1", key: str = "k1") -> Any:
        decision = DecisionRecord.load({"action": "approve", "at": NOW.isoformat()})
        return self.tell(_ops.Decide(turn=turn, key=key, digest=call_digest("pay", PAY.arguments), decision=decision))

    def shown(self, turn: str) -> list[str]:
        """What the model is shown in this turn, in short."""
        transcript, waits = load_transcript(_state.dump(self.state)), None
        if turn != self.state.active and self.state.active is not None:
            transcript = attrs.evolve(transcript, draft=seen_by(self.state, turn).draft)
            waits = Waiting(self.state.active, shown_beside(self.state))
        said = conversation(transcript, turn, waits)
        return [f"{each.role}: {each.text or ', '.join(map(_short, each.contents))}" for each in said]

    @property
    def story(self) -> list[str]:
        return [raw["correlationId"] + ("?" if raw["$type"] == "request" else "") for raw in self.state.history]


def _short(content: Any) -> str:
    return content.name if isinstance(content, FunctionCallContent) else str(getattr(content, "result", ""))


def waiting() -> Thread:
    thread = Thread()
    assert isinstance(thread.begin("c1"), Granted)
    assert isinstance(thread.waits(), Granted)
    return thread


def test_a_request_goes_on_beside_one_that_waits_for_a_person() -> None:
    thread = waiting()
    granted = thread.begin("c2")
    assert granted == Granted(2, beside="c1")
    assert (thread.state.active, thread.state.beside and thread.state.beside.turn) == ("c1", "c2")
    assert thread.shown("c2") == ["user: c1?", "assistant: pay", f"tool: {WAITS}", "user: c2?"]
    ended = thread.commit("c2", "It waits for you.")
    assert isinstance(ended, Ended)
    assert (thread.story, thread.state.beside, thread.state.active) == (["c1?", "c2?", "c2"], None, "c1")


def test_the_first_is_then_shown_what_was_said_and_no_call_is_parted_from_its_result() -> None:
    thread = waiting()
    thread.begin("c2")
    thread.commit("c2", "It waits for you.")
    thread.decide()
    thread.record("c1", ChatMessage("tool", [FunctionResultContent(PAY.call_id, "paid")]))
    assert thread.shown("c1") == [
        "user: c2?",
        "assistant: It waits for you.",
        "user: c1?",
        "assistant: pay",
        "tool: paid",
    ]
    thread.commit("c1", "Paid.")
    thread.begin("c3")
    assert thread.shown("c3")[-5:] == ["user: c1?", "assistant: pay", "tool: paid", "assistant: Paid.", "user: c3?"]


def test_while_nobody_is_waited_for_a_request_queues() -> None:
    thread = Thread()
    thread.begin("c1")
    assert thread.begin("c2") == Queued("c1")
    # As soon as the first waits, the next in line hears that it may begin.
    assert thread.waits().next_id == "c2"
    assert thread.begin("c2").beside == "c1"
    # And one after the other: the third waits for the second.
    assert thread.begin("c3") == Queued("c2")
    assert thread.commit("c2", "Two.").next_id == "c3"
    assert thread.begin("c3").beside == "c1"


def test_decided_meanwhile_both_go_on_each_with_its_own_draft() -> None:
    thread = waiting()
    thread.begin("c2")
    thread.record("c2", ChatMessage("assistant", [LOOK]))
    thread.decide()
    thread.record("c1", ChatMessage("tool", [FunctionResultContent(PAY.call_id, "paid")]))
    thread.record("c2", ChatMessage("tool", [FunctionResultContent(LOOK.call_id, "seen")]))
    assert thread.shown("c2")[-3:] == ["user: c2?", "assistant: look", "tool: seen"]
    assert thread.shown("c1")[-2:] == ["assistant: pay", "tool: paid"]
    # Nobody is waited for any more: what comes now queues behind the first.
    assert thread.begin("c3") == Queued("c1")
    ended = thread.commit("c2", "Two.")
    assert ended.next_id is None
    assert thread.commit("c1", "One.").next_id == "c3"
    assert thread.story == ["c1?", "c2?", "c2", "c1"]


def test_where_the_first_ends_first_the_other_takes_its_place() -> None:
    thread = waiting()
    thread.begin("c2")
    thread.record("c2", ChatMessage("assistant", [LOOK]))
    thread.begin("c3")
    ended = thread.tell(_ops.Abort(turn="c1", error=ModelError("bad_request", "no")))
    assert ended.next_id is None
    assert (thread.state.active, thread.state.beside) == ("c2", None)
    thread.record("c2", ChatMessage("tool", [FunctionResultContent(LOOK.call_id, "seen")]))
    assert thread.shown("c2")[-3:] == ["user: c2?", "assistant: look", "tool: seen"]
    assert thread.commit("c2", "Two.").next_id == "c3"
    assert thread.story == ["c1?", "c2?", "c1", "c2"]


def test_it_says_what_stands_with_each_call() -> None:
    thread = Thread()
    thread.begin("c1")
    running = FunctionCallContent("call-2", "slow", {})
    question = QuestionRecord.of(
        key="k1", kind="approval", call_key="k1", call_id="call-1", tool="pay", arguments={}, asked_at=NOW
    )
    thread.record("c1", ChatMessage("assistant", [PAY, running]), questions=[question])
    assert [each.result for each in shown_beside(thread.state)[-1].contents] == [WAITS, RUNS]  # type: ignore[union-attr]
    outcome = waiting()
    outcome.decide()
    outcome.waits(kind="outcome", key="k1.outcome1")
    assert [each.result for each in shown_beside(outcome.state)[-1].contents] == [UNKNOWN]  # type: ignore[union-attr]


def test_every_message_may_come_twice() -> None:
    thread = waiting()
    assert thread.begin("c2").length == thread.begin("c2").length == 2
    thread.record("c2", ChatMessage("assistant", [LOOK]))
    before = thread.state
    thread.tell(_ops.Record(turn="c2", length=2, messages=(ChatMessage("assistant", [LOOK]),)))
    assert thread.state == before
    thread.commit("c2", "Two.")
    before = thread.state
    assert isinstance(thread.commit("c2", "Two."), Ended)
    assert isinstance(thread.begin("c2"), Ended)
    assert thread.state == before


def test_either_can_be_cancelled() -> None:
    mark = CancelMark.of(by="Ann", reason="")
    thread = waiting()
    thread.begin("c2")
    assert thread.tell(_ops.Cancel(turn="c2", mark=mark)).turn == "c2"
    ended = thread.commit("c2", "Two.")
    assert "TurnCancelled" in str(ended.response)
    assert (thread.state.active, thread.state.cancelled) == ("c1", {})
    thread.begin("c3")
    thread.tell(_ops.Cancel(turn="c1", mark=mark))
    # Nobody is waited for any more.
    assert thread.begin("c4") == Queued("c1", ("c1",))
    thread.tell(_ops.Abort(turn="c1", error=ModelError("bad_request", "no")))
    assert thread.state.active == "c3"


def test_both_hear_that_the_thread_is_reset() -> None:
    thread = waiting()
    thread.begin("c2")
    assert [each.turn for each in _thread.lost_by(thread.state, "reset")] == ["c1", "c2"]
    state, _ = _thread.reset(thread.state)
    assert (state.active, state.beside, state.history) == (None, None, ())


@pytest.mark.parametrize("overlap", ["queue", "reject"])
def test_only_where_the_agent_says_so(overlap: Any) -> None:
    thread = Thread(AgentDefinition(name="Payer", overlap=overlap))
    thread.begin("c1")
    thread.waits()
    outcome = thread.begin("c2")
    assert isinstance(outcome, Queued) or (isinstance(outcome, Refused) and isinstance(outcome.error, ThreadBusy))
    assert thread.state.beside is None


def test_what_a_client_is_shown() -> None:
    thread = waiting()
    thread.begin("c2")
    thread.tell(_ops.Note(turn="c2", key="k9", progress=50))
    thread.tell(_ops.Note(turn="c1", key="k1", progress=10))
    outline = Outline.of(_state.dump(thread.state))
    assert (outline.active, [each.key for each in outline.questions]) == ("c1", ["k1"])
    assert (outline.progress["c1"], outline.progress["c2"]) == ({"k1": 10}, {"k9": 50})


def test_the_line_does_not_wait_for_one_that_has_ended_already() -> None:
    thread = waiting()
    thread.begin("c2")
    thread.begin("c3")
    ask = _ops.Ask(_ops.place_of(RunRequest(correlation_id="c3", messages=(ChatMessage("user", "c3?"),))))
    assert thread.tell(ask) == Queued("c2")
    thread.commit("c2", "Two.")
    assert isinstance(thread.tell(ask), _ops.Wanted)


def test_what_is_to_join_the_first_does_not_go_on_beside_it() -> None:
    thread = Thread(AgentDefinition(name="Payer", overlap="steer"))
    thread.begin("c1")
    thread.begin("c2")
    thread.definition = BESIDE  # another version is deployed
    thread.waits()
    assert thread.begin("c2") == Queued("c1")
    assert thread.state.beside is None
