"""What a turn and its steps tell each other: plans of calls, and what steps are asked and give.

All of it stands in the histories of turns, which are read for ever: a field is left out where it says nothing, and what
versions before did not write has a default that means what they did.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Literal, TypeAlias, cast

import attrs
from durabletask.task import RetryPolicy

from dafx_actors._json.crossing import dump_error, error_in
from dafx_actors._json.messages import dump_message, dump_usage, load_message, load_usage
from dafx_actors._json.requests import dump_limits, dump_request, dump_retry, load_limits, load_request, load_retry
from dafx_actors._json.shapes import (
    MOST_LEVELS,
    as_list,
    as_object,
    as_text,
    as_whole_number,
    check_json,
    dump_time,
    load_json,
    load_time,
    object_in,
)
from dafx_actors._shown import Shown
from dafx_actors.errors import DafxError, ValueMismatch
from dafx_actors.exchange import Ending, Limits, RunRequest
from dafx_actors.ids import AgentThread
from dafx_actors.transcript import ChatMessage, Json, UsageStats

# --- The tree of turns --------------------------------------------------------------------------------------------


@attrs.frozen(repr=False)
class Caller(Shown):
    """A turn that waits for the turn below it, as it uses that one's agent as a tool."""

    thread: AgentThread
    turn: str


def dump_callers(callers: Iterable[Caller]) -> list[Json]:
    """The turns above a turn, from the first, as its input and its steps carry them."""
    return [
        {"agent": each.thread.agent, "thread": each.thread.thread_id, "correlationId": each.turn} for each in callers
    ]


def load_callers(raw: Json) -> tuple[Caller, ...]:
    """Read the turns above a turn; there are none where nothing is said of them.

    Raises:
        ValueError: They are something else.
    """
    found: list[Caller] = []
    for each in as_list([] if raw is None else raw):
        caller = as_object(each)
        agent, thread, turn = (as_text(caller.get(field)) for field in ("agent", "thread", "correlationId"))
        found.append(Caller(AgentThread(agent, thread), turn))
    return tuple(found)


def _above(callers: Iterable[Caller]) -> dict[str, Json]:
    dumped = dump_callers(callers)
    return {"callers": dumped} if dumped else {}


@attrs.frozen(repr=False)
class Spent(Shown):
    """What a turn took, with all below it."""

    steps: int = 0
    usage: UsageStats | None = None

    def dump(self) -> dict[str, Json]:
        """As it travels beside an error: a response says it itself."""
        return {"steps": self.steps, **({"usage": dump_usage(self.usage)} if self.usage else {})}

    @classmethod
    def in_response(cls, response: Json) -> Spent:
        """What a turn took, by its stored response; one step at least, as nothing is said of one."""
        document = as_object(response)
        usage = document.get("usage")
        steps = object_in(document.get("dafx")).get("steps")
        return cls(steps if isinstance(steps, int) else 1, load_usage(usage) if usage else None)

    @classmethod
    def beside_error(cls, error: Json) -> Spent | None:
        """What a turn took that failed, by what its orchestration ended with; None where that does not say."""
        try:
            spent = as_object(as_object(load_json(error) if isinstance(error, str) else error).get("spent"))
            usage = spent.get("usage")
            return cls(as_whole_number(spent.get("steps")), load_usage(usage) if usage else None)
        except ValueError:
            return None


# --- The input of a turn ------------------------------------------------------------------------------------------

FORM = 4
"""In which a turn's orchestration goes, on record in its input: what began under an older one goes on under that.

0: turns of versions that wrote none. 1: a turn looks after names that nobody hosts, and says that it has begun.
2: see `OF_THE_TREE`. 3: see `SHORT_QUESTIONS`. 4: see `TOLD_TOGETHER`.
"""
OF_THE_TREE = 2
"""From this form on, limits and cancels are of the whole tree of agents, a request cannot lift what an agent's author
wrote, and the keys of calls are hashes."""
SHORT_QUESTIONS = 3
"""From this form on, a turn that waits in line asks its thread without its request, if that is large; and a source of
tools that is down is tried again as a model is."""
TOLD_TOGETHER = 4
"""From this form on, a turn tells its thread what it records together with the step that follows, and does not wait for
an answer; the step looks whether it is there."""


