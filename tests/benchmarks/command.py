"""What the command `dafx` costs: `python tests/benchmarks/command.py [--json FILE]`.

The CPU of `dafx --help` over a bare Python; the first page of 100,000 threads; the time until `dafx dev` is ready, over
what it imports.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from dafx_actors import DurableAIAgentClient
from dafx_actors.scheduler import EmbeddedScheduler

THREADS = 100_000
GOALS = {"help, ms of CPU": 50.0, "first page of 100,000 threads, ms": 300.0, "dev ready over its imports, ms": 1_500.0}
BARE = ["-c", "pass"]
HELP = ["-c", "import sys; from dafx_actors.cli import main; sys.exit(main(['--help']))"]
IMPORTS = "import dafx_actors.cli._demo, dafx_actors.scheduler.embedded, dafx_actors.worker._worker"
# As it is for users: an installed package is compiled once.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name not in ("PYTHONDONTWRITEBYTECODE", "ENDPOINT")}


def cpu(arguments: list[str]) -> float:
    """CPU milliseconds of a fresh Python, from its start to its end."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], env=ENVIRONMENT, stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) * 1e3


def wall(arguments: list[str]) -> float:
    """Milliseconds that a fresh Python takes."""
    started = time.perf_counter()
    subprocess.run([sys.executable, *arguments], env=ENVIRONMENT, stdout=subprocess.DEVNULL, check=True)
    return (time.perf_counter() - started) * 1e3


def help_costs() -> float:
    for each in (BARE, HELP):
        cpu(each)  # compiled, and in the file cache
    # In turns, so that what else the machine does meets both.
    return statistics.median(-cpu(BARE) + cpu(HELP) for _ in range(9))


async def first_page(folder: Path) -> float:
    file = folder / "many.db"
    async with EmbeddedScheduler(file) as scheduler, DurableAIAgentClient.connect(scheduler.endpoint) as client:
        await client.ping()  # so that there is a task hub
        await client.schedule_new_orchestration("nobody")
    with sqlite3.connect(file) as connection:
        hub = connection.execute("SELECT id FROM hubs WHERE name = 'default'").fetchone()[0]
        now = int(time.time() * 1e6)
        rows = (
            (10**6 + n, hub, f"@dafx-many@{n:06}", '{"schemaVersion": "1.1.0", "data": {}}', now)
            for n in range(THREADS)
        )
        connection.executemany(
            "INSERT INTO entities (id, hub, entity_id, state, modified) VALUES (?, ?, ?, ?, ?)", rows
        )
    connection.close()
    async with EmbeddedScheduler(file) as scheduler, DurableAIAgentClient.connect(scheduler.endpoint) as client:
        await client.ping()
        found: list[float] = []
        for _ in range(9):
            started = time.perf_counter()
            page = await client.threads.list().page()
            found.append((time.perf_counter() - started) * 1e3)
            assert len(page.items) == 100
    return statistics.median(found)


def ready(folder: Path) -> float:
    """Milliseconds from the start of `dafx dev` until it says what to type next."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "dafx_actors.cli", "dev", "--port", "0", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=folder, env=ENVIRONMENT) as dev:
        assert dev.stdout is not None
        assert json.loads(dev.stdout.readline())["agents"]
        took = (time.perf_counter() - started) * 1e3
        dev.send_signal(signal.SIGTERM)
    return took


def main(file: str | None) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ready(folder)
        over = statistics.median(-wall(["-c", IMPORTS]) + ready(folder) for _ in range(5))
        figures = (help_costs(), asyncio.run(first_page(folder)), over)
    found = dict(zip(GOALS, figures, strict=True))
    for what, figure in found.items():
        print(f"{what}: {figure:.0f} (goal: {GOALS[what]:.0f})")
    if file:
        Path(file).write_text(json.dumps(found))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", metavar="FILE")
    main(parser.parse_args().json)
