"""What starts cost in CPU, over durabletask's: `python tests/benchmarks/imports.py [--json FILE]`."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

DURABLETASK = "import durabletask.client, durabletask.worker"
PROGRAMS = {
    "import dafx_actors": "import dafx_actors",
    "a client": "from dafx_actors import DurableAIAgentClient",
    "an agent and a worker": "from dafx_actors import DurableAIAgentWorker, durable_agent, tool",
    "every name": "from dafx_actors import *",
}
GOAL = 1.5
# As it is for users: an installed package is compiled once.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def milliseconds(program: str) -> float:
    """CPU time of a fresh Python that runs a program, with that of its own start."""
    timed = f"{program}\nimport time\nprint(time.process_time())"
    ran = subprocess.run([sys.executable, "-c", timed], env=ENVIRONMENT, capture_output=True, text=True, check=True)
    return float(ran.stdout) * 1e3


def main(file: str | None) -> None:
    found: dict[str, dict[str, float]] = {}
    for name, program in PROGRAMS.items():
        for each in (DURABLETASK, program):
            milliseconds(each)  # compiled, and in the file cache
        # In turns, so that what else the machine does meets both.
        pairs = [(milliseconds(DURABLETASK), milliseconds(program)) for _ in range(9)]
        ratio = statistics.median(ours / base for base, ours in pairs)
        base, ours = (statistics.median(column) for column in zip(*pairs, strict=True))
        found[name] = {"durabletask ms": base, "ours ms": ours, "ratio": ratio}
        print(f"{name}: {ratio:.2f} x ({ours:.0f} ms; durabletask's: {base:.0f} ms; goal: {GOAL})")
    if file:
        Path(file).write_text(json.dumps(found))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", metavar="FILE")
    main(parser.parse_args().json)
