"""DBOS: `one URL`, client and workflows in one process, as its documents begin.

DBOS keeps no conversation: the caller does, and sends it as the input of each workflow, where it is recorded.
"""

# It is installed in an environment of its own, where type checkers do not look.
# mypy: ignore-errors
# pyright: basic, reportMissingImports=false

from __future__ import annotations

import sys
from typing import Any

from dbos import DBOS

from tests.benchmarks import control
from tests.benchmarks.rivals_systems import turns
from tests.benchmarks.rivals_systems.turns import past


@DBOS.step()
async def model(messages: list[dict[str, Any]]) -> dict[str, Any]:
    """A model call."""
    last = max(number for number, message in enumerate(messages) if message["role"] == "user")
    done = sum(message["role"] == "tool" for message in messages[last + 1 :])
    call = await turns.think(messages[last]["content"], done)
    return {"role": "assistant", **({"content": control.ANSWER} if call is None else {"call": call})}


@DBOS.step()
async def double(number: int, seconds: float) -> int:
    """The tool."""
    return await turns.use(number, seconds)


@DBOS.workflow()
async def turn(text: str, history: list[dict[str, Any]]) -> str:
    """Until the model answers."""
    messages = [*history, {"role": "user", "content": text}]
    while True:
        reply = await model(messages)
        messages.append(reply)
        if "call" not in reply:
            return reply["content"]
        messages.append({"role": "tool", "content": await double(**reply["call"])})


class App(turns.Client):
    """The program."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._threads: dict[str, list[dict[str, Any]]] = {}

    async def start(self) -> None:
        """Make the tables, and begin to run workflows."""
        config: Any = {"name": "bench", "system_database_url": self._url, "run_admin_server": False}
        config |= {"application_version": "1", "log_level": "CRITICAL"}
        DBOS(config=config)
        DBOS.launch()

    async def turn(self, thread: str, text: str) -> str:
        """One workflow."""
        history = self._threads.get(thread, [])
        answer = await turn(text, history)
        new = [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]
        self._threads[thread] = [*history, *new]
        return answer

    async def deepen(self, thread: str, turns: int) -> None:
        """What the caller would have kept."""
        self._threads[thread] = past(turns)


if __name__ == "__main__":
    control.quiet()
    App(sys.argv[2]).serve()
