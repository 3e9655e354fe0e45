"""Who may open the file, who may connect, and what is refused."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import sys
import tempfile
from datetime import UTC
from pathlib import Path
from typing import Any

import anyio
import grpc
import grpc.aio
import pytest
from durabletask.client import AsyncTaskHubGrpcClient
from durabletask.internal import orchestrator_service_pb2 as pb
from durabletask.internal import orchestrator_service_pb2_grpc as stubs

from dafx_actors.errors import (
    ConfigurationError,
    SchedulerCannotListen,
    SchedulerDatabaseError,
    SchedulerInUse,
    SchedulerNotSecured,
)
from dafx_actors.scheduler import EmbeddedScheduler, Tls
from dafx_actors.scheduler.storage import schema
from dafx_actors.scheduler.storage.database import connect, statements
from tests.scheduler.bench import PATIENCE, QUIET, Bench
from tests.scheduler.test_durability import serve

pytestmark = pytest.mark.anyio


async def open_and_close(db: Path) -> None:
    async with EmbeddedScheduler(db):
        pass


async def test_one_process_per_file(tmp_path: Path) -> None:
    async with Bench(tmp_path / "dafx.db"):
        with pytest.raises(SchedulerInUse, match=f"process {os.getpid()}") as caught:
            await open_and_close(tmp_path / "dafx.db")
        assert caught.value.pid == os.getpid()
        command = [sys.executable, "-m", "dafx_actors.cli", "scheduler", "--port", "0", "--db", f"{tmp_path}/dafx.db"]
        other = await anyio.run_process(command, check=False)
        errors = other.stderr.decode()
        assert other.returncode == 1
        assert "is in use by process" in errors
        assert "Traceback" not in errors
    await open_and_close(tmp_path / "dafx.db")


@pytest.mark.parametrize("way", ["dots", "linked folder", "linked file", "hard link"])
async def test_one_process_per_file_whatever_it_is_called(tmp_path: Path, way: str) -> None:
    data, elsewhere = tmp_path / "data", tmp_path / "elsewhere"
    data.mkdir()
    elsewhere.mkdir()
    names = {
        "dots": elsewhere / ".." / "data" / "dafx.db",
        "linked folder": tmp_path / "link" / "dafx.db",
        "linked file": elsewhere / "link.db",
        "hard link": elsewhere / "hard.db",
    }
    async with Bench(data / "dafx.db"):
        (tmp_path / "link").symlink_to(data)
        (elsewhere / "link.db").symlink_to(data / "dafx.db")
        if way == "hard link":
            (elsewhere / "hard.db").hardlink_to(data / "dafx.db")
        with pytest.raises((SchedulerInUse, SchedulerDatabaseError), match=r"in use|hard links"):
            await open_and_close(names[way])
    if way == "hard link":
        with pytest.raises(SchedulerDatabaseError, match="2 names"):
            await open_and_close(data / "dafx.db")
        (elsewhere / "hard.db").unlink()
    await open_and_close(data / "dafx.db")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has other permissions")
async def test_nobody_else_can_read_the_files(tmp_path: Path) -> None:
    async with Bench(tmp_path / "dafx.db") as bench:
        await bench.client.schedule_new_orchestration("any", input="secret")
        await bench.scheduler.engine.store.back_up(tmp_path / "backup.db")
        files = sorted(path for path in tmp_path.iterdir() if path.name.startswith(("dafx", "backup")))
        assert [path.name for path in files] == ["backup.db", "dafx.db", "dafx.db-lock", "dafx.db-shm", "dafx.db-wal"]
        assert {path.stat().st_mode & 0o777 for path in files} == {0o600}


async def test_a_folder_in_place_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "dafx.db").mkdir()
    with pytest.raises(SchedulerDatabaseError, match="cannot use the database"):
        await open_and_close(tmp_path / "dafx.db")


async def test_two_schedulers_on_one_port(tmp_path: Path) -> None:
    async with Bench(tmp_path / "one.db") as bench:
        with pytest.raises(SchedulerCannotListen, match=str(bench.scheduler.port)):
            async with EmbeddedScheduler(tmp_path / "two.db", port=bench.scheduler.port):
                pass
    await open_and_close(tmp_path / "two.db")  # The failed start left nothing open.


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.1", "example.org"])
def test_other_machines_need_tls_and_a_token(host: str, tmp_path: Path) -> None:
    tls = Tls(certificate=tmp_path / "c.pem", key=tmp_path / "k.pem")
    every: list[dict[str, Any]] = [{}, {"token": "secret"}, {"tls": tls}]
    for options in every:
        with pytest.raises(SchedulerNotSecured):
            EmbeddedScheduler(host=host, **options)
    EmbeddedScheduler(host=host, token="secret", tls=tls)


async def test_a_certificate_that_cannot_be_read(tmp_path: Path) -> None:
    tls = Tls(certificate=tmp_path / "missing.pem", key=tmp_path / "k.pem")
    with pytest.raises(ConfigurationError, match=r"missing\.pem|k\.pem"):
        async with EmbeddedScheduler(tmp_path / "dafx.db", tls=tls, token="secret"):
            pass


async def test_a_token_is_asked_for(tmp_path: Path) -> None:
    async with Bench(tmp_path / "dafx.db", token="secret") as bench:
        for authorization in (None, "Bearer wrong", "secret", "Bearer secret "):
            metadata = [("authorization", authorization)] if authorization else None
            client = AsyncTaskHubGrpcClient(host_address=bench.scheduler.endpoint, metadata=metadata, logger=QUIET)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await client.get_orchestration_state("any")
            assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
            await client.close()
        stub = await bench.stub()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in stub.GetWorkItems(pb.GetWorkItemsRequest()):
                pass
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        right = [("authorization", "Bearer secret")]
        async with AsyncTaskHubGrpcClient(
            host_address=bench.scheduler.endpoint, metadata=right, logger=QUIET
        ) as client:
            assert await client.get_orchestration_state("any") is None


async def test_tls(tmp_path: Path) -> None:
    certificate, key = self_signed(tmp_path)
    tls = Tls(certificate=certificate, key=key)
    async with EmbeddedScheduler(tmp_path / "dafx.db", tls=tls, token="secret") as scheduler:
        assert scheduler.endpoint.startswith("https://127.0.0.1:")
        credentials = grpc.ssl_channel_credentials(certificate.read_bytes())
        address = f"localhost:{scheduler.port}"
        async with grpc.aio.secure_channel(address, credentials) as channel:
            stub: Any = stubs.TaskHubSidecarServiceStub(channel)  # type: ignore[no-untyped-call]
            request = pb.GetInstanceRequest(instanceId="any")
            reply = await stub.GetInstance(request, metadata=[("authorization", "Bearer secret")])
            assert not reply.exists


@pytest.mark.parametrize("kind", ["metadata", "credential"])
async def test_tls_and_a_token_with_clients_and_workers_of_the_public_sdk(tmp_path: Path, kind: str) -> None:
    """As one would run it: the command with its files, and programs that say what they trust and who they are."""
    certificate, key = self_signed(tmp_path)
    token = tmp_path / "token"
    token.write_text("secret\n")
    options = ["--tls-certificate", str(certificate), "--tls-key", str(key), "--token-file", str(token)]
    process, endpoint = await anyio.to_thread.run_sync(lambda: serve(tmp_path / "dafx.db", *options))
    try:
        assert endpoint.startswith("https://127.0.0.1:")
        command = [sys.executable, "-m", "tests.scheduler.secured", endpoint.replace("127.0.0.1", "localhost")]
        trusts = {**os.environ, "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH": str(certificate)}
        found = await anyio.run_process([*command, "secret", kind], env=trusts)
        assert found.stdout.decode().strip() == "42"
        refused = await anyio.run_process([*command, "wrong", kind], env=trusts, check=False)
        assert "UNAUTHENTICATED" in refused.stderr.decode()
    finally:
        process.kill()
        await anyio.to_thread.run_sync(process.communicate)


def self_signed(folder: Path) -> tuple[Path, Path]:
    """A certificate for localhost, and its key."""
    from datetime import datetime, timedelta

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    paths = folder / "certificate.pem", folder / "key.pem"
    paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return paths


async def test_numbers_beyond_all_measure_harm_nobody_else(bench: Bench) -> None:
    """A moment that no database can hold is as good as never; a page that cannot be is refused."""
    stub = await bench.stub()
    far = pb.CreateInstanceRequest(name="any", instanceId="far")
    far.scheduledStartTimestamp.seconds = 2**62
    await stub.StartInstance(far, timeout=PATIENCE)
    state = await bench.client.get_orchestration_state("far")
    assert state is not None
    assert state.runtime_status.name == "PENDING"
    query = pb.QueryInstancesRequest()
    query.query.continuationToken.value = f"1:{10**30}"
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.QueryInstances(query)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    await stub.StartInstance(pb.CreateInstanceRequest(name="any", instanceId="near"), timeout=PATIENCE)


async def test_files_that_are_not_ours_are_left_alone(tmp_path: Path) -> None:
    foreign = tmp_path / "foreign.db"
    with sqlite3.connect(foreign) as connection:
        connection.execute("CREATE TABLE somebody (elses INTEGER)")
    connection.close()
    nonsense = tmp_path / "nonsense.db"
    nonsense.write_bytes(b"this is not a database, " * 1_000)
    newer = tmp_path / "newer.db"
    await open_and_close(newer)
    with sqlite3.connect(newer) as connection:
        connection.execute(f"PRAGMA user_version = {schema.VERSION + 1}")
    connection.close()
    for path, reason in ((foreign, "another program"), (nonsense, "not a database"), (newer, "newer dafx_actors")):
        before = hashlib.sha256(path.read_bytes()).digest()
        with pytest.raises(SchedulerDatabaseError, match=reason):
            await open_and_close(path)
        assert hashlib.sha256(path.read_bytes()).digest() == before


async def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "dafx.db"
    await open_and_close(path)
    content = bytearray(path.read_bytes())
    content[100:4000] = b"\xff" * 3_900
    path.write_bytes(content)
    with pytest.raises(SchedulerDatabaseError, match=r"damaged|malformed"):
        await open_and_close(path)


WITHOUT_RIGHTS = """
import os, sys
from dafx_actors import cli
*options, path = sys.argv[1:]
assert cli.main([*options, os.devnull + "/dafx.db"]) == 1  # Imports all: that user may not read the installation.
if os.geteuid() == 0:
    os.setgroups([]), os.setgid(65534), os.setuid(65534)
