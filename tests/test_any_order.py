"""Turns and their thread, taken through whatever order of events: nothing is lost, and nothing happens twice.

The rules of `_thread.py` and `_turn.py` run here without a scheduler. `Execution` goes through a turn, and `Turns`
decides what happens next: which
operation arrives, which event is delivered, which worker dies, what a model says and what people want.

    pytest tests/test_any_order.py --hypothesis-profile=thorough --timeout=0
"""

from __future__ import annotations

import functools
import json
from collections import Counter
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, cast

import jsonschema  # type: ignore[import-untyped]  # its stubs are a package of their own
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from dafx_actors._json import messages as _codec
from dafx_actors._rules import operations as _operations
from dafx_actors._rules import thread as _thread
from dafx_actors._rules import turn as _turn
from dafx_actors._rules.thread import ThreadState
from dafx_actors.agents import AgentDefinition
from dafx_actors.decisions import call_digest
from dafx_actors.errors import ModelError, TurnCancelled, TurnDeadlineExceeded
from dafx_actors.exchange import Overlap, RunRequest
from dafx_actors.transcript import ChatMessage, FunctionCallContent, FunctionResultContent, Json, Response, UsageStats
from tests.pure_turn import THREAD, Activity, Decided, Execution, Probe, Reply, Tell, Wait

SCHEMA = json.loads((Path(__file__).parent / "data" / "durable-agent-entity-state.json").read_text())
VALIDATOR: Any = jsonschema.Draft202012Validator(SCHEMA)
NOON = datetime(2025, 1, 2, 12, tzinfo=timezone.utc)
TURNS = ("c1", "c2", "c3", "c4")
OVERLAPS: tuple[Overlap, ...] = ("queue", "reject", "cancel_previous", "steer")
AGENTS = {overlap: AgentDefinition(name="Joker", overlap=overlap) for overlap in OVERLAPS}
PLANS: dict[str, dict[str, Json]] = {
    "plain": {"activity": "plain"},
    "alone": {"activity": "alone", "alone": True},
    "wrong": {"refusal": "there is no such tool"},
    "guarded": {"activity": "guarded", "approval": {"seconds": None, "onTimeout": "deny"}},
    "expiring": {"activity": "expiring", "approval": {"seconds": 60.0, "onTimeout": "fail"}},
    "lapsing": {"activity": "lapsing", "approval": {"seconds": 60.0, "onTimeout": "deny"}},
    "once": {"activity": "once", "once": True},
    "both": {"activity": "both", "once": True, "approval": {"seconds": None, "onTimeout": "deny"}},
}
"""The tools that the model has, and one that it only believes to have."""
TOOLS = st.tuples(st.sampled_from(sorted(PLANS)), st.sampled_from(["x", "y"]))

RARELY = st.sampled_from([False, False, False, True])

BY_DEFAULT = settings(max_examples=150, stateful_step_count=25, deadline=None, derandomize=True)
SETTINGS = settings() if settings.get_current_profile_name() == "thorough" else BY_DEFAULT


def unanswered(messages: Iterable[ChatMessage]) -> list[str]:
    """Calls that are not followed by exactly their results, before any other message."""
    wrong: list[str] = []
    opened: Counter[str] = Counter()
    for message in messages:
        results = [content.call_id for content in message.contents if isinstance(content, FunctionResultContent)]
        if not results:
            wrong += opened.elements()
            opened.clear()
        wrong += (Counter(results) - opened).elements()
        opened -= Counter(results)
        opened += Counter(content.call_id for content in message.contents if isinstance(content, FunctionCallContent))
    return wrong + list(opened.elements())


