"""The file among its neighbours: others that lock, read or copy it while the scheduler works."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Any

import anyio
import grpc.aio
import pytest

from dafx_actors.scheduler.storage import committer, store
from dafx_actors.scheduler.storage.database import connect, read_failed
from tests.scheduler.bench import Bench

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.anyio


def other_program(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path, isolation_level=None, timeout=0)


async def test_a_lock_from_outside_holds_up_writes_and_nothing_else(tmp_path: Path) -> None:
    async with Bench(tmp_path / "dafx.db") as bench:
        await bench.client.schedule_new_orchestration("any", instance_id="before")
        with closing(other_program(tmp_path / "dafx.db")) as other:
            other.execute("BEGIN IMMEDIATE")
            writes = asyncio.create_task(bench.client.schedule_new_orchestration("any", instance_id="meanwhile"))
            for _ in range(20):
                assert await bench.client.get_orchestration_state("before") is not None
            assert not writes.done()
            other.execute("ROLLBACK")
        with anyio.fail_after(30):
            assert await writes == "meanwhile"
        assert bench.scheduler.engine.store.failure is None


async def test_a_lock_that_stays_is_a_failure_that_says_so_and_is_over_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(committer.Committer.__init__, "__kwdefaults__", {
        **(committer.Committer.__init__.__kwdefaults__ or {}), "locked_for": 0.1,
    })  # fmt: skip
    async with Bench(tmp_path / "dafx.db") as bench:
        await bench.client.schedule_new_orchestration("any", instance_id="before")
        with closing(other_program(tmp_path / "dafx.db")) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await bench.client.schedule_new_orchestration("any", instance_id="meanwhile")
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "another program has locked the file" in (caught.value.details() or "")
            other.execute("ROLLBACK")
        with anyio.fail_after(30):
            while bench.scheduler.engine.store.failure is not None:
                await asyncio.sleep(0.01)
        await bench.client.schedule_new_orchestration("any", instance_id="after")


@pytest.mark.parametrize("words", ["database is locked", "unable to open database file", "disk I/O error"])
async def test_what_cannot_be_read_for_the_moment_is_not_called_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str
) -> None:
    def unlucky(*_: object, **__: object) -> sqlite3.Connection:
        raise sqlite3.OperationalError(words)

    async with Bench(tmp_path / "dafx.db") as bench:
        await bench.client.schedule_new_orchestration("any")
        with monkeypatch.context() as patched:
            patched.setattr(store, "connect_reader", unlucky)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await bench.client.get_all_orchestration_states()
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            assert words in (caught.value.details() or "")
        assert len(await bench.client.get_all_orchestration_states()) == 1


async def test_a_turn_whose_history_cannot_be_read_for_the_moment_is_handed_out_a_moment_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def at_once(*_: Any) -> str:
        return "done"

    failures = iter([sqlite3.OperationalError("unable to open database file")] * 2)
    read = store.Store.load_history

    def unlucky(self: store.Store, it: Any) -> Any:
        for error in failures:
            raise read_failed("dafx.db", error)
        return read(self, it)

    monkeypatch.setattr(store.Store, "load_history", unlucky)
    async with Bench(tmp_path / "dafx.db") as bench:
        await bench.worker(at_once)
        assert (await bench.run(at_once)).serialized_output == '"done"'


async def test_a_copy_of_an_idle_database_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the file alone, without its log."""
    monkeypatch.setattr(committer, "IDLE", 0.05)
    async with Bench(tmp_path / "dafx.db") as bench:
        bench.scheduler.engine.store.committer._idle_after = 0.05
        await bench.client.schedule_new_orchestration("any", instance_id="kept")
        with anyio.fail_after(30):
            while not (tmp_path / "copy.db").exists() or not instances(tmp_path / "copy.db"):
                shutil.copy(tmp_path / "dafx.db", tmp_path / "copy.db")
                await asyncio.sleep(0.02)
        assert instances(tmp_path / "copy.db") == ["kept"]


def instances(path: Path) -> list[str]:
    try:
        with closing(sqlite3.connect(path)) as connection:
            return [row[0] for row in connection.execute("SELECT instance_id FROM orchestrations")]
    except sqlite3.Error:
        return []


async def test_the_log_becomes_small_again_after_somebody_read_for_long(tmp_path: Path) -> None:
    path = tmp_path / "dafx.db"
    async with Bench(path, synchronous="normal") as bench:
        writer = bench.scheduler.engine.store.committer
        writer._checkpoint_at, writer._idle_after = 500_000, 0.05
        await bench.client.schedule_new_orchestration("any")
        with closing(other_program(path)) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM orchestrations").fetchall()
            for _ in range(20):
                await bench.client.schedule_new_orchestration("any", input="x" * 200_000)
            assert bench.scheduler.engine.store.location.log_size() > 3_000_000
            reader.execute("ROLLBACK")
        with anyio.fail_after(30):
            while bench.scheduler.engine.store.location.log_size() > 500_000:
                await asyncio.sleep(0.01)


@pytest.mark.parametrize(("synchronous", "number"), [("full", 2), ("normal", 1)])
async def test_a_commit_waits_for_the_disk_as_it_was_said(tmp_path: Path, synchronous: Any, number: int) -> None:
    with closing(connect(str(tmp_path / "dafx.db"), synchronous=synchronous)) as connection:
        assert connection.execute("PRAGMA synchronous").fetchone() == (number,)
    async with Bench(tmp_path / "dafx.db", synchronous=synchronous) as bench:
        writer: Any = bench.scheduler.engine.store._writer
        assert writer.execute("PRAGMA synchronous").fetchone() == (number,)
