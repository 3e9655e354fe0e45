"""Requests that come while their thread works on another: `queue`, `reject`, `cancel_previous`, `steer`."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from dafx_actors import DurableAIAgentClient, DurableAIAgentWorker, ModelRequest, TurnHandle, tool
from dafx_actors.errors import ModelError, ThreadBusy, TurnCancelled
from dafx_actors.scheduler import EmbeddedScheduler
from dafx_actors.testing import ScriptedModel
from tests.integration.conftest import Hosting
from tests.integration.test_robustness import Held
from tests.integration.turns import agent, asked_of, asks, is_balanced, line_of, program, results, until

pytestmark = pytest.mark.anyio


async def told(client: DurableAIAgentClient, where: str, turn: str, thread: str = "here") -> None:
    """Wait until the thread has a turn among those in `waiting`, `steered` or `joined`."""
    entity = client.get_agent("Worker").get_thread(thread).entity_id

    async def knows() -> bool:
        document: Any = await client._backend.thread(entity)
        among = ((document or {}).get("data", {}).get("dafx") or {}).get(where, [])
        return turn in [each if isinstance(each, str) else each["correlationId"] for each in among]

    await until(knows)


async def start(client: DurableAIAgentClient, text: str, **how: Any) -> TurnHandle[None]:
    handle: TurnHandle[None] = await client.get_agent("Worker").start(text, thread="here", correlation_id=text, **how)
    return handle


async def test_reject_fails_at_once_and_leaves_no_trace(hosting: Hosting) -> None:
    held = Held()
    async with hosting(agent(held.model, overlap="reject")) as client:
        first = await start(client, "first")
        await held.called.wait()
        with pytest.raises(ThreadBusy) as caught:
            await (await start(client, "second"))
        held.release.set()
        await first
        transcript = await client.get_agent("Worker").get_transcript("here")
    assert caught.value.active == "first"
    assert [message.text for message in transcript] == ["first", "first (2 messages)"]


async def test_cancel_previous_takes_the_place_of_all_before_it(hosting: Hosting) -> None:
    held = Held()
    async with hosting(agent(held.model, overlap="cancel_previous")) as client:
        first = await start(client, "first")
        await held.called.wait()
        second = await start(client, "second")
        for each in (first,):
            with pytest.raises(TurnCancelled) as caught:
                await each
        held.release.set()
        answer = await second
        transcript = await client.get_agent("Worker").get_transcript("here")
    assert (caught.value.by, caught.value.reason) == ("second", "a newer request took its place")
    assert answer.text == "second (4 messages)"
    assert is_balanced(transcript)


async def test_cancel_previous_stops_tools_that_wait(hosting: Hosting) -> None:
    acted: list[int] = []

    @tool(approval=True)
    def pay() -> None:
        acted.append(1)

    def script(request: ModelRequest) -> Any:
        return asks(("pay", {})) if request.messages[-1].text == "first" else "Never mind."

    async with hosting(agent(ScriptedModel(script), pay, overlap="cancel_previous")) as client:
        first = await start(client, "first")
        await asked_of(client)
        answer = await (await start(client, "second"))
        with pytest.raises(TurnCancelled):
            await first
    assert (answer.text, acted) == ("Never mind.", [])


class Steered:
    """A turn that is in the middle of a tool, and then tells all that it was told."""

    def __init__(self) -> None:
        self.begun = anyio.Event()
        self.release = anyio.Event()
        self.model = ScriptedModel(asks(("work", {})), self.tell)

    async def work(self) -> str:
        self.begun.set()
        await self.release.wait()
        return "worked"

    @staticmethod
    def tell(request: ModelRequest) -> str:
        return " | ".join(f"{m.role}: {m.text}" for m in request.messages[1:])


async def test_a_steered_request_joins_between_the_tools_and_the_next_model_call(hosting: Hosting) -> None:
    steered = Steered()
    async with hosting(agent(steered.model, steered.work, overlap="steer")) as client:
        first = await start(client, "first")
        await steered.begun.wait()
        second = await start(client, "second")
        await told(client, "steered", "second")
        steered.release.set()
        answers = [await first, await second]
        transcript = await client.get_agent("Worker").get_transcript("here")
        again = await (await start(client, "second"))
    assert [each.text for each in answers] == ["user: first | assistant:  | tool:  | user: second"] * 2
    assert again == answers[1]
    assert is_balanced(transcript)
    assert len(steered.model.requests) == 2


async def test_a_request_that_comes_during_the_last_model_call_is_answered_too(hosting: Hosting) -> None:
    held = Held()
    async with hosting(agent(held.model, overlap="steer")) as client:
        first = await start(client, "first")
        await held.called.wait()
        second = await start(client, "second")
        await told(client, "steered", "second")
        held.release.set()
        answers = [await first, await second]
    # The model has answered the first, and is asked once more, for the second.
    assert [each.text for each in answers] == ["second (4 messages)"] * 2


async def test_whoever_joined_a_turn_that_fails_gets_its_error(hosting: Hosting) -> None:
    steered = Steered()
    steered.model = ScriptedModel(asks(("work", {})), ModelError("authentication", "no"), "Hello.")
    async with hosting(agent(steered.model, steered.work, overlap="steer")) as client:
        first = await start(client, "first")
        await steered.begun.wait()
        second = await start(client, "second")
        await told(client, "steered", "second")
        steered.release.set()
        for each in (first, second):
            with pytest.raises(ModelError, match="no"):
                await each
        assert (await (await start(client, "third"))).text == "Hello."


async def test_what_had_not_joined_when_the_turn_ended_is_next(hosting: Hosting) -> None:
    steered = Steered()
    steered.model = ScriptedModel(asks(("work", {})), "Hello.")
    async with hosting(agent(steered.model, steered.work, overlap="steer")) as client:
        first = await start(client, "first")
        await steered.begun.wait()
        second = await start(client, "second")
        await told(client, "steered", "second")
        assert await first.cancel()
        with pytest.raises(TurnCancelled):
            await first
        assert (await second).text == "Hello."
        steered.release.set()


async def test_cancelling_what_has_joined_cancels_the_turn(hosting: Hosting) -> None:
    held = Held()

    async def script(request: ModelRequest) -> Any:
        return (
            await held.reply(request)
            if results(request) or "second" in request.messages[-1].text
            else asks(("add", {}))
        )

    @tool(approval=True)
    def add() -> int:
        return 1

    async with hosting(agent(ScriptedModel(script), add, overlap="steer")) as client:
        first = await start(client, "first")
        pending = await asked_of(client)
        second = await start(client, "second")
        await told(client, "steered", "second")
        await client.approve(pending)
        await told(client, "joined", "second")
        assert await second.cancel("enough")
        for each in (first, second):
            with pytest.raises(TurnCancelled, match="enough"):
                await each
        held.release.set()


HANGS = """
import sys
import anyio
from dafx_actors import DurableAIAgentWorker
from tests.integration.turns import agent, asks, using