@attrs.frozen(repr=False)
class Listener(Shown):
    """An orchestration that is to be told, by an event, when a worker has taken a turn."""

    orchestration: str
    event: str


@attrs.frozen(kw_only=True, repr=False)
class TurnInput(Shown):
    """What a turn's orchestration starts with."""

    thread_id: str
    request: RunRequest
    callers: tuple[Caller, ...] = ()
    """The turns that wait for it, from the first. Beside the request, which the peer may get."""
    listener: Listener | None = None
    form: int = FORM
    eager: bool = True
    """Whether to ask for the thread and the model at once; turns of versions that could not are replayed."""
    started_at: datetime | None = None
    """When it was started, if it waited so long that its history was cut."""
    retry: int = 0
    """How often the turn was taken up again after it had failed, with this time."""

    def dump(self) -> dict[str, Json]:
        """The input as JSON.

        Raises:
            ValueMismatch: JSON cannot hold something in it.
        """
        request = dump_request(self.request)
        try:
            check_json(request, 2 * MOST_LEVELS)
        except ValueError as error:
            raise ValueMismatch(f"the request cannot be sent: {error}") from error
        listener = self.listener
        return {
            "thread": self.thread_id,
            "request": request,
            "eager": self.eager,
            "form": self.form,
            **_above(self.callers),
            **({"tellBegun": attrs.asdict(listener)} if listener else {}),
        }

    @classmethod
    def load(cls, raw: Json) -> TurnInput:
        """Read the input of a turn. Anybody can start one.

        Raises:
            ValueError: It is something else.
        """
        sent = as_object(raw)
        started_at = load_time(sent["begun"]) if sent.get("begun") else None
        told = object_in(sent.get("tellBegun"))
        return cls(
            thread_id=as_text(sent.get("thread")),
            request=load_request(sent.get("request")),
            callers=load_callers(sent.get("callers")),
            listener=Listener(as_text(told.get("orchestration")), as_text(told.get("event"))) if told else None,
            form=sent.get("form") or 0,
            # What is taken up again asks its thread first how far it had come.
            eager=bool(sent.get("eager")) and started_at is None and not sent.get("retry"),
            started_at=started_at,
            retry=as_whole_number(sent.get("retry") or 0),
        )

    @staticmethod
    def again(raw: Json, started_at: datetime) -> dict[str, Json]:
        """The input of a turn that starts again with an empty history; what is in it besides stays as it came."""
        return {**as_object(raw), "begun": dump_time(started_at)}

    @staticmethod
    def retried(raw: Json, retry: int) -> dict[str, Json]:
        """The input of a turn that failed, and is taken up again for this time; nobody listens for its beginning.

        Its history is a new one, so that it is of the newest form.
        """
        kept = {name: value for name, value in as_object(raw).items() if name not in ("begun", "tellBegun")}
        return {**kept, "form": FORM, "retry": retry}


@attrs.frozen(repr=False)
class StartedTurn(Shown):
    """What a client reads of the input of an orchestration, which may be one of something else."""

    thread_id: str | None
    request: RunRequest | None
    callers: tuple[Caller, ...] = ()
    """The turns that waited for it, where it was that of an agent used as a tool."""
    retry: int = 0
    """How often it was taken up again."""
    raw: Json = None

    @classmethod
    def of(cls, serialized: str | None) -> StartedTurn:
        """Read the input, as the scheduler has it.

        Raises:
            ValueError: There is a request in it, and it is none.
        """
        sent = object_in(load_json(serialized or "{}"))
        thread = sent.get("thread")
        request = load_request(sent["request"]) if "request" in sent else None
        retry = sent.get("retry")
        return cls(
            thread if isinstance(thread, str) else None,
            request,
            load_callers(sent.get("callers")) if request else (),
            retry if isinstance(retry, int) else 0,
            sent,
        )


