"""Orchestrations that are kept between their episodes, and go on where they are: Durable Task's *extended sessions*.

durabletask builds an orchestration anew for each thing that happens to it, and replays all that it did before; of one
over a hundred agents, that is most of a worker's time. But what a replay builds was there already, at the end of the
episode before. So it is kept, and told what its history holds since then, by the code that would replay it::

    kept    told 1, said 1, told 2
    comes   told 1, said 1, told 2, said 2, told 3
                            ^^^^^^ the same? Then it is only told what follows; else all is replayed.

A session only saves work: it is dropped when there are too many, when it was not used for a while, and when a history
is not the one that it knows. An orchestration that waits for days is replayed then, as after a crash.

What of durabletask this needs is in `_durable/private.py`; where a version lacks it, all is replayed.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from types import SimpleNamespace
from typing import Any

import attrs
import grpc
from durabletask.internal.orchestrator_service_pb2 import (
    ORCHESTRATION_STATUS_TERMINATED,
    CompleteOrchestrationAction,
    HistoryEvent,
    OrchestratorAction,
    OrchestratorRequest,
    OrchestratorResponse,
)
from google.protobuf.wrappers_pb2 import StringValue

from dafx_actors._durable.calls import details_of
from dafx_actors._durable.private import Executor, PrivateWorker, can_go_on, custom_status_of, set_replaying
from dafx_actors.orchestration._coroutines import Loop, keeping

_logger = logging.getLogger("dafx_actors.worker")

_IDLE = 60.0
"""Seconds after which a session that was not used is dropped."""
_NEVER_KEPT = ("executionSuspended", "executionRewound")
"""What happened to orchestrations that durabletask keeps books about which are not in the context."""
_ENDS = ("completeOrchestration", "rewindOrchestration")


def ended_before_it_began(request: OrchestratorRequest) -> OrchestratorResponse | None:
    """The answer to the first episode of an orchestration that was terminated before; None for any other episode.

    Backends differ: some end such an orchestration by themselves, some leave it to the worker. durabletask has it take
    its first steps then; but whoever withdrew it since no worker took it was told that nothing would be done.
    """
    kinds = {event.WhichOneof("eventType"): event for event in request.newEvents}
    if "executionTerminated" not in kinds or "executionStarted" not in kinds:
        return None
    ended = kinds["executionTerminated"].executionTerminated
    completed = CompleteOrchestrationAction(
        orchestrationStatus=ORCHESTRATION_STATUS_TERMINATED,
        result=ended.input if ended.HasField("input") else None,
    )
    action = OrchestratorAction(id=1, completeOrchestration=completed)
    return OrchestratorResponse(instanceId=request.instanceId, actions=[action])


@attrs.define(kw_only=True)
class _Session:
    """An orchestration between two episodes."""

    executor: Executor
    """Tells the orchestration what happened to it."""
    loop: Loop
    told: int
    """The number of events that the orchestration was told, from the first."""
    latest: int
    """The number of events that were new in its last episode."""
    digest: bytes
    """The digest of those latest events. One of them holds the time at which the episode began, so that no other
    history has the same."""
    used: float
    """When the last episode ended, by the monotonic clock."""

    def knows(self, past: Sequence[HistoryEvent]) -> bool:
        """Say whether a history begins with the events that the orchestration was told."""
        return len(past) >= self.told and self.digest == _digest(past[self.told - self.latest : self.told])


def _digest(events: Iterable[HistoryEvent]) -> bytes:
    # Kept instead of the events, which would keep the whole history that they came with.
    digest = hashlib.blake2b(digest_size=16)
    for event in events:
        digest.update(event.SerializeToString(deterministic=True))
    return digest.digest()


class Sessions:
    """Runs episodes of a worker's orchestrations, and keeps those that will have another one."""

    def __init__(self, worker: PrivateWorker, most: int) -> None:
        """Keep at most so many."""
        self._worker = worker
        self._most = most
        self._kept: OrderedDict[str, _Session] = OrderedDict()
        """By instance id, the longest unused first. One whose episode runs is not in here."""
        self._lock = threading.Lock()

    def run(self, request: OrchestratorRequest, stub: Any, token: str) -> None:
        """Run an episode and answer by `stub`, as durabletask's `_execute_orchestrator` does.

        What is kept is there before the answer is sent: the next episode may come at once.
        """
        if (ended := ended_before_it_began(request)) is not None:
            ended.completionToken = token
            stub.CompleteOrchestratorTask(ended)
            return
        if self._goes_on(request, stub, token):
            return
        with keeping() as loops:

            def complete(answer: OrchestratorResponse) -> None:
                if loops:
                    self._keep(request, answer, self._begins(request), loops.pop())
                stub.CompleteOrchestratorTask(answer)

            answering = SimpleNamespace(
                CompleteOrchestratorTask=complete, AbandonTaskOrchestratorWorkItem=stub.AbandonTaskOrchestratorWorkItem
            )
            self._worker.execute("orchestratorRequest", request, answering, token)

    def drop_idle(self) -> None:
        """Drop those that were not used for a while."""
        self._drop(self._most)

    def drop_all(self) -> None:
        """Drop all sessions."""
        self._drop(0)

    # --- Inside ---------------------------------------------------------------------------------------------------

    def _goes_on(self, request: OrchestratorRequest, stub: Any, token: str) -> bool:
        """Run the episode of an orchestration that is kept, unless its history is another than it knows."""
        with self._lock:
            session = self._kept.pop(request.instanceId, None)
        if session is None:
            return False
        answer = None
        try:
            if session.knows(request.pastEvents):
                answer = _go_on(session, request)
        finally:
            if answer is None:
                session.loop.close()
        if answer is None:
            return False
        answer.completionToken = token
        self._keep(request, answer, session.executor, session.loop)
        try:
            stub.CompleteOrchestratorTask(answer)
        except grpc.RpcError as error:
            _logger.warning(
                "An answer did not reach the scheduler, which will hand out its work again: %s", details_of(error)
            )
        return True

    def _begins(self, request: OrchestratorRequest) -> Executor | None:
        """Make the executor that goes on with the orchestration of this episode; None if it is not kept."""
        # What durabletask does about payloads, it does around its executor.
        if not self._most or self._worker.payload_store is not None:
            return None
        events = list(itertools.chain(request.pastEvents, request.newEvents))
        if any(event.WhichOneof("eventType") in _NEVER_KEPT for event in events):
            return None
        started = next(event.executionStarted for event in events if event.HasField("executionStarted"))
        return self._worker.executor_for(started.name)

    def _keep(
        self, request: OrchestratorRequest, answer: OrchestratorResponse, executor: Executor | None, loop: Loop
    ) -> None:
        """Keep an orchestration if it will have another episode; else it is over."""
        if (
            executor is None
            or loop.closed
            or not can_go_on(loop.context)
            or any(a.WhichOneof("orchestratorActionType") in _ENDS for a in answer.actions)
        ):
            loop.close()
            return
        session = _Session(
            executor=executor,
            loop=loop,
            told=len(request.pastEvents) + len(request.newEvents),
            latest=len(request.newEvents),
            digest=_digest(request.newEvents),
            used=time.monotonic(),
        )
        with self._lock:
            # A worker whose connection broke may have been given the same episode twice.
            before = self._kept.pop(request.instanceId, None)
            self._kept[request.instanceId] = session
        if before is not None:
            before.loop.close()
        self.drop_idle()

    def _drop(self, most: int) -> None:
        unused = time.monotonic() - _IDLE
        dropped: list[_Session] = []
        with self._lock:
            while self._kept and (len(self._kept) > most or next(iter(self._kept.values())).used < unused):
                dropped.append(self._kept.popitem(last=False)[1])
        for session in dropped:
            session.loop.close()


def _go_on(session: _Session, request: OrchestratorRequest) -> OrchestratorResponse | None:
    """Tell an orchestration what its history holds beyond what it knows: what it does; None where it cannot be so."""
    executor, context = session.executor, session.loop.context
    set_replaying(context, True)
    try:
        for event in request.pastEvents[session.told :]:
            executor.tell(context, event)
    except Exception:  # noqa: BLE001 - a replay will say what is wrong, with more right
        return None
    set_replaying(context, False)
    try:
        for event in request.newEvents:
            executor.tell(context, event)
    except Exception as error:  # noqa: BLE001 - as durabletask does: it is how the orchestration ends
        context.set_failed(error)
    status = custom_status_of(context)
    return OrchestratorResponse(
        instanceId=request.instanceId,
        actions=context.get_actions(),
        customStatus=None if status is None else StringValue(value=status),
        orchestrationTraceContext=request.orchestrationTraceContext,
    )
