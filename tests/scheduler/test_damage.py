"""Pages of the file that cannot be read any more: a clear error, and as little harm as possible."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import grpc.aio
import pytest
from durabletask import task
from durabletask.client import OrchestrationQuery
from durabletask.entities import EntityInstanceId

from dafx_actors.errors import SchedulerDatabaseError
from tests.scheduler.bench import Bench, RawWorker, Steps
from tests.scheduler.test_delivery import complete
from tests.scheduler.test_entities import Counter, state_of
from tests.scheduler.test_rules import HandClock

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.anyio

PAGE = 2_048
COUNT = 20
TABLE_LEAF, INDEX_LEAF = 0x0D, 0x0A


def waits(context: task.OrchestrationContext, _: object) -> Steps:
    return (yield context.wait_for_external_event("go"))


def damage(path: Path, number: int) -> None:
    """Make a page, counted from 1, one that SQLite cannot read."""
    with path.open("r+b") as file:
        file.seek((number - 1) * PAGE)
        file.write(b"\xff" * 64)


def pages_of(path: Path) -> list[bytes]:
    content = path.read_bytes()
    return [content[start : start + PAGE] for start in range(0, len(content), PAGE)]


def page_with(path: Path, needle: str, kind: int) -> int:
    """The page of this kind that holds the text."""
    (found,) = [n for n, page in enumerate(pages_of(path), 1) if page[0] == kind and needle.encode() in page]
    return found


def root_of(path: Path, name: str) -> int:
    with closing(sqlite3.connect(path)) as connection:
        return int(connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = ?", (name,)).fetchone()[0])


@pytest.fixture
async def db(tmp_path: Path) -> Path:
    """A file with waiting orchestrations, of which each has pages of its own."""
    path = tmp_path / "dafx.db"
    async with Bench(path) as bench:
        await bench.worker(waits)
        for number in range(COUNT):
            name = f"needle-{number}"
            await bench.client.schedule_new_orchestration(waits, instance_id=name, input=name + "x" * 1_250)
            await bench.client.wait_for_orchestration_start(name, timeout=30)
    return path


async def test_a_history_that_cannot_be_read_harms_nobody_else(db: Path) -> None:
    """Its orchestration stays; the worker that was to get it keeps its stream, and whatever else it holds."""
    number = page_with(db, "needle-1xxx", INDEX_LEAF)
    elsewhere = [n for n in range(COUNT) if f"needle-{n}xxx".encode() not in pages_of(db)[number - 1]]
    others = elsewhere[-3:]  # Some way off: to find the end of a history, what lies beside it is looked at.
    damage(db, number)
    async with Bench(db) as bench:
        worker = RawWorker(await bench.stub())
        await bench.client.raise_orchestration_event("needle-1", "go", data=1)
        await bench.client.schedule_new_orchestration("any", instance_id="other")
        item = await worker.take()
        assert item.orchestratorRequest.instanceId == "other"
        await worker.stub.CompleteOrchestratorTask(complete(item))
        await bench.end_of("other")
        with pytest.raises(grpc.aio.AioRpcError, match="malformed") as caught:
            await bench.client.get_orchestration_history("needle-1")
        assert caught.value.code() is grpc.StatusCode.DATA_LOSS
        assert len(await bench.client.get_orchestration_history(f"needle-{others[0]}")) == 2
        state = await bench.client.get_orchestration_state("needle-1")
        assert state is not None
        assert state.runtime_status.name == "RUNNING"
        worker.leave()
        await bench.worker(waits)
        for number in others:
            await bench.client.raise_orchestration_event(f"needle-{number}", "go", data=number)
            assert (await bench.end_of(f"needle-{number}")).serialized_output == str(number)


async def test_an_input_that_cannot_be_read_is_told_to_who_asks_for_it(db: Path) -> None:
    damage(db, page_with(db, "needle-5xxx", TABLE_LEAF))
    async with Bench(db) as bench:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await bench.client.get_orchestration_state("needle-5")
        assert caught.value.code() is grpc.StatusCode.DATA_LOSS
        assert await bench.client.get_orchestration_state("needle-4") is not None
        found = await bench.client.get_all_orchestration_states(OrchestrationQuery(instance_id_prefix="needle-4"))
        assert [state.instance_id for state in found] == ["needle-4"]


@pytest.mark.parametrize("column", ["tags", "trace"])
async def test_content_that_makes_no_sense_harms_nobody_else(tmp_path: Path, column: str) -> None:
    """Bytes that changed within a page are nothing that SQLite sees."""
    path = tmp_path / "dafx.db"
    async with Bench(path) as bench:
        for name in ("bad", "good"):
            await bench.client.schedule_new_orchestration("any", instance_id=name)
    with closing(sqlite3.connect(path)) as connection:
        bad = "SELECT id FROM orchestrations WHERE instance_id = 'bad'"
        connection.execute(f"UPDATE payloads SET {column} = ? WHERE id = ({bad})", (b"\xff{",))
        connection.commit()
    async with Bench(path) as bench:
        worker = RawWorker(await bench.stub())
        item = await worker.take()
        assert item.orchestratorRequest.instanceId == "good"
        await worker.stub.CompleteOrchestratorTask(complete(item))
        await bench.end_of("good")
        await bench.client.terminate_orchestration("good")
        if column == "tags":
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await bench.client.get_orchestration_state("bad")
            assert caught.value.code() is grpc.StatusCode.DATA_LOSS
        await bench.client.schedule_new_orchestration("any", instance_id="next")
        assert (await worker.take()).orchestratorRequest.instanceId == "next"


async def test_a_file_that_cannot_be_written_is_left_alone(db: Path) -> None:
    """What ended is nobody's any more; reads go on, writes say why they are refused, a restart says it again."""
    damage(db, root_of(db, "orchestrations_completed"))
    async with Bench(db) as bench:
        await bench.worker(waits)
        for _ in range(2):
            with pytest.raises(grpc.aio.AioRpcError, match="damaged") as caught:
                await bench.client.terminate_orchestration("needle-5")
            assert caught.value.code() is grpc.StatusCode.DATA_LOSS
        with pytest.raises(grpc.aio.AioRpcError, match="restore a backup"):
            await bench.client.raise_orchestration_event("needle-4", "go", data=1)
        for number in range(COUNT):
            state = await bench.client.get_orchestration_state(f"needle-{number}")
            assert state is not None
            assert state.runtime_status.name == "RUNNING"
            assert state.serialized_input is not None


