"""This package beside the peer: `python tests/benchmarks/run.py [--quick] [--json FILE] [scenario ...]`.

Both systems have the same stub model, which takes the time it is told to and gives a fixed text or asks for tools;
backend, worker and client are processes of their own, all start before the first measurement, and are measured in
turns. `memory` is durabletask's in-memory backend with threads enough, `disk` is the embedded scheduler, which waits
for the disk. The peer's environment is made the first time: see `tests.interop.environment`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
import time
from datetime import date
from pathlib import Path

import attrs

sys.path[0] = str(Path(__file__).resolve().parents[2])

from tests.benchmarks import scenarios  # noqa: E402 - found by the line above
from tests.benchmarks.figures import Results, Summary, Verdict, as_json, judge, summarise, table  # noqa: E402
from tests.benchmarks.processes import Machine, peer_python  # noqa: E402


def measure(names: list[str], machine: Machine, size: scenarios.Size) -> Results:
    """Run scenarios, and show each when it is done."""
    results: dict[str, dict[str, dict[str, Summary]]] = {}
    for name in names:
        scenario, base = scenarios.SCENARIOS[name]
        begun = time.monotonic()
        results[name] = {system: summarise(runs) for system, runs in scenario(machine, size).items()}
        title = (scenario.__doc__ or "").splitlines()[0]
        print(f"\n{name}: {title} [{time.monotonic() - begun:.0f} s]\n{table(results[name], base)}", flush=True)
    return results


def main(arguments: list[str]) -> list[Verdict]:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("scenarios", nargs="*", metavar="scenario", help=" ".join(scenarios.SCENARIOS))
    parser.add_argument("--quick", action="store_true", help="smaller, in about five minutes")
    parser.add_argument("--tiny", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, help="how often each system is measured")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures and goals there")
    parser.add_argument("--peer-python", metavar="PATH", help="a Python that has the peer; or DAFX_PEER_PYTHON")
    parser.add_argument("--no-peer", action="store_true", help="only this package")
    given = parser.parse_args(arguments)
    if unknown := set(given.scenarios) - set(scenarios.SCENARIOS):
        parser.error(f"no such scenario: {', '.join(sorted(unknown))}")
    size = scenarios.TINY if given.tiny else scenarios.QUICK if given.quick else scenarios.FULL
    if given.rounds:
        size = attrs.evolve(size, rounds=given.rounds)
    machine = Machine("" if given.no_peer else peer_python(given.peer_python))
    about = {"date": f"{date.today()}", "cpus": os.cpu_count(), "python": platform.python_version()}
    print("  ".join(f"{name}: {value}" for name, value in about.items()), flush=True)
    results = measure(given.scenarios or list(scenarios.SCENARIOS), machine, size)
    verdicts = judge([goal for goal in scenarios.GOALS if goal.scenario in results], results)
    print("\ngoals")
    for verdict in verdicts:
        print(verdict)
    if given.json:
        given.json.write_text(json.dumps({"machine": about, **as_json(results, verdicts)}, indent=2) + "\n")
    return verdicts


if __name__ == "__main__":
    # So that the processes that it has started end with it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    main(sys.argv[1:])
