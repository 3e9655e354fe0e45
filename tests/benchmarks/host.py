"""What tests with the fixture `agent_host` cost after imports: `python -m tests.benchmarks.host [--json FILE]`.

Real runs of pytest over a file of six tests, each of which starts a host and asks its agent once; under anyio's plugin
and under pytest-asyncio; and the same six questions to one host of all tests.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
TESTS = 6
GOAL = 1.0

AGENT = """
import pytest
from dafx_actors import durable_agent
from dafx_actors.testing import AgentHost, ScriptedModel


@durable_agent(model=ScriptedModel(lambda request: "Hi."))
class Joker:
    instructions = "You tell jokes."


async def ask(host):
    assert (await host.client.get_agent(Joker).run("Hello")).text == "Hi."
"""
EACH = """
@pytest.mark.{plugin}
@pytest.mark.parametrize("number", range({tests}))
async def test_it(agent_host, number):
    await ask(await agent_host(Joker))
"""
ONE_FOR_ALL = """
@pytest.fixture(scope="module")
def anyio_backend():
    return "asyncio"


@pytest.fixture(scope="module")
async def host(anyio_backend):
    async with AgentHost(Joker) as host:
        yield host


@pytest.mark.anyio
@pytest.mark.parametrize("number", range({tests}))
async def test_it(host, number):
    await ask(host)
"""
# Of setup, call and teardown of all tests: without the start of pytest, and without imports.
PLUGIN = """
import time

spent = 0.0
began = ended = 0.0


def pytest_runtest_logstart():
    global began
    began = began or time.process_time()


def pytest_runtest_logreport(report):
    global spent, ended
    spent += report.duration
    ended = time.process_time()


def pytest_unconfigure():
    print(f"spent {spent} {ended - began}")
"""
FILES = {
    "a host for each test, under anyio": EACH.format(plugin="anyio", tests=TESTS),
    "a host for each test, under pytest-asyncio": EACH.format(plugin="asyncio", tests=TESTS),
    "one host for all tests": ONE_FOR_ALL.format(tests=TESTS),
}


def seconds(test: str) -> tuple[float, float]:
    """What pytest spends in the tests of a file: seconds, and seconds of CPU in all threads."""
    with tempfile.TemporaryDirectory() as folder:
        project = Path(folder)
        (project / "test_it.py").write_text(AGENT + test)
        (project / "spent.py").write_text(PLUGIN)
        (project / "pytest.ini").write_text("[pytest]\nasyncio_default_fixture_loop_scope = function\n")
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "spent", "-p", "no:cacheprovider", "-p", "no:xdist"],
            cwd=project,
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            check=False,
        )
    assert f"{TESTS} passed" in done.stdout, done.stdout
    wall, cpu = done.stdout.rpartition("spent ")[2].split()
    return float(wall), float(cpu)


def main(file: str | None, rounds: int) -> None:
    found: dict[str, dict[str, float]] = {}
    for name, test in FILES.items():
        runs = [seconds(test) for _ in range(rounds)]
        wall, cpu = (statistics.median(column) for column in zip(*runs, strict=True))
        found[name] = {"s": wall, "cpu s": cpu}
        print(f"{TESTS} tests, {name}: {wall:.2f} s, of CPU {cpu:.2f} s (goal: {GOAL:g} s)")
    if file:
        Path(file).write_text(json.dumps(found))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    main(given.json, given.rounds)