async def test_a_damaged_file_is_not_taken_for_a_backup(db: Path) -> None:
    """Pages are copied as they are, so that is found by a look at the copy."""
    damage(db, page_with(db, "needle-5xxx", TABLE_LEAF))
    async with Bench(db) as bench:
        with pytest.raises(SchedulerDatabaseError, match="the database is damaged"):
            await bench.scheduler.engine.store.back_up(db.with_name("backup.db"))
        assert not list(db.parent.glob("backup*"))
        assert await bench.client.get_orchestration_state("needle-4") is not None


async def test_a_timer_that_cannot_be_delivered_keeps_no_other_from_firing(tmp_path: Path) -> None:
    path, clock = tmp_path / "dafx.db", HandClock()
    names = ["first", "second", "third"]
    async with Bench(path, clock=clock) as bench:
        await bench.worker(Counter)
        soon = datetime.fromtimestamp(clock.now() / 1e6 + 60, UTC)
        for name in names:
            entity = EntityInstanceId("counter", name)
            await bench.client.signal_entity(entity, "append", name + "x" * 1_500)
            await bench.client.signal_entity(entity, "append", "y", signal_time=soon)
            await state_of(bench, entity, f'["{name}{"x" * 1_500}"]')
    damage(path, page_with(path, "secondxxx", TABLE_LEAF))
    async with Bench(path, clock=clock) as bench:
        await bench.worker(Counter)
        clock.move(clock.now() + 61 * 1_000_000)
        for name in ("first", "third"):
            await state_of(bench, EntityInstanceId("counter", name), f'["{name}{"x" * 1_500}", "y"]')
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await bench.client.get_entity(EntityInstanceId("counter", "second"))
        assert caught.value.code() is grpc.StatusCode.DATA_LOSS


async def test_nothing_is_begun_with_a_file_whose_work_cannot_be_read(db: Path) -> None:
    damage(db, root_of(db, "inbox"))
    with pytest.raises(SchedulerDatabaseError, match="malformed"):
        async with Bench(db):
            pass
