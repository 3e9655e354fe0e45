"""The side-by-side benchmark: what it makes of measurements, and that it runs."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import jsonschema  # type: ignore[import-untyped]  # it has no types
import pytest

from dafx_actors._json.document import load_transcript
from dafx_actors._json.messages import dump_entry
from dafx_actors.transcript import Request, Response
from tests.benchmarks import rivals, scenarios, seed
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
from tests.benchmarks.rivals_systems import running
from tests.benchmarks.rivals_systems.installed import Absent, Installed
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


# --- Beside the rivals ---------------------------------------------------------------------------------------------


def test_ratios_are_of_one_round() -> None:
    """A round that lacks one of the two figures, or in which a system failed, gives none."""
    mine = [{"ms": 2.0, "only mine": 1.0}, {"ms": 6.0}, {"ms": 1.0}, {}]
    others = [{"ms": 1.0}, {"ms": 2.0}, {}, {"ms": 1.0}]
    assert rivals.ratios(mine, others) == [{"ms": 2.0}, {"ms": 3.0}, {}, {}]


def test_the_best_is_the_highest_rate_and_the_lowest_of_all_else() -> None:
    """Of each round for itself: another system may be the best in the next one."""
    found = rivals.compared(
        {
            running.OURS: [{"per second at 1": 30.0, "ms": 4.0}, {"per second at 1": 30.0, "ms": 4.0}],
            running.RESTATE: [{"per second at 1": 10.0, "ms": 1.0}, {"per second at 1": 20.0, "ms": 8.0}],
            running.LANGGRAPH: [{"per second at 1": 15.0, "ms": 2.0}, {"per second at 1": 10.0, "ms": 2.0}],
        }
    )
    assert found[rivals.over(running.OURS, rivals.BEST)] == [
        {"per second at 1": 2.0, "ms": 4.0},
        {"per second at 1": 1.5, "ms": 2.0},
    ]


def test_every_goal_beside_the_rivals_is_of_a_row_and_says_by_how_much_it_is_missed() -> None:
    """Higher and lower ones."""
    assert {goal.scenario for goal in rivals.GOALS} <= set(rivals.ROWS)
    results = {"depth": {running.OURS: {"many over few": Summary(4.5, 4.5, 4.5, 1)}}}
    [verdict] = judge([goal for goal in rivals.GOALS if goal.scenario == "depth"], results)
    assert rivals.said(verdict).startswith("MISSED")
    assert rivals.said(verdict).endswith("(by 50%)")
    [at_least] = judge([Goal("s", "t", 2.0, lambda _: 1.5, at_least=True)], {})
    assert rivals.said(at_least).endswith("(by 25%)")
    [met] = judge([Goal("s", "t", 2.0, lambda _: 1.5)], {})
    assert rivals.said(met) == str(met)


def test_a_system_that_fails_is_asked_no_more() -> None:
    """The others are, and its rounds give nothing to compare."""
    asked: list[str] = []

    def measure(each: running.Running) -> dict[str, float]:
        asked.append(each.name)
        if each.name == "a":
            raise RuntimeError("it has ended")
        return {"ms": 1.0}

    def system(name: str) -> running.Running:
        return running.Running(name, Path(), Installed(home=Path()), ExitStack())

    runs = rivals.in_rounds([system("a"), system("b")], 2, measure)
    assert runs == {"a": [{}, {}], "b": [{"ms": 1.0}, {"ms": 1.0}]}
    assert asked == ["a", "b", "b"]


def test_syncs_are_read_from_the_table_of_strace() -> None:
    """With errors and without; other rows are not counted."""
    summary = """\
% time     seconds  usecs/call     calls    errors syscall
------ ----------- ----------- --------- --------- ----------------
 91.00    0.000910          70        13           fdatasync
  9.00    0.000090          30         3         1 fsync
------ ----------- ----------- --------- --------- ----------------
100.00    0.001000          62        16         1 total
"""
    assert running.calls(summary) == 16
    assert running.calls("") == 0


def test_rivals_that_are_not_there_are_skipped_with_a_word(tmp_path: Path) -> None:
    """What is there is measured: each of ours, as a program."""
    with pytest.raises(Absent, match="prepare"):
        Installed(home=tmp_path).python("dbos")
    options = ["--tiny", "--home", str(tmp_path), "--json", str(tmp_path / "found.json")]
    command = [sys.executable, "-m", "tests.benchmarks.rivals", *options, "steps"]
    for name in ("ours", "ours, one process", "langgraph, sqlite", "restate"):
        command += ["--only", name]
    done = subprocess.run(command, cwd=ROOT, check=True, timeout=110, capture_output=True, text=True)
    assert "langgraph, sqlite is skipped" in done.stderr
    assert "restate is skipped" in done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert set(found["results"]["steps"]) == {"ours", "ours, one process"}
    assert all(each["10 steps p50 ms"]["median"] > 0 for each in found["results"]["steps"].values())
    assert {goal["met"] for goal in found["goals"]} == {None}
