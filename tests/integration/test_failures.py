"""Whatever user code raises, wherever it runs: a failure of that step, recorded once, which ends nothing else."""

from __future__ import annotations

import asyncio
import functools
import logging
import signal
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.to_thread
import pytest
from durabletask import task
from durabletask.client import TaskHubGrpcClient
from durabletask.entities import EntityContext, EntityInstanceId
from durabletask.worker import TaskHubGrpcWorker

from dafx_actors import (
    Approval,
    DurableAIAgentClient,
    DurableAIAgentWorker,
    ModelReply,
    ModelRequest,
    OrchestrationContext,
    ToolContext,
    Turn,
    durable_agent,
    orchestrator,
    tool,
)
from dafx_actors.errors import OrchestrationFailed, TurnFailed
from dafx_actors.models import ToolDefinition
from dafx_actors.scheduler import EmbeddedScheduler
from dafx_actors.testing import ScriptedModel
from tests.integration.test_intake import Looking
from tests.integration.turns import agent, asked_of, asks, line_of, program, until, using
from tests.scheduler.bench import QUIET
from tests.test_raised import Leaving, Mute, Numeric

pytestmark = pytest.mark.anyio

RAISED: dict[str, Callable[[], BaseException]] = {
    "CancelledError": lambda: asyncio.CancelledError("the pool was closed"),
    "SystemExit": lambda: SystemExit(3),
    "KeyboardInterrupt": KeyboardInterrupt,
    "GeneratorExit": GeneratorExit,
    "BaseException": lambda: BaseException("bare"),
    "Mute": Mute,
    "Leaving": Leaving,
    "Numeric": Numeric,
    "ValueError": lambda: ValueError("lone \ud800"),
    "LookupError": lambda: LookupError("x" * 5_000_000),
}
every_kind = pytest.mark.parametrize("kind", RAISED)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """pytest cannot hand on, between its processes, a log that holds what UTF-8 cannot."""
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture
def runs() -> Counter[str]:
    return Counter()


@every_kind
async def test_out_of_a_tool(scheduler: EmbeddedScheduler, runs: Counter[str], kind: str) -> None:
    async def asynchronous() -> None:
        runs["asynchronous"] += 1
        raise RAISED[kind]()

    def synchronous() -> None:
        runs["synchronous"] += 1
        raise RAISED[kind]()

    @tool(effect="once")
    async def once() -> None:
        runs["once"] += 1
        raise RAISED[kind]()

    names = ["asynchronous", "synchronous", "once"]
    model = using(asks(*[(name, {}) for name in names]))
    async with serving(scheduler, agent(model, asynchronous, synchronous, once)) as client:
        answer = await client.get_agent("Worker").run("Go")
    assert answer.text.count(f"Error: {kind}") + answer.text.count("sys.exit(3)") >= 3
    assert runs == dict.fromkeys(names, 1)


@every_kind
async def test_out_of_an_agents_own_code(scheduler: EmbeddedScheduler, runs: Counter[str], kind: str) -> None:
    def fail(where: str) -> None:
        runs[where] += 1
        raise RAISED[kind]()

    class OfModel:
        async def complete(self, request: ModelRequest) -> ModelReply:
            fail("Asking")
            raise AssertionError

        async def aclose(self) -> None:
            fail("aclose")

    def factory() -> OfModel:
        fail("Making")
        raise AssertionError

    @durable_agent
    class Responding:
        async def respond(self, turn: Turn) -> str:
            fail("Responding")
            return ""

    @durable_agent(durability="turn")
    class Whole(Responding):
        async def respond(self, turn: Turn) -> str:
            fail("Whole")
            return ""

    @durable_agent(model=ScriptedModel("never"))
    class Instructing:
        def instructions(self, turn: Turn) -> str:
            fail("Instructing")
            return ""

    @durable_agent(model=OfModel())
    class Asking:
        instructions = ""

    @durable_agent(model=factory)
    class Making:
        instructions = ""

    agents = [Responding, Whole, Instructing, Asking, Making]
    async with serving(scheduler, *agents) as client:
        for each in agents:
            with pytest.raises(TurnFailed, match=kind):
                await client.get_agent(each).run("Go")
    assert runs == {each.__name__: 1 for each in agents}


