"""The short form of `python tests/chaos/run.py`, and a look at whether its checker sees what it looks for."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from dafx_actors.transcript import ChatMessage, Entry, FunctionCallContent, Request, Response, Transcript
from tests.chaos import run
from tests.chaos.checker import Report, check_effects, check_steps, check_thread
from tests.chaos.model import Asked

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.anyio
@pytest.mark.timeout(300)  # much of it is waiting for processes to start, on a machine that does other things, too
async def test_conversations_survive_every_fault_that_can_be_made_here() -> None:
    report = await run.run(kills=8, seed=5, pause=0.3)
    assert report.clean, run.table(report)
    assert report.figures["answers"] >= 10


def turn(name: str, after: int, *, says: str | None = None) -> list[Entry]:
    answer = says or json.dumps({"turn": name, "after": after})
    return [
        Request(correlation_id=name, messages=(ChatMessage("user", f"<{name}> "),), created_at=NOW),
        Response(correlation_id=name, messages=(ChatMessage("assistant", answer),), created_at=NOW),
    ]


def told(name: str, after: int) -> dict[str, Any]:
    return {"what": "told", "turn": name, "text": json.dumps({"turn": name, "after": after})}


FIRST, SECOND = "thread-0.client-0.1", "thread-0.client-0.2"
CALLS = Response(
    correlation_id=FIRST,
    messages=(
        ChatMessage("assistant", (FunctionCallContent("call_0", "pay", {}),)),
        ChatMessage("assistant", json.dumps({"turn": FIRST, "after": 0})),
    ),
    created_at=NOW,
)


@pytest.mark.parametrize(
    ("fault", "books", "entries"),
    [
        (None, [told(FIRST, 0), told(SECOND, 2)], [*turn(FIRST, 0), *turn(SECOND, 2)]),
        ("lost", [told(FIRST, 0), told(SECOND, 2)], turn(FIRST, 0)),
        ("lost", [{"what": "told", "turn": FIRST, "error": "TurnFailed"}], turn(FIRST, 0)),
        ("lost", [{"what": "cancelled", "turn": FIRST}], turn(FIRST, 0)),
        ("twice", [told(FIRST, 0)], [*turn(FIRST, 0), *turn(FIRST, 2)]),
        ("twice", [told(FIRST, 0)], turn(FIRST, 0, says='{"turn": "another", "after": 0}')),
        ("out_of_order", [], [*turn(FIRST, 0), *turn(SECOND, 0)]),
        ("out_of_order", [], [*turn(SECOND, 0), *turn(FIRST, 2)]),
        ("invalid", [], [turn(FIRST, 0)[0], CALLS]),
    ],
)
def test_the_checker_sees_it(fault: str | None, books: list[dict[str, Any]], entries: list[Entry]) -> None:
    report = Report()
    check_thread("thread-0", books, Transcript(entries=tuple(entries)), report)
    assert report.clean == (fault is None)
    assert fault is None or getattr(report, fault)


@pytest.mark.parametrize(
    ("lines", "clean"),
    [
        ([("begun", 1), ("acted", 1)], True),
        ([("begun", 1), ("fenced", 1), ("begun", 2), ("acted", 2)], True),
        ([("begun", 1), ("acted", 1), ("begun", 2), ("acted", 2)], False),
        ([("begun", 1), ("begun", 1), ("acted", 1)], False),
    ],
)
def test_the_checker_sees_effects_that_are_repeated(lines: list[tuple[str, int]], clean: bool) -> None:
    report = Report()
    check_effects({"key": lines}, [], report)
    assert report.clean is clean


@pytest.mark.parametrize(("disturbed", "clean"), [([], False), ([(2.0, 7)], True), ([(2.0, 8)], False)])
def test_the_checker_sees_steps_that_are_repeated(disturbed: list[tuple[float, int | None]], clean: bool) -> None:
    report = Report()
    asked = {("turn", 0): [Asked(1.0, 8), Asked(3.0, 7)], ("turn", 1): [Asked(2.0, 8)]}
    check_steps(asked, disturbed, report)
    assert report.clean is clean
