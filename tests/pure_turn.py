"""A turn as `_turn_steps.TurnSteps` takes it, without durabletask: a generator that yields what it waits for."""

from __future__ import annotations

import functools
from collections.abc import Generator, Iterable
from datetime import datetime, timedelta
from typing import Any, Protocol, TypeAlias

import attrs

from dafx_actors._json import messages as _codec
from dafx_actors._json.shapes import dump_time
from dafx_actors._rules import operations as _operations
from dafx_actors._rules import turn as _turn
from dafx_actors._rules.thread import ThreadState
from dafx_actors.decisions import call_digest
from dafx_actors.errors import ApprovalExpired, DafxError, ModelError, OutcomeUnknown, TurnTerminated
from dafx_actors.exchange import Limits, RunRequest
from dafx_actors.ids import AgentThread, call_key
from dafx_actors.transcript import ChatMessage, Json

THREAD = AgentThread("Joker", "t1")
LIMITS = Limits(steps=12)


class Stopped(Exception):
    """Ends a turn from outside."""

    def __init__(self, error: DafxError) -> None:
        self.error = error


@attrs.frozen
class Tell:
    """Waits for an operation of the thread."""

    operation: str
    raw: dict[str, Json]


@attrs.frozen
class Reply:
    """Waits for the model; a stop ends the wait."""


@attrs.frozen
class Wait:
    """Waits in line, for a grant or for the next look; a stop ends the wait."""


@attrs.frozen
class Calls:
    """Waits for a batch of tool calls; a stop ends the wait."""


@attrs.frozen
class Probe:
    """Waits to hear what became of another turn."""

    turn: str


@attrs.frozen
class Decided:
    """Waits for a person, or for the deadline."""

    key: str
    may_expire: bool


@attrs.define(eq=False, repr=False)
class Activity:
    """A tool call on some worker."""

    turn: str
    key: str
    name: str
    arguments: dict[str, Json]
    number: int
    length: int
    execution: Execution
    phase: str = "start"
    token: str = ""


class World(Protocol):
    """Where turns run."""

    @property
    def state(self) -> ThreadState: ...

    @property
    def now(self) -> datetime: ...

    def send(self, turn: str, event: str, data: Json) -> None:
        """Send a turn an event."""


Awaited: TypeAlias = Tell | Reply | Wait | Calls | Probe | Decided | Activity
Steps: TypeAlias = Generator[Awaited, Any, Json]
INTERRUPTIBLE = (Reply, Wait, Calls)