@every_kind
async def test_out_of_a_rule_a_reconcile_and_a_source(
    scheduler: EmbeddedScheduler, runs: Counter[str], kind: str
) -> None:
    def rule() -> bool:
        runs["rule"] += 1
        raise RAISED[kind]()

    async def find_out() -> str:
        runs["reconcile"] += 1
        raise RAISED[kind]()

    @tool(approval=Approval(when=rule))
    async def ruled() -> str:
        return "ruled"

    @tool(effect="once", timeout=0.02, reconcile=find_out)
    async def slow() -> None:
        runs["slow"] += 1
        await anyio.sleep_forever()

    class Source:
        name = "source"
        approval = None

        async def tools(self) -> list[ToolDefinition]:
            return [ToolDefinition(name="far", description="", parameters={"type": "object"})]

        async def call(self, name: str, arguments: Mapping[str, Any], context: ToolContext) -> Any:
            runs["far"] += 1
            raise RAISED[kind]()

        async def aclose(self) -> None:
            runs["closed"] += 1
            raise RAISED[kind]()

    model = using(asks(("ruled", {}), ("slow", {}), ("far", {})))
    async with serving(scheduler, agent(model, ruled, slow, Source())) as client:
        handle = await client.get_agent("Worker").start("Go")
        await client.approve(await asked_of(client))
        await client.resolve(await asked_of(client, kind="outcome"), "result", result="by hand")
        text = (await handle).text
    assert text.startswith("ruled; by hand; Error: ")
    assert (runs["reconcile"], runs["slow"], runs["far"], runs["closed"]) == (1, 1, 1, 1)


@pytest.mark.parametrize("line", ["bundles", "calls"])
@pytest.mark.parametrize("is_plain", [False, True], ids=["ours", "durabletask's"])
@pytest.mark.parametrize("is_async", [True, False], ids=["async", "sync"])
async def test_out_of_an_activity_and_an_orchestration(
    scheduler: EmbeddedScheduler, runs: Counter[str], line: str, is_plain: bool, is_async: bool
) -> None:
    """Added to ours or, plain, to the durabletask worker that is wrapped; which knows no async activities."""

    def fails(*told: Any) -> str:
        runs[told[-1]] += 1
        raise RAISED[told[-1]]()

    async def fails_too(kind: str) -> str:
        return fails(kind)

    def plain(context: task.ActivityContext, kind: str) -> Any:
        return fails(kind)

    @orchestrator
    async def catches(context: OrchestrationContext, kind: str) -> str:
        try:
            name = "plain" if is_plain else fails_too.__name__
            return str(await context.call_activity(name, input=kind))
        except task.TaskFailedError as error:
            return error.details.error_type

    @orchestrator
    async def raises(context: OrchestrationContext, kind: str) -> str:
        raise RAISED[kind]()

    def raises_plainly(context: task.OrchestrationContext, kind: str) -> Generator[task.Task[Any], Any, Any]:
        yield context.create_timer(context.current_utc_datetime)
        raise RAISED[kind]()

    def refuses(context: EntityContext, kind: str) -> str:
        raise RAISED[kind]()

    inner = TaskHubGrpcWorker(
        host_address=scheduler.endpoint, logger=QUIET, interceptors=[Looking()] if line == "calls" else None
    )
    worker = DurableAIAgentWorker(inner)
    if not is_async:

        def blocks(kind: str) -> str:
            return fails(kind)

        blocks.__name__ = fails_too.__name__
        worker.add_activity(blocks)
    else:
        worker.add_activity(fails_too)
    inner.add_activity(plain)
    inner.add_orchestrator(raises_plainly)
    inner.add_entity(refuses)
    worker.add_orchestrator(catches)
    worker.add_orchestrator(raises)
    async with worker, DurableAIAgentClient.connect(scheduler.endpoint) as client:
        for kind in RAISED:
            seen = await (await client.schedule_new_orchestration(catches, input=kind)).result(timeout=30)
            # Of one that cannot be told, durabletask fails over telling it.
            assert seen.rpartition(".")[2] == kind or (
                is_plain and kind in {"Mute", "Leaving", "Numeric", "ValueError"}
            )
            for failing in ("raises_plainly",) if is_plain else (raises,):
                with pytest.raises(OrchestrationFailed):
                    await (await client.schedule_new_orchestration(failing, input=kind)).result(timeout=30)
        entity = EntityInstanceId("refuses", "one")
        for kind in RAISED if is_plain else ():
            await anyio.to_thread.run_sync(functools.partial(signalled, scheduler, entity, kind))
        await until(functools.partial(is_idle, scheduler))
    assert runs == dict.fromkeys(RAISED, 1)


