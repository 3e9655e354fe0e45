"""What was started and goes on by itself: turns of agents, and orchestrations. Await a handle for the result."""

from __future__ import annotations

import json
import math
from collections.abc import Generator, Mapping
from typing import Any, Generic, Literal, TypeAlias, TypeVar, cast

import attrs
from durabletask.client import OrchestrationState, OrchestrationStatus

from dafx_actors._durable.backend import Backend
from dafx_actors._durable.calls import Sent, within
from dafx_actors._durable.pending import PendingStep, pending_steps
from dafx_actors._json.books import CancelMark
from dafx_actors._json.crossing import load_error
from dafx_actors._json.document import Outline, response_in
from dafx_actors._json.operations import Cancel, Ended
from dafx_actors._json.requests import finish_reason_in, load_cancellation, load_response
from dafx_actors._json.steps import ShownStatus, StartedTurn
from dafx_actors._json.values import dump_value, load_stored
from dafx_actors.client._executor import ENDED, ClientAgentExecutor, output_of
from dafx_actors.errors import DafxError, OrchestrationFailed, TurnCancelled
from dafx_actors.exchange import AgentRunResponse
from dafx_actors.ids import AgentThread
from dafx_actors.transcript import Json

__all__ = ["OrchestrationHandle", "PendingStep", "TurnHandle", "TurnState", "TurnStatus"]

T = TypeVar("T")

TurnState: TypeAlias = Literal[
    "pending",
    "queued",
    "running",
    "waiting",
    "blocked",
    "retrying",
    "completed",
    "failed",
    "cancelled",
    "terminated",
    "suspended",
]
"""`pending`: no worker has taken it yet. `queued`: it waits for the turns before it. `waiting`: for a person.
`blocked`: for a worker that has a tool, or hosts an agent, of that name; see `TurnStatus.waits_for`."""

_BY_STATUS: Mapping[OrchestrationStatus, TurnState] = {
    OrchestrationStatus.PENDING: "pending",
    OrchestrationStatus.COMPLETED: "completed",
    OrchestrationStatus.TERMINATED: "terminated",
    OrchestrationStatus.SUSPENDED: "suspended",
}


@attrs.frozen(kw_only=True)
class TurnStatus:
    """Where a turn stands."""

    state: TurnState
    steps: int = 0
    """Model calls and tool calls so far."""
    progress: Mapping[str, Json] = attrs.field(factory=dict[str, Json], hash=False)
    """The latest progress report of each running tool, by the key of its call."""
    attempt: int | None = None
    """While `retrying`: the model call's attempts that failed."""
    waits_for: tuple[str, ...] = ()
    """While `blocked`: the tools and agents that no worker has; the turn's own agent, where no worker hosts that and
    the scheduler can tell. While `waiting`: the tools whose calls a person is asked about."""
    error: str | None = None
    """While `retrying`, what the latest attempt failed with; of a turn that failed, its error."""
    finish_reason: str | None = None
    """The reason why the answer ended, once there is one; see `AgentRunResponse.finish_reason`."""