@attrs.define(eq=False, repr=False)
class Execution:
    """A turn in its orchestration."""

    world: World
    request: RunRequest
    main: Steps = attrs.field(init=False)
    awaits: Awaited | None = None
    calls: dict[str, tuple[Steps, Awaited]] = attrs.field(factory=dict[str, "tuple[Steps, Awaited]"])
    """Tool calls that are being made, with what each waits for."""
    grants: list[Json] = attrs.field(factory=list[Json])
    decisions: dict[str, Json] = attrs.field(factory=dict[str, Json])
    stop: DafxError | None = None
    outcome: tuple[str, Json] | None = None
    """`ended` with a response, `failed` with an error, or `dead`."""
    progress: _turn.Progress = attrs.field(factory=_turn.Progress)
    length: int = 0
    made: tuple[_turn.Call, ...] = ()
    outcomes: dict[str, Json] = attrs.field(factory=dict[str, Json])

    def __attrs_post_init__(self) -> None:
        self.main = self.run()
        self.go(None)

    @property
    def turn(self) -> str:
        return self.request.correlation_id

    def __repr__(self) -> str:
        return f"<{self.turn} awaits {self.awaits}>"

    # --- Driven from outside ---

    def go(self, value: Json) -> None:
        """Give the turn what it waits for."""
        self.resume(lambda: self.main.send(value))

    def interrupt(self) -> None:
        """Stop the turn where it can be stopped."""
        if self.stop is not None and isinstance(self.awaits, INTERRUPTIBLE):
            error, self.stop = self.stop, None
            self.calls = {}
            self.resume(lambda: self.main.throw(Stopped(error)))

    def resume(self, step: Any) -> None:
        try:
            self.awaits = step()
        except StopIteration as end:
            self.awaits, self.outcome = None, ("ended", end.value)
        except Stopped as failed:
            self.awaits, self.outcome = None, ("failed", failed.error)
        else:
            self.interrupt()
            self.settle()

    def go_call(self, key: str, value: Json) -> None:
        """Give a tool call what it waits for."""
        steps, _ = self.calls[key]
        try:
            self.calls[key] = (steps, steps.send(value))
        except StopIteration as end:
            self.outcomes[key] = end.value
            del self.calls[key]
        self.settle()

    def settle(self) -> None:
        if isinstance(self.awaits, Calls) and not self.calls:
            self.go(None)

    # --- As in `TurnSteps` ---

    def tell(self, operation: str, **raw: Json) -> Generator[Awaited, Any, Json]:
        outcome = yield Tell(operation, {"correlationId": self.turn, **raw})
        if outcome and "error" in outcome:
            raise Stopped(_operations.error_in(outcome, THREAD))
        return outcome

    def run(self) -> Steps:
        begun = yield from self.begin()
        if "ended" in begun:
            return begun["ended"]
        self.length = begun["granted"]
        try:
            while (ended := (yield from self.round())) is None:
                pass
        except Stopped as stopped:
            if self.world.state.active != self.turn:
                raise
            return (yield from self.abort(stopped.error, self.unrecorded()))
        return ended

    def begin(self) -> Steps:
        begun = yield from self.tell("begin", **_codec.dump_request(self.request))
        while "queued" in begun:
            for cancelled in begun["cancelled"]:
                self.world.send(cancelled, "cancel", {"by": self.turn})
            yield from self.look_after(begun["queued"])
            try:
                if not self.grants:
                    yield Wait()
            except Stopped as stopped:
                whole = {"request": _codec.dump_request(self.request)}
                left = yield Tell("abort", {**self.ending(stopped.error, []), **whole})
                if "ended" not in left:
                    raise
                self.wake(left)
                return left
            self.grants.clear()
            begun = yield from self.tell("begin", **_codec.dump_question(self.request))
            if "wanted" in begun:
                begun = yield from self.tell("begin", **_codec.dump_request(self.request))
        return begun

    def look_after(self, active: str) -> Generator[Awaited, Any, None]:
        fate = yield Probe(active)
        if fate["alive"]:
            return
        if response := fate["response"]:
            whole = {"correlationId": active, "messages": response["messages"], "usage": response.get("usage")}
            outcome = yield Tell("commit", {**whole, "whole": True, "about": response.get("dafx")})
        else:
            error = _codec.dump_error(TurnTerminated("Joker", active, "it ended without a word"))
            outcome = yield Tell("abort", {"correlationId": active, "error": error})
        self.wake(outcome)

    def round(self) -> Steps:
        attempt = 1
        while True:
            result = yield Reply()
            error = _codec.load_error(result["error"]) if "error" in result else None
            if not isinstance(error, ModelError) or not error.retryable:
                break
            if _turn.pause_before(attempt, _turn.MODEL_RETRIES, timedelta(seconds=attempt), self.turn) is None:
                break
            attempt += 1
        if error is not None:
            return (yield from self.abort(error))
        key_of = functools.partial(call_key, THREAD, self.turn)
        self.progress, step = _turn.next_step(result, self.progress, LIMITS, self.turn, "Joker", key_of)
        match step:
            case _turn.Finish(message, last):
                told = {"messages": [_codec.dump_message(message)], "about": self.progress.about}
                outcome = yield from self.tell("commit", length=self.length, last=last, **told)
                if "ended" not in outcome:
                    self.length = outcome["granted"]
                    return None
                return self.end(outcome)
            case _turn.Repair(messages):
                yield from self.record(messages)
            case _turn.CallTools(message, calls):
                if (error := (yield from self.call_tools(message, calls))) is not None:
                    return (yield from self.abort(error, self.unrecorded()))
            case _turn.Fail(error, messages):
                return (yield from self.abort(error, messages))
        return None

    def call_tools(
        self, message: ChatMessage, calls: tuple[_turn.Call, ...]
    ) -> Generator[Awaited, Any, DafxError | None]:
        asks = [self.ask("approval", call, call.key) for call in calls if call.plan.get("approval")]
        yield from self.record((message,), asks)
        self.made, self.outcomes = calls, {}
        for batch in _turn.batches(calls):
            for call in batch:
                steps = self.make(call)
                try:
                    self.calls[call.key] = (steps, next(steps))
                except StopIteration as end:
                    self.outcomes[call.key] = end.value
            yield Calls()
            for call in batch:
                if (fatal := self.outcomes[call.key].get("fatal")) is not None:
                    return _codec.load_error(fatal)
        results = self.unrecorded()
        self.made = ()
        yield from self.record(results)
        return None

    def make(self, call: _turn.Call) -> Steps:
        if call.refusal is not None:
            return {"error": call.refusal}
        arguments, decision = dict(call.content.arguments), None
        if approval := call.plan.get("approval"):
            decision = yield Decided(call.key, approval["seconds"] is not None)
            if decision == "deadline":
                expire = {"action": "expire", "by": "the deadline", "at": "2025-01-02T12:00:00+00:00"}
                outcome = yield Tell("decide", self.deciding(call.key, call, expire))
                decision = outcome.get("decided") or (yield Decided(call.key, False))
            if decision["action"] == "expire" and approval["onTimeout"] == "fail":
                expired = ApprovalExpired(call.content.name, call.key, 60.0)
                return {**_turn.denied(call, decision), "fatal": _codec.dump_error(expired)}
            if decision["action"] != "approve":
                return _turn.denied(call, decision)
            arguments = decision.get("arguments", arguments)
        outcome = yield from self.perform(call, arguments)
        return {**outcome, "decision": decision} if decision else outcome

    def perform(self, call: _turn.Call, arguments: dict[str, Json]) -> Steps:
        number = 1
        while True:
            outcome = yield Activity(self.turn, call.key, call.content.name, arguments, number, self.length, self)
            if "unknown" in outcome:
                key = f"{call.key}.outcome{number}"
                told = {"length": self.length, "messages": [], "asks": [self.ask("outcome", call, key)]}
                yield Tell("record", {"correlationId": self.turn, **told})
                decision = yield Decided(key, False)
                if decision["action"] == "result":
                    return {"result": decision.get("result")}
                if decision["action"] == "fail":
                    unknown = OutcomeUnknown(call.content.name, call.key)
                    return {"error": "nobody knows", "fatal": _codec.dump_error(unknown)}
            elif "notDone" not in outcome:
                return outcome
            number += 1

    def ask(self, kind: str, call: _turn.Call, key: str) -> dict[str, Json]:
        return {
            "key": key,
            "kind": kind,
            "callId": call.content.call_id,
            "tool": call.content.name,
            "arguments": dict(call.content.arguments),
            "digest": call_digest(call.content.name, call.content.arguments),
            "askedAt": dump_time(self.world.now),
        }

    def deciding(self, key: str, call: _turn.Call, decision: Json) -> dict[str, Json]:
        digest = call_digest(call.content.name, call.content.arguments)
        return {"correlationId": self.turn, "key": key, "digest": digest, "decision": decision}

    def record(self, messages: Iterable[ChatMessage], asks: Iterable[Json] = ()) -> Generator[Awaited, Any, None]:
        told = {"messages": [_codec.dump_message(message) for message in messages], "asks": list(asks)}
        self.length = (yield from self.tell("record", length=self.length, **told))["granted"]

    def abort(self, error: DafxError, messages: Iterable[ChatMessage] = ()) -> Steps:
        outcome = yield Tell("abort", self.ending(error, messages))
        if "error" in outcome:
            raise Stopped(_operations.error_in(outcome, THREAD))
        return self.end(outcome)

    def ending(self, error: DafxError, messages: Iterable[ChatMessage]) -> dict[str, Json]:
        told = [_codec.dump_message(message) for message in messages]
        return {"correlationId": self.turn, "error": _codec.dump_error(error), "messages": told}

    def unrecorded(self) -> list[ChatMessage]:
        results = _turn.results_message(self.made, self.outcomes)
        return [results] if results else []

    def end(self, outcome: Json) -> Json:
        self.wake(outcome)
        return outcome["ended"]

    def wake(self, outcome: Json) -> None:
        for joined in outcome.get("joined") or ():
            self.world.send(joined, "granted", None)
        if outcome.get("next"):
            self.world.send(outcome["next"], "granted", None)
