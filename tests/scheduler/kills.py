"""Two hundred random kills: `python -m tests.scheduler.kills [--kills N] [--seed S] [--json FILE]`.

A scheduler, two workers and clients are real processes, of which one after the other is killed (SIGKILL) at random
moments and started again. The clients keep a book of what was acknowledged; at the end it is compared with what is
stored. An acknowledged start, event or signal that has no effect is *lost*; one with more than one effect, or a call
that an orchestration made and that was carried out twice, is *repeated*; an orchestration that has not ended within
a minute after the last kill is *stuck*. All three must be 0. (A request whose reply was lost may or may not have been
carried out, once. Activities run at least once, and are counted for interest.)
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import attrs
import grpc.aio
from durabletask import task
from durabletask.client import AsyncTaskHubGrpcClient, OrchestrationState
from durabletask.entities import DurableEntity, EntityInstanceId
from durabletask.grpc_options import GrpcWorkerResiliencyOptions
from durabletask.internal import orchestrator_service_pb2 as pb
from durabletask.internal import orchestrator_service_pb2_grpc as stubs
from durabletask.worker import TaskHubGrpcWorker

from tests.scheduler.bench import Steps

QUIET = logging.getLogger("tests.quiet")
QUIET.setLevel(logging.CRITICAL)
EVENTS = 5
"""Events that each collecting orchestration is sent."""
LEDGERS = 4
AFTER_THE_LAST_KILL = 60.0
LOST_REPLY = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.DEADLINE_EXCEEDED,
}

# --- what runs in the workers ----------------------------------------------------------------------------------------


class Ledger(DurableEntity):
    """Keeps every entry that it was told."""

    def enter(self, entry: str) -> int:
        entries = self.get_state(list, [])
        self.set_state([*entries, entry])
        return len(entries) + 1


def do_step(_: task.ActivityContext, number: int) -> int:
    return number + 1


def turn(context: task.OrchestrationContext, number: int) -> Steps:
    """Like an agent's turn: a thread is told, steps are taken, an answer is recorded, all of it once."""
    ledger = EntityInstanceId("ledger", str(number % LEDGERS))
    yield context.call_entity(ledger, "enter", f"begin {context.instance_id}")
    value = yield context.call_activity(do_step, input=number)
    yield context.create_timer(timedelta(milliseconds=20))
    value = yield context.call_sub_orchestrator(steps, input=value)
    with (yield context.lock_entities([ledger])):
        yield context.call_entity(ledger, "enter", f"commit {context.instance_id}")
    return value


def steps(context: task.OrchestrationContext, number: int) -> Steps:
    values = yield task.when_all([context.call_activity(do_step, input=number) for _ in range(3)])
    return max(values)


def collect(context: task.OrchestrationContext, _: object) -> Steps:
    """Keeps every event until it is told to stop."""
    found: list[str] = []
    while True:
        event: str = yield context.wait_for_external_event("entry")
        if event == "stop":
            return found
        found.append(event)


def run_worker(endpoint: str) -> None:
    """A worker process, until it is killed or its standard input is closed."""
    worker = TaskHubGrpcWorker(
        host_address=endpoint,
        logger=QUIET,
        resiliency_options=GrpcWorkerResiliencyOptions(
            reconnect_backoff_base_seconds=0.05, reconnect_backoff_cap_seconds=0.2
        ),
    )
    for orchestrator in (turn, steps, collect):
        worker.add_orchestrator(orchestrator)
    worker.add_activity(do_step)
    worker.add_entity(Ledger, name="ledger")
    cast("Any", worker).start()
    print("ready", flush=True)
    sys.stdin.read()
    os._exit(0)


# --- processes that are killed ---------------------------------------------------------------------------------------


