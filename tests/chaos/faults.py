"""Faults from outside: a network that breaks, a disk that is full or slow, a clock that is set.

A full disk is a limit on the size of the process's files (`RLIMIT_FSIZE`): a write that would pass it fails. A slow
disk and a clock that is set need a C compiler: a small library, loaded before libc, makes every sync take longer and
moves the wall clock that the process sees. Without a compiler these two are left out, and the report says so.
"""

from __future__ import annotations

import asyncio
import mmap
import resource
import shutil
import struct
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

SECOND = 1_000_000_000


class Switches:
    """The slow disk and the clock of one process and its successors."""

    def __init__(self, folder: Path) -> None:
        self.environment: dict[str, str] = {}
        """What the process needs; empty where there is no compiler."""
        self._path = folder / "switches"
        self._path.write_bytes(bytes(16))
        with self._path.open("r+b") as file:
            self._numbers = mmap.mmap(file.fileno(), 16)
        compiler = shutil.which("cc") if sys.platform == "linux" else None
        library = folder / "faults.so"
        if compiler is not None:
            source = Path(__file__).with_suffix(".c")
            subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(source)], check=True)
            self.environment = {"LD_PRELOAD": str(library), "CHAOS_SWITCHES": str(self._path)}

    def set_clock(self, seconds: float) -> None:
        """Set the wall clock of the process so many seconds off."""
        struct.pack_into("=q", self._numbers, 0, int(seconds * SECOND))

    def slow_disk(self, seconds: float) -> None:
        """Let every sync take so much longer."""
        struct.pack_into("=q", self._numbers, 8, int(seconds * 1_000_000))

    def close(self) -> None:
        self._numbers.close()


def full_disk(pid: int, *, full: bool) -> None:
    """Let the files of a process grow no more, or again."""
    _, most = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (0 if full else most, most))


class Proxy:
    """Stands between programs and the scheduler, and can drop or hold what passes."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._flows = asyncio.Event()
        self._flows.set()
        self.endpoint = ""

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.endpoint = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def cut(self) -> None:
        """Reset all connections."""
        for writer in self._writers:
            writer.transport.abort()

    def hold(self) -> None:
        """Let nothing pass; nobody is told."""
        self._flows.clear()

    def flow(self) -> None:
        self._flows.set()

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        self.flow()
        while self._tasks:
            self.cut()
            await asyncio.wait(self._tasks, timeout=1.0)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        current = asyncio.current_task()
        assert current is not None
        self._tasks.add(current)
        self._writers.add(writer)
        other: asyncio.StreamWriter | None = None
        try:
            answers, other = await asyncio.open_connection("127.0.0.1", self._target)
            self._writers.add(other)
            pumps = [asyncio.create_task(self._pump(*way)) for way in ((reader, other), (answers, writer))]
            try:
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for pump in pumps:
                    pump.cancel()
                await asyncio.gather(*pumps, return_exceptions=True)
        except OSError:
            pass  # the scheduler is down: the caller's connection is closed, as it would be without the proxy
        finally:
            for each in (writer, other):
                if each is not None:
                    each.transport.abort()
                    self._writers.discard(each)
            self._tasks.discard(current)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65_536):
                await self._flows.wait()
                writer.write(data)
                await writer.drain()


def resources_of(pid: int) -> dict[str, int]:
    """What a process holds: kilobytes of memory, open files, threads."""
    status = Path(f"/proc/{pid}/status").read_text()
    numbers = dict(line.split(":", 1) for line in status.splitlines())
    return {
        "memory": int(numbers["VmRSS"].split()[0]),
        "threads": int(numbers["Threads"]),
        "files": sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir()),
    }
