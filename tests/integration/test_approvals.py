"""Approvals: a tool call waits for a person, and nothing gets past that."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import anyio
import attrs
import pytest

from dafx_actors import (
    Approval,
    DurableAIAgentClient,
    RetryPolicy,
    ToolContext,
    tool,
)
from dafx_actors.decisions import call_digest
from dafx_actors.errors import ApprovalExpired, DecisionRefused, TurnSuperseded
from tests.conftest import free_port
from tests.integration.conftest import Hosting
from tests.integration.turns import (
    agent,
    asked_of,
    asks,
    in_state,
    is_balanced,
    key_of,
    program,
    results_in,
    sdk,
    until,
    using,
)
from tests.scheduler.kills import Victim

pytestmark = pytest.mark.anyio


class Till:
    """A tool that notes what was paid."""

    def __init__(self, **how: Any) -> None:
        self.paid: list[int] = []

        options: Any = {"approval": True, **how}

        @tool(**options)
        def pay(amount: int) -> str:
            """Pay."""
            self.paid.append(amount)
            return f"paid {amount}"

        self.tool = pay

    def agent(self, *amounts: int, **how: Any) -> type:
        """Asks to pay these amounts, all at once."""
        return agent(using(asks(*[("pay", {"amount": amount}) for amount in amounts])), self.tool, **how)


async def test_an_approved_call_is_made_and_the_transcript_says_who_and_when(hosting: Hosting) -> None:
    till = Till()
    async with hosting(till.agent(5)) as client:
        worker = client.get_agent("Worker")
        handle = await worker.start("Pay", thread="here", correlation_id="t1")
        pending = await asked_of(client)
        assert (pending.tool, pending.arguments, pending.key, pending.deadline) == (
            "pay",
            {"amount": 5},
            key_of("t1"),
            None,
        )
        await in_state(handle, "waiting")
        assert till.paid == []
        decision = await client.approve(pending, by="ana@example.com", reason="small")
        answer = await handle
        (result,) = results_in(await worker.get_transcript(answer.thread))
        assert await client.pending_approvals("Worker") == []
    assert (answer.text, till.paid) == ("paid 5", [5])
    kept = result.extra["dafx"]["decision"]
    assert (kept["action"], kept["by"], kept["reason"]) == ("approve", "ana@example.com", "small")
    assert (
        kept["at"] == decision.at.isoformat().replace("+00:00", "Z") or decision.at.isoformat()[:19] == kept["at"][:19]
    )


async def test_a_denied_call_is_not_made_and_the_model_hears_why(hosting: Hosting) -> None:
    till = Till()
    async with hosting(till.agent(5)) as client:
        handle = await client.get_agent("Worker").start("Pay")
        await client.deny(await asked_of(client), "no money", by="bob")
        answer = await handle
        (result,) = results_in(await client.get_agent("Worker").get_transcript(answer.thread))
    assert (answer.text, till.paid) == ("Error: the call was not made: a person denied it: no money", [])
    assert result.extra["dafx"]["decision"]["by"] == "bob"


async def test_arguments_are_edited_only_explicitly(hosting: Hosting) -> None:
    till = Till()
    async with hosting(till.agent(5)) as client:
        handle = await client.get_agent("Worker").start("Pay")
        await client.approve(await asked_of(client), arguments={"amount": 3}, by="ana")
        answer = await handle
        (result,) = results_in(await client.get_agent("Worker").get_transcript(answer.thread))
    assert (answer.text, till.paid) == ("paid 3", [3])
    assert result.extra["dafx"]["decision"]["arguments"] == {"amount": 3}


async def test_edited_arguments_that_do_not_fit_are_told_to_whoever_edited_them(hosting: Hosting) -> None:
    till = Till()
    async with hosting(till.agent(5)) as client:
        handle = await client.get_agent("Worker").start("Pay")
        pending = await asked_of(client)
        with pytest.raises(DecisionRefused, match="amount"):
            await client.approve(pending, arguments={"amount": "much"})
        await client.approve(pending, arguments={"amount": 6})
        await handle
    assert till.paid == [6]


async def test_a_predicate_says_which_calls_wait(hosting: Hosting) -> None:
    def is_much(amount: int) -> bool:
        return amount > 100

    till = Till(approval=is_much)
    async with hosting(till.agent(5, 500)) as client:
        handle = await client.get_agent("Worker").start("Pay")
        pending = await asked_of(client)

        async def small_one_is_paid() -> bool:
            return till.paid == [5]

        await until(small_one_is_paid)
        assert pending.arguments == {"amount": 500}
        await client.approve(pending)
        await handle
    assert till.paid == [5, 500]


async def test_a_predicate_that_fails_lets_nothing_pass(hosting: Hosting) -> None:
    def broken(amount: int) -> bool:
        raise KeyError(amount)

    till = Till(approval=broken)
    async with hosting(till.agent(5)) as client:
        handle = await client.get_agent("Worker").start("Pay")
        pending = await asked_of(client)
        assert till.paid == []
        await client.approve(pending)
        await handle
    assert till.paid == [5]


@pytest.mark.parametrize("on_timeout", ["deny", "fail"])
async def test_a_deadline_decides_where_nobody_does(hosting: Hosting, on_timeout: Any) -> None:
    till = Till(approval=Approval(timeout=timedelta(seconds=0.3), on_timeout=on_timeout))
    async with hosting(till.agent(5)) as client:
        worker = client.get_agent("Worker")
        handle = await worker.start("Pay", thread="here")
        pending = await asked_of(client)
        assert pending.deadline is not None
        assert pending.deadline - pending.asked_at == timedelta(seconds=0.3)
        if on_timeout == "fail":
            with pytest.raises(ApprovalExpired) as caught:
                await handle
            assert (caught.value.tool, caught.value.seconds) == ("pay", 0.3)
        else:
            assert (await handle).text == "Error: the call was not made: nobody approved it in time"
        with pytest.raises(DecisionRefused):
            await client.approve(pending)
        transcript = await worker.get_transcript("here")
    assert till.paid == []
    assert is_balanced(transcript)
    assert results_in(transcript)[0].extra["dafx"]["decision"]["action"] == "expire"


async def test_an_expired_call_fails_the_turn_also_while_another_waits(hosting: Hosting) -> None:
    short = Till(approval=Approval(timeout=0.3, on_timeout="fail"))

    @tool(approval=True)
    def ship() -> str:
        return "shipped"

    model = using(asks(("ship", {}), ("pay", {"amount": 5})))
    async with hosting(agent(model, short.tool, ship)) as client:
        worker = client.get_agent("Worker")
        with pytest.raises(ApprovalExpired):
            await worker.run("Pay", thread="here")
        assert await client.pending_approvals("Worker") == []
        assert is_balanced(await worker.get_transcript("here"))


async def test_the_same_decision_again_is_fine_and_another_is_refused(hosting: Hosting) -> None:
    till = Till()
    async with hosting(till.agent(5, 6)) as client:
        handle = await client.get_agent("Worker").start("Pay", correlation_id="t1")
        await asked_of(client)
        first, second = await client.pending_approvals("Worker")
        made = await client.approve(first, by="ana")
        assert await client.approve(first, by="ana") == made
        with pytest.raises(DecisionRefused) as caught:
            await client.deny(first, by="bob")
        assert (caught.value.why, "approve by ana" in str(caught.value)) == ("decided", True)
        with pytest.raises(DecisionRefused):
            await client.approve(first, arguments={"amount": 7})
        await client.deny(second)
        answer = await handle
        with pytest.raises(DecisionRefused) as late:
            await client.approve(second)
    assert late.value.why == "not_pending"
    assert answer.text == "paid 5; Error: the call was not made: a person denied it"
    assert till.paid == [5]


async def test_a_decision_counts_for_the_very_call_only(hosting: Hosting) -> None:
    till = Till()
    async with hosting(till.agent(5)) as client:
        handle = await client.get_agent("Worker").start("Pay")
        pending = await asked_of(client)
        other = {"amount": 5_000}
        changed = attrs.evolve(pending, arguments=other, digest=call_digest("pay", other))
        with pytest.raises(DecisionRefused) as caught:
            await client.approve(changed)
        await client.approve(pending)
        await handle
    assert caught.value.why == "changed"
    assert till.paid == [5]


@pytest.mark.parametrize("data", [{"action": "approve"}, {"action": "deny"}, "approve", None, {}])
async def test_a_raw_event_decides_nothing(hosting: Hosting, endpoint: str, data: Any) -> None:
    till = Till()
    async with hosting(till.agent(5)) as client, sdk(endpoint) as operator:
        handle = await client.get_agent("Worker").start("Pay", correlation_id="t1")
        pending = await asked_of(client)
        for _ in range(2):
            await operator.raise_orchestration_event("t1", f"decision.{pending.key}", data=data)
        # What is raised is taken in the order of its arrival: this one comes after those.
        await client.approve(pending, by="ana")
        answer = await handle
        (result,) = results_in(await client.get_agent("Worker").get_transcript(answer.thread))
    assert (answer.text, till.paid) == ("paid 5", [5])
    assert result.extra["dafx"]["decision"]["by"] == "ana"


async def test_a_retry_needs_no_second_approval_and_keeps_the_first(hosting: Hosting) -> None:
    attempts: list[int] = []

    @tool(approval=True, retry=RetryPolicy(first_retry_interval=timedelta(milliseconds=10), max_number_of_attempts=3))
    async def pay(amount: int, context: ToolContext) -> str:
        attempts.append(context.attempt)
        if context.attempt < 3:
            raise ConnectionError("not yet")
        return f"paid {amount}"

    async with hosting(agent(using(asks(("pay", {"amount": 5}))), pay)) as client:
        handle = await client.get_agent("Worker").start("Pay")
        await client.approve(await asked_of(client), by="ana")
        answer = await handle
        (result,) = results_in(await client.get_agent("Worker").get_transcript(answer.thread))
    assert (answer.text, attempts) == ("paid 5", [1, 2, 3])
    assert result.extra["dafx"]["decision"]["by"] == "ana"


async def test_the_status_says_waiting_only_while_somebody_is_waited_for(hosting: Hosting) -> None:
    release = anyio.Event()

    @tool(approval=True)
    async def pay() -> str:
        await release.wait()
        return "paid"

    async with hosting(agent(using(asks(("pay", {}))), pay)) as client:
        handle = await client.get_agent("Worker").start("Pay")
        pending = await asked_of(client)
        await in_state(handle, "waiting")
        await client.approve(pending)
        await in_state(handle, "running")
        release.set()
        await handle


async def test_who_approved_is_in_the_transcript_also_when_the_turn_is_cancelled_then(hosting: Hosting) -> None:
    begun, release = anyio.Event(), anyio.Event()

    @tool(approval=True)
    async def pay() -> str:
        begun.set()
        await release.wait()
        return "paid"

    async with hosting(agent(using(asks(("pay", {}))), pay)) as client:
        worker = client.get_agent("Worker")
        handle = await worker.start("Pay", thread="here")
        await client.approve(await asked_of(client), by="ana")
        await begun.wait()
        assert await handle.cancel()
        await in_state(handle, "cancelled")
        release.set()
        transcript = await worker.get_transcript("here")
    (result,) = results_in(transcript)
    assert result.extra["dafx"]["decision"]["by"] == "ana"


DECIDES = """
import sys
import anyio
from dafx_actors import DurableAIAgentClient

