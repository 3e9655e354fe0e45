"""This package's worker and client, as processes of the side-by-side benchmark; see `peer.py` for the other's."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

from durabletask.worker import TaskHubGrpcWorker

from dafx_actors import (
    DurableAIAgentClient,
    DurableAIAgentWorker,
    Limits,
    OrchestrationContext,
    durable_agent,
    orchestrator,
    tool,
    when_all,
)
from dafx_actors.models import ModelReply, ModelRequest
from dafx_actors.transcript import ChatMessage, FunctionCallContent, UsageStats
from tests.benchmarks import control

meter = control.Meter()


class StubModel:
    """Does what the user's message says."""

    async def complete(self, request: ModelRequest) -> ModelReply:
        """Take the time, call the tools, then answer."""
        last = max(number for number, message in enumerate(request.messages) if message.role == "user")
        asked = json.loads(request.messages[last].text)
        await meter.sleep(asked["seconds"])
        asks, answers = control.USAGE
        usage = UsageStats(asks, answers, asks + answers)
        if asked["tools"] and last == len(request.messages) - 1:
            calls = [FunctionCallContent(f"call-{n}", "double", {"number": n}) for n in range(asked["tools"])]
            return ModelReply(message=ChatMessage("assistant", calls), usage=usage, finish_reason="tool_calls")
        return ModelReply(message=ChatMessage("assistant", control.ANSWER), usage=usage)

    async def aclose(self) -> None:
        """Nothing is held."""


class Bench:
    """The agent."""

    instructions = control.INSTRUCTIONS

    @tool
    async def double(self, number: int) -> int:
        """Double a number."""
        return 2 * number


@orchestrator
async def trivial(context: OrchestrationContext) -> int:
    """Waits for one activity."""
    result: int = await context.call_activity("answer")
    return result


def answer() -> int:
    """An activity."""
    return 42


@orchestrator
async def fan_out(context: OrchestrationContext, asked: list[Any]) -> int:
    """Many agents at once; how many answered."""
    count, seconds = asked
    agent = context.get_agent("Bench")
    answers = await when_all([agent.run(control.question(seconds)) for _ in range(count)])
    return sum(each.text == control.ANSWER for each in answers)


def run_worker(endpoint: str, durability: str) -> None:
    """A worker, wrapped with default settings."""
    worker = TaskHubGrpcWorker(host_address=endpoint)
    agent_worker = DurableAIAgentWorker(worker)
    mode: Any = durability  # from the command line
    declare = durable_agent(name="Bench", model=StubModel(), limits=Limits(steps=1_000), durability=mode)
    agent_worker.add_agent(declare(Bench))
    agent_worker.add_orchestrator(trivial)
    agent_worker.add_orchestrator(fan_out)
    agent_worker.add_activity(answer)
    agent_worker.start()
    control.serve({"read": meter.read})


class Client:
    """The commands of a client process."""

    def __init__(self, endpoint: str) -> None:
        self._client = DurableAIAgentClient.connect(endpoint, start_timeout=60.0)
        self._agent = self._client.get_agent("Bench")

    async def turn(self, text: str, thread: str | None = None) -> float:
        """One turn; how long it took."""
        begun = time.perf_counter()
        response = await self._agent.run(text, thread=thread)
        assert response.text == control.ANSWER, response
        return time.perf_counter() - begun

    async def turns(self, count: int, thread: str | None = None, **asked: Any) -> list[float]:
        """Turns one after another, on fresh threads or on the given one."""
        return [await self.turn(control.question(**asked), thread) for _ in range(count)]

    async def crowd(self, count: int, **asked: Any) -> dict[str, Any]:
        """Turns at once, each on a thread of its own."""
        failed: list[str] = []

        async def one() -> float | None:
            try:
                return await self.turn(control.question(**asked))
            except Exception as error:
                failed.append(repr(error))
                return None

        begun = time.perf_counter()
        took = await asyncio.gather(*[one() for _ in range(count)])
        return {"wall": time.perf_counter() - begun, "took": [each for each in took if each], "failed": failed[:3]}

    async def conversations(self, at_once: int, seconds: float, turns: int) -> dict[str, Any]:
        """Conversations of some turns each, so many at once, one after another until the time is over."""
        begun = time.perf_counter()
        done = 0

        async def lane() -> None:
            nonlocal done
            while True:
                thread = self._agent.get_new_thread().thread_id
                for _ in range(turns):
                    if time.perf_counter() > begun + seconds:
                        return
                    await self.turn(control.question(), thread)
                    done += 1

        await asyncio.gather(*[lane() for _ in range(at_once)])
        return {"turns": done, "wall": time.perf_counter() - begun}

    async def orchestrate(self, name: str, input: Any) -> dict[str, Any]:
        """One orchestration."""
        begun = time.perf_counter()
        result = await (await self._client.schedule_new_orchestration(name, input=input))
        return {"took": time.perf_counter() - begun, "result": result}


def run_client(endpoint: str) -> None:
    """A client, on one event loop."""

    async def make() -> Client:
        return Client(endpoint)

    client: list[Client] = []

    def command(name: str) -> Any:
        async def run(**asked: Any) -> Any:
            if not client:  # gRPC's channels belong to the loop that they were made on
                client.append(await make())
            return await getattr(client[0], name)(**asked)

        return run

    control.serve({name: command(name) for name in ("turns", "crowd", "conversations", "orchestrate")})


if __name__ == "__main__":
    control.quiet()
    role, where, *more = sys.argv[1:]
    if role == "worker":
        run_worker(where, *more)
    else:
        run_client(where)
