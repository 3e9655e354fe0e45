"""How fast the embedded scheduler is: `python tests/benchmarks/scheduler.py [--json FILE] [scenario ...]`.

Every backend runs in a process of its own, beside one worker process and the clients in this one; the in-memory
backend of `durabletask` runs in the same way, and runs of all backends alternate. Figures are medians of the runs.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import logging
import os
import platform
import resource
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import grpc.aio
from durabletask import task
from durabletask.client import AsyncTaskHubGrpcClient
from durabletask.entities import DurableEntity, EntityInstanceId
from durabletask.internal import orchestrator_service_pb2 as pb
from durabletask.internal import orchestrator_service_pb2_grpc as stubs
from durabletask.worker import ConcurrencyOptions, TaskHubGrpcWorker

from dafx_actors.scheduler.hosted import stats

sys.path[0] = str(Path(__file__).resolve().parents[2])

from tests.benchmarks.processes import Process, backend, free_port  # noqa: E402 - found by the line above

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterator

Steps: TypeAlias = "Generator[Any, Any, Any]"
QUIET = logging.getLogger("tests.quiet")
QUIET.setLevel(logging.CRITICAL)
TIMEOUT = 300.0
BACKENDS = ("memory", "normal", "full")

# --- what runs -----------------------------------------------------------------------------------------------------


def echo(_: task.ActivityContext, value: Any) -> Any:
    """An activity that does nothing."""
    return value


def one_activity(context: task.OrchestrationContext, value: Any) -> Steps:
    """The smallest orchestration that does something."""
    return (yield context.call_activity(echo, input=value))


def fan_out(context: task.OrchestrationContext, count: int) -> Steps:
    """One orchestration over many activities."""
    results: list[Any] = yield task.when_all([context.call_activity(echo, input=n) for n in range(count)])
    return len(results)


def agent_call(context: task.OrchestrationContext, number: int) -> Steps:
    """What an agent's turn asks of a scheduler: a thread is told, a model called, an answer recorded."""
    thread = EntityInstanceId("thread", str(number))
    yield context.call_entity(thread, "add", number)
    yield context.call_activity(echo, input=number)
    return (yield context.call_entity(thread, "add", number))


def fan_out_agents(context: task.OrchestrationContext, count: int) -> Steps:
    """One orchestration over many agent calls."""
    results: list[Any] = yield task.when_all([context.call_sub_orchestrator(agent_call, input=n) for n in range(count)])
    return len(results)


def sleeps(context: task.OrchestrationContext, seconds: float) -> Steps:
    """Waits for a timer."""
    yield context.create_timer(timedelta(seconds=seconds))


class Thread(DurableEntity):
    """Keeps a number."""

    def add(self, number: int) -> int:
        """Keep one more."""
        self.set_state(self.get_state(int, 0) + number)
        return number


def run_worker(endpoint: str) -> None:
    """A worker process, until its standard input is closed."""
    options = ConcurrencyOptions(
        maximum_thread_pool_workers=64,
        maximum_concurrent_activity_work_items=1_000,
        maximum_concurrent_orchestration_work_items=1_000,
        maximum_concurrent_entity_work_items=1_000,
    )
    worker = TaskHubGrpcWorker(host_address=endpoint, logger=QUIET, concurrency_options=options)
    for orchestrator in (one_activity, fan_out, fan_out_agents, agent_call, sleeps):
        worker.add_orchestrator(orchestrator)
    worker.add_activity(echo)
    worker.add_entity(Thread, name="thread")
    cast("Any", worker).start()
    sys.stdin.read()
    os._exit(0)  # What it holds is nobody's concern.


# --- the floor: the calls of one orchestration, and nothing behind them ----------------------------------------------

ROUND = b"x" * 300
"""About what a call carries."""
ITEMS = 3
"""Work items that an orchestration with one activity takes: a turn, the activity, a turn."""


def _floor_handlers(start: Any, wait: Any, stream: Any, complete: Any) -> Any:
    methods: dict[str, Any] = {
        "Start": grpc.unary_unary_rpc_method_handler(start),
        "Wait": grpc.unary_unary_rpc_method_handler(wait),
        "Complete": grpc.unary_unary_rpc_method_handler(complete),
        "Items": grpc.unary_stream_rpc_method_handler(stream),
    }
    return grpc.method_handlers_generic_handler("Floor", methods)