def thread_in(serialized: str | None) -> str | None:
    """The id of the thread in the input of a turn's orchestration; None where the input is something else."""
    try:
        thread = object_in(load_json(serialized or "null")).get("thread")
    except ValueError:
        return None
    return thread if isinstance(thread, str) else None


@attrs.frozen(kw_only=True, repr=False)
class ShownStatus(Shown):
    """How far a turn is, as it shows whoever asks for it."""

    state: str = "running"
    steps: int = 0
    attempt: int | None = None
    """With `retrying`: the attempt that failed."""
    error: str | None = None
    """With `retrying`: what it failed with."""
    waits_for: tuple[str, ...] = ()
    """With `blocked`: names of tools and agents that no worker has."""

    def dump(self) -> dict[str, Json]:
        """The custom status of the turn's orchestration."""
        return {
            "state": self.state,
            "steps": self.steps,
            **({} if self.attempt is None else {"attempt": self.attempt}),
            **({} if self.error is None else {"error": self.error}),
            **({"waitsFor": list(self.waits_for)} if self.waits_for else {}),
        }

    @classmethod
    def of(cls, serialized: str | None) -> ShownStatus:
        """Read the custom status, as the scheduler has it."""
        shown = object_in(load_json(serialized or "null"))
        return cls(
            state=shown.get("state", "running"),
            steps=int(shown.get("steps") or 0),
            attempt=shown.get("attempt"),
            error=shown.get("error"),
            waits_for=tuple(map(str, shown.get("waitsFor") or ())),
        )


@attrs.frozen(repr=False)
class WholeTurnInput(Shown):
    """What the operation `run` of a thread is told beside the request."""

    form: int = 0
    callers: tuple[Caller, ...] = ()
    retry: int = 0

    def dump(self, request: RunRequest) -> dict[str, Json]:
        """With the request."""
        form = {"form": self.form} if self.form >= OF_THE_TREE else {}
        retry = {"retry": self.retry} if self.retry else {}
        return {**dump_request(request), **form, **_above(self.callers), **retry}

    @classmethod
    def load(cls, raw: Json) -> WholeTurnInput:
        """Read it beside a request, which may be the text of one.

        Raises:
            ValueError: It is something else.
        """
        told = as_object(load_json(raw) if isinstance(raw, str) else raw)
        return cls(told.get("form") or 0, load_callers(told.get("callers")), as_whole_number(told.get("retry") or 0))


@attrs.frozen(kw_only=True, repr=False)
class Settings(Shown):
    """What a turn keeps of its agent's declaration, so that a newer one does not change what has begun."""

    limits: Limits | None = None
    retry: RetryPolicy | None = None

    def dump(self) -> dict[str, Json]:
        """As it stands beside what a thread says to `begin`."""
        limits = dump_limits(self.limits) if self.limits else {}
        return {"limits": limits, **({"retry": dump_retry(self.retry)} if self.retry else {})}

    @classmethod
    def load(cls, raw: Json) -> Settings:
        """Read the settings; nothing where an earlier version said nothing."""
        settings = object_in(raw)
        return cls(
            limits=load_limits(settings["limits"]) if settings.get("limits") else None,
            retry=load_retry(settings["retry"]) if settings.get("retry") else None,
        )


# --- Plans of calls -----------------------------------------------------------------------------------------------

OnTimeout: TypeAlias = Literal["deny", "fail"]


@attrs.frozen(repr=False)
class ApprovalPlan(Shown):
    """A person must approve the call."""

    seconds: float | None
    """Within which; None is for as long as it takes."""
    on_timeout: OnTimeout


@attrs.frozen(kw_only=True, repr=False)
class AgentPlan(Shown):
    """The call is a turn of another agent."""

    name: str
    new_thread: bool
    request: str
    max_result_bytes: int | None = None
    """What its answer may take; plans of earlier versions have no bound."""


