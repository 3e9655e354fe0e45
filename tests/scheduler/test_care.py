"""Keeping it: retention, backup, figures, logs, the command, and files with very much in them."""

from __future__ import annotations

import asyncio
import json
import logging
import sqlite3
import subprocess
import sys
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import grpc
import grpc.aio
import pytest
from durabletask import task
from durabletask.client import OrchestrationQuery, OrchestrationStatus
from durabletask.entities import EntityInstanceId
from durabletask.internal import orchestrator_service_pb2 as pb
from durabletask.testing.in_memory_backend import InMemoryOrchestrationBackend

from dafx_actors.cli import _main as cli
from dafx_actors.cli._logs import JsonFormatter, TextFormatter
from dafx_actors.errors import DafxError
from dafx_actors.scheduler import EmbeddedScheduler, Retention
from dafx_actors.scheduler._ground.records import Start
from dafx_actors.scheduler._hub.hub import Refused
from dafx_actors.scheduler.hosted import back_up, hosted, hosted_async, stats, stats_async
from dafx_actors.scheduler.storage import store
from dafx_actors.scheduler.storage.database import connect, connect_reader
from tests.conftest import free_port
from tests.scheduler.bench import Bench, RawWorker, Steps
from tests.scheduler.test_delivery import complete
from tests.scheduler.test_entities import COUNTER, Counter, calls, state_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def _level() -> Iterator[None]:
    """The command sets the level of all logs, which must not outlive a test."""
    root = logging.getLogger()
    before = root.level
    yield
    root.setLevel(before)


def do_work(_: task.ActivityContext, number: int) -> int:
    return number


def one(context: task.OrchestrationContext, number: int) -> Steps:
    return (yield context.call_activity(do_work, input=number))


def waits(context: task.OrchestrationContext, _: object) -> Steps:
    return (yield context.wait_for_external_event("go"))


def parent(context: task.OrchestrationContext, numbers: list[int]) -> Steps:
    return (yield task.when_all([context.call_sub_orchestrator(one, input=number) for number in numbers]))


# --- queries and purging ---------------------------------------------------------------------------------------------


async def test_queries_in_pages(bench: Bench) -> None:
    await bench.worker(one, do_work, waits)
    ids = [await bench.client.schedule_new_orchestration(one, input=n, instance_id=f"q-{n:02}") for n in range(12)]
    running = await bench.client.schedule_new_orchestration(waits, instance_id="other")
    for name in ids:
        await bench.end_of(name)
    every = await bench.client.get_all_orchestration_states(OrchestrationQuery(max_instance_count=5))
    assert [state.instance_id for state in every] == [*ids, running]
    assert every[0].serialized_input is None
    some = await bench.client.get_all_orchestration_states(
        OrchestrationQuery(instance_id_prefix="q-0", fetch_inputs_and_outputs=True)
    )
    assert [(state.serialized_input, state.serialized_output) for state in some] == [
        (str(n), str(n)) for n in range(10)
    ]
    later = await bench.client.get_all_orchestration_states(
        OrchestrationQuery(created_time_from=every[6].created_at, created_time_to=every[9].created_at)
    )
    assert [state.instance_id for state in later] == ids[6:9]
    await bench.client.wait_for_orchestration_start(running, timeout=30)
    active = await bench.client.get_all_orchestration_states(
        OrchestrationQuery(runtime_status=[OrchestrationStatus.RUNNING])
    )
    assert [state.instance_id for state in active] == [running]


async def test_pages_fit_into_what_a_client_receives(bench: Bench) -> None:
    for number in range(6):
        await bench.client.schedule_new_orchestration("any", input="x" * 1_500_000, instance_id=f"large-{number}")
    found = await bench.client.get_all_orchestration_states(OrchestrationQuery(fetch_inputs_and_outputs=True))
    assert [state.instance_id for state in found] == [f"large-{number}" for number in range(6)]
    assert all(len(state.serialized_input or "") == 1_500_002 for state in found)


async def test_ended_ids_in_pages(bench: Bench) -> None:
    """The key of a page holds an instance id of that page, and a last page has none, also when it is full."""
    await bench.worker(one, do_work)
    ids = [(await bench.run(one, number)).instance_id for number in range(6)]
    first = await bench.client.list_instance_ids(page_size=3)
    assert first.items == ids[:3]
    assert first.continuation_token is not None
    assert any(name in first.continuation_token for name in first.items)
    second = await bench.client.list_instance_ids(page_size=3, continuation_token=first.continuation_token)
    assert (second.items, second.continuation_token) == (ids[3:], None)


