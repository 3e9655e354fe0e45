"""Decisions of persons: kept while no worker is there; and whoever decided hears what became of them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import pytest
from durabletask.testing import create_test_backend

from dafx_actors import (
    DecisionAccepted,
    DecisionStored,
    DurableAIAgentClient,
    PendingApproval,
    TurnHandle,
    tool,
)
from dafx_actors._json.books import DecisionRecord
from dafx_actors._json.operations import Decide
from dafx_actors.errors import (
    DecisionRefused,
    SchedulerUnreachable,
    TurnSuperseded,
    TurnTerminated,
    TurnTimeout,
    ValueMismatch,
)
from dafx_actors.ids import AgentThread, tell_name, telling_id
from dafx_actors.scheduler import EmbeddedScheduler
from dafx_actors.testing import ScriptedModel
from tests.conftest import free_port
from tests.integration.conftest import Hosting
from tests.integration.test_approvals import CASHIER, Till
from tests.integration.turns import agent, asked_of, in_state, key_of, results_in, sdk, whenever_asked
from tests.scheduler.kills import Victim

pytestmark = pytest.mark.anyio

HERE = AgentThread("Worker", "here")
AT_ONCE = 0.2
"""Seconds for which nobody waits in vain for a worker that is not there."""


@pytest.fixture(params=["embedded on disk", "embedded in memory", "durabletask"])
def endpoint(request: pytest.FixtureRequest, tmp_path: Path) -> Generator[str]:
    """Each scheduler that is at hand."""
    if request.param == "durabletask":
        port = free_port()
        backend = create_test_backend(port=port)
        yield f"http://127.0.0.1:{port}"
        backend.stop()
        return
    db = tmp_path / "dafx.db" if request.param == "embedded on disk" else None
    with EmbeddedScheduler(db=db).on_a_thread() as scheduler:
        yield scheduler.endpoint


@asynccontextmanager
async def left_alone(
    hosting: Hosting, endpoint: str, worker: type
) -> AsyncGenerator[tuple[DurableAIAgentClient, TurnHandle[None], PendingApproval]]:
    """A turn whose call waits for a person, while no worker is there."""
    async with hosting(worker) as client:
        await client.get_agent("Worker").start("Pay", thread="here", correlation_id="t1")
        pending = await asked_of(client)
    async with DurableAIAgentClient.connect(endpoint) as client:
        yield client, client.get_agent("Worker").get_turn("t1"), pending


async def stored(decide: Callable[..., Awaitable[Any]], *asked: PendingApproval, **how: Any) -> DecisionStored:
    """A decision that is kept while no worker is there. It is sent again where the scheduler is slow to take it."""
    with anyio.fail_after(60):
        while True:
            with suppress(TurnTimeout, SchedulerUnreachable):
                decision = await decide(*asked, timeout=AT_ONCE, **how)
                assert isinstance(decision, DecisionStored)
                return decision


def accepted(decision: DecisionAccepted | DecisionStored) -> DecisionAccepted:
    assert isinstance(decision, DecisionAccepted)
    return decision


# --- No worker is there -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("action", ["approve", "deny"])
async def test_a_decision_needs_no_worker(hosting: Hosting, endpoint: str, action: str) -> None:
    till = Till()
    worker = till.agent(5)
    async with left_alone(hosting, endpoint, worker) as (client, handle, pending):
        decide = client.approve if action == "approve" else client.deny
        kept = await stored(decide, pending, by="ana", reason="so")
        assert (kept.action, kept.by, kept.reason, kept.key, kept.digest) == (
            action,
            "ana",
            "so",
            pending.key,
            pending.digest,
        )
        assert "told of it as soon as a worker of agent 'Worker' is there" in str(kept)
        with pytest.raises(TurnTimeout, match="it may be on record, or follow"):
            await kept.outcome(AT_ONCE)
        assert await client.pending_approvals("Worker", "here") == [pending]
        async with hosting(worker):
            made = await kept.outcome(60)
            answer = await handle.result(60)
            assert await client.pending_approvals("Worker", "here") == []
            # Who comes late with the same hears the same, although the turn has ended.
            assert await decide(pending, by="ana", reason="so") == made
    assert (made.action, made.by, made.reason, made.at) == (action, "ana", "so", kept.at)
    assert (made.thread, made.correlation_id, made.key) == (HERE, "t1", pending.key)
    assert (made.tool, made.call_arguments, made.note) == ("pay", {"amount": 5}, "")
    assert till.paid == ([5] if action == "approve" else [])
    assert ("paid 5" in answer.text) == (action == "approve")


async def test_the_same_decision_is_stored_once_and_of_contrary_ones_the_first_counts(
    hosting: Hosting, endpoint: str
) -> None:
    till = Till()
    worker = till.agent(5)
    async with (
        left_alone(hosting, endpoint, worker) as (client, handle, pending),
        DurableAIAgentClient.connect(endpoint) as another,
    ):
        first = await stored(client.approve, pending, by="ana")
        again = await stored(another.approve, pending, by="ana")
        contrary = await stored(client.deny, pending, by="bob")
        third = await stored(client.approve, pending, arguments={"amount": 4}, by="ana")
        assert again.instance_id == first.instance_id
        assert len({first.instance_id, contrary.instance_id, third.instance_id}) == 3
        heard: list[DecisionAccepted | DecisionRefused] = []
        async with hosting(worker):
            for each in (first, again, contrary, third):
                try:
                    heard.append(await each.outcome(60))
                except DecisionRefused as error:
                    heard.append(error)
            await handle.result(60)
    assert heard[0] == heard[1] or (isinstance(heard[0], DecisionRefused) and isinstance(heard[1], DecisionRefused))
    (won,) = [each for each in heard[1:] if isinstance(each, DecisionAccepted)]
    assert all(each.why == "decided" for each in heard if isinstance(each, DecisionRefused))
    assert till.paid == ([] if won.action == "deny" else [won.call_arguments["amount"]])


async def test_nobody_elses_work_stands_in_the_place_of_a_decision(hosting: Hosting, endpoint: str) -> None:
    till = Till()
    worker = till.agent(5)
    async with left_alone(hosting, endpoint, worker) as (client, handle, pending), sdk(endpoint) as stranger:
        record = DecisionRecord({"action": "approve", "by": "ana", "at": "2026-01-01T00:00:00Z"})
        decide = Decide(turn="t1", key=pending.key, digest=pending.digest, decision=record)
        taken = telling_id(HERE, decide.timeless)
        await stranger.schedule_new_orchestration(
            tell_name("Worker"),
            input={"thread": "here", "operation": "decide", "input": {**decide.dump(), "digest": "another"}},
            instance_id=taken,
        )
        kept = await stored(client.approve, pending, by="ana")
        assert kept.instance_id != taken
        async with hosting(worker):
            assert (await kept.outcome(60)).by == "ana"
            assert (await handle.result(60)).text == "paid 5"


async def test_a_decision_that_somebody_has_ended_is_told_so_and_can_be_sent_again(
    hosting: Hosting, endpoint: str
) -> None:
    till = Till()
    worker = till.agent(5)
    async with left_alone(hosting, endpoint, worker) as (client, handle, pending), sdk(endpoint) as operator:
        first = await stored(client.approve, pending)
        await operator.terminate_orchestration(first.instance_id)
        second = await stored(client.approve, pending)
        async with hosting(worker):
            with pytest.raises(TurnTerminated, match="send it again"):
                await first.outcome(60)
            # Some schedulers show that it has ended only where a worker takes it.
            again = await client.approve(pending, timeout=60)
            assert second.action == "approve"
            assert accepted(again).tool == "pay"
            assert (await handle.result(60)).text == "paid 5"


@pytest.mark.parametrize("operation", ["cancel", "reset", "delete"])
async def test_a_decision_that_comes_too_late_is_refused_on_record(
    hosting: Hosting, endpoint: str, operation: str
) -> None:
    till = Till()
    worker = till.agent(5)
    async with left_alone(hosting, endpoint, worker) as (client, handle, pending), sdk(endpoint) as operator:
        kept = await stored(client.approve, pending)
        told = {"correlationId": "t1", "mark": {}} if operation == "cancel" else None
        await operator.signal_entity(HERE.entity_id, operation, told)
        async with hosting(worker):
            for _ in range(2):  # whoever asks, and however often
                with pytest.raises(DecisionRefused) as caught:
                    await kept.outcome(60)
                assert caught.value.why == "not_pending"
            if operation == "cancel":
                assert await handle.cancel()
            else:
                with pytest.raises(TurnSuperseded):
                    await handle.result(60)
    assert till.paid == []


# --- A call that was not listed -----------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["id", "thread", "turn"])
@pytest.mark.parametrize("digest", [True, False])
async def test_a_call_is_named_without_a_listing(hosting: Hosting, form: str, digest: bool) -> None:
    till = Till()
    async with hosting(till.agent(5)) as client:
        handle = await client.get_agent("Worker").start("Pay", thread="here", correlation_id="t1")
        seen = (await asked_of(client)).digest if digest else None
        forms: dict[str, dict[str, Any]] = {
            "id": {"thread": "here", "agent": "Worker"},
            "thread": {"thread": HERE},
            "turn": {"thread": client.get_agent("Worker").get_turn("t1")},
        }
        await asked_of(client)
        made = accepted(await client.approve(key=key_of("t1"), digest=seen, by="ana", **forms[form]))
        answer = await handle
        (result,) = results_in(await client.get_agent("Worker").get_transcript("here"))
    assert (made.correlation_id, made.tool, made.call_arguments) == ("t1", "pay", {"amount": 5})
    assert (answer.text, result.extra["dafx"]["decision"]["by"]) == ("paid 5", "ana")


async def test_a_decision_about_another_call_hears_what_stands_there(hosting: Hosting) -> None:
    till = Till()
    async with hosting(till.agent(5)) as client:
        handle = await client.get_agent("Worker").start("Pay", thread="here", correlation_id="t1")
        pending = await asked_of(client)
        with pytest.raises(DecisionRefused) as caught:
            await client.approve(key=pending.key, thread=HERE, digest="another")
        error = caught.value
        with pytest.raises(DecisionRefused) as unknown:
            await client.deny(key="unheard of", thread=HERE)
        made = accepted(await client.deny(key=pending.key, thread=HERE, digest=error.digest, reason="no"))
        await handle
        with pytest.raises(DecisionRefused) as late:
            await client.approve(key=pending.key, thread=HERE)
    assert (error.why, error.tool, error.arguments, error.digest) == (
        "changed",
        "pay",
        {"amount": 5},
        pending.digest,
    )
    assert "What stands there now is 'pay' with {'amount': 5}" in str(error)
    assert (unknown.value.why, late.value.why, made.reason) == ("not_pending", "not_pending", "no")
    assert till.paid == []


async def test_without_a_digest_a_stored_decision_is_about_the_call_as_it_stands_when_it_arrives(
    hosting: Hosting, endpoint: str
) -> None:
    till = Till()
    worker = till.agent(5)
    async with left_alone(hosting, endpoint, worker) as (client, handle, pending):
        kept = await stored(client.approve, key=pending.key, thread=HERE, arguments={"amount": 3})
        assert (kept.correlation_id, kept.digest) == ("", "")
        with pytest.raises(TurnTimeout, match="in thread here"):
            await kept.outcome(AT_ONCE)
        async with hosting(worker):
            made = await kept.outcome(60)
            await handle.result(60)
    assert (made.correlation_id, made.call_arguments, till.paid) == ("t1", {"amount": 3}, [3])


async def test_a_call_that_is_not_named_as_it_must_be_is_a_mistake(hosting: Hosting) -> None:
    till = Till()
    async with hosting(till.agent(5)) as client:
        await client.get_agent("Worker").start("Pay", thread="here", correlation_id="t1")
        pending, approve, resolve = await asked_of(client), client.approve, client.resolve
        wrong: list[tuple[Mapping[str, Any], str]] = [
            ({}, "`key=` and `thread=`"),
            ({"key": "k"}, "`key=` and `thread=`"),
            ({"key": "k", "thread": "here"}, "give `agent=`, too"),
            ({"approval": pending, "key": "k"}, "give it alone"),
        ]
        for given, words in wrong:
            with pytest.raises(TypeError, match=words):
                await approve(**given)
        with pytest.raises(TypeError, match="`action` is missing"):
            await resolve(key="k", thread=HERE)  # type: ignore[call-overload] # pyright: ignore[reportCallIssue]
        with pytest.raises(ValueError, match="belongs to agent 'Worker', not to 'Other'"):
            await approve(key="k", thread=HERE, agent="Other")
        with pytest.raises(DecisionRefused, match="'retry' for 'approval'"):
            await resolve(key=pending.key, thread=HERE, action="retry")
        deep: Any = {}
        for _ in range(150):
            deep = {"deep": deep}
        with pytest.raises(ValueMismatch, match="more than 100 levels deep"):
            await approve(pending, arguments={"amount": deep})
        with pytest.raises(ValueMismatch, match="`by` is a text"):
            await approve(pending, by=5)  # type: ignore[call-overload] # pyright: ignore[reportArgumentType, reportCallIssue]
        await client.deny(pending)


async def test_a_thread_whose_turns_are_one_operation_waits_for_nobody(hosting: Hosting) -> None:
    async with hosting(agent(ScriptedModel("Done."), durability="turn")) as client:
        await client.get_agent("Worker").run("Pay", thread="here")
        with pytest.raises(DecisionRefused, match="does not wait for it"):
            await client.approve(key="k", thread="here", agent="Worker")


# --- A new version ------------------------------------------------------------------------------------------------


def pays(version: Any) -> type:
    return agent(whenever_asked(("pay", {"amount": 5})), version)


def is_large(amount: int) -> bool:
    return amount >= 1


def is_large_sum(sum_in_cents: int) -> bool:
    return sum_in_cents >= 100


@pytest.mark.parametrize("action", ["approve", "edit", "deny"])
async def test_whoever_decides_about_a_call_with_another_signature_is_told_so(
    hosting: Hosting, caplog: pytest.LogCaptureFixture, action: str
) -> None:
    paid: list[int] = []

    @tool(name="pay", approval=is_large)
    def before(amount: int) -> str:
        return "never"

    @tool(name="pay", approval=is_large_sum)
    def after(sum_in_cents: int) -> str:
        paid.append(sum_in_cents)
        return f"paid {sum_in_cents}"

    async with hosting(pays(before)) as client:
        await client.get_agent("Worker").start("Pay", thread="here", correlation_id="t1")
        pending = await asked_of(client)
    async with hosting(pays(after)) as client:
        if action == "deny":
            made = accepted(await client.deny(pending))
        else:
            edited = {"sum_in_cents": 500} if action == "edit" else None
            made = accepted(await client.approve(pending, arguments=edited))
        text = (await client.get_agent("Worker").get_turn("t1").result(60)).text
    if action == "approve":
        assert "the arguments do not fit 'pay' as it is now (" in made.note
        assert made.note.endswith("the call will not be made, and the model will be told so")
        assert text.startswith("Error: The arguments do not fit the parameters of pay.")
        assert paid == []
    else:
        assert made.note == ""
        assert paid == ([500] if action == "edit" else [])
    assert [record.message for record in caplog.records if record.exc_info] == []


async def test_whoever_approves_what_needs_no_approval_any_more_is_told_so(hosting: Hosting) -> None:
    @tool(name="pay", approval=True)
    def before(amount: int) -> str:
        return "never"

    @tool(name="pay")
    def after(amount: int) -> str:
        return f"paid {amount}"

    async with hosting(pays(before)) as client:
        await client.get_agent("Worker").start("Pay", thread="here", correlation_id="t1")
        pending = await asked_of(client)
    async with hosting(pays(after)) as client:
        made = accepted(await client.approve(pending))
        answer = await client.get_agent("Worker").get_turn("t1").result(60)
    assert (made.note, answer.text) == ("the tool 'pay' needs no approval any more", "paid 5")


# --- kill -9 ------------------------------------------------------------------------------------------------------


async def test_a_decision_survives_kill_9_of_the_scheduler_that_was_alone(tmp_path: Path) -> None:
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
            handle = await client.get_agent("Worker").start("Pay", thread="here", correlation_id="t1")
            pending = await asked_of(client)
            worker.kill()
            kept = await stored(client.approve, pending, by="ana")
            scheduler.kill()
            assert not book.exists()
            scheduler.start()
            await scheduler.ready()
            worker.start()
            await worker.ready()
            made = await kept.outcome(60)
            answer = await handle.result(60)
        async with DurableAIAgentClient.connect(endpoint) as another:
            assert await another.approve(pending, by="ana", timeout=60) == made
    finally:
        for victim in (worker, scheduler):
            if victim.process is not None:
                victim.kill()
    assert (made.by, made.call_arguments) == ("ana", {"amount": 5})
    assert (answer.text, book.read_text()) == ("paid 5", "5\n")


async def test_arguments_of_a_persons_own_that_do_not_fit_can_be_given_again(hosting: Hosting) -> None:
    paid: list[int] = []

    @tool(approval=True)
    def pay(amount: int) -> str:
        paid.append(amount)
        return "paid"

    async with hosting(agent(whenever_asked(("pay", {"amount": 5})), pay)) as client:
        turn = await client.get_agent("Worker").start("Pay", thread="here")
        pending = await asked_of(client)
        assert (await in_state(turn, "waiting")).waits_for == ("pay",)
        with pytest.raises(DecisionRefused, match="amount") as refused:
            await client.approve(pending, arguments={"amout": 7}, timeout=60)
        assert refused.value.why == "unfit"
        assert await client.pending_approvals("Worker", "here") == [pending]
        await client.approve(pending, arguments={"amount": 7}, timeout=60)
        assert (await turn).text == "paid"
        with pytest.raises(TypeError, match="is no call that was listed"):
            await client.approve("pay")  # type: ignore[call-overload] # pyright: ignore[reportCallIssue, reportArgumentType]
    assert paid == [7]