async def _floor_on_a_loop(port: int) -> None:
    items: asyncio.Queue[bytes] = asyncio.Queue()
    done: asyncio.Queue[bytes] = asyncio.Queue()
    answered = itertools.count(1)

    async def start(request: bytes, _: Any) -> bytes:
        items.put_nowait(request)
        return request

    async def wait(_: bytes, __: Any) -> bytes:
        return await done.get()

    async def complete(request: bytes, _: Any) -> bytes:
        (items if next(answered) % ITEMS else done).put_nowait(request)
        return b""

    async def stream(_: bytes, context: Any) -> None:
        while True:
            await context.write(await items.get())

    server = grpc.aio.server()
    server.add_generic_rpc_handlers((_floor_handlers(start, wait, stream, complete),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    print(f"http://127.0.0.1:{port}", flush=True)
    await server.wait_for_termination()


def _floor_on_threads(port: int) -> None:
    items: SimpleQueue[bytes] = SimpleQueue()
    done: SimpleQueue[bytes] = SimpleQueue()
    answered = itertools.count(1)

    def start(request: bytes, _: Any) -> bytes:
        items.put(request)
        return request

    def wait(_: bytes, __: Any) -> bytes:
        return done.get()

    def complete(request: bytes, _: Any) -> bytes:
        (items if next(answered) % ITEMS else done).put(request)
        return b""

    def stream(_: bytes, __: Any) -> Iterator[bytes]:
        while True:
            yield items.get()

    server = grpc.server(ThreadPoolExecutor(max_workers=100))
    server.add_generic_rpc_handlers((_floor_handlers(start, wait, stream, complete),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    print(f"http://127.0.0.1:{port}", flush=True)
    server.wait_for_termination()


def run_floor(kind: str) -> None:
    """A server that only passes work on."""
    if kind == "loop":
        asyncio.run(_floor_on_a_loop(free_port()))
    else:
        _floor_on_threads(free_port())


def run_floor_worker(endpoint: str) -> None:
    """A worker that answers at once."""
    channel: Any = grpc.insecure_channel(endpoint[7:])
    complete = channel.unary_unary("/Floor/Complete")
    for item in channel.unary_stream("/Floor/Items")(b""):
        complete(item)


# --- processes -----------------------------------------------------------------------------------------------------


class Bench:
    """A backend, a worker, a client."""

    def __init__(self, process: Process, endpoint: str, client: AsyncTaskHubGrpcClient, stub: Any) -> None:
        self.process = process
        self.endpoint = endpoint
        self.client = client
        self.stub = stub

    async def run(self, name: str, input: Any = None) -> Any:
        """Run an orchestration to its end."""
        instance_id = await self.client.schedule_new_orchestration(name, input=input)
        state = await self.client.wait_for_orchestration_completion(instance_id, timeout=TIMEOUT)
        assert state is not None
        assert state.runtime_status.name == "COMPLETED", state.failure_details
        return state.serialized_output


@asynccontextmanager
async def bench(kind: str, *, worker: bool = True, db: Path | None = None) -> AsyncGenerator[Bench]:
    """Processes and a client for one run."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        process, endpoint = stack.enter_context(backend(kind, db or folder / "bench.db"))
        if worker:
            stack.enter_context(Process(sys.executable, __file__, "--run-worker", endpoint))
        client = await stack.enter_async_context(AsyncTaskHubGrpcClient(host_address=endpoint, logger=QUIET))
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(endpoint[7:]))
        running = Bench(process, endpoint, client, stubs.TaskHubSidecarServiceStub(channel))  # type: ignore[no-untyped-call]
        if worker:
            await running.run("one_activity")
        yield running


# --- scenarios -----------------------------------------------------------------------------------------------------


async def latency(kind: str) -> dict[str, float]:
    """One orchestration with one activity at a time."""
    async with bench(kind) as it:
        times: list[float] = []
        for number in range(300):
            started = time.perf_counter()
            await it.run("one_activity", number)
            times.append(time.perf_counter() - started)
        times = sorted(times[50:])
        return {"p50_ms": statistics.median(times) * 1e3, "p95_ms": times[int(len(times) * 0.95)] * 1e3}


async def throughput(kind: str) -> dict[str, float]:
    """A hundred at a time."""
    async with bench(kind) as it:
        todo = iter(range(1_500))

        async def client() -> None:
            for number in todo:
                await it.run("one_activity", number)

        cpu, started = it.process.use().cpu, time.perf_counter()
        await asyncio.gather(*[client() for _ in range(100)])
        seconds = time.perf_counter() - started
        return {"per_second": 1_500 / seconds, "cpu_ms": (it.process.use().cpu - cpu) / 1_500 * 1e3}


async def waiting(kind: str) -> dict[str, float]:
    """2,000 clients wait at once for 2,000 orchestrations that each sleep a second."""
    async with bench(kind) as it:
        started = time.perf_counter()

        async def start(number: int) -> float:
            await it.stub.StartInstance(pb_start("sleeps", f"s{number}", "1.0"), timeout=TIMEOUT)
            return time.perf_counter()

        async def end(number: int) -> None:
            state = await it.client.wait_for_orchestration_completion(f"s{number}", timeout=TIMEOUT)
            assert state is not None

        waits = [asyncio.create_task(end(number)) for number in range(2_000)]
        last = max(await asyncio.gather(*[start(number) for number in range(2_000)]))
        await asyncio.gather(*waits)
        return {"starts_s": last - started, "after_last_start_s": time.perf_counter() - last}


async def floor(kind: str) -> dict[str, float]:
    """The calls of `latency` with nothing behind them: no scheduler over the same kind of gRPC server is quicker."""
    with Process(sys.executable, __file__, "--run-floor", kind) as process:
        endpoint = process.line()
        with Process(sys.executable, __file__, "--run-floor-worker", endpoint):
            async with grpc.aio.insecure_channel(endpoint[7:]) as channel:
                start: Any = channel.unary_unary("/Floor/Start")
                wait: Any = channel.unary_unary("/Floor/Wait")
                times: list[float] = []
                for _ in range(600):
                    started = time.perf_counter()
                    await start(ROUND)
                    await wait(ROUND)
                    times.append(time.perf_counter() - started)
                times = sorted(times[100:])
                return {"p50_ms": statistics.median(times) * 1e3, "p95_ms": times[int(len(times) * 0.95)] * 1e3}


def pb_start(name: str, instance_id: str, input: str) -> Any:
    """A request to start an orchestration."""
    request = pb.CreateInstanceRequest(name=name, instanceId=instance_id)
    request.input.value = input
    return request


async def _growth(kind: str, name: str) -> dict[str, float]:
    async with bench(kind) as it:
        figures = {}
        for count in (250, 500, 1_000):
            started = time.perf_counter()
            assert await it.run(name, count) == str(count)
            figures[f"n{count}_s"] = time.perf_counter() - started
        figures["growth_250_to_1000"] = figures["n1000_s"] / figures["n250_s"]
        return figures


async def activities(kind: str) -> dict[str, float]:
    """One orchestration over 250, 500 and 1,000 activities."""
    return await _growth(kind, "fan_out")


async def agents(kind: str) -> dict[str, float]:
    """One orchestration over 250, 500 and 1,000 agent calls: a child, two entity calls and an activity each."""
    return await _growth(kind, "fan_out_agents")


async def _crowd(calls: Iterator[Awaitable[Any]]) -> None:
    """Make many calls, some hundred at a time."""

    async def lane() -> None:
        for call in calls:
            await call

    await asyncio.gather(*[lane() for _ in range(200)])


async def idle(kind: str) -> dict[str, float]:
    """What 10,000 sleeping orchestrations and 100,000 idle entities cost, and how soon their file is open again."""
    with tempfile.TemporaryDirectory() as folder:
        db = Path(folder) / "idle.db"
        figures: dict[str, float] = {}
        async with bench(kind, db=db) as it:
            empty = it.process.use().memory
            await _crowd(it.stub.StartInstance(pb_start("sleeps", f"s{n}", "86400.0")) for n in range(10_000))
            await settled(it, "orchestration", 10_000)
            sleeping = it.process.use().memory
            figures["bytes_per_sleeping"] = (sleeping - empty) / 10_000
            await _crowd(signal(it.stub, n) for n in range(100_000))
            await settled(it, "entity", 100_000)
            figures["bytes_per_entity"] = (it.process.use().memory - sleeping) / 100_000
            cpu = it.process.use().cpu
            await asyncio.sleep(5)
            figures["idle_cpu_percent"] = (it.process.use().cpu - cpu) / 5 * 100
        started = time.perf_counter()
        async with bench(kind, db=db, worker=False) as it:
            await it.stub.Hello(pb_empty())
            figures["open_again_s"] = time.perf_counter() - started
            figures["bytes_after_open"] = float(it.process.use().memory)
        return figures


def pb_empty() -> Any:
    """An empty request."""
    from google.protobuf import empty_pb2

    return empty_pb2.Empty()


def signal(stub: Any, number: int) -> Awaitable[Any]:
    """One entity is told something."""
    request = pb.SignalEntityRequest(instanceId=f"@thread@{number}", name="add", requestId=f"r{number}")
    request.input.value = "1"
    call: Awaitable[Any] = stub.SignalEntity(request)
    return call


async def settled(it: Bench, kind: str, count: int) -> None:
    """Wait until so many instances are there and nothing is left to do for them."""
    while True:
        with grpc.insecure_channel(it.endpoint[7:]) as channel:
            hub = (stats(channel) or {})["task_hubs"]["default"]
        work = hub["work"][kind]
        there = hub["entities"] if kind == "entity" else hub["orchestrations"]["running"]
        if there >= count and not work["waiting"] and not work["held"]:
            return
        await asyncio.sleep(0.2)


SCENARIOS: dict[str, tuple[Callable[[str], Awaitable[dict[str, float]]], tuple[str, ...], int]] = {
    "latency": (latency, BACKENDS, 5),
    "floor": (floor, ("threads", "loop"), 5),
    "throughput": (throughput, BACKENDS, 3),
    "waiting": (waiting, ("normal", "full"), 1),
    "activities": (activities, BACKENDS, 3),
    "agents": (agents, ("normal", "full"), 1),
    "idle": (idle, ("normal",), 1),
}
"""What is run, on which backends, how often."""


def measure(name: str, repeats: int | None) -> dict[str, dict[str, float]]:
    """Medians by backend; the runs of the backends alternate."""
    scenario, backends, usual = SCENARIOS[name]
    runs: dict[str, list[dict[str, float]]] = {kind: [] for kind in backends}
    for _ in range(repeats or usual):
        for kind in backends:
            runs[kind].append(asyncio.run(asyncio.wait_for(scenario(kind), TIMEOUT)))
    return {
        kind: {figure: statistics.median(run[figure] for run in found) for figure in found[0]}
        for kind, found in runs.items()
    }


def show(name: str, figures: dict[str, dict[str, float]]) -> None:
    """A table, with ratios to the in-memory backend where it took part, or to threads, which it runs on."""
    print(f"\n{name}: {(SCENARIOS[name][0].__doc__ or '').splitlines()[0]}")
    base = figures.get("memory") or figures.get("threads")
    for kind, found in figures.items():
        cells = [
            f"{figure} {value:,.2f}" + (f" ({value / base[figure]:.2f}x)" if base and base is not found else "")
            for figure, value in found.items()
        ]
        print(f"  {kind:8}", "  ".join(cells), flush=True)


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("scenarios", nargs="*", default=list(SCENARIOS), metavar="scenario", help=" ".join(SCENARIOS))
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--repeats", type=int)
    parser.add_argument("--run-floor", metavar="KIND", help=argparse.SUPPRESS)
    parser.add_argument("--run-floor-worker", metavar="ENDPOINT", help=argparse.SUPPRESS)
    parser.add_argument("--run-worker", metavar="ENDPOINT", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run_floor:
        run_floor(arguments.run_floor)
    elif arguments.run_floor_worker:
        run_floor_worker(arguments.run_floor_worker)
    elif arguments.run_worker:
        run_worker(arguments.run_worker)
    else:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 65_536)), hard))
        results: dict[str, dict[str, dict[str, float]]] = {}
        for name in arguments.scenarios:
            results[name] = measure(name, arguments.repeats)
            show(name, results[name])
        if arguments.json:
            machine = {"python": platform.python_version(), "cpus": os.cpu_count(), "platform": platform.platform()}
            arguments.json.write_text(json.dumps({"machine": machine, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
