"""`context.map`: so many at once, results in their order, the first failure when all have ended."""

from __future__ import annotations

import pytest

from dafx_actors import OrchestrationContext, orchestrator
from dafx_actors.errors import OrchestrationFailed
from dafx_actors.testing import AgentHost

pytestmark = pytest.mark.anyio


class Crowd:
    """Counts how many are inside at once."""

    inside = most = 0

    async def square(self, number: int) -> int:
        self.inside += 1
        self.most = max(self.most, self.inside)
        self.inside -= 1
        if number < 0:
            raise ValueError(f"{number} is negative")
        return number * number


@orchestrator
async def squares(context: OrchestrationContext, numbers: list[int]) -> list[int]:
    return await context.map(lambda n: context.call_activity("square", input=n, return_type=int), numbers, width=3)


@orchestrator
async def coroutines(context: OrchestrationContext, numbers: list[int]) -> list[int]:
    running: list[int] = []
    at_once: list[int] = []

    async def one(number: int) -> int:
        running.append(number)
        at_once.append(len(running))
        await context.sleep(number)
        running.remove(number)
        return number

    results = await context.map(one, numbers, width=2)
    return [*results, max(at_once, default=0)]


@orchestrator
async def mistakes(context: OrchestrationContext) -> list[str]:
    said: list[str] = []
    for items, width in (([1], 0), ({1, 2}, 1)):
        try:
            await context.map(lambda n: context.sleep(n), items, width=width)
        except Exception as error:
            said.append(type(error).__name__)
    return said


async def test_results_stand_in_the_order_of_the_items() -> None:
    crowd = Crowd()
    async with AgentHost(orchestrators=[squares], activities=[crowd.square]) as host:
        handle = await host.client.schedule_new_orchestration(squares, input=[3, 1, 2, 5, 4])
        assert await handle == [9, 1, 4, 25, 16]
        assert await (await host.client.schedule_new_orchestration(squares, input=[])) == []


async def test_no_more_than_so_many_run_at_once() -> None:
    async with AgentHost(orchestrators=[coroutines]) as host:
        handle = await host.client.schedule_new_orchestration(coroutines, input=[3, 1, 2, 1])
        assert await host.fast_forward(handle.result()) == [3, 1, 2, 1, 2]


async def test_the_first_failure_is_raised_when_all_have_ended() -> None:
    crowd = Crowd()
    async with AgentHost(orchestrators=[squares], activities=[crowd.square]) as host:
        handle = await host.client.schedule_new_orchestration(squares, input=[1, -2, -3, 4])
        with pytest.raises(OrchestrationFailed, match="-2 is negative"):
            await handle


async def test_what_cannot_be_mapped_is_said() -> None:
    async with AgentHost(orchestrators=[mistakes]) as host:
        handle = await host.client.schedule_new_orchestration(mistakes)
        assert await handle == ["ValueError", "NotDurableError"]
