"""Turns and their thread, taken through whatever order of events: nothing is lost, and nothing happens twice.

The product's own turns (`_turns/steps.py`, `_turns/calls.py`) and rules run here without a scheduler and without a
worker. `Turns` decides what happens next: which operation arrives, which event is delivered, which timer fires, which
worker dies, what a model says and what people want.

    pytest tests/test_any_order.py --hypothesis-profile=thorough --timeout=0
"""

from __future__ import annotations

import functools
import json
from collections import Counter
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import attrs
import jsonschema  # type: ignore[import-untyped]  # its stubs are a package of their own
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from dafx_actors._json.books import CancelMark, DecisionRecord, Place, QuestionRecord
from dafx_actors._json.document import load_transcript
from dafx_actors._json.messages import load_entry
from dafx_actors._json.operations import (
    Attempt,
    Attempted,
    Cancel,
    Cancelled,
    Decide,
    Decided,
    Ended,
    Granted,
    Message,
    Outcome,
    Queued,
    Refused,
    Reply,
    Telling,
    with_error_only,
)
from dafx_actors._json.requests import load_cancellation
from dafx_actors._json.steps import (
    FORM,
    ApprovalPlan,
    Begun,
    Failed,
    ModelAnswer,
    ModelResult,
    ModelStep,
    NotMade,
    NotRecorded,
    Plan,
    Probe,
    Probed,
    Returned,
    Settings,
    ToolOutcome,
    ToolStep,
    Unknown,
    dump_tool_outcome,
)
from dafx_actors._rules import calls as _calls
from dafx_actors._rules import operations as _operations
from dafx_actors._rules import resuming as _resuming
from dafx_actors._rules import state as _state
from dafx_actors._rules.beside import seen_by, shown_beside
from dafx_actors._rules.conversation import Waiting, conversation
from dafx_actors._rules.state import JOINED, ThreadState
from dafx_actors._rules.thread import is_granted, lost_by
from dafx_actors._turns.steps import TurnSteps
from dafx_actors._turns.tell import tell
from dafx_actors.agents import AgentDefinition
from dafx_actors.decisions import call_digest
from dafx_actors.errors import DafxError, ModelError, TurnCancelled
from dafx_actors.exchange import Limits, Overlap, RunRequest
from dafx_actors.ids import AgentThread, model_step_name, probe_name
from dafx_actors.transcript import ChatMessage, FunctionCallContent, FunctionResultContent, Json, Response, UsageStats
from tests.memory_context import Execution, Open

SCHEMA = json.loads((Path(__file__).parent / "data" / "durable-agent-entity-state.json").read_text())
VALIDATOR: Any = jsonschema.Draft202012Validator(SCHEMA)
THREAD = AgentThread("Joker", "t1")
NOON = datetime(2025, 1, 2, 12, tzinfo=UTC)
AT_NOON = NOON.isoformat()
LIMITS = Limits(steps=12)
A_DAY = 86_400.0
"""Seconds after which a turn ends; nothing else takes so long."""
TURNS = ("c1", "c2", "c3", "c4")
OVERLAPS: tuple[Overlap, ...] = ("queue", "reject", "cancel_previous", "steer", "beside")
AGENTS = {overlap: AgentDefinition(name="Joker", overlap=overlap, limits=LIMITS) for overlap in OVERLAPS}
PLANS = {
    "plain": Plan(activity="plain"),
    "alone": Plan(activity="alone", alone=True),
    "wrong": Plan(refusal="there is no such tool"),
    "guarded": Plan(activity="guarded", approval=ApprovalPlan(None, "deny")),
    "expiring": Plan(activity="expiring", approval=ApprovalPlan(60.0, "fail")),
    "lapsing": Plan(activity="lapsing", approval=ApprovalPlan(60.0, "deny")),
    "once": Plan(activity="once", once=True),
    "both": Plan(activity="both", once=True, approval=ApprovalPlan(None, "deny")),
}
"""The tools that the model has, and one that it only believes to have."""
WITHOUT_EFFECT = ("plain", "wrong")
"""Those that a turn beside another may call."""
TOOLS = st.tuples(st.sampled_from(sorted(PLANS)), st.sampled_from(["x", "y"]))