async def work() -> str:
    print("begun", flush=True)
    await anyio.sleep_forever()

worker = DurableAIAgentWorker.connect(sys.argv[1])
worker.add_agent(agent(using(asks(("work", {}))), work, overlap="steer"))
worker.start()
print("ready", flush=True)
sys.stdin.read()
"""


async def test_a_steered_request_survives_kill_9_of_the_worker(tmp_path: Any) -> None:
    steered = Steered()
    steered.release.set()
    steered.model = ScriptedModel(steered.tell)
    with EmbeddedScheduler(db=tmp_path / "dafx.db").on_a_thread() as scheduler:
        async with DurableAIAgentClient.connect(scheduler.endpoint) as client:
            async with program(HANGS, scheduler.endpoint) as process:
                first = await start(client, "first")
                # Not before: until then the second could overtake the first, or the first have asked for no tool yet.
                assert await line_of(process) == "begun"
                second = await start(client, "second")
                await told(client, "steered", "second")
                process.kill()
            worker = DurableAIAgentWorker.connect(scheduler.endpoint)
            worker.add_agent(agent(steered.model, steered.work, overlap="steer"))
            async with worker:
                answers = [await first, await second]
    assert [each.text for each in answers] == ["user: first | assistant:  | tool:  | user: second"] * 2
