"""The processes of a benchmark: backends, workers, clients; what they use of the machine; the peer's environment."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Generator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import attrs

from tests.interop import environment

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 600.0
"""Seconds after which a process that gives no answer is ended, so that nothing waits for ever."""


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@attrs.frozen
class Use:
    """What a process has used so far."""

    cpu: float
    """Seconds."""
    switches: int
    """How often a thread of it waited."""
    written: int
    """Bytes given to files."""
    memory: int
    """Bytes that it has to itself, now."""

    def since(self, earlier: Use) -> Use:
        """What it has used since then; its memory has grown."""
        pairs = zip(attrs.astuple(self), attrs.astuple(earlier), strict=True)
        return Use(*[now - before for now, before in pairs])


class Process:
    """A process that is asked in lines of JSON, and ends when it is left."""

    def __init__(self, *command: str, settings: Mapping[str, str] | None = None, user: str | None = None) -> None:
        """Start it, with `settings` added to its environment; as another user, in no folder of ours."""
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed in `__exit__`
        # As it is for users: what is installed is compiled once.
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            cwd=ROOT if user is None else "/",
            env={**environment, "PYTHONWARNINGS": "ignore", **(settings or {})},
            user=user,
            group=user,
            extra_groups=None if user is None else (),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()
        self._errors.close()

    def line(self, patience: float = PATIENCE) -> str:
        """The next line that it prints.

        Raises:
            RuntimeError: It has ended, or was ended because it took too long; with what it had written.
        """
        assert self._process.stdout is not None
        timer = threading.Timer(patience, self._process.kill)
        timer.start()
        try:
            line = self._process.stdout.readline().strip()
        finally:
            timer.cancel()
        if not line:
            self._process.wait()
            self._errors.seek(0)
            raise RuntimeError(f"{self._process.args!r} has ended: {self._errors.read()[-4_000:]}")
        return line

    def answer(self, patience: float = PATIENCE) -> Any:
        """What it says."""
        return json.loads(self.line(patience))

    def tell(self, do: str, **asked: Any) -> None:
        """Ask, and do not wait."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": do, **asked}) + "\n")
        self._process.stdin.flush()

    def ask(self, do: str, **asked: Any) -> Any:
        """Ask, and wait for the answer."""
        self.tell(do, **asked)
        return self.answer()

    def use(self) -> Use:
        """What it has used."""
        proc = Path(f"/proc/{self._process.pid}")
        fields = (proc / "stat").read_text().rpartition(")")[2].split()
        switches = 0
        for thread in (proc / "task").iterdir():
            with suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
                switches += int(_fields(thread / "status")["voluntary_ctxt_switches"])
        return Use(
            cpu=(int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"),
            switches=switches,
            written=int(_fields(proc / "io")["wchar"]),
            memory=int(_fields(proc / "smaps_rollup")["Private_Dirty"].split()[0]) * 1_024,
        )


def _fields(file: Path) -> Mapping[str, str]:
    return {
        name: value.strip()
        for name, colon, value in (line.partition(":") for line in file.read_text().splitlines())
        if colon
    }


def script(module: str, *arguments: str, python: str = sys.executable) -> Process:
    """A module of this folder, as a process."""
    return Process(python, "-m", f"tests.benchmarks.{module}", *arguments)


@contextmanager
def backend(kind: str, db: Path | None = None) -> Generator[tuple[Process, str]]:
    """A backend's process and its endpoint: `memory` (durabletask's own), or the scheduler, `full` or `normal`."""
    with ExitStack() as stack:
        if kind == "memory":
            process = stack.enter_context(script("memory_backend", str(free_port())))
        else:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            options = ("--port", "0", "--db", str(db or Path(folder) / "bench.db"), "--synchronous", kind)
            command = (sys.executable, "-m", "dafx_actors.cli", "scheduler", *options, "--log-level", "error")
            process = stack.enter_context(Process(*command))
        yield process, process.line()


# --- Systems -------------------------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class Setup:
    """A system as it is measured."""

    name: str
    backend: str = "full"
    durability: str = "step"
    interval: float = 0.0
    """Seconds between the looks of the peer's client; 0 for this package."""

    @property
    def is_peer(self) -> bool:
        """Whether it is the peer."""
        return self.interval > 0


PEER_DEFAULT = Setup(name="peer, 1 s", backend="memory", interval=1.0)
PEER_BEST = Setup(name="peer, 0.01 s", backend="memory", interval=0.01)
PEER_LESS = Setup(name="peer, 0.1 s", backend="memory", interval=0.1)
PEER_ON_DISK = Setup(name="peer, 0.01 s, disk", interval=0.01)
OURS = Setup(name="ours, disk")
OURS_IN_MEMORY = Setup(name="ours, memory", backend="memory")
OURS_BY_TURN = Setup(name="ours by turn, memory", backend="memory", durability="turn")


@attrs.frozen
class System:
    """A backend, a worker and a client, each a process."""

    setup: Setup
    endpoint: str
    backend: Process
    worker: Process
    client: Process

    def uses(self) -> dict[str, Use]:
        """What each has used."""
        return {"scheduler": self.backend.use(), "worker": self.worker.use(), "client": self.client.use()}


@attrs.frozen
class Machine:
    """Starts systems."""

    peer_python: str
    """Empty: there is no peer."""

    def role(self, setup: Setup, role: str, endpoint: str) -> Process:
        """A worker's or a client's process, being started."""
        if setup.is_peer:
            return script("peer", role, endpoint, str(setup.interval), python=self.peer_python)
        return script("ours", role, endpoint, setup.durability)

    def those(self, *setups: Setup) -> list[Setup]:
        """Those that are there."""
        return [setup for setup in setups if self.peer_python or not setup.is_peer]

    @contextmanager
    def system(self, setup: Setup, *, depths: tuple[int, ...] = ()) -> Generator[System]:
        """A system that has answered once; with `depths`, threads of so many turns are there before it starts."""
        with ExitStack() as stack:
            process, endpoint = stack.enter_context(backend(setup.backend))
            if depths:
                with script("seed", endpoint) as seeding:
                    seeding.answer()
                    seeding.ask("seed", depths=depths)
            roles = [stack.enter_context(self.role(setup, role, endpoint)) for role in ("worker", "client")]
            for each in roles:
                each.answer()
            system = System(setup, endpoint, process, *roles)
            system.client.ask("turns", count=3)
            yield system


# --- The peer ------------------------------------------------------------------------------------------------------


def peer_python(given: str | None) -> str:
    """The Python of the peer's environment; it is made, once, unless one is given: see `tests.interop.environment`.

    Raises:
        SystemExit: It cannot be made.
    """
    if given:
        return given
    try:
        return str(environment.make())
    except environment.NoPeer as error:
        raise SystemExit(f"{error}; name a Python that has it with --peer-python") from error


def seconds_to_run(python: str, statement: str) -> float:
    """How long a new interpreter takes for a statement."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    begun = time.perf_counter()
    subprocess.run([python, "-c", statement], env=environment, check=True, cwd=ROOT, capture_output=True)
    return time.perf_counter() - begun
