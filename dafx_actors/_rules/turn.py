"""What a turn does next. Pure: no clock, no network, no `await`.

A turn goes round: a model call, then the tools that the model asked for, until it answers. What each step gave is kept
as JSON in the history of the turn's orchestration; what is decided here depends on that and on nothing else, so that
a replay decides the same.

::

    reply ──> Finish            the reply is the answer
          ──> CallTools         its calls are made, approvals first; their results go to the model
          ──> Repair            the answer does not fit what was asked, or was cut off; the model is asked again, once
          ──> Fail              the turn cannot go on
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import attrs

from dafx_actors._json.books import DecisionRecord, Resumed
from dafx_actors._json.steps import Failed, ModelResult, Plan, Returned
from dafx_actors._shown import Shown
from dafx_actors.errors import DafxError, InvalidAnswer, ModelError, TurnLimitExceeded
from dafx_actors.exchange import AgentRunResponse, Limits
from dafx_actors.models import ending_of
from dafx_actors.transcript import ChatMessage, FunctionCallContent, FunctionResultContent, Json, UsageStats

REPAIRS = 1
"""How often a model is told that its answer does not fit."""
CUTS = 1
"""How often a model is asked again where its answer was cut off before it could be used."""
NOT_MADE = "the call was not made: the turn ended before it"
"""Of a call that has not begun, so that it cannot have acted."""


# --- How far a turn has come --------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True, repr=False)
class Progress(Shown):
    """The progress of a turn: what it has taken so far."""

    replies: int = 0
    """Replies of the model."""
    steps: int = 0
    """Model calls and tool calls, without retries; with those of the agents that it used as tools."""
    usage: UsageStats | None = None
    """The tokens of all its model calls, with those of the agents that it used as tools."""
    repairs: int = 0
    cuts: int = 0
    """Replies, one after the other, that were cut off or broke off."""
    finish_reason: str | None = None
    """The finish reason of the latest reply."""
    retries: tuple[Json, ...] = ()
    """Attempts that failed and were made again, each with its step and error."""

    @property
    def about(self) -> dict[str, Json]:
        """The part of a response that says how it came about."""
        about: dict[str, Json] = {} if self.steps == 1 else {"steps": self.steps}
        if self.retries:
            about["retries"] = list(self.retries)
        return {**about, **({"finishReason": self.finish_reason} if self.finish_reason else {})}


def resumed(before: Resumed) -> Progress:
    """The progress of a turn that failed, and is taken up again: what it took counts on."""
    return Progress(replies=before.replies, steps=before.steps, usage=before.usage, retries=before.attempts)


def with_spent(progress: Progress, steps: int, usage: UsageStats | None) -> Progress:
    """The progress with what an agent took that was used as a tool."""
    total = usage if progress.usage is None else progress.usage if usage is None else progress.usage + usage
    return attrs.evolve(progress, steps=progress.steps + steps, usage=total)


def over_limit(progress: Progress, limits: Limits, turn: str, agent: str) -> TurnLimitExceeded | None:
    """The limit at which a turn ends before its next model call, since agents that it used as tools came to it."""
    tokens = progress.usage.total_tokens if progress.usage else 0
    if limits.tokens is not None and tokens > limits.tokens:
        return TurnLimitExceeded(agent, turn, "tokens", limits.tokens, tokens)
    if limits.steps is not None and progress.steps + 1 > limits.steps:
        return TurnLimitExceeded(agent, turn, "steps", limits.steps, progress.steps + 1)
    return None


# --- After a model call -------------------------------------------------------------------------------------------


@attrs.frozen(repr=False)
class Finish(Shown):
    """The reply is the answer."""

    message: ChatMessage
    last: bool = False
    """True if the turn is at its limit, so that it cannot go on for requests that would join it."""


@attrs.frozen(kw_only=True, repr=False)
class Call(Shown):
    """A tool call that the model asked for, and how it is to be made."""

    key: str
    """The key of the call; see `ids.call_key`."""
    content: FunctionCallContent
    plan: Plan
    """The plan that the worker made with the reply."""


@attrs.frozen(repr=False)
class CallTools(Shown):
    """These calls are made."""

    message: ChatMessage
    """The model's message, which asks for the calls."""
    calls: tuple[Call, ...]