@attrs.frozen(kw_only=True, repr=False)
class Plan(Shown):
    """How a call is to be made: fixed when the model asks for it, and kept in the turn's history."""

    refusal: str | None = None
    """Why it is not made at all, in words for the model."""
    activity: str = ""
    """The activity that makes it: a function's name, or that of a source of tools."""
    agent: AgentPlan | None = None
    """Instead of an activity."""
    approval: ApprovalPlan | None = None
    alone: bool = False
    """Whether no other call is made at the same time."""
    once: bool = False
    """Whether it may act only once."""
    retry: RetryPolicy | None = None
    """When it failed."""
    form: int | None = None
    """Of the values in its arguments and its result; see `_json/forms.py`."""
    offer: str | None = None
    """Names what the model was shown of a source's tool."""

    @property
    def source(self) -> str | None:
        """The source whose tool it is; None for functions, and in plans of versions that did not say."""
        return self.activity if self.offer is not None else None

    def dump(self) -> dict[str, Json]:
        """The plan as the result of a model step has it."""
        agent, approval = self.agent, self.approval
        return {
            **({} if self.refusal is None else {"refusal": self.refusal}),
            **({"activity": self.activity} if self.activity else {}),
            **({"agent": _dump_agent(agent)} if agent else {}),
            **({} if self.offer is None else {"offer": self.offer}),
            **({} if self.form is None else {"form": self.form}),
            **({"approval": {"seconds": approval.seconds, "onTimeout": approval.on_timeout}} if approval else {}),
            **({"alone": True} if self.alone else {}),
            **({"once": True} if self.once else {}),
            **({"retry": dump_retry(self.retry)} if self.retry else {}),
        }

    @classmethod
    def load(cls, raw: Json) -> Plan:
        """Read a plan."""
        plan, approval, agent = as_object(raw), object_in(raw.get("approval")), object_in(raw.get("agent"))
        return cls(
            refusal=plan.get("refusal"),
            activity=plan.get("activity") or "",
            agent=_load_agent(agent) if agent else None,
            approval=ApprovalPlan(approval["seconds"], approval["onTimeout"]) if approval else None,
            alone=bool(plan.get("alone")),
            once=bool(plan.get("once")),
            retry=load_retry(plan["retry"]) if plan.get("retry") else None,
            form=plan.get("form"),
            offer=plan.get("offer"),
        )


def _dump_agent(plan: AgentPlan) -> dict[str, Json]:
    return {
        "name": plan.name,
        "newThread": plan.new_thread,
        "request": plan.request,
        "maxResultBytes": plan.max_result_bytes,
    }


def _load_agent(raw: Mapping[str, Json]) -> AgentPlan:
    return AgentPlan(
        name=raw["name"],
        new_thread=raw["newThread"],
        request=raw["request"],
        max_result_bytes=raw.get("maxResultBytes"),
    )


