"""A client of orchestrations without agents: how long they take while the worker has other work. The same for both."""

from __future__ import annotations

import asyncio
import sys
import time

from durabletask.client import AsyncTaskHubGrpcClient

from tests.benchmarks import control


class Bystander:
    """The commands of its process."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        self._clients: list[AsyncTaskHubGrpcClient] = []

    async def one(self) -> float:
        """One orchestration."""
        if not self._clients:  # gRPC's channels belong to the loop that they were made on
            self._clients.append(AsyncTaskHubGrpcClient(host_address=self._endpoint))
        begun = time.perf_counter()
        instance_id = await self._clients[0].schedule_new_orchestration("trivial")
        state = await self._clients[0].wait_for_orchestration_completion(instance_id, timeout=600)
        assert state is not None
        assert state.runtime_status.name == "COMPLETED", state.failure_details
        return time.perf_counter() - begun

    async def idle(self, count: int) -> list[float]:
        """One after another."""
        return [await self.one() for _ in range(count)]

    async def watch(self, every: float) -> list[float]:
        """One every so often, whether or not those before it have ended, until the next line comes."""
        ended = asyncio.create_task(asyncio.to_thread(sys.stdin.readline))
        started: list[asyncio.Task[float]] = []
        while not ended.done():
            started.append(asyncio.create_task(self.one()))
            await asyncio.wait([ended], timeout=every)
        return list(await asyncio.gather(*started))


if __name__ == "__main__":
    control.quiet()
    bystander = Bystander(sys.argv[1])
    control.serve({"idle": bystander.idle, "watch": bystander.watch})
