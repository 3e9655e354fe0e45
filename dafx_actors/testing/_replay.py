"""Yesterday's histories against today's code.

An orchestration that runs for days meets newer code. What it did is in its history, and newer code must do the same
up to there. So keep the histories of a few runs beside the tests, and replay them at every change::

    history = await host.history(turn)
    history.save("tests/histories/refund.json")

    replay(History.load("tests/histories/refund.json"), Cashier)
"""

from __future__ import annotations

import anyio.to_thread
import grpc
from durabletask.client import AsyncTaskHubGrpcClient, TaskHubGrpcClient

from dafx_actors._durable.calls import code_of
from dafx_actors._durable.recorded import History


async def history_of(client: TaskHubGrpcClient | AsyncTaskHubGrpcClient, instance_id: str) -> History:
    """Read the history of an orchestration or a turn from a scheduler.

    Args:
        client: durabletask's own.
        instance_id: The orchestration's; of a turn, its correlation id.

    Raises:
        LookupError: There is no such orchestration, or it has not begun.
    """
    try:
        if isinstance(client, TaskHubGrpcClient):
            recorded = await anyio.to_thread.run_sync(client.get_orchestration_history, instance_id)
        else:
            recorded = await client.get_orchestration_history(instance_id)
    except grpc.RpcError as error:
        if code_of(error) is not grpc.StatusCode.NOT_FOUND:
            raise
        recorded = []
    found = History.of(instance_id, recorded)
    if found is None:
        raise LookupError(f"orchestration {instance_id!r} does not exist, or has not begun")
    return found
