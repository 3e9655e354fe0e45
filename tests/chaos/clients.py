"""A client of the chaos run: `python -m tests.chaos.clients NAME ENDPOINT FOLDER`; killed at any moment, it goes on.

It talks on every thread, one turn after the other, approves, looks up what became of calls that were cut off, and
cancels some of its turns. What it is about to do and what it was told stands in a book, line by line; started again, it
takes up the turns that the book leaves open, with the same ids. It ends when there is a file `stop` in the folder.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, TypedDict

import anyio
import grpc

from dafx_actors import DurableAIAgent, DurableAIAgentClient, PendingApproval, PendingOutcome, TurnHandle
from dafx_actors.errors import DecisionRefused, SchedulerError, TurnCancelled, TurnError
from tests.chaos.effects import Effects

THREADS = 3
AGENT = "Clerk"
PLANS = ["", "look", "look;look", "pay", "ship", "sign", "look+pay", "pay;ship", "look+sign;pay"]
"""Tools for the model to call: those between semicolons together."""
_LOST = {grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL}
"""Calls whose answer was cut in the middle."""


class Receipt(TypedDict):
    """The model's answer."""

    turn: str
    after: int
    """Messages of people and models before the request."""
    nonce: int
    calls: int


class Book:
    """What a client did and was told, kept over its death."""

    def __init__(self, path: Path) -> None:
        self.lines: list[dict[str, Any]] = read_book(path)
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(self._file, b"\n")  # after half a line of a process that was killed

    def write(self, **line: Any) -> None:
        line["at"] = round(time.monotonic(), 3)
        self.lines.append(line)
        os.write(self._file, f"{json.dumps(line)}\n".encode())


def read_book(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a book."""
    lines: list[dict[str, Any]] = []
    for line in path.read_text().splitlines() if path.exists() else []:
        with suppress(ValueError):
            lines.append(json.loads(line))
    return lines


class Client:
    """One client."""

    def __init__(self, name: str, client: DurableAIAgentClient, folder: Path) -> None:
        self.name = name
        self.book = Book(folder / f"{name}.book")
        self._client = client
        self._agent: DurableAIAgent = client.get_agent(AGENT)
        self._effects = Effects(folder / "effects")
        self._stop = folder / "stop"

    async def run(self) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._decide_for_ever)
            async with anyio.create_task_group() as talkers:
                for number in range(THREADS):
                    talkers.start_soon(self._talk, f"thread-{number}")
            tasks.cancel_scope.cancel()

    async def _talk(self, thread: str) -> None:
        own = [line for line in self.book.lines if line["thread"] == thread]
        ended = {line["turn"] for line in own if line["what"] == "told"}
        number = len({line["turn"] for line in own if line["what"] == "sends"})
        todo = [line["turn"] for line in own if line["what"] == "sends" and line["turn"] not in ended]
        for turn in todo:
            await self._take(thread, turn)
        while not self._stop.exists():
            number += 1
            await self._take(thread, f"{thread}.{self.name}.{number}")

    async def _take(self, thread: str, turn: str) -> None:
        """One turn, until it has ended, however often it takes to be told."""
        chance = random.Random(turn)
        plan, typed, cancelled = chance.choice(PLANS), chance.random() < 0.3, chance.random() < 0.1
        self.book.write(what="sends", thread=thread, turn=turn, cancelled=cancelled)
        how: dict[str, Any] = {"thread": thread, "correlation_id": turn}
        if typed:
            how["response_format"] = Receipt
        while True:
            try:
                handle = await self._agent.start(f"<{turn}> {plan}", **how)
                if cancelled:
                    await anyio.sleep(chance.uniform(0, 0.3))
                    if await handle.cancel("changed my mind", by=self.name):
                        self.book.write(what="cancelled", thread=thread, turn=turn)
                told: Mapping[str, Any] = {"text": (await handle).text}
            except TurnCancelled as error:
                told = {"error": "cancelled", "detail": str(error)}
            except TurnError as error:
                told = {"error": type(error).__name__, "detail": str(error)}
            except (SchedulerError, grpc.RpcError) as error:
                if not _passes(error):
                    raise
                await anyio.sleep(0.1)
                continue
            self.book.write(what="told", thread=thread, turn=turn, **told)
            return

    async def _decide_for_ever(self) -> None:
        while True:
            async with passing_troubles():
                for asked in await self._client.pending_approvals(AGENT):
                    await self._approve(asked)
                for unknown in await self._client.pending_outcomes(AGENT):
                    await self._resolve(unknown)
            await anyio.sleep(0.2)

    async def _approve(self, asked: PendingApproval) -> None:
        with suppress(DecisionRefused):
            if random.Random(asked.key).random() < 0.2:
                await self._client.deny(asked, "not this one", by=self.name)
            else:
                await self._client.approve(asked, by=self.name)

    async def _resolve(self, asked: PendingOutcome) -> None:
        """Say what became of an attempt, after a look at what it acts on."""
        key, attempt = asked.key.rsplit(".outcome", 1)
        with suppress(DecisionRefused):
            if self._effects.look_up(key, int(attempt)):
                await self._client.resolve(asked, "result", result="found", by=self.name)
            else:
                await self._client.resolve(asked, "retry", by=self.name)


def _passes(error: Exception) -> bool:
    """Whether this comes of what is done to the scheduler, and a client tries again."""
    code: Any = getattr(error, "code", None)
    return isinstance(error, SchedulerError) or (code is not None and code() in _LOST)


@asynccontextmanager
async def passing_troubles() -> AsyncGenerator[None]:
    try:
        yield
    except (SchedulerError, grpc.RpcError) as error:
        if not _passes(error):
            raise


async def find_and_cancel(handle: TurnHandle[Any]) -> str:
    """End a poisoned turn: the name of the error that whoever awaits it gets."""
    while True:
        async with passing_troubles():
            await handle.cancel("it takes workers down", by="the operator")
            try:
                await handle
            except TurnError as error:
                return type(error).__name__
            return "an answer"
        await anyio.sleep(0.1)


async def main(name: str, endpoint: str, folder: str) -> None:
    async with DurableAIAgentClient.connect(endpoint, start_timeout=120.0) as client:
        print("ready", flush=True)
        await Client(name, client, Path(folder)).run()


if __name__ == "__main__":
    anyio.run(main, sys.argv[1], sys.argv[2], sys.argv[3])
