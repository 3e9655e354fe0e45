"""Which schemas are taken from a caller; and that nothing is fetched, and nobody waits, for those that are."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping
from typing import Any

import anyio
import pydantic
import pytest

from dafx_actors import durable_agent
from dafx_actors._json.answers import answer_mismatch
from dafx_actors._json.checker import Checker, TookTooLong
from dafx_actors._json.schema_limits import MOST_BYTES, look
from dafx_actors.errors import InvalidAnswer, ModelError, ValueMismatch
from dafx_actors.exchange import RunRequest
from dafx_actors.testing import AgentHost, ScriptedModel
from dafx_actors.transcript import ChatMessage

pytestmark = pytest.mark.anyio

SLOW = {"type": "string", "pattern": "^(a+)+$"}
LONG = "a" * 40 + "!"


def nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        schema = {"items": schema}
    return schema


def doubling(levels: int, *, anchors: bool = False) -> dict[str, Any]:
    def to(level: int) -> dict[str, str]:
        return {"$ref": f"#a{level}" if anchors else f"#/$defs/d{level}"}

    defs: dict[str, Any] = {f"d{n}": {"$anchor": f"a{n}", "allOf": [to(n + 1), to(n + 1)]} for n in range(levels)}
    return {**to(0), "$defs": {**defs, f"d{levels}": {"$anchor": f"a{levels}", "type": "string"}}}


TREE: dict[str, Any] = {
    "$defs": {"node": {"properties": {"children": {"type": "array", "items": {"$ref": "#/$defs/node"}}}}},
    "$ref": "#/$defs/node",
}


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        ({"$ref": "http://127.0.0.1:1/x"}, "refers to 'http://127.0.0.1:1/x'"),
        ({"items": {"anyOf": [{"$ref": "file:///etc/passwd"}]}}, "refers to 'file:///etc/passwd'"),
        ({"$dynamicRef": "other.json#a"}, "refers to 'other.json#a'"),
        ({"$ref": "#/$defs/gone"}, "which is not in it"),
        ({"items": {"$id": "http://example.com/", "$ref": "#/a"}}, "only the whole may have one"),
        ({"properties": {"default": {"$ref": "http://127.0.0.1:1/x"}}}, "refers to"),
        ({"allOf": [{"$ref": "#/allOf/" + "9" * 5_000}]}, "which is not in it"),
        (nested(65), "deeper than 64 levels"),
        (doubling(20), "it may have 10,000"),
        (doubling(20, anchors=True), "it may have 10,000"),
        ({"enum": ["x" * MOST_BYTES]}, "may have 262,144"),
        ({"const": {1, 2}}, "is not JSON"),
    ],
)
def test_schemas_that_are_not_taken(schema: Mapping[str, Any], why: str) -> None:
    assert why in (look(schema).mistake or "")


@pytest.mark.parametrize(
    ("schema", "may_be_slow"),
    [
        ({}, False),
        ({"$id": "http://example.com/", "type": "string"}, False),
        ({"properties": {"a": {"$ref": "#/$defs/b~1c%20d"}}, "$defs": {"b/c d": {"type": "string"}}}, False),
        ({"properties": {"$ref": {"type": "string"}}}, False),
        (nested(60), False),
        (doubling(5), False),
        (TREE, True),
        (SLOW, True),
        ({"items": {"uniqueItems": True}}, True),
        ({"patternProperties": {"^a": {}}}, True),
        ({"properties": {"default": SLOW}}, True),
        ({"items": {"$ref": "#/default"}, "default": SLOW}, True),
    ],
)
def test_schemas_that_are_taken_and_which_of_them_are_checked_beside_the_loop(
    schema: Mapping[str, Any], may_be_slow: bool
) -> None:
    looked = look(schema)
    assert (looked.mistake, looked.may_be_slow) == (None, may_be_slow)


def test_a_reference_to_elsewhere_is_not_followed_whoever_asks() -> None:
    said = answer_mismatch("1", {"$ref": "http://127.0.0.1:1/x"})
    assert said is not None
    assert "the schema itself is broken" in said


# --- In a process of its own --------------------------------------------------------------------------------------


@pytest.fixture
def checker() -> Any:
    made = Checker()
    yield made
    made.close()


def test_the_process_says_what_is_said_here(checker: Checker) -> None:
    cases: list[tuple[str, dict[str, Any]]] = [
        ("[1, 1]", {"uniqueItems": True}),
        ('"b"', {"pattern": "a"}),
        ('"a"', SLOW),
        ("1", {"$ref": "#x"}),
    ]
    for text, schema in cases:
        assert answer_mismatch(text, schema, checker.mistakes) == answer_mismatch(text, schema)


def test_what_takes_too_long_is_ended_and_the_next_one_is_checked(checker: Checker) -> None:
    checker.seconds = 0.3
    for _ in range(2):
        with pytest.raises(TookTooLong):
            checker.mistakes(LONG, SLOW)
        checker.seconds = 30
        assert checker.mistakes("aa", SLOW) == []
        checker.seconds = 0.3


def test_a_process_that_was_ended_by_somebody_else_is_made_anew(checker: Checker) -> None:
    assert checker.mistakes("aa", SLOW) == []
    assert checker._process is not None
    checker._process.kill()
    assert checker.mistakes("b", SLOW)


def test_many_threads_may_ask(checker: Checker) -> None:
    found: list[Any] = []

    def ask(number: int) -> None:
        found.append(len(checker.mistakes("a" * number if number % 2 else "b", SLOW)))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(found) == [0] * 4 + [1] * 4


# --- In turns -----------------------------------------------------------------------------------------------------


class Code(pydantic.BaseModel):
    code: pydantic.constr(pattern="^[A-Z]{3}$")  # type: ignore[valid-type]


async def test_a_pattern_that_never_ends_is_an_invalid_answer_and_holds_nobody_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("dafx_actors._turns.asking.CHECKER", slow := Checker(0.3))

    @durable_agent(model=ScriptedModel(lambda _: json.dumps(LONG)))
    class Answerer:
        instructions = "Answer."

    longest, last = 0.0, time.monotonic()

    async def beat() -> None:
        nonlocal longest, last
        while True:
            await anyio.sleep(0.01)
            longest, last = max(longest, time.monotonic() - last), time.monotonic()

    async with AgentHost(Answerer) as host, anyio.create_task_group() as group:
        group.start_soon(beat)
        with pytest.raises(InvalidAnswer, match=r"could not be found out within 0\.3 s"):
            await host.client.get_agent(Answerer).run("Go", response_format=SLOW)
        group.cancel_scope.cancel()
    slow.close()
    assert longest < 30, "a pattern of this kind would hold it for hours"


async def test_a_users_own_pattern_keeps_working() -> None:
    replies = iter(['{"code": "abc"}', '{"code": "ABC"}'])

    @durable_agent(model=ScriptedModel(lambda _: next(replies)))
    class Answerer:
        instructions = "Answer."

    async with AgentHost(Answerer) as host:
        answer = await host.client.get_agent(Answerer).run("Go", response_format=Code)
    assert answer.value == Code(code="ABC")


async def test_a_schema_that_is_not_taken_is_refused_where_it_enters() -> None:
    """By the client; and by the worker, to which others may send it."""
    model = ScriptedModel("1")

    @durable_agent(model=model)
    class Answerer:
        instructions = "Answer."

    schema = {"$ref": "http://127.0.0.1:1/x"}
    async with AgentHost(Answerer) as host:
        agent = host.client.get_agent(Answerer)
        with pytest.raises(ValueMismatch, match="only what is in the schema itself"):
            await agent.run("Go", response_format=schema)
        request = RunRequest(correlation_id="c1", messages=(ChatMessage("user", "Go"),), response_schema=schema)
        thread = agent.get_thread("t")
        await host.client._executor.start(thread, request)
        with pytest.raises(ModelError, match="only what is in the schema itself") as caught:
            await agent.get_turn("c1")
    assert caught.value.kind == "bad_request"
    model.assert_asked(0)
