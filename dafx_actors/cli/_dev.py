"""`dafx dev`: a scheduler and a worker in one process, which is loaded anew when its files change.

The new worker is there before the old one goes: the old one finishes its steps, and a turn that is between two steps
goes on with the new code. What cannot be loaded is told, and the old code stays.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import sys
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from dafx_actors.cli._io import Output, add_common, one_line, told

if TYPE_CHECKING:
    from dafx_actors.cli._app import App

_LOOK_AGAIN = 0.3
"""Seconds between looks at the files."""


def declare(parser: argparse.ArgumentParser) -> None:
    """Its arguments."""
    parser.description = (
        "Run a scheduler and the agents of a file in one process; when a file changes they are loaded anew, and no "
        "turn is lost. Without a file: a demo agent on the model of the environment, or of this machine. With "
        "--endpoint, or ENDPOINT, or where something listens on the port, that scheduler is used."
    )
    parser.epilog = "examples:\n  dafx dev\n  dafx dev app.py\n  dafx dev app.py:Joker --port 0 --db try.db"
    parser.set_defaults(run=run)
    parser.add_argument("app", nargs="?", help="app.py, app.py:object, module, or module:object")
    parser.add_argument("--db", default="dafx.db", metavar="FILE", help="the database file (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8080, help="0 takes any free port (default: %(default)s)")
    parser.add_argument("--no-reload", action="store_true", help="do not look whether files change")
    add_common(parser)
    parser.add_argument("--log-level", default="warning", choices=("debug", "info", "warning", "error"))


def run(arguments: argparse.Namespace) -> int:
    """Run it until somebody interrupts or terminates this."""
    from dafx_actors.cli._app import load
    from dafx_actors.cli._logs import configure
    from dafx_actors.cli._worker import use_environment

    configure(arguments.log_level, as_json=arguments.json)
    use_environment(arguments)

    async def serve() -> None:
        stop = asyncio.Event()
        _stop_by_signals(stop)
        async with AsyncExitStack() as stack:
            endpoint = await _scheduler(arguments, stack)
            # After the scheduler: a worker that the file makes by itself connects to it.
            app = load(arguments.app or "dafx_actors.cli._demo:Demo")
            out = Output(as_json=arguments.json)
            await _Dev(app, arguments, endpoint, out).run(stop)

    # A file that is changed twice in a second, and keeps its size, would be taken for what was compiled of it before.
    sys.dont_write_bytecode = True
    try:
        asyncio.run(serve())
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None
    return 0


async def _scheduler(arguments: argparse.Namespace, stack: AsyncExitStack) -> str:
    """The endpoint of the scheduler: that of the environment, of what runs already, or of one that runs here."""
    import os

    from dafx_actors.errors import SchedulerCannotListen
    from dafx_actors.scheduler.embedded import EmbeddedScheduler

    if endpoint := os.environ.get("ENDPOINT"):
        return endpoint
    endpoint = f"http://localhost:{arguments.port}"
    try:
        scheduler = await stack.enter_async_context(EmbeddedScheduler(arguments.db, port=arguments.port))
        endpoint = f"http://localhost:{scheduler.port}"
    except SchedulerCannotListen:
        sys.stderr.write(f"dafx: something listens on port {arguments.port} already, and is used as the scheduler\n")
    os.environ["ENDPOINT"] = endpoint
    return endpoint


def _stop_by_signals(stop: asyncio.Event) -> None:
    import signal

    loop = asyncio.get_running_loop()
    for number in filter(None, (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", None))):
        with suppress(NotImplementedError):  # Windows: Ctrl+C raises KeyboardInterrupt instead.
            loop.add_signal_handler(number, stop.set)


class _Dev:
    def __init__(self, app: App, arguments: argparse.Namespace, endpoint: str, out: Output) -> None:
        self._app = app
        self._arguments = arguments
        self._endpoint = endpoint
        self._out = out

    async def run(self, stop: asyncio.Event) -> None:
        """Host the app, and each newer form of it, until the end."""
        async with asyncio.TaskGroup() as group:
            gone = await self._host(group, self._app)
            self._say_ready()
            before = _times(self._folder)
            while not stop.is_set():
                with suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), _LOOK_AGAIN)
                now = before if self._arguments.no_reload or stop.is_set() else _times(self._folder)
                if now != before:
                    before = now
                    gone = await self._reload(group, gone)
            gone.set()

    async def _host(self, group: asyncio.TaskGroup, app: App) -> asyncio.Event:
        """Have the app hosted, until the event is set."""
        gone, ready = asyncio.Event(), asyncio.get_running_loop().create_future()
        worker = app.hosted(self._arguments.endpoint, self._arguments.taskhub)

        async def serve() -> None:
            try:
                async with worker:
                    ready.set_result(None)
                    await gone.wait()
            except Exception as error:
                if ready.done():
                    raise
                ready.set_exception(error)

        group.create_task(serve())
        await ready
        return gone

    async def _reload(self, group: asyncio.TaskGroup, before: asyncio.Event) -> asyncio.Event:
        from dafx_actors.cli._app import load

        _forget(self._folder)
        try:
            app = load(self._arguments.app)
            gone = await self._host(group, app)
        except Exception as error:
            known = told(error)
            if known is None:
                raise
            sys.stderr.write(f"dafx: not loaded anew, the code of before goes on: {one_line(known[0])}\n")
            return before
        before.set()
        self._app = app
        self._out.record({"reloaded": app.agent_names}, f"Loaded anew: {', '.join(app.agent_names)}")
        return gone

    @property
    def _folder(self) -> Path | None:
        """Where the files lie that are looked at: beside the app, and below."""
        where = (self._arguments.app or "").partition(":")[0]
        if not where:
            return None
        return Path(where).resolve().parent if Path(where).suffix == ".py" else Path.cwd()

    def _say_ready(self) -> None:
        names = self._app.agent_names
        self._out.record({"endpoint": self._endpoint, "agents": names}, f"Scheduler  {self._endpoint}")
        self._out.text(f"Agents     {', '.join(names) or 'none'}")
        is_usual = self._endpoint in ("http://localhost:8080", "http://127.0.0.1:8080")
        where = "" if is_usual else f" --endpoint {self._endpoint}"
        self._out.text("Now, in another terminal:")
        for name in names[:3]:
            self._out.text(f"  dafx chat {name}{where}")
        self._out.text(f"  dafx doctor{where}")
        self._out.text(
            "Ctrl+C ends it; what was said stays."
            if self._folder is None
            else "A change of a file is loaded. Ctrl+C ends it."
        )


def _files(folder: Path) -> list[Path]:
    found: list[Path] = []
    todo = [folder]
    while todo:
        try:
            entries = list(todo.pop().iterdir())
        except OSError:
            continue
        for each in entries:
            if each.suffix == ".py":
                found.append(each)
            # An environment, a repository's own folder, and the like, are not the app.
            elif each.is_dir() and not each.name.startswith((".", "__")) and not (each / "pyvenv.cfg").exists():
                todo.append(each)
    return found


def _times(folder: Path | None) -> dict[Path, tuple[int, int]]:
    """When each file was changed, and its size."""
    found: dict[Path, tuple[int, int]] = {}
    for file in _files(folder) if folder is not None else ():
        with suppress(OSError):
            stat = file.stat()
            found[file] = (stat.st_mtime_ns, stat.st_size)
    return found


def _forget(folder: Path | None) -> None:
    """Have the modules of a folder imported anew; this package's own stay."""
    importlib.invalidate_caches()
    if folder is None:
        return
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if file and name != "__main__" and not name.startswith("dafx_actors"):
            path = Path(file)
            if path.is_relative_to(folder) and "site-packages" not in path.parts:
                del sys.modules[name]
