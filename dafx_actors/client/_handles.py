"""What was started and goes on by itself: turns of agents, and orchestrations. Await a handle for the result."""

from __future__ import annotations

import json
import math
from collections.abc import AsyncIterator, Callable, Generator
from typing import Any, Generic, TypeVar

import grpc
from durabletask.client import OrchestrationState, OrchestrationStatus

from dafx_actors._durable.backend import Backend
from dafx_actors._durable.calls import Sent, code_of, within
from dafx_actors._durable.pending import PendingStep, pending_steps
from dafx_actors._durable.recorded import History
from dafx_actors._json.books import CancelMark
from dafx_actors._json.crossing import load_error
from dafx_actors._json.operations import Cancel
from dafx_actors._json.operations import Ended as EndedBefore
from dafx_actors._json.requests import load_cancellation
from dafx_actors._json.steps import StartedTurn
from dafx_actors._json.values import dump_value, load_stored
from dafx_actors.client._executor import ENDED, ClientAgentExecutor, output_of
from dafx_actors.client._status import TurnState, TurnStatus, look_at
from dafx_actors.client._updates import Followed, Following
from dafx_actors.errors import OrchestrationFailed, OrchestrationNotFound, SchedulerRefused, TurnCancelled
from dafx_actors.exchange import AgentRunResponse
from dafx_actors.ids import AgentThread
from dafx_actors.updates import Ended, Reset, Text, Update

__all__ = ["OrchestrationHandle", "PendingStep", "TurnHandle", "TurnState", "TurnStatus", "TurnStream"]

T = TypeVar("T")


class TurnHandle(Generic[T]):
    """A turn that was started, here or elsewhere. Await it for its answer.

    `correlation_id`, which is also `str(turn)`, is its id: `agent.get_turn(id)` gives a handle again, in any process.
    """

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
            status, _ = await look_at(self._executor, self.agent, self.correlation_id)
            return status

    def updates(self, *, after: str | None = None, timeout: float | None = None) -> TurnStream[T]:
        """Follow the turn, while it runs or after it has ended: use it with `async with`, and iterate.

        Words come as the model says them where the turn was started with `stream=True` or by `run_stream`, and its
        scheduler carries them; else each step is told when it was recorded, within some seconds.

        Args:
            after: The cursor of the last update that was told before, in whichever process: what follows is told. By
                default all is told from the beginning.
            timeout: Seconds for all of it, outages of the scheduler included; by default as long as the turn takes.

        Raises:
            InvalidCursor: `after` is no cursor.
        """

        async def wait(thread: AgentThread) -> AgentRunResponse[Any]:
            return await self._executor.wait(thread, self.correlation_id, self._response_format)

        followed = Followed(
            executor=self._executor,
            agent=self.agent,
            turn=self.correlation_id,
            begin=self.thread,
            wait=wait,
            timeout=timeout,
        )
        return TurnStream(self, Following(followed, after))

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
            if not isinstance(outcome, EndedBefore):
                return True
            ended = load_cancellation(outcome.response)
        return isinstance(ended, TurnCancelled) and (ended.reason, ended.by) == (reason, by)


