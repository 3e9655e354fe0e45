"""The local model's server: one process for all who use it here, from the first `lease()` to the last `release()`.

Nothing in this module is asynchronous. It blocks, so event loops call it in threads.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO, Any

import attrs

from dafx_actors.errors import ModelError

__all__ = ["Lease", "Settings", "lease"]

START_SECONDS = 120.0
"""How long a server may take to load. A second or two is usual; a busy machine with a cold disk takes longer."""

STOP_SECONDS = 10.0


@attrs.frozen(kw_only=True)
class Settings:
    """What makes two servers the same server."""

    name: str
    weights: Path
    context: int
    """Tokens of one conversation, question and answer together."""
    slots: int
    """Answers made at the same time; further requests wait."""
    threads: int
    """Threads that compute."""


@attrs.define(eq=False)
class _Server:
    url: str
    api_key: str
    process: subprocess.Popen[str]
    users: int = 0

    @property
    def alive(self) -> bool:
        return self.process.poll() is None


@attrs.define(eq=False)
class Lease:
    """One user's share in a running server."""

    _settings: Settings
    _server: _Server
    _released: bool = False

    @property
    def url(self) -> str:
        """The server's address, without `/v1`."""
        return self._server.url

    @property
    def api_key(self) -> str:
        """Made for this server; nobody else on the machine knows it."""
        return self._server.api_key

    @property
    def alive(self) -> bool:
        """Whether the server's process runs."""
        return self._server.alive

    def release(self) -> None:
        """Give the share back; the last one stops the server. Safe to do twice."""
        with _lock:
            if self._released:
                return
            self._released = True
            self._server.users -= 1
            if self._server.users == 0:
                if _servers.get(self._settings) is self._server:
                    del _servers[self._settings]
                _stop(self._server.process)


# The one thing here that is global, for it is what users who do not know of each other share.
_servers: dict[Settings, _Server] = {}
_lock = threading.Lock()


def lease(settings: Settings) -> Lease:
    """A share in the server with these settings, which is started if it does not run.

    Raises:
        ModelError: The server did not start.
    """
    with _lock:
        server = _servers.get(settings)
        if server is None or not server.alive:
            server = _servers[settings] = _start(settings)
        server.users += 1
        return Lease(settings, server)


def _start(settings: Settings) -> _Server:
    api_key = secrets.token_urlsafe(32)
    process = subprocess.Popen(  # noqa: S603  # our own file, no shell
        [sys.executable, str(Path(__file__).with_name("_llama.py"))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # it logs in native code, past every Python setting
        text=True,
        encoding="utf-8",
    )
    started = False
    # A pipe cannot be read with a timeout on every platform, but one whose writer is killed ends.
    watch = threading.Timer(START_SECONDS, process.kill)
    watch.start()
    try:
        answer = _ask(process, {**attrs.asdict(settings), "weights": str(settings.weights), "api_key": api_key})
        url = answer.get("url")
        if not isinstance(url, str):
            raise ModelError(kind="error", message=f"The local model did not start: {answer.get('error')}")
        started = True
        return _Server(url, api_key, process)
    finally:
        watch.cancel()
        watch.join()
        if not started:
            _stop(process)


def _ask(process: subprocess.Popen[str], settings: dict[str, Any]) -> dict[str, Any]:
    stdin, stdout = _pipes(process)
    try:
        # The settings hold the key, which a command line or an environment would show to others.
        stdin.write(json.dumps(settings) + "\n")
        stdin.flush()
        answer: dict[str, Any] = json.loads(stdout.readline())
    except (OSError, ValueError):
        process.kill()
        return {"error": f"its process ended with code {process.wait()} before it served"}
    return answer


def _stop(process: subprocess.Popen[str]) -> None:
    """End the process by closing its standard input; by force if that does not help."""
    stdin, stdout = _pipes(process)
    with contextlib.suppress(OSError):  # it is gone, and what was written last with it
        stdin.close()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    stdout.close()


def _pipes(process: subprocess.Popen[str]) -> tuple[IO[str], IO[str]]:
    assert process.stdin is not None
    assert process.stdout is not None
    return process.stdin, process.stdout
