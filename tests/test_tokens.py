"""The token of an embedded scheduler on this machine: who finds it, who sends it, and where to."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from azure.core.credentials import AccessToken

from dafx_actors import DurableAIAgentClient, DurableAIAgentWorker, durable_agent
from dafx_actors._durable.connect import address, credential_for
from dafx_actors._durable.tokens import FILE_VARIABLE, is_loopback, kept_token, published, read_token, token_for
from dafx_actors.errors import ConfigurationError
from dafx_actors.scheduler import EmbeddedScheduler
from dafx_actors.scheduler.hosted import hosted
from dafx_actors.testing import ScriptedModel
from tests.conftest import free_port

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has other permissions")


@durable_agent(model=ScriptedModel("It holds."))
class Porter:
    instructions = "You keep the door."


@pytest.fixture(autouse=True)
def _state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.delenv(FILE_VARIABLE, raising=False)


@contextmanager
def scheduler(port: int) -> Generator[str]:
    command = [sys.executable, "-m", "dafx_actors.cli", "scheduler", "--in-memory", "--port", str(port), "--token"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


@pytest.mark.anyio
async def test_this_users_programs_find_the_token_by_themselves(tmp_path: Path) -> None:
    port = free_port()
    with scheduler(port) as endpoint:
        [kept] = tmp_path.glob("dafx/*.json")
        assert kept.name == f"scheduler-{port}.json"
        assert kept.stat().st_mode & 0o777 == 0o600
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel, pytest.raises(grpc.RpcError):
            hosted(channel, timeout=10)
        worker = DurableAIAgentWorker.connect(endpoint)
        worker.add_agent(Porter)
        async with worker, DurableAIAgentClient.connect(endpoint) as client:
            assert (await client.get_agent(Porter).run("Does it hold?", timeout=60)).text == "It holds."
        first = token_for(endpoint)
    assert token_for(endpoint) is None, "nobody listens there any more"
    assert first == kept_token(port), "the next one has the same, so that who was connected stays so"


class _Given:
    """A credential of the caller's own."""

    async def get_token(self, *_: str, **__: object) -> AccessToken:
        return AccessToken("given", 2**33)


@pytest.mark.anyio
async def test_what_is_asked_beside_the_client_carries_its_credential() -> None:
    """On this machine, where a credential may be sent without TLS."""
    async with (
        EmbeddedScheduler(None, token="given") as running,
        DurableAIAgentClient.connect(running.endpoint, credential=_Given()) as client,
    ):
        assert await client._backend.hosted() is not None
        assert await client.get_agent(Porter).get_transcript("none") is not None


def test_a_token_is_sent_only_while_its_own_process_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    with published(4711, "secret") as file:
        assert token_for("http://127.0.0.1:4711") == "secret"
        assert token_for("http://localhost:4711") == "secret"
        assert token_for("http://[::1]:4711") == "secret"
        assert token_for("http://127.0.0.1:4712") is None
        assert token_for("http://10.0.0.1:4711") is None
        lives = file.read_text()
        file.write_text(re.sub(r'"started": "\d+"', '"started": "1"', lives))
        assert token_for("http://127.0.0.1:4711") is None, "another process has that number now"
        for nonsense in ("", "[", "[1]", '{"pid": "x", "token": 3}', lives.replace(str(os.getpid()), str(2**22 + 1))):
            file.write_text(nonsense)
            assert token_for("http://127.0.0.1:4711") is None
        file.write_text(lives)
        monkeypatch.setattr(os, "getuid", lambda: 12345)
        assert token_for("http://127.0.0.1:4711") is None, "it lies there for somebody to send it something"


@pytest.mark.parametrize(
    ("endpoint", "local"),
    [
        ("http://localhost:8080", True),
        ("http://127.1.2.3", True),
        ("http://[::1]:1", True),
        ("http://127.0.0.1.evil.example", False),
        ("http://localhost.example", False),
        ("http://192.168.0.1", False),
        ("http://0.0.0.0:1", False),
    ],
)
def test_what_is_of_this_machine(endpoint: str, local: bool) -> None:
    assert is_loopback(endpoint) is local


def test_no_credential_goes_through_a_network_unencrypted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for make in (DurableAIAgentClient.connect, DurableAIAgentWorker.connect):
        with pytest.raises(ConfigurationError, match=r"not sent to http://scheduler\.example"):
            make("http://scheduler.example:8080", credential=object())
    (tmp_path / "token").write_text("secret")
    (tmp_path / "token").chmod(0o600)
    monkeypatch.setenv(FILE_VARIABLE, str(tmp_path / "token"))
    with pytest.raises(ConfigurationError, match=FILE_VARIABLE):
        credential_for(address("http://scheduler.example:8080"))
    for endpoint in ("https://scheduler.example", "http://127.0.0.1:8080"):
        given = credential_for(address(endpoint))
        assert given.get_token().token == "secret"
        assert "secret" not in repr(given)


def test_a_token_file_is_for_its_owner(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "token"
    file.write_text(" secret\n")
    file.chmod(0o644)
    with caplog.at_level(logging.WARNING):
        assert read_token(file) == "secret"
    assert file.stat().st_mode & 0o777 == 0o600
    assert "secret" not in caplog.text
    assert str(file) in caplog.text
    for content in (b"", b"a\nb", b"\xff", "k\u00e9y".encode()):
        file.write_bytes(content)
        with pytest.raises(ConfigurationError) as caught:
            read_token(file)
        assert "a\nb" not in str(caught.value)
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_token(tmp_path / "missing")


def test_an_authority_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAFX_CA_FILE", str(tmp_path / "missing.pem"))
    monkeypatch.setenv(FILE_VARIABLE, str(tmp_path / "token"))
    (tmp_path / "token").write_text("secret")
    with pytest.raises(ConfigurationError, match="DAFX_CA_FILE"):
        DurableAIAgentWorker.connect("https://127.0.0.1:1")
