"""What is hosted, was hosted lately, and is hosted by nobody although work waits for it."""

from __future__ import annotations

import logging
import sys
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import grpc.aio
import pytest
from durabletask import task
from durabletask.client import AsyncTaskHubGrpcClient

from dafx_actors.scheduler.hosted import Hosted, hosted_async
from dafx_actors.testing._clock import HandClock
from tests.conftest import free_port
from tests.scheduler.bench import QUIET, Bench, Steps, make_worker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = pytest.mark.anyio

_SCHEDULER = """
import sys, anyio
from dafx_actors.scheduler import EmbeddedScheduler
async def main():
    async with EmbeddedScheduler(sys.argv[1], port=int(sys.argv[2])):
        print("up", flush=True)
        await anyio.sleep_forever()
anyio.run(main)
"""


def do_work(_: task.ActivityContext, number: int) -> int:
    return number


def one(context: task.OrchestrationContext, number: int) -> Steps:
    return (yield context.call_activity(do_work, input=number))


def gone(context: task.OrchestrationContext, number: int) -> Steps:
    return (yield context.call_activity("no_such_activity", input=number))


@pytest.fixture
async def clock(tmp_path: Path) -> HandClock:
    return HandClock()


@pytest.fixture
async def timed(tmp_path: Path, clock: HandClock) -> AsyncIterator[Bench]:
    """A scheduler over a file, by the test's own clock."""
    async with Bench(tmp_path / "dafx.db", clock=clock) as running:
        yield running


async def told(endpoint: str) -> Hosted:
    async with grpc.aio.insecure_channel(endpoint.removeprefix("http://")) as channel:
        found = await hosted_async(channel)
    assert found is not None
    return found


async def connected(bench: Bench, many: int) -> None:
    queue = bench.scheduler.engine.hub("default").delivery.queue
    with anyio.fail_after(30):
        while len(queue.workers) != many:
            await anyio.lowlevel.checkpoint()


async def test_a_name_is_remembered_for_ten_minutes_after_its_last_worker_has_gone(
    timed: Bench, clock: HandClock
) -> None:
    worker: Any = make_worker(timed.scheduler.endpoint, one, do_work, filters=True)
    worker.start()
    await connected(timed, 1)
    clock.move_to(clock.time + timedelta(hours=1))
    assert (await told(timed.scheduler.endpoint)).lately.orchestrations.take("one")
    await anyio.to_thread.run_sync(worker.stop)
    await connected(timed, 0)
    clock.move_to(clock.time + timedelta(minutes=9, seconds=59))
    found = await told(timed.scheduler.endpoint)
    assert not found.orchestrations.take("one")
    assert found.lately.orchestrations.take("one")
    assert found.lately.activities.take("do_work")
    assert not found.lately.orchestrations.take("two")
    clock.move_to(clock.time + timedelta(seconds=2))
    hub = timed.scheduler.engine.hub("default")
    hub.lately.refresh()
    assert not (await told(timed.scheduler.endpoint)).lately.orchestrations.take("one")
    await timed.scheduler.engine.store.committer.drained()
    assert timed.scheduler.engine.store.hosted_lately(hub.id) == []


async def test_it_is_remembered_across_a_restart_of_the_scheduler(tmp_path: Path) -> None:
    clock = HandClock()
    async with Bench(tmp_path / "dafx.db", clock=clock) as bench:
        await bench.worker(one, do_work, filters=True)
        await connected(bench, 1)
    async with Bench(tmp_path / "dafx.db", clock=clock) as bench:
        found = await told(bench.scheduler.endpoint)
        assert (found.workers, found.orchestrations.take("one")) == (0, False)
        assert found.lately.orchestrations.names == {"one"}
        assert not found.lately.orchestrations.all


async def test_a_worker_without_filters_may_have_hosted_anything(timed: Bench) -> None:
    await timed.worker(one, do_work)
    await connected(timed, 1)
    assert (await told(timed.scheduler.endpoint)).lately.orchestrations.take("whatever")


async def test_it_is_remembered_when_the_scheduler_is_killed(tmp_path: Path) -> None:
    port = free_port()
    arguments = [sys.executable, "-c", _SCHEDULER, str(tmp_path / "dafx.db"), str(port)]
    worker: Any = make_worker(f"http://127.0.0.1:{port}", one, do_work, filters=True)
    async with await anyio.open_process(arguments, stderr=None) as first:
        try:
            assert first.stdout is not None
            await first.stdout.receive()
            worker.start()
            with anyio.fail_after(30):
                while not (await told(f"127.0.0.1:{port}")).orchestrations.take("one"):
                    await anyio.lowlevel.checkpoint()
            # The answer to a start is on disk, and with it all that was written before.
            async with AsyncTaskHubGrpcClient(host_address=f"127.0.0.1:{port}", logger=QUIET) as client:
                await client.schedule_new_orchestration("one", input=1)
        finally:
            first.kill()
            await anyio.to_thread.run_sync(worker.stop)
    async with Bench(tmp_path / "dafx.db") as bench:
        found = await told(bench.scheduler.endpoint)
        assert (found.workers, found.lately.orchestrations.take("one")) == (0, True)


def test_a_scheduler_that_does_not_remember_is_understood() -> None:
    names = {"names": ["one"], "all": False}
    found = Hosted.load({"task_hub": "h", "workers": 1, "orchestration": names, "activity": names, "entity": names})
    assert found.lately.orchestrations.take("one")
    assert not found.lately.orchestrations.take("two")


async def test_it_warns_of_work_that_nobody_takes_once_for_each_name(
    timed: Bench, clock: HandClock, caplog: pytest.LogCaptureFixture
) -> None:
    await timed.worker(gone, filters=True)
    hub = timed.scheduler.engine.hub("default")
    for number in range(3):
        await timed.client.schedule_new_orchestration("gone", input=number)
        await timed.client.schedule_new_orchestration("nobody", input=number)
    with anyio.fail_after(30):
        while sum(hub.delivery.queue.waiting("activity").values()) < 3:
            await anyio.lowlevel.checkpoint()
    caplog.clear()
    with caplog.at_level(logging.WARNING, "dafx_actors.scheduler"):
        hub.unhosted.look()
        assert caplog.messages == []
        clock.move_to(clock.time + timedelta(seconds=10))
        hub.unhosted.look()
        hub.unhosted.look()
        named = [(record.__dict__["kind"], record.__dict__["work"]) for record in caplog.records]
        assert named == [("orchestration", "nobody"), ("activity", "no_such_activity")]
        assert "no_such_activity" in caplog.messages[1]
        clock.move_to(clock.time + timedelta(minutes=10))
        hub.unhosted.look()
        assert len(caplog.messages) == 4


async def test_it_does_not_warn_of_workers_that_are_busy(
    timed: Bench, clock: HandClock, caplog: pytest.LogCaptureFixture
) -> None:
    await timed.worker(one, filters=True)
    await timed.client.schedule_new_orchestration("one", input=1)
    await connected(timed, 1)
    clock.move_to(clock.time + timedelta(hours=1))
    with caplog.at_level(logging.WARNING, "dafx_actors.scheduler"):
        timed.scheduler.engine.hub("default").unhosted.look()
    assert not [record for record in caplog.records if record.__dict__.get("work") == "one"]