class TurnHandle(Generic[T]):
    """A turn that was started, here or elsewhere. Await it for its answer."""

    def __init__(
        self, executor: ClientAgentExecutor, agent: str, correlation_id: str, thread: AgentThread | None, kind: Any
    ) -> None:
        self.agent = agent
        self.correlation_id = correlation_id
        self._executor = executor
        self._thread = thread
        self._response_format = kind

    def __str__(self) -> str:
        return self.correlation_id

    def __await__(self) -> Generator[Any, None, AgentRunResponse[T]]:
        return self.result().__await__()

    async def thread(self, *, timeout: float | None = None) -> AgentThread:
        """The thread that it belongs to.

        Args:
            timeout: Seconds to wait, outages of the scheduler included; by default as long as it takes.

        Raises:
            TurnNotFound: There is no such turn.
            SchedulerUnreachable: Nothing answers, or not within `timeout`.
        """
        with self._executor.bounded(timeout):
            if self._thread is None:
                self._thread, _ = await self._executor.turn(self.agent, self.correlation_id)
            return self._thread

    async def result(self, timeout: float | None = None) -> AgentRunResponse[T]:
        """The answer.

        Args:
            timeout: Seconds to wait, outages of the scheduler included; by default as long as it takes. The turn goes
                on when it is over.

        Raises:
            TurnTimeout: No answer in time.
            TurnError: As `DurableAIAgent.run`; `TurnNotFound` where there is no such turn.
            SchedulerUnreachable: Nothing answers, and there is no `timeout` to wait for longer.
        """
        with self._executor.bounded_turn(self.agent, self._thread, self.correlation_id, timeout, Sent(maybe=True)):
            return await self._executor.wait(await self.thread(), self.correlation_id, self._response_format)

    async def status(self, *, timeout: float | None = None) -> TurnStatus:
        """Where it stands now.

        Args:
            timeout: Seconds to wait, outages of the scheduler included; by default as long as it takes.

        Raises:
            TurnNotFound: There is no such turn.
            SchedulerUnreachable: Nothing answers, or not within `timeout`.
        """
        with self._executor.bounded(timeout):
            return await self._status()

    async def _status(self) -> TurnStatus:
        thread, state = await self._executor.turn(self.agent, self.correlation_id)
        shown = ShownStatus.of(state.serialized_custom_status)
        steps = shown.steps
        if self._executor.is_handed_over(state):
            return _status_by_peer(await self._executor.document(thread), thread, self.correlation_id)
        if state.runtime_status is OrchestrationStatus.FAILED:
            failure = state.failure_details
            error = load_error(failure.message) if failure else None
            ended: TurnState = "cancelled" if isinstance(error, TurnCancelled) else "failed"
            text = str(error) if error else failure.message if failure else None
            return TurnStatus(state=ended, steps=steps, error=text)
        if state.runtime_status is OrchestrationStatus.PENDING and await self._executor.is_unhosted(self.agent):
            return TurnStatus(state="blocked", waits_for=(self.agent,))
        if (state_name := _BY_STATUS.get(state.runtime_status)) is not None:
            reason = finish_reason_in(output_of(state)) if state_name == "completed" else None
            return TurnStatus(state=state_name, steps=steps, finish_reason=reason)
        outline = Outline.of(await self._executor.document(thread))
        waits_for = shown.waits_for
        if shown.state == "waiting" and outline.active == self.correlation_id:
            waits_for = tuple(asked.tool for asked in outline.questions if asked.decision is None)
        return TurnStatus(
            state=cast("TurnState", shown.state),
            steps=steps,
            progress=outline.progress.get(self.correlation_id, {}),
            attempt=shown.attempt,
            waits_for=waits_for,
            error=shown.error,
        )

    async def retry(self, *, timeout: float | None = None) -> bool:
        """Let a turn that failed go on, once the cause of its failure is gone. Await the handle for its answer.

        It goes on under the same id, from what its thread has recorded: model calls and tool calls that were made are
        not made again, and the model is told of those of which nobody knows whether they acted. Steps and tokens count
        on; a time limit begins anew. Where its thread works on another turn, it waits in line. The response that it
        ends with takes the place of the error, and says so under `dafx`: `retry`, and `retried` with each failure.

        Args:
            timeout: Seconds to wait, outages of the scheduler included; by default as long as it takes.

        Returns:
            False where it has not ended, so that there is nothing to do; also where another client let it go on in this
            moment.

        Raises:
            TurnNotFound: There is no such turn; or it ended long ago, and what the scheduler kept of it was removed.
            RetryRefused: It was answered, cancelled or terminated, became part of another turn, or belongs to a turn
                that used its agent as a tool and has heard of the failure.
            UnsupportedByPeer: A worker of the peer hosts it.
            TurnTimeout: Not within `timeout`; it may go on.
            SchedulerUnreachable: Nothing answers; nothing was sent.
        """
        sent = Sent()
        with self._executor.bounded_turn(
            self.agent, self._thread, self.correlation_id, timeout, sent, operation="retry"
        ):
            return await self._executor.retry(self.agent, self.correlation_id, sent)

    async def cancel(self, reason: str = "", *, by: str = "", timeout: float | None = None) -> bool:
        """Cancel the turn. When this returns True it is on record: none of its tools begins to act after that.

        Nor does any model call or tool call of the agents that it uses as tools, and of theirs. The turn ends with
        `TurnCancelled`, and so do theirs; a model call on its way is aborted, where its worker can be reached. A tool
        that has begun is left to finish, and its result is not used. A request that joined a running turn
        (`overlap="steer"`) is part of it: that turn is cancelled.

        Args:
            reason: For the transcript, and for whoever awaits the turn.
            by: The name of whoever cancels it, for the transcript and for whoever awaits the turn.
            timeout: Seconds to wait, outages of the scheduler included; by default as long as it takes.

        Returns:
            False where it had ended before, unless by this very cancellation.

        Raises:
            TurnNotFound: There is no such turn.
            AgentNotHosted: No worker hosts the agent; nothing was changed.
            UnsupportedByPeer: A worker of the peer hosts it.
            TurnTimeout: Not within `timeout`; it may be cancelled, or will be.
            SchedulerUnreachable: Nothing answers; nothing was sent.
        """
        sent = Sent()
        with self._executor.bounded_turn(
            self.agent, self._thread, self.correlation_id, timeout, sent, operation="cancel"
        ):
            return await self._cancel(reason, by, sent)

    async def _cancel(self, reason: str, by: str, sent: Sent) -> bool:
        thread, state = await self._executor.turn(self.agent, self.correlation_id)
        if state.runtime_status in ENDED and not self._executor.is_handed_over(state):
            # Its thread need not know it: it may have been refused, or withdrawn.
            ended = load_error(state.failure_details.message) if state.failure_details else None
        else:
            retry = StartedTurn.of(state.serialized_input).retry
            cancel = Cancel(turn=self.correlation_id, mark=CancelMark.of(by=by, reason=reason), retry=retry)
            outcome = await self._executor.tell(thread, cancel, sent)
            if not isinstance(outcome, Ended):
                return True
            ended = load_cancellation(outcome.response)
        return isinstance(ended, TurnCancelled) and (ended.reason, ended.by) == (reason, by)


