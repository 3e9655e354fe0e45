"""The documented way to Azure: as far as the network, with what the README says to install and nothing else."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
from azure.core.credentials import AccessToken
from azure.core.exceptions import ClientAuthenticationError

from dafx_actors import DurableAIAgentClient, DurableAIAgentWorker
from dafx_actors.errors import ConfigurationError, SchedulerCredentialError, SchedulerUnreachable
from tests.conftest import free_port

pytestmark = pytest.mark.anyio


def test_without_a_sign_in_worker_and_client_say_to_run_az_login(tmp_path: Path) -> None:
    """In a process of its own, without aiohttp, which azure-identity's asynchronous credentials need."""
    environ = {"AZURE_TOKEN_CREDENTIALS": "AzureCliCredential", "PATH": str(tmp_path), "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "tests.sign_in", f"https://127.0.0.1:{free_port()}", "aiohttp"],
        env=environ,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("says to run az login") == 3


class Signed:
    """A synchronous credential; what it was asked for, and on which thread."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.asked: list[tuple[str, threading.Thread]] = []

    def get_token(self, *scopes: str, **_: Any) -> AccessToken:
        self.asked.append((scopes[0], threading.current_thread()))
        if self.error is not None:
            raise self.error
        return AccessToken("secret", int(time.time()) + 3600)


class SignedLater:
    """An asynchronous one."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def get_token(self, *scopes: str, **_: Any) -> AccessToken:
        await anyio.lowlevel.checkpoint()
        self.asked += scopes
        return AccessToken("secret", int(time.time()) + 3600)


@pytest.mark.parametrize("credential", [Signed(), SignedLater()])
async def test_with_a_token_of_either_kind_a_client_gets_as_far_as_the_network(credential: Any) -> None:
    async with DurableAIAgentClient.connect(f"https://127.0.0.1:{free_port()}", credential=credential) as client:
        with pytest.raises(SchedulerUnreachable):
            await client.get_agent("Joker").run("Hello", timeout=1.0)
    assert credential.asked
    if isinstance(credential, Signed):
        assert {thread is threading.main_thread() for _, thread in credential.asked} == {False}


async def test_a_worker_signs_in_before_it_starts() -> None:
    given: list[tuple[Any, type[Exception] | None]] = [
        (Signed(), None),
        (Signed(ClientAuthenticationError("nobody\nis signed in")), SchedulerCredentialError),
        (SignedLater(), ConfigurationError),
    ]
    for credential, refused in given:
        worker = DurableAIAgentWorker.connect(f"https://127.0.0.1:{free_port()}", credential=credential, stop_timeout=0)
        if refused is None:
            async with worker:
                pass
            assert credential.asked
            continue
        with pytest.raises(refused):
            async with worker:
                pass
        with pytest.raises(refused):
            await anyio.to_thread.run_sync(worker.start)


async def test_a_client_says_why_there_is_no_token_and_sends_nothing() -> None:
    nobody = Signed(ClientAuthenticationError("nobody\nis signed in"))
    async with DurableAIAgentClient.connect(f"https://127.0.0.1:{free_port()}", credential=nobody) as client:
        with pytest.raises(SchedulerCredentialError, match=r"\(nobody is signed in\)\..* Run `az login`"):
            await client.get_agent("Joker").run("Hello")