async def test_purging(bench: Bench) -> None:
    await bench.worker(one, do_work, parent, waits)
    family = await bench.run(parent, [1, 2])
    running = await bench.client.schedule_new_orchestration(waits)
    assert (await bench.client.purge_orchestration(running)).deleted_instance_count == 0
    assert (await bench.client.purge_orchestration("nobody")).deleted_instance_count == 0
    result = await bench.client.purge_orchestration(family.instance_id, recursive=True)
    assert (result.deleted_instance_count, result.is_complete) == (3, True)
    assert await bench.client.get_orchestration_state(family.instance_id) is None
    family = await bench.run(parent, [1, 2])
    assert (await bench.client.purge_orchestration(family.instance_id, recursive=False)).deleted_instance_count == 1
    done = [OrchestrationStatus.FAILED]
    assert (await bench.client.purge_orchestrations_by(runtime_status=done)).deleted_instance_count == 0
    assert (await bench.client.purge_orchestrations_by()).deleted_instance_count == 2
    assert await bench.client.get_orchestration_state(running) is not None


async def test_retention_by_age_and_by_count(tmp_path: Path) -> None:
    async with Bench(tmp_path / "dafx.db", retention=Retention(count=2, every=3600)) as bench:
        await bench.worker(one, do_work, waits, calls, Counter)
        running = await bench.client.schedule_new_orchestration(waits)
        await bench.run(calls, 5)
        ids = [(await bench.run(one, number)).instance_id for number in range(4)]
        assert await bench.scheduler.engine.tidy() == 3
        left = await bench.client.get_all_orchestration_states()
        assert {state.instance_id for state in left} == {running, *ids[2:]}
        await state_of(bench, COUNTER, "5")
    async with Bench(tmp_path / "dafx.db", retention=Retention(age=0.0, every=0.05)) as bench:
        while len(await bench.client.get_all_orchestration_states()) > 1:
            await anyio.lowlevel.checkpoint()
        assert await bench.client.get_orchestration_state(running) is not None


async def test_tidying_up_makes_nothing_of_a_task_hub_that_was_only_asked_about(bench: Bench) -> None:
    async with bench.new_client("blue") as blue:
        assert await blue.get_orchestration_state("any") is None
    await bench.client.schedule_new_orchestration("any")
    assert await bench.scheduler.engine.tidy() == 0
    assert [name for _, name in bench.scheduler.engine.store.hubs()] == ["default"]


# --- what is hosted, figures, backup ---------------------------------------------------------------------------------


async def test_what_is_hosted(bench: Bench) -> None:
    address = bench.scheduler.endpoint[7:]
    async with grpc.aio.insecure_channel(address) as channel:
        nothing = await hosted_async(channel)
        assert nothing is not None
        assert (nothing.workers, nothing.orchestrations.take("one")) == (0, False)
        await bench.worker(one, do_work, Counter, filters=True)
        queue = bench.scheduler.engine.hub("default").delivery.queue
        while not queue.workers:
            await anyio.lowlevel.checkpoint()
        found = await hosted_async(channel)
        assert found is not None
        names = [sorted(kind.names) for kind in (found.orchestrations, found.activities, found.entities)]
        assert names == [["one"], ["do_work"], ["counter"]]
        assert found.orchestrations.take("one")
        assert not found.orchestrations.take("two")
        elsewhere = await hosted_async(channel, [("taskhub", "elsewhere")])
        assert elsewhere is not None
        assert (elsewhere.task_hub, elsewhere.workers) == ("elsewhere", 0)
        everything = RawWorker(await bench.stub())
        while len(queue.workers) < 2:
            await anyio.lowlevel.checkpoint()
        found = await anyio.to_thread.run_sync(lambda: with_channel(address, hosted))
        assert found is not None
        assert found.orchestrations.take("two")
        everything.leave()


def with_channel(address: str, call: Any) -> Any:
    with grpc.insecure_channel(address) as channel:
        return call(channel)