@attrs.frozen(repr=False)
class Repair(Shown):
    """The model is asked again."""

    messages: tuple[ChatMessage, ...]
    """The answer, and what is wrong with it; nothing where the provider broke off what it was saying."""


@attrs.frozen(repr=False)
class Fail(Shown):
    """The turn cannot go on."""

    error: DafxError
    messages: tuple[ChatMessage, ...] = ()
    """The messages that the turn had not recorded yet."""


Move: TypeAlias = Finish | CallTools | Repair | Fail
KeyOf: TypeAlias = Callable[[int, int], str]
"""Names a tool call, by the number of the reply that asks for it and its place in that."""


def next_move(
    result: ModelResult, progress: Progress, limits: Limits, turn: str, agent: str, key_of: KeyOf
) -> tuple[Progress, Move]:
    """Decide what follows from a model step that gave a reply; gives the progress with it, too.

    Args:
        result: Of the step.
        progress: Before it.
        limits: Of the turn.
        turn: The correlation id.
        agent: The agent's name.
        key_of: Names the calls.
    """
    message, usage, ending = result.message, result.usage, result.ending
    total = progress.usage if usage is None else usage if progress.usage is None else progress.usage + usage
    number = progress.replies + 1
    steps = progress.steps + 1
    progress = attrs.evolve(progress, replies=number, steps=steps, usage=total)
    if ending is not None:
        progress = attrs.evolve(progress, finish_reason=result.finish_reason)
    if ending == "withheld" or result.finish_reason == "content_filter":
        categories: Json = message.extra.get("filtered")
        data: dict[str, Json] = {"categories": categories} if isinstance(categories, list) else {}
        why = f" ({', '.join(map(str, data['categories']))})" if data else ""
        withheld = message.text or f"the provider's filter withheld the answer{why}"
        return progress, Fail(ModelError("content_filter", withheld, data=data))
    tokens = total.total_tokens if total else 0
    if limits.tokens is not None and tokens > limits.tokens:
        over = TurnLimitExceeded(agent, turn, "tokens", limits.tokens, tokens)
        return progress, Fail(over, (message,))
    if ending == "broken" or (ending == "cut" and (_calls_in(message) or not message.text)):
        return _cut_off(result, message, progress, limits, key_of)
    progress = attrs.evolve(progress, cuts=0)
    calls = tuple(
        Call(key=key_of(number, index), content=content, plan=plan)
        for index, (content, plan) in enumerate(zip(_calls_in(message), result.calls, strict=True))
    )
    if calls:
        # The call after the tools counts as well: their results are of no use without it.
        needed = steps + len(calls) + 1
        if limits.steps is not None and needed > limits.steps:
            return progress, Fail(TurnLimitExceeded(agent, turn, "steps", limits.steps, needed), (message,))
        return attrs.evolve(progress, steps=steps + len(calls)), CallTools(message, calls)
    if (invalid := result.invalid) is not None:
        if result.finish_reason == "length":
            # To ask again would end at the same place.
            return progress, Fail(
                InvalidAnswer(message.text, f"it was cut off at {_limit_in(result)} ({invalid})"), (message,)
            )
        if progress.repairs >= REPAIRS or (limits.steps is not None and steps >= limits.steps):
            return progress, Fail(InvalidAnswer(message.text, invalid), (message,))
        advice = ChatMessage(
            "user", f"Your answer does not fit the JSON schema: {invalid}. Answer again, with JSON only."
        )
        return attrs.evolve(progress, repairs=progress.repairs + 1), Repair((message, advice))
    return progress, Finish(message, last=limits.steps is not None and steps >= limits.steps)


