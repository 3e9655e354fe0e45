"""What `dafx --help` costs in CPU, over a bare Python: `python tests/benchmarks/command.py [--json FILE]`."""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
from pathlib import Path

GOAL = 50.0
"""Milliseconds."""
BARE = ["-c", "pass"]
HELP = ["-c", "import sys; from dafx_actors.cli import main; sys.exit(main(['--help']))"]
# As it is for users: an installed package is compiled once.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def milliseconds(arguments: list[str]) -> float:
    """CPU time of a fresh Python, from its start to its end."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], env=ENVIRONMENT, stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) * 1e3


def main(file: str | None) -> None:
    for each in (BARE, HELP):
        milliseconds(each)  # compiled, and in the file cache
    # In turns, so that what else the machine does meets both.
    pairs = [(milliseconds(BARE), milliseconds(HELP)) for _ in range(9)]
    more = statistics.median(ours - bare for bare, ours in pairs)
    print(f"dafx --help: {more:.0f} ms of CPU over a bare Python (goal: {GOAL:.0f} ms)")
    if file:
        Path(file).write_text(json.dumps({"ms": more}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", metavar="FILE")
    main(parser.parse_args().json)
