"""Nothing that was acknowledged is lost, whatever is killed."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import anyio
import grpc.aio
import pytest
from durabletask import task
from durabletask.client import AsyncTaskHubGrpcClient, TaskHubGrpcClient
from durabletask.entities import EntityInstanceId
from durabletask.internal import orchestrator_service_pb2 as pb

from dafx_actors.scheduler import EmbeddedScheduler
from dafx_actors.scheduler.hosted import stats_async
from tests.scheduler import kills
from tests.scheduler.bench import QUIET, Bench, Steps, make_worker
from tests.scheduler.test_entities import Counter, state_of

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.anyio


async def test_random_kills() -> None:
    """The short form of `python -m tests.scheduler.kills`."""
    report = await kills.run(10, seed=42)
    assert report.clean, report
    assert report.acknowledged["starts"] > 0


def naps(context: task.OrchestrationContext, _: object) -> Steps:
    yield context.create_timer(timedelta(milliseconds=600))
    return (yield context.wait_for_external_event("go"))


async def test_everything_that_waits_survives(tmp_path: Path) -> None:
    """A timer, an event, a delayed signal, a scheduled start: stored, and delivered by the next scheduler."""
    soon = datetime.now(UTC) + timedelta(seconds=1)
    counter = EntityInstanceId("counter", "late")
    async with Bench(tmp_path / "dafx.db") as bench:
        await bench.worker(naps)
        napping = await bench.client.schedule_new_orchestration(naps)
        await bench.client.wait_for_orchestration_start(napping, timeout=30)
        await bench.client.raise_orchestration_event(napping, "go", data="kept")
        later = await bench.client.schedule_new_orchestration(naps, start_at=soon)
        await bench.client.signal_entity(counter, "add", 3, signal_time=soon)
    async with Bench(tmp_path / "dafx.db") as bench:
        await bench.worker(naps, Counter)
        assert (await bench.end_of(napping)).serialized_output == '"kept"'
        await bench.client.raise_orchestration_event(later, "go", data="too")
        assert (await bench.end_of(later)).serialized_output == '"too"'
        await state_of(bench, counter, "3")


def serve(db: Path, *options: str, limit: int | None = None) -> tuple[subprocess.Popen[str], str]:
    """`dafx scheduler` in a process of its own, and its endpoint."""

    def bound() -> None:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    process = subprocess.Popen(
        [sys.executable, "-m", "dafx_actors.cli", "scheduler", "--port", "0", "--db", str(db), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=None if limit is None else bound,  # it forks a process with threads, which may not come up
    )
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP], ids=lambda number: number.name)
async def test_signals_close_it_cleanly(tmp_path: Path, number: signal.Signals) -> None:
    """Also with a worker connected and a client waiting, which are told; the log is in the database afterwards."""
    process, endpoint = await anyio.to_thread.run_sync(serve, tmp_path / "dafx.db")
    worker = make_worker(endpoint, naps)
    worker.start()
    try:
        async with AsyncTaskHubGrpcClient(host_address=endpoint, logger=QUIET) as client:
            instance_id = await client.schedule_new_orchestration(naps)
            await client.wait_for_orchestration_start(instance_id, timeout=30)

            async def terminate() -> None:
                async with grpc.aio.insecure_channel(endpoint[7:]) as channel:
                    while True:
                        figures = await stats_async(channel)
                        assert figures is not None
                        if figures["task_hubs"]["default"]["waiting_clients"]:
                            break
                process.send_signal(number)

            ending = asyncio.create_task(terminate())
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await client.wait_for_orchestration_completion(instance_id, timeout=30)
            await ending
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        _, errors = await anyio.to_thread.run_sync(process.communicate)
        assert process.returncode == 0, errors
        assert "Traceback" not in errors
        assert not (tmp_path / "dafx.db-wal").exists()
    finally:
        process.kill()
        await anyio.to_thread.run_sync(worker.stop)


async def test_a_full_disk(tmp_path: Path) -> None:
    """A clear error for who writes, answers for who reads, work goes on when there is room; nothing is lost."""
    process, endpoint = await anyio.to_thread.run_sync(lambda: serve(tmp_path / "dafx.db", limit=600_000))
    try:
        async with AsyncTaskHubGrpcClient(host_address=endpoint, logger=QUIET) as client:
            kept: list[str] = []

            async def fill() -> None:
                while True:
                    kept.append(await client.schedule_new_orchestration("any", input="x" * 20_000))

            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await fill()
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "nothing that was acknowledged before is lost" in (caught.value.details() or "")
            assert kept
            for instance_id in kept:
                state = await client.get_orchestration_state(instance_id)
                assert state is not None
                assert len(state.serialized_input or "") == 20_002
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (600_000, 600_000))
    finally:
        process.kill()
        await anyio.to_thread.run_sync(process.communicate)
    async with Bench(tmp_path / "dafx.db") as bench:
        for instance_id in kept:
            assert await bench.client.get_orchestration_state(instance_id) is not None


async def test_a_start_on_a_full_disk(tmp_path: Path) -> None:
    """Says what is wrong, like everything else, and leaves the file as it was."""
    async with Bench(tmp_path / "dafx.db"):
        pass
    before = (tmp_path / "dafx.db").read_bytes()
    process, _ = await anyio.to_thread.run_sync(lambda: serve(tmp_path / "dafx.db", limit=0))
    _, errors = await anyio.to_thread.run_sync(process.communicate)
    assert process.returncode == 1
    assert "cannot use the database" in errors
    assert "Traceback" not in errors
    assert (tmp_path / "dafx.db").read_bytes() == before


async def test_work_goes_on_when_the_disk_has_room_again(tmp_path: Path) -> None:
    """The failed request changed nothing, and what was under way is handed out again."""
    async with Bench(tmp_path / "dafx.db") as bench:
        store = bench.scheduler.engine.store
        stub = await bench.stub()
        await bench.worker(naps)
        instance_id = await bench.client.schedule_new_orchestration(naps)
        await bench.client.wait_for_orchestration_start(instance_id, timeout=30)
        (pages,) = store._writer.execute("PRAGMA page_count").fetchone()
        store._writer.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(grpc.aio.AioRpcError, match="disk is full"):
            await bench.client.schedule_new_orchestration("any", input="x" * 1_000_000, instance_id="too-big")
        assert not (await stub.GetInstance(pb.GetInstanceRequest(instanceId="too-big"))).exists
        assert (await stub.GetInstance(pb.GetInstanceRequest(instanceId=instance_id))).exists
        store._writer.execute("PRAGMA max_page_count = 1000000000")
        while store.failure is not None:
            await anyio.sleep(0.01)
        await bench.client.raise_orchestration_event(instance_id, "go", data=1)
        assert (await bench.end_of(instance_id)).serialized_output == "1"


async def test_the_same_scheduler_can_be_run_again(tmp_path: Path) -> None:
    scheduler = EmbeddedScheduler(tmp_path / "dafx.db")
    for name in ("first", "second"):
        async with scheduler, AsyncTaskHubGrpcClient(host_address=scheduler.endpoint, logger=QUIET) as client:
            worker = make_worker(scheduler.endpoint, naps)
            worker.start()
            await client.schedule_new_orchestration(naps, instance_id=name)
            await client.raise_orchestration_event(name, "go", data=name)
            state = await client.wait_for_orchestration_completion(name, timeout=30)
            await anyio.to_thread.run_sync(worker.stop)
            assert state is not None
            assert state.serialized_output == f'"{name}"'


async def test_a_scheduler_on_a_thread_of_its_own(tmp_path: Path) -> None:
    """For programs without an event loop."""

    def program() -> str | None:
        with EmbeddedScheduler(tmp_path / "dafx.db").on_a_thread() as scheduler:
            client = TaskHubGrpcClient(host_address=scheduler.endpoint, logger=QUIET)
            worker = make_worker(scheduler.endpoint, naps)
            worker.start()
            instance_id = client.schedule_new_orchestration(naps)
            client.raise_orchestration_event(instance_id, "go", data="hello")
            state = client.wait_for_orchestration_completion(instance_id, timeout=30)
            worker.stop()
            client.close()
            assert state is not None
            return state.serialized_output

    assert await anyio.to_thread.run_sync(program) == '"hello"'
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("dafx-scheduler")]


async def test_a_worker_that_was_stopped_loses_its_work(tmp_path: Path) -> None:
    """SIGSTOP: its connection stays, but it does not answer any more."""
    async with Bench(tmp_path / "dafx.db", worker_timeout=1.0) as bench:
        victim = kills.Victim("worker", ["-m", "tests.scheduler.kills", "--run-worker", bench.scheduler.endpoint])
        victim.start()
        assert victim.process is not None
        try:
            await victim.ready()
            hub = bench.scheduler.engine.hub("default")  # held: it is not stored yet
            queue = hub.delivery.queue
            while not queue.workers:
                await anyio.sleep(0.01)
            os.kill(victim.process.pid, signal.SIGSTOP)
            instance_id = await bench.client.schedule_new_orchestration("turn", input=1)
            while queue.workers:
                await anyio.sleep(0.01)
            await bench.worker(kills.turn, kills.steps, kills.do_step, kills.Ledger)
            assert (await bench.end_of(instance_id)).serialized_output == "3"
        finally:
            victim.kill()
