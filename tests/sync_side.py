"""Programs that `tests/test_sync.py` runs, each in a process of its own: `python -m tests.sync_side NAME ENDPOINT`."""

from __future__ import annotations

import asyncio
import gc
import logging
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
import traceback
import urllib.request
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

import anyio
from durabletask.client import TaskHubGrpcClient

from dafx_actors import DurableAIAgentClient as AsyncClient
from dafx_actors import DurableAIAgentWorker, ModelRequest, OrchestrationContext, durable_agent, orchestrator, tool
from dafx_actors.errors import ForkedWhileConnected, SchedulerUnreachable
from dafx_actors.scheduler import EmbeddedScheduler
from dafx_actors.sync import DurableAIAgent, DurableAIAgentClient
from dafx_actors.testing import ScriptedModel
from tests.integration.turns import whenever_asked


def echo(request: ModelRequest) -> str:
    return f"{request.messages[-1].text} ({len(request.messages)} messages)"


@durable_agent(model=ScriptedModel(echo))
class Joker:
    instructions = ""


@durable_agent(model=whenever_asked(("pay", {"amount": 5})))
class Payer:
    instructions = "You pay."

    @tool(approval=True)
    def pay(self, amount: int) -> str:
        """Pay."""
        return f"paid {amount}"


@orchestrator
async def count(context: OrchestrationContext, start: int) -> int:
    context.set_custom_status("counts")
    return start + await context.wait_for_external_event("more", data_type=int)


def serve(_: str) -> None:
    """A scheduler and a worker, until standard input ends."""

    async def main() -> None:
        async with EmbeddedScheduler() as scheduler:
            worker = DurableAIAgentWorker.connect(scheduler.endpoint)
            worker.add_agent(Joker, Payer)
            worker.add_orchestrator(count)
            async with worker:
                print(scheduler.endpoint, flush=True)
                await anyio.to_thread.run_sync(sys.stdin.read)

    anyio.run(main)


def in_child(body: Callable[[], object]) -> None:
    """Run it in a child that ends as programs do, and hear of it if it fails."""
    process = os.fork()
    if not process:
        try:
            body()
        except Exception:
            traceback.print_exc()
            sys.exit(1)
        sys.exit(0)
    _, status = os.waitpid(process, 0)
    assert status == 0, f"the child ended with {status}"


def says(agent: DurableAIAgent, text: str) -> None:
    assert agent.run(text, timeout=60).text == f"{text} (1 messages)"
    print(text, flush=True)


def forks(endpoint: str) -> None:
    """Before the first use, after it, while other threads wait, and in a child's child."""
    client = DurableAIAgentClient.connect(endpoint)
    joker, payer = client.get_agent("Joker"), client.get_agent("Payer")

    def child() -> None:
        says(joker, "in the child")
        in_child(lambda: says(joker, "in its child"))
        says(joker, "in the child again")

    in_child(child)
    assert not [thread for thread in threading.enumerate() if thread.name == "dafx-sync"]
    says(joker, "in the parent")
    in_child(child)
    turn = payer.start("Pay.")
    waits = threading.Thread(target=lambda: print(turn.result(timeout=60).text, flush=True))
    waits.start()
    for _ in range(3):
        in_child(child)
    while not (approvals := client.pending_approvals("Payer", turn.thread())):
        time.sleep(0.01)
    in_child(lambda: client.approve(approvals[0]))
    waits.join()
    in_child(client.close)
    with client:
        says(joker, "in the parent again")
    in_child(lambda: says(DurableAIAgentClient.connect(endpoint).get_agent("Joker"), "in a new client"))


