"""This package beside DBOS, Restate and LangGraph: `python -m tests.benchmarks.rivals [--quick] [--json FILE] [row]`.

`python -m tests.benchmarks.rivals prepare [FOLDER]` makes an environment for each of them, from PyPI, and fetches
Restate's server with npm; Postgres and strace are Debian's. What is not there is skipped, with a word.

All make the same turn: a stub model, a tool, alternating. *One step* is a model call that answers; *ten steps* are
five model calls with a tool call each before the one that answers. Each system has a database of its own in the
folder for temporary files, which has to be on a disk: in memory nothing is synced, so what a sync takes there is
shown first. All systems of a row run, and in each round one after another is asked, beginning with another one each
time. What is compared are ratios within a round, and of those the median over the rounds.

What has to be known to read the figures, all of it as these systems come:

- *What is synced.* Ours, LangGraph and DBOS commit to SQLite with `synchronous=FULL`: ours and LangGraph with a
  write-ahead log, DBOS with a rollback journal, which takes more syncs for a commit. Of DBOS on Postgres it is the log
  of Postgres at each commit, of Restate the log of its server. LangGraph is told `durability="sync"`, which is not
  its default: it waits for each checkpoint. In all of them a step is on disk before the next one begins; the row
  `fsyncs` counts what each needs for that.
- *Who waits for whom.* Ours and Restate take the turns of a thread one after another. DBOS does so only by a queue,
  which is not used here. LangGraph does not at all: two runs of one thread overwrite each other.
- *What goes on after a crash.* Ours, Restate and DBOS resume by themselves, DBOS when the program starts again.
  LangGraph resumes when somebody asks again, who has to know which threads.
- *Who keeps the conversation.* Ours, Restate and LangGraph do. With DBOS the caller does, and sends it as the input of
  each workflow.
- *Processes.* Ours is a scheduler, a worker and a client, or all in one; Restate a server, a service and a client.
  DBOS and LangGraph are libraries: the client's process is the one that works, and nothing is handed over. CPU and
  bytes are of all processes, Postgres and clients included.
- *Bytes* are those that the kernel was given for the disk. Postgres writes whole pages after a checkpoint, and makes
  the files of its log before it needs them; a database as new as these does so more often than an old one.
- *Tools.* The row `tools` is against the peer (see `tests.interop.environment`), on durabletask's in-memory backend,
  which records no call. What else is compared with the peer, `tests.benchmarks.run` has.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from pathlib import Path

import attrs

from tests.benchmarks import scenarios
from tests.benchmarks.figures import (
    Figures,
    Goal,
    Results,
    Run,
    Summary,
    Verdict,
    as_json,
    judge,
    percentile,
    summarise,
    table,
)
from tests.benchmarks.processes import OURS as OURS_BESIDE_PEER
from tests.benchmarks.processes import PEER_BEST, Machine, System
from tests.benchmarks.rivals_systems.installed import PACKAGES, Absent, Installed, default_home, prepare
from tests.benchmarks.rivals_systems.running import (
    DBOS_POSTGRES,
    DBOS_SQLITE,
    LANGGRAPH,
    OURS,
    OURS_IN_ONE,
    RESTATE,
    SYSTEMS,
    Running,
    syncs,
    systems,
)
from tests.benchmarks.seed import thread_of
from tests.interop import environment

Runs = Mapping[str, Sequence[Run]]
"""The figures of each round, by system; those of a round that failed are empty."""
RIVALS = (DBOS_SQLITE, DBOS_POSTGRES, RESTATE, LANGGRAPH)
BEST = "the best"


@attrs.frozen(kw_only=True)
class Size:
    """How much is run."""

    rounds: int = 5
    turns: int = 100
    long_turns: int = 30
    counted: int = 20
    conversations: tuple[int, ...] = (1, 10, 50)
    seconds: float = 2.5
    crowd: int = 1_000
    thinking: float = 5.0
    depths: tuple[int, ...] = (10, 1_000)
    deep_turns: int = 3
    tools: int = 100


FULL = Size()
QUICK = Size(rounds=2, turns=40, long_turns=10, counted=10, seconds=1.5)
TINY = Size(
    rounds=1,
    turns=4,
    long_turns=2,
    counted=3,
    conversations=(1, 2),
    seconds=0.3,
    crowd=4,
    thinking=0.2,
    depths=(2, 4),
    deep_turns=1,
    tools=3,
)


@attrs.frozen
class Asked:
    """What is to be measured, and where the systems are."""

    installed: Installed
    size: Size
    only: frozenset[str] = frozenset(SYSTEMS)

    def those(self, *names: str) -> list[str]:
        """The systems that were not left out."""
        return [name for name in names or SYSTEMS if name in self.only]


def in_rounds(running: Sequence[Running], rounds: int, measure: Callable[[Running], Run]) -> Runs:
    """Ask one after another, again and again; one that fails is said, and asked no more."""
    runs: dict[str, list[Run]] = {each.name: [{} for _ in range(rounds)] for each in running}
    failed: set[str] = set()
    for number in range(rounds):
        first = number % max(len(running), 1)
        for each in (*running[first:], *running[:first]):
            if each.name in failed:
                continue
            try:
                runs[each.name][number] = measure(each)
            except (Absent, RuntimeError, OSError) as error:
                failed.add(each.name)
                print(f"{each.name} is not measured any more: {error}", file=sys.stderr, flush=True)
    return runs


def ratios(mine: Sequence[Run], others: Sequence[Run]) -> list[Run]:
    """Of each figure, round by round; where a round lacks one of the two, there is none."""
    return [
        {name: value / other[name] for name, value in run.items() if other.get(name)}
        for run, other in zip(mine, others, strict=True)
    ]


def over(mine: str, other: str) -> str:
    """What the ratios of two systems are called."""
    return f"{mine} / {other}"


def compared(runs: Runs) -> Runs:
    """Each of ours over each of the others, and over what was best of those in the same round."""
    found = {
        over(mine, other): ratios(runs[mine], runs[other])
        for mine in (OURS, OURS_IN_ONE, OURS_BESIDE_PEER.name)
        for other in (*RIVALS, PEER_BEST.name)
        if mine in runs and other in runs
    }
    if OURS in runs and (others := [runs[name] for name in RIVALS if name in runs]):
        found[over(OURS, BEST)] = ratios(runs[OURS], [_best(round_) for round_ in zip(*others, strict=True)])
    return {name: each for name, each in found.items() if any(each)}


def _best(runs: Sequence[Run]) -> Run:
    """The highest where figures are rates, else the lowest."""
    names = dict.fromkeys(name for run in runs for name in run)
    return {
        name: (max if name.startswith("per second") else min)(run[name] for run in runs if name in run)
        for name in names
    }


# --- Rows ----------------------------------------------------------------------------------------------------------


def steps(asked: Asked) -> Runs:
    """A turn of one step and of ten, on a fresh thread, model time 0; CPU and bytes are of all processes."""

    def measure(running: Running) -> Run:
        run: dict[str, float] = {}
        for label, rounds, count in (("1 step", 0, asked.size.turns), ("10 steps", 5, asked.size.long_turns)):
            before = running.spent()
            took = running.client.ask("turns", count=count, rounds=rounds)
            spent = running.spent().since(before)
            run[f"{label} p50 ms"] = percentile(took, 0.5) * 1_000
            run[f"{label} cpu ms"] = spent.cpu * 1_000 / count
            run[f"{label} KB written"] = spent.written / 1_024 / count
        run["a further step ms"] = (run["10 steps p50 ms"] - run["1 step p50 ms"]) / 10
        return run

    with systems(asked.installed, asked.those()) as running:
        return in_rounds(running, asked.size.rounds, measure)


def fsyncs(asked: Asked) -> Runs:
    """How often a turn asks the disk to keep what was written (fsync, fdatasync, msync), by strace."""

    def measure(running: Running) -> Run:
        one, ten = (syncs(running, asked.size.counted, rounds) for rounds in (0, 5))
        return {"1 step": one, "10 steps": ten, "a further step": (ten - one) / 10}

    with systems(asked.installed, asked.those()) as running:
        return in_rounds(running, min(asked.size.rounds, 2), measure)


def throughput(asked: Asked) -> Runs:
    """Conversations of ten turns of one step each, model time 0, so many at once: turns per second."""

    def measure(running: Running) -> Run:
        run: dict[str, float] = {}
        for at_once in asked.size.conversations:
            before = running.spent()
            found = running.client.ask("conversations", at_once=at_once, seconds=asked.size.seconds, turns=10)
            cpu = running.spent().since(before).cpu
            run[f"per second at {at_once}"] = found["turns"] / found["wall"]
            run[f"cpu ms at {at_once}"] = cpu * 1_000 / max(found["turns"], 1)
        return run

    with systems(asked.installed, asked.those()) as running:
        return in_rounds(running, asked.size.rounds, measure)


def in_flight(asked: Asked) -> Runs:
    """Turns at once, each on a thread of its own, with a model that takes 5 s: wall time over those 5 s."""
    size = asked.size

    def measure(running: Running) -> Run:
        before = running.spent()
        found = running.client.ask("crowd", count=size.crowd, seconds=size.thinking)
        if found["failed"]:
            print(f"{running.name}: {found['failed']} failed: {found['errors']}", file=sys.stderr, flush=True)
        return {
            "wall over ideal": found["wall"] / size.thinking,
            "failed": found["failed"],
            "cpu ms of a turn": running.spent().since(before).cpu * 1_000 / size.crowd,
        }

    with systems(asked.installed, asked.those()) as running:
        return in_rounds(running, size.rounds, measure)


def depth(asked: Asked) -> Runs:
    """A turn of ten steps in a thread that has few or many turns already, all of them shown to the model."""
    few, many = asked.size.depths

    def measure(running: Running) -> Run:
        run: dict[str, float] = {}
        for turns in asked.size.depths:
            took = running.client.ask("turns", count=asked.size.deep_turns, thread=thread_of(turns), rounds=5)
            run[f"10 steps ms at {turns}"] = statistics.median(took) * 1_000
        return run | {"many over few": run[f"10 steps ms at {many}"] / run[f"10 steps ms at {few}"]}

    with systems(asked.installed, asked.those(), depths=asked.size.depths) as running:
        return in_rounds(running, asked.size.rounds, measure)


def tools(asked: Asked) -> Runs:
    """A turn whose model asks for 100 tool calls at once: ours records each, the peer none."""
    try:
        machine = Machine(str(environment.peer_python()))
    except environment.NoPeer as error:
        print(f"the peer is skipped: {error}", file=sys.stderr, flush=True)
        machine = Machine("")

    def measure(system: System) -> Run:
        took = system.client.ask("turns", count=5, tools=asked.size.tools)
        return {"ms": statistics.median(took) * 1_000}

    with scenarios.systems(machine, PEER_BEST, OURS_BESIDE_PEER) as running:
        return scenarios.in_turns(running, asked.size.rounds, measure)


ROWS: Mapping[str, Callable[[Asked], Runs]] = {
    "steps": steps,
    "fsyncs": fsyncs,
    "throughput": throughput,
    "in_flight": in_flight,
    "depth": depth,
    "tools": tools,
}


# --- Goals ---------------------------------------------------------------------------------------------------------


def _over(row: str, mine: str, other: str, figure: str) -> Callable[[Figures], float]:
    return lambda of: of(row, over(mine, other), figure)


def _of(row: str, figure: str) -> Callable[[Figures], float]:
    return lambda of: of(row, OURS, figure)


GOALS: Sequence[Goal] = (
    Goal(
        "steps", "a further step over DBOS on Postgres", 0.8, _over("steps", OURS, DBOS_POSTGRES, "a further step ms")
    ),
    Goal("steps", "a further step over LangGraph", 1.3, _over("steps", OURS, LANGGRAPH, "a further step ms")),
    Goal("fsyncs", "fsyncs of a further step", 1.2, _of("fsyncs", "a further step")),
    Goal("steps", "CPU of ten steps over LangGraph", 1.8, _over("steps", OURS, LANGGRAPH, "10 steps cpu ms")),
    Goal("steps", "one step over DBOS on SQLite", 1.0, _over("steps", OURS, DBOS_SQLITE, "1 step p50 ms")),
    Goal(
        "steps",
        "one step, all in one process, over LangGraph",
        1.2,
        _over("steps", OURS_IN_ONE, LANGGRAPH, "1 step p50 ms"),
    ),
    Goal(
        "throughput",
        "turns/s at 1 conversation over DBOS on Postgres",
        1.0,
        _over("throughput", OURS, DBOS_POSTGRES, "per second at 1"),
        at_least=True,
    ),
    Goal(
        "throughput",
        "turns/s at 10 over Restate",
        1.1,
        _over("throughput", OURS, RESTATE, "per second at 10"),
        at_least=True,
    ),
    Goal(
        "throughput",
        "turns/s at 50 over the best",
        2.0,
        _over("throughput", OURS, BEST, "per second at 50"),
        at_least=True,
    ),
    Goal(
        "in_flight", "1,000 in flight, a model of 5 s: wall time over ideal", 1.2, _of("in_flight", "wall over ideal")
    ),
    Goal("in_flight", "turns that failed", 0, _of("in_flight", "failed")),
    Goal("depth", "ten steps at depth 1,000 over depth 10", 3.0, _of("depth", "many over few")),
    Goal(
        "steps", "KB written for ten steps over LangGraph", 1.0, _over("steps", OURS, LANGGRAPH, "10 steps KB written")
    ),
    Goal(
        "tools",
        "a turn with 100 tool calls over the peer's, which records none",
        3.0,
        _over("tools", OURS_BESIDE_PEER.name, PEER_BEST.name, "ms"),
    ),
)


def said(verdict: Verdict) -> str:
    """A verdict, and by how much a goal was missed."""
    if verdict.met is not False or verdict.value is None or not verdict.goal.limit:
        return str(verdict)
    ratio = verdict.value / verdict.goal.limit
    missed = 1 - ratio if verdict.goal.at_least else ratio - 1
    return f"{verdict} (by {missed:.0%})"


# --- The program ---------------------------------------------------------------------------------------------------


def measure(names: Sequence[str], asked: Asked) -> Results:
    """Run rows, and show each when it is done."""
    results: dict[str, dict[str, dict[str, Summary]]] = {}
    for name in names:
        row, begun = ROWS[name], time.monotonic()
        runs = row(asked)
        found = {system: summarise(each) for system, each in runs.items() if any(each)}
        against = {pair: summarise(each) for pair, each in compared(runs).items()}
        results[name] = {**found, **against}
        took = time.monotonic() - begun
        print(f"\n{name}: {(row.__doc__ or '').splitlines()[0]} [{took:.0f} s, load {os.getloadavg()[0]:.1f}]")
        print(table(found), flush=True)
        if against:
            figures = dict.fromkeys(name for each in against.values() for name in each)
            # A row for each pair: there are more of them than figures.
            turned = {name: {pair: each[name] for pair, each in against.items() if name in each} for name in figures}
            print(f"ratios within rounds\n{table(turned)}", flush=True)
    return results


def about(installed: Installed) -> dict[str, str | int | float | None]:
    """The machine, its disk and what is compared."""
    with tempfile.NamedTemporaryFile() as file:
        took: list[float] = []
        for _ in range(100):
            begun = time.perf_counter()
            os.write(file.fileno(), b"x" * 4_096)
            os.fdatasync(file.fileno())
            took.append((time.perf_counter() - begun) * 1_000)
    return {
        "date": f"{date.today()}",
        "cpus": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load at the start": round(os.getloadavg()[0], 2),
        "fdatasync of 4 KB, ms": round(statistics.median(took), 3),
        **installed.versions(),
    }


def _arguments(given: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.rivals",
        description=(__doc__ or "").splitlines()[0],
        epilog="`prepare [FOLDER]` installs the rivals.",
    )
    parser.add_argument("rows", nargs="*", metavar="row", help=" ".join(ROWS))
    parser.add_argument("--quick", action="store_true", help="smaller, in about ten minutes")
    parser.add_argument("--tiny", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, help="how often each system is measured")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures and goals there")
    parser.add_argument(
        "--only", action="append", metavar="SYSTEM", help=f"one of: {'; '.join(SYSTEMS)}; again for more"
    )
    parser.add_argument("--home", type=Path, metavar="FOLDER", help="what `prepare` made; or DAFX_RIVALS_HOME")
    parser.add_argument("--dbos", type=Path, metavar="PYTHON", help="the Python of an environment that has DBOS")
    parser.add_argument("--restate", type=Path, metavar="PYTHON", help="one that has restate-sdk, hypercorn and httpx")
    parser.add_argument(
        "--langgraph", type=Path, metavar="PYTHON", help="one that has langgraph and its SQLite checkpointer"
    )
    parser.add_argument("--restate-server", type=Path, metavar="FILE", help="the program")
    parser.add_argument("--postgres", type=Path, metavar="FOLDER", help="where initdb and postgres are")
    found = parser.parse_args(given)
    if unknown := set(found.rows) - set(ROWS):
        parser.error(f"no such row: {', '.join(sorted(unknown))}")
    if unknown := set(found.only or ()) - set(SYSTEMS):
        parser.error(f"no such system: {', '.join(sorted(unknown))}")
    return found


def main(arguments: Sequence[str]) -> list[Verdict]:
    """Run what was asked for."""
    if arguments and arguments[0] == "prepare":
        if len(arguments) > 2:
            raise SystemExit("one folder, please: `python -m tests.benchmarks.rivals prepare [FOLDER]`")
        prepare(Path(arguments[1]) if len(arguments) == 2 else default_home())
        return []
    given = _arguments(arguments)
    size = TINY if given.tiny else QUICK if given.quick else FULL
    if given.rounds:
        size = attrs.evolve(size, rounds=given.rounds)
    installed = Installed(
        home=given.home or default_home(),
        pythons={name: getattr(given, name) for name in PACKAGES if getattr(given, name)},
        restate_server=given.restate_server,
        postgres=given.postgres,
    )
    machine = about(installed)
    print("\n".join(f"{name}: {value}" for name, value in machine.items()), flush=True)
    results = measure(given.rows or list(ROWS), Asked(installed, size, frozenset(given.only or SYSTEMS)))
    verdicts = judge([goal for goal in GOALS if goal.scenario in results], results)
    print("\ngoals")
    for verdict in verdicts:
        print(said(verdict))
    if given.json:
        given.json.write_text(json.dumps({"machine": machine, **as_json(results, verdicts)}, indent=2) + "\n")
    return verdicts


if __name__ == "__main__":
    # So that the processes that it has started end with it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    main(sys.argv[1:])