# --- Model steps --------------------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True, repr=False)
class ModelStep(Shown):
    """What a model step is asked."""

    thread_id: str
    turn: str
    length: int
    """Of the thread, as the turn knows it: the step reads no older one."""
    reply: int = 1
    """The number of the reply that it asks for, in its turn."""
    options: Mapping[str, Json] = attrs.field(factory=dict[str, Json])
    tool_choice: str | None = None
    enable_tool_calls: bool = True
    cache_token: str | None = None
    """Under which a worker may still have what the thread stored last."""
    callers: tuple[Caller, ...] = ()
    begins: bool = False
    """Whether it is asked together with `begin`, so that it first looks whether that was granted."""
    records: bool = False
    """Whether it is asked together with `record`, so that it first waits for that; its answer says the length."""
    seconds: float | None = None
    """With `begins`: after which the turn ends, as there is a timer for."""
    limited: bool = False
    """With `begins`, in turns before `OF_THE_TREE`: whether the request has limits of its own."""
    stream: bool = False
    """Whether somebody reads the words of the reply while they come."""

    def dump(self) -> dict[str, Json]:
        """The step's input."""
        return {
            "thread": self.thread_id,
            "correlationId": self.turn,
            "length": self.length,
            "options": dict(self.options),
            "reply": self.reply,
            **({"state": self.cache_token} if self.cache_token else {}),
            **({"toolChoice": self.tool_choice} if self.tool_choice else {}),
            **({} if self.enable_tool_calls else {"enableToolCalls": False}),
            **_above(self.callers),
            **({"begins": True} if self.begins else {}),
            **({"records": True} if self.records else {}),
            **({} if self.seconds is None else {"seconds": self.seconds}),
            **({"limited": True} if self.limited else {}),
            **({"stream": True} if self.stream else {}),
        }

    @classmethod
    def load(cls, raw: Json) -> ModelStep:
        """Read the step's input."""
        return cls(
            thread_id=raw["thread"],
            turn=raw["correlationId"],
            length=raw["length"],
            reply=raw.get("reply", 1),
            options=raw.get("options") or {},
            tool_choice=raw.get("toolChoice"),
            enable_tool_calls=raw.get("enableToolCalls", True),
            cache_token=raw.get("state"),
            callers=load_callers(raw.get("callers")),
            begins=bool(raw.get("begins")),
            records=bool(raw.get("records")),
            seconds=raw.get("seconds"),
            limited=bool(raw.get("limited")),
            stream=bool(raw.get("stream")),
        )


@attrs.frozen(kw_only=True, repr=False)
class ModelResult(Shown):
    """What a model step gave: a reply, with a plan for each of its calls."""

    message: ChatMessage
    usage: UsageStats | None = None
    finish_reason: str | None = None
    ending: Ending | None = None
    """What the finish reason means; None in steps of versions that did not say."""
    limit: str | None = None
    """At which the reply was cut off, in words."""
    calls: tuple[Plan, ...] = ()
    """In the order of the calls in the message."""
    invalid: str | None = None
    """Why the answer does not fit what was asked for."""

    def dump(self) -> dict[str, Json]:
        """The result as JSON."""
        return {
            "message": dump_message(self.message),
            "usage": dump_usage(self.usage) if self.usage else None,
            "finishReason": self.finish_reason,
            **({} if self.ending is None else {"ending": self.ending}),
            **({} if self.limit is None else {"limit": self.limit}),
            **({"calls": [plan.dump() for plan in self.calls]} if self.calls else {}),
            **({"invalid": self.invalid} if self.invalid else {}),
        }

    @classmethod
    def load(cls, raw: Json) -> ModelResult:
        """Read the result."""
        return cls(
            message=load_message(raw["message"]),
            usage=load_usage(raw["usage"]) if raw.get("usage") else None,
            finish_reason=raw.get("finishReason"),
            ending=raw.get("ending"),
            limit=raw.get("limit"),
            calls=tuple(Plan.load(plan) for plan in raw.get("calls") or ()),
            invalid=raw.get("invalid"),
        )


@attrs.frozen(kw_only=True, repr=False)
class Begun(Shown):
    """What a model step that was asked together with `begin` found: the turn has its thread."""

    length: int
    settings: Settings
    cache_token: str | None = None
    beside: str | None = None
    """The turn that waits for a person, where this one goes on beside it."""

    def dump(self) -> dict[str, Json]:
        """As it stands beside the result."""
        return {
            "granted": self.length,
            "settings": self.settings.dump(),
            **({"state": self.cache_token} if self.cache_token else {}),
            **({"beside": self.beside} if self.beside else {}),
        }

    @classmethod
    def load(cls, raw: Json) -> Begun:
        """Read it."""
        return cls(
            length=raw["granted"],
            settings=Settings.load(raw.get("settings")),
            cache_token=raw.get("state"),
            beside=raw.get("beside"),
        )