async def main():
    print("ready", flush=True)
    async with DurableAIAgentClient.connect(sys.argv[1]) as client:
        (pending,) = await client.pending_approvals("Worker")
        await client.approve(pending, by="another process")

anyio.run(main)
"""


async def test_another_process_may_decide(hosting: Hosting, endpoint: str) -> None:
    till = Till()
    async with hosting(till.agent(5)) as client:
        handle = await client.get_agent("Worker").start("Pay")
        await asked_of(client)
        async with program(DECIDES, endpoint) as process:
            await handle
            assert await process.wait() == 0
        (result,) = results_in(await client.get_agent("Worker").get_transcript(await handle.thread()))
    assert result.extra["dafx"]["decision"]["by"] == "another process"


CASHIER = """
import sys
import anyio
from dafx_actors import DurableAIAgentWorker, durable_agent, tool
from tests.integration.turns import whenever_asked

@durable_agent(model=whenever_asked(("pay", {"amount": 5})))
class Worker:
    instructions = "Pay."

    @tool(approval=True)
    def pay(self, amount: int) -> str:
        with open(sys.argv[2], "a") as book:
            book.write(f"{amount}\\n")
        return f"paid {amount}"

worker = DurableAIAgentWorker.connect(sys.argv[1])
worker.add_agent(Worker)
worker.start()
print("ready", flush=True)
sys.stdin.read()
"""


async def test_a_call_that_waits_survives_kill_9_of_its_worker_and_of_the_scheduler(tmp_path: Path) -> None:
    port, book = free_port(), tmp_path / "book"
    endpoint = f"http://127.0.0.1:{port}"
    options = ["--port", str(port), "--db", str(tmp_path / "dafx.db"), "--log-level", "error"]
    scheduler = Victim("scheduler", ["-m", "dafx_actors.cli", "scheduler", *options])
    worker = Victim("worker", ["-c", CASHIER, endpoint, str(book)])
    try:
        for victim in (scheduler, worker):
            victim.start()
            await victim.ready()
        async with DurableAIAgentClient.connect(endpoint) as client:
            handle = await client.get_agent("Worker").start("Pay")
            before = await asked_of(client)
            for victim in (worker, scheduler):
                victim.kill()
            assert not book.exists()
            for victim in (scheduler, worker):
                victim.start()
                await victim.ready()
            after = await asked_of(client)
            await client.approve(after, by="ana")
            answer = await handle
    finally:
        for victim in (worker, scheduler):
            if victim.process is not None:
                victim.kill()
    assert after == before
    assert (answer.text, book.read_text()) == ("paid 5", "5\n")


@pytest.mark.parametrize("operation", ["reset", "delete"])
async def test_a_turn_that_waits_hears_that_its_thread_has_forgotten_it(
    hosting: Hosting, endpoint: str, operation: str
) -> None:
    till = Till()
    async with hosting(till.agent(5)) as client, sdk(endpoint) as operator:
        worker = client.get_agent("Worker")
        handle = await worker.start("Pay", thread="here")
        pending = await asked_of(client)
        await operator.signal_entity(pending.thread.entity_id, operation)
        with pytest.raises(TurnSuperseded, match="the thread was reset or deleted"):
            await handle
        assert till.paid == []
        assert await client.pending_approvals("Worker") == []


async def test_the_next_in_line_has_the_thread_when_the_turn_that_waited_is_forgotten(
    hosting: Hosting, endpoint: str
) -> None:
    till = Till()
    async with hosting(till.agent(5)) as client, sdk(endpoint) as operator:
        worker = client.get_agent("Worker")
        first = await worker.start("Pay", thread="here", correlation_id="t1")
        pending = await asked_of(client)
        second = await worker.start("Pay", thread="here", correlation_id="t2")
        await in_state(second, "queued")
        await operator.signal_entity(pending.thread.entity_id, "reset")
        with pytest.raises(TurnSuperseded):
            await first
        await second
        assert till.paid == []
