"""A worker tells what it does, through `logging`: what it hosts, and a line for each turn."""

from __future__ import annotations

import json
import logging
import re
import sys

import anyio
import pytest

from dafx_actors import DurableAIAgentWorker, durable_agent
from dafx_actors.errors import ModelError, TurnCancelled
from dafx_actors.scheduler import EmbeddedScheduler
from dafx_actors.testing import AgentHost, ScriptedModel
from tests.integration.turns import agent, asks, in_state

pytestmark = pytest.mark.anyio


def lines(caplog: pytest.LogCaptureFixture, level: int) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.name == "dafx_actors.worker" and r.levelno == level]


async def test_a_worker_says_what_it_hosts_when_it_starts(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "dafx_actors.worker")
    async with EmbeddedScheduler() as scheduler:
        worker = DurableAIAgentWorker.connect(scheduler.endpoint, "orders")
        worker.add_agent(agent(ScriptedModel("x"), name="Joker"))
        async with worker:
            pass
    (line,) = [each for each in lines(caplog, logging.INFO) if each.startswith("Worker starts")]
    port = scheduler.endpoint.rpartition(":")[2]
    assert re.match(rf"Worker starts: Joker \(ScriptedModel\); scheduler .*{port}, task hub orders; dafx_actors ", line)
    assert "durabletask 1." in line


async def test_a_worker_warns_of_an_agent_that_cannot_answer_and_starts_all_the_same(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "AZURE_OPENAI_ENDPOINT", "AZURE_OPENAI_CHAT_DEPLOYMENT_NAME"):
        monkeypatch.delenv(name, raising=False)

    @durable_agent(model="gpt-nowhere")
    class Mistaken:
        instructions = "You cannot answer."

    async with AgentHost(Mistaken, agent(ScriptedModel("Here."), name="Other")) as host:
        assert (await host.client.get_agent("Other").run("Are you there?")).text == "Here."
    (line,) = [each for each in lines(caplog, logging.WARNING) if "cannot answer" in each]
    assert line.startswith("Agent Mistaken cannot answer as it is configured: ")
    assert "gpt-nowhere" in line


async def test_each_turn_has_a_line_and_each_failure_its_cause(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "dafx_actors.worker")
    model = ScriptedModel("Ha.", ModelError("authentication", "wrong key"), asks(("none", {})), "Done.")
    async with AgentHost(agent(model)) as host:
        worker = host.client.get_agent("Worker")
        await worker.run("Hello", thread="t1", correlation_id="c1")
        with pytest.raises(ModelError):
            await worker.run("Hello", thread="t1", correlation_id="c2")
        turn = await worker.start("Hello", thread="t1", correlation_id="c3")
        await turn
        status = await turn.status()
        record = await host.client.get_orchestration("c3").state()
    assert [each for each in lines(caplog, logging.INFO) if "c1" in each][-1].startswith(
        "Turn c1 of Worker, thread t1: completed after "
    )
    (failed,) = lines(caplog, logging.WARNING)
    assert failed.startswith("Turn c2 of Worker, thread t1: failed after ")
    assert "wrong key" in failed
    assert (status.state, status.steps) == ("completed", 3)
    assert record is not None
    assert json.loads(record.serialized_custom_status or "null") == {"state": "completed", "steps": 3}


async def test_a_turn_that_was_cancelled_is_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "dafx_actors.worker")
    from tests.integration.test_run_arguments import Slow

    async with AgentHost(agent(ScriptedModel(asks(("act", {})), "Done."), Slow().act)) as host:
        turn = await host.client.get_agent("Worker").start("Hello", correlation_id="c1")
        await in_state(turn, "waiting")
        await turn.cancel("enough")
        with pytest.raises(TurnCancelled):
            await turn
    assert any("Turn c1" in each and "cancelled" in each for each in lines(caplog, logging.INFO))
    assert lines(caplog, logging.WARNING) == []


FORGETS = """
import sys
from dafx_actors import DurableAIAgentWorker, durable_agent
from dafx_actors.sync import DurableAIAgentClient

@durable_agent
class Echo:
    async def respond(self, turn):
        return turn.text

worker = DurableAIAgentWorker.connect(sys.argv[1])
worker.add_agent(Echo)
worker.start()
print(DurableAIAgentClient.connect(sys.argv[1]).get_agent("Echo").run("Hello").text)
raise RuntimeError("before it was stopped")
"""


async def test_a_worker_that_its_program_forgets_to_stop_is_stopped() -> None:
    async with EmbeddedScheduler() as scheduler:
        done = await anyio.run_process([sys.executable, "-W", "error", "-c", FORGETS, scheduler.endpoint], check=False)
    said = done.stderr.decode()
    assert (done.returncode, done.stdout.decode()) == (1, "Hello\n")
    assert "RuntimeError: before it was stopped" in said
    assert said.splitlines()[-1].startswith("The program ends without having stopped its worker")
