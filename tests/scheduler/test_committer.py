"""Group commit, over a real file."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from dafx_actors.errors import SchedulerDatabaseError, SchedulerWriteFailed
from dafx_actors.scheduler.storage import committer
from dafx_actors.scheduler.storage.committer import Changes, Committer
from dafx_actors.scheduler.storage.database import Location, connect, connect_reader

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

pytestmark = pytest.mark.anyio

ON_THE_LOOP, ON_A_THREAD = 1_000.0, -1.0


class Writer:
    """A committer over a file with one table, and what it said of failures."""

    def __init__(self, path: Path, quick: float) -> None:
        self.connection = connect(str(path), synchronous="full", steps=["CREATE TABLE t (a INTEGER PRIMARY KEY, b)"])
        self.reader = connect_reader(str(path))
        self.failures: list[SchedulerWriteFailed | SchedulerDatabaseError] = []
        self.location = Location(path=str(path))
        self.committer = Committer(
            self.connection, self.location, self.failures.append, quick=quick, checkpoint_at=200_000
        )

    def submit(self, key: int, value: object = None, *, broken: bool = False, more: bool = False) -> Changes:
        changes = self.committer.begin()
        changes.write("INSERT INTO nowhere VALUES (?, ?)" if broken else "INSERT INTO t VALUES (?, ?)", key, value)
        self.committer.submit(changes, more=more)
        return changes

    def stored(self) -> list[int]:
        return [row[0] for row in self.reader.execute("SELECT a FROM t ORDER BY a")]


@pytest.fixture(params=[ON_THE_LOOP, ON_A_THREAD], ids=["on the loop", "on a thread"])
async def writer(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncGenerator[Writer]:
    it = Writer(tmp_path / "t.db", request.param)
    yield it
    await it.committer.close()
    it.reader.close()
    it.connection.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "dafx-scheduler-commit"]


async def test_what_comes_together_shares_a_commit_and_is_on_disk_when_it_is_told(writer: Writer) -> None:
    order: list[Any] = []
    together = [writer.submit(number) for number in range(10)]
    together[3].then(lambda: order.append(writer.stored()))
    for changes in together:
        await changes.committed()
    assert writer.committer.commits == 1
    assert writer.stored() == list(range(10))
    assert order == [list(range(10))]
    assert writer.committer.committed == together[-1].seq
    await together[0].committed()  # Also for who asks later.


async def test_one_that_goes_away_takes_nobody_along(writer: Writer) -> None:
    changes = writer.submit(1)
    waits = [asyncio.create_task(changes.committed()) for _ in range(2)]
    await asyncio.sleep(0)
    waits[0].cancel()
    await waits[1]
    assert writer.stored() == [1]


async def test_a_group_that_fails_fails_as_a_whole_and_the_next_is_written(writer: Writer) -> None:
    good, bad = writer.submit(1), writer.submit(2, broken=True)
    done: list[int] = []
    good.then(lambda: done.append(1))
    for changes in (good, bad):
        with pytest.raises(SchedulerWriteFailed, match="nowhere"):
            await changes.committed()
    with pytest.raises(SchedulerWriteFailed):
        await good.committed()
    assert (len(writer.failures), done, writer.stored()) == (1, [], [])
    await writer.submit(3).committed()
    assert writer.stored() == [3]


async def test_a_value_that_cannot_be_stored_fails_its_group_and_not_the_next(writer: Writer) -> None:
    with pytest.raises(SchedulerWriteFailed, match="too large"):
        await writer.submit(2**63).committed()
    await writer.submit(3).committed()
    assert writer.stored() == [3]


async def test_what_follows_a_commit_may_fail_without_harm_to_others(writer: Writer) -> None:
    first, second = writer.submit(1), writer.submit(2)
    first.then(lambda: [][0])
    await first.committed()
    await second.committed()


async def test_it_can_be_waited_for_by_number(writer: Writer) -> None:
    changes = writer.submit(1)
    await writer.committer.reached(changes.seq)
    assert writer.stored() == [1]
    await writer.committer.reached(changes.seq)


async def test_all_can_be_written_while_everybody_waits(writer: Writer) -> None:
    """Also what a thread has begun to write, and what is decided when that is done."""
    first = writer.submit(1)
    first.then(lambda: done.append(writer.submit(3)))
    done: list[Changes] = []
    writer.committer._flush()
    second = writer.submit(2)
    writer.committer.finish_now()
    assert writer.stored() == [1, 2, 3]
    for changes in (first, second, *done):
        await changes.committed()
    await writer.submit(4).committed()
    assert writer.stored() == [1, 2, 3, 4]


async def test_the_log_does_not_grow_for_ever(writer: Writer) -> None:
    for number in range(300):
        await writer.submit(number, b"x" * 4_000).committed()
    await writer.committer.drained()
    assert writer.location.log_size() < 3_000_000
    assert len(writer.stored()) == 300


async def test_somebody_who_reads_for_long_holds_nobody_up(writer: Writer) -> None:
    """A backup, say: the log grows meanwhile, and starts again from its beginning when that is over."""
    await writer.submit(0).committed()
    writer.reader.execute("BEGIN")
    assert writer.stored() == [0]
    for number in range(1, 200):
        with anyio.fail_after(4.0):  # SQLite would wait for 5.
            await writer.submit(number, b"x" * 4_000).committed()
    await writer.committer.drained()
    grown = writer.location.log_size()
    assert grown > 800_000
    writer.reader.execute("COMMIT")
    for number in range(200, 600):
        await writer.submit(number, b"x" * 4_000).committed()
    await writer.committer.drained()
    assert writer.location.log_size() < 2 * grown
    assert len(writer.stored()) == 600


async def test_a_full_disk_is_told_as_such(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "t.db", ON_THE_LOOP)
    writer.connection.execute(f"PRAGMA max_page_count = {writer.connection.execute('PRAGMA page_count').fetchone()[0]}")
    with pytest.raises(SchedulerWriteFailed, match="disk is full"):
        await writer.submit(1, b"x" * 100_000).committed()
    await writer.committer.close()
    writer.reader.close()
    writer.connection.close()


async def test_a_group_waits_a_moment_for_what_is_about_to_come(
    writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(committer, "GATHER", 0.1)
    first = writer.submit(1, more=True)
    await asyncio.sleep(0.001)
    second = writer.submit(2, more=True)
    await first.committed()
    await second.committed()
    assert (writer.stored(), writer.committer.commits) == ([1, 2], 1)


async def test_what_expects_no_more_is_written_at_once_with_what_waits(
    writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(committer, "GATHER", 3600.0)
    first = writer.submit(1, more=True)
    second = writer.submit(2)
    third = writer.submit(3, more=True)
    for changes in (first, second, third):
        await changes.committed()
    assert (writer.stored(), writer.committer.commits) == ([1, 2, 3], 1)


async def test_what_waited_behind_a_group_that_failed_has_failed_with_it(writer: Writer) -> None:
    """It was decided on the strength of what was not written. The first is heavy, so that a thread writes it."""
    first = writer.submit(1, "x" * 300_000, broken=True)
    while writer.committer._group is None:
        await asyncio.sleep(0)
    behind = [writer.submit(number) for number in (2, 3)]
    for changes in (first, *behind):
        with anyio.fail_after(10), pytest.raises(SchedulerWriteFailed, match="nowhere"):
            await changes.committed()
    assert (len(writer.failures), writer.stored()) == (1, [])
    await writer.submit(4).committed()
    assert writer.stored() == [4]


async def test_an_error_that_nobody_expects_fails_its_group_and_not_the_thread(
    writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(writer.committer, "_commit", lambda **_: [][0])
        first = writer.submit(1, "x" * 300_000)  # a thread writes it
        with anyio.fail_after(10), pytest.raises(SchedulerWriteFailed, match="list index"):
            await first.committed()
    await writer.submit(2).committed()
    assert writer.stored() == [2]