@attrs.define
class Victim:
    """A process that is started again after it was killed."""

    name: str
    arguments: list[str]
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, *self.arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def kill(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.communicate()

    async def ready(self) -> None:
        """Wait for its first line."""
        assert self.process is not None
        assert self.process.stdout is not None
        assert await asyncio.to_thread(self.process.stdout.readline), f"{self.name} did not start"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# --- clients with a book ---------------------------------------------------------------------------------------------


@attrs.define
class Book:
    """What clients were told."""

    turns: dict[str, int] = attrs.field(factory=dict[str, int])
    """Acknowledged starts, with their inputs."""
    collectors: dict[str, set[str]] = attrs.field(factory=dict[str, set[str]])
    """Acknowledged events of each."""
    signals: set[str] = attrs.field(factory=set[str])
    refused: Counter[str] = attrs.field(factory=Counter[str])


@attrs.define
class Report:
    """What became of it."""

    kills: Counter[str] = attrs.field(factory=Counter[str])
    acknowledged: Counter[str] = attrs.field(factory=Counter[str])
    lost: list[str] = attrs.field(factory=list[str])
    repeated: list[str] = attrs.field(factory=list[str])
    stuck: list[str] = attrs.field(factory=list[str])
    wrong: list[str] = attrs.field(factory=list[str])
    seconds: float = 0.0

    @property
    def clean(self) -> bool:
        return not (self.lost or self.repeated or self.stuck or self.wrong)


class Clients:
    """Starts turns, sends events and signals, and writes down what was acknowledged."""

    def __init__(self, endpoint: str, book: Book) -> None:
        options = [("grpc.initial_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 100)]
        self._channel = grpc.aio.insecure_channel(endpoint[7:], options=options)
        self._stub: Any = stubs.TaskHubSidecarServiceStub(self._channel)  # type: ignore[no-untyped-call]
        self.client = AsyncTaskHubGrpcClient(channel=self._channel, logger=QUIET)
        self._book = book
        self.stopping = False

    async def close(self) -> None:
        await self._channel.close()

    async def until_acknowledged(self, call: Any, request: Any) -> None:
        """Send it until it is acknowledged; only for what may be sent twice."""
        while True:
            try:
                await call(request, timeout=5)
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.ALREADY_EXISTS:
                    return
                self._book.refused[error.code().name] += 1
                await asyncio.sleep(0.02)
            else:
                return

    async def starts(self, lane: int) -> None:
        """Start turns, one after the other has been acknowledged."""
        number = 0
        while not self.stopping:
            number += 1
            name = f"turn-{lane}-{number}"
            request = pb.CreateInstanceRequest(name="turn", instanceId=name)
            request.input.value = str(number)
            await self.until_acknowledged(self._stub.StartInstance, request)
            self._book.turns[name] = number
            await asyncio.sleep(0.03)

    async def signals(self, lane: int) -> None:
        """Signal ledgers; the same signal is sent until it is acknowledged."""
        number = 0
        while not self.stopping:
            number += 1
            name = f"signal {lane}-{number}"
            request = pb.SignalEntityRequest(instanceId=f"@ledger@{number % LEDGERS}", name="enter", requestId=name)
            request.input.value = json.dumps(name)
            await self.until_acknowledged(self._stub.SignalEntity, request)
            self._book.signals.add(name)
            await asyncio.sleep(0.03)

    async def events(self, lane: int) -> None:
        """Send events, each once: whether one without a reply had an effect is not known."""
        number = 0
        while not self.stopping:
            number += 1
            name = f"collect-{lane}-{number}"
            request = pb.CreateInstanceRequest(name="collect", instanceId=name)
            await self.until_acknowledged(self._stub.StartInstance, request)
            acknowledged = self._book.collectors[name] = set()
            for entry in (f"{name}-{n}" for n in range(EVENTS)):
                event = pb.RaiseEventRequest(instanceId=name, name="entry")
                event.input.value = json.dumps(entry)
                try:
                    await self._stub.RaiseEvent(event, timeout=5)
                    acknowledged.add(entry)
                except grpc.aio.AioRpcError as error:
                    if error.code() not in LOST_REPLY:
                        raise
                await asyncio.sleep(0.02)
            stop = pb.RaiseEventRequest(instanceId=name, name="entry")
            stop.input.value = '"stop"'
            await self.until_acknowledged(self._stub.RaiseEvent, stop)


# --- the run ---------------------------------------------------------------------------------------------------------


async def run(kills: int, seed: int, *, pause: float = 0.4) -> Report:
    """Kill so many times while clients work, then wait and check."""
    chance = random.Random(seed)
    report, book, started = Report(), Book(), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        port = free_port()
        endpoint = f"http://127.0.0.1:{port}"
        db = str(Path(folder) / "kills.db")
        scheduler = Victim(
            "scheduler",
            ["-m", "dafx_actors.cli", "scheduler", "--port", str(port), "--db", db, "--log-level", "error"],
        )
        workers = [Victim(f"worker {n}", ["-m", "tests.scheduler.kills", "--run-worker", endpoint]) for n in (1, 2)]
        victims = [scheduler, *workers]
        clients = Clients(endpoint, book)
        try:
            for victim in victims:
                victim.start()
                await victim.ready()
            jobs = [
                asyncio.create_task(job)
                for lane in range(2)
                for job in (clients.starts(lane), clients.signals(lane), clients.events(lane))
            ]
            for _ in range(kills):
                await asyncio.sleep(chance.uniform(0, 2 * pause))
                victim = chance.choice([scheduler, scheduler, *workers])
                victim.kill()
                victim.start()
                report.kills[victim.name] += 1
                if victim is scheduler:
                    await victim.ready()
            clients.stopping = True
            await asyncio.gather(*jobs)
            await check(clients.client, book, report)
        finally:
            await clients.close()
            for victim in victims:
                if victim.process is not None:
                    victim.kill()
    report.seconds = time.monotonic() - started
    return report


async def check(client: AsyncTaskHubGrpcClient, book: Book, report: Report) -> None:
    """Compare what was acknowledged with what is stored."""
    report.acknowledged.update(
        starts=len(book.turns) + len(book.collectors),
        signals=len(book.signals),
        events=sum(map(len, book.collectors.values())),
    )
    deadline = time.monotonic() + AFTER_THE_LAST_KILL
    ends = {
        name: await end_of(client, name, max(deadline - time.monotonic(), 0.1))
        for name in (*book.turns, *book.collectors)
    }
    report.stuck += [name for name, state in ends.items() if state is None]
    for name, number in book.turns.items():
        check_end(report, name, ends[name], number + 2)
    for name, acknowledged in book.collectors.items():
        state = ends[name]
        if state is not None and check_end(report, name, state, None):
            count(report, Counter(json.loads(state.serialized_output or "[]")), acknowledged)
    entries: Counter[str] = Counter()
    for number in range(LEDGERS):
        ledger = await client.get_entity(EntityInstanceId("ledger", str(number)))
        entries.update([] if ledger is None else json.loads(ledger.get_state() or "[]"))
    expected = book.signals | {f"{step} {name}" for name in book.turns for step in ("begin", "commit")}
    count(report, entries, expected)


def count(report: Report, found: Counter[str], acknowledged: set[str]) -> None:
    """Each that was acknowledged must be there, and nothing twice."""
    report.lost += sorted(acknowledged - found.keys())
    report.repeated += sorted(name for name, times in found.items() if times > 1)


def check_end(report: Report, name: str, state: OrchestrationState | None, expected: int | None) -> bool:
    """Whether an orchestration has completed, with this result if one is expected."""
    if state is None:
        return False
    output = json.loads(state.serialized_output or "null")
    if state.runtime_status.name == "COMPLETED" and expected in {None, output if isinstance(output, int) else None}:
        return True
    report.wrong.append(f"{name}: {state.runtime_status} {state.serialized_output} {state.failure_details}")
    return False


async def end_of(client: AsyncTaskHubGrpcClient, name: str, timeout: float) -> OrchestrationState | None:
    try:
        return await client.wait_for_orchestration_completion(name, timeout=timeout)
    except TimeoutError:
        return None


def main() -> int:
    """Run it and print what became of it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--run-worker", metavar="ENDPOINT", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run_worker:
        run_worker(arguments.run_worker)
    report = asyncio.run(run(arguments.kills, arguments.seed))
    figures = {"seed": arguments.seed, **attrs.asdict(report)}
    print(json.dumps(figures, indent=2))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")
    return 0 if report.clean else 1


if __name__ == "__main__":
    sys.exit(main())
