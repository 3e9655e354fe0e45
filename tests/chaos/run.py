"""Conversations under every fault that can be made here: `python tests/chaos/run.py --kills N --seed S [--json FILE]`.

The scheduler on a file, two workers and two clients are real processes, with a small proxy between each and the
scheduler; the model is a real server. Agents have repeatable tools, tools that act once, tools that want approval; the
clients overlap in their threads, approve, look up what became of calls that were cut off, and cancel. Meanwhile, at
random moments, processes are killed, stopped past time-outs and let go on, connections are cut or held, the scheduler's
disk is full or slow and its clock is set, everything is restarted in turn, and some requests take down every
worker that touches them. Then what clients saw is compared with what is stored; see `checker.Report`.

Beside every 22 kills there are 17 other faults. On two cores that are about 30 kills a minute: 1,000 take half an hour.
The files of the repository must not change meanwhile, since programs are started anew from them all the time.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from pathlib import Path

if __name__ == "__main__":  # the folder of the repository, rather than that of this file
    sys.path[0] = str(Path(__file__).parents[2])

import anyio
import attrs

from tests.chaos.campaign import Campaign
from tests.chaos.checker import FAULTS, Report
from tests.chaos.model import running_model


async def run(kills: int, seed: int, *, pause: float = 0.5) -> Report:
    """Make so many kills, and other faults among them, while clients work; then wait and check.

    Args:
        kills: How many.
        seed: Decides what happens when.
        pause: Seconds between faults, about.
    """
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, running_model() as model:
        campaign = Campaign(Path(folder), model, random.Random(seed))
        async with campaign:
            await campaign.attack(kills, pause)
            await campaign.settle()
            await campaign.check()
    campaign.report.seconds = round(time.monotonic() - begun, 1)
    return campaign.report


def table(report: Report) -> str:
    """For people."""
    rows = [*sorted(report.done.items()), *sorted(report.figures.items())]
    lines = [f"{name:30} {count:>9,}" for name, count in rows]
    lines += ["", *(f"{fault.replace('_', ' '):30} {len(getattr(report, fault)):>9,}" for fault in FAULTS)]
    lines += [f"  {each}" for fault in FAULTS for each in getattr(report, fault)[:20]]
    lines += ["", *(f"left out: {each}" for each in report.left_out), f"{report.seconds:,} s"]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    report = anyio.run(run, arguments.kills, arguments.seed)
    print(f"seed {arguments.seed}")
    print(table(report))
    if arguments.json:
        figures = {"seed": arguments.seed, **attrs.asdict(report)}
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")
    return 0 if report.clean else 1


if __name__ == "__main__":
    sys.exit(main())