class Turns(RuleBasedStateMachine):
    """One thread, four turns, and everything that can happen to them."""

    def __init__(self) -> None:
        super().__init__()
        self.state = ThreadState()
        self.now = NOON
        self.overlap: Overlap = "queue"
        """Of the agent; some requests come while another version of it is deployed."""
        self.live: dict[str, Execution] = {}
        """The latest execution of each turn."""
        self.activities: list[Activity] = []
        self.events: list[tuple[str, str, Json]] = []
        self.sent: list[tuple[str, Overlap, dict[str, Json]]] = []
        """Operations that arrived, and may arrive again."""
        self.begun: set[str] = set()
        """Turns that the thread has taken on, since it was reset."""
        self.answers: dict[str, Json] = {}
        """The response of each turn that has ended, since the thread was reset."""
        self.cancelled: set[str] = set()
        """Turns whose cancellation was acknowledged, since the thread was reset or since they ended."""
        self.approved: set[tuple[str, str]] = set()
        """Calls that a person approved: key and digest."""
        self.goes: dict[tuple[str, int], str] = {}
        """Who may make an attempt of a call that may act only once."""
        self.effects: Counter[str] = Counter()
        self.again: Counter[str] = Counter()
        """How often a person wanted a call made again."""
        self.tokens = 0
        self.valid: set[str] = set()
        """Entries that have been held against the schema."""

    # --- The thread ---

    def tell(self, operation: str, raw: Json, overlap: Overlap = "queue", *, again: bool = False) -> Json:
        """An operation arrives; what it gives, and what must be true of that."""
        self.now += timedelta(seconds=1)
        told = _operations.Message(thread=THREAD, raw=raw, now=self.now, definition=AGENTS[overlap])
        before = self.state
        changed, outcome = _operations.OPERATIONS[operation](before, told)
        given = _operations.dump_outcome(outcome)
        if changed is not before:
            self.store(changed)
        if given and "error" in given:
            assert changed is before, "what is refused changes nothing"
        if not again and operation != "reset":
            self.sent.append((operation, overlap, raw))
        if operation == "begin" and ("granted" in given or "queued" in given):
            self.begun.add(raw["correlationId"])
        if given and "cancelled" in given and operation == "cancel":
            self.cancelled.add(given["turn"])
            self.send(given["turn"], "cancel", given["cancelled"])
        if operation == "begin" and "queued" in given:
            self.cancelled |= set(self.state.cancelled)
        if given and "ended" in given and operation == "cancel":
            self.send(raw["correlationId"], "cancel", raw["mark"])
            if given.get("next"):
                self.send(given["next"], "granted", None)
        if given and "decided" in given:
            self.send(raw["correlationId"], f"decision.{raw['key']}", given["decided"])
            if given["decided"]["action"] == "approve":
                self.approved.add((raw["key"], given["decided"]["digest"]))
        if given and given.get("attempt") == "go":
            assert raw["correlationId"] == self.state.active
            assert raw["correlationId"] not in self.cancelled, "no tool acts after the turn was cancelled"
            assert self.goes.setdefault((raw["key"], raw["number"]), raw["token"]) == raw["token"]
        return given

    def store(self, changed: ThreadState) -> None:
        """It is stored and read, in the form that the schema says; what has been held against that is not again."""
        document = json.loads(json.dumps(_thread.dump(changed)))
        fresh = [raw for raw in document["data"]["conversationHistory"] if json.dumps(raw) not in self.valid]
        VALIDATOR.validate({**document, "data": {**document["data"], "conversationHistory": fresh}})
        self.valid |= {json.dumps(raw) for raw in fresh}
        self.state = _thread.load(document)
        assert _thread.dump(self.state) == document

    def send(self, turn: str, event: str, data: Json) -> None:
        self.events.append((turn, event, data))

    # --- What happens ---

    @initialize(overlap=st.sampled_from(OVERLAPS))
    def declare(self, overlap: Overlap) -> None:
        self.overlap = overlap

    @rule(
        turns=st.lists(st.sampled_from(TURNS), min_size=1, max_size=3, unique=True),
        overlap=st.sampled_from([None, None, None, *OVERLAPS]),
        schema=st.sampled_from([None, None, {"type": "object"}]),
        data=st.data(),
        times=st.integers(0, 30),
    )
    def start(self, turns: list[str], overlap: Overlap | None, schema: Json, data: st.DataObject, times: int) -> None:
        """Clients start turns, and everybody goes on for a while."""
        for turn in turns:
            self.start_one(turn, overlap or self.overlap, schema)
        self.go_on(data, times)

    def start_one(self, turn: str, overlap: Overlap, schema: Json) -> None:
        """A client starts a turn, or again one whose orchestration is gone."""
        if turn in self.live and self.live[turn].outcome is None:
            return
        earlier = self.live.get(turn)
        self.sent = [sent for sent in self.sent if sent[2]["correlationId"] != turn]
        self.events = [event for event in self.events if event[0] != turn]
        request = RunRequest(
            correlation_id=turn,
            messages=(ChatMessage("user", f"{turn}?"),),
            response_schema=earlier.request.response_schema if earlier else schema,
        )
        execution = self.live[turn] = Execution(self, request)
        self.serve(execution, overlap)

    def waiting(self, kind: type[Any] | tuple[type[Any], ...]) -> list[Execution]:
        return [each for each in self.live.values() if isinstance(each.awaits, kind)]

    def serve(self, execution: Execution, overlap: Overlap = "queue") -> None:
        """Let a turn have the one thing that it waits for, where nobody has to say what that is."""
        match execution.awaits:
            case Tell(operation, raw):
                execution.go(self.tell(operation, raw, overlap))
            case Probe(turn):
                other = self.live.get(turn)
                alive = other is not None and other.outcome is None
                response = other.outcome[1] if other and other.outcome and other.outcome[0] == "ended" else None
                if response is not None and _failed(response):
                    response = None
                execution.go({"alive": alive, "response": response})
            case Wait():
                execution.go(None)
            case _:
                pass

    @rule(data=st.data(), times=st.integers(1, 30))
    def go_on(self, data: st.DataObject, times: int) -> None:
        """Everybody does what is to be done, in any order: events arrive, workers work, models answer."""
        for _ in range(times):
            self.hand_out_activities()
            if not (ready := self.ready()):
                return
            data.draw(st.sampled_from(ready))(data)

    def ready(self) -> list[Callable[[st.DataObject], None]]:
        """What could happen next without anybody's ill will."""
        asks = self.state.books.asks
        return [
            *(functools.partial(self.deliver, event) for event in self.events),
            *(functools.partial(self.work, activity) for activity in self.activities),
            *(functools.partial(self.serve_call, key, execution) for execution, key, _ in self.pending_calls(Tell)),
            *(functools.partial(self.go_on_with, execution) for execution in self.waiting((Tell, Probe, Wait))),
            *(functools.partial(self.reply, execution) for execution in self.waiting(Reply)),
            *(functools.partial(self.deadline, k, e) for e, k, each in self.pending_calls(Decided) if each.may_expire),
            *(functools.partial(self.decide, key) for key, ask in sorted(asks.items()) if "decision" not in ask),
        ]

    def go_on_with(self, execution: Execution, data: st.DataObject) -> None:
        self.serve(execution, self.overlap)
        again: bool = data.draw(RARELY)
        if again and self.sent:
            self.repeat(self.sent[-1])

    def serve_call(self, key: str, execution: Execution, _: st.DataObject) -> None:
        awaited = execution.calls[key][1]
        assert isinstance(awaited, Tell)
        execution.go_call(key, self.tell(awaited.operation, awaited.raw))

    def deliver(self, event: tuple[str, str, Json], _: st.DataObject) -> None:
        """An event arrives, not always in its order."""
        self.events.remove(event)
        self.hear(*event)

    def hear(self, turn: str, name: str, given: Json) -> None:
        execution = self.live.get(turn)
        if execution is None or execution.outcome is not None:
            return
        if name == "cancel":
            by = str((given or {}).get("by") or "")
            execution.stop = TurnCancelled("Joker", turn, "", by)
            execution.interrupt()
        elif name == "granted":
            if isinstance(execution.awaits, Wait):
                execution.go(given)
            else:
                execution.grants.append(given)
        else:
            key = name.removeprefix("decision.")
            execution.decisions.setdefault(key, given)
            self.decide_waiting(execution)

    def decide_waiting(self, execution: Execution) -> None:
        for key, (_, awaited) in list(execution.calls.items()):
            if isinstance(awaited, Decided) and awaited.key in execution.decisions:
                execution.go_call(key, execution.decisions[awaited.key])

    # --- Models ---

    def check_conversation(self, execution: Execution) -> None:
        if self.state.active != execution.turn:
            return  # it was taken over, or the thread reset; the step fails and the turn finds out
        transcript = _codec.load_transcript(_thread.dump(self.state))
        assert not unanswered(_turn.conversation(transcript, execution.turn))

    def reply(self, execution: Execution, data: st.DataObject) -> None:
        """A model answers, fails, or asks for tools, and gives its calls ids that come again."""
        self.check_conversation(execution)
        kind: Any = data.draw(st.sampled_from(["answer", "invalid", "timeout", "bad_request", *["tools"] * 6]))
        if kind in ("timeout", "bad_request"):
            execution.go({"error": _codec.dump_error(ModelError(kind, "no"))})
            return
        tools = data.draw(st.lists(TOOLS, min_size=1, max_size=3)) if kind == "tools" else []
        calls = tuple(FunctionCallContent(call_id, name, {"n": n}) for n, (name, call_id) in enumerate(tools))
        answer: dict[str, Json] = {"message": _codec.dump_message(ChatMessage("assistant", calls or "Ha."))}
        if calls:
            answer["calls"] = [PLANS[name] for name, _ in tools]
        elif kind == "invalid" and execution.request.response_schema is not None:
            answer["invalid"] = "it is no JSON"
        execution.go({**answer, "usage": _codec.dump_usage(UsageStats(1, 1, 2))})

    # --- Tools ---

    def pending_calls(self, kind: type[Any]) -> list[tuple[Execution, str, Any]]:
        return [
            (execution, key, awaited)
            for execution in self.live.values()
            for key, (_, awaited) in sorted(execution.calls.items())
            if isinstance(awaited, kind)
        ]

    @invariant()
    def hand_out_activities(self) -> None:
        known = {id(activity) for activity in self.activities}
        self.activities += [each for _, _, each in self.pending_calls(Activity) if id(each) not in known]
        for execution in self.live.values():
            self.decide_waiting(execution)

    def work(self, activity: Activity, data: st.DataObject) -> None:
        """A worker goes one step on with a tool call, or dies: then another begins it again."""
        if data.draw(st.integers(0, 3)) == 3:
            activity.phase, activity.token = "start", ""
        else:
            self.work_on(activity, knows=data.draw(st.booleans()))

    def work_on(self, activity: Activity, knows: bool) -> None:
        key, name = activity.key, activity.name
        match activity.phase:
            case "start":
                if self.state.active != activity.turn or self.state.length < activity.length:
                    self.finish(activity, {"error": "stale"})
                elif not _thread.may_act(self.state, activity.turn):
                    self.finish(activity, {"error": "cancelled", "stopped": True})
                elif PLANS[name].get("approval") and not self.allowed(activity):
                    self.finish(activity, {"error": "it needs approval"})
                elif PLANS[name].get("once"):
                    activity.phase = "attempt"
                else:
                    assert activity.turn not in self.cancelled, "no tool acts after the turn was cancelled"
                    self.finish(activity, {"result": "done"})
            case "attempt":
                self.tokens += 1
                token = f"t{self.tokens}"
                told = {"correlationId": activity.turn, "key": key, "number": activity.number, "token": token}
                answer = self.tell("attempt", told)["attempt"]
                if answer == "go":
                    activity.phase = "act"
                elif answer == "stop":
                    self.finish(activity, {"error": "cancelled", "stopped": True})
                else:
                    done = {"result": "done"} if self.effects[key] else {"notDone": True}
                    self.finish(activity, done if knows else {"unknown": True})
            case "act":
                self.effects[key] += 1
                assert self.effects[key] <= 1 + self.again[key], "it acts once, unless a person wants it again"
                activity.phase = "acted"
            case _:
                self.finish(activity, {"result": "done"})

    def allowed(self, activity: Activity) -> bool:
        digest = call_digest(activity.name, activity.arguments)
        allowed = _thread.is_approved(self.state, activity.key, digest)
        assert not allowed or (activity.key, digest) in self.approved, "somebody approved this very call"
        return allowed

    def finish(self, activity: Activity, outcome: Json) -> None:
        self.activities.remove(activity)
        execution = activity.execution
        if execution.outcome is None and execution.calls.get(activity.key, (None, None))[1] is activity:
            execution.go_call(activity.key, outcome)

    def deadline(self, key: str, execution: Execution, _: st.DataObject) -> None:
        execution.go_call(key, "deadline")

    # --- People ---

    @rule(turn=st.sampled_from([*TURNS, "unheard of"]), what=st.sampled_from(["cancel", "time", "die", "reset"]))
    def harm(self, turn: str, what: str) -> None:
        """Somebody or something comes in between."""
        {"cancel": self.cancel, "time": self.time_is_over, "die": self.die, "reset": self.reset}[what](turn)

    @precondition(lambda self: self.state.books.asks)
    @rule(data=st.data())
    def change_a_mind(self, data: st.DataObject) -> None:
        self.decide(data.draw(st.sampled_from(sorted(self.state.books.asks))), data)

    def decide(self, key: str, data: st.DataObject) -> None:
        """Somebody decides about a call, perhaps about one that they saw differently."""
        action = data.draw(st.sampled_from(["approve", "approve", "edit", "deny", "retry", "retry", "result", "fail"]))
        stale = data.draw(RARELY)
        ask: Json = self.state.books.asks[key]
        decision: dict[str, Json] = {"action": action, "by": "Ann", "at": "2025-01-02T12:00:00+00:00"}
        if action == "edit":
            decision = {"action": "approve", "by": "Ann", "at": "2025-01-02T12:00:00+00:00", "arguments": {"n": 7}}
        digest = "another" if stale else ask["digest"]
        told = {"correlationId": self.state.active or "?", "key": key, "digest": digest, "decision": decision}
        given = self.tell("decide", told)
        assert "error" in given or not stale
        if "decided" in given and given["decided"]["action"] == "retry" and "decision" not in ask:
            self.again[key.split(".outcome")[0]] += 1

    def cancel(self, turn: str) -> None:
        given = self.tell(
            "cancel",
            {"correlationId": turn, "mark": {"by": "Ann", "at": "2025-01-02T12:00:00+00:00", "reason": "enough"}},
        )
        if "ended" in given:
            assert turn not in self.answers or given["ended"] == self.answers[turn]
        else:
            assert given["turn"] in {turn, self.state.active}
            assert not _thread.may_act(self.state, given["turn"])

    def time_is_over(self, turn: str) -> None:
        execution = self.live.get(turn)
        if execution is not None and execution.outcome is None:
            execution.stop = TurnDeadlineExceeded("Joker", turn, 60.0)
            execution.interrupt()

    def die(self, turn: str) -> None:
        """Somebody terminates the turn's orchestration; its tool calls go on."""
        execution = self.live.get(turn)
        if execution is not None and execution.outcome is None:
            execution.outcome, execution.awaits, execution.calls = ("dead", None), None, {}

    def reset(self, _: str) -> None:
        self.tell("reset", {"correlationId": "?"})
        self.begun = {request.correlation_id for request in self.state.waiting}
        self.answers, self.sent, self.approved, self.goes = {}, [], set(), {}
        self.cancelled &= set(self.state.cancelled)
        self.effects, self.again = Counter(), Counter()
        self.activities = [each for each in self.activities if each.phase == "start"]

    @precondition(lambda self: self.sent)
    @rule(data=st.data())
    def arrive_again(self, data: st.DataObject) -> None:
        """An operation arrives a second time, however late."""
        self.repeat(data.draw(st.sampled_from(self.sent)))

    def repeat(self, sent: tuple[str, Overlap, dict[str, Json]]) -> None:
        operation, overlap, raw = sent
        if operation == "begin":
            turn = raw["correlationId"]
            if turn not in self.begun:
                return  # it was refused at first
        before = self.state
        self.tell(operation, raw, overlap, again=True)
        if _lacks(before, raw["correlationId"]) and not _lacks(self.state, raw["correlationId"]):
            assert self.state.length == before.length, "it brings the request that was missing, in its place"
        elif operation != "cancel" and before.active is not None:
            assert self.state == before, operation

    # --- What is always true ---

    @invariant()
    def no_turn_is_lost(self) -> None:
        books = self.state.books
        places = [
            *([self.state.active] if self.state.active else []),
            *(place.correlation_id for place in self.state.waiting),
            *(request.correlation_id for request in self.state.steered),
            *books.joined,
        ]
        ended = [turn for raw in self.responses() for turn in _turns_of(raw)]
        assert len(places + ended) == len(set(places + ended)), "each turn is in one place"
        assert self.begun <= set(places + ended)

    def responses(self) -> list[Json]:
        return [raw for raw in self.state.history if raw["$type"] == "response"]

    @invariant()
    def an_answer_stays_as_it_is(self) -> None:
        for raw in self.responses():
            for turn in _turns_of(raw):
                assert self.answers.setdefault(turn, raw) == raw
        asked = [raw["correlationId"] for raw in self.state.history if raw["$type"] == "request"]
        assert len(asked) == len(set(asked))
        told = {turn for raw in self.responses() for turn in _turns_of(raw)}
        assert set(self.answers) == told

    @invariant()
    def every_call_has_its_result(self) -> None:
        for raw in self.responses():
            response = _codec.load_entry(raw)
            assert isinstance(response, Response)
            assert not unanswered(response.messages)
            joined = Counter(m.extra["correlationId"] for m in response.messages if "correlationId" in m.extra)
            assert joined == Counter(_turns_of(raw)[1:]), "what joined stands in it once"

    @invariant()
    def the_cancelled_are_not_answered(self) -> None:
        for raw in self.responses():
            if raw["correlationId"] in self.cancelled:
                assert _codec.load_cancellation(raw) is not None
        if self.state.active in self.cancelled:
            assert not _thread.may_act(self.state, self.state.active or "")

    @invariant()
    def nothing_is_kept_of_what_has_ended(self) -> None:
        ours = set(_thread.dump(self.state)["data"].get("dafx", {}))
        if self.state.active is None:
            assert ours <= {"line", "cancelled"}
            assert "line" not in ours or self.state.waiting
        assert not set(self.state.cancelled) & set(self.answers), "marks are for turns that have not ended"

    def teardown(self) -> None:
        """Whatever happened: when people decide, and workers work, each turn that has begun ends."""
        for _ in range(400):
            self.hand_out_activities()
            if not self.go_on_by_itself():
                break
        else:
            raise AssertionError("the turns do not come to an end")
        self.no_turn_is_lost()
        self.an_answer_stays_as_it_is()
        self.every_call_has_its_result()
        assert (self.state.active, self.state.waiting, self.state.steered) == (None, (), ())
        assert self.begun <= set(self.answers)

    def go_on_by_itself(self) -> bool:
        """Whether something was left to do."""
        if self.events:
            self.hear(*self.events.pop(0))
        elif self.activities:
            self.work_on(self.activities[0], knows=True)
        elif told := self.pending_calls(Tell):
            execution, key, awaited = told[0]
            execution.go_call(key, self.tell(awaited.operation, awaited.raw))
        elif ready := self.waiting((Tell, Probe)):
            self.serve(ready[0])
        elif thinking := self.waiting(Reply):
            self.check_conversation(thinking[0])
            thinking[0].go({"message": _codec.dump_message(ChatMessage("assistant", "Ha."))})
        elif asked := [ask for ask in self.state.books.asks.values() if self.is_waited_for(ask)]:
            ask: Json = asked[0]
            action = "deny" if ask["kind"] == "approval" else "fail"
            decision = ask.get("decision") or {"action": action, "by": "Ann", "at": "2025-01-02T12:00:00+00:00"}
            told_ = {"correlationId": self.state.active, "key": ask["key"], "digest": ask["digest"]}
            assert "decided" in self.tell("decide", {**told_, "decision": decision})
        elif queued := self.waiting(Wait):
            self.serve(queued[0])
            self.live = {**{t: e for t, e in self.live.items() if e is not queued[0]}, queued[0].turn: queued[0]}
        elif self.state.active is not None or self.state.waiting:
            active = self.live.get(self.state.active or "")
            assert active is None or active.outcome is not None, "else it would have gone on"
            last = RunRequest(correlation_id=f"last{len(self.live)}", messages=(ChatMessage("user", "."),))
            self.live[last.correlation_id] = Execution(self, last)
        else:
            return False
        return True

    def is_waited_for(self, ask: Json) -> bool:
        return any(awaited.key == ask["key"] for _, _, awaited in self.pending_calls(Decided))


def _turns_of(raw: Json) -> list[str]:
    return [raw["correlationId"], *(raw.get("dafx") or {}).get(_thread.JOINED, ())]


def _lacks(state: ThreadState, turn: str) -> bool:
    """Whether a turn had to leave the line before it could bring its request."""
    asked = [raw for raw in state.history if raw["$type"] == "request" and raw["correlationId"] == turn]
    return any(not raw["messages"] for raw in asked)


def _failed(raw: Json) -> bool:
    return cast("Response", _codec.load_entry(raw)).error is not None


TestTurns = Turns.TestCase
TestTurns.settings = settings(SETTINGS, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
