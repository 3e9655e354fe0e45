"""Yesterday's histories against today's code: an orchestration is replayed, and what it does is compared."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any

from durabletask.internal import orchestrator_service_pb2 as pb
from durabletask.worker import TaskHubGrpcWorker
from google.protobuf import json_format

from dafx_actors._durable.asked import asked_now, asked_then
from dafx_actors._durable.private import PrivateWorker
from dafx_actors._durable.recorded import History
from dafx_actors.ids import is_ours, turn_name
from dafx_actors.orchestration._coroutines import work_item
from dafx_actors.orchestration._recorded import difference
from dafx_actors.worker._worker import DurableAIAgentWorker

_BEGINS = "orchestratorStarted"
_ENDS = {"executionCompleted", "continueAsNew", "executionTerminated"}
_NOISE = {"orchestratorCompleted"}

_quiet = logging.getLogger("dafx_actors.testing.replay")
_quiet.setLevel(logging.CRITICAL)


class ReplayMismatch(AssertionError):
    """Today's code does not do what the history says was done."""

    def __init__(self, instance_id: str, episode: int, then: str, now: str) -> None:
        self.instance_id = instance_id
        self.episode = episode
        """The number of the episode of the orchestration, from 1."""
        self.then = then
        self.now = now
        super().__init__(
            f"{instance_id}, episode {episode}: the history says {then}; today's code says {now}. An orchestration "
            "that was running when this code is deployed would fail here. Give changed orchestrations a new name, or "
            "let the code do for old ones what it did."
        )


def replay(history: History, *hosted: Any) -> None:
    """Run today's code against a recorded history, episode by episode; nothing is really done.

    What is compared is what matters to an orchestration that is running when the code changes: which tasks, timers,
    events, calls and sub-orchestrations are made, in which order, of which name, at which time, with which questions
    and inputs, and how it ends.

    Args:
        history: What was recorded.
        hosted: The agent whose turn it is, or the orchestrator: what was given to the worker.

    Raises:
        ReplayMismatch: The code would do something else.
        LookupError: Nothing of `hosted` has the history's name.
    """
    worker = _worker(history, hosted)
    past: list[pb.HistoryEvent] = []
    for number, (told, done) in enumerate(_episodes(history), start=1):
        actions = _run(worker, history, past, told)
        _compare(history, number, done, actions)
        past += [*told, *done]


def _worker(history: History, hosted: Sequence[Any]) -> TaskHubGrpcWorker:
    worker = TaskHubGrpcWorker(logger=_quiet)
    hosting = DurableAIAgentWorker(worker)
    names: list[str] = []
    for each in hosted:
        if inspect.isfunction(each):
            names.append(hosting.add_orchestrator(each))
        else:
            hosting.add_agent(each)
    names += [turn_name(agent) for agent in hosting.registered_agent_names]
    if history.name not in names:
        raise LookupError(f"the history is one of {history.name!r}; there is only {', '.join(names) or 'nothing'}")
    return worker


def _episodes(history: History) -> Iterator[tuple[list[pb.HistoryEvent], list[pb.HistoryEvent]]]:
    """What the orchestration was told each time, and what it did then."""
    told: list[pb.HistoryEvent] = []
    done: list[pb.HistoryEvent] = []
    for raw in history.events:
        event = json_format.ParseDict(raw, pb.HistoryEvent())
        kind = event.WhichOneof("eventType")
        if kind == _BEGINS and told:
            yield told, done
            told, done = [], []
        if kind in _SAID or kind in _ENDS:
            done.append(event)
        elif kind not in _NOISE:
            told.append(event)
    if told:
        yield told, done


class _Answer:
    """Where the worker sends its answer."""

    def __init__(self) -> None:
        self.actions: list[pb.OrchestratorAction] = []

    def CompleteOrchestratorTask(self, response: pb.OrchestratorResponse) -> None:  # noqa: N802 - gRPC's name
        """Keep it."""
        self.actions = list(response.actions)


def _run(
    worker: TaskHubGrpcWorker, history: History, past: list[pb.HistoryEvent], told: list[pb.HistoryEvent]
) -> list[pb.OrchestratorAction]:
    """One episode, as a worker runs it."""
    request = pb.OrchestratorRequest(instanceId=history.instance_id, pastEvents=past, newEvents=told)
    answer = _Answer()
    with work_item():
        PrivateWorker(worker).run_episode(request, answer)
    return answer.actions


