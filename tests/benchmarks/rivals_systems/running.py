"""The systems, started: their processes, what all of those use together, and what they ask of the disk."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import attrs

from tests.benchmarks import seed
from tests.benchmarks.processes import Process, backend, free_port, script
from tests.benchmarks.rivals_systems.installed import Absent, Installed, strace

SYNCS = ("fsync", "fdatasync", "msync")
PATIENCE = 60.0
"""Seconds that a server may take to start."""


@attrs.frozen
class Spent:
    """What processes have used so far."""

    cpu: float
    """Seconds."""
    written: int
    """Bytes given to the disk."""

    def __add__(self, other: Spent) -> Spent:
        return Spent(self.cpu + other.cpu, self.written + other.written)

    def since(self, earlier: Spent) -> Spent:
        """What was used since then."""
        return Spent(self.cpu - earlier.cpu, self.written - earlier.written)


class Program(Process):
    """A process with all that it starts."""

    def __init__(
        self,
        *command: str,
        settings: Mapping[str, str] | None = None,
        user: str | None = None,
        end: signal.Signals = signal.SIGKILL,
    ) -> None:
        """Start it; `end` is what it is told when it is left, and a while later it is killed."""
        super().__init__(*command, settings=settings, user=user)
        self._end = end

    def __exit__(self, *exc: object) -> None:
        if self._end != signal.SIGKILL:
            self._process.send_signal(self._end)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(20)
        left = self.pids()[1:]
        super().__exit__(*exc)
        for pid in left:
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)

    def pids(self) -> list[int]:
        """Its own, and those of what it has started, which still run."""
        found = [self._process.pid]
        for each in found:
            with suppress(OSError):
                for thread in Path(f"/proc/{each}/task").iterdir():
                    found += map(int, (thread / "children").read_text().split())
        return found

    def spent(self) -> Spent:
        """By it and by all that it has started."""
        total = Spent(0, 0)
        for pid in self.pids():
            with suppress(OSError):  # it has just ended
                # utime, stime, and both of the children that have ended.
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:15]
                io = dict(line.split(": ") for line in Path(f"/proc/{pid}/io").read_text().splitlines())
                total += Spent(sum(map(int, fields)) / os.sysconf("SC_CLK_TCK"), int(io["write_bytes"]))
        return total

    def unheard(self) -> None:
        """Read what it prints, so that it never waits for a reader."""
        assert self._process.stdout is not None
        threading.Thread(target=self._process.stdout.read, daemon=True).start()


@attrs.frozen
class Running:
    """A system: its processes, of which one is the client."""

    name: str
    folder: Path
    """Where it keeps its data."""
    installed: Installed
    stack: ExitStack
    """Ends the processes."""
    programs: dict[str, Program] = attrs.field(factory=dict[str, Program])

    def start(
        self,
        role: str,
        *command: str,
        settings: Mapping[str, str] | None = None,
        user: str | None = None,
        end: signal.Signals = signal.SIGKILL,
    ) -> Program:
        """Start one of its processes."""
        program = self.stack.enter_context(Program(*command, settings=settings, user=user, end=end))
        self.programs[role] = program
        return program

    def script(self, role: str, module: str, *arguments: str, python: str = sys.executable) -> Program:
        """Start a script of this folder, and wait until it is ready."""
        program = self.start(role, python, "-m", f"tests.benchmarks.rivals_systems.{module}", *arguments)
        program.answer()
        return program

    @property
    def client(self) -> Program:
        """Who is asked."""
        return self.programs["client"]

    def spent(self) -> Spent:
        """By all of it: servers, workers, clients."""
        return sum((program.spent() for program in self.programs.values()), Spent(0, 0))

    def pids(self) -> list[int]:
        """Of all of it."""
        return [pid for program in self.programs.values() for pid in program.pids()]


# --- How each is started -------------------------------------------------------------------------------------------

Depths = tuple[int, ...]


def _seed(endpoint: str, depths: Depths) -> None:
    """Threads of ours, which have to be there before a worker hosts the agent."""
    if depths:
        with script("seed", endpoint) as seeding:
            seeding.answer()
            seeding.ask("seed", depths=depths)


def _ours(running: Running, depths: Depths) -> None:
    db = str(running.folder / "bench.db")
    command = (sys.executable, "-m", "dafx_actors.cli", "scheduler", "--port", "0", "--db", db, "--log-level", "error")
    endpoint = running.start("scheduler", *command).line()
    _seed(endpoint, depths)
    running.script("worker", "ours", "worker", endpoint)
    running.script("client", "ours", "client", endpoint)


def _ours_in_one(running: Running, depths: Depths) -> None:
    db = running.folder / "bench.db"
    if depths:
        with backend("full", db) as (_, endpoint):
            _seed(endpoint, depths)
    running.script("client", "ours", "one", str(db))


def _dbos_sqlite(running: Running, _: Depths) -> None:
    python = running.installed.python("dbos")
    running.script("client", "with_dbos", "one", f"sqlite:///{running.folder}/bench.sqlite", python=python)


def _dbos_postgres(running: Running, _: Depths) -> None:
    python = running.installed.python("dbos")
    url = f"postgresql+psycopg://postgres@127.0.0.1:{_postgres(running)}/bench"
    running.script("client", "with_dbos", "one", url, python=python)


def _postgres(running: Running) -> int:
    """A server of its own, as Debian's defaults have it; its port."""
    installed, port, data = running.installed, free_port(), running.folder / "postgres"
    programs = {name: installed.postgres_program(name) for name in ("initdb", "postgres", "pg_isready")}
    user = installed.postgres_user()
    data.mkdir()
    if user:
        running.folder.chmod(0o755)
        shutil.chown(data, user)
    subprocess.run(
        [programs["initdb"], "-D", str(data), "-A", "trust", "-U", "postgres"],
        check=True, capture_output=True, cwd="/", user=user, group=user, extra_groups=None if user is None else (),
    )  # fmt: skip
    # Told to quit at once, it takes its shared memory with it, which it cannot when it is killed.
    command = (programs["postgres"], "-D", str(data), "-p", str(port), "-k", str(data))
    running.start("postgres", *command, user=user, end=signal.SIGQUIT).unheard()
    ready = (programs["pg_isready"], "-h", "127.0.0.1", "-p", str(port))
    _until(lambda: subprocess.run(ready, capture_output=True, check=False).returncode == 0, "Postgres")
    return port


