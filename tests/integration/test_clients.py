"""Clients, over real schedulers: what is withdrawn, and sent again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from durabletask.client import OrchestrationStatus, TaskHubGrpcClient

from dafx_actors import DurableAIAgentClient, DurableAIAgentWorker, ModelRequest, RunOptions, TurnHandle, tool
from dafx_actors._durable.backend import Backend
from dafx_actors._durable.calls import Sent
from dafx_actors._durable.connect import Address
from dafx_actors.errors import AgentNotHosted, CorrelationConflict, TurnCancelled, TurnTerminated, TurnTimeout
from dafx_actors.scheduler import EmbeddedScheduler
from dafx_actors.testing import ScriptedModel
from tests.conftest import free_port
from tests.integration.test_conversations import agent_with, echo
from tests.integration.turns import agent, asked_of, asks, in_state, until, using

pytestmark = pytest.mark.anyio

LOST: RunOptions = {"correlation_id": "order-1", "thread": "t1"}


async def hosts(client: DurableAIAgentClient, name: str, *, now: bool = True) -> None:
    """Wait until the scheduler says that a worker hosts the agent, or that none does."""

    async def seen() -> bool:
        found = await client._backend.hosted()
        return found is not None and found.orchestrations.take(f"dafx-{name}.turn") == now

    await until(seen)


def counting() -> tuple[ScriptedModel, Counter[str]]:
    """A model, and how often it was asked what."""
    asked: Counter[str] = Counter()

    def answer(request: ModelRequest) -> str:
        asked[request.messages[-1].text] += 1
        return echo(request)

    return ScriptedModel(answer), asked


@contextmanager
def wrapped(endpoint: str) -> Generator[DurableAIAgentClient]:
    """A client whose scheduler cannot tell what is hosted, as far as it knows, and does not see to withdrawals."""
    client = TaskHubGrpcClient(host_address=endpoint.removeprefix("http://"))
    try:
        yield DurableAIAgentClient(client, start_timeout=0.3)
    finally:
        client.close()


# --- A correlation id is not burnt by what nobody did --------------------------------------------------------------


@pytest.mark.parametrize("kind", ["connected", "wrapped"])
async def test_a_request_that_was_withdrawn_can_be_sent_again_under_its_id(endpoint: str, kind: str) -> None:
    model, asked = counting()
    worker = DurableAIAgentWorker.connect(endpoint)
    worker.add_agent(agent_with(model))
    async with DurableAIAgentClient.connect(endpoint, start_timeout=0.3) as connected:
        with wrapped(endpoint) as other:
            client = connected if kind == "connected" else other
            joker = client.get_agent("Joker")
            for _ in range(2):
                with pytest.raises(AgentNotHosted):
                    await joker.run("Hello", **LOST)
            async with worker:
                answers = [await joker.run("Hello", timeout=60, **LOST) for _ in range(2)]
                transcript = await joker.get_transcript("t1")
    assert [answer.text for answer in answers] == ["Hello (2 messages)"] * 2
    assert asked == {"Hello": 1}
    assert len(transcript.entries) == 2


@pytest.mark.parametrize("endpoint", ["embedded"], indirect=True)
async def test_whoever_waits_for_a_withdrawn_turn_hears_that_nobody_hosts_it(endpoint: str) -> None:
    async with DurableAIAgentClient.connect(endpoint, start_timeout=0.3) as client:
        joker = client.get_agent("Joker")
        with pytest.raises(AgentNotHosted):
            await joker.run("Hello", **LOST)
        with pytest.raises(AgentNotHosted) as caught:
            await joker.get_turn("order-1").result(timeout=30)
        status = await joker.get_turn("order-1").status()
    assert (caught.value.seconds, caught.value.hosted) == (0.3, ())
    assert status.state == "terminated"


@pytest.mark.parametrize("endpoint", ["embedded"], indirect=True)
async def test_another_request_may_have_the_id_of_one_that_was_withdrawn(endpoint: str) -> None:
    """Nobody has done anything under it: a name was mistyped, say."""
    worker = DurableAIAgentWorker.connect(endpoint)
    worker.add_agent(agent_with(ScriptedModel(echo)))
    async with DurableAIAgentClient.connect(endpoint, start_timeout=0.3) as client:
        with pytest.raises(AgentNotHosted):
            await client.get_agent("Jokr").run("Hello", **LOST)
        async with worker:
            answer = await client.get_agent("Joker").run("Hello!", correlation_id="order-1", timeout=60)
            with pytest.raises(CorrelationConflict):
                await client.get_agent("Joker").run("Hello?", correlation_id="order-1", timeout=60)
    assert answer.text == "Hello! (2 messages)"


@pytest.mark.parametrize("reason", ["withdrawn: no worker took the turn", '{"dafx": "withdrawn"}', ""])
@pytest.mark.parametrize("endpoint", ["embedded"], indirect=True)
async def test_a_request_that_a_person_terminated_does_not_start_again(endpoint: str, reason: str) -> None:
    model, asked = counting()
    worker = DurableAIAgentWorker.connect(endpoint)
    worker.add_agent(agent_with(model))
    async with DurableAIAgentClient.connect(endpoint) as client:
        joker = client.get_agent("Joker")
        await joker.start("Hello", **LOST)
        await client.get_orchestration("order-1").terminate(reason)
        async with worker:
            with pytest.raises(TurnTerminated):
                await joker.run("Hello", timeout=60, **LOST)
    assert not asked


@pytest.mark.parametrize("endpoint", ["embedded"], indirect=True)
async def test_a_request_that_a_person_cancelled_does_not_start_again(endpoint: str) -> None:
    release = anyio.Event()

    async def slow(request: ModelRequest) -> str:
        await release.wait()
        return echo(request)

    worker = DurableAIAgentWorker.connect(endpoint)
    worker.add_agent(agent_with(ScriptedModel(slow)))
    async with DurableAIAgentClient.connect(endpoint) as client, worker:
        joker = client.get_agent("Joker")
        turn = await joker.start("Hello", **LOST)
        await in_state(turn, "running")
        assert await turn.cancel()
        for _ in range(2):
            with pytest.raises(TurnCancelled):
                await joker.run("Hello", timeout=60, **LOST)
        release.set()


@pytest.mark.parametrize("endpoint", ["embedded"], indirect=True)
async def test_many_clients_that_send_a_withdrawn_request_again_start_it_once(endpoint: str) -> None:
    model, asked = counting()
    worker = DurableAIAgentWorker.connect(endpoint)
    worker.add_agent(agent_with(model))
    async with DurableAIAgentClient.connect(endpoint, start_timeout=0.3) as client:
        with pytest.raises(AgentNotHosted):
            await client.get_agent("Joker").run("Hello", **LOST)
        answers: list[str] = []

        async def ask(each: DurableAIAgentClient) -> None:
            answers.append((await each.get_agent("Joker").run("Hello", timeout=60, **LOST)).text)

        async with worker, anyio.create_task_group() as tasks:
            await hosts(client, "Joker")
            for _ in range(20):
                tasks.start_soon(ask, client)
        async with worker:
            await ask(client)
    assert answers == ["Hello (2 messages)"] * 21
    assert asked == {"Hello": 1}


class LateBackend(Backend):
    """Looks at a turn, and has all the world happen before it ends it: its process was stopped, say."""

    turn: TurnHandle[Any]

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.has_looked = anyio.Event()

    async def withdraw(self, instance_id: str, output: Any) -> bool:
        if self.sees_to_it:
            await self.sleep()
        return await super().withdraw(instance_id, output)

    async def terminate(self, instance_id: str, reason: Any, sent: Sent | None = None) -> None:
        await self.sleep()
        await super().terminate(instance_id, reason, sent)

    async def sleep(self) -> None:
        self.has_looked.set()
        await in_state(self.turn, "waiting")

    @property
    def sees_to_it(self) -> bool:
        return self.where.endpoint.startswith("http://")


@pytest.mark.parametrize("sees_to_it", [True, False])
@pytest.mark.parametrize("endpoint", ["embedded"], indirect=True)
async def test_a_turn_that_a_worker_took_in_the_moment_of_its_withdrawal_does_not_act_twice(
    endpoint: str, sees_to_it: bool
) -> None:
    """The scheduler sees to it that such a turn goes on. Where one does not, it is over, and told so for ever."""
    paid: list[float] = []

    def pay(amount: float) -> str:
        paid.append(amount)
        return "paid"

    def sign() -> str:
        return "signed"

    model = using(asks(("pay", {"amount": 5})), asks(("sign", {})))
    worker = DurableAIAgentWorker.connect(endpoint)
    worker.add_agent(agent(model, pay, tool(approval=True)(sign)))
    async with DurableAIAgentClient.connect(endpoint) as client:
        turn = await client.get_agent("Worker").start("Pay.", **LOST)
        late = LateBackend(client._backend._client, Address(endpoint if sees_to_it else "h:1", "default"))
        late.turn = turn
        slow = DurableAIAgentClient(client._backend._client)
        slow._use(late, 0.2)
        heard: list[str] = []

        async def wait() -> None:
            try:
                heard.append((await slow.get_agent("Worker").get_turn("order-1").result(timeout=60)).text)
            except TurnTerminated as error:
                heard.append(str(error))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            await late.has_looked.wait()
            async with worker:
                if sees_to_it:
                    await client.approve(await asked_of(client))
                    assert (await turn).text == "signed"
                else:
                    await until(lambda: _is(bool(heard)))
                    for _ in range(2):
                        with pytest.raises(TurnTerminated, match="withdrawn"):
                            await client.get_agent("Worker").run("Pay.", timeout=60, **LOST)
    assert paid == [5.0]
    assert heard == ["signed"] if sees_to_it else "withdrawn" in heard[0]


# --- How long a worker is waited for ------------------------------------------------------------------------------


async def test_the_scheduler_remembers_through_its_own_restart_who_is_about_to_come_back(tmp_path: Path) -> None:
    """A client that has never seen the agent waits as long as it says, and is answered when a worker is back."""
    model, port = ScriptedModel(echo), free_port()

    def worker() -> DurableAIAgentWorker:
        made = DurableAIAgentWorker.connect(f"http://127.0.0.1:{port}")
        made.add_agent(agent_with(model))
        return made

    async with (
        EmbeddedScheduler(db=tmp_path / "dafx.db", port=port) as scheduler,
        DurableAIAgentClient.connect(scheduler.endpoint) as client,
        worker(),
    ):
        await hosts(client, "Joker")
    async with (
        EmbeddedScheduler(db=tmp_path / "dafx.db", port=port) as scheduler,
        DurableAIAgentClient.connect(scheduler.endpoint) as client,
    ):
        joker, answers = client.get_agent("Joker"), list[str]()

        async def ask(timeout: float | None) -> None:
            answers.append((await joker.run("Still?", timeout=timeout)).text)

        with pytest.raises(TurnTimeout):  # and not withdrawn, which would take a second
            await joker.run("Are you there?", timeout=2.0, **LOST)
        async with anyio.create_task_group() as tasks:
            for timeout in (None, 60.0):
                tasks.start_soon(ask, timeout)
            await anyio.sleep(1.5)  # past the look at which an unknown agent's turn is withdrawn
            async with worker():
                answers.append((await joker.run("Are you there?", timeout=60, **LOST)).text)
                await until(lambda: _is(len(answers) == 3))
    assert len(answers) == 3


@pytest.mark.parametrize("endpoint", ["embedded"], indirect=True)
async def test_an_agent_that_this_client_has_seen_is_waited_for_while_its_worker_is_restarted(endpoint: str) -> None:
    """As long as the caller's timeout; without one, for more than the second that an unknown agent gets."""
    model, asked = counting()

    def worker() -> DurableAIAgentWorker:
        made = DurableAIAgentWorker.connect(endpoint)
        made.add_agent(agent_with(model))
        return made

    async with DurableAIAgentClient.connect(endpoint) as client:
        joker, answers = client.get_agent("Joker"), list[str]()
        async with worker():
            await joker.run("Hello")
        await hosts(client, "Joker", now=False)
        with pytest.raises(TurnTimeout):  # and not withdrawn, which would take a second
            await joker.run("Are you there?", timeout=2.0, **LOST)

        async def ask(timeout: float | None) -> None:
            answers.append((await joker.run("Still?", timeout=timeout)).text)

        async with anyio.create_task_group() as tasks:
            for timeout in (None, 60.0):
                tasks.start_soon(ask, timeout)
            await anyio.sleep(1.5)  # past the look at which an unknown agent's turn is withdrawn
            async with worker():
                answers.append((await joker.run("Are you there?", timeout=60, **LOST)).text)
                await until(lambda: _is(len(answers) == 3))
    assert asked == {"Hello": 1, "Are you there?": 1, "Still?": 2}