class TurnStream(Generic[T]):
    """The updates of a turn, one after the other, while it runs or after it has ended; see `dafx_actors.updates`.

    ::

        async with joker.run_stream("Tell me a joke.", thread=thread) as stream:
            async for update in stream:
                ...
            response = await stream.response()

    It is open inside `async with`, for one reader, and is opened once. Leaving it, at any time, cancels nothing:
    `stream.turn.cancel()` does. After the last update, which is `Ended`, the iteration stops; what the turn ended with
    is in there, and is raised by `response()` only.

    Iterating raises:
        SchedulerUnreachable: Nothing answers, for a minute. The cursor of the last update stays good.
        TurnTimeout: Its `timeout` is over; the turn goes on.
        TurnNotFound, UnsupportedTranscript: There is no such turn any more, or its thread cannot be read.
    """

    def __init__(self, turn: TurnHandle[T], following: Following) -> None:
        self.turn = turn
        """The turn: to cancel it, for example."""
        self._following = following

    async def __aenter__(self) -> TurnStream[T]:
        """Open it: the turn is started, or found.

        Raises:
            TurnNotFound: There is no such turn.
            SchedulerUnreachable, TurnTimeout: As of iterating.
            CorrelationConflict, UnsupportedByPeer, SchedulerRefused: As `DurableAIAgent.start`.
        """
        await self._following.begin()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._following.leave()

    def __aiter__(self) -> TurnStream[T]:
        return self

    async def __anext__(self) -> Update:
        update = await self._following.next()
        if update is None:
            raise StopAsyncIteration
        return update

    async def response(self) -> AgentRunResponse[T]:
        """The answer, when it is there. The updates need not be read for that, and can be read after it.

        Raises:
            TurnError, SchedulerUnreachable, TurnTimeout: As `DurableAIAgent.run`.
        """
        return await self._following.response()

    async def text(self, *, on_reset: Callable[[str], object] | None = None) -> AsyncIterator[str]:
        """The words of the answer alone, piece by piece, of all steps of the turn.

        Args:
            on_reset: Called where words were taken back, with all that stays; the pieces go on behind that. Without
                it they go on behind what was told; see also `snapshots`.

        Raises:
            SchedulerUnreachable, TurnTimeout, TurnNotFound: As of iterating.
        """
        said: dict[int, str] = {}
        async for update in self:
            if isinstance(update, Text):
                said[update.step] = said.get(update.step, "") + update.text
                yield update.text
            elif isinstance(update, Reset) and (gone := [step for step in said if step >= update.step]):
                for step in gone:
                    del said[step]
                if on_reset is not None:
                    on_reset("".join(said.values()))

    async def snapshots(self) -> AsyncIterator[str]:
        """The text so far of the latest step that has some, as a whole, each time that it has changed.

        Where it is shown in the place of the one before, nothing that is taken back needs to be seen to. The last one
        is the text of the answer.

        Raises:
            SchedulerUnreachable, TurnTimeout, TurnNotFound: As of iterating.
        """
        said: dict[int, str] = {}
        shown = ""
        async for update in self:
            if isinstance(update, Reset):
                said = {step: text for step, text in said.items() if step < update.step}
            elif isinstance(update, Text):
                said[update.step] = said.get(update.step, "") + update.text
            if isinstance(update, Text | Ended) and (text := said[max(said)] if said else "") != shown:
                shown = text
                yield text


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

    async def suspend(self, reason: str = "", *, timeout: float | None = None) -> None:
        """Have it rest where it stands: nothing that it is told is looked at before `resume`. Its steps go on.

        Args:
            reason: For its history.
            timeout: Seconds to wait, outages of the scheduler included; by default as long as it takes.

        Raises:
            OrchestrationNotFound: There is none of that id.
            SchedulerUnreachable: Nothing answers, or not within `timeout`; it may be suspended, or will be.
        """
        sent = Sent()
        with self._backend.bounded(timeout, sent):
            await self._existing()
            await self._backend.suspend(self.instance_id, reason, sent)

    async def resume(self, reason: str = "", *, timeout: float | None = None) -> None:
        """Have it go on, after `suspend`.

        Args:
            reason: For its history.
            timeout: Seconds to wait, outages of the scheduler included; by default as long as it takes.

        Raises:
            OrchestrationNotFound: There is none of that id.
            SchedulerUnreachable: Nothing answers, or not within `timeout`; it may go on, or will.
        """
        sent = Sent()
        with self._backend.bounded(timeout, sent):
            await self._existing()
            await self._backend.resume(self.instance_id, reason, sent)

    async def purge(self, *, timeout: float | None = None) -> bool:
        """Remove what was kept of it and of those below it, once it has ended.

        Args:
            timeout: Seconds to wait, outages of the scheduler included; by default as long as it takes.

        Returns:
            False where it has not ended, so that it stays; and where there is none of that id.

        Raises:
            SchedulerUnreachable: Nothing answers, or not within `timeout`; it may be removed.
        """
        with self._backend.bounded(timeout):
            state = await self._backend.state(self.instance_id)
            if state is None or state.runtime_status not in ENDED:
                return False
            return await self._backend.purge(self.instance_id)

    async def history(self, *, timeout: float | None = None) -> History:
        """What was recorded of it: each step that it asked for and was given. It is read whole.

        `dafx_actors.testing.replay` runs today's code against it.

        Args:
            timeout: Seconds to wait, outages of the scheduler included; by default as long as it takes.

        Raises:
            OrchestrationNotFound: There is none of that id.
            SchedulerUnreachable: Nothing answers, or not within `timeout`.
        """
        with self._backend.bounded(timeout):
            return await history_of(self._backend, self.instance_id)

    async def _existing(self) -> None:
        if await self._backend.state(self.instance_id) is None:
            raise OrchestrationNotFound(self.instance_id)


async def history_of(backend: Backend, instance_id: str) -> History:
    """What was recorded of an orchestration, or a turn; nothing yet, where it has not begun.

    Raises:
        OrchestrationNotFound: There is none of that id.
        SchedulerRefused: The scheduler does not show it.
    """
    state = await backend.state(instance_id)
    if state is None:
        raise OrchestrationNotFound(instance_id)
    try:
        with backend.refusing():
            events = await backend.history(instance_id)
    except SchedulerRefused as error:
        if code_of(error.__cause__ or error) is grpc.StatusCode.NOT_FOUND:  # removed in this moment
            raise OrchestrationNotFound(instance_id) from error
        raise
    return History.of(instance_id, events) or History(name=state.name, instance_id=instance_id, events=())
