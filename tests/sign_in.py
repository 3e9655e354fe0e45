"""Without a sign-in at Azure, worker and client say so: `python -m tests.sign_in [https://...] [packages to hide]`.

`.ci/run` has this run where nothing but the package itself is installed; `test_azure.py`, beside the extras, hides what
those bring along. Nothing is reached but the scheduler's address. It exits with 0 where all is as it should be.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from importlib.abc import MetaPathFinder
from typing import Any

HIDDEN = sys.argv[2:]


class Hides(MetaPathFinder):
    """As where these packages are not installed."""

    def find_spec(self, name: str, *_: Any) -> None:
        if name.partition(".")[0] in HIDDEN:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, Hides())

from dafx_actors import DurableAIAgentClient, DurableAIAgentWorker, durable_agent  # noqa: E402 - hidden before
from dafx_actors.errors import SchedulerCredentialError  # noqa: E402

ENDPOINT = sys.argv[1] if len(sys.argv) > 1 else "https://127.0.0.1:1"


@durable_agent
class Joker:
    """Is never asked."""

    instructions = "You joke."


async def client() -> None:
    async with DurableAIAgentClient.connect(ENDPOINT) as client:
        await client.get_agent(Joker).run("Hello", timeout=100)


def make_worker() -> DurableAIAgentWorker:
    worker = DurableAIAgentWorker.connect(ENDPOINT)
    worker.add_agent(Joker)
    return worker


async def worker() -> None:
    async with make_worker():
        pass


def main() -> int:
    right = True
    doors: dict[str, Callable[[], object]] = {
        "a client": lambda: asyncio.run(client()),
        "a worker, async": lambda: asyncio.run(worker()),
        "a worker, sync": lambda: make_worker().start(),
    }
    for what, door in doors.items():
        try:
            door()
            found = "nothing was raised"
        except SchedulerCredentialError as error:
            found = "says to run az login" if "`az login`" in str(error) else str(error)
        except Exception as error:
            found = f"{type(error).__name__}: {error}"
        print(f"{what}: {found}")
        right &= found == "says to run az login"
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
