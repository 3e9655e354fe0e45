"""The processes of a chaos run, and what is done to them."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import anyio
import attrs
import grpc.aio

from dafx_actors import DurableAIAgentClient
from dafx_actors.scheduler.hosted import stats_async
from dafx_actors.transcript import Response
from tests.chaos import clients, faults
from tests.chaos.checker import Report, check_effects, check_steps, check_thread
from tests.chaos.effects import Effects
from tests.chaos.model import Model
from tests.conftest import free_port

ROOT = Path(__file__).parents[2]
AFTER_THE_LAST_FAULT = 120.0
LONGEST_TURN = 0.25
"""Seconds of CPU between two turns of the loop; five times of what one call may take: garbage is collected as well."""
MORE = {"memory": 100_000, "threads": 32, "files": 16, "tasks": 8}
"""What a process may hold at the end beyond what it held at the beginning; kilobytes of memory."""
DECK: Mapping[str, int] = {
    "kill the scheduler": 8,
    "kill a worker": 10,
    "kill a client": 4,
    "stop a worker": 2,
    "stop the scheduler": 1,
    "stop a client": 1,
    "cut connections": 3,
    "hold connections": 2,
    "full disk": 2,
    "slow disk": 1,
    "set the clock": 2,
    "rolling restart": 2,
    "poison": 1,
}
"""Kinds of faults, and how many of each come before the deck is shuffled again."""


@attrs.define
class Program:
    """A process that is started again after its end."""

    name: str
    arguments: list[str]
    environment: Mapping[str, str]
    log: Path
    process: subprocess.Popen[bytes] | None = None
    expected: bool = False
    """Whether its end is expected."""
    stopped: bool = False
    _ready: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *self.arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=ROOT,
                env={**os.environ, **self.environment},
            )
        self.stopped = self.expected = False

    def send(self, number: signal.Signals) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)

    def kill(self) -> None:
        if self.process is not None:
            self.send(signal.SIGKILL)
            self.process.communicate()

    async def line(self) -> str:
        assert self.process is not None
        assert self.process.stdout is not None
        line = await asyncio.to_thread(self.process.stdout.readline)
        assert line, f"{self.name} ended: {self.log.read_text()[-3000:]}"
        return line.decode()

    async def ready(self) -> None:
        """Until it has said that it is; before that, it does not know what a signal means."""
        while self._ready is not self.process:
            process = self.process
            await self.line()
            self._ready = process

    async def stacks(self) -> str:
        """Where its threads are, as it writes to its log; with what stands before that."""
        written = self.log.stat().st_size
        self.send(signal.SIGUSR1)
        with anyio.move_on_after(5):
            while self.log.stat().st_size == written:
                await asyncio.sleep(0.05)
            await asyncio.sleep(0.2)
        return self.log.read_text()[-12_000:]

    async def measure(self) -> dict[str, Any]:
        """What it holds."""
        assert self.process is not None
        assert self.process.stdin is not None
        self.process.stdin.write(b"\n")
        self.process.stdin.flush()
        while not (line := await self.line()).startswith("{"):
            pass
        found: dict[str, Any] = json.loads(line)
        return found


class Campaign:
    """Starts everything, does what faults there are, and looks at what is left."""

    def __init__(self, folder: Path, model: Model, chance: random.Random) -> None:
        self.report = Report()
        self._folder = folder
        self._model = model
        self._chance = chance
        self._port = free_port()
        self._switches = faults.Switches(folder)
        self._proxies = [faults.Proxy(self._port) for _ in range(3)]
        """Of the two workers, and of the clients."""
        self._disturbances: list[tuple[float, int | None]] = []
        self._later: set[asyncio.Task[None]] = set()
        self._poisoned = 0
        self._baseline: dict[str, dict[str, Any]] = {}
        self._watcher: asyncio.Task[None] | None = None

    # --- Lifecycle ------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Campaign:
        for proxy in self._proxies:
            await proxy.start()
        ends, folder = [proxy.endpoint for proxy in self._proxies], str(self._folder)
        programs = "tests.chaos.programs"
        serve = [programs, "scheduler", str(self._port), f"{folder}/chaos.db"]
        self._scheduler = self._program("scheduler", serve, self._switches.environment)
        self._workers = [
            self._program(f"worker-{n}", [programs, "worker", ends[n], folder], self._model.environment)
            for n in range(2)
        ]
        self._clients = [
            self._program(f"client-{n}", ["tests.chaos.clients", f"client-{n}", ends[2], folder], {}) for n in range(2)
        ]
        self._all = [self._scheduler, *self._workers, *self._clients]
        if not self._switches.environment:
            self.report.left_out.append("a slow disk and a clock that is set: there is no C compiler (Linux only)")
        for program in self._all:
            program.start()
            await program.ready()
        await self._until(lambda: self._told() >= 10, "the first answers")
        for program in (self._scheduler, *self._workers):
            self._baseline[program.name] = await program.measure()
        self._watcher = asyncio.create_task(self._watch())
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in [*self._later, *([self._watcher] if self._watcher else [])]:
            task.cancel()
        await asyncio.gather(*self._later, return_exceptions=True)
        for program in self._all:
            program.kill()
        for proxy in self._proxies:
            await proxy.close()
        self._switches.close()

    def _program(self, name: str, arguments: list[str], environment: Mapping[str, str]) -> Program:
        return Program(name, arguments, environment, self._folder / f"{name}.log")

    async def _watch(self) -> None:
        """Start again what a poisoned request took down. Nothing else ends by itself."""
        while True:
            for program in self._all:
                assert program.process is not None
                if not program.expected and (code := program.process.poll()) is not None:
                    if program in self._workers and self._poisoned and code == -signal.SIGKILL:
                        self.report.figures["workers taken down by poison"] += 1
                        self._disturbances.append((time.monotonic(), program.pid))
                    else:
                        end = program.log.read_text()[-2000:]
                        self.report.crashed.append(f"{program.name} ended with {code}: {end}")
                    program.kill()
                    program.start()
            await asyncio.sleep(0.05)

    # --- Faults ---------------------------------------------------------------------------------------------------

    async def attack(self, kills: int, pause: float) -> None:
        """Make faults until there have been so many kills."""
        deck: list[str] = []
        done = 0
        while done < kills:
            if not deck:
                deck = [name for name, times in DECK.items() for _ in range(times)]
                self._chance.shuffle(deck)
            fault = deck.pop()
            await asyncio.sleep(self._chance.uniform(0, 2 * pause))
            action: Callable[[], Awaitable[bool | None]] = getattr(self, "_" + fault.replace(" ", "_"))
            if await action() is not False:
                self.report.done[fault] += 1
                done += fault.startswith("kill")

    async def _kill_the_scheduler(self) -> None:
        await self._kill(self._scheduler)

    async def _kill_a_worker(self) -> None:
        await self._kill(self._chance.choice(self._workers))

    async def _kill_a_client(self) -> None:
        await self._kill(self._chance.choice(self._clients))

    async def _kill(self, program: Program) -> None:
        self._disturb(program)
        program.expected = True
        program.kill()
        program.start()
        if program is self._scheduler:
            await program.ready()

    async def _stop_a_worker(self) -> bool:
        return self._stop(self._chance.choice(self._workers))

    async def _stop_the_scheduler(self) -> bool:
        return self._stop(self._scheduler)

    async def _stop_a_client(self) -> bool:
        return self._stop(self._chance.choice(self._clients))

    def _stop(self, program: Program) -> bool:
        """Past the time-outs, while other faults are made; longer than the scheduler waits for a worker."""
        if program.stopped:
            return False
        process = program.process
        program.stopped = True
        program.send(signal.SIGSTOP)

        def go_on() -> None:
            if program.process is process:
                self._disturb(program)
                program.send(signal.SIGCONT)
                program.stopped = False

        self._after(self._chance.uniform(2.5, 4.0), go_on)
        return True

    async def _cut_connections(self) -> None:
        self._disturbances.append((time.monotonic(), None))
        self._chance.choice(self._proxies).cut()

    async def _hold_connections(self) -> None:
        proxy = self._chance.choice(self._proxies)
        proxy.hold()

        def flow() -> None:
            self._disturbances.append((time.monotonic(), None))
            proxy.flow()

        self._after(self._chance.uniform(1.0, 4.0), flow)

    async def _full_disk(self) -> None:
        process, pid = self._scheduler.process, self._scheduler.pid
        faults.full_disk(pid, full=True)
        await asyncio.sleep(self._chance.uniform(0.5, 2.0))
        if self._scheduler.process is process:
            faults.full_disk(pid, full=False)

    async def _slow_disk(self) -> bool:
        if self._switches.environment:
            self._switches.slow_disk(self._chance.uniform(0.05, 0.3))
            self._after(2.0, lambda: self._switches.slow_disk(0))
        return bool(self._switches.environment)

    async def _set_the_clock(self) -> bool:
        """So far that time-outs pass, and back, so that what is due then is due within the run."""
        if self._switches.environment:
            self._switches.set_clock(self._chance.choice([-15.0, 15.0, -3600.0, 3600.0]))
            self._after(self._chance.uniform(0.5, 3.0), lambda: self._switches.set_clock(0))
        return bool(self._switches.environment)

    async def _rolling_restart(self) -> None:
        for program in (*self._workers, self._scheduler):
            if program.stopped:
                continue
            await program.ready()
            program.expected = True
            self._disturb(program)
            program.send(signal.SIGTERM)
            assert program.process is not None
            try:
                code = await asyncio.to_thread(program.process.wait, 30)
            except subprocess.TimeoutExpired:
                stacks = await program.stacks()
                self.report.stuck.append(f"{program.name} does not end at SIGTERM: {stacks}")
            else:
                if code != 0 and not self._poisoned:
                    self.report.crashed.append(f"{program.name} ended with {code}: {program.log.read_text()[-2000:]}")
            program.kill()
            program.start()
            await program.ready()

    async def _poison(self) -> None:
        """A request takes down each worker that touches it; the others go on, and somebody cancels it."""
        self._poisoned += 1
        number, before = self._poisoned, self.report.figures["workers taken down by poison"]
        plan = self._chance.choice(["poison", "bomb"])
        async with DurableAIAgentClient.connect(self._proxies[2].endpoint, start_timeout=120.0) as client:
            agent = client.get_agent(clients.AGENT)
            turn = f"poison-{number}.operator.1"
            handle = None
            while handle is None:
                async with clients.passing_troubles():
                    handle = await agent.start(f"<{turn}> {plan}", thread=f"poison-{number}", correlation_id=turn)

            def taken_down() -> int:
                return self.report.figures["workers taken down by poison"] - before

            await self._until(lambda: taken_down() >= 2, f"workers to be taken down by {turn}")
            told = self._told()
            await self._until(lambda: self._told() >= told + 3, f"others to go on beside {turn}")
            with anyio.move_on_after(AFTER_THE_LAST_FAULT) as scope:
                end = await clients.find_and_cancel(handle)
                if end != "TurnCancelled":
                    self.report.lost.append(f"{turn} ended with {end}")
            if scope.cancelled_caught:
                self.report.stuck.append(f"{turn} cannot be cancelled")

    def _disturb(self, program: Program) -> None:
        self._disturbances.append((time.monotonic(), program.pid if program in self._workers else None))

    def _after(self, seconds: float, do: Callable[[], None]) -> None:
        async def wait() -> None:
            try:
                await asyncio.sleep(seconds)
            finally:
                do()

        task = asyncio.create_task(wait())
        self._later.add(task)
        task.add_done_callback(self._later.discard)

    # --- The end --------------------------------------------------------------------------------------------------

    async def settle(self) -> None:
        """End all faults, let clients end what they have begun, and wait until nothing happens any more."""
        await asyncio.gather(*self._later)
        (self._folder / "stop").touch()
        for program in self._clients:
            program.expected = True
        deadline = time.monotonic() + AFTER_THE_LAST_FAULT
        for program in self._clients:
            assert program.process is not None
            try:
                code = await asyncio.to_thread(program.process.wait, max(deadline - time.monotonic(), 0.1))
            except subprocess.TimeoutExpired:
                self.report.stuck += [f"{program.name}: {turn}" for turn in self._open_turns(program.name)]
            else:
                if code != 0:
                    self.report.crashed.append(f"{program.name} ended with {code}: {program.log.read_text()[-3000:]}")

    async def check(self) -> None:
        """Compare, and look for what is left."""
        books = [line for program in self._clients for line in self._book(program.name)]
        responses: list[Response] = []
        async with DurableAIAgentClient.connect(f"http://127.0.0.1:{self._port}") as client:
            agent = client.get_agent(clients.AGENT)
            talked = [f"thread-{number}" for number in range(clients.THREADS)]
            for thread in [*talked, *(f"poison-{number + 1}" for number in range(self._poisoned))]:
                transcript = await agent.get_transcript(thread)
                responses += [entry for entry in transcript.entries if isinstance(entry, Response)]
                mine = [line for line in books if line["thread"] == thread]
                check_thread(thread, mine, transcript, self.report)
                document = await client._backend.thread(agent.get_thread(thread).entity_id)
                left = ((document or {}).get("data") or {}).get("dafx")
                if left:
                    self.report.stuck.append(f"{thread} still holds {left}")
        check_effects(Effects(self._folder / "effects").all(), responses, self.report)
        check_steps(self._model.asked, self._disturbances, self.report)
        await self._check_work()
        await self._check_resources()

    async def _check_work(self) -> None:
        """Nothing is under way any more."""
        found: list[str] = []
        with anyio.move_on_after(30):
            while found := await self._work_left():
                await asyncio.sleep(0.1)
        self.report.stuck += found

    async def _work_left(self) -> list[str]:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{self._port}") as channel:
            figures = await stats_async(channel)
        assert figures is not None
        hub = figures["task_hubs"]["default"]
        left = {name: hub["orchestrations"][name] for name in ("pending", "running", "suspended")}
        work = {kind: (each["waiting"], each["held"]) for kind, each in hub["work"].items()}
        found = [f"{count} orchestrations are {name}" for name, count in left.items() if count]
        found += [f"{kind}: {waiting} waiting, {held} held" for kind, (waiting, held) in work.items() if waiting + held]
        if len(hub["workers"]) != len(self._workers):
            found.append(f"{len(hub['workers'])} workers are connected")
        return found + ([f"{figures['timers']} timers"] if figures["timers"] else [])

    async def _check_resources(self) -> None:
        for program in (self._scheduler, *self._workers):
            held: dict[str, Any] = {}
            with anyio.move_on_after(30):
                while not held or held["work"] or held.get("waiting"):
                    held = await program.measure()
            first = self._baseline[program.name]
            for what, more in MORE.items():
                if held[what] > first[what] + more:
                    self.report.leaked.append(f"{program.name}: {what} was {first[what]}, is {held[what]}: {held}")
            if held.get("turn", 0) > LONGEST_TURN:
                self.report.stuck.append(f"{program.name} held its loop for {held['turn']:.3f} s of CPU")
            if held["work"] or held.get("waiting"):
                self.report.leaked.append(f"{program.name} holds {held}")
        files = {path.name for path in self._folder.iterdir() if path.name.startswith("chaos.db")}
        if strange := files - {"chaos.db", "chaos.db-wal", "chaos.db-shm", "chaos.db-lock", "chaos.db.lock"}:
            self.report.leaked.append(f"files beside the database: {sorted(strange)}")

    # --- Books ----------------------------------------------------------------------------------------------------

    def _book(self, name: str) -> list[dict[str, Any]]:
        return clients.read_book(self._folder / f"{name}.book")

    def _told(self) -> int:
        return sum(line["what"] == "told" for program in self._clients for line in self._book(program.name))

    def _open_turns(self, name: str) -> list[str]:
        book = self._book(name)
        told = {line["turn"] for line in book if line["what"] == "told"}
        return sorted({line["turn"] for line in book if line["what"] == "sends"} - told)

    async def _until(self, is_so: Callable[[], bool], what: str) -> None:
        with anyio.move_on_after(AFTER_THE_LAST_FAULT):
            while not is_so():
                await asyncio.sleep(0.05)
            return
        self.report.stuck.append(f"waited in vain for {what}")
