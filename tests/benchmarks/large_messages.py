"""How long the scheduler's loop is held by the largest messages: `python -m tests.benchmarks.large_messages [--mb 60]`.

CPU time of the loop's thread between two of its turns, the longest of each step, in milliseconds; and as a ratio to
what one copy of so many bytes takes here, of which gRPC makes two for what comes in and one for what goes out.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import grpc
from durabletask.internal import orchestrator_service_pb2 as pb
from durabletask.internal import orchestrator_service_pb2_grpc as stubs

from dafx_actors.scheduler import EmbeddedScheduler
from tests.scheduler.ticks import watched

T = TypeVar("T")
_UNLIMITED = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]


def _copy(size: int) -> float:
    whole, begun = bytearray(size), time.thread_time()
    bytes(whole)
    return (time.thread_time() - begun) * 1e3


def measure(size: int) -> None:
    """Do each step once, and print what it took."""
    text, one = "x" * size, _copy(size)
    print(f"one copy of {size:,} bytes: {one:.0f} ms")
    with (
        tempfile.TemporaryDirectory() as folder,
        EmbeddedScheduler(Path(folder) / "dafx.db", synchronous="normal").on_a_thread() as scheduler,
        grpc.insecure_channel(scheduler.endpoint.removeprefix("http://"), _UNLIMITED) as channel,
    ):
        stub: Any = stubs.TaskHubSidecarServiceStub(channel)  # type: ignore[no-untyped-call]

        def step(name: str, make: Callable[[], T]) -> T:
            with watched(scheduler) as held:
                made = make()
                time.sleep(0.1)  # what follows it
            print(f"{name:42} {held.cpu * 1e3:6.0f} ms {held.cpu * 1e3 / one:6.1f} x")
            return made

        def next_of(kind: str, **filters: Any) -> Callable[[], Any]:
            items = stub.GetWorkItems(pb.GetWorkItemsRequest(workItemFilters=pb.WorkItemFilters(**filters)))
            return lambda: next(item for item in items if item.HasField(kind))

        turn = next_of("orchestratorRequest", orchestrations=[pb.OrchestrationFilter(name="any")])
        activity = next_of("activityRequest", activities=[pb.ActivityFilter(name="act")])
        batch = next_of("entityRequestV2", entities=[pb.EntityFilter(name="e")])

        start = pb.CreateInstanceRequest(name="any", instanceId="one", input={"value": text})
        step("start", lambda: stub.StartInstance(start))
        shown = pb.GetInstanceRequest(instanceId="one", getInputsAndOutputs=True)
        step("get it", lambda: stub.GetInstance(shown))
        item = step("take a turn", turn)
        answer = pb.OrchestratorResponse(instanceId="one", completionToken=item.completionToken)
        action = answer.actions.add(id=1)
        action.scheduleTask.name, action.scheduleTask.input.value = "act", text
        step("answer with an activity", lambda: stub.CompleteOrchestratorTask(answer))
        item = step("take the activity", activity)
        done = pb.ActivityResponse(instanceId="one", taskId=1, completionToken=item.completionToken)
        done.result.value = text[:100]
        step("answer for it", lambda: stub.CompleteActivityTask(done))
        item = step("take a turn with that history", turn)
        answer = pb.OrchestratorResponse(instanceId="one", completionToken=item.completionToken)
        action = answer.actions.add(id=2)
        action.completeOrchestration.orchestrationStatus = pb.ORCHESTRATION_STATUS_COMPLETED
        action.completeOrchestration.result.value = text
        step("end", lambda: stub.CompleteOrchestratorTask(answer))
        step("wait for the end", lambda: stub.WaitForInstanceCompletion(pb.GetInstanceRequest(instanceId="one")))

        signal = pb.SignalEntityRequest(instanceId="@e@k", name="go", requestId="1")
        step("signal an entity", lambda: stub.SignalEntity(signal))
        item = step("take its batch", batch)
        result = pb.EntityBatchResult(completionToken=item.completionToken, entityState={"value": text})
        result.results.add().success.SetInParent()
        step("answer with its state", lambda: stub.CompleteEntityTask(result))
        step("get its state", lambda: stub.GetEntity(pb.GetEntityRequest(instanceId="@e@k", includeState=True)))
        step(
            "signal it", lambda: stub.SignalEntity(pb.SignalEntityRequest(instanceId="@e@k", name="go", requestId="2"))
        )
        step("take a batch with that state", batch)


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mb", type=int, default=60)
    measure(parser.parse_args().mb * 1_000_000)


if __name__ == "__main__":
    main()
