"""What holds the scheduler together: each a small thing, of which nothing else tells when it is not so."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
from durabletask import history, task
from durabletask.client import OrchestrationStatus
from durabletask.entities import DurableEntity, EntityInstanceId

from dafx_actors.scheduler._ground.clock import SystemClock
from dafx_actors.scheduler._ground.records import Start
from dafx_actors.scheduler._hub.engine import Engine, Patience, Retention
from dafx_actors.scheduler._rules.dispatch import WorkQueue
from dafx_actors.scheduler._rules.filters import Lane
from dafx_actors.scheduler.storage.committer import Committer
from tests.scheduler.bench import PATIENCE, Bench, Steps
from tests.scheduler.test_rules import HandClock, ids, work, worker

pytestmark = pytest.mark.anyio

SLOW = EntityInstanceId("slow", "a")


class Slow(DurableEntity):
    """Does nothing until it may."""

    begun = threading.Event()
    may_end = threading.Event()

    def wait(self, _: object = None) -> str:
        Slow.begun.set()
        assert Slow.may_end.wait(PATIENCE)
        return "late"

    def start(self, name: str) -> str:
        return self.entity_context.schedule_new_orchestration(name, instance_id="taken")


@pytest.fixture(autouse=True)
def _slow() -> None:
    Slow.begun.clear()
    Slow.may_end.clear()


class Held(Committer):
    """Commits when it may, on its thread."""

    def hold(self) -> None:
        self._quick = -1.0
        self.may_commit = threading.Semaphore(0)

    def _commit(self, *, usual: bool = True) -> sqlite3.Error | None:
        if hasattr(self, "may_commit"):
            assert self.may_commit.acquire(timeout=PATIENCE)
        return super()._commit(usual=usual)


# --- What is told, and when ---------------------------------------------------------------------------------------


async def test_a_client_is_not_told_of_an_end_that_is_not_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An earlier change of the same orchestration is: the start is written, and the end waits for the disk."""
    monkeypatch.setattr("dafx_actors.scheduler.storage.store.Committer", Held)
    async with Engine(
        tmp_path / "dafx.db", synchronous="full", clock=SystemClock(), retention=Retention(), patience=Patience()
    ) as engine:
        hub = engine.hub("default")
        committer = hub.store.committer
        assert isinstance(committer, Held)
        await committer.drained()
        committer.hold()
        with hub.changing() as first:
            it = hub.orchestrations.create(first, "one", Start(name="o"))
        while committer._group is None:
            await asyncio.sleep(0)
        with hub.changing() as second:
            hub.orchestrations.terminate(second, it, None, recurse=False)
        waits = asyncio.create_task(hub.wait("one", ended=True))
        committer.may_commit.release()
        await first.committed()
        for _ in range(20):
            await asyncio.sleep(0)
        assert not waits.done()
        committer.may_commit.release(1_000)
        assert (await waits).ended
        assert committer.committed >= second.seq


async def test_what_a_backup_holds_is_all_that_was_decided_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dafx_actors.scheduler.storage.store.Committer", Held)
    async with Engine(
        tmp_path / "dafx.db", synchronous="full", clock=SystemClock(), retention=Retention(), patience=Patience()
    ) as engine:
        hub = engine.hub("default")
        committer = hub.store.committer
        assert isinstance(committer, Held)
        await committer.drained()
        committer.hold()
        with hub.changing() as changes:
            hub.orchestrations.create(changes, "one", Start(name="o"))
        copying = asyncio.create_task(hub.store.back_up(tmp_path / "copy.db"))
        with anyio.move_on_after(0.2):
            await asyncio.shield(copying)
        committer.may_commit.release(1_000)
        await copying
    with closing(sqlite3.connect(tmp_path / "copy.db")) as copy:
        assert copy.execute("SELECT instance_id FROM orchestrations").fetchall() == [("one",)]


# --- Who gets an answer -------------------------------------------------------------------------------------------


async def test_a_child_that_ends_after_its_parent_began_anew_completes_nothing_there(bench: Bench) -> None:
    """Both executions have a child of the same task id."""

    def waits(context: task.OrchestrationContext, _: object) -> Steps:
        return (yield context.wait_for_external_event("go"))

    def parent(context: Any, number: int) -> Steps:
        child = context.call_sub_orchestrator(waits, instance_id=f"child{number}")
        if number == 0:
            yield context.wait_for_external_event("anew")
            context.continue_as_new(1)
            return None
        return (yield child)

    await bench.worker(waits, parent)
    instance_id = await bench.client.schedule_new_orchestration(parent, input=0)
    for child in ("child0", "child1"):
        await bench.client.wait_for_orchestration_start(child, timeout=PATIENCE)
        if child == "child0":
            await bench.client.raise_orchestration_event(instance_id, "anew")
    await bench.client.raise_orchestration_event("child0", "go", data="old")
    await bench.end_of("child0")
    await bench.client.raise_orchestration_event("child1", "go", data="new")
    assert (await bench.end_of(instance_id)).serialized_output == '"new"'
    events = await bench.client.get_orchestration_history(instance_id)
    assert sum(isinstance(event, history.SubOrchestrationInstanceCompletedEvent) for event in events) == 1


