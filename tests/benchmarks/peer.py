"""The peer's worker and client, as processes of the side-by-side benchmark, in the peer's own environment.

Nothing of this package is imported here, and `ours.py` says the same in its words.
"""

# The peer is installed in an environment of its own, where type checkers do not look.
# mypy: ignore-errors
# pyright: basic, reportMissingImports=false

from __future__ import annotations

import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from agent_framework import (
    Agent,
    BaseChatClient,
    ChatMiddlewareLayer,
    ChatResponse,
    ChatResponseUpdate,
    Content,
    FunctionInvocationLayer,
    Message,
    tool,
)
from agent_framework_durabletask import (
    AgentSessionId,
    DurableAgentSession,
    DurableAIAgentClient,
    DurableAIAgentOrchestrationContext,
    DurableAIAgentWorker,
)
from durabletask import task
from durabletask.client import TaskHubGrpcClient
from durabletask.worker import TaskHubGrpcWorker

from tests.benchmarks import control

meter = control.Meter()


class StubModel(FunctionInvocationLayer, ChatMiddlewareLayer, BaseChatClient):
    """Does what the user's message says. Layered as the peer's own clients are, but for their telemetry."""

    def _inner_get_response(self, *, messages, stream, options, **_):
        if stream:

            async def updates():
                contents = await self._contents(messages)
                yield ChatResponseUpdate(role="assistant", contents=[*contents, _usage()])

            return self._build_response_stream(updates())

        async def whole():
            return ChatResponse(messages=[Message(role="assistant", contents=await self._contents(messages))])

        return whole()

    async def _contents(self, messages):
        last = max(number for number, message in enumerate(messages) if message.role == "user")
        asked = json.loads(messages[last].text)
        await meter.sleep(asked["seconds"])
        if asked["tools"] and last == len(messages) - 1:
            return [
                Content.from_function_call(f"call-{n}", "double", arguments={"number": n})
                for n in range(asked["tools"])
            ]
        return [Content.from_text(control.ANSWER)]


def _usage():
    asks, answers = control.USAGE
    return Content.from_usage(
        {"input_token_count": asks, "output_token_count": answers, "total_token_count": asks + answers}
    )


@tool(approval_mode="never_require")
async def double(number: int) -> int:
    """Double a number."""
    return 2 * number


def answer(_: task.ActivityContext, __: Any) -> int:
    """An activity."""
    return 42


def trivial(context: task.OrchestrationContext, _: Any):
    """Waits for one activity."""
    return (yield context.call_activity(answer))


def fan_out(context: task.OrchestrationContext, asked: Any):
    """Many agents at once; how many answered."""
    count, seconds = asked
    agent = DurableAIAgentOrchestrationContext(context).get_agent("Bench")
    answers = yield task.when_all([agent.run(control.question(seconds)) for _ in range(count)])
    return sum(each.text == control.ANSWER for each in answers)


def run_worker(endpoint: str) -> None:
    """A worker, wrapped with default settings."""
    worker = TaskHubGrpcWorker(host_address=endpoint)
    agent_worker = DurableAIAgentWorker(worker)
    agent_worker.add_agent(Agent(client=StubModel(), name="Bench", instructions=control.INSTRUCTIONS, tools=[double]))
    worker.add_orchestrator(trivial)
    worker.add_orchestrator(fan_out)
    worker.add_activity(answer)
    agent_worker.start()
    control.serve({"read": meter.read})


class Client:
    """The commands of a client process; each that waits holds a thread."""

    def __init__(self, endpoint: str, interval: float) -> None:
        self._client = TaskHubGrpcClient(host_address=endpoint)
        # As often as is needed for 20 minutes: by default it gives up after 30 looks.
        retries = int(1_200 / interval)
        agents = DurableAIAgentClient(self._client, max_poll_retries=retries, poll_interval_seconds=interval)
        self._agent = agents.get_agent("Bench")

    def turn(self, text: str, session: Any = None) -> float:
        """One turn; how long it took."""
        begun = time.perf_counter()
        response = self._agent.run(text, session=session or self._agent.create_session())
        assert response.text == control.ANSWER, response.to_dict()
        return time.perf_counter() - begun

    def turns(self, count: int, thread: str | None = None, **asked: Any) -> list[float]:
        """Turns one after another, on fresh threads or on the given one."""
        session = DurableAgentSession(durable_session_id=AgentSessionId("Bench", thread)) if thread else None
        return [self.turn(control.question(**asked), session) for _ in range(count)]

    def crowd(self, count: int, **asked: Any) -> dict[str, Any]:
        """Turns at once, each on a thread of its own."""
        failed: list[str] = []

        def one(_: int) -> float | None:
            try:
                return self.turn(control.question(**asked))
            except Exception as error:
                failed.append(repr(error))
                return None

        with ThreadPoolExecutor(count) as pool:
            begun = time.perf_counter()
            took = list(pool.map(one, range(count)))
        return {"wall": time.perf_counter() - begun, "took": [each for each in took if each], "failed": failed[:3]}

    def conversations(self, at_once: int, seconds: float, turns: int) -> dict[str, Any]:
        """Conversations of some turns each, so many at once, one after another until the time is over."""
        begun = time.perf_counter()

        def lane(_: int) -> int:
            done = 0
            while True:
                session = self._agent.create_session()
                for _ in range(turns):
                    if time.perf_counter() > begun + seconds:
                        return done
                    self.turn(control.question(), session)
                    done += 1

        with ThreadPoolExecutor(at_once) as pool:
            done = sum(pool.map(lane, range(at_once)))
        return {"turns": done, "wall": time.perf_counter() - begun}

    def orchestrate(self, name: str, input: Any) -> dict[str, Any]:
        """One orchestration."""
        begun = time.perf_counter()
        instance_id = self._client.schedule_new_orchestration(name, input=input)
        state = self._client.wait_for_orchestration_completion(instance_id, timeout=600)
        assert state is not None
        state.raise_if_failed()
        return {"took": time.perf_counter() - begun, "result": json.loads(state.serialized_output or "null")}


if __name__ == "__main__":
    control.quiet()
    role, where, *more = sys.argv[1:]
    if role == "worker":
        run_worker(where)
    else:
        client = Client(where, float(more[0]))
        control.serve({name: getattr(client, name) for name in ("turns", "crowd", "conversations", "orchestrate")})
