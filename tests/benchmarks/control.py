"""How the benchmark speaks with the processes that it starts: a line of JSON asks, a line of JSON answers.

Both systems' workers and clients use it, so it needs nothing but the standard library.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
import os
import resource
import sys
from collections.abc import Callable, Mapping
from typing import Any

ANSWER = "Ice floats because it is less dense than the water around it."
INSTRUCTIONS = "You explain everyday physics in a sentence."
USAGE = (24, 13)
"""Tokens of each answer: what was asked, what was answered."""


def question(seconds: float = 0.0, tools: int = 0) -> str:
    """What a user writes: how long the model is to take, and how many tools to call first."""
    return json.dumps({"seconds": seconds, "tools": tools})


class Meter:
    """Counts who waits for the model."""

    def __init__(self) -> None:
        self.now = self.most = self.calls = 0

    async def sleep(self, seconds: float) -> None:
        """What the model does."""
        self.now += 1
        self.calls += 1
        self.most = max(self.most, self.now)
        if seconds:
            await asyncio.sleep(seconds)
        self.now -= 1

    def read(self) -> dict[str, Any]:
        """What was counted since the last time."""
        counted = {"most": self.most, "calls": self.calls}
        self.most = self.calls = 0
        return counted


def quiet() -> None:
    """What both systems would write to a log is not part of the comparison; and many connections are open at once."""
    logging.disable(logging.CRITICAL)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 65_536)), hard))


def serve(commands: Mapping[str, Callable[..., Any]]) -> None:
    """Answer until the benchmark is done with this process; coroutine functions run on one event loop."""

    async def answer() -> None:
        print(json.dumps("ready"), flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            asked = json.loads(line)
            result = commands[asked.pop("do")](**asked)
            if inspect.isawaitable(result):
                result = await result
            print(json.dumps(result), flush=True)

    asyncio.run(answer())
    os._exit(0)  # What it holds is nobody's concern.
