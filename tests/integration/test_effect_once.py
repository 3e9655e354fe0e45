"""Tools that may act only once: a crash leaves the outcome unknown, and the tool is never silently run again."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from dafx_actors import (
    DecisionAccepted,
    DurableAIAgentClient,
    DurableAIAgentWorker,
    NotDone,
    PendingOutcome,
    ToolContext,
    TurnHandle,
    durable_agent,
    tool,
)
from dafx_actors.errors import DecisionRefused, OutcomeUnknown
from dafx_actors.scheduler import EmbeddedScheduler
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
    until,
    using,
    whenever_asked,
)

pytestmark = pytest.mark.anyio


@durable_agent(name="Worker", model=whenever_asked(("charge", {"amount": 5})))
class Cashier:
    """Charges; notes in files that it begins, and that it has acted."""

    instructions = "Charge."

    def __init__(self, folder: Path, found: str = "") -> None:
        self._folder = folder
        self._found = found
        """What `reconcile` finds out; empty where it fails."""

    def _note(self, file: str, line: str) -> None:
        with (self._folder / file).open("a") as book:
            book.write(f"{line}\n")

    def find_out(self, amount: int, context: ToolContext) -> str:
        self._note("reconciled", f"{amount} {context.idempotency_key}")
        if self._found == "not done":
            raise NotDone
        if not self._found:
            raise ConnectionError("the bank does not answer")
        return self._found

    async def _charge(self, amount: int, context: ToolContext) -> str:
        self._note("begun", context.idempotency_key)
        if (self._folder / "hang").exists():
            (self._folder / "hang").unlink()
            await anyio.sleep_forever()
        self._note("acted", context.idempotency_key)
        return f"charged {amount}"

    @tool(effect="once")
    async def charge(self, amount: int, context: ToolContext) -> str:
        return await self._charge(amount, context)


@durable_agent(name="Worker", model=whenever_asked(("charge", {"amount": 5})))
class Reconciling(Cashier):
    """The same, and can find out what became of a charge."""

    @tool(effect="once", reconcile="find_out")
    async def charge(self, amount: int, context: ToolContext) -> str:
        return await self._charge(amount, context)


@durable_agent(name="Worker", model=whenever_asked(("charge", {"amount": 5})))
class Careless(Cashier):
    """The same, deployed anew, and declared as if it might act twice."""

    @tool
    async def charge(self, amount: int, context: ToolContext) -> str:
        return await self._charge(amount, context)


KEY = key_of("t1")
PROGRAM = """
import sys
from pathlib import Path
from dafx_actors import DurableAIAgentWorker
from tests.integration.test_effect_once import Cashier, Reconciling