def spoiled(endpoint: str) -> None:
    """Forks while an async client is connected, and while a durabletask client is wrapped."""
    wrapped = DurableAIAgentClient(
        TaskHubGrpcClient(host_address=endpoint.removeprefix("http://"), logger=logging.getLogger("quiet"))
    )
    says(wrapped.get_agent("Joker"), "in the parent")
    inherited: list[AsyncClient] = []

    ended = AsyncClient.connect(endpoint)
    asyncio.run(ended.ping())
    in_child(lambda: says(DurableAIAgentClient.connect(endpoint).get_agent("Joker"), "after its event loop"))

    def refused(call: Callable[[], object]) -> None:
        try:
            call()
        except ForkedWhileConnected as error:
            print("connections" if "connections" in str(error) else "wrapped", flush=True)
        else:
            raise AssertionError

    in_child(lambda: refused(wrapped.ping))

    def child() -> None:
        refused(DurableAIAgentClient.connect(endpoint).ping)
        refused(lambda: asyncio.run(inherited[0].ping()))
        inherited.clear()
        gc.collect()  # gRPC would wait here, for a thread that only the parent has

    async def main() -> None:
        async with AsyncClient.connect(endpoint) as client:
            await client.ping()
            inherited.append(client)
            in_child(child)
            await client.ping()
        del client
        inherited.clear()
        gc.collect()
        in_child(lambda: says(DurableAIAgentClient.connect(endpoint).get_agent("Joker"), "after it was closed"))

    asyncio.run(main())


def preloaded(endpoint: str) -> None:
    """A web server that uses the client while it loads its application, and then forks its workers."""
    client = DurableAIAgentClient.connect(endpoint)
    client.ping()
    joker = client.get_agent("Joker")

    def application(environ: dict[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
        response = joker.run(environ["PATH_INFO"][1:], session=joker.create_session(), timeout=60)
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [f"{response.text} from {os.getpid()}".encode()]

    class Quiet(WSGIRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            pass

    listening = socket.create_server(("127.0.0.1", 0))
    workers: list[int] = []
    for _ in range(3):
        process = os.fork()
        if not process:
            server = WSGIServer(listening.getsockname(), Quiet, bind_and_activate=False)
            server.socket.close()
            server.socket = listening
            server.server_name, server.server_port = "localhost", listening.getsockname()[1]
            server.setup_environ()
            server.set_app(application)
            server.handle_request()
            server.server_close()
            sys.exit(0)
        workers.append(process)
    for number in range(3):
        with urllib.request.urlopen(f"http://127.0.0.1:{listening.getsockname()[1]}/hello-{number}") as answer:
            print(answer.read().decode().split(" from ")[0], flush=True)
    assert {os.waitpid(worker, 0)[1] for worker in workers} == {0}
    listening.close()


_client: DurableAIAgentClient | None = None


def _task(number: int) -> str:
    assert _client is not None
    return _client.get_agent("Joker").run(f"task {number}", timeout=60).text


def pooled(endpoint: str) -> None:
    """A pool of forked processes, as Celery's, over a client of its parent that was used."""
    global _client
    _client = DurableAIAgentClient.connect(endpoint)
    print(_task(0), flush=True)
    with multiprocessing.get_context("fork").Pool(2) as pool:
        for text in pool.map(_task, range(1, 5)):
            print(text, flush=True)
        pool.close()
        pool.join()


def interrupted(endpoint: str) -> None:
    """Is sent SIGINT while it waits; then asks for the turn, and goes on."""
    client = DurableAIAgentClient.connect(endpoint)
    payer = client.get_agent("Payer")

    def interrupt() -> None:
        while not client.pending_approvals("Payer", "interrupted"):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    try:
        payer.run("Pay.", thread="interrupted", correlation_id="interrupted-1")
    except KeyboardInterrupt:
        print("interrupted", flush=True)
    turn = payer.get_turn("interrupted-1")
    print(turn.status().state, flush=True)
    client.approve(client.pending_approvals("Payer", "interrupted")[0])
    print(turn.result(timeout=60).text, flush=True)


def leaves(endpoint: str) -> None:
    """Ends without closing its client, while a thread that nobody waits for waits for an answer."""
    client = DurableAIAgentClient.connect(endpoint)
    client.ping()
    turn = client.get_agent("Payer").start("Pay.")
    begun = threading.Event()

    def wait() -> None:
        begun.set()
        with suppress(SchedulerUnreachable):  # the client's end
            turn.result()

    threading.Thread(target=wait, daemon=True).start()
    begun.wait()
    turn.status()
    print("leaves", flush=True)


PROGRAMS = {each.__name__: each for each in (serve, forks, spoiled, preloaded, pooled, interrupted, leaves)}

if __name__ == "__main__":
    PROGRAMS[sys.argv[1]](sys.argv[2] if len(sys.argv) > 2 else "")
