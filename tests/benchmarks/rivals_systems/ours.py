"""This package: `worker ENDPOINT`, `client ENDPOINT`, or `one DB`: scheduler, worker and client in one process."""

from __future__ import annotations

import sys
from contextlib import AsyncExitStack

from dafx_actors import DurableAIAgentClient, DurableAIAgentWorker, Limits, durable_agent, tool
from dafx_actors.models import ModelReply, ModelRequest
from dafx_actors.scheduler import EmbeddedScheduler
from dafx_actors.transcript import ChatMessage, FunctionCallContent, UsageStats
from tests.benchmarks import control
from tests.benchmarks.rivals_systems import turns


class StubModel:
    """Does what the user's message says."""

    async def complete(self, request: ModelRequest) -> ModelReply:
        """Ask for the next tool call, or answer."""
        last = max(number for number, message in enumerate(request.messages) if message.role == "user")
        done = sum(message.role == "tool" for message in request.messages[last + 1 :])
        arguments = await turns.think(request.messages[last].text, done)
        asks, answers = control.USAGE
        usage = UsageStats(asks, answers, asks + answers)
        if arguments is None:
            return ModelReply(message=ChatMessage("assistant", control.ANSWER), usage=usage)
        call = FunctionCallContent(f"call-{done}", "double", arguments)
        return ModelReply(message=ChatMessage("assistant", [call]), usage=usage, finish_reason="tool_calls")

    async def aclose(self) -> None:
        """Nothing is held."""


@durable_agent(name="Bench", model=StubModel(), limits=Limits(steps=1_000))
class Bench:
    """The agent, under the name of the threads that `tests.benchmarks.seed` makes."""

    instructions = control.INSTRUCTIONS

    @tool
    async def double(self, number: int, seconds: float) -> int:
        """Double a number."""
        return await turns.use(number, seconds)


class Client(turns.Client):
    """A client of a worker in another process."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint

    async def start(self) -> None:
        """Connect."""
        self._agent = DurableAIAgentClient.connect(self._endpoint, start_timeout=60.0).get_agent("Bench")

    async def turn(self, thread: str, text: str) -> str:
        """One turn."""
        return (await self._agent.run(text, thread=thread)).text


class OneProcess(Client):
    """Scheduler, worker and client, until the process ends."""

    def __init__(self, db: str) -> None:
        super().__init__("")
        self._db = db
        self._stack = AsyncExitStack()

    async def start(self) -> None:
        """Start all three."""
        scheduler = await self._stack.enter_async_context(EmbeddedScheduler(self._db))
        self._endpoint = scheduler.endpoint
        worker = DurableAIAgentWorker.connect(self._endpoint)
        worker.add_agent(Bench)
        await self._stack.enter_async_context(worker)
        await super().start()


def run_worker(endpoint: str) -> None:
    """A worker of default settings."""
    worker = DurableAIAgentWorker.connect(endpoint)
    worker.add_agent(Bench)
    worker.start()
    control.serve({})


if __name__ == "__main__":
    control.quiet()
    role, where = sys.argv[1:]
    if role == "worker":
        run_worker(where)
    else:
        (Client if role == "client" else OneProcess)(where).serve()
