"""The eight scenarios. Each starts its systems once and measures them in turns, so that what else the machine does
meets all of them; what it gives are runs, by system.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import attrs

from tests.benchmarks import seed
from tests.benchmarks.figures import Figures, Goal, Run, milliseconds
from tests.benchmarks.processes import (
    OURS,
    OURS_BY_TURN,
    OURS_IN_MEMORY,
    PEER_BEST,
    PEER_DEFAULT,
    PEER_LESS,
    PEER_ON_DISK,
    Machine,
    Process,
    Setup,
    System,
    Use,
    backend,
    script,
    seconds_to_run,
)

Runs = dict[str, list[Run]]
FLOOR = "floor"


@attrs.frozen(kw_only=True)
class Size:
    """How much is run."""

    rounds: int = 3
    turns: int = 60
    at_once: tuple[int, ...] = (1, 50, 200, 1_000, 2_000)
    peer_at_once: int = 24
    thinking: float = 10.0
    conversations: tuple[int, ...] = (1, 10, 50, 200)
    seconds: float = 5.0
    depths: tuple[int, ...] = (10, 100, 300, 1_000, 3_000)
    fan_out: tuple[int, ...] = (1, 2, 10, 100, 1_000)
    peer_fan_out: int = 1_000
    tools: tuple[int, ...] = (1, 3, 10, 100)
    starts: int = 5


FULL = Size()
QUICK = Size(
    rounds=1,
    turns=40,
    at_once=(1, 200, 1_000, 2_000),
    peer_at_once=12,
    conversations=(1, 50),
    seconds=3.0,
    depths=(10, 300, 1_000),
    fan_out=(1, 10, 100),
    peer_fan_out=100,
    tools=(1, 10, 100),
    starts=2,
)
TINY = Size(
    rounds=1,
    turns=4,
    at_once=(4,),
    peer_at_once=4,
    thinking=0.2,
    conversations=(2,),
    seconds=0.3,
    depths=(10,),
    fan_out=(1, 3),
    peer_fan_out=3,
    tools=(1, 3),
    starts=1,
)


@contextmanager
def systems(machine: Machine, *setups: Setup, depths: tuple[int, ...] = ()) -> Generator[list[System]]:
    """All at once; those that are not asked are idle."""
    with ExitStack() as stack:
        yield [stack.enter_context(machine.system(setup, depths=depths)) for setup in machine.those(*setups)]


def in_turns(running: Sequence[System], rounds: int, measure: Callable[[System], Run]) -> Runs:
    """Measure each, again and again."""
    runs: Runs = {system.setup.name: [] for system in running}
    for _ in range(rounds):
        for system in running:
            runs[system.setup.name].append(measure(system))
    return runs


def _since(system: System, earlier: Mapping[str, Use]) -> dict[str, Use]:
    return {name: use.since(earlier[name]) for name, use in system.uses().items()}


# --- 1 -------------------------------------------------------------------------------------------------------------


def latency(machine: Machine, size: Size) -> Runs:
    """A turn on a fresh thread, model time 0."""

    def measure(system: System) -> Run:
        count = max(size.turns // 10, 3) if system.setup == PEER_DEFAULT else size.turns
        return milliseconds(system.client.ask("turns", count=count))

    setups = (PEER_DEFAULT, PEER_BEST, PEER_ON_DISK, OURS, OURS_IN_MEMORY, OURS_BY_TURN)
    with systems(machine, *setups) as running:
        return in_turns(running, size.rounds, measure)


# --- 2 -------------------------------------------------------------------------------------------------------------


def in_flight(machine: Machine, size: Size) -> Runs:
    """Turns at once in one worker of default settings, a model that takes 10 s, and an orchestration besides."""

    def measure(system: System, sizes: Sequence[int]) -> Run:
        run: dict[str, float] = {}
        with script("bystander", system.endpoint) as bystander:
            bystander.answer()
            idle = statistics.median(bystander.ask("idle", count=30)) * 1_000
            run["other idle p50 ms"] = idle
            for count in sizes:
                run |= {f"{name} at {count}": each for name, each in crowd(system, bystander, count, idle).items()}
        return run

    def crowd(system: System, bystander: Process, count: int, idle: float) -> Run:
        system.worker.ask("read")
        before = system.uses()
        bystander.tell("watch", every=0.25)
        found = system.client.ask("crowd", count=count, seconds=size.thinking)
        bystander.tell("stop")
        others = [took * 1_000 for took in bystander.answer()]
        if found["failed"]:
            print(f"{system.setup.name}: {found['failed']}", file=sys.stderr)
        return {
            "most in flight": system.worker.ask("read")["most"],
            "wall over ideal": found["wall"] / size.thinking,
            "failed": count - len(found["took"]),
            "cpu ms per turn": sum(use.cpu for use in _since(system, before).values()) * 1_000 / count,
            "other p50 over idle": statistics.median(others) / idle,
            "other p50 ms": statistics.median(others),
            "other max ms": max(others),
        }

    with systems(machine, PEER_BEST, OURS) as running:
        runs: Runs = {system.setup.name: [] for system in running}
        for number in range(size.rounds):
            for system in running:
                if not system.setup.is_peer:
                    runs[system.setup.name].append(measure(system, size.at_once))
                elif number == 0:  # its six at a time take long, and are always the same
                    runs[system.setup.name].append(_extrapolated(measure(system, [size.peer_at_once]), size))
        return runs


def _extrapolated(run: Run, size: Size) -> Run:
    """What many turns would take at as many at a time as were seen."""
    most = run[f"most in flight at {size.peer_at_once}"]
    return {**run, **{f"wall over ideal at {n}, extrapolated": -(-n // most) for n in size.at_once if n > 24}}


# --- 3 -------------------------------------------------------------------------------------------------------------


def throughput(machine: Machine, size: Size) -> Runs:
    """Conversations of ten turns each, model time 0, so many at once: turns per second."""

    def measure(system: System) -> Run:
        run: dict[str, float] = {}
        for at_once in size.conversations:
            before = system.uses()
            found = system.client.ask("conversations", at_once=at_once, seconds=size.seconds, turns=10)
            cpu = sum(use.cpu for use in _since(system, before).values())
            run[f"per second at {at_once}"] = found["turns"] / found["wall"]
            run[f"cpu ms at {at_once}"] = cpu * 1_000 / max(found["turns"], 1)
        return run

    with systems(machine, PEER_BEST, PEER_LESS, OURS_BY_TURN, OURS_IN_MEMORY, OURS) as running:
        return in_turns(running, size.rounds, measure)


# --- 4 -------------------------------------------------------------------------------------------------------------


def depth(machine: Machine, size: Size) -> Runs:
    """A turn of a thread that has many already, the whole transcript sent."""

    def measure(system: System) -> Run:
        run: dict[str, float] = {}
        for turns in size.depths:
            before = system.uses()
            took = system.client.ask("turns", count=5, thread=seed.thread_of(turns))
            used = _since(system, before)
            run[f"ms at {turns}"] = statistics.median(took) * 1_000
            run[f"cpu ms at {turns}"] = sum(use.cpu for use in used.values()) * 1_000 / len(took)
            if system.setup.backend != "memory":
                run[f"bytes written at {turns}"] = used["scheduler"].written / len(took)
        return run

    with systems(machine, PEER_BEST, PEER_ON_DISK, OURS, OURS_IN_MEMORY, depths=size.depths) as running:
        return in_turns(running, size.rounds, measure)


# --- 5 -------------------------------------------------------------------------------------------------------------


def fan_out(machine: Machine, size: Size) -> Runs:
    """An orchestration over many agents at once, a model that takes 0.2 s."""
    rounds: dict[str, int] = {}

    def measure(system: System) -> Run:
        name = system.setup.name
        rounds[name] = rounds.get(name, 0) + 1
        run: dict[str, float] = {}
        for count in size.fan_out:
            if system.setup.is_peer and (count > size.peer_fan_out or (count > 100 and rounds[name] > 1)):
                continue
            found = system.client.ask("orchestrate", name="fan_out", input=[count, 0.2])
            assert found["result"] == count, found
            run[f"ms over {count}"] = found["took"] * 1_000
            run[f"over {count}, over one"] = found["took"] * 1_000 / run["ms over 1"]
        return run

    with systems(machine, PEER_BEST, OURS, OURS_IN_MEMORY) as running:
        return in_turns(running, size.rounds, measure)


# --- 6 -------------------------------------------------------------------------------------------------------------


def tools(machine: Machine, size: Size) -> Runs:
    """A turn whose model asks for many tools at once; here each call is a step of its own, on disk."""

    def measure(system: System) -> Run:
        run: dict[str, float] = {}
        for count in size.tools:
            before = system.uses()
            took = system.client.ask("turns", count=5, tools=count)
            run[f"ms with {count}"] = statistics.median(took) * 1_000
            run[f"cpu ms with {count}"] = sum(use.cpu for use in _since(system, before).values()) * 1_000 / len(took)
        return run

    with systems(machine, PEER_BEST, OURS, OURS_IN_MEMORY, OURS_BY_TURN) as running:
        return in_turns(running, size.rounds, measure)


# --- 7 -------------------------------------------------------------------------------------------------------------


def cost(machine: Machine, size: Size) -> Runs:
    """CPU, waits and memory of a turn, ten conversations at a time; the import; the first answer of a new program."""
    count = size.turns * 5

    def measure(system: System) -> Run:
        before = system.uses()
        for _ in range(5):
            system.client.ask("crowd", count=count // 5)
        used = _since(system, before)
        return {
            **{f"{name} cpu ms": use.cpu * 1_000 / count for name, use in used.items()},
            "worker waits": used["worker"].switches / count,
            **{f"{name} bytes kept": used[name].memory / count for name in ("scheduler", "worker")},
        }

    setups = (PEER_BEST, OURS, OURS_IN_MEMORY)
    with systems(machine, *setups) as running:
        runs = in_turns(running, size.rounds, measure)
    imports = {
        PEER_BEST.name: (machine.peer_python, "import agent_framework_durabletask"),
        OURS.name: (sys.executable, "import dafx_actors"),
    }
    for how in imports.values():
        if how[0]:
            seconds_to_run(*how)  # compiled, and in the file cache
    for _ in range(size.starts):
        for name, how in imports.items():
            if how[0]:
                runs[name].append({"import ms": seconds_to_run(*how) * 1_000})
        for setup in machine.those(*setups):
            runs[setup.name].append({"first answer ms": _first_answer(machine, setup) * 1_000})
    return runs


def _first_answer(machine: Machine, setup: Setup) -> float:
    """Seconds from the start of a worker and a client to an answer; the backend is there."""
    with backend(setup.backend) as (_, endpoint):
        begun = time.perf_counter()
        with machine.role(setup, "worker", endpoint), machine.role(setup, "client", endpoint) as client:
            client.answer()
            client.ask("turns", count=1)
            return time.perf_counter() - begun


# --- 8 -------------------------------------------------------------------------------------------------------------


def floor(machine: Machine, size: Size) -> Runs:
    """A turn beside its bare messages and commits, with none of our logic."""
    with script("floor", "count") as counting:
        counting.answer()
        counted = counting.ask("count", turns=size.turns)
    needed = json.dumps({name: round(value) for name, value in counted.items()})
    with ExitStack() as stack:
        ours = stack.enter_context(machine.system(OURS))
        server = stack.enter_context(script("floor", "server", needed))
        endpoint = server.line()
        worker = stack.enter_context(script("floor", "worker", endpoint, needed))
        client = stack.enter_context(script("floor", "client", endpoint))
        for each in (worker, client):
            each.answer()
        client.ask("turns", count=10)
        bare = System(attrs.evolve(OURS, name=FLOOR), endpoint, server, worker, client)

        def measure(system: System) -> Run:
            before = system.uses()
            took = system.client.ask("turns", count=size.turns)
            used = _since(system, before)
            cpu = {f"{name} cpu ms": use.cpu * 1_000 / len(took) for name, use in used.items()}
            return {**milliseconds(took), **cpu}

        runs = in_turns([bare, ours], max(size.rounds, 3), measure)
    runs[FLOOR].append({f"{name} of a turn": counted[name] for name in ("items", "reads", "commits")})
    return runs


# --- Goals ---------------------------------------------------------------------------------------------------------

Scenario = Callable[[Machine, Size], Runs]
SCENARIOS: Mapping[str, tuple[Scenario, str]] = {
    "latency": (latency, PEER_BEST.name),
    "in_flight": (in_flight, ""),
    "throughput": (throughput, PEER_BEST.name),
    "depth": (depth, PEER_BEST.name),
    "fan_out": (fan_out, PEER_BEST.name),
    "tools": (tools, PEER_BEST.name),
    "cost": (cost, PEER_BEST.name),
    "floor": (floor, FLOOR),
}
"""What is run, and to what it is compared."""


def _ratio(scenario: str, ours: Setup, peer: Setup, figure: str) -> Callable[[Figures], float]:
    return lambda of: of(scenario, ours.name, figure) / of(scenario, peer.name, figure)


def _flight(figure: str) -> Callable[[Figures], float]:
    return lambda of: of("in_flight", OURS.name, figure)


def _failed(of: Figures) -> float:
    return sum(of.named("in_flight", OURS.name, "failed at").values())


def _beside(of: Figures) -> float:
    return max(of.named("in_flight", OURS.name, "other p50 over idle at").values())


def _throughput(ours: Setup) -> Callable[[Figures], float]:
    """The worst over all numbers of conversations, each beside the better of the peer's settings."""

    def value(of: Figures) -> float:
        mine = of.named("throughput", ours.name, "per second at")
        peers = [of.named("throughput", peer.name, "per second at") for peer in (PEER_BEST, PEER_LESS)]
        return min(each / max(peer[at_once] for peer in peers) for at_once, each in mine.items())

    return value


