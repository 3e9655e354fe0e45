"""The testing kit: what its users lean on."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import anyio
import pytest
from durabletask.task import RetryPolicy

import dafx_actors
import dafx_actors.testing
from dafx_actors import (
    Approval,
    ChatMessage,
    ModelReply,
    ModelRequest,
    OrchestrationContext,
    ToolContext,
    durable_agent,
    orchestrator,
    tool,
)
from dafx_actors.errors import (
    ApprovalExpired,
    ConfigurationError,
    ModelError,
    OrchestrationFailed,
    TurnDeadlineExceeded,
)
from dafx_actors.ids import AgentThread
from dafx_actors.models import ModelDelta, StreamingModel
from dafx_actors.testing import (
    AgentHost,
    HandClock,
    History,
    NotSettled,
    ReplayMismatch,
    ScriptedModel,
    call,
    chunks,
    late,
    replay,
)
from dafx_actors.transcript import FunctionCallContent, TextContent
from pytest_dafx_actors import AgentHosts

pytestmark = pytest.mark.anyio

HELLO = ModelRequest(messages=(ChatMessage("user", "Hello there"),))
DAYS_30 = timedelta(days=30)
PATIENT = RetryPolicy(first_retry_interval=timedelta(hours=1), max_number_of_attempts=3)
_ENTITY = AgentThread("Other", "x").entity_id


# --- The scripted model ----------------------------------------------------------------------------------------------


async def test_a_model_says_what_the_script_says() -> None:
    model = ScriptedModel(
        "One.", ["Let me look.", call("look", city="Oslo"), call("look", city="Rome")], late("Two.", 0)
    )
    first, second, third = [await model.complete(HELLO) for _ in range(3)]
    assert (first.message.text, first.finish_reason, third.message.text) == ("One.", "stop", "Two.")
    assert second.finish_reason == "tool_calls"
    assert second.message.contents == (
        TextContent("Let me look."),
        FunctionCallContent("call-1", "look", {"city": "Oslo"}),
        FunctionCallContent("call-2", "look", {"city": "Rome"}),
    )
    assert first.usage is not None
    assert (first.usage.input_tokens, first.usage.output_tokens) == (2, 1)


async def streamed(model: ScriptedModel) -> list[ModelDelta | ModelReply]:
    return [each async for each in model.stream(HELLO)]


async def test_a_model_streams_in_chunks_or_in_one_piece() -> None:
    model = ScriptedModel(chunks("Hel", "lo."), "Hello.", call("look"))
    assert isinstance(model, StreamingModel)
    pieces = [await streamed(model) for _ in range(3)]
    assert [[each.text for each in given if isinstance(each, ModelDelta)] for given in pieces] == [
        ["Hel", "lo."],
        ["Hello."],
        [],
    ]
    last = [given[-1] for given in pieces]
    assert [each.message.text for each in last if isinstance(each, ModelReply)] == ["Hello.", "Hello.", ""]


async def test_a_model_raises_and_asks_functions() -> None:
    async def later(request: ModelRequest) -> str:
        return request.messages[0].text

    model = ScriptedModel(ModelError("rate_limit", "slow down", status=429), later)
    with pytest.raises(ModelError):
        await model.complete(HELLO)
    assert [(await model.complete(HELLO)).message.text for _ in range(2)] == ["Hello there"] * 2


async def test_a_script_at_its_end_says_what_was_asked() -> None:
    model = ScriptedModel("One.")
    await model.complete(HELLO)
    with pytest.raises(AssertionError, match=r"no reply for call 2.*user: Hello there"):
        await model.complete(HELLO)


async def test_what_a_model_was_asked_reads_well() -> None:
    model = ScriptedModel("One.", "Two.")
    with pytest.raises(AssertionError, match="asked 0 times"):
        model.conversation()
    await model.complete(HELLO)
    assert model.conversation() == ["user: Hello there"]
    model.assert_asked(1)
    with pytest.raises(AssertionError, match=r"asked once, not 2 times:\n  0\. user: Hello there"):
        model.assert_asked(2)
    with pytest.raises(AssertionError, match=r"not used: \['Two\.'\]"):
        model.assert_finished()
    await model.complete(HELLO)
    model.assert_finished()


# --- The clock -------------------------------------------------------------------------------------------------------


async def test_a_clock_stands_still_until_it_is_moved() -> None:
    start, rung = datetime(2030, 1, 1, tzinfo=UTC), list[str]()
    clock = HandClock(start)
    second = 1_000_000
    for name, after in (("late", 20), ("early", 10), ("never", 15)):
        alarm = clock.alarm(clock.now() + after * second, lambda name=name: rung.append(name))  # type: ignore[misc]
        if name == "never":
            alarm.cancel()
    assert (clock.time, clock.next_alarm) == (start, start + timedelta(seconds=10))
    clock.move_to(start + timedelta(seconds=30))
    assert (rung, clock.next_alarm) == (["early", "late"], None)
    with pytest.raises(ValueError, match="cannot be moved back"):
        clock.move_to(start)


async def test_what_is_due_when_it_is_asked_for_rings_at_once() -> None:
    clock, rung = HandClock(), anyio.Event()
    clock.alarm(clock.now(), rung.set)
    await rung.wait()
    assert clock.next_alarm is None


# --- Time in a host --------------------------------------------------------------------------------------------------


def cashier(model: ScriptedModel, **approval: Any) -> type:
    @durable_agent(name="Cashier", model=model)
    class Cashier:
        instructions = "You handle payments."

        @tool(approval=Approval(timeout=DAYS_30, **approval))
        async def pay(self, amount: int) -> str:
            """Pay."""
            return f"paid {amount}"

    return Cashier


async def test_thirty_days_of_waiting_for_a_person_take_no_time(agent_host: AgentHosts) -> None:
    model = ScriptedModel(call("pay", amount=5), "Paid.")
    host = await agent_host(cashier(model), start=datetime(2030, 1, 1, tzinfo=UTC))
    turn = await host.client.get_agent("Cashier").start("Pay 5")
    begun = time.monotonic()
    await host.advance(timedelta(days=29, hours=23))
    [asked] = await host.client.pending_approvals("Cashier")
    assert asked.deadline == datetime(2030, 1, 31, tzinfo=UTC)
    await host.client.approve(asked, by="ana")
    assert (await turn).text == "Paid."
    assert model.conversation()[-1] == "tool: <- 'paid 5'"
    assert time.monotonic() - begun < 5, "of milliseconds, with room for a busy machine"


async def test_an_approval_that_nobody_gives_expires(agent_host: AgentHosts) -> None:
    host = await agent_host(cashier(ScriptedModel(call("pay", amount=5)), on_timeout="fail"))
    turn = await host.client.get_agent("Cashier").start("Pay 5")
    await host.advance(DAYS_30 - timedelta(seconds=1))
    assert (await turn.status()).state == "waiting"
    await host.advance(1)
    with pytest.raises(ApprovalExpired):
        await turn


async def test_a_turns_own_deadline_goes_by_the_clock(agent_host: AgentHosts) -> None:
    host = await agent_host(cashier(ScriptedModel(call("pay", amount=5))))
    cashier_agent = host.client.get_agent("Cashier")
    with pytest.raises(TurnDeadlineExceeded):
        await host.fast_forward(cashier_agent.run("Pay 5", timeout=3600, cancel_on_timeout=True))


async def test_pauses_between_retries_go_by_the_clock(agent_host: AgentHosts) -> None:
    busy = ModelError("rate_limit", "slow down", status=429, retry_after=3600)
    model = ScriptedModel(busy, "Finally.")

    @durable_agent(model=model, retry=PATIENT)
    class Patient:
        instructions = "You wait."

    host = await agent_host(Patient)
    begun = host.now
    answer = await host.fast_forward(host.client.get_agent(Patient).run("Hello"))
    assert answer.text == "Finally."
    assert host.now - begun >= timedelta(hours=1)


async def test_all_time_of_an_orchestration_is_that_of_the_clock(agent_host: AgentHosts) -> None:
    @orchestrator
    async def months(context: OrchestrationContext) -> list[str]:
        seen = [context.current_utc_datetime]
        for _ in range(3):
            await context.sleep(DAYS_30)
            seen.append(context.current_utc_datetime)
        try:
            await context.wait_for_external_event("never", timeout=DAYS_30)
        except TimeoutError:
            seen.append(context.current_utc_datetime)
        return [when.isoformat() for when in seen]

    start = datetime(2030, 1, 1, tzinfo=UTC)
    host = await agent_host(orchestrators=[months], start=start)
    handle = await host.client.schedule_new_orchestration(months)
    await host.advance(timedelta(days=365))
    assert await handle == [(start + n * DAYS_30).isoformat() for n in range(5)]
    assert host.now == start + timedelta(days=365)


async def test_what_does_not_come_to_rest_is_named(agent_host: AgentHosts) -> None:
    entered, release = anyio.Event(), anyio.Event()

    async def slow(_: ModelRequest) -> str:
        entered.set()
        await release.wait()
        return "At last."

    host = await agent_host(cashier(ScriptedModel(slow)), patience=0.05)
    turn = await host.client.get_agent("Cashier").start("Hello")
    await entered.wait()
    with pytest.raises(NotSettled, match=r"activity dafx-Cashier\.model"):
        await host.settled()
    release.set()
    assert (await turn).text == "At last."


async def test_waiting_for_what_time_does_not_bring_is_an_error(agent_host: AgentHosts) -> None:
    @orchestrator
    async def forever(context: OrchestrationContext) -> None:
        await context.wait_for_external_event("never")

    host = await agent_host(orchestrators=[forever])
    handle = await host.client.schedule_new_orchestration(forever)
    with pytest.raises(NotSettled, match="nothing is left"):
        await host.fast_forward(handle)


async def test_work_that_nobody_hosts_does_not_keep_a_host_from_resting(agent_host: AgentHosts) -> None:
    host = await agent_host(cashier(ScriptedModel()))
    await host.client.schedule_new_orchestration("elsewhere")
    await host.advance(DAYS_30)


# --- Crashes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("where", "times"),
    [({"before": "tool"}, 1), ({"after": "tool"}, 2), ({"recorded": "tool"}, 1), ({"after": "thread"}, 1)],
)
async def test_a_step_in_flight_is_made_again_and_a_recorded_one_is_not(
    agent_host: AgentHosts, where: dict[str, Any], times: int
) -> None:
    acted: list[str] = []
    model = ScriptedModel(call("look", city="Oslo"), "Fine.")

    @durable_agent(model=model)
    class Guide:
        instructions = "You look."

        @tool
        async def look(self, city: str, context: ToolContext) -> str:
            """Look."""
            acted.append(context.idempotency_key)
            return city

    host = await agent_host(Guide)
    name = "record" if "thread" in where.values() else "look"
    fault = host.crash(**where, name=name)
    answer = await host.client.get_agent(Guide).run("How is it?")
    await host.settled()
    assert answer.text == "Fine."
    assert fault.point is not None
    assert host.crashes == (fault.point,)
    assert (len(acted), len(set(acted))) == (times, 1)
    model.assert_asked(2)


async def test_a_crash_cuts_off_what_else_runs_on_the_worker(agent_host: AgentHosts) -> None:
    entered, runs, cut = anyio.Event(), list[str](), list[str]()
    model = ScriptedModel([call("slow"), call("quick")], "Done.")

    @durable_agent(model=model)
    class Busy:
        instructions = "You work."

        @tool
        async def slow(self) -> str:
            """Be slow, the first time."""
            runs.append("slow")
            entered.set()
            try:
                await anyio.sleep_forever() if len(runs) == 1 else None
            except BaseException:
                cut.append("slow")
                raise
            return "slow"

        @tool
        async def quick(self) -> str:
            """Wait for the other to be at work."""
            await entered.wait()
            return "quick"

    host = await agent_host(Busy)
    host.crash(after="tool", name="quick")
    assert (await host.client.get_agent(Busy).run("Go")).text == "Done."
    assert (runs, cut) == (["slow", "slow"], ["slow"])


async def test_faults_are_asked_at_each_point_and_count_them(agent_host: AgentHosts) -> None:
    met: list[str] = []

    def faults(point: Any) -> bool:
        met.append(str(point))
        return bool(str(point) == "after model Cashier #1")

    model = ScriptedModel("Lost.", "Kept.")
    host = await agent_host(cashier(model), faults=faults)
    assert (await host.client.get_agent("Cashier").run("Hello")).text == "Kept."
    await host.settled()
    assert [point for point in met if "model" in point] == [
        "before model Cashier #1",
        "after model Cashier #1",
        "before model Cashier #2",
        "after model Cashier #2",
        "recorded model Cashier #1",
    ]
    assert met == [str(point) for point in host.passed]


async def test_orchestrations_and_activities_survive_crashes_too(agent_host: AgentHosts) -> None:
    ran: list[int] = []

    async def double(number: int) -> int:
        ran.append(number)
        return 2 * number

    @orchestrator
    async def twice(context: OrchestrationContext, number: int) -> int:
        first: int = await context.call_activity(double, input=number)
        second: int = await context.call_activity(double, input=first)
        return second

    host = await agent_host(orchestrators=[twice], activities=[double])
    host.crash(after="activity", name="double")
    host.crash(after="orchestration", nth=3)
    handle = await host.client.schedule_new_orchestration(twice, input=1)
    assert await handle == 4
    assert ran == [1, 1, 2]
    assert len(host.crashes) == 2


async def test_work_that_is_always_cut_off_comes_again_as_time_goes_by(agent_host: AgentHosts) -> None:
    host = await agent_host(
        cashier(ScriptedModel("At last.")),
        faults=lambda point: point.when == "before" and point.kind == "model" and point.nth <= 7,
    )
    begun = host.now
    answer = await host.fast_forward(host.client.get_agent("Cashier").run("Hello"))
    assert (answer.text, len(host.crashes)) == ("At last.", 7)
    assert host.now - begun >= timedelta(seconds=3), "the scheduler pauses after some attempts"


async def test_a_crash_is_planned_at_one_point() -> None:
    host = AgentHost()
    with pytest.raises(TypeError, match="exactly one"):
        host.crash()
    with pytest.raises(TypeError, match="exactly one"):
        host.crash(before="tool", after="tool")


async def test_a_crash_that_is_called_off_does_not_happen(agent_host: AgentHosts) -> None:
    host = await agent_host(cashier(ScriptedModel("Hello.")))
    fault = host.crash(before="model")
    fault.cancel()
    await host.client.get_agent("Cashier").run("Hello")
    assert (fault.point, host.crashes) == (None, ())


# --- The host itself -------------------------------------------------------------------------------------------------


async def test_a_host_that_cannot_start_says_why_and_leaves_nothing() -> None:
    with pytest.raises(ConfigurationError):
        async with AgentHost(int):
            raise AssertionError("it does not start")
    host = AgentHost()
    with pytest.raises(RuntimeError, match="async with"):
        _ = host.client


async def test_a_host_ends_with_a_step_that_hangs_and_leaves_no_thread() -> None:
    entered = anyio.Event()

    async def hang(_: ModelRequest) -> str:
        entered.set()
        await anyio.sleep_forever()
        raise AssertionError

    async with AgentHost(cashier(ScriptedModel(hang))) as host:
        await host.client.get_agent("Cashier").start("Hello")
        await entered.wait()
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("dafx")] == []


async def test_the_example_at_the_top_of_the_kit_runs() -> None:
    example = textwrap.dedent((dafx_actors.testing.__doc__ or "").split("::")[1].split("- `ScriptedModel`")[0])
    names: dict[str, Any] = {**vars(dafx_actors), **vars(dafx_actors.testing), "timedelta": timedelta}
    exec(example, names)
    await names["test_a_payment_waits_for_a_person_and_survives_a_crash"]()


def test_the_plugin_costs_nothing_at_the_start() -> None:
    program = "import pytest_dafx_actors, sys; print('dafx_actors' in sys.modules, 'durabletask' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["False", "False"]


# --- Replay ----------------------------------------------------------------------------------------------------------


async def first_step(number: int) -> int:
    return number


async def other_step(number: int) -> int:
    return number


@orchestrator
async def steady(context: OrchestrationContext, number: int) -> int:
    result: int = await context.call_activity(first_step, input=number)
    await context.sleep(60)
    return result


async def recorded(agent_host: AgentHosts) -> History:
    host = await agent_host(orchestrators=[steady], activities=[first_step])
    handle = await host.client.schedule_new_orchestration(steady, input=1)
    await host.fast_forward(handle)
    return await host.history(handle)


async def test_the_same_code_replays(agent_host: AgentHosts, tmp_path: Path) -> None:
    history = await recorded(agent_host)
    replay(history, steady)
    history.save(tmp_path / "steady.json")
    assert History.load(tmp_path / "steady.json") == history
    replay(History.load(tmp_path / "steady.json"), cashier(ScriptedModel()), steady)


def changed(kind: str) -> Callable[..., Any]:
    async def same_name(context: OrchestrationContext, number: int) -> int:
        if kind == "fails":
            raise ValueError("changed")
        activity = other_step if kind == "another activity" else first_step
        result: int = await context.call_activity(activity, input=number)
        if kind == "more":
            context.signal_entity(_ENTITY, "note")
        if kind != "less":
            await context.sleep(61 if kind == "another time" else 60)
        return result

    same_name.__name__ = same_name.__qualname__ = "steady"
    return orchestrator(same_name)


@pytest.mark.parametrize(
    ("kind", "episode", "then", "now"),
    [
        ("another activity", 1, "1: activity first_step", "1: activity other_step"),
        ("fails", 1, "1: activity first_step", "it ends as failed with builtins.ValueError (changed)"),
        ("more", 2, "2: timer until", "2: signal note to @dafx-other@x"),
        ("less", 2, "2: timer until", "it ends as completed"),
        ("another time", 2, "2: timer until", "2: timer until"),
    ],
)
async def test_code_that_would_do_something_else_is_found(
    agent_host: AgentHosts, kind: str, episode: int, then: str, now: str
) -> None:
    history = await recorded(agent_host)
    with pytest.raises(ReplayMismatch) as caught:
        replay(history, changed(kind))
    assert caught.value.episode == episode
    assert caught.value.then.startswith(then)
    assert caught.value.now.startswith(now)
    assert caught.value.then != caught.value.now


async def test_code_that_goes_on_where_it_ended_is_found(agent_host: AgentHosts) -> None:
    history = await recorded(agent_host)

    async def longer(context: OrchestrationContext, number: int) -> int:
        result: int = await context.call_activity(first_step, input=number)
        await context.sleep(60)
        await context.sleep(60)
        return result

    longer.__name__ = "steady"
    with pytest.raises(ReplayMismatch) as caught:
        replay(history, orchestrator(longer))
    assert caught.value.then == "it ends as completed"
    assert caught.value.now.startswith("3: timer until")


async def test_a_failure_is_replayed_as_one(agent_host: AgentHosts) -> None:
    @orchestrator
    async def failing(context: OrchestrationContext) -> None:
        await context.sleep(1)
        raise ValueError("as ever")

    host = await agent_host(orchestrators=[failing])
    handle = await host.client.schedule_new_orchestration(failing)
    with pytest.raises(OrchestrationFailed):
        await host.fast_forward(handle)
    replay(await host.history(handle), failing)


async def test_what_is_not_there_cannot_be_replayed(agent_host: AgentHosts, tmp_path: Path) -> None:
    history = await recorded(agent_host)
    with pytest.raises(LookupError, match="steady"):
        replay(history, cashier(ScriptedModel()))
    host = await agent_host()
    with pytest.raises(LookupError, match="does not exist"):
        await host.history("nobody")
    other = tmp_path / "other.json"
    other.write_text("[]")
    with pytest.raises(ValueError, match="holds no history"):
        History.load(other)