sys.exit(cli.main([*options, path]))
"""
"""The command, run by somebody who may not write everywhere, also if the tests are."""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has other permissions")
@pytest.mark.parametrize("what", ["folder", "file"])
async def test_what_is_read_only(what: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = folder / "dafx.db"
        if what == "file":
            await open_and_close(path)
            (folder / "dafx.db-lock").unlink()
            path.chmod(0o444)
        before = {file.name: file.read_bytes() for file in folder.iterdir()}
        folder.chmod(0o555 if what == "folder" else 0o777)
        command = [sys.executable, "-c", WITHOUT_RIGHTS, "scheduler", "--port", "0", "--db", str(path)]
        found = await anyio.run_process(command, check=False)
        folder.chmod(0o700)
        errors = found.stderr.decode()
        assert found.returncode == 1, errors
        assert "cannot use the database" in errors
        assert "Permission denied" in errors
        assert "Traceback" not in errors
        (folder / "dafx.db-lock").unlink(missing_ok=True)
        assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


async def test_a_path_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(SchedulerDatabaseError, match="there is no such folder"):
        await open_and_close(tmp_path / "file" / "dafx.db")


async def test_an_old_file_is_brought_up_to_date(tmp_path: Path) -> None:
    """Files are migrated from the state in which each version left them, kept here as scripts."""
    for version in range(1, schema.VERSION + 1):
        path = tmp_path / f"v{version}.db"
        connection = sqlite3.connect(path, isolation_level=None)
        for step in schema.STEPS[:version]:
            for statement in statements(step):
                connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {schema.APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {version}")
        connection.execute("INSERT INTO hubs VALUES (1, 'default')")
        connection.execute(
            "INSERT INTO orchestrations (id, hub, instance_id, execution_id, name, status, created, updated, completed)"
            " VALUES (2, 1, 'old', 'x', 'any', 1, 1, 1, 1)"
        )
        connection.execute("INSERT INTO payloads (id, input, output) VALUES (2, '1', '2')")
        connection.close()
        async with Bench(path) as bench:
            state = await bench.client.get_orchestration_state("old")
            assert state is not None
            assert (state.serialized_input, state.serialized_output) == ("1", "2")


def test_steps_are_taken_one_by_one_and_a_failed_one_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = str(tmp_path / "dafx.db")
    connect(path, synchronous="normal").close()
    broken = (*schema.STEPS, "CREATE TABLE half (a); INSERT INTO nowhere VALUES (1);")
    with pytest.raises(SchedulerDatabaseError, match=rf"from version {schema.VERSION} to {schema.VERSION + 1}"):
        connect(path, synchronous="normal", steps=broken)
    connection = connect(path, synchronous="normal", steps=(*schema.STEPS, "CREATE TABLE whole (a);"))
    tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_schema")}
    assert connection.execute("PRAGMA user_version").fetchone() == (schema.VERSION + 1,)
    connection.close()
    assert "whole" in tables
    assert "half" not in tables
