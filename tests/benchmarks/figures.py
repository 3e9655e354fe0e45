"""What is made of measurements: medians and spread, goals, tables. Pure: nothing here measures."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import attrs

Run = Mapping[str, float]
"""What one run gave: figures by name."""


@attrs.frozen
class Summary:
    """A figure over some runs."""

    median: float
    low: float
    high: float
    runs: int

    def __str__(self) -> str:
        if self.runs == 1 or self.low == self.high:
            return number(self.median)
        return f"{number(self.median)} ({number(self.low)} to {number(self.high)})"


Results = Mapping[str, Mapping[str, Mapping[str, Summary]]]
"""Summaries by scenario, system and figure."""


def number(value: float) -> str:
    """With three digits that say something."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    return f"{value:,.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


def percentile(values: Iterable[float], share: float) -> float:
    """The value that `share` of them do not exceed (the nearest rank)."""
    ordered = sorted(values)
    return ordered[max(math.ceil(share * len(ordered)) - 1, 0)]


def milliseconds(values: Sequence[float]) -> dict[str, float]:
    """The usual percentiles of seconds."""
    return {f"p{share} ms": percentile(values, share / 100) * 1_000 for share in (50, 95, 99)}


def summarise(runs: Sequence[Run]) -> dict[str, Summary]:
    """The figures of some runs, in their order; one that a run lacks counts where it is there."""
    names = dict.fromkeys(name for run in runs for name in run)
    found = {name: [run[name] for run in runs if name in run] for name in names}
    return {name: Summary(statistics.median(all_), min(all_), max(all_), len(all_)) for name, all_ in found.items()}


# --- Goals ---------------------------------------------------------------------------------------------------------


class Missing(LookupError):
    """A goal's figures were not measured in this run."""


@attrs.frozen
class Figures:
    """Medians, for goals."""

    results: Results

    def __call__(self, scenario: str, system: str, figure: str) -> float:
        """The median.

        Raises:
            Missing: It was not measured.
        """
        try:
            return self.results[scenario][system][figure].median
        except KeyError:
            raise Missing(f"{scenario}, {system}: {figure}") from None

    def named(self, scenario: str, system: str, start: str) -> dict[str, float]:
        """The medians of all figures that start so, by the rest of their names.

        Raises:
            Missing: There are none.
        """
        all_ = self.results.get(scenario, {}).get(system, {})
        found = {name[len(start) :].strip(): each.median for name, each in all_.items() if name.startswith(start)}
        if not found:
            raise Missing(f"{scenario}, {system}: {start}")
        return found


@attrs.frozen
class Goal:
    """Something to reach."""

    scenario: str
    text: str
    limit: float
    value: Callable[[Figures], float]
    at_least: bool = False


@attrs.frozen
class Verdict:
    """How far a goal was reached."""

    goal: Goal
    value: float | None
    """None: it was not measured."""

    @property
    def met(self) -> bool | None:
        """Whether it was, if it was measured."""
        if self.value is None:
            return None
        return self.value >= self.goal.limit if self.goal.at_least else self.value <= self.goal.limit

    def __str__(self) -> str:
        sign = ">=" if self.goal.at_least else "<="
        said = {True: "met", False: "MISSED", None: "not measured"}[self.met]
        value = "-" if self.value is None else number(self.value)
        return f"{said:12}  {value:>8}  {sign} {self.goal.limit:<6g}  {self.goal.text}"


def judge(goals: Iterable[Goal], results: Results) -> list[Verdict]:
    """Each goal with its figure."""
    figures = Figures(results)

    def verdict(goal: Goal) -> Verdict:
        try:
            return Verdict(goal, goal.value(figures))
        except Missing:
            return Verdict(goal, None)

    return [verdict(goal) for goal in goals]


# --- Tables --------------------------------------------------------------------------------------------------------


def table(found: Mapping[str, Mapping[str, Summary]], base: str | None = None) -> str:
    """A row per figure, a column per system; beside each cell its ratio to the system that is the base."""
    systems = list(found)
    figures = list(dict.fromkeys(name for figures in found.values() for name in figures))

    def cell(system: str, figure: str) -> str:
        if (summary := found[system].get(figure)) is None:
            return "-"
        reference = found.get(base or "", {}).get(figure)
        compared = reference is not None and system != base and reference.median
        return f"{summary}  x{number(summary.median / reference.median)}" if reference and compared else str(summary)

    rows = [["", *systems], *[[figure, *[cell(system, figure) for system in systems]] for figure in figures]]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def as_json(results: Results, verdicts: Iterable[Verdict]) -> dict[str, Any]:
    """For machines."""
    return {
        "results": {
            scenario: {
                system: {figure: attrs.asdict(summary) for figure, summary in figures.items()}
                for system, figures in systems.items()
            }
            for scenario, systems in results.items()
        },
        "goals": [
            {
                "scenario": verdict.goal.scenario,
                "text": verdict.goal.text,
                "limit": verdict.goal.limit,
                "at least": verdict.goal.at_least,
                "value": verdict.value,
                "met": verdict.met,
            }
            for verdict in verdicts
        ],
    }
