"""What the measured systems share: the turn that each of them makes, and the commands of a client process.

Every system runs it in its own environment, so it needs nothing but the standard library.
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from typing import Any

from tests.benchmarks import control


def question(seconds: float = 0.0, rounds: int = 0) -> str:
    """What a user writes: so many rounds of a model call and a tool call, then an answer; each takes `seconds`."""
    return json.dumps({"seconds": seconds, "rounds": rounds})


async def think(text: str, done: int) -> dict[str, Any] | None:
    """The stub model, after so many tool calls of this turn.

    Returns:
        The arguments of the next tool call, or None where it answers `control.ANSWER`.
    """
    asked = json.loads(text)
    if asked["seconds"]:
        await asyncio.sleep(asked["seconds"])
    return {"number": done, "seconds": asked["seconds"]} if done < asked["rounds"] else None


async def use(number: int, seconds: float) -> int:
    """The tool."""
    if seconds:
        await asyncio.sleep(seconds)
    return 2 * number


def past(turns: int) -> list[dict[str, str]]:
    """The messages of so many turns, each an object of its own, as those of real turns are."""
    return [
        {"role": role, "content": content}
        for _ in range(turns)
        for role, content in (("user", question()), ("assistant", control.ANSWER))
    ]


class Client:
    """The commands of a client process."""

    async def start(self) -> None:
        """Get ready, on the event loop that the turns run on."""

    async def turn(self, thread: str, text: str) -> str:
        """One turn; the answer."""
        raise NotImplementedError

    async def deepen(self, thread: str, turns: int) -> None:
        """Make a thread of so many turns, in any quick way; nothing where it was made before the start."""

    async def timed(self, text: str, thread: str | None = None) -> float:
        """One turn, on a fresh thread or on the given one; how long it took."""
        begun = time.perf_counter()
        answer = await self.turn(thread or uuid.uuid4().hex, text)
        assert answer == control.ANSWER, answer
        return time.perf_counter() - begun

    async def turns(self, count: int, thread: str | None = None, **asked: Any) -> list[float]:
        """Turns one after another."""
        return [await self.timed(question(**asked), thread) for _ in range(count)]

    async def crowd(self, count: int, **asked: Any) -> dict[str, Any]:
        """Turns at once, each on a thread of its own; and what three of those that failed said."""
        failed: list[str] = []

        async def one() -> None:
            try:
                await self.timed(question(**asked))
            except Exception as error:
                failed.append(repr(error)[:300])

        begun = time.perf_counter()
        await asyncio.gather(*[one() for _ in range(count)])
        return {"wall": time.perf_counter() - begun, "failed": len(failed), "errors": failed[:3]}

    async def conversations(self, at_once: int, seconds: float, turns: int) -> dict[str, Any]:
        """Conversations of some turns each, so many at once, one after another until the time is over."""
        begun = time.perf_counter()
        done = 0

        async def lane() -> None:
            nonlocal done
            while True:
                thread = uuid.uuid4().hex
                for _ in range(turns):
                    if time.perf_counter() > begun + seconds:
                        return
                    await self.timed(question(), thread)
                    done += 1

        await asyncio.gather(*[lane() for _ in range(at_once)])
        return {"turns": done, "wall": time.perf_counter() - begun}

    def serve(self) -> None:
        """Answer the benchmark until it is done with this process."""
        commands = ("start", "turns", "crowd", "conversations", "deepen")
        control.serve({name: getattr(self, name) for name in commands})
