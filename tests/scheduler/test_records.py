"""One record stands for each orchestration and entity, whatever is loaded, held and forgotten."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dafx_actors.scheduler._ground.clock import SystemClock
from dafx_actors.scheduler._ground.proto import pb
from dafx_actors.scheduler._ground.records import Operation, Start
from dafx_actors.scheduler._hub import entities as _entities
from dafx_actors.scheduler._hub import orchestrations as _orchestrations
from dafx_actors.scheduler._hub.engine import Engine, Patience, Retention
from dafx_actors.scheduler.storage import tables

if TYPE_CHECKING:
    from dafx_actors.scheduler._ground.records import Entity, Orchestration
    from dafx_actors.scheduler._hub.hub import TaskHub

NUMBERS = st.integers(0, 5)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["hold", "drop", "fill", "read"]), NUMBERS),
        st.tuples(st.sampled_from(["tick", "settle"]), st.just(0)),
    ),
    max_size=40,
)


def engine() -> Engine:
    return Engine(None, synchronous="full", clock=SystemClock(), retention=Retention(), patience=Patience())


@pytest.fixture(autouse=True)
def _small_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (_entities, _orchestrations):
        monkeypatch.setattr(module, "_MOST_IDLE", 2)
        monkeypatch.setattr(module, "_HEAVIEST_IDLE", 3_000)


def tell(hub: TaskHub, number: int) -> None:
    event = pb.HistoryEvent(entityOperationSignaled=pb.EntityOperationSignaledEvent(operation="add"))
    operation = Operation(id=hub.ids.row(), event=event.SerializeToString(), request_id=str(hub.ids.row()))
    with hub.changing() as changes:
        hub.entities.tell(changes, f"@e@{number}", operation)


def carry_out(hub: TaskHub, entity: Entity, size: int) -> None:
    """As if a worker had answered for all that waits in the mailbox."""
    entity.batch = tuple(entity.mailbox)
    results = [pb.OperationResult(success=pb.OperationResultSuccess())] * len(entity.batch)
    answer = pb.EntityBatchResult(results=results)
    answer.entityState.value = f"{len(entity.batch) + int((entity.state or '0').split(':')[0])}:{'x' * size}"
    hub.delivery.withdraw(entity.id)
    entity.queued = False
    with hub.changing() as changes:
        hub.entities.settled(changes, entity, answer)


async def play(steps: list[tuple[str, int]]) -> None:
    """Entities count what they were told; whatever was held or forgotten, nothing is lost and none is doubled."""
    async with engine() as running:
        hub, held = running.hub("default"), dict[int, Any]()
        told = dict.fromkeys(range(6), 0)
        for action, number in steps:
            name = f"@e@{number}"
            if action == "hold":
                held[number] = hub.entities.find(name)
            elif action == "drop":
                held.pop(number, None)
            elif action == "fill":
                tell(hub, number)
                told[number] += 1
                entity: Entity | None = held.get(number) or hub.entities.find(name)
                assert entity is not None
                assert entity is hub.entities.find(name)
                carry_out(hub, entity, size=number * 800)
            elif action == "read" and held.get(number) is not None:
                assert hub.entities.find(name) is held[number]
            elif action == "tick":
                await asyncio.sleep(0)
            elif action == "settle":
                await hub.store.committer.drained()
        await hub.store.committer.drained()
        await asyncio.sleep(0)
        held.clear()
        hub.entities.forget()
        for number, count in told.items():
            entity = hub.entities.find(f"@e@{number}")
            assert (0 if entity is None else int((entity.state or "0").split(":")[0])) == count


@given(STEPS)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_what_is_held_is_the_one_record_whatever_is_forgotten(steps: list[tuple[str, int]]) -> None:
    asyncio.run(play(steps))


@pytest.mark.anyio
async def test_a_request_that_loads_more_than_the_cache_holds_has_each_record_once() -> None:
    async with engine() as running:
        hub = running.hub("default")
        with hub.changing() as changes:
            made = [hub.orchestrations.create(changes, f"o{n}", Start(name="o")) for n in range(50)]
            rows = [it.id for it in made]
            while made:
                hub.orchestrations.terminate(changes, made.pop(), None, recurse=False)
        await changes.committed()
        hub.reload()
        found = [hub.orchestrations.find_by_id(row) for row in rows]
        again = [hub.orchestrations.find(f"o{n}") for n in range(50)]
        assert all(one is other and one is not None for one, other in zip(found, again, strict=True))


@pytest.mark.anyio
async def test_a_second_record_for_a_row_is_an_assertion() -> None:
    """What would lose a change must not pass: the task hub is read again instead."""
    async with engine() as running:
        hub = running.hub("default")
        with hub.changing() as changes:
            it = hub.orchestrations.create(changes, "one", Start(name="o"))
        await changes.committed()
        stranger: Orchestration | None = hub.store.orchestration_by_id(it.id)
        assert stranger is not None
        with pytest.raises(AssertionError, match="one record"), hub.changing() as changes:  # noqa: PT012
            tables.delete_history(changes, stranger.id)
            hub.orchestrations.touch(changes, stranger)
        assert hub.orchestrations.find("one") is not stranger
