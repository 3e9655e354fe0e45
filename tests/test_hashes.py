"""What users are given can stand in a set and be the key of a dict, with the JSON that it holds."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import attrs
import pytest

from dafx_actors import AgentThread, decisions, exchange, models, transcript
from dafx_actors.decisions import DecisionAccepted, PendingApproval
from dafx_actors.exchange import RunRequest
from dafx_actors.handles import TurnStatus
from dafx_actors.mcp import Http, Stdio
from dafx_actors.models import ToolDefinition
from dafx_actors.transcript import ChatMessage, FunctionCallContent, FunctionResultContent, OpaqueEntry, Response

THREAD = AgentThread("Joker", "t1")
VALUES: list[Callable[[], object]] = [
    lambda: ChatMessage("assistant", [FunctionCallContent("c1", "look", {"at": ["it"]}, extra={"x": {}})]),
    lambda: FunctionResultContent("c1", {"rows": [1, 2]}),
    lambda: Response(messages=(ChatMessage("assistant", "Hi", extra={"a": []}),), extra={"b": {}}),
    lambda: OpaqueEntry({"$type": "later", "data": [{}]}),
    lambda: RunRequest(messages=(ChatMessage("user", "Hi"),), correlation_id="t", response_schema={"type": "object"}),
    lambda: PendingApproval(
        thread=THREAD,
        correlation_id="t",
        key="c1",
        idempotency_key="t-c1",
        call_id="c1",
        tool="pay",
        arguments={"to": {"name": "Ann"}},
        digest="d",
        asked_at=datetime(2026, 1, 1, tzinfo=UTC),
    ),
    lambda: DecisionAccepted(
        action="approve",
        at=datetime(2026, 1, 1, tzinfo=UTC),
        thread=THREAD,
        correlation_id="t",
        key="c1",
        tool="pay",
        call_arguments={"to": {"name": "Ann"}},
    ),
    lambda: ToolDefinition(name="look", description="Looks.", parameters={"type": "object", "properties": {}}),
    lambda: TurnStatus(state="running", progress={"look": {"done": [1]}}),
    lambda: Http(url="http://127.0.0.1:1/mcp", headers={"a": "b"}),
    lambda: Stdio(command="cat", env={"A": "b"}),
]


@pytest.mark.parametrize("make", VALUES)
def test_equal_values_are_one_in_a_set(make: Callable[[], object]) -> None:
    assert make() == make()
    assert len({make(), make()}) == 1


WORDS = [
    word
    for module in (transcript, exchange, decisions, models)
    for word in vars(module).values()
    if isinstance(word, type) and attrs.has(word) and word.__module__ == module.__name__
]


@pytest.mark.parametrize("word", WORDS)
def test_no_json_is_hashed(word: type[attrs.AttrsInstance]) -> None:
    json = [each.name for each in attrs.fields(word) if str(each.type).startswith(("Mapping", "Json"))]
    assert [name for name in json if getattr(attrs.fields(word), name).hash is not False] == []
