"""JSON that others wrote: read strictly, refused in words of a readable length."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import Any

import pytest

from dafx_actors import AgentThread, ChatMessage, ToolContext, tool
from dafx_actors._json.answers import answer, answer_mismatch
from dafx_actors._json.books import DecisionRecord
from dafx_actors._json.requests import dump_response
from dafx_actors._json.shapes import check_json, dump_time, load_json, reason_of, shown
from dafx_actors._json.steps import Returned, TurnInput
from dafx_actors.errors import InvalidAnswer, ValueMismatch
from dafx_actors.exchange import RunRequest
from dafx_actors.models import UNPARSED_ARGUMENTS, ToolDefinition
from dafx_actors.models._reading import reply
from dafx_actors.tools import Approval, tools_of
from dafx_actors.tools._toolbox import Toolbox
from dafx_actors.transcript import FunctionCallContent, Json, Response

pytestmark = pytest.mark.anyio

THREAD = AgentThread("Joker", "t1")
LOGGER = logging.getLogger("dafx_actors.tests")
NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)
WRONG = {
    "NaN": '{"a": NaN}',
    "infinity": '{"a": [-Infinity]}',
    "out of bounds": '{"a": 1e999}',
    "digits": '{"a": ' + "9" * 5000 + "}",
    "many digits": '{"a": ' + "9" * 1001 + "}",
    "brackets": '{"a": ' + "[" * 100_000 + "]" * 100_000 + "}",
    "levels": '{"a": ' + "[" * 100 + "]" * 100 + "}",
    "open": "[" * 100_000,
    "cut": '{"a": 1,',
    "empty": "",
    "two": "{} {}",
}
"""Texts that are no JSON, or none that can be written again."""


@pytest.mark.parametrize("text", WRONG.values(), ids=WRONG)
def test_what_is_no_json_is_refused_in_few_words(text: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        load_json(text)
    assert len(str(caught.value)) < 200
    assert "set_int_max" not in str(caught.value)


@pytest.mark.parametrize("value", [None, True, 0, -1.5, "x", [], {}, {"a": [{"b": [10**900, 1e308]}]}])
def test_what_is_json_is_read(value: Json) -> None:
    assert load_json(json.dumps(value)) == value
    assert check_json(value) is value


@pytest.mark.parametrize(
    "value", [float("nan"), {"a": [float("inf")]}, {1: 2}, {"a": int}, [b"x"], [10**5000]], ids=shown
)
def test_a_value_that_json_cannot_hold_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=r"JSON has no|is a text|digits"):
        check_json(value)


# --- Each door ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", WRONG.values(), ids=WRONG)
def test_arguments_of_a_model_are_kept_as_it_wrote_them(text: str) -> None:
    call = {"id": "c1", "function": {"name": "f", "arguments": text}}
    said = reply({"choices": [{"finish_reason": "tool_calls", "message": {"tool_calls": [call]}}]})
    [content] = said.message.contents
    wrong = {} if text == "" else {UNPARSED_ARGUMENTS: text}
    assert content == FunctionCallContent("c1", "f", extra=wrong)


@pytest.mark.parametrize("text", WRONG.values(), ids=WRONG)
def test_an_answer_that_is_no_json_is_told_to_the_model_and_the_caller(text: str) -> None:
    said = answer_mismatch(text, {"type": "object"})
    assert said is not None
    assert said.startswith("it is not JSON (")
    assert len(said) < 300
    stored = dump_response(Response(correlation_id="c1", messages=(ChatMessage("assistant", text),)))
    with pytest.raises(InvalidAnswer, match="it is not JSON"):
        answer(stored, THREAD, dict[str, Any])


def test_a_long_answer_that_does_not_fit_is_told_in_a_readable_length() -> None:
    said = answer_mismatch(json.dumps(["x" * 100_000] * 100), {"type": "array", "items": {"type": "integer"}})
    assert said is not None
    assert len(said) < 5000


@pytest.mark.parametrize("value", [float("nan"), 10**5000, [float("-inf")], b"x".__class__], ids=shown)
async def test_what_a_source_of_tools_gives_is_json_or_an_error(value: Any) -> None:
    class Source:
        name = "files"
        approval: Approval | None = None

        async def tools(self) -> list[ToolDefinition]:
            return [ToolDefinition(name="read", description="", parameters={"type": "object"})]

        async def call(self, name: str, arguments: Any, context: ToolContext) -> Any:
            return {"good": b"\xff", "times": {1: 2}} if arguments else {"bad": value}

        async def aclose(self) -> None: ...

    box = Toolbox([Source()])
    assert await box.call("read", {"a": 1}, a_context()) == Returned({"good": "/w==", "times": {"1": 2}})
    outcome = await box.call("read", {}, a_context())
    assert isinstance(outcome, Returned)
    assert outcome.unkept, "the source has acted; only what it gave cannot be kept"
    assert "cannot be stored" in outcome.value
    assert len(outcome.value) < 1000


@pytest.mark.parametrize("text", WRONG.values(), ids=WRONG)
async def test_a_model_is_told_what_is_wrong_with_its_arguments(text: str) -> None:
    @tool
    def act(a: Any) -> None: ...

    class Host:
        tools = (act,)

    box = Toolbox(tools_of(Host()))
    call = FunctionCallContent("c1", "act", extra={UNPARSED_ARGUMENTS: text})
    plan = await box.plan(call, await box.definitions())
    assert "the arguments are no JSON object" in (plan.refusal or "")
    assert len(plan.refusal or "") < 400
    assert (await box.plan(FunctionCallContent("c1", "act", {"a": 1}), await box.definitions())).form == 2


CALLED = ChatMessage("assistant", (FunctionCallContent("c1", "f", {"a": float("inf")}),))


@pytest.mark.parametrize(
    "wrong",
    [{"options": {"seed": float("nan")}}, {"response_schema": {"a": {1: 2}}}, {"messages": (CALLED,)}],
    ids=str,
)
def test_what_a_caller_sends_is_json_or_refused_there(wrong: dict[str, Any]) -> None:
    sent: dict[str, Any] = {"correlation_id": "c1", "messages": (ChatMessage("user", "Hi"),), **wrong}
    request = RunRequest(**sent)
    with pytest.raises(ValueMismatch, match="cannot be sent"):
        TurnInput(thread_id=THREAD.thread_id, request=request).dump()


@pytest.mark.parametrize("field", ["arguments", "result"])
def test_a_decision_holds_json(field: str) -> None:
    made = {"action": "approve", "at": dump_time(NOON), field: {"a": 1}}
    assert DecisionRecord.load(made).raw is made
    assert DecisionRecord.load({**made, field: None})
    with pytest.raises(ValueError, match="JSON has no nan"):
        DecisionRecord.load({**made, field: {"a": float("nan")}})


def test_values_and_errors_are_shown_in_few_words() -> None:
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    assert shown(deep) == "a list that is too large to be shown"
    assert shown(10**5000) == "a int that is too large to be shown"
    assert len(reason_of(ValueError("x" * 10_000))) == 400


def a_context() -> ToolContext:
    """Of a call that nobody makes."""

    def nothing(*_: Any) -> Any:
        raise AssertionError("nobody asks for it")

    return ToolContext(
        thread=THREAD,
        correlation_id="c1",
        call_id="x",
        idempotency_key="k",
        attempt=1,
        logger=LOGGER,
        transcript=nothing,
        report=nothing,
    )
