"""A scheduler with clients and workers of the public SDK, all over a real socket, in one process."""

from __future__ import annotations

import logging
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import grpc.aio
from anyio import to_thread
from durabletask.client import AsyncTaskHubGrpcClient, OrchestrationState
from durabletask.entities import DurableEntity
from durabletask.internal import orchestrator_service_pb2 as pb
from durabletask.internal import orchestrator_service_pb2_grpc as stubs
from durabletask.worker import ConcurrencyOptions, TaskHubGrpcWorker

from dafx_actors.scheduler import EmbeddedScheduler

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Generator
    from pathlib import Path

Steps: TypeAlias = "Generator[Any, Any, Any]"
"""What an orchestrator returns that yields tasks."""

QUIET = logging.getLogger("tests.quiet")
QUIET.setLevel(logging.CRITICAL)
PATIENCE = 30.0
"""Seconds that a test waits for what should happen at once."""


class Bench:
    """Runs a scheduler over a file; `restart` opens the file again."""

    def __init__(self, db: Path | None, **options: Any) -> None:
        self.db = db
        self.options = options
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Bench:
        self.scheduler = await self._stack.enter_async_context(EmbeddedScheduler(self.db, **self.options))
        self.client = await self._stack.enter_async_context(self.new_client())
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    def new_client(self, hub: str | None = None) -> AsyncTaskHubGrpcClient:
        metadata = [("taskhub", hub)] if hub else None
        return AsyncTaskHubGrpcClient(host_address=self.scheduler.endpoint, metadata=metadata, logger=QUIET)

    async def worker(self, *functions: Callable[..., Any], **options: Any) -> TaskHubGrpcWorker:
        """Start a worker that stops with the bench. Activities are those functions whose name starts with `do_`."""
        worker: TaskHubGrpcWorker = make_worker(self.scheduler.endpoint, *functions, **options)
        cast("Any", worker).start()
        self._stack.push_async_callback(to_thread.run_sync, worker.stop)
        return worker

    async def run(self, orchestrator: Any, input: Any = None, **options: Any) -> OrchestrationState:
        """Start an orchestration and wait for its end."""
        instance_id = await self.client.schedule_new_orchestration(orchestrator, input=input, **options)
        return await self.end_of(instance_id)

    async def end_of(self, instance_id: str) -> OrchestrationState:
        state = await self.client.wait_for_orchestration_completion(instance_id, timeout=PATIENCE)
        assert state is not None
        return state

    async def stub(self) -> Any:
        """The generated client, for what the SDK's cannot do."""
        channel = await self._stack.enter_async_context(grpc.aio.insecure_channel(self.scheduler.endpoint[7:]))
        return stubs.TaskHubSidecarServiceStub(channel)  # type: ignore[no-untyped-call]


def make_worker(endpoint: str, *functions: Callable[..., Any], hub: str | None = None, **options: Any) -> Any:
    """A worker of the public SDK, not started."""
    filters = options.pop("filters", False)
    threads = options.pop("threads", None)
    if threads:
        options["concurrency_options"] = ConcurrencyOptions(maximum_thread_pool_workers=threads)
    metadata = [("taskhub", hub)] if hub else None
    worker = TaskHubGrpcWorker(host_address=endpoint, metadata=metadata, logger=QUIET, **options)
    for function in functions:
        if isinstance(function, type) and issubclass(function, DurableEntity):
            worker.add_entity(function)
        elif function.__name__.startswith("do_"):
            worker.add_activity(function)
        else:
            worker.add_orchestrator(function)
    if filters:
        worker.use_work_item_filters()
    return worker


class RawWorker:
    """A worker without an SDK: takes items and answers them by hand."""

    def __init__(self, stub: Any, **request: Any) -> None:
        self.stub = stub
        self._call = stub.GetWorkItems(pb.GetWorkItemsRequest(**request))
        self._items: AsyncIterator[Any] = self._call.__aiter__()

    async def take(self) -> Any:
        """The next work item that is not a ping."""
        while True:
            item = await self._items.__anext__()
            if not item.HasField("healthPing"):
                return item

    def leave(self) -> None:
        """End the stream, without a word about what is held."""
        self._call.cancel()
