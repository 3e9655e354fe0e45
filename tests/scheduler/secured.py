"""A worker and a client of the public SDK, of a scheduler that wants TLS and a token: `... ENDPOINT TOKEN KIND`.

A process of its own, since gRPC reads GRPC_DEFAULT_SSL_ROOTS_FILE_PATH once: the certificates that it trusts.
"""

from __future__ import annotations

import sys
import time
from typing import Any, cast

from azure.core.credentials import AccessToken
from durabletask import task
from durabletask.azuremanaged.client import DurableTaskSchedulerClient
from durabletask.azuremanaged.worker import DurableTaskSchedulerWorker
from durabletask.client import TaskHubGrpcClient
from durabletask.worker import TaskHubGrpcWorker

from tests.scheduler.bench import QUIET, Steps


class OneToken:
    """A credential for a token that never changes."""

    def __init__(self, token: str) -> None:
        self._token = token

    def get_token(self, *_: str, **__: Any) -> AccessToken:
        return AccessToken(self._token, int(time.time()) + 3600)


def do_double(_: task.ActivityContext, number: int) -> int:
    return 2 * number


def one(context: task.OrchestrationContext, number: int) -> Steps:
    return (yield context.call_activity(do_double, input=number))


def main(endpoint: str, token: str, kind: str) -> None:
    """Run one orchestration, with plain clients (`metadata`) or those of the hosted scheduler (`credential`)."""
    common: dict[str, Any] = {"host_address": endpoint, "secure_channel": True, "logger": QUIET}
    if kind == "metadata":
        common["metadata"] = [("authorization", f"Bearer {token}")]
        worker, client = cast("Any", TaskHubGrpcWorker(**common)), TaskHubGrpcClient(**common)
    else:
        common |= {"taskhub": "hosted", "token_credential": OneToken(token)}
        worker, client = cast("Any", DurableTaskSchedulerWorker(**common)), DurableTaskSchedulerClient(**common)
    worker.add_orchestrator(one)
    worker.add_activity(do_double)
    worker.start()
    try:
        instance_id = client.schedule_new_orchestration(one, input=21)
        state = client.wait_for_orchestration_completion(instance_id, timeout=30)
        print(state and state.serialized_output)
    finally:
        worker.stop()
        client.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
