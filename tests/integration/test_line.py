"""Requests that wait cost their thread an id and a digest: a line of large ones fits a small message limit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import pytest

from dafx_actors import DurableAIAgentClient, DurableAIAgentWorker, ModelRequest
from dafx_actors.errors import MessageTooLarge, TurnCancelled
from dafx_actors.scheduler import EmbeddedScheduler
from dafx_actors.testing import ScriptedModel
from tests.integration.conftest import Hosting
from tests.integration.turns import agent, in_state, sdk, until

pytestmark = pytest.mark.anyio

LIMIT = 2**20
"""Bytes of a message, as deployed schedulers have it."""


class Held:
    """A model that answers nothing before it may."""

    def __init__(self) -> None:
        self.may = anyio.Event()
        self.called = anyio.Event()
        self.model = ScriptedModel(self.reply)

    async def reply(self, request: ModelRequest) -> str:
        self.called.set()
        await self.may.wait()
        return f"{request.messages[-1].text[:3].strip()} after {len(request.messages) - 2}"


async def in_line(client: DurableAIAgentClient, count: int) -> None:
    """Wait until so many requests wait in the thread."""
    entity = client.get_agent("Worker").get_thread("here").entity_id

    async def are_there() -> bool:
        document: Any = await client._backend.thread(entity)
        return len(((document or {}).get("data", {}).get("dafx") or {}).get("line", ())) >= count

    await until(are_there)


@pytest.mark.parametrize("letters", [50_000, 60_000])
@pytest.mark.timeout(120)
async def test_twenty_overlapping_requests_are_answered_under_a_limit_of_a_mebibyte(
    tmp_path: Path, letters: int
) -> None:
    """All that a thread can remember under that limit; what it cannot, is refused by name, and the thread goes on."""
    held, answers, refused = Held(), dict[int, str](), list[int]()

    async def ask(client: DurableAIAgentClient, number: int) -> None:
        try:
            response = await client.get_agent("Worker").run(f"{number:3} {'x' * letters}", thread="here")
        except MessageTooLarge:
            refused.append(number)
        else:
            answers[number] = response.text

    async with EmbeddedScheduler(tmp_path / "dafx.db", max_message_bytes=LIMIT) as scheduler:
        worker = DurableAIAgentWorker.connect(scheduler.endpoint)
        worker.add_agent(agent(held.model))
        async with worker, DurableAIAgentClient.connect(scheduler.endpoint) as client:
            async with anyio.create_task_group() as group:
                for number in range(20):
                    group.start_soon(ask, client, number)
                await held.called.wait()
                await in_line(client, 19)
                held.may.set()
            last = await client.get_agent("Worker").run("hi", thread="here")
    fits = min(20, LIMIT // (letters + 700))
    assert (len(answers), len(refused)) == (fits, 20 - fits)
    assert {answer.split(" after ")[1] for answer in answers.values()} == {str(2 * n) for n in range(fits)}
    assert last.text.startswith("hi after ")


@pytest.mark.parametrize("endpoint", ["embedded"], indirect=True)
async def test_what_a_large_request_costs_is_twice_its_size_however_long_it_waits(
    hosting: Hosting, endpoint: str
) -> None:
    """Its turn's input, and what it tells its thread; once more where it had to wait. Each holds the text once."""
    held, text = Held(), "x" * 700_000
    async with hosting(agent(held.model)) as client, sdk(endpoint) as operator:
        worker = client.get_agent("Worker")

        async def recorded(turn: str) -> int:
            history = await operator.get_orchestration_history(turn)
            return sum(repr(event).count("x" * 1_000) for event in history)

        first = await worker.start(text, thread="here", correlation_id="first")
        await held.called.wait()
        second = await worker.start(text, thread="here", correlation_id="second")
        await in_state(second, "queued")
        operator_sees = await recorded("second")
        # Knocks make it ask its thread again, which it does with an id and a digest.
        for _ in range(5):
            await operator.raise_orchestration_event("second", "granted")
        held.may.set()
        await first
        await second
        costs = [await recorded("first"), operator_sees, await recorded("second")]
    assert costs == [1_400, 1_400, 2_100]


async def test_a_turn_that_is_cancelled_in_line_is_shown_with_its_request(hosting: Hosting) -> None:
    held = Held()
    async with hosting(agent(held.model)) as client:
        worker = client.get_agent("Worker")
        first = await worker.start("first", thread="here")
        await held.called.wait()
        second = await worker.start("second", thread="here", correlation_id="second")
        third = await worker.start("third", thread="here")
        await in_line(client, 2)
        assert await second.cancel("enough", by="Ann")
        with pytest.raises(TurnCancelled, match="enough"):
            await second
        transcript = await worker.get_transcript("here")
        held.may.set()
        assert (await first).text == "fir after 0"
        assert (await third).text == "thi after 4"
    asked = transcript.request("second")
    assert asked is not None
    assert [message.text for message in asked.messages] == ["second"]