def _cut_off(
    result: ModelResult, message: ChatMessage, progress: Progress, limits: Limits, key_of: KeyOf
) -> tuple[Progress, Move]:
    """Decide what follows from a reply that ends before it can be used: its calls are not made, and it is no answer.

    The model is asked once more, where that may give something else: a provider broke off, or calls can be shorter.
    """
    reason, calls = result.finish_reason, _calls_in(message)
    broken = result.ending == "broken"
    is_at_limit = limits.steps is not None and progress.steps >= limits.steps
    if progress.cuts >= CUTS or is_at_limit or not (broken or calls):
        if broken:
            said = f"the provider broke off the answer (finish reason {reason!r})"
            error = ModelError("bad_response", said, attempts=progress.cuts + 1)
        else:
            advice = "allow more tokens, or ask for less"
            where = f"{_limit_in(result)} (finish reason {reason!r})"
            said = f"the answer was cut off at {where} before it could be used; {advice}"
            error = ModelError("length", said, attempts=progress.cuts + 1)
        return progress, Fail(error, (message,) if message.contents else ())
    progress = attrs.evolve(progress, cuts=progress.cuts + 1)
    if broken:
        return progress, Repair(())
    refusal = (
        f"the call was not made: the answer was cut off at {_limit_in(result)}; make it shorter, or do it in parts"
    )
    cut = [Call(key=key_of(progress.replies, index), content=call, plan=Plan()) for index, call in enumerate(calls)]
    results = ChatMessage("tool", tuple(result_of(call, CallOutcome(Failed(refusal))) for call in cut))
    return progress, Repair((message, results))


def _limit_in(result: ModelResult) -> str:
    return result.limit or "the model's limit"


def told_to_caller(answer: AgentRunResponse[Any]) -> str:
    """An answer for another agent's model, which sees its text only: one that was cut off says so."""
    if ending_of(answer.finish_reason or "") != "cut":
        return answer.text
    return f"{answer.text}\n[The answer was cut off here: finish reason {answer.finish_reason!r}.]"


def _calls_in(message: ChatMessage) -> list[FunctionCallContent]:
    return [content for content in message.contents if isinstance(content, FunctionCallContent)]


def batches(calls: Sequence[Call]) -> list[list[Call]]:
    """The calls in their order, those together that are made at the same time."""
    batches_of_calls: list[list[Call]] = []
    for call in calls:
        if batches_of_calls and not call.plan.alone and not batches_of_calls[-1][0].plan.alone:
            batches_of_calls[-1].append(call)
        else:
            batches_of_calls.append([call])
    return batches_of_calls


# --- Tool calls ---------------------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True, repr=False)
class CallOutcome(Shown):
    """The outcome of a call, for the model and for the record."""

    made: Returned | Failed = attrs.field(kw_only=False)
    decision: DecisionRecord | None = None
    """The decision of a person about the call, or of its deadline."""
    resolved: tuple[DecisionRecord, ...] = ()
    """The answers of persons about attempts that were cut off."""
    fatal: DafxError | None = None
    """The error that ends the turn."""


def results_message(calls: Iterable[Call], outcomes: Mapping[str, CallOutcome]) -> ChatMessage | None:
    """The results of the calls that have one, for the model and for the record; None where there are none."""
    results = tuple(result_of(call, outcomes[call.key]) for call in calls if call.key in outcomes)
    return ChatMessage("tool", results) if results else None


def result_of(call: Call, outcome: CallOutcome) -> FunctionResultContent:
    """The result of a call as the model is told it: the value, or what went wrong, in words."""
    made = outcome.made
    ours: dict[str, Json] = {"key": call.key}
    if isinstance(made, Failed):
        ours["failed"] = True
    elif made.unkept:
        ours["unkept"] = True
    if outcome.decision is not None:
        ours["decision"] = outcome.decision.raw
    if outcome.resolved:
        ours["resolved"] = [each.raw for each in outcome.resolved]
    said = f"Error: {made.text}" if isinstance(made, Failed) else made.value
    return FunctionResultContent(call.content.call_id, said, extra={"dafx": ours})


def denied(decision: DecisionRecord) -> CallOutcome:
    """The outcome of a call that a person did not allow."""
    if decision.action == "expire":
        return CallOutcome(Failed("the call was not made: nobody approved it in time"), decision=decision)
    because = f": {decision.reason}" if decision.reason else ""
    return CallOutcome(Failed(f"the call was not made: a person denied it{because}"), decision=decision)


def with_calls_not_made(messages: Sequence[ChatMessage]) -> tuple[ChatMessage, ...]:
    """The last messages of a turn that cannot go on: their calls were not made, and are known not to have acted."""
    text = f"Error: {NOT_MADE}"
    results = tuple(
        FunctionResultContent(call.call_id, text, extra={"dafx": {"failed": True}})
        for message in messages
        for call in _calls_in(message)
    )
    return (*messages, ChatMessage("tool", results)) if results else tuple(messages)