def _growth(system: Setup) -> Callable[[Figures], float]:
    def value(of: Figures) -> float:
        return of("tools", system.name, "ms with 100") / of("tools", system.name, "ms with 10")

    return value


def _over_floor(of: Figures) -> float:
    return of("floor", OURS.name, "p50 ms") / of("floor", FLOOR, "p50 ms")


GOALS: Sequence[Goal] = (
    Goal(
        "latency",
        "a turn, every step on disk, over the peer's default",
        0.01,
        _ratio("latency", OURS, PEER_DEFAULT, "p50 ms"),
    ),
    Goal("latency", "the same, over the peer's best polling", 1.0, _ratio("latency", OURS, PEER_BEST, "p50 ms")),
    Goal("in_flight", "1,000 turns at once: wall time over ideal", 1.5, _flight("wall over ideal at 1000")),
    Goal("in_flight", "2,000 turns at once: wall time over ideal", 2.0, _flight("wall over ideal at 2000")),
    Goal("in_flight", "turns that failed", 0, _failed),
    Goal("in_flight", "an orchestration besides: p50 over idle, the worst of all", 5.0, _beside),
    Goal(
        "throughput",
        "durability='turn' on the peer's backend, over the peer's best",
        1.0,
        _throughput(OURS_BY_TURN),
        at_least=True,
    ),
    Goal(
        "throughput",
        "every step durable on the peer's backend, over the peer's best",
        0.5,
        _throughput(OURS_IN_MEMORY),
        at_least=True,
    ),
    Goal("throughput", "every step on disk, over the peer's best in memory", 1.0, _throughput(OURS), at_least=True),
    Goal("depth", "at 1,000 turns, over the peer", 0.2, _ratio("depth", OURS, PEER_BEST, "ms at 1000")),
    Goal("fan_out", "100 agents over one", 2.0, lambda of: of("fan_out", OURS.name, "over 100, over one")),
    Goal("tools", "100 tool calls over 10: linear", 10.0, _growth(OURS)),
    Goal("floor", "a turn over its bare messages and commits", 3.0, _over_floor),
)