def _restate(running: Running, _: Depths) -> None:
    python, server = running.installed.python("restate"), running.installed.server()
    ingress, admin, node, worker = (free_port() for _ in range(4))
    settings = {
        "RESTATE_INGRESS__BIND_ADDRESS": f"127.0.0.1:{ingress}",
        "RESTATE_ADMIN__BIND_ADDRESS": f"127.0.0.1:{admin}",
        "RESTATE_BIND_ADDRESS": f"127.0.0.1:{node}",
        "RESTATE_ADVERTISED_ADDRESS": f"http://127.0.0.1:{node}",
        "RESTATE_DISABLE_TELEMETRY": "true",
        "RESTATE_LOG_FILTER": "error",
    }
    running.start("server", server, "--base-dir", str(running.folder), settings=settings).unheard()
    running.script("worker", "with_restate", "worker", str(worker), python=python)
    body = json.dumps({"uri": f"http://127.0.0.1:{worker}"}).encode()
    asked = urllib.request.Request(f"http://127.0.0.1:{admin}/deployments", body, {"content-type": "application/json"})

    def registered() -> bool:
        try:
            with urllib.request.urlopen(asked, timeout=10):
                return True
        except OSError:  # neither the server nor the worker may listen yet
            return False

    _until(registered, "Restate")
    running.script("client", "with_restate", "client", f"http://127.0.0.1:{ingress}", python=python)


def _langgraph(running: Running, _: Depths) -> None:
    python = running.installed.python("langgraph")
    running.script("client", "with_langgraph", "one", str(running.folder / "bench.db"), python=python)


def _until(true: Callable[[], bool], what: str) -> None:
    limit = time.monotonic() + PATIENCE
    while not true():
        if time.monotonic() > limit:
            raise RuntimeError(f"{what} does not start")
        time.sleep(0.05)


OURS = "ours"
OURS_IN_ONE = "ours, one process"
DBOS_SQLITE = "dbos, sqlite"
DBOS_POSTGRES = "dbos, postgres"
RESTATE = "restate"
LANGGRAPH = "langgraph, sqlite"
SYSTEMS: Mapping[str, Callable[[Running, Depths], None]] = {
    OURS: _ours,
    OURS_IN_ONE: _ours_in_one,
    DBOS_SQLITE: _dbos_sqlite,
    DBOS_POSTGRES: _dbos_postgres,
    RESTATE: _restate,
    LANGGRAPH: _langgraph,
}


@contextmanager
def systems(installed: Installed, names: Sequence[str], *, depths: Depths = ()) -> Generator[list[Running]]:
    """Those that are there, each started and warm; what is missing is said. Those that are not asked are idle."""
    with ExitStack() as stack:
        found: list[Running] = []
        for name in names:
            try:
                found.append(_started(stack, installed, name, depths))
            except Absent as error:
                print(f"{name} is skipped: {error}", file=sys.stderr, flush=True)
        yield found


def _started(stack: ExitStack, installed: Installed, name: str, depths: Depths) -> Running:
    with ExitStack() as own:
        folder = Path(own.enter_context(tempfile.TemporaryDirectory(prefix="rivals-", ignore_cleanup_errors=True)))
        running = Running(name, folder, installed, own)
        SYSTEMS[name](running, depths)
        running.client.ask("start")
        for turns in depths:
            running.client.ask("deepen", thread=seed.thread_of(turns), turns=turns)
        for rounds in (0, 0, 2):
            running.client.ask("turns", count=1, rounds=rounds)
        stack.push(own.pop_all())
        return running


# --- What they ask of the disk -------------------------------------------------------------------------------------


def syncs(running: Running, turns: int, rounds: int) -> float:
    """How often a turn asks the disk to keep what was written, counted over some turns, in all processes.

    Raises:
        Absent: There is no strace, or it may not look.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "counted"
        watched = running.pids()
        attached = [f"--attach={pid}" for pid in watched]
        command = [strace(), "-f", "-c", "-e", f"trace={','.join(SYNCS)}", "-o", str(out), *attached]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as tracer:
            try:
                assert tracer.stderr is not None
                _wait_until_attached(tracer.stderr, {*watched})
                reading = threading.Thread(target=tracer.stderr.read, daemon=True)  # it names each new thread
                reading.start()
                running.client.ask("turns", count=turns, rounds=rounds)
                tracer.send_signal(signal.SIGINT)
                reading.join()
            finally:
                tracer.terminate()
        return calls(out.read_text()) / turns


def _wait_until_attached(said: Iterable[str], watched: set[int]) -> None:
    lines: list[str] = []
    for line in said:
        lines.append(line)
        if found := re.search(r"Process (\d+) attached", line):
            watched.discard(int(found[1]))
        if not watched:
            return
    raise Absent(f"strace may not look at {sorted(watched)}: {''.join(lines[-3:])}")


def calls(summary: str) -> int:
    """All calls in strace's table: share, seconds, microseconds of a call, calls, errors if there were any, name."""
    rows = [line.split() for line in summary.splitlines()]
    return sum(int(row[3]) for row in rows if len(row) >= 5 and row[-1] in SYNCS)