def _status_by_peer(document: Json, thread: AgentThread, turn: str) -> TurnStatus:
    """The status of a turn that the peer's worker has. Its thread shows the turn only when it has ended."""
    if (response := response_in(document, turn)) is None:
        return TurnStatus(state="running")
    try:
        load_response(response, thread)
    except DafxError as error:
        return TurnStatus(state="failed", error=str(error))
    return TurnStatus(state="completed")


class OrchestrationHandle(Generic[T]):
    """An orchestration that was started. Await it for its result."""

    def __init__(self, backend: Backend, instance_id: str, annotation: Any) -> None:
        self.instance_id = instance_id
        self._backend = backend
        self._annotation = annotation

    def __str__(self) -> str:
        return self.instance_id

    def __await__(self) -> Generator[Any, None, T]:
        return self.result().__await__()

    async def result(self, timeout: float | None = None) -> T:
        """The result, as the function's annotation says.

        Args:
            timeout: Seconds to wait, outages of the scheduler included; as long as it takes by default.

        Raises:
            OrchestrationFailed: It failed, or was terminated; `__cause__` is the agent's error where there is one.
            TimeoutError: It has not ended; it goes on.
            ValueMismatch: The result does not fit.
        """
        state = await self.wait(timeout)
        if state.runtime_status is OrchestrationStatus.COMPLETED:
            result: T = load_stored(output_of(state), self._annotation)
            return result
        failure = state.failure_details
        cause = load_error(failure.message) if failure else None
        raise OrchestrationFailed(
            self.instance_id,
            str(state.runtime_status),
            type(cause).__name__ if cause else failure.error_type.removeprefix("builtins.") if failure else "",
            str(cause) if cause else failure.message if failure else str(output_of(state) or ""),
        ) from cause

    async def wait(self, timeout: float | None = None) -> OrchestrationState:
        """Wait for the end, whatever it is; see `result`.

        Raises:
            TimeoutError: It has not ended; it goes on.
        """
        late = TimeoutError(
            f"orchestration {self.instance_id} has not ended within {timeout} s; it goes on, if a worker hosts it"
        )
        with within(timeout, lambda: late):
            while True:
                if (state := await self._backend.wait(self.instance_id, math.inf)) is not None:
                    return state

    async def state(self, *, timeout: float | None = None) -> OrchestrationState | None:
        """The orchestration's state as durabletask has it now; None if there is no such orchestration.

        Args:
            timeout: Seconds to wait, outages of the scheduler included; by default as long as it takes.

        Raises:
            SchedulerUnreachable: Nothing answers, or not within `timeout`.
        """
        with self._backend.bounded(timeout):
            return await self._backend.state(self.instance_id)

    async def custom_status(self, *, timeout: float | None = None) -> Any:
        """The latest value that the orchestration gave to `context.set_custom_status`; None if there is none.

        Args:
            timeout: Seconds to wait, outages of the scheduler included; by default as long as it takes.

        Raises:
            SchedulerUnreachable: Nothing answers, or not within `timeout`.
        """
        state = await self.state(timeout=timeout)
        return json.loads((state.serialized_custom_status if state else None) or "null")

    async def pending_steps(self, *, timeout: float | None = None) -> tuple[PendingStep, ...]:
        """The activities, agents and orchestrations that it has asked for and that have not ended, oldest first.

        One whose `is_hosted` is False waits for a worker that has it. The whole history is read for that.

        Args:
            timeout: Seconds to wait, outages of the scheduler included; by default as long as it takes.

        Raises:
            SchedulerUnreachable: Nothing answers, or not within `timeout`.
        """
        with self._backend.bounded(timeout):
            if await self._backend.state(self.instance_id) is None:
                return ()
            return pending_steps(await self._backend.history(self.instance_id), await self._backend.hosted())

    async def raise_event(self, name: str, data: Any = None, *, timeout: float | None = None) -> None:
        """Raise an event for it.

        Args:
            name: What it waits for.
            data: What comes with it.
            timeout: Seconds to wait, outages of the scheduler included; by default as long as it takes.

        Raises:
            ValueMismatch: JSON cannot hold `data`.
            SchedulerUnreachable: Nothing answers, or not within `timeout`; the event may have arrived.
        """
        sent = Sent()
        with self._backend.bounded(timeout, sent):
            await self._backend.raise_event(self.instance_id, name, dump_value(data), sent)

    async def terminate(self, reason: str = "", *, timeout: float | None = None) -> None:
        """End it, and the turns that it waits for.

        Args:
            reason: Its output.
            timeout: Seconds to wait, outages of the scheduler included; by default as long as it takes.

        Raises:
            SchedulerUnreachable: Nothing answers, or not within `timeout`; it may have ended, or will.
        """
        sent = Sent()
        with self._backend.bounded(timeout, sent):
            await self._backend.terminate(self.instance_id, reason, sent)