# --- What was done, in words that can be compared -----------------------------------------------------------------


def _compare(
    history: History, episode: int, done: Sequence[pb.HistoryEvent], actions: Sequence[pb.OrchestratorAction]
) -> None:
    then = [_said(event) for event in done]
    now = [_doing(action) for action in actions]
    if _TERMINATED in then:
        # Somebody else ended it: what the code would have gone on to do then, nobody knows.
        then = then[: then.index(_TERMINATED)]
        now = now[: len(then)]
    for said, doing in zip_longest(then, now, fillvalue="nothing more"):
        if said != doing:
            why = next((_why(action) for action in actions if action.HasField("completeOrchestration")), "")
            raise ReplayMismatch(history.instance_id, episode, said, f"{doing}{why}")
    if is_ours(history.name):
        return
    for event, action in zip(done, actions, strict=False):
        asked = asked_then(event), asked_now(action)
        if asked[0] and asked[1] and (differ := difference(asked[0], asked[1])) is not None:
            raise ReplayMismatch(history.instance_id, episode, *[f"{action.id}: {words}" for words in differ])


_TERMINATED = "it was terminated"


def _said(event: pb.HistoryEvent) -> str:
    """What an event says was done."""
    kind = event.WhichOneof("eventType") or ""
    if kind == "executionTerminated":
        return _TERMINATED
    if kind == "executionCompleted":
        return _end(event.executionCompleted)
    if kind == "continueAsNew":
        return _CONTINUES
    return _SAID[kind](event.eventId, getattr(event, kind))


def _doing(action: pb.OrchestratorAction) -> str:
    """What an action does, in the same words."""
    kind = action.WhichOneof("orchestratorActionType") or ""
    doing: Any = getattr(action, kind)
    if kind == "sendEntityMessage":
        kind = doing.WhichOneof("EntityMessageType")
        doing = getattr(doing, kind)
    if kind == "completeOrchestration":
        return _CONTINUES if doing.orchestrationStatus == _CONTINUED else _end(doing)
    return _DOING[kind](action.id, doing)


_CONTINUES = "it continues as new"
_CONTINUED = pb.OrchestrationStatus.ORCHESTRATION_STATUS_CONTINUED_AS_NEW


def _end(end: Any) -> str:
    status = pb.OrchestrationStatus.Name(end.orchestrationStatus).removeprefix("ORCHESTRATION_STATUS_").lower()
    failure = f" with {end.failureDetails.errorType}" if end.HasField("failureDetails") else ""
    return f"it ends as {status}{failure}"


def _why(action: pb.OrchestratorAction) -> str:
    failure = action.completeOrchestration.failureDetails
    return f" ({failure.errorMessage})" if failure.errorMessage else ""


def _at(when: Any) -> str:
    return str(when.ToDatetime())


_SAID: Mapping[str, Callable[[int, Any], str]] = {
    "taskScheduled": lambda n, it: f"{n}: activity {it.name}",
    "timerCreated": lambda n, it: f"{n}: timer until {_at(it.fireAt)}",
    "subOrchestrationInstanceCreated": lambda n, it: f"{n}: orchestration {it.name}",
    "eventSent": lambda n, it: f"{n}: event {it.name} to {it.instanceId}",
    "entityOperationCalled": lambda n, it: f"{n}: call {it.operation} of {it.targetInstanceId.value}",
    "entityOperationSignaled": lambda n, it: f"{n}: signal {it.operation} to {it.targetInstanceId.value}",
    "entityLockRequested": lambda n, it: f"{n}: lock {', '.join(it.lockSet)}",
    "entityUnlockSent": lambda n, it: f"{n}: unlock {it.targetInstanceId.value}",
}
_DOING: Mapping[str, Callable[[int, Any], str]] = {
    "scheduleTask": _SAID["taskScheduled"],
    "createTimer": _SAID["timerCreated"],
    "createSubOrchestration": _SAID["subOrchestrationInstanceCreated"],
    "sendEvent": lambda n, it: f"{n}: event {it.name} to {it.instance.instanceId}",
    "terminateOrchestration": lambda n, it: f"{n}: end of {it.instanceId}",
    "entityOperationCalled": _SAID["entityOperationCalled"],
    "entityOperationSignaled": _SAID["entityOperationSignaled"],
    "entityLockRequested": _SAID["entityLockRequested"],
    "entityUnlockSent": _SAID["entityUnlockSent"],
}