async def _is(fact: bool) -> bool:
    return fact


# --- What waits for a person --------------------------------------------------------------------------------------


@pytest.mark.parametrize("endpoint", ["embedded"], indirect=True)
async def test_what_is_decided_or_cancelled_waits_for_nobody(endpoint: str) -> None:
    def sign(page: int) -> str:
        return f"signed {page}"

    worker = DurableAIAgentWorker.connect(endpoint)
    worker.add_agent(agent(using(asks(("sign", {"page": 1}), ("sign", {"page": 2}))), tool(approval=True)(sign)))
    async with DurableAIAgentClient.connect(endpoint) as client, worker:
        turn = await client.get_agent("Worker").start("Sign.", **LOST)

        async def both() -> list[Any]:
            found = await client.pending_approvals("Worker", "t1")
            return found if len(found) == 2 else []

        first, second = await until(both)
        await client.approve(first)
        for where in ("t1", None):
            left = await client.pending_approvals("Worker", where)
            assert [asked.key for asked in left] == [second.key]
        assert await turn.cancel("enough")
        for where in ("t1", None):
            assert await client.pending_approvals("Worker", where) == []
        with pytest.raises(TurnCancelled):
            await turn


async def test_only_what_no_worker_has_begun_is_withdrawn(tmp_path: Path) -> None:
    async with (
        EmbeddedScheduler(db=tmp_path / "dafx.db") as scheduler,
        DurableAIAgentClient.connect(scheduler.endpoint) as client,
    ):
        backend = client._backend
        assert not await backend.withdraw("nobody", {"x": 1})
        await backend.start("o", "o-1", None)
        assert await backend.withdraw("o-1", {"x": 1})
        assert not await backend.withdraw("o-1", {"x": 2})
        state = await backend.state("o-1")
        assert state is not None
        assert (state.runtime_status, state.serialized_output) == (OrchestrationStatus.TERMINATED, '{"x": 1}')
        assert not await backend.was_begun("o-1")
        assert await backend.start("o", "o-1", None, replaces=OrchestrationStatus.TERMINATED)
        assert not await backend.start("o", "o-1", None, replaces=OrchestrationStatus.TERMINATED)