kind = {"Cashier": Cashier, "Reconciling": Reconciling}[sys.argv[2]]
worker = DurableAIAgentWorker.connect(sys.argv[1])
worker.add_agent(kind(Path(sys.argv[3])))
worker.start()
print("ready", flush=True)
sys.stdin.read()
"""


class Crash:
    """A charge whose worker was killed in the middle of it."""

    def __init__(self, client: DurableAIAgentClient, handle: TurnHandle[Any], folder: Path) -> None:
        self.client = client
        self.handle = handle
        self._folder = folder

    def book(self, file: str) -> list[str]:
        """What the tool noted."""
        path = self._folder / file
        return path.read_text().splitlines() if path.exists() else []

    async def unknown(self) -> PendingOutcome:
        """What a person is to decide."""
        pending: PendingOutcome = await asked_of(self.client, kind="outcome")
        return pending


@asynccontextmanager
async def crashed(folder: Path, kind: type, found: str = "", deployed: type | None = None) -> AsyncGenerator[Crash]:
    """Let a worker begin a charge, kill it, and start another worker, of the same agent or as `deployed` anew."""
    (folder / "hang").touch()
    with EmbeddedScheduler(db=folder / "dafx.db").on_a_thread() as scheduler:
        async with DurableAIAgentClient.connect(scheduler.endpoint) as client:
            async with program(PROGRAM, scheduler.endpoint, kind.__name__, str(folder)) as process:
                handle = await client.get_agent("Worker").start("Charge", thread="here", correlation_id="t1")
                crash = Crash(client, handle, folder)

                async def begun() -> bool:
                    return crash.book("begun") == [KEY] and not (folder / "hang").exists()

                await until(begun)
                process.kill()
            second = DurableAIAgentWorker.connect(scheduler.endpoint)
            second.add_agent((deployed or kind)(folder, found))
            async with second:
                yield crash
            transcript = await client.get_agent("Worker").get_transcript("here")
    assert is_balanced(transcript)


async def test_a_call_that_was_cut_off_is_not_made_again_and_a_person_is_asked(tmp_path: Path) -> None:
    async with crashed(tmp_path, Cashier) as crash:
        pending = await crash.unknown()
        await in_state(crash.handle, "waiting")
        assert (pending.kind, pending.tool, pending.arguments) == ("outcome", "charge", {"amount": 5})
        assert await crash.client.pending_approvals("Worker") == []
        assert (crash.book("begun"), crash.book("acted")) == ([KEY], [])
        await crash.client.resolve(pending, "retry", by="ana", reason="the bank has no such charge")
        answer = await crash.handle
        (result,) = results_in(await crash.client.get_agent("Worker").get_transcript("here"))
    assert answer.text == "charged 5"
    # With the same key as the attempt that was cut off.
    assert (crash.book("begun"), crash.book("acted")) == ([KEY] * 2, [KEY])
    assert [(each["action"], each["by"]) for each in result.extra["dafx"]["resolved"]] == [("retry", "ana")]


async def test_a_person_may_say_what_the_call_gave(tmp_path: Path) -> None:
    async with crashed(tmp_path, Cashier) as crash:
        await crash.client.resolve(await crash.unknown(), "result", result="charged by hand", by="ana")
        answer = await crash.handle
    assert (answer.text, crash.book("acted")) == ("charged by hand", [])


async def test_a_person_says_what_became_of_a_call_that_was_not_listed(tmp_path: Path) -> None:
    async with crashed(tmp_path, Cashier) as crash:
        pending = await crash.unknown()
        made = await crash.client.resolve(action="result", result="by hand", key=pending.key, thread=pending.thread)
        answer = await crash.handle
    assert isinstance(made, DecisionAccepted)
    assert (made.tool, made.call_arguments, made.result) == ("charge", {"amount": 5}, "by hand")
    assert (answer.text, crash.book("acted")) == ("by hand", [])


async def test_a_tool_that_was_planned_as_once_is_so_also_where_its_declaration_has_changed(tmp_path: Path) -> None:
    async with crashed(tmp_path, Cashier, deployed=Careless) as crash:
        await crash.client.resolve(await crash.unknown(), "result", result="charged by hand", by="ana")
        answer = await crash.handle
    assert (answer.text, crash.book("begun"), crash.book("acted")) == ("charged by hand", [KEY], [])


async def test_a_person_may_end_the_turn(tmp_path: Path) -> None:
    async with crashed(tmp_path, Cashier) as crash:
        pending: Any = await crash.unknown()
        with pytest.raises(ValueError, match="waits for retry or result or fail, not 'approve'"):
            await crash.client.approve(pending)
        await crash.client.resolve(pending, "fail", reason="too late")
        with pytest.raises(OutcomeUnknown, match="too late"):
            await crash.handle
        with pytest.raises(DecisionRefused):
            await crash.client.resolve(pending, "retry")
    assert crash.book("acted") == []


async def test_reconcile_may_find_that_it_acted(tmp_path: Path) -> None:
    async with crashed(tmp_path, Reconciling, "charged, says the bank") as crash:
        answer = await crash.handle
    assert answer.text == "charged, says the bank"
    assert (crash.book("begun"), crash.book("reconciled")) == ([KEY], [f"5 {KEY}"])


async def test_reconcile_may_find_that_it_did_not_act(tmp_path: Path) -> None:
    async with crashed(tmp_path, Reconciling, "not done") as crash:
        answer = await crash.handle
    assert answer.text == "charged 5"
    assert (crash.book("begun"), crash.book("acted")) == ([KEY] * 2, [KEY])


async def test_reconcile_may_fail_and_then_a_person_is_asked(tmp_path: Path) -> None:
    async with crashed(tmp_path, Reconciling) as crash:
        await crash.client.resolve(await crash.unknown(), "result", result="asked the bank by phone")
        answer = await crash.handle
    assert answer.text == "asked the bank by phone"
    assert (crash.book("reconciled"), crash.book("acted")) == ([f"5 {KEY}"], [])


async def test_a_turn_may_be_cancelled_while_an_outcome_is_unknown(tmp_path: Path) -> None:
    async with crashed(tmp_path, Cashier) as crash:
        await crash.unknown()
        assert await crash.handle.cancel()
        await in_state(crash.handle, "cancelled")
        assert await crash.client.pending_outcomes("Worker") == []
    assert crash.book("acted") == []


async def test_a_raw_event_does_not_make_it_act_again(tmp_path: Path) -> None:
    async with crashed(tmp_path, Cashier) as crash:
        pending = await crash.unknown()
        await crash.client._backend.raise_event("t1", f"decision.{pending.key}", {"action": "retry"})
        await crash.client.resolve(pending, "result", result="by hand")
        answer = await crash.handle
    assert (answer.text, crash.book("begun")) == ("by hand", [KEY])


@pytest.mark.parametrize("found", ["done", "not done", ""])
async def test_running_out_of_time_leaves_the_outcome_unknown(hosting: Hosting, found: str) -> None:
    begun: list[str] = []

    def find_out() -> str:
        if found == "not done":
            raise NotDone  # and it may be on its way all the same
        if not found:
            raise ConnectionError
        return found

    @tool(effect="once", timeout=0.05, reconcile=find_out)
    async def charge(context: ToolContext) -> str:
        begun.append(context.idempotency_key)
        await anyio.sleep_forever()
        return ""

    async with hosting(agent(using(asks(("charge", {}))), charge)) as client:
        handle = await client.get_agent("Worker").start("Charge")
        if found != "done":
            await client.resolve(await asked_of(client, kind="outcome"), "result", result="by hand")
        answer = await handle
    assert answer.text == ("done" if found == "done" else "by hand")
    assert len(begun) == 1


async def test_what_such_a_tool_raises_is_its_outcome(hosting: Hosting) -> None:
    calls: list[int] = []

    @tool(effect="once")
    async def charge() -> None:
        calls.append(1)
        raise PermissionError("no money")

    async with hosting(agent(using(asks(("charge", {}))), charge)) as client:
        answer = await client.get_agent("Worker").run("Charge")
    assert (answer.text, calls) == ("Error: PermissionError: no money", [1])


async def test_several_outcomes_can_be_unknown_at_a_time(hosting: Hosting) -> None:
    @tool(effect="once", timeout=0.05)
    async def charge(amount: int) -> str:
        await anyio.sleep_forever()
        return ""

    model = using(asks(*[("charge", {"amount": amount}) for amount in range(3)]))
    async with hosting(agent(model, charge)) as client:
        handle = await client.get_agent("Worker").start("Charge")

        async def all_asked() -> list[PendingOutcome]:
            found = await client.pending_outcomes("Worker")
            return found if len(found) == 3 else []

        for pending in await until(all_asked):
            await client.resolve(pending, "result", result=pending.arguments["amount"] * 10)
        answer = await handle
    assert answer.text == "0; 10; 20"