async def test_an_entity_that_answers_after_its_caller_began_anew_is_not_heard_there(bench: Bench) -> None:
    def caller(context: Any, number: int) -> Steps:
        if number == 0:
            context.call_entity(SLOW, "wait")
            yield context.wait_for_external_event("anew")
            context.continue_as_new(1)
            return None
        yield context.wait_for_external_event("end")
        return "ended"

    await bench.worker(caller, Slow)
    instance_id = await bench.client.schedule_new_orchestration(caller, input=0)
    assert await anyio.to_thread.run_sync(Slow.begun.wait, PATIENCE)
    await bench.client.raise_orchestration_event(instance_id, "anew")
    hub = bench.scheduler.engine.hub("default")
    with anyio.fail_after(PATIENCE):
        while (it := hub.orchestrations.find(instance_id)) is None or it.start is None or it.start.input != "1":
            await anyio.sleep(0.005)
        Slow.may_end.set()
        while (entity := hub.entities.find(str(SLOW))) is not None and not entity.idle:
            await anyio.sleep(0.005)
    await bench.client.raise_orchestration_event(instance_id, "end")
    assert (await bench.end_of(instance_id)).serialized_output == '"ended"'
    events = await bench.client.get_orchestration_history(instance_id)
    assert not [event for event in events if isinstance(event, history.EntityOperationCompletedEvent)]


async def test_a_lock_that_was_asked_for_during_an_operation_is_granted_when_that_is_done(bench: Bench) -> None:
    def locks(context: task.OrchestrationContext, _: object) -> Steps:
        with (yield context.lock_entities([SLOW])):
            return "locked"

    await bench.worker(locks, Slow)
    await bench.client.signal_entity(SLOW, "wait")
    assert await anyio.to_thread.run_sync(Slow.begun.wait, PATIENCE)
    instance_id = await bench.client.schedule_new_orchestration(locks)
    hub = bench.scheduler.engine.hub("default")
    with anyio.fail_after(PATIENCE):
        while not hub.entities._requests:
            await anyio.sleep(0.005)
    Slow.may_end.set()
    assert (await bench.end_of(instance_id)).serialized_output == '"locked"'


async def test_an_entity_that_starts_an_orchestration_of_a_known_id_leaves_that_alone(bench: Bench) -> None:
    def waits(context: task.OrchestrationContext, _: object) -> Steps:
        return (yield context.wait_for_external_event("go"))

    await bench.worker(waits, Slow)
    await bench.client.schedule_new_orchestration(waits, instance_id="taken")
    await bench.client.wait_for_orchestration_start("taken", timeout=PATIENCE)
    row = bench.scheduler.engine.hub("default").orchestrations.find("taken")
    await bench.client.signal_entity(SLOW, "start", "waits")
    hub = bench.scheduler.engine.hub("default")
    with anyio.fail_after(PATIENCE):
        while (entity := hub.entities.find(str(SLOW))) is not None and not entity.idle:
            await anyio.sleep(0.005)
    assert hub.orchestrations.find("taken") is row
    await bench.client.raise_orchestration_event("taken", "go", data="mine")
    assert (await bench.end_of("taken")).serialized_output == '"mine"'
    states = await bench.client.get_all_orchestration_states()
    assert [(each.instance_id, each.runtime_status) for each in states] == [("taken", OrchestrationStatus.COMPLETED)]


# --- What is handed out -------------------------------------------------------------------------------------------


async def test_an_activity_that_its_orchestration_ends_without_is_not_handed_out(bench: Bench) -> None:
    done: list[str] = []

    def do_note(_: Any, text: str) -> None:
        done.append(text)

    def leaves(context: task.OrchestrationContext, _: object) -> Steps:
        context.call_activity(do_note, input="left")
        return "left"
        yield

    def stays(context: task.OrchestrationContext, _: object) -> Steps:
        yield context.call_activity(do_note, input="stayed")

    await bench.worker(leaves, stays, do_note)
    assert (await bench.run(leaves)).serialized_output == '"left"'
    await bench.run(stays)
    assert done == ["stayed"]


def test_the_lanes_of_a_worker_take_turns() -> None:
    """However much waits in the first one."""
    queue, lanes = WorkQueue(), [Lane(kind="activity", name=name) for name in "ab"]
    for number in range(4):
        queue.add(work(number, lane=lanes[0]))
    for number in (10, 11):
        queue.add(work(number, lane=lanes[1]))
    one = worker(limit=4)
    queue.connect(one)
    assert ids(one) == [0, 10, 1, 11]


async def test_times_of_an_orchestration_do_not_go_back_with_the_clock(tmp_path: Path) -> None:
    clock = HandClock()
    async with Bench(tmp_path / "dafx.db", clock=clock) as bench:
        await bench.client.schedule_new_orchestration("nobody", instance_id="one")
        it = bench.scheduler.engine.hub("default").orchestrations.find("one")
        assert it is not None
        updated = it.updated
        clock.move(clock.now() - 3_600 * 1_000_000)
        await bench.client.terminate_orchestration("one")
        assert it.ended
        assert it.completed is not None
        assert it.completed >= updated
