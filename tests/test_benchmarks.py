"""The side-by-side benchmark: what it makes of measurements, and that it runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import jsonschema  # type: ignore[import-untyped]  # it has no types
import pytest

from dafx_actors._json.document import load_transcript
from dafx_actors._json.messages import dump_entry
from dafx_actors.transcript import Request, Response
from tests.benchmarks import scenarios, seed
from tests.benchmarks.figures import (
    Figures,
    Goal,
    Missing,
    Summary,
    as_json,
    judge,
    milliseconds,
    number,
    percentile,
    summarise,
    table,
)
from tests.conftest import peer_python_or_skip

ROOT = Path(__file__).parents[1]
RESULTS = {
    "latency": {
        "peer": {"p50 ms": Summary(20.0, 18.0, 30.0, 3)},
        "ours": {"p50 ms": Summary(10.0, 10.0, 10.0, 3), "other": Summary(1.0, 1.0, 1.0, 1)},
    }
}


def test_percentiles_are_values_that_were_measured() -> None:
    """The nearest rank; of few values, the highest percentiles are the highest value."""
    assert percentile(range(1, 101), 0.95) == 95
    assert percentile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert milliseconds([0.001, 0.002, 0.003]) == {"p50 ms": 2.0, "p95 ms": 3.0, "p99 ms": 3.0}


def test_runs_are_summarised_figure_by_figure() -> None:
    """Median and spread; a figure that some runs lack is one of the others."""
    found = summarise([{"a": 1.0, "b": 5.0}, {"a": 3.0}, {"a": 2.0}])
    assert found == {"a": Summary(2.0, 1.0, 3.0, 3), "b": Summary(5.0, 5.0, 5.0, 1)}


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (0.01234, "0.0123"), (1.0, "1.00"), (16.21, "16.2"), (1667.4, "1,667")]
)
def test_numbers_have_three_digits(value: float, text: str) -> None:
    """More say nothing."""
    assert number(value) == text


def test_goals_are_judged_by_the_medians() -> None:
    """At most, or at least; one whose figures were not measured is neither met nor missed."""

    def ratio(of: Figures) -> float:
        return of("latency", "ours", "p50 ms") / of("latency", "peer", "p50 ms")

    def missing(of: Figures) -> float:
        return of("depth", "ours", "ms")

    goals = [
        Goal("latency", "low", 0.5, ratio),
        Goal("latency", "lower", 0.4, ratio),
        Goal("latency", "high", 0.6, ratio, at_least=True),
        Goal("depth", "missing", 1.0, missing),
    ]
    verdicts = judge(goals, RESULTS)
    assert [verdict.met for verdict in verdicts] == [True, False, False, None]
    assert [str(verdict).split()[0] for verdict in verdicts] == ["met", "MISSED", "MISSED", "not"]
    assert [goal["value"] for goal in as_json(RESULTS, verdicts)["goals"]] == [0.5, 0.5, 0.5, None]


def test_figures_are_found_by_how_they_start() -> None:
    """Or are missing."""
    figures = Figures({"s": {"x": {"ms at 1": Summary(2.0, 2.0, 2.0, 1), "ms at 10": Summary(3.0, 3.0, 3.0, 1)}}})
    assert figures.named("s", "x", "ms at") == {"1": 2.0, "10": 3.0}
    with pytest.raises(Missing):
        figures.named("s", "x", "cpu at")


def test_a_table_compares_with_its_base() -> None:
    """A column per system; what one lacks is a dash."""
    assert table(RESULTS["latency"], "peer").splitlines() == [
        "        peer                 ours",
        "p50 ms  20.0 (18.0 to 30.0)  10.0  x0.500",
        "other   -                    1.00",
    ]


def test_every_goal_belongs_to_a_scenario() -> None:
    """One of another name would never be measured."""
    assert {goal.scenario for goal in scenarios.GOALS} <= set(scenarios.SCENARIOS)


def test_seeded_threads_are_transcripts() -> None:
    """What both systems are given is what the published schema says, and nothing of it is unknown here."""
    document = seed.document(3)
    jsonschema.validate(document, json.loads((ROOT / "tests/data/durable-agent-entity-state.json").read_text()))
    entries = load_transcript(document).entries
    assert [type(entry) for entry in entries] == [Request, Response] * 3
    assert [dump_entry(entry) for entry in entries] == document["data"]["conversationHistory"]


@pytest.mark.parametrize("peer", [False, True])
def test_a_tiny_scenario_runs(peer: bool, tmp_path: Path) -> None:
    """As a program, from another folder; beside the peer where that is there."""
    beside = ["--peer-python", str(peer_python_or_skip())] if peer else ["--no-peer"]
    command = [sys.executable, str(ROOT / "tests/benchmarks/run.py"), "--tiny", "--json", "found.json", "fan_out"]
    subprocess.run([*command, *beside], cwd=tmp_path, check=True, timeout=100)
    found = json.loads((tmp_path / "found.json").read_text())
    assert set(found["results"]) == {"fan_out"}
    assert ("peer, 0.01 s" in found["results"]["fan_out"]) == peer
    assert found["results"]["fan_out"]["ours, disk"]["ms over 3"]["median"] > 200