@attrs.frozen(kw_only=True, repr=False)
class ModelAnswer(Shown):
    """All that a model step says.

    With neither a result nor an error it did nothing: its turn was not granted its thread, or what was told together
    with it is not there, or nobody knows yet; or, where it says that the turn has begun, a time limit is to be seen to
    first.
    """

    result: ModelResult | None = None
    error: DafxError | None = None
    begun: Begun | None = None
    length: int | None = None
    """Of the thread as the step saw it, where it was asked together with `record`."""

    def dump(self) -> dict[str, Json]:
        """The answer as JSON."""
        return {
            **(self.result.dump() if self.result else {}),
            **({"error": dump_error(self.error)} if self.error else {}),
            **({"begun": self.begun.dump()} if self.begun else {}),
            **({} if self.length is None else {"length": self.length}),
        }

    @classmethod
    def load(cls, raw: Json, thread: AgentThread, turn: str) -> ModelAnswer:
        """Read the answer of a step of this turn."""
        answer = as_object(raw)
        return cls(
            result=ModelResult.load(answer) if "message" in answer else None,
            error=error_in(answer["error"], thread, turn) if "error" in answer else None,
            begun=Begun.load(answer["begun"]) if "begun" in answer else None,
            length=answer.get("length"),
        )


# --- Tool steps ---------------------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True, repr=False)
class ToolStep(Shown):
    """What a tool step is asked: to make one call."""

    thread_id: str
    turn: str
    length: int
    """As with a model step."""
    key: str
    """Names the call."""
    call_id: str
    """The model's name of the call."""
    name: str
    arguments: Mapping[str, Json]
    attempt: int = 1
    once: bool = False
    form: int | None = None
    source: str | None = None
    offer: str | None = None
    callers: tuple[Caller, ...] = ()
    retry: int = 0
    """How often the turn was taken up again, when the call was planned."""
    records: bool = False
    """As with a model step."""

    def dump(self) -> dict[str, Json]:
        """The step's input."""
        return {
            "thread": self.thread_id,
            "correlationId": self.turn,
            "length": self.length,
            "key": self.key,
            "callId": self.call_id,
            "name": self.name,
            "arguments": dict(self.arguments),
            "attempt": self.attempt,
            **({"once": True} if self.once else {}),
            **({} if self.form is None else {"form": self.form}),
            **({} if self.offer is None else {"source": self.source, "offer": self.offer}),
            **_above(self.callers),
            **({"retry": self.retry} if self.retry else {}),
            **({"records": True} if self.records else {}),
        }

    @classmethod
    def load(cls, raw: Json) -> ToolStep:
        """Read the step's input."""
        return cls(
            thread_id=raw["thread"],
            turn=raw["correlationId"],
            length=raw["length"],
            key=raw["key"],
            call_id=raw["callId"],
            name=raw["name"],
            arguments=raw["arguments"],
            attempt=raw.get("attempt", 1),
            once=bool(raw.get("once")),
            form=raw.get("form"),
            source=raw.get("source"),
            offer=raw.get("offer"),
            callers=load_callers(raw.get("callers")),
            retry=raw.get("retry", 0),
            records=bool(raw.get("records")),
        )

    @staticmethod
    def name_in(raw: Json) -> str:
        """The name of the tool, of a step that need not be read whole."""
        return cast("str", raw["name"])


@attrs.frozen(repr=False)
class Returned(Shown):
    """The call was made; the tool returned this."""

    value: Json
    unkept: bool = False
    """Whether the value only says why what the tool returned is not kept."""


@attrs.frozen(repr=False)
class Failed(Shown):
    """The call was not made, or the tool failed."""

    text: str
    """In words for the model."""
    by_tool: bool = False
    """Whether the tool itself raised, so that a retry policy counts."""
    timed_out: bool = False
    """Whether its time was over: nobody can tell whether it has acted."""
    stopped: bool = False
    """Whether it was not made since the turn does not go on."""


@attrs.frozen(repr=False)
class Unknown(Shown):
    """The call was begun before, and nobody knows whether it acted."""


@attrs.frozen(repr=False)
class NotMade(Shown):
    """It is certain that the call has not acted; it may be made again."""


@attrs.frozen(repr=False)
class StillRunning(Shown):
    """An attempt that was cut off may not be over yet."""

    seconds: float
    """After which it is."""


