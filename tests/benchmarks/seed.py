"""Makes deep threads at once: a worker that hosts the threads' entity only to write what so many turns would have left.

Both systems read this form: it is the published schema of a thread's stored state.
"""

from __future__ import annotations

import sys
import time
from typing import Any

from durabletask.client import TaskHubGrpcClient
from durabletask.entities import EntityContext, EntityInstanceId
from durabletask.worker import TaskHubGrpcWorker

from tests.benchmarks import control

ENTITY = "dafx-Bench"


def thread_of(depth: int) -> str:
    """The id of the thread with so many turns."""
    return f"depth-{depth}"


def document(turns: int) -> dict[str, Any]:
    """What is stored of a thread after so many turns."""
    return {"schemaVersion": "1.1.0", "data": {"conversationHistory": [e for n in range(turns) for e in _turn(n)]}}


def _turn(number: int) -> list[dict[str, Any]]:
    at = f"2026-11-01T{number // 3_600:02}:{number // 60 % 60:02}:{number % 60:02}+00:00"
    asks, answers = control.USAGE

    def entry(kind: str, role: str, text: str, **more: Any) -> dict[str, Any]:
        message = {"role": role, "contents": [{"$type": "text", "text": text}], "createdAt": at}
        return {"$type": kind, "correlationId": f"seeded-{number}", "createdAt": at, "messages": [message], **more}

    usage = {"inputTokenCount": asks, "outputTokenCount": answers, "totalTokenCount": asks + answers}
    return [
        entry("request", "user", control.question(), responseType="text"),
        entry("response", "assistant", control.ANSWER, usage=usage),
    ]


def seed(context: EntityContext, turns: int) -> None:
    """The entity's only operation."""
    context.set_state(document(turns))


def main(endpoint: str) -> None:
    """Answer the benchmark."""
    worker = TaskHubGrpcWorker(host_address=endpoint)
    worker.add_entity(seed, ENTITY)
    worker.use_work_item_filters()
    worker.start()  # type: ignore[no-untyped-call]  # durabletask leaves it without types
    client = TaskHubGrpcClient(host_address=endpoint)

    def write(depths: list[int]) -> None:
        for depth in depths:
            thread = EntityInstanceId(ENTITY, thread_of(depth))
            client.signal_entity(thread, "seed", input=depth)
            while not ((found := client.get_entity(thread)) and found.get_state()):
                time.sleep(0.02)
        # In order: the in-memory backend would go on to hand work to one that was killed.
        worker.stop()  # type: ignore[no-untyped-call]

    control.serve({"seed": write})


if __name__ == "__main__":
    control.quiet()
    main(sys.argv[1])
