"""What `docs/deploying.md` says of versions that follow each other: each of its points is a test, here or elsewhere."""

from __future__ import annotations

import importlib
import re
import signal
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.abc import Process
from durabletask.client import OrchestrationQuery, OrchestrationStatus

from dafx_actors import (
    Approval,
    DurableAIAgentClient,
    Limits,
    ModelRequest,
    OrchestrationContext,
    durable_agent,
    orchestrator,
    tool,
)
from dafx_actors.errors import DecisionRefused, OrchestrationFailed, TurnLimitExceeded
from dafx_actors.scheduler import EmbeddedScheduler
from dafx_actors.testing import AgentHost, ScriptedModel, call
from dafx_actors.testing._clock import HandClock
from dafx_actors.testing._model import Reply
from tests.integration.test_hosting import Deployment
from tests.integration.turns import asked_of, line_of, program, results, sdk, tells, until

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120)]

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "docs" / "deploying.md"
DAYS = 24 * 3600.0


# --- The page -----------------------------------------------------------------------------------------------------

POINTS = re.findall(r"^- (.*?)(?=^- |^#|^```|\n\n|\Z)", PAGE.read_text("utf-8"), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("point", POINTS, ids=lambda point: point[:40])
def test_every_point_of_the_page_has_a_test(point: str) -> None:
    named = re.findall(r"<!-- (\S+) -->", point)
    assert named, "a point without a test"
    assert re.search(r"<!-- \S+ -->\s*\Z", point), "the test's name stands at the end"
    for name in named:
        module, _, function = name.rpartition("::")
        path = (module or "test_deploying.py").removesuffix(".py").replace("/", ".")
        assert callable(getattr(importlib.import_module(f"tests.{path}"), function)), name


def test_the_page_has_points_and_is_found_from_the_readme() -> None:
    assert len(POINTS) > 20
    assert "(docs/deploying.md)" in (TESTS.parent / "README.md").read_text("utf-8")


# --- Versions that follow each other ------------------------------------------------------------------------------


@pytest.fixture
async def deployment(tmp_path: Path) -> AsyncGenerator[Deployment]:
    clock = HandClock()
    async with (
        EmbeddedScheduler(tmp_path / "dafx.db", clock=clock) as scheduler,
        DurableAIAgentClient.connect(scheduler.endpoint) as client,
    ):
        yield Deployment(scheduler, clock, client)


def pays(request: ModelRequest) -> Reply:
    """A model that asks for `pay` once, and then tells what it heard."""
    return tells(request) if results(request) else call("pay", amount=5)


def version(*tools: Any, model: Any = pays, instructions: str = "Pay.", **how: Any) -> type:
    """A version of the agent `Payer` with these functions as its tools."""
    script = model if isinstance(model, ScriptedModel) else ScriptedModel(*[model] * 20)
    body = {"instructions": instructions, "tools": list(tools)}
    return durable_agent(name="Payer", model=script, **how)(type("Payer", (), body))


def payer(acted: list[Any], **how: Any) -> Any:
    """The tool as the first version has it."""
    options: dict[str, Any] = {"approval": True, **how}

    @tool(**options)
    def pay(amount: int) -> str:
        """Pay."""
        acted.append(amount)
        return f"paid {amount}"

    return pay


async def begun(deployment: Deployment, agent: type) -> tuple[Any, Any]:
    """A turn that waits for an approval, and its worker is gone."""
    async with deployment.hosting(agent):
        turn = await deployment.client.get_agent("Payer").start("Pay.", thread="here")
        return turn, await asked_of(deployment.client, "Payer")


async def approved_on(deployment: Deployment, turn: Any, asked: Any, agent: type) -> str:
    """The answer, where another version makes the approved call."""
    async with deployment.hosting(agent):
        await deployment.client.approve(asked, by="ana")
        return str((await turn.result(60)).text)


async def test_a_renamed_tool_is_shown_and_given_up_and_the_model_may_call_the_new_one(deployment: Deployment) -> None:
    acted: list[Any] = []

    @tool
    def pay_invoice(amount: int) -> str:
        """Pay."""
        acted.append(("renamed", amount))
        return "paid by the new name"

    def model(request: ModelRequest) -> Reply:
        said = str(results(request))
        return call("pay_invoice", amount=5) if "no worker has the tool 'pay'" in said else tells(request)

    turn, asked = await begun(deployment, version(payer(acted)))
    async with deployment.hosting(version(pay_invoice, model=model)):
        await deployment.client.approve(asked)
        await deployment.advance(10)
        status = await turn.status()
        assert (status.state, status.waits_for) == ("blocked", ("pay",))
        await deployment.advance(75)
        assert (await turn.result(60)).text == "paid by the new name"
    assert acted == [("renamed", 5)]


async def test_the_old_name_beside_the_new_one_makes_the_call(deployment: Deployment) -> None:
    acted: list[Any] = []

    @tool
    def pay_invoice(amount: int) -> str:
        """Pay."""
        return "not asked for"

    turn, asked = await begun(deployment, version(payer(acted)))
    assert await approved_on(deployment, turn, asked, version(pay_invoice, payer(acted))) == "paid 5"
    assert acted == [5]


async def test_a_new_parameter_with_a_default_lets_the_call_be_made(deployment: Deployment) -> None:
    acted: list[Any] = []

    @tool(approval=True)
    def pay(amount: int, currency: str = "EUR") -> str:
        """Pay."""
        acted.append((amount, currency))
        return "paid"

    turn, asked = await begun(deployment, version(payer([])))
    assert await approved_on(deployment, turn, asked, version(pay)) == "paid"
    assert acted == [(5, "EUR")]


@pytest.mark.parametrize("change", ["a required one", "one less", "another type"])
async def test_a_call_that_does_not_fit_any_more_is_not_made_and_the_model_is_told(
    deployment: Deployment, change: str, caplog: pytest.LogCaptureFixture
) -> None:
    acted: list[Any] = []

    def more(amount: int, account: str) -> str:
        acted.append(amount)
        return account

    def less() -> str:
        acted.append(0)
        return "?"

    def other(amount: list[str]) -> str:
        acted.append(amount)
        return "?"

    versions: dict[str, Any] = {"a required one": more, "one less": less, "another type": other}
    changed = versions[change]
    changed.__name__ = "pay"
    turn, asked = await begun(deployment, version(payer([])))
    answer = await approved_on(deployment, turn, asked, version(tool(approval=True)(changed)))
    assert "do not fit the parameters of pay" in answer
    assert acted == []
    assert not [record for record in caplog.records if record.exc_info]


async def test_a_call_that_is_made_anew_is_approved_anew(deployment: Deployment) -> None:
    acted: list[Any] = []

    @tool(approval=True)
    def pay(amount: int, account: str) -> str:
        """Pay."""
        acted.append((amount, account))
        return "paid"

    def model(request: ModelRequest) -> Reply:
        return call("pay", amount=5, account="a") if "do not fit" in str(results(request)) else tells(request)

    turn, asked = await begun(deployment, version(payer([])))
    async with deployment.hosting(version(pay, model=model)):
        await deployment.client.approve(asked)
        again = await asked_of(deployment.client, "Payer")
        assert (again.arguments, acted) == ({"amount": 5, "account": "a"}, [])
        with pytest.raises(DecisionRefused):
            await deployment.client.approve(asked, arguments={"amount": 5, "account": "b"})
        await deployment.client.approve(again)
        assert (await turn.result(60)).text == "paid"
    assert acted == [(5, "a")]


async def test_an_approval_counts_for_the_call_whatever_the_tool_says_of_itself(deployment: Deployment) -> None:
    acted: list[Any] = []

    @tool(approval=Approval(timeout=timedelta(days=1)), timeout=60)
    def pay(amount: int) -> str:
        """Send the money, by another bank."""
        acted.append(amount)
        return "paid"

    turn, asked = await begun(deployment, version(payer([])))
    async with deployment.hosting(version(pay)):
        await deployment.client.approve(asked)
        assert (await turn.result(60)).text == "paid"
    assert acted == [5]


async def test_a_deadline_stays_the_one_that_the_call_was_planned_with(deployment: Deployment) -> None:
    acted: list[Any] = []
    week = payer(acted, approval=Approval(timeout=timedelta(days=7)))
    turn, _ = await begun(deployment, version(week))
    async with deployment.hosting(version(payer(acted, approval=Approval(timeout=timedelta(days=1))))):
        await deployment.advance(6 * DAYS)
        [asked] = await deployment.client.pending_approvals("Payer")
        await deployment.client.approve(asked)
        assert (await turn.result(60)).text == "paid 5"


async def test_a_call_that_needs_approval_now_is_not_made_without(deployment: Deployment) -> None:
    acted: list[Any] = []
    begins = anyio.Event()

    @tool
    async def pay(amount: int) -> str:
        """Pay."""
        begins.set()
        await anyio.sleep_forever()
        return "never"

    async with deployment.hosting(version(pay)) as worker:
        turn = await deployment.client.get_agent("Payer").start("Pay.")
        with anyio.fail_after(60):
            await begins.wait()
        worker.abandon()
    async with deployment.hosting(version(payer(acted))):
        assert "it needs approval, and nobody has given it" in (await turn.result(60)).text
    assert acted == []


# --- Turns --------------------------------------------------------------------------------------------------------


async def test_instructions_and_model_are_those_of_the_worker_that_takes_the_next_step(deployment: Deployment) -> None:
    acted: list[Any] = []
    turn, asked = await begun(deployment, version(payer(acted), instructions="Be rude."))
    second = ScriptedModel("Politely: it is paid.")
    answer = await approved_on(deployment, turn, asked, version(payer(acted), model=second, instructions="Be polite."))
    assert answer == "Politely: it is paid."
    assert second.conversation()[0] == "system: Be polite."


async def test_limits_are_those_that_the_turn_began_with(deployment: Deployment) -> None:
    acted: list[Any] = []

    def always(request: ModelRequest) -> Reply:
        return call("pay", amount=len(acted))

    turn, asked = await begun(deployment, version(payer(acted), model=always, limits=Limits(steps=3)))
    free = payer(acted, approval=False)
    async with deployment.hosting(version(free, model=always, limits=Limits(steps=100))):
        await deployment.client.approve(asked)
        with pytest.raises(TurnLimitExceeded):
            await turn.result(60)
    assert len(acted) <= 3


async def test_an_approval_waits_while_no_worker_is_there(deployment: Deployment) -> None:
    acted: list[Any] = []
    turn, asked = await begun(deployment, version(payer(acted)))
    await deployment.advance(30 * DAYS)
    assert await deployment.client.pending_approvals("Payer") == [asked]
    assert (await turn.status()).state in {"waiting", "blocked"}
    assert await approved_on(deployment, turn, asked, version(payer(acted))) == "paid 5"


async def test_beside_each_other_a_step_goes_to_a_worker_that_has_it(deployment: Deployment) -> None:
    old, new = list[Any](), list[Any]()

    @tool(approval=True)
    def pay_invoice(amount: int) -> str:
        """Pay."""
        new.append(amount)
        return "paid by the new one"

    def asks_the_new(request: ModelRequest) -> Reply:
        return tells(request) if results(request) else call("pay_invoice", amount=7)

    client = deployment.client
    versions = version(payer(old)), version(pay_invoice, model=asks_the_new)
    asked: list[Any] = []
    for each in versions:
        async with deployment.hosting(each):
            turn = await client.get_agent("Payer").start("Pay.")
            asked.append(await asked_of(client, "Payer", await turn.thread()))
    async with deployment.hosting(versions[0]), deployment.hosting(versions[1]):
        for approval in asked:
            await client.approve(approval)
            assert "paid" in (await client.get_agent("Payer").get_turn(approval.correlation_id).result(60)).text
    assert (old, new) == ([5], [7])


async def test_a_rollback_reads_the_threads_of_the_new_version(deployment: Deployment) -> None:
    acted: list[Any] = []

    @tool
    def note(text: str) -> str:
        """Note."""
        return f"noted {text}"

    def notes(request: ModelRequest) -> Reply:
        return tells(request) if results(request) else call("note", text="x")

    old = version(payer(acted), model=ScriptedModel(*[lambda request: str(len(request.messages))] * 5))
    async with deployment.hosting(version(note, payer(acted), model=notes)):
        new = await deployment.client.get_agent("Payer").run("Note.", thread="here")
    async with deployment.hosting(old):
        answer = await deployment.client.get_agent("Payer").run("How many?", thread="here")
    # Instructions, the request, the call, its result, the answer, the request.
    assert (new.text, answer.text) == ("noted x", "6")


# --- Processes ----------------------------------------------------------------------------------------------------

WORKER = """
import asyncio, sys
from pathlib import Path
from dafx_actors import DurableAIAgentWorker, ToolContext, durable_agent, tool
from dafx_actors.testing import AgentHost, ScriptedModel, call
from tests.integration.turns import results, tells

endpoint, folder, version, patience = sys.argv[1], Path(sys.argv[2]), sys.argv[3], float(sys.argv[4])

def reply(request):
    return tells(request) if results(request) else call("pay", amount=5)

@durable_agent(name="Payer", model=ScriptedModel(*[reply] * 20))
class Payer:
    instructions = "Pay."

    @tool
    async def pay(self, amount: int, context: ToolContext) -> str:
        "Pay."
        with open(folder / "begun", "a") as book:
            book.write(f"{version} {context.idempotency_key}\\n")
        while not (folder / f"go-{version}").exists():
            await asyncio.sleep(0.01)
        return f"paid by {version}"

async def main():
    worker = DurableAIAgentWorker.connect(endpoint, stop_timeout=patience)
    worker.add_agent(Payer)
    async with worker:
        print("ready", flush=True)
        await worker.serve()
    print("stopped", flush=True)

asyncio.run(main())
"""


@asynccontextmanager
async def running(tmp_path: Path) -> AsyncGenerator[tuple[str, DurableAIAgentClient]]:
    async with (
        EmbeddedScheduler(tmp_path / "dafx.db") as scheduler,
        DurableAIAgentClient.connect(scheduler.endpoint) as client,
    ):
        yield scheduler.endpoint, client


def worker(endpoint: str, folder: Path, name: str, patience: float = 60) -> Any:
    """A version of a worker in a process of its own."""
    return program(WORKER, endpoint, str(folder), name, str(patience))


async def has_begun(folder: Path, many: int) -> list[str]:
    """What the tool noted, when it was called so often."""

    async def lines() -> list[str]:
        book = folder / "begun"
        found = book.read_text().splitlines() if book.exists() else []
        return found if len(found) >= many else []

    return await until(lines)


async def ended(process: Process) -> int:
    with anyio.fail_after(60):
        return await process.wait()


async def test_a_worker_that_is_asked_to_stop_ends_its_steps_and_begins_no_more(tmp_path: Path) -> None:
    async with running(tmp_path) as (endpoint, client), worker(endpoint, tmp_path, "v1") as first:
        turn = await client.get_agent("Payer").start("Pay.")
        await has_begun(tmp_path, 1)
        first.send_signal(signal.SIGTERM)
        async with worker(endpoint, tmp_path, "v2"):
            other = await client.get_agent("Payer").start("Pay.")
            # What the scheduler still hands to the first is given back at once, and not when that has ended its own.
            await has_begun(tmp_path, 2)
            (tmp_path / "go-v1").touch()
            assert await line_of(first) == "stopped"
            assert await ended(first) == 0
            (tmp_path / "go-v2").touch()
            assert (await turn.result(60)).text == "paid by v1"
            assert (await other.result(60)).text == "paid by v2"
    assert len(set((tmp_path / "begun").read_text().splitlines())) == 2


async def test_a_step_that_does_not_end_in_time_is_made_by_the_next_with_the_same_key(tmp_path: Path) -> None:
    async with running(tmp_path) as (endpoint, client), worker(endpoint, tmp_path, "v1", patience=0.2) as first:
        turn = await client.get_agent("Payer").start("Pay.")
        await has_begun(tmp_path, 1)
        first.send_signal(signal.SIGTERM)
        assert await ended(first) == 0
        (tmp_path / "go-v2").touch()
        async with worker(endpoint, tmp_path, "v2"):
            assert (await turn.result(60)).text == "paid by v2"
    assert len({line.split()[1] for line in await has_begun(tmp_path, 2)}) == 1


async def test_a_rollback_by_kill_9_goes_on_with_the_step_in_flight(tmp_path: Path) -> None:
    async with running(tmp_path) as (endpoint, client):
        async with worker(endpoint, tmp_path, "v2") as second:
            turn = await client.get_agent("Payer").start("Pay.", thread="here")
            await has_begun(tmp_path, 1)
            second.kill()
            await ended(second)
        (tmp_path / "go-v1").touch()
        async with worker(endpoint, tmp_path, "v1"):
            assert (await turn.result(60)).text == "paid by v1"
            transcript = await client.get_agent("Payer").get_transcript("here")
    assert len({line.split()[1] for line in await has_begun(tmp_path, 2)}) == 1
    assert len(transcript.entries) == 2


# --- Orchestrations -----------------------------------------------------------------------------------------------


def sleeper(days: float, name: str = "sleeper", result: str = "old") -> Callable[..., Any]:
    async def sleeps(context: OrchestrationContext) -> str:
        await context.sleep(timedelta(days=days))
        return result

    sleeps.__name__ = sleeps.__qualname__ = name
    return orchestrator(sleeps)


async def asleep(deployment: Deployment, days: float) -> Any:
    """An orchestration of the first version that sleeps, and its worker is gone."""
    async with deployment.hosting(orchestrators=(sleeper(days),)):
        handle = await deployment.client.schedule_new_orchestration("sleeper")
        await deployment.settled()
    return handle


async def status_of(handle: Any) -> OrchestrationStatus:
    state = await handle.state()
    return OrchestrationStatus(state.runtime_status)


async def test_an_orchestration_that_sleeps_wakes_when_it_was_to_and_goes_on_with_the_new_code(
    deployment: Deployment,
) -> None:
    handle = await asleep(deployment, days=2)
    async with deployment.hosting(orchestrators=(sleeper(1, result="new"),)):
        await deployment.advance(1.5 * DAYS)
        assert await status_of(handle) is OrchestrationStatus.RUNNING
        await deployment.advance(0.5 * DAYS)
        assert await handle.result(60) == "new"


async def test_a_changed_orchestration_has_a_new_name_beside_the_old(deployment: Deployment) -> None:
    handle = await asleep(deployment, days=2)
    both = (sleeper(2), sleeper(1, "sleeper_v2", "new"))
    async with deployment.hosting(orchestrators=both), sdk(deployment.endpoint) as durabletask:
        new = await deployment.client.schedule_new_orchestration("sleeper_v2")
        await deployment.settled()

        async def running() -> set[str]:
            active = [OrchestrationStatus.PENDING, OrchestrationStatus.RUNNING, OrchestrationStatus.SUSPENDED]
            states = await durabletask.get_all_orchestration_states(OrchestrationQuery(runtime_status=active))
            return {state.name for state in states}

        assert await running() == {"sleeper", "sleeper_v2"}
        await deployment.advance(2 * DAYS)
        assert [await handle.result(60), await new.result(60)] == ["old", "new"]
        assert await running() == set()


async def test_an_orchestration_that_no_worker_hosts_waits_and_does_not_fail(deployment: Deployment) -> None:
    handle = await asleep(deployment, days=1)
    async with deployment.hosting(version(payer([]))):
        await deployment.advance(5 * DAYS)
        assert await status_of(handle) is OrchestrationStatus.RUNNING
    async with deployment.hosting(orchestrators=(sleeper(1),)):
        assert await handle.result(60) == "old"


async def test_what_differs_by_itself_shows_in_a_test() -> None:
    times = iter(range(100))

    async def note(number: int) -> int:
        return number

    @orchestrator
    async def by_chance(context: OrchestrationContext) -> int:
        result: int = await context.call_activity(note, input=next(times))
        await context.sleep(1)
        return result

    async with AgentHost(orchestrators=[by_chance], activities=[note]) as host:
        handle = await host.client.schedule_new_orchestration(by_chance)
        with pytest.raises(OrchestrationFailed, match="take times, ids and chance from its context"):
            await host.fast_forward(handle)