@attrs.frozen(repr=False)
class NotRecorded(Shown):
    """The step did nothing: what was told the thread together with it is not there."""


ToolOutcome: TypeAlias = Returned | Failed | Unknown | NotMade | StillRunning | NotRecorded


def dump_tool_outcome(outcome: ToolOutcome, length: int | None = None) -> dict[str, Json]:
    """What a tool step gives, as JSON; with the length of the thread as it saw it, where it is to say that."""
    said = _tool_outcome(outcome)
    return said if length is None else {**said, "length": length}


def length_seen(raw: Json) -> int | None:
    """The length of the thread as a tool step saw it; None where it does not say."""
    length = object_in(raw).get("length")
    return length if isinstance(length, int) else None


def _tool_outcome(outcome: ToolOutcome) -> dict[str, Json]:
    match outcome:
        case NotRecorded():
            return {"notRecorded": True}
        case Returned(value, unkept):
            return {"result": value, **({"unkept": True} if unkept else {})}
        case Failed(text):
            said = {"failed": outcome.by_tool, "timedOut": outcome.timed_out, "stopped": outcome.stopped}
            return {"error": text, **{name: True for name, holds in said.items() if holds}}
        case Unknown():
            return {"unknown": True}
        case NotMade():
            return {"notDone": True}
        case StillRunning(seconds):
            return {"wait": seconds}


def load_tool_outcome(raw: Json) -> ToolOutcome:
    """Read what a tool step gave."""
    outcome = as_object(raw)
    if outcome.get("notRecorded"):
        return NotRecorded()
    if outcome.get("unknown"):
        return Unknown()
    if "wait" in outcome:
        return StillRunning(outcome["wait"])
    if outcome.get("notDone"):
        return NotMade()
    if "error" in outcome:
        by_tool, timed_out, stopped = (bool(outcome.get(each)) for each in ("failed", "timedOut", "stopped"))
        return Failed(outcome["error"], by_tool, timed_out, stopped)
    return Returned(outcome.get("result"), bool(outcome.get("unkept")))


# --- Probes -------------------------------------------------------------------------------------------------------

HostedKind: TypeAlias = Literal["activity", "orchestration"]


@attrs.frozen(repr=False)
class HostedName(Shown):
    """The name of a piece of work, which some worker may host."""

    kind: HostedKind
    name: str


@attrs.frozen(kw_only=True, repr=False)
class Probe(Shown):
    """Asks what became of a turn; with `names`, instead, which of them some worker has."""

    turn: str
    names: tuple[HostedName, ...] | None = None

    def dump(self) -> dict[str, Json]:
        """The probe's input."""
        names = None if self.names is None else [attrs.asdict(each) for each in self.names]
        return {"correlationId": self.turn, **({} if names is None else {"names": names})}

    @classmethod
    def load(cls, raw: Json) -> Probe:
        """Read the probe's input."""
        names = None
        if "names" in raw:
            names = tuple(HostedName(cast("HostedKind", each["kind"]), each["name"]) for each in raw["names"])
        return cls(turn=raw["correlationId"], names=names)


@attrs.frozen(kw_only=True, repr=False)
class Probed(Shown):
    """What a probe found."""

    alive: bool
    """Whether the turn runs, or may run."""
    response: Json = None
    """Its stored response, where it has completed."""
    hosts: Mapping[str, bool] | None = None
    """Which names some worker has; one of which nobody can tell is left out."""

    def dump(self) -> dict[str, Json]:
        """What was found, as JSON."""
        if self.hosts is not None:
            return {"alive": True, "hosts": dict(self.hosts)}
        return {"alive": True} if self.alive else {"alive": False, "response": self.response}

    @classmethod
    def load(cls, raw: Json) -> Probed:
        """Read what was found; workers of older versions say nothing of names."""
        found = object_in(raw)
        hosts = object_in(found["hosts"]) if found.get("hosts") else None
        return cls(alive=bool(found.get("alive")), response=found.get("response"), hosts=hosts)
