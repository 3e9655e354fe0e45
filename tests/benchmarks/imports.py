"""The cost of `import dafx_actors`, over durabletask's: `python tests/benchmarks/imports.py [--json FILE]`."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

DURABLETASK = "import durabletask.client, durabletask.worker"
OURS = "import dafx_actors"
# As it is for users: an installed package is compiled once.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def seconds(statement: str) -> float:
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-c", statement], env=ENVIRONMENT, check=True)
    return time.perf_counter() - begun


def main(file: str | None) -> None:
    for statement in (DURABLETASK, OURS):
        seconds(statement)  # compiled, and in the file cache
    # In turns, so that what else the machine does meets both.
    pairs = [(seconds(DURABLETASK), seconds(OURS)) for _ in range(21)]
    base, ours = (statistics.median(column) for column in zip(*pairs, strict=True))
    print(f"{DURABLETASK}: {base * 1000:.0f} ms   {OURS}: {ours * 1000:.0f} ms   ratio: {ours / base:.2f} (goal: 1.5)")
    if file:
        Path(file).write_text(json.dumps({"durabletask ms": base * 1000, "ours ms": ours * 1000, "ratio": ours / base}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", metavar="FILE")
    main(parser.parse_args().json)