def signalled(scheduler: EmbeddedScheduler, entity: EntityInstanceId, kind: str) -> None:
    client = TaskHubGrpcClient(host_address=scheduler.endpoint)
    client.signal_entity(entity, "refuse", kind)
    client.close()


async def is_idle(scheduler: EmbeddedScheduler) -> bool:
    return not scheduler.engine.under_way()


async def test_a_cancellation_while_the_worker_stops_is_handed_back(scheduler: EmbeddedScheduler) -> None:
    """A program that ends closes its pools, too: what waited for them is made again by the next one."""
    begun, closed = anyio.Event(), anyio.Event()

    async def fetch() -> str:
        begun.set()
        await closed.wait()
        raise asyncio.CancelledError("the pool was closed")

    async def fetch_again() -> str:
        return "fetched"

    fetch_again.__name__ = "fetch"
    model = using(asks(("fetch", {})))
    async with DurableAIAgentClient.connect(scheduler.endpoint) as client:
        worker = DurableAIAgentWorker.connect(scheduler.endpoint)
        worker.add_agent(agent(model, fetch))
        handle = await client.get_agent("Worker").start("Go")
        async with anyio.create_task_group() as group, worker:
            await begun.wait()

            async def close_pool() -> None:
                async def stopping() -> bool:
                    return worker.is_stopping

                await until(stopping)
                closed.set()

            group.start_soon(close_pool)
        async with serving(scheduler, agent(model, fetch_again)):
            assert (await handle).text == "fetched"


INTERRUPTED = """
import signal
import sys
import anyio
from dafx_actors import DurableAIAgentWorker
from tests.integration.turns import agent, whenever_asked

async def wait() -> None:
    print("called", flush=True)
    await anyio.sleep_forever()

# Whoever started the tests in the background has the signal ignored, and so would this program.
signal.signal(signal.SIGINT, signal.default_int_handler)

async def main() -> None:
    worker = DurableAIAgentWorker.connect(sys.argv[1], stop_timeout=0.1)
    worker.add_agent(agent(whenever_asked(("wait", {})), wait))
    async with worker:
        print("ready", flush=True)
        await anyio.sleep_forever()

anyio.run(main)
"""


async def test_a_real_ctrl_c_ends_the_program(scheduler: EmbeddedScheduler) -> None:
    async with (
        DurableAIAgentClient.connect(scheduler.endpoint) as client,
        program(INTERRUPTED, scheduler.endpoint) as process,
    ):
        await client.get_agent("Worker").start("Go")
        assert await line_of(process) == "called"
        process.send_signal(signal.SIGINT)
        with anyio.fail_after(60):
            assert await process.wait() != 0


@pytest.fixture
async def scheduler() -> AsyncIterator[EmbeddedScheduler]:
    async with EmbeddedScheduler() as running:
        yield running


@asynccontextmanager
async def serving(scheduler: EmbeddedScheduler, *agents: object) -> AsyncGenerator[DurableAIAgentClient]:
    worker = DurableAIAgentWorker.connect(scheduler.endpoint)
    worker.add_agent(*agents)
    async with worker, DurableAIAgentClient.connect(scheduler.endpoint) as client:
        yield client