HARMS = ("cancel", "time", "die", "reset", "roll")

RARELY = st.sampled_from([False, False, False, True])

BY_DEFAULT = settings(max_examples=150, stateful_step_count=25, deadline=None, derandomize=True)
SETTINGS = settings() if settings.get_current_profile_name() == "thorough" else BY_DEFAULT


@attrs.define(eq=False)
class Work:
    """A tool call on some worker."""

    step: ToolStep
    waited_for: Open
    phase: str = "start"
    token: str = ""
    length: int = 0
    """Of the thread, as the step saw it."""


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


MODEL, PROBE = model_step_name("Joker"), probe_name("Joker")


class Turns(RuleBasedStateMachine):
    """One thread, four turns, and everything that can happen to them."""

    def __init__(self) -> None:
        super().__init__()
        self.state = ThreadState()
        self.now = NOON
        self.overlap: Overlap = "queue"
        """Of the agent; some requests come while another version of it is deployed."""
        self.live: dict[str, Execution] = {}
        """The latest orchestration of each turn."""
        self.all: list[Execution] = []
        self.requests: dict[str, RunRequest] = {}
        self.mail: list[tuple[str, str, Json]] = []
        """Messages for the thread that nobody waits for, with their turns."""
        self.work: list[Work] = []
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
        self.retried: dict[str, int] = {}
        """How often turns were taken up again after they had failed."""
        self.anew: set[str] = set()
        """Turns that were started again: their calls may have the keys of calls of the time before."""
        self.tokens = 0
        self.is_gone = False
        """Whether no worker has the tools any more."""
        self.valid: set[str] = set()
        """Entries that have been held against the schema."""

    # --- The thread ---

    def operate(self, operation: str, raw: Json, overlap: Overlap = "queue", *, again: bool = False) -> Reply:
        """An operation arrives; what it gives, and what must be true of that."""
        self.now += timedelta(seconds=1)
        told = _operations.Incoming(thread=THREAD, raw=raw, now=self.now, definition=AGENTS[overlap])
        before = self.state
        changed, outcome = _operations.OPERATIONS[operation](before, told)
        if changed is not before:
            self.store(changed)
        if not again and operation != "reset":
            self.sent.append((operation, overlap, raw))
        if changed is not before and raw.get("correlationId") in self.retried:
            self.see_failed_again(before, raw["correlationId"])
        match outcome:
            case Refused():
                assert changed is before, "what is refused changes nothing"
            case Granted() | Queued() if operation == "begin":
                self.begun.add(raw["correlationId"])
                if isinstance(outcome, Granted):
                    self.forget_failure(before)
                if isinstance(outcome, Queued):
                    self.cancelled |= set(self.state.cancelled)
            case Cancelled(turn) if operation == "cancel":
                self.cancelled.add(turn)
            case Decided(decision) if operation == "decide" and decision.action == "approve":
                self.approved.add((raw["key"], decision.digest or ""))
            case Attempted("go"):
                assert raw["correlationId"] == self.state.active, "a turn beside another has no such calls"
                assert raw.get("retry", 0) == self.state.books.retry, "nor a step that was left over from before"
                assert raw["correlationId"] not in self.cancelled, "no tool acts after the turn was cancelled"
                assert not _calls.is_given_up(self.state, raw["key"], raw["number"]), "nor one that was given up"
                assert self.goes.setdefault((raw["key"], raw["number"]), raw["token"]) == raw["token"]
            case _:
                pass
        if operation == "abort" and isinstance(outcome, Ended):
            outcome = with_error_only(outcome)
        return Reply(outcome=outcome, settings=Settings(limits=LIMITS) if operation == "begin" else None)

    def forget_failure(self, before: ThreadState) -> None:
        """A turn that was taken up again has its thread: what it had failed with is no answer any more."""
        kept = [id(raw) for raw in self.state.history]
        for raw in before.history:
            if raw["$type"] == "response" and id(raw) not in kept and raw not in self.state.history:
                assert _failed(raw)
                for turn in _turns_of(raw):
                    self.answers.pop(turn, None)

    def see_failed_again(self, before: ThreadState, turn: str) -> None:
        """A turn that was to be taken up again ended while it waited: another error may stand in its place."""
        was, now = (_state.find_entry(state, "response", turn) for state in (before, self.state))
        if was is not None and now is not None and was != now:
            assert _failed(was)
            assert _failed(now)
            self.answers[turn] = now

    def tell(self, message: Message) -> Outcome:
        """A client or a step tells the thread something, by an orchestration that nothing comes in between."""
        telling = Execution(self, "telling")
        telling.run(tell(telling, THREAD, Telling.of(THREAD, message)))
        (called,) = telling.open
        said = self.operate(called.name, called.input)
        called.complete(said.dump())
        assert telling.is_over
        return said.outcome

    def store(self, changed: ThreadState) -> None:
        """It is stored and read, in the form that the schema says; what has been held against that is not again."""
        document = json.loads(json.dumps(_state.dump(changed)))
        fresh = [raw for raw in document["data"]["conversationHistory"] if json.dumps(raw) not in self.valid]
        VALIDATOR.validate({**document, "data": {**document["data"], "conversationHistory": fresh}})
        self.valid |= {json.dumps(raw) for raw in fresh}
        self.state = _state.load(document)
        assert _state.dump(self.state) == document

    def send(self, turn: str, event: str, data: Json) -> None:
        self.events.append((turn, event, data))

    def signal(self, turn: str, operation: str, raw: Json) -> None:
        self.mail.append((turn, operation, raw))

    # --- What happens ---

    @initialize(overlap=st.sampled_from(OVERLAPS))
    def declare(self, overlap: Overlap) -> None:
        self.overlap = overlap

    @rule(
        turns=st.lists(st.sampled_from(TURNS), min_size=1, max_size=3, unique=True),
        overlap=st.sampled_from([None, None, None, *OVERLAPS]),
        schema=st.sampled_from([None, None, {"type": "object"}]),
        eager=st.booleans(),
        form=st.sampled_from([FORM, FORM, FORM, FORM, 0, 1, 2, 3]),
        data=st.data(),
        times=st.integers(0, 30),
    )
    def start(
        self,
        turns: list[str],
        overlap: Overlap | None,
        schema: Json,
        eager: bool,
        form: int,
        data: st.DataObject,
        times: int,
    ) -> None:
        """Clients start turns, and everybody goes on for a while."""
        for turn in turns:
            self.start_one(turn, overlap or self.overlap, schema, eager, form)
        self.go_on(data, times)

    @rule(turns=st.lists(st.sampled_from(TURNS), min_size=1, max_size=3, unique=True), data=st.data())
    def retry(self, turns: list[str], data: st.DataObject) -> None:
        """A person has turns go on that failed, as a client does for them."""
        for turn in turns:
            live = self.live.get(turn)
            if live is None or not isinstance(live.error, DafxError) or isinstance(live.error, TurnCancelled):
                continue
            if _resuming.refusal(self.state, turn) is None:
                self.retried[turn] = self.retried.get(turn, 0) + 1
                self.start_one(turn, self.overlap, None, eager=False, form=FORM)
        self.go_on(data, 10)

    def start_one(self, turn: str, overlap: Overlap, schema: Json, eager: bool, form: int) -> None:
        """A client starts a turn, or again one whose orchestration is gone."""
        if turn in self.live and not self.live[turn].is_over:
            return
        retry = self.retried.get(turn, 0)
        self.anew |= {turn} & set(self.live)
        self.sent = [sent for sent in self.sent if sent[2]["correlationId"] != turn]
        self.events = [event for event in self.events if event[0] != turn]
        self.mail = [mail for mail in self.mail if mail[0] != turn]
        earlier = self.requests.get(turn)
        request = self.requests[turn] = RunRequest(
            correlation_id=turn,
            messages=(ChatMessage("user", f"{turn}?"),),
            response_schema=earlier.response_schema if earlier else schema,
            deadline=A_DAY,
        )
        execution = self.live[turn] = Execution(self, turn)
        self.all.append(execution)
        if retry:
            eager, form = False, FORM
        execution.run(TurnSteps(execution, THREAD, request, eager=eager, form=form, retry=retry).step_by_step())
        for called in self.waited_for("operation"):
            if called.owner is execution:
                self.serve(called, overlap)
        for mail in [each for each in self.mail if each[0] == turn]:
            self.arrive(mail, overlap)

    def waited_for(self, kind: str, name: str | None = None) -> list[Open]:
        """What turns wait for, in the order in which they began."""
        lives = [execution for execution in self.live.values() if not execution.is_over]
        return [each for live in lives for each in live.open if each.kind == kind and name in (None, each.name)]

    def arrive(self, mail: tuple[str, str, Json], overlap: Overlap | None = None) -> None:
        """A message that nobody waits for arrives."""
        self.mail.remove(mail)
        self.operate(mail[1], mail[2], overlap or self.overlap)

    def serve(self, called: Open, overlap: Overlap | None = None) -> None:
        """An operation arrives that a turn waits for: behind what the turn had sent before."""
        for mail in [each for each in self.mail if each[0] == called.owner.turn]:
            self.arrive(mail, overlap)
        called.complete(self.operate(called.name, called.input, overlap or self.overlap).dump())

    def fire(self, timer: Open) -> None:
        """The time of a timer has come."""
        self.now = max(self.now, timer.at or self.now)
        timer.complete(None)

    def is_deadline(self, timer: Open) -> bool:
        """Whether it is that of a whole turn."""
        return timer.at is not None and (timer.at - self.now).total_seconds() > A_DAY / 2

    def look(self, called: Open) -> None:
        """A worker looks what became of another turn, or which tools workers have."""
        asked = Probe.load(called.input)
        if asked.names is not None:
            hosts = {each.name: not self.is_gone for each in asked.names}
            called.complete(Probed(alive=True, hosts=hosts).dump())
            return
        other = self.live.get(asked.turn)
        response = None if other is None or other.error is not None else other.outcome
        if response is not None and _failed(response):
            response = None
        called.complete(Probed(alive=other is not None and not other.is_over, response=response).dump())

    @rule(data=st.data(), times=st.integers(1, 30))
    def go_on(self, data: st.DataObject, times: int) -> None:
        """Everybody does what is to be done, in any order: events arrive, workers work, models answer."""
        for _ in range(times):
            self.hand_out_work()
            if not (ready := self.ready()):
                return
            data.draw(st.sampled_from(ready))(data)

    def ready(self) -> list[Callable[[st.DataObject], None]]:
        """What could happen next without anybody's ill will."""
        asks = self.state.books.asks
        timers = [timer for timer in self.waited_for("timer") if not self.is_deadline(timer)]
        return [
            *(functools.partial(self.deliver, event) for event in self.events),
            *(functools.partial(self.do, work) for work in self.work),
            *(functools.partial(self.receive, mail) for mail in self.mail),
            *(functools.partial(self.serve_one, called) for called in self.waited_for("operation")),
            *(functools.partial(self.reply, step) for step in self.waited_for("activity", MODEL)),
            *(functools.partial(self.look_once, step) for step in self.waited_for("activity", PROBE)),
            *(functools.partial(self.fire_one, timer) for timer in timers),
            *(functools.partial(self.decide, key) for key, ask in sorted(asks.items()) if ask.decision is None),
        ]

    def serve_one(self, called: Open, data: st.DataObject) -> None:
        self.serve(called)
        again: bool = data.draw(RARELY)
        if again and self.sent:
            self.repeat(self.sent[-1])

    def receive(self, mail: tuple[str, str, Json], _: st.DataObject) -> None:
        self.arrive(mail)

    def look_once(self, called: Open, _: st.DataObject) -> None:
        self.look(called)

    def fire_one(self, timer: Open, _: st.DataObject) -> None:
        self.fire(timer)

    def deliver(self, event: tuple[str, str, Json], _: st.DataObject) -> None:
        """An event arrives, not always in its order."""
        self.events.remove(event)
        self.hear(*event)

    def hear(self, turn: str, name: str, given: Json) -> None:
        if turn in self.live:
            self.live[turn].hear(name, given)

    # --- Models ---

    def check_conversation(self, turn: str) -> None:
        seen = seen_by(self.state, turn)
        if seen.active != turn:
            return  # it was taken over, or the thread reset; the step fails and the turn finds out
        transcript, waits = attrs.evolve(load_transcript(_state.dump(self.state)), draft=seen.draft), None
        if seen is not self.state:
            waits = Waiting(self.state.active or "?", shown_beside(self.state))
        assert not unanswered(conversation(transcript, turn, waits))

    def reply(self, called: Open, data: st.DataObject) -> None:
        """A model answers, fails, or asks for tools, and gives its calls ids that come again."""
        kind: Any = data.draw(st.sampled_from(["answer", "invalid", "timeout", "bad_request", *["tools"] * 6]))
        if kind in ("timeout", "bad_request"):
            self.answer(called, ModelAnswer(error=ModelError(kind, "no")))
            return
        tools = data.draw(st.lists(TOOLS, min_size=1, max_size=3)) if kind == "tools" else []
        calls = tuple(FunctionCallContent(call_id, name, {"n": n}) for n, (name, call_id) in enumerate(tools))
        result = ModelResult(
            message=ChatMessage("assistant", calls or "Ha."),
            calls=tuple(self.plan(called.owner.turn, name) for name, _ in tools),
            usage=UsageStats(1, 1, 2),
        )
        if kind == "invalid" and self.requests[called.owner.turn].response_schema is not None:
            result = attrs.evolve(result, invalid="it is no JSON")
        self.answer(called, ModelAnswer(result=result))

    def plan(self, turn: str, name: str) -> Plan:
        """Plan a call; beside another turn, of tools without effect only."""
        is_beside = seen_by(self.state, turn) is not self.state
        return Plan(refusal="not now") if is_beside and name not in WITHOUT_EFFECT else PLANS[name]

    def answer(self, called: Open, answer: ModelAnswer) -> None:
        """A model step ends. One that was asked together with `begin` looks first whether that was granted."""
        step = ModelStep.load(called.input)
        self.check_conversation(step.turn)
        seen = seen_by(self.state, step.turn)
        if step.records:
            is_there = seen.active == step.turn and seen.length >= step.length
            found = attrs.evolve(answer, length=seen.length) if is_there else ModelAnswer()
            called.complete(found.dump())
        elif not step.begins:
            assert seen.active != step.turn or seen.length >= step.length
            called.complete(answer.dump())
        elif is_granted(self.state, step.turn):
            beside = None if self.state.active == step.turn else self.state.active
            length = seen_by(self.state, step.turn).length
            begun = Begun(length=length, settings=Settings(limits=LIMITS), beside=beside)
            called.complete(attrs.evolve(answer, begun=begun).dump())
        else:
            called.complete(ModelAnswer().dump())

    # --- Tools ---

    @invariant()
    def hand_out_work(self) -> None:
        known = {id(work.waited_for) for work in self.work}
        steps = [each for each in self.waited_for("activity") if each.name not in (MODEL, PROBE)]
        self.work += [Work(ToolStep.load(step.input), step) for step in steps if id(step) not in known]

    def do(self, work: Work, data: st.DataObject) -> None:
        """A worker goes one step on with a tool call, or dies: then another begins it again."""
        if data.draw(st.integers(0, 3)) == 3:
            work.phase, work.token = "start", ""
        else:
            self.go_on_with(work, knows=data.draw(st.booleans()))

    def go_on_with(self, work: Work, knows: bool) -> None:
        step, key, name = work.step, work.step.key, work.step.name
        seen = seen_by(self.state, step.turn)
        if work.phase == "start":
            work.length = seen.length
        match work.phase:
            case "start":
                if step.records and (seen.active != step.turn or seen.length < step.length):
                    self.finish(work, NotRecorded())
                elif seen.active != step.turn or seen.length < step.length:
                    self.finish(work, Failed("stale"))
                elif not _calls.may_act(seen, step.turn, step.retry):
                    self.finish(work, Failed("cancelled", stopped=True))
                elif _calls.is_given_up(seen, key, step.attempt):
                    self.finish(work, Failed("given up", stopped=True))
                elif seen is not self.state and name not in WITHOUT_EFFECT:
                    self.finish(work, Failed("not now"))
                elif PLANS[name].approval and not self.allowed(step):
                    self.finish(work, Failed("it needs approval"))
                elif PLANS[name].once:
                    work.phase = "attempt"
                else:
                    assert step.turn not in self.cancelled, "no tool acts after the turn was cancelled"
                    self.finish(work, Returned("done"))
            case "attempt":
                self.tokens += 1
                token = f"t{self.tokens}"
                attempt = Attempt(turn=step.turn, key=key, number=step.attempt, token=token, retry=step.retry)
                outcome = self.tell(attempt)
                assert isinstance(outcome, Attempted)
                if outcome.answer == "go":
                    work.phase = "act"
                elif outcome.answer == "stop":
                    self.finish(work, Failed("cancelled", stopped=True))
                elif not knows:
                    self.finish(work, Unknown())
                else:
                    self.finish(work, Returned("done") if self.effects[key] else NotMade())
            case "act":
                self.effects[key] += 1
                assert self.effects[key] <= 1 + self.again[key], "it acts once, unless a person wants it again"
                work.phase = "acted"
            case _:
                self.finish(work, Returned("done"))

    def allowed(self, step: ToolStep) -> bool:
        digest = call_digest(step.name, step.arguments)
        allowed = _calls.is_approved(self.state, step.key, digest)
        assert not allowed or (step.key, digest) in self.approved, "somebody approved this very call"
        return allowed

    def finish(self, work: Work, outcome: ToolOutcome) -> None:
        self.work.remove(work)
        step = work.step
        says = step.records and not isinstance(outcome, NotRecorded) and work.length
        if work.waited_for in work.waited_for.owner.open:
            work.waited_for.complete(dump_tool_outcome(outcome, work.length if says else None))

    # --- People ---

    @rule(
        turn=st.sampled_from([*TURNS, "unheard of"]), what=st.sampled_from(["cancel", "time", "die", "reset", "roll"])
    )
    def harm(self, turn: str, what: str) -> None:
        """Somebody or something comes in between."""
        harms = {"cancel": self.cancel, "time": self.time_is_over, "die": self.die, "reset": self.reset}
        {**harms, "roll": self.roll}[what](turn)

    @precondition(lambda self: self.state.books.asks)
    @rule(data=st.data())
    def change_a_mind(self, data: st.DataObject) -> None:
        self.decide(data.draw(st.sampled_from(sorted(self.state.books.asks))), data)

    def decide(self, key: str, data: st.DataObject) -> None:
        """Somebody decides about a call, perhaps about one that they saw differently."""
        action = data.draw(st.sampled_from(["approve", "approve", "edit", "deny", "retry", "retry", "result", "fail"]))
        stale = data.draw(RARELY)
        asked = self.state.books.asks[key]
        raw: dict[str, Json] = {"action": action, "by": "Ann", "at": AT_NOON}
        if action == "edit":
            raw = {"action": "approve", "by": "Ann", "at": AT_NOON, "arguments": {"n": 7}}
        outcome = self.say(asked, DecisionRecord(raw), "another" if stale else asked.digest)
        assert isinstance(outcome, Refused) or not stale
        if isinstance(outcome, Decided) and outcome.decision.action == "retry" and asked.decision is None:
            self.again[key.split(".outcome")[0]] += 1

    def say(self, asked: QuestionRecord, decision: DecisionRecord, digest: str) -> Outcome:
        """A person decides about a question of the turn that runs."""
        return self.tell(Decide(turn=self.state.active or "?", key=asked.key, digest=digest, decision=decision))

    def cancel(self, turn: str) -> None:
        retry = self.retried.get(turn, 0)
        outcome = self.tell(Cancel(turn=turn, mark=CancelMark.of(by="Ann", reason="enough"), retry=retry))
        if isinstance(outcome, Ended):
            assert turn not in self.answers or outcome.response == self.answers[turn]
        else:
            assert isinstance(outcome, Cancelled)
            assert outcome.turn in {turn, self.state.active}
            seen = seen_by(self.state, outcome.turn)
            assert not _calls.may_act(seen, outcome.turn, seen.books.retry)

    def time_is_over(self, turn: str) -> None:
        deadline = [each for each in self.waited_for("timer") if each.owner.turn == turn and self.is_deadline(each)]
        if deadline:
            deadline[0].complete(None)  # without the clock, by which all the others would be over as well

    def die(self, turn: str) -> None:
        """Somebody terminates the turn's orchestration; its tool calls go on."""
        execution = self.live.get(turn)
        if execution is not None and not execution.is_over:
            execution.end()

    def roll(self, _: str) -> None:
        """A deploy: workers have lost the tools, or have them again."""
        self.is_gone = not self.is_gone

    def reset(self, _: str) -> None:
        lost = lost_by(self.state, "the thread was reset")
        self.operate("reset", {"correlationId": "?"})
        for each in lost:
            telling = Execution(self, "telling")
            telling.run(tell(telling, THREAD, Telling.lost(THREAD, each)))
            assert telling.is_over
        self.begun = {place.correlation_id for place in self.state.waiting}
        self.answers, self.sent, self.approved, self.goes = {}, [], set(), {}
        self.cancelled &= set(self.state.cancelled)
        self.effects, self.again = Counter(), Counter()
        self.work = [each for each in self.work if each.phase == "start"]

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
        self.operate(operation, raw, overlap, again=True)
        if _lacks(before, raw["correlationId"]) and not _lacks(self.state, raw["correlationId"]):
            assert self.state.length == before.length, "it brings the request that was missing, in its place"
        elif operation != "cancel" and before.active is not None:
            assert self.state == before, operation

    # --- What is always true ---

    @invariant()
    def no_turn_is_lost(self) -> None:
        books = self.state.books
        places = [
            *_state.working_on(self.state),
            *(place.correlation_id for place in self.state.waiting if not self.has_failed(place)),
            *(request.correlation_id for request in self.state.steered),
            *books.joined,
        ]
        ended = [turn for raw in self.responses() for turn in _turns_of(raw)]
        assert len(places + ended) == len(set(places + ended)), "each turn is in one place"
        assert self.begun <= set(places + ended)

    def has_failed(self, place: Place) -> bool:
        """Whether a turn that waits is one that is to be taken up again, whose error still stands in the thread."""
        return place.retry > 0 and place.correlation_id in self.answers

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
            response = load_entry(raw)
            assert isinstance(response, Response)
            assert not unanswered(response.messages)
            joined = Counter(m.extra["correlationId"] for m in response.messages if "correlationId" in m.extra)
            assert joined == Counter(_turns_of(raw)[1:]), "what joined stands in it once"

    @invariant()
    def the_cancelled_are_not_answered(self) -> None:
        for raw in self.responses():
            if raw["correlationId"] in self.cancelled:
                assert load_cancellation(raw) is not None
        if self.state.active in self.cancelled:
            assert not _calls.may_act(self.state, self.state.active or "", self.state.books.retry)

    @invariant()
    def nothing_is_kept_of_what_has_ended(self) -> None:
        ours = set(_state.dump(self.state)["data"].get("dafx", {}))
        if self.state.active is None:
            assert ours <= {"line", "cancelled"}
            assert "line" not in ours or self.state.waiting
        assert not set(self.state.cancelled) & set(self.answers), "marks are for turns that have not ended"

    @invariant()
    def what_is_told_as_not_made_has_not_acted(self) -> None:
        for raw in self.responses():
            response = load_entry(raw)
            assert isinstance(response, Response)
            if raw["correlationId"] in self.anew:
                continue
            for content in (each for message in response.messages for each in message.contents):
                if isinstance(content, FunctionResultContent) and "was not made" in str(content.result):
                    key = content.extra["dafx"].get("key")
                    assert not self.effects[key] or self.again[key], "acted, or told as not made, and never both"

    def teardown(self) -> None:
        """Whatever happened: when people decide, and workers work, each turn that has begun ends."""
        try:
            self.let_all_end()
        finally:
            for execution in self.all:
                execution.end()

    def let_all_end(self) -> None:
        self.is_gone = False
        for _ in range(600):
            self.hand_out_work()
            if not self.go_on_by_itself():
                break
        else:
            raise AssertionError("the turns do not come to an end")
        self.no_turn_is_lost()
        self.an_answer_stays_as_it_is()
        self.every_call_has_its_result()
        assert (self.state.active, self.state.beside) == (None, None)
        assert (self.state.waiting, self.state.steered) == ((), ())
        assert self.begun <= set(self.answers)
        for execution in self.live.values():
            assert execution.is_over
            assert execution.error is None or isinstance(execution.error, DafxError), execution.error

    def go_on_by_itself(self) -> bool:
        """Whether something was left to do."""
        activities = self.waited_for("activity")
        if self.events:
            self.hear(*self.events.pop(0))
        elif self.mail:
            self.arrive(self.mail[0])
        elif self.work:
            self.go_on_with(self.work[0], knows=True)
        elif called := self.waited_for("operation"):
            self.serve(called[0])
        elif looks := [each for each in activities if each.name == PROBE]:
            self.look(looks[0])
        elif thinking := [each for each in activities if each.name == MODEL]:
            self.answer(thinking[0], ModelAnswer(result=ModelResult(message=ChatMessage("assistant", "Ha."))))
        elif asked := [each for each in self.state.books.asks.values() if self.is_waited_for(each)]:
            action = "deny" if asked[0].kind == "approval" else "fail"
            decision = asked[0].decision or DecisionRecord({"action": action, "by": "Ann", "at": AT_NOON})
            assert isinstance(self.say(asked[0], decision, asked[0].digest), Decided)
        elif timers := [each for each in self.waited_for("timer") if not self.is_deadline(each)]:
            self.fire(min(timers, key=lambda timer: timer.at or self.now))
        elif again := [turn for turn, live in self.live.items() if self.starts_again(live)]:
            self.start_one(again[0], self.overlap, None, eager=False, form=FORM)
        elif self.state.active is not None or self.state.waiting:
            active = self.live.get(self.state.active or "")
            assert active is None or active.is_over, "else it would have gone on"
            self.start_one(f"last{len(self.live)}", "queue", None, eager=False, form=FORM)
        else:
            return False
        return True

    def starts_again(self, execution: Execution) -> bool:
        """Whether a turn waited in line so long that its history is cut."""
        return execution.has_returned and execution.outcome is None

    def is_waited_for(self, asked: QuestionRecord) -> bool:
        return any(each.name == f"decision.{asked.key}" for each in self.waited_for("event"))


def _turns_of(raw: Json) -> list[str]:
    return [raw["correlationId"], *(raw.get("dafx") or {}).get(JOINED, ())]


def _lacks(state: ThreadState, turn: str) -> bool:
    """Whether a turn had to leave the line before it could bring its request."""
    asked = [raw for raw in state.history if raw["$type"] == "request" and raw["correlationId"] == turn]
    return any(not raw["messages"] for raw in asked)


def _failed(raw: Json) -> bool:
    return cast("Response", load_entry(raw)).error is not None


TestTurns = pytest.mark.timeout(600)(Turns.TestCase)  # eleven seconds of CPU, which may have to be shared with much
TestTurns.settings = settings(SETTINGS, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
