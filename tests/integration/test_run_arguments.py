"""One list of arguments for `run`, from clients and in orchestrations; and what the peer's users call a session."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from datetime import timedelta
from typing import Any

import anyio
import pytest
from durabletask.worker import TaskHubGrpcWorker

from dafx_actors import (
    DurableAIAgentClient,
    DurableAIAgentWorker,
    Limits,
    ModelRequest,
    OrchestrationContext,
    durable_agent,
    orchestrator,
    tool,
)
from dafx_actors.errors import (
    ConfigurationError,
    OrchestrationFailed,
    SchedulerUnreachable,
    TurnDeadlineExceeded,
    TurnLimitExceeded,
    TurnTimeout,
)
from dafx_actors.scheduler import EmbeddedScheduler
from dafx_actors.testing import AgentHost, ScriptedModel
from tests.integration.turns import agent, asks

pytestmark = pytest.mark.anyio


def echo(request: ModelRequest) -> str:
    return f"{request.messages[-1].text} ({len(request.messages)})"


@orchestrator
async def in_one_session(context: OrchestrationContext, session_id: str) -> list[str]:
    worker = context.get_agent("Worker")
    session = worker.create_session(session_id=session_id)
    first = await worker.run(messages="one", session=session, correlation_id="named")
    second = await worker.run("two", thread=session, options={"seed": 1}, tool_choice="none")
    return [first.text, first.correlation_id, second.text]


@orchestrator
async def asks_in_time(context: OrchestrationContext, how: dict[str, Any]) -> str:
    if "steps" in how:
        how = {"limits": Limits(steps=how["steps"])}
    try:
        return (await context.get_agent("Worker").run("Go", **how)).text
    except (TurnTimeout, TurnDeadlineExceeded, TurnLimitExceeded) as error:
        return f"{type(error).__name__} {getattr(error, 'seconds', '')}"


class Slow:
    @tool(approval=True)
    def act(self) -> str:
        """Acts."""
        return "done"


@pytest.fixture
async def scheduler() -> AsyncGenerator[EmbeddedScheduler]:
    async with EmbeddedScheduler() as started:
        yield started


async def test_a_session_is_a_thread() -> None:
    model = ScriptedModel(*[echo] * 4)
    async with AgentHost(agent(model), orchestrators=[in_one_session]) as host:
        handle = await host.client.schedule_new_orchestration(in_one_session, input="s1")
        assert await handle == ["one (2)", "named", "two (4)"]
        worker = host.client.get_agent("Worker")
        assert (await worker.run(messages="three", session="s1")).text == "three (6)"
        assert str(worker.create_session(session_id="s1")) == "s1"
        assert worker.create_session() != worker.create_session()
        assert [entry.role for entry in await worker.get_transcript("s1")] == ["user", "assistant"] * 3
        with pytest.raises(TypeError, match="another name of `thread`"):
            await worker.run("x", session="s1", thread="s1")
        with pytest.raises(TypeError, match="another name of `thread`"):
            await worker.start("x", session="s1", thread="s2")
    assert model.requests[1].options == {"seed": 1}


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"timeout": 60}, "TurnTimeout 60"),
        ({"timeout": 60, "cancel_on_timeout": True}, "TurnDeadlineExceeded 60"),
    ],
)
async def test_an_orchestration_waits_so_long_for_a_turn(how: dict[str, Any], said: str) -> None:
    model = ScriptedModel(asks(("act", {})), "done", asks(("act", {})), "done")
    async with AgentHost(agent(model, Slow().act), orchestrators=[asks_in_time]) as host:
        handle = await host.client.schedule_new_orchestration(asks_in_time, input=how)
        await host.advance(timedelta(seconds=59))
        assert len(await host.client.pending_approvals("Worker")) == 1
        await host.advance(timedelta(seconds=2))
        assert (await handle).startswith(said)
        # The turn of the first goes on, as it says; that of the second is over.
        assert len(await host.client.pending_approvals("Worker")) == (0 if "cancel_on_timeout" in how else 1)


async def test_an_orchestration_limits_a_turn_as_a_client_does() -> None:
    model = ScriptedModel(asks(("act", {})), "done")
    async with AgentHost(agent(model, Slow().act), orchestrators=[asks_in_time]) as host:
        handle = await host.client.schedule_new_orchestration(asks_in_time, input={"steps": 2})
        assert (await handle).startswith("TurnLimitExceeded")


@pytest.mark.parametrize("how", [{"timeout": 0}, {"timeout": -1, "cancel_on_timeout": True}, {"correlation_id": "a/b"}])
async def test_what_is_wrong_in_an_orchestration_is_said_there(how: dict[str, Any]) -> None:
    async with AgentHost(agent(ScriptedModel("x")), orchestrators=[asks_in_time]) as host:
        handle = await host.client.schedule_new_orchestration(asks_in_time, input=how)
        with pytest.raises(OrchestrationFailed, match="ValueError"):
            await handle


async def test_a_client_can_see_that_the_scheduler_answers(scheduler: EmbeddedScheduler) -> None:
    async with DurableAIAgentClient.connect(scheduler.endpoint) as client:
        await client.ping()
        await client.ping(timeout=5)
    await client.aclose()
    nobody = DurableAIAgentClient.connect("http://127.0.0.1:1")
    with pytest.raises(SchedulerUnreachable):
        await nobody.ping(timeout=0.2)
    await nobody.aclose()


async def test_a_worker_that_was_started_is_closed_from_a_loop(scheduler: EmbeddedScheduler) -> None:
    worker = DurableAIAgentWorker.connect(scheduler.endpoint)
    worker.add_agent(agent(ScriptedModel("x")))
    await anyio.to_thread.run_sync(worker.start)
    async with DurableAIAgentClient.connect(scheduler.endpoint) as client:
        assert (await client.get_agent("Worker").run("Go")).text == "x"
    await worker.aclose()


# --- All agents, or none ------------------------------------------------------------------------------------------


@durable_agent
class First:
    instructions = "x"


@durable_agent
class Second:
    instructions = "x"

    @tool
    def look(self) -> str:
        """Looks."""
        return "x"


def taken(context: Any, _: Any = None) -> None: ...


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("entity", "dafx-Second"),
        ("orchestrator", "dafx-Second.turn"),
        ("orchestrator", "dafx-Second.tell"),
        ("activity", "dafx-Second.model"),
        ("activity", "dafx-Second.tool.look"),
    ],
)
def test_where_a_name_is_taken_no_agent_is_hosted(kind: str, name: str) -> None:
    inner: Any = TaskHubGrpcWorker()
    taken.__name__ = name
    _ = inner.add_entity(taken, name) if kind == "entity" else getattr(inner, f"add_{kind}")(taken)
    worker = DurableAIAgentWorker(inner)
    with pytest.raises(ConfigurationError, match=f"{name} already"):
        worker.add_agent(First, Second)
    assert worker.registered_agent_names == []
    assert inner._registry.entities.keys() <= {"dafx-second", "dafx-Second"}
    worker.add_agent(First)
    assert worker.registered_agent_names == ["First"]
