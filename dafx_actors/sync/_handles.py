"""What was started and goes on by itself, for programs without an event loop."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Generic, TypeVar

from durabletask.client import OrchestrationState

from dafx_actors._durable.recorded import History
from dafx_actors.client import _handles as _async
from dafx_actors.client._handles import PendingStep, TurnStatus
from dafx_actors.exchange import AgentRunResponse
from dafx_actors.ids import AgentThread
from dafx_actors.sync._calls import Caller
from dafx_actors.updates import Update

T = TypeVar("T")
U = TypeVar("U")


class TurnHandle(Generic[T]):
    """A turn that was started, here or elsewhere. `result()` waits for its answer.

    `correlation_id`, which is also `str(turn)`, is its id: `agent.get_turn(id)` gives a handle again, in any process.
    """

    def __init__(self, caller: Caller, turn: _async.TurnHandle[T]) -> None:
        self.agent = turn.agent
        self.correlation_id = turn.correlation_id
        self._caller = caller
        self._turn = turn

    def __str__(self) -> str:
        return self.correlation_id

    @property
    def as_async(self) -> _async.TurnHandle[T]:
        """The same turn for a program with an event loop."""
        return self._turn

    def thread(self, *, timeout: float | None = None) -> AgentThread:
        """The thread that it belongs to.

        Args:
            timeout: Seconds to wait, outages of the scheduler included; by default as long as it takes.

        Raises:
            TurnNotFound: There is no such turn.
            SchedulerUnreachable: Nothing answers, or not within `timeout`.
        """
        return self._caller.call(self._turn.thread, timeout=timeout)

    def result(self, timeout: float | None = None) -> AgentRunResponse[T]:
        """The answer.

        Args:
            timeout: Seconds to wait, outages of the scheduler included; by default as long as it takes. The turn goes
                on when it is over.

        Raises:
            TurnTimeout: No answer in time.
            TurnError: As `DurableAIAgent.run`; `TurnNotFound` where there is no such turn.
            SchedulerUnreachable: Nothing answers, and there is no `timeout` to wait for longer.
        """
        return self._caller.call(self._turn.result, timeout)

    def status(self, *, timeout: float | None = None) -> TurnStatus:
        """Where it stands now.

        Args:
            timeout: Seconds to wait, outages of the scheduler included; by default as long as it takes.

        Raises:
            TurnNotFound: There is no such turn.
            SchedulerUnreachable: Nothing answers, or not within `timeout`.
        """
        return self._caller.call(self._turn.status, timeout=timeout)

    def updates(self, *, after: str | None = None, timeout: float | None = None) -> TurnStream[T]:
        """Follow the turn, while it runs or after it has ended: use it with `with`, and iterate.

        Args:
            after: The cursor of the last update that was told before, in whichever process: what follows is told. By
                default all is told from the beginning.
            timeout: Seconds for all of it, outages of the scheduler included; by default as long as the turn takes.

        Raises:
            InvalidCursor: `after` is no cursor.
        """
        return TurnStream(self._caller, self._turn.updates(after=after, timeout=timeout))

    def retry(self, *, timeout: float | None = None) -> bool:
        """Let a turn that failed go on, once the cause of its failure is gone. Ask `result()` for its answer.

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
        return self._caller.call(self._turn.retry, timeout=timeout)

    def cancel(self, reason: str = "", *, by: str = "", timeout: float | None = None) -> bool:
        """Cancel the turn. When this returns True it is on record: none of its tools begins to act after that.

        Args:
            reason: For the transcript, and for whoever waits for the turn.
            by: The name of whoever cancels it, for the transcript and for whoever waits for the turn.
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
        return self._caller.call(self._turn.cancel, reason, by=by, timeout=timeout)


class TurnStream(Generic[T]):
    """The updates of a turn, one after the other, while it runs or after it has ended; see `dafx_actors.updates`.

    ::

        with joker.run_stream("Tell me a joke.", thread=thread) as stream:
            for piece in stream.text():
                print(piece, end="")

    It is open inside `with`, for one reader, and is opened once. What it means, takes and raises is that of the async
    client's `TurnStream`.
    """

    def __init__(self, caller: Caller, stream: _async.TurnStream[T]) -> None:
        self.turn = TurnHandle(caller, stream.turn)
        """The turn: to cancel it, for example."""
        self._caller = caller
        self._stream = stream

    def __enter__(self) -> TurnStream[T]:
        """Open it: the turn is started, or found.

        Raises:
            TurnNotFound: There is no such turn.
            SchedulerUnreachable, TurnTimeout, CorrelationConflict, UnsupportedByPeer: As of `DurableAIAgent.start`.
        """
        self._caller.call(self._stream.__aenter__)
        return self

    def __exit__(self, *_: object) -> None:
        self._caller.call(self._stream.__aexit__)

    def __iter__(self) -> Iterator[Update]:
        return self._each(self._stream)

    def response(self) -> AgentRunResponse[T]:
        """The answer, when it is there. The updates need not be read for that, and can be read after it.

        Raises:
            TurnError, SchedulerUnreachable, TurnTimeout: As `DurableAIAgent.run`.
        """
        return self._caller.call(self._stream.response)

    def text(self, *, on_reset: Callable[[str], object] | None = None) -> Iterator[str]:
        """The words of the answer alone, piece by piece, of all steps of the turn.

        Args:
            on_reset: Called where words were taken back, with all that stays; the pieces go on behind that. Without
                it they go on behind what was told; see also `snapshots`. It is called in the thread of the client's
                event loop.

        Raises:
            SchedulerUnreachable, TurnTimeout, TurnNotFound: As of iterating.
        """
        return self._each(self._stream.text(on_reset=on_reset))

    def snapshots(self) -> Iterator[str]:
        """The text so far of the latest step that has some, as a whole, each time that it has changed.

        Raises:
            SchedulerUnreachable, TurnTimeout, TurnNotFound: As of iterating.
        """
        return self._each(self._stream.snapshots())

    def _each(self, items: AsyncIterator[U]) -> Iterator[U]:
        async def following() -> U | None:
            return await anext(items, None)

        while (item := self._caller.call(following)) is not None:
            yield item


class OrchestrationHandle(Generic[T]):
    """An orchestration that was started. `result()` waits for its result."""

    def __init__(self, caller: Caller, orchestration: _async.OrchestrationHandle[T]) -> None:
        self.instance_id = orchestration.instance_id
        self._caller = caller
        self._orchestration = orchestration

    def __str__(self) -> str:
        return self.instance_id

    def result(self, timeout: float | None = None) -> T:
        """The result, as the function's annotation says.

        Args:
            timeout: Seconds to wait, outages of the scheduler included; as long as it takes by default.

        Raises:
            OrchestrationFailed: It failed, or was terminated; `__cause__` is the agent's error where there is one.
            TimeoutError: It has not ended; it goes on.
            ValueMismatch: The result does not fit.
        """
        return self._caller.call(self._orchestration.result, timeout)

    def wait(self, timeout: float | None = None) -> OrchestrationState:
        """Wait for the end, whatever it is; see `result`.

        Raises:
            TimeoutError: It has not ended; it goes on.
        """
        return self._caller.call(self._orchestration.wait, timeout)

    def state(self, *, timeout: float | None = None) -> OrchestrationState | None:
        """The orchestration's state as durabletask has it now; None if there is no such orchestration.

        Args:
            timeout: Seconds to wait, outages of the scheduler included; by default as long as it takes.

        Raises:
            SchedulerUnreachable: Nothing answers, or not within `timeout`.
        """
        return self._caller.call(self._orchestration.state, timeout=timeout)

    def custom_status(self, *, timeout: float | None = None) -> Any:
        """The latest value that the orchestration gave to `context.set_custom_status`; None if there is none.

        Args:
            timeout: Seconds to wait, outages of the scheduler included; by default as long as it takes.

        Raises:
            SchedulerUnreachable: Nothing answers, or not within `timeout`.
        """
        return self._caller.call(self._orchestration.custom_status, timeout=timeout)

    def pending_steps(self, *, timeout: float | None = None) -> tuple[PendingStep, ...]:
        """The activities, agents and orchestrations that it has asked for and that have not ended, oldest first.

        One whose `is_hosted` is False waits for a worker that has it. The whole history is read for that.

        Args:
            timeout: Seconds to wait, outages of the scheduler included; by default as long as it takes.

        Raises:
            SchedulerUnreachable: Nothing answers, or not within `timeout`.
        """
        return self._caller.call(self._orchestration.pending_steps, timeout=timeout)

    def raise_event(self, name: str, data: Any = None, *, timeout: float | None = None) -> None:
        """Raise an event for it.

        Args:
            name: What it waits for.
            data: What comes with it.
            timeout: Seconds to wait, outages of the scheduler included; by default as long as it takes.

        Raises:
            ValueMismatch: JSON cannot hold `data`.
            SchedulerUnreachable: Nothing answers, or not within `timeout`; the event may have arrived.
        """
        self._caller.call(self._orchestration.raise_event, name, data, timeout=timeout)

    def terminate(self, reason: str = "", *, timeout: float | None = None) -> None:
        """End it, and the turns that it waits for.

        Args:
            reason: Its output.
            timeout: Seconds to wait, outages of the scheduler included; by default as long as it takes.

        Raises:
            SchedulerUnreachable: Nothing answers, or not within `timeout`; it may have ended, or will.
        """
        self._caller.call(self._orchestration.terminate, reason, timeout=timeout)

    def suspend(self, reason: str = "", *, timeout: float | None = None) -> None:
        """Have it rest where it stands: nothing that it is told is looked at before `resume`. Its steps go on.

        Args:
            reason: For its history.
            timeout: Seconds to wait, outages of the scheduler included; by default as long as it takes.

        Raises:
            OrchestrationNotFound: There is none of that id.
            SchedulerUnreachable: Nothing answers, or not within `timeout`; it may be suspended, or will be.
        """
        self._caller.call(self._orchestration.suspend, reason, timeout=timeout)

    def resume(self, reason: str = "", *, timeout: float | None = None) -> None:
        """Have it go on, after `suspend`.

        Args:
            reason: For its history.
            timeout: Seconds to wait, outages of the scheduler included; by default as long as it takes.

        Raises:
            OrchestrationNotFound: There is none of that id.
            SchedulerUnreachable: Nothing answers, or not within `timeout`; it may go on, or will.
        """
        self._caller.call(self._orchestration.resume, reason, timeout=timeout)

    def purge(self, *, timeout: float | None = None) -> bool:
        """Remove what was kept of it and of those below it, once it has ended.

        Args:
            timeout: Seconds to wait, outages of the scheduler included; by default as long as it takes.

        Returns:
            False where it has not ended, so that it stays; and where there is none of that id.

        Raises:
            SchedulerUnreachable: Nothing answers, or not within `timeout`; it may be removed.
        """
        return self._caller.call(self._orchestration.purge, timeout=timeout)

    def history(self, *, timeout: float | None = None) -> History:
        """What was recorded of it: each step that it asked for and was given. It is read whole.

        `dafx_actors.testing.replay` runs today's code against it.

        Args:
            timeout: Seconds to wait, outages of the scheduler included; by default as long as it takes.

        Raises:
            OrchestrationNotFound: There is none of that id.
            SchedulerUnreachable: Nothing answers, or not within `timeout`.
        """
        return self._caller.call(self._orchestration.history, timeout=timeout)