async def test_another_backend_cannot_tell() -> None:
    port = free_port()
    backend = InMemoryOrchestrationBackend(port=port)
    backend.start()
    try:
        assert await anyio.to_thread.run_sync(lambda: with_channel(f"127.0.0.1:{port}", hosted)) is None
        assert await anyio.to_thread.run_sync(lambda: with_channel(f"127.0.0.1:{port}", stats)) is None
    finally:
        backend.stop()


async def test_figures(bench: Bench) -> None:
    stub = await bench.stub()
    worker = RawWorker(stub, maxConcurrentOrchestrationWorkItems=1)
    for number in range(3):
        await bench.client.schedule_new_orchestration("any", instance_id=f"s{number}")
    await worker.take()
    async with grpc.aio.insecure_channel(bench.scheduler.endpoint[7:]) as channel:
        figures = await stats_async(channel)
    assert figures is not None
    assert figures["writable"]
    hub = figures["task_hubs"]["default"]
    assert hub["orchestrations"]["pending"] == 3
    work = hub["work"]["orchestration"]
    assert (work["waiting"], work["held"]) == (2, 1)
    assert work["oldest"] >= 0
    assert hub["workers"][0]["holds"] == {"orchestration": 1, "activity": 0, "entity": 0}


async def test_a_backup_while_it_works(bench: Bench, tmp_path: Path) -> None:
    await bench.worker(one, do_work, calls, Counter)
    state = await bench.run(one, 7)
    await bench.run(calls, 3)
    address = bench.scheduler.endpoint[7:]

    def copy(name: str) -> Path:
        with grpc.insecure_channel(address) as channel:
            return back_up(channel, name)

    target = tmp_path / "dafx.db-backups" / "backup.db"
    assert await anyio.to_thread.run_sync(copy, "backup.db") == target
    # No backup has a name that SQLite gives to files of its own.
    assert await anyio.to_thread.run_sync(copy, "dafx.db-journal") == target.with_name("dafx.db-journal.db")
    assert len(await bench.client.get_all_orchestration_states()) == 2
    for name, code in (
        ("backup.db", grpc.StatusCode.FAILED_PRECONDITION),  # It does not replace a file,
        ("../backup.db", grpc.StatusCode.INVALID_ARGUMENT),  # and writes to no other folder.
        (f"{tmp_path}/other.db", grpc.StatusCode.INVALID_ARGUMENT),
        ("", grpc.StatusCode.INVALID_ARGUMENT),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            await anyio.to_thread.run_sync(copy, name)
        error: Any = caught.value
        assert error.code() is code
    async with Bench(target) as restored:
        found = await restored.client.get_orchestration_state(state.instance_id)
        assert found is not None
        assert found.serialized_output == "7"
        await state_of(restored, COUNTER, "3")


async def test_one_backup_at_a_time_and_not_for_ever(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, goes_on = bench.scheduler.engine, asyncio.Event()
    copy = engine.store.back_up

    async def slowly(target: Path) -> int:
        await goes_on.wait()
        return await copy(target)

    monkeypatch.setattr(engine.store, "back_up", slowly)
    first = asyncio.create_task(engine.back_up("first"))
    await asyncio.sleep(0)
    with pytest.raises(Refused, match="A backup is being made"):
        await engine.back_up("second")
    first.cancel()
    goes_on.set()
    while engine._backup is not None:
        await asyncio.sleep(0.01)
    assert (tmp_path / "dafx.db-backups" / "first.db").exists(), "it goes on when who asked has gone away"
    monkeypatch.setattr("dafx_actors.scheduler._hub.engine.MOST_BACKUPS", 2)
    await engine.back_up("second")
    with pytest.raises(Refused, match="take some away"):
        await engine.back_up("third")


# --- in memory, and very much ----------------------------------------------------------------------------------------


async def test_in_memory() -> None:
    async with Bench(None) as bench:
        await bench.worker(one, do_work, calls, Counter, waits)
        assert (await bench.run(one, 4)).serialized_output == "4"
        assert (await bench.run(calls, 3)).serialized_output == "3"
        instance_id = await bench.client.schedule_new_orchestration(waits)
        await bench.client.raise_orchestration_event(instance_id, "go", data=1)
        assert (await bench.end_of(instance_id)).serialized_output == "1"
        assert len(await bench.client.get_all_orchestration_states()) == 3


def fill(path: Path, count: int, statuses: Sequence[int] = (1, 0, 6)) -> None:
    """A file with so many entities and orchestrations: ended, sleeping and pending ones by their status."""
    connection = connect(str(path), synchronous="normal")
    now = time.time_ns() // 1_000
    connection.execute("BEGIN")
    connection.execute("INSERT INTO hubs VALUES (1, 'default')")
    rows = [
        (number + 10, f"i{number}", status, now, now if status == 1 else None)
        for number, status in enumerate(status for status in statuses for _ in range(count // len(statuses)))
    ]
    connection.executemany(
        "INSERT INTO orchestrations (id, hub, instance_id, execution_id, name, status, created, updated, completed)"
        " VALUES (?1, 1, ?2, 'x', 'any', ?3, ?4, ?4, ?5)",
        rows,
    )
    connection.executemany("INSERT INTO payloads (id, input) VALUES (?, ?)", [(row[0], "x" * 100) for row in rows])
    connection.executemany(
        "INSERT INTO timers (id, hub, due, kind, orchestration, event) VALUES (?, 1, ?, 0, ?, ?)",
        [(row[0], now + 10**12, row[0], b"x" * 20) for row in rows if row[2] == 0],
    )
    connection.executemany(
        "INSERT INTO entities (id, hub, entity_id, state, modified) VALUES (?, 1, ?, ?, ?)",
        [(number + 10, f"@e@{number}", "x" * 100, now) for number in range(count)],
    )
    connection.execute("UPDATE ids SET next = 1000000")
    connection.execute("COMMIT")
    connection.close()


@pytest.mark.parametrize("statuses", [(1, 0, 6), (6,)], ids=["some of each", "all pending"])
async def test_a_file_with_a_hundred_thousand_instances_opens_quickly(
    tmp_path: Path, statuses: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is read table by table, and not instance by instance."""
    path = tmp_path / "dafx.db"
    await anyio.to_thread.run_sync(fill, path, 99_999, statuses)
    statements: list[str] = []

    def traced(opened: str, **options: Any) -> sqlite3.Connection:
        connection = connect_reader(opened, **options)
        connection.set_trace_callback(statements.append)
        return connection

    monkeypatch.setattr(store, "connect_reader", traced)
    async with Bench(path) as bench:
        state = await bench.client.get_orchestration_state("i0")
        assert state is not None
        hub = bench.scheduler.engine.hub("default")
        assert sum(hub.delivery.queue.waiting("orchestration").values()) == 99_999 // len(statuses)
        assert len(bench.scheduler.engine.timers) == (33_333 if 0 in statuses else 0)
    assert 0 < len(statements) < 100


async def test_an_instance_too_large_for_a_page_hides_no_other(bench: Bench) -> None:
    """In a list its large texts say how long they are, so that a client that receives 4 MiB can read it."""
    stub = await bench.stub()
    worker = RawWorker(stub)
    for number in range(3):
        await bench.client.schedule_new_orchestration("any", instance_id=f"i{number}")
        item = await worker.take()
        end = complete(item)
        if number == 1:
            end.actions[0].completeOrchestration.orchestrationStatus = pb.ORCHESTRATION_STATUS_FAILED
            end.actions[0].completeOrchestration.failureDetails.errorMessage = "x" * 6_000_000
            end.customStatus.value = json.dumps("y" * 5_000_000)
        await stub.CompleteOrchestratorTask(end)
    found = {state.instance_id: state for state in await bench.client.get_all_orchestration_states()}
    assert sorted(found) == ["i0", "i1", "i2"]
    large = found["i1"]
    assert large.failure_details is not None
    assert "6,000,000 characters" in large.failure_details.message
    assert "5,000,002 characters" in json.loads(large.serialized_custom_status or "")


async def test_a_prefix_may_hold_any_character(bench: Bench) -> None:
    for prefix in ("a\0b", "a\ud7ff", "a\U0010ffff", "\U0010ffff", "ä"):
        for end in ("1", "2"):
            await bench.client.schedule_new_orchestration("any", instance_id=prefix + end)
        query = OrchestrationQuery(max_instance_count=10)
        stub = await bench.stub()
        asked = pb.QueryInstancesRequest(query=pb.InstanceQuery(maxInstanceCount=query.max_instance_count or 10))
        asked.query.instanceIdPrefix.value = prefix
        found = await stub.QueryInstances(asked)
        assert [state.instanceId for state in found.orchestrationState] == [prefix + "1", prefix + "2"]


async def test_timers_that_were_given_up_before_they_were_armed_are_not_counted(bench: Bench) -> None:
    def sleeps(context: task.OrchestrationContext, _: object) -> Steps:
        yield context.create_timer(timedelta(hours=1))

    await bench.worker(sleeps)
    for _ in range(20):
        instance_id = await bench.client.schedule_new_orchestration(sleeps)
        await bench.client.terminate_orchestration(instance_id)
    async with grpc.aio.insecure_channel(bench.scheduler.endpoint[7:]) as channel:
        figures = await stats_async(channel)
    assert figures is not None
    assert figures["timers"] == 0


async def test_idle_instances_are_not_kept_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "dafx.db"
    await anyio.to_thread.run_sync(fill, path, 9_000)
    async with Bench(path) as bench:
        for number in range(6_000):
            entity = EntityInstanceId("e", str(number))
            assert await bench.client.get_entity(entity) is not None
        hub = bench.scheduler.engine.hub("default")
        assert len(hub.entities) == 5_000


async def test_what_is_large_is_not_kept_in_memory_because_somebody_looked_at_it(bench: Bench) -> None:
    """Nor because it waits: of what is idle, inputs, outputs and histories count."""
    stub = await bench.stub()
    worker = RawWorker(stub)
    for number in range(90):
        await bench.client.schedule_new_orchestration("any", instance_id=str(number), input="x" * 1_000_000)
        item = await worker.take()
        if number % 2:
            await stub.CompleteOrchestratorTask(complete(item))
        else:
            await stub.CompleteOrchestratorTask(pb.OrchestratorResponse(completionToken=item.completionToken))
    for number in range(90):
        assert await bench.client.get_orchestration_state(str(number)) is not None
        await bench.client.get_orchestration_history(str(number))
    hub = bench.scheduler.engine.hub("default")
    assert 1 < len(hub.orchestrations) < 70


# --- the command and its logs ----------------------------------------------------------------------------------------


def test_json_logs() -> None:
    record = logging.makeLogRecord({"msg": "hello %s", "args": ("you",), "levelname": "INFO", "task_hub": "blue"})
    entry = json.loads(JsonFormatter().format(record))
    assert (entry["message"], entry["level"], entry["task_hub"]) == ("hello you", "info", "blue")


def test_nobody_writes_lines_of_his_own_into_the_log() -> None:
    """Whatever a worker calls itself, and whatever an error says."""
    name = "w\r\n12:00:00 ERROR   forged\x1b[2J\u2028\u202e\x9b"
    record = logging.makeLogRecord({})
    try:
        int(name)
    except ValueError:
        record = logging.makeLogRecord(
            {"msg": "Worker %s has connected", "args": (name,), "levelname": "INFO", "exc_info": sys.exc_info()}
        )
    lines = TextFormatter().format(record).splitlines()
    assert lines[0].endswith("Worker w\\x0d\\x0a12:00:00 ERROR   forged\\x1b[2J\\u2028\\u202e\\x9b has connected")
    assert all(line.startswith("    ") for line in lines[1:])
    assert "forged" in json.loads(JsonFormatter().format(record))["message"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--port", "-1"],
        ["--port", "65536"],
        ["--keep-days", "-1"],
        ["--keep-days", "nan"],
        ["--keep-count", "-3"],
        ["--keep-count", "x"],
    ],
)
def test_numbers_that_mean_nothing_are_mistakes_of_usage(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["scheduler", "--in-memory", *arguments])
    assert caught.value.code == 2
    assert arguments[0] in capsys.readouterr().err


def test_a_missing_folder_is_an_error_and_a_missing_file_is_made_with_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "dafx_actors"), EmbeddedScheduler(tmp_path / "dafx.db").on_a_thread():
        pass
    assert f"A new database is made: {tmp_path / 'dafx.db'}" in caplog.text
    assert cli.main(["scheduler", "--port", "0", "--db", str(tmp_path / "missing" / "dafx.db")]) == 1
    assert "there is no such folder" in capsys.readouterr().err
    assert not (tmp_path / "missing").exists()


async def test_a_port_that_is_taken_is_said_in_one_line(bench: Bench) -> None:
    command = [sys.executable, "-m", "dafx_actors.cli", "scheduler", "--in-memory", "--port", str(bench.scheduler.port)]
    other = await anyio.run_process(command, check=False)
    assert other.returncode == 1
    assert len(other.stderr.decode().splitlines()) == 1, other.stderr.decode()
    assert str(bench.scheduler.port) in other.stderr.decode()


def test_the_command_is_quick_to_help() -> None:
    command = [sys.executable, "-c", "import sys; from dafx_actors import cli; print(*sys.modules)"]
    modules = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert "dafx_actors.cli" in modules
    assert "dafx_actors.scheduler.embedded" not in modules
    with pytest.raises(SystemExit) as caught:
        cli.main(["--help"])
    assert caught.value.code == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ["--host", "0.0.0.0"],
        ["--tls-certificate", "only.pem"],
        ["--token-file", "/no/such/file"],
    ],
)
def test_the_command_says_what_is_wrong(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["scheduler", "--in-memory", *arguments]) == 1
    assert capsys.readouterr().err.startswith("dafx: ")


async def test_errors_are_of_one_tree_and_say_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "dafx.db").write_bytes(b"nonsense" * 1_000)
    with pytest.raises(DafxError, match="restore a backup"):
        async with EmbeddedScheduler(tmp_path / "dafx.db"):
            pass


async def test_a_fault_of_our_own_costs_one_request_and_nothing_else(bench: Bench) -> None:
    """Memory is read again from the store: timers, waiting clients and work go on."""

    def naps(context: task.OrchestrationContext, _: object) -> Steps:
        yield context.create_timer(timedelta(seconds=1))
        return (yield context.wait_for_external_event("go"))

    await bench.worker(naps)
    instance_id = await bench.client.schedule_new_orchestration(naps)
    await bench.client.wait_for_orchestration_start(instance_id, timeout=30)
    waiting = asyncio.create_task(bench.end_of(instance_id))
    hub = bench.scheduler.engine.hub("default")
    it = hub.orchestrations.find(instance_id)
    assert it is not None
    with pytest.raises(ZeroDivisionError), hub.changing() as changes:  # noqa: PT012 - the fault is half-way
        hub.orchestrations.terminate(changes, it, None, recurse=False)
        _ = 1 / 0
    assert len(bench.scheduler.engine.timers) == 1
    await bench.client.raise_orchestration_event(instance_id, "go", data=2)
    assert (await waiting).serialized_output == "2"


async def test_a_fault_of_our_own_costs_nothing_that_was_decided_before(bench: Bench) -> None:
    """What others asked for is on its way to the disk when memory is read again from there."""
    worker = RawWorker(await bench.stub())
    hub = bench.scheduler.engine.hub("default")
    with hub.changing() as before:
        hub.orchestrations.create(before, "first", Start(name="any"))
    with pytest.raises(ZeroDivisionError), hub.changing():
        _ = 1 / 0
    await before.committed()
    assert (await worker.take()).orchestratorRequest.instanceId == "first"


async def test_who_waits_is_told_by_what_is_read_again(bench: Bench) -> None:
    """Here the last change of an ended orchestration comes to nothing, so that no commit tells of its end."""
    hub = bench.scheduler.engine.hub("default")
    waiting = asyncio.create_task(bench.end_of("first"))
    while not hub.waiters:
        await anyio.lowlevel.checkpoint()
    with hub.changing() as changes:
        it = hub.orchestrations.create(changes, "first", Start(name="any"))
        hub.orchestrations.terminate(changes, it, '"over"', recurse=False)
    with pytest.raises(ZeroDivisionError), hub.changing() as changes:  # noqa: PT012 - the fault is half-way
        hub.orchestrations.touch(changes, it)
        _ = 1 / 0
    assert (await waiting).serialized_output == '"over"'


async def test_nothing_is_left_behind(tmp_path: Path) -> None:
    """No task of the scheduler outlives it, and no connection to the file."""
    before = asyncio.all_tasks()
    async with Bench(tmp_path / "dafx.db") as bench:
        await bench.worker(one, do_work)
        await bench.run(one, 1)
    assert asyncio.all_tasks() == before
    connection = sqlite3.connect(tmp_path / "dafx.db")
    assert connection.execute("PRAGMA journal_mode = DELETE").fetchone() == ("delete",)
    connection.close()
