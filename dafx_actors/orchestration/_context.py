"""Orchestrations: `async def` functions that coordinate agents, and can be replayed.

An orchestration may be run again from its start for each thing that happened to it, with the results that are
recorded; so it must do the same each time. Ask the context for the time, for ids and for waiting; do everything
that touches the world in activities and agents. A worker keeps orchestrations in memory for a while, and need not
replay them (`extended_sessions=` of `DurableAIAgentWorker`); `AgentHost` always does, so that tests find what differs.

`finally` blocks and `async with` run each time the orchestration is set aside, not only at its end. Use them for what
is in memory; the context refuses calls there.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterable
from datetime import datetime, timedelta
from typing import Any, TypeAlias, TypeVar, cast, overload

from durabletask import task
from durabletask.entities import EntityInstanceId, EntityLock

from dafx_actors._json.crossing import crossed
from dafx_actors._json.values import dump_as, dump_value, load_stored, parameters_of, returned_by
from dafx_actors.errors import ConfigurationError, MessageTooLarge, NotDurableError, ValueMismatch
from dafx_actors.ids import agent_name
from dafx_actors.orchestration._agents import (
    DurableAgentTask,
    OrchestrationAgent,
    OrchestrationAgentExecutor,
    in_utc,
    recordable,
)
from dafx_actors.orchestration._coroutines import (
    CoroutineTask,
    DurableTask,
    Loop,
    as_durable_task,
    check_order,
    when_all,
    when_any,
)
from dafx_actors.orchestration._recorded import Recorded
from dafx_actors.transcript import Json

__all__ = [
    "DurableAIAgentOrchestrationContext",
    "DurableAgentTask",
    "DurableTask",
    "OrchestrationAgent",
    "OrchestrationAgentExecutor",
    "OrchestrationContext",
    "orchestrator",
    "when_all",
    "when_any",
]

T = TypeVar("T")
In = TypeVar("In")
F = TypeVar("F", bound=Callable[..., Any])
Duration: TypeAlias = "float | timedelta"
"""Seconds, or a timedelta."""

_LONGEST_PAUSE = timedelta(days=36_500)
_module_logger = logging.getLogger("dafx_actors.orchestration")


# --- The context --------------------------------------------------------------------------------------------------


class OrchestrationContext:
    """The calls that an orchestration may make.

    Each call that waits gives a task: await it, or give it to `when_all`.
    """

    def __init__(self, durable: task.OrchestrationContext, loop: Loop | None = None) -> None:
        self._durable_context = durable
        self._loop = loop
        if loop is None:  # in a plain generator function
            Recorded(durable)

    @property
    def _durable(self) -> task.OrchestrationContext:
        if self._loop is not None and self._loop.closed:
            raise NotDurableError(
                "anything in `finally` or `__aexit__`, nor call the context there",
                "Those run each time the orchestration is set aside; put the call after the `try` block.",
            )
        return self._durable_context

    @property
    def instance_id(self) -> str:
        """The id of this orchestration."""
        return self._durable_context.instance_id

    @property
    def parent_instance_id(self) -> str | None:
        """The id of the orchestration that called this one, if one did."""
        return self._durable_context.parent_instance_id

    @property
    def is_replaying(self) -> bool:
        """True while the orchestration repeats steps that it has taken before."""
        return self._durable_context.is_replaying

    @property
    def current_utc_datetime(self) -> datetime:
        """The orchestration's time, in UTC with its zone: when it was last set going; the same at every replay."""
        return in_utc(self._durable_context.current_utc_datetime)

    @property
    def logger(self) -> task.ReplaySafeLogger:
        """A logger that is silent while replaying, so that each line appears once."""
        return self.create_replay_safe_logger(_module_logger)

    def create_replay_safe_logger(self, logger: logging.Logger) -> task.ReplaySafeLogger:
        """`logger`, silent while replaying."""
        return self._durable_context.create_replay_safe_logger(logger)

    def new_uuid(self) -> str:
        """A new UUID, the same at every replay."""
        return self._durable.new_uuid()

    def get_agent(self, agent: str | type | object, *, hosted_by_peer: bool = False) -> OrchestrationAgent:
        """An agent by its name or class, for this orchestration.

        Args:
            agent: By name or class.
            hosted_by_peer: A worker of `agent-framework-durabletask` hosts it. An orchestration must be told, since it
                would wait for ever for a worker of ours, and cannot look without deciding otherwise in a replay.

        Raises:
            ConfigurationError: A class that is no agent, or a name that cannot be one.
        """
        executor = OrchestrationAgentExecutor(self._durable, hosted_by_peer=hosted_by_peer)
        return OrchestrationAgent(agent_name(agent), executor)

    def sleep(self, delay: Duration) -> DurableTask[None]:
        """Wait, for days if need be; nothing is held meanwhile."""
        return self.create_timer(delay if isinstance(delay, timedelta) else timedelta(seconds=delay))

    def create_timer(self, fire_at: datetime | timedelta) -> DurableTask[None]:
        """Wait until a time (UTC where it has no zone), or for a while."""
        return as_durable_task(self._durable.create_timer(fire_at))

    @overload
    def call_activity(
        self,
        activity: Callable[..., Any] | str,
        *,
        input: Any = None,
        return_type: type[T],
        retry_policy: task.RetryPolicy | None = None,
    ) -> DurableTask[T]: ...

    @overload
    def call_activity(
        self,
        activity: Callable[[In], Coroutine[Any, Any, T]],
        *,
        input: In,
        retry_policy: task.RetryPolicy | None = None,
    ) -> DurableTask[T]: ...

    @overload
    def call_activity(
        self,
        activity: Callable[[task.ActivityContext, In], Coroutine[Any, Any, T]],
        *,
        input: In,
        retry_policy: task.RetryPolicy | None = None,
    ) -> DurableTask[T]: ...

    @overload
    def call_activity(
        self,
        activity: Callable[[], Coroutine[Any, Any, T]],
        *,
        retry_policy: task.RetryPolicy | None = None,
    ) -> DurableTask[T]: ...

    @overload
    def call_activity(
        self,
        activity: Callable[[In], T],
        *,
        input: In,
        retry_policy: task.RetryPolicy | None = None,
    ) -> DurableTask[T]: ...

    @overload
    def call_activity(
        self,
        activity: Callable[[task.ActivityContext, In], T],
        *,
        input: In,
        retry_policy: task.RetryPolicy | None = None,
    ) -> DurableTask[T]: ...

    @overload
    def call_activity(
        self,
        activity: Callable[[], T],
        *,
        retry_policy: task.RetryPolicy | None = None,
    ) -> DurableTask[T]: ...

    @overload
    def call_activity(
        self,
        activity: str,
        *,
        input: Any = None,
        return_type: Any = None,
        retry_policy: task.RetryPolicy | None = None,
    ) -> DurableTask[Any]: ...

    def call_activity(
        self,
        activity: Callable[..., Any] | str,
        *,
        input: Any = None,
        return_type: Any = None,
        retry_policy: task.RetryPolicy | None = None,
    ) -> DurableTask[Any]:
        """Run an activity, on any worker that has it.

        Args:
            activity: The function, or its name.
            input: What it is given; must fit JSON.
            return_type: The type of the result; by default what the function's annotation says.
            retry_policy: How often and when a failed call is made again. Our own durable timers count the time, since
                durabletask's `retry_timeout` reads the wall clock.

        Raises:
            ValueMismatch: JSON cannot hold `input`.
        """
        name = activity if isinstance(activity, str) else activity.__name__
        annotation = Any if isinstance(activity, str) else returned_by(activity)
        value = dump_value(input)

        def once() -> DurableTask[Any]:
            return self._follow(self._durable.call_activity(name, input=value), return_type or annotation)

        return once() if retry_policy is None else self.create_task(self._retrying(once, retry_policy))

    @overload
    def call_sub_orchestrator(
        self,
        orchestrator: Callable[..., Any] | str,
        *,
        input: Any = None,
        instance_id: str | None = None,
        return_type: type[T],
        retry_policy: task.RetryPolicy | None = None,
    ) -> DurableTask[T]: ...

    @overload
    def call_sub_orchestrator(
        self,
        orchestrator: Callable[[Any, In], Coroutine[Any, Any, T] | Generator[Any, Any, T]],
        *,
        input: In,
        instance_id: str | None = None,
        retry_policy: task.RetryPolicy | None = None,
    ) -> DurableTask[T]: ...

    @overload
    def call_sub_orchestrator(
        self,
        orchestrator: Callable[[Any], Coroutine[Any, Any, T] | Generator[Any, Any, T]],
        *,
        instance_id: str | None = None,
        retry_policy: task.RetryPolicy | None = None,
    ) -> DurableTask[T]: ...

    @overload
    def call_sub_orchestrator(
        self,
        orchestrator: str,
        *,
        input: Any = None,
        instance_id: str | None = None,
        return_type: Any = None,
        retry_policy: task.RetryPolicy | None = None,
    ) -> DurableTask[Any]: ...

    def call_sub_orchestrator(
        self,
        orchestrator: Callable[..., Any] | str,
        *,
        input: Any = None,
        instance_id: str | None = None,
        return_type: Any = None,
        retry_policy: task.RetryPolicy | None = None,
    ) -> DurableTask[Any]:
        """Run another orchestration, on any worker that has it; see `call_activity`.

        Raises:
            ValueMismatch: JSON cannot hold `input`.
        """
        name = orchestrator if isinstance(orchestrator, str) else orchestrator.__name__
        annotation = Any if isinstance(orchestrator, str) else returned_by(definition_of(orchestrator))
        value = dump_value(input)

        def once() -> DurableTask[Any]:
            called: task.Task[Any] = self._durable.call_sub_orchestrator(name, input=value, instance_id=instance_id)
            return self._follow(called, return_type or annotation)

        return once() if retry_policy is None else self.create_task(self._retrying(once, retry_policy))

    @overload
    def call_entity(
        self, entity: EntityInstanceId, operation: str, input: Any = None, *, return_type: type[T]
    ) -> DurableTask[T]: ...

    @overload
    def call_entity(
        self, entity: EntityInstanceId, operation: str, input: Any = None, *, return_type: Any = None
    ) -> DurableTask[Any]: ...

    def call_entity(
        self, entity: EntityInstanceId, operation: str, input: Any = None, *, return_type: Any = None
    ) -> DurableTask[Any]:
        """Call an operation of an entity.

        Raises:
            ValueMismatch: JSON cannot hold `input`.
        """
        return self._follow(self._durable.call_entity(entity, operation, dump_value(input)), return_type or Any)

    def signal_entity(self, entity: EntityInstanceId, operation: str, input: Any = None) -> None:
        """Send an operation to an entity and do not wait.

        Raises:
            ValueMismatch: JSON cannot hold `input`.
        """
        self._durable.signal_entity(entity, operation, dump_value(input))

    def lock_entities(self, entities: list[EntityInstanceId]) -> DurableTask[EntityLock]:
        """Lock entities; the result is a context manager that unlocks them."""
        return as_durable_task(self._durable.lock_entities(entities))

    @overload
    def wait_for_external_event(
        self, name: str, *, data_type: type[T], timeout: Duration | None = None
    ) -> DurableTask[T]: ...

    @overload
    def wait_for_external_event(
        self, name: str, *, data_type: Any = None, timeout: Duration | None = None
    ) -> DurableTask[Any]: ...

    def wait_for_external_event(
        self, name: str, *, data_type: Any = None, timeout: Duration | None = None
    ) -> DurableTask[Any]:
        """Wait until somebody raises the event `name` (upper and lower case are the same) for this orchestration.

        Args:
            name: The event.
            data_type: The type of what comes with it.
            timeout: How long to wait at most; then `TimeoutError` is raised. Without one, for ever.
        """
        event = self._follow(self._durable.wait_for_external_event(name), data_type or Any)
        if timeout is None:
            return event
        timed = as_durable_task(self._in_time(event, name, timeout))
        if isinstance(timed, CoroutineTask):
            timed.adopt(event)
        return timed

    def send_event(self, instance_id: str, name: str, *, data: Any = None) -> None:
        """Raise an event for another orchestration; dropped where that does not exist or has ended.

        Raises:
            ValueMismatch: JSON cannot hold `data`.
        """
        self._durable.send_event(instance_id, name, data=dump_value(data))

    def set_custom_status(self, status: Any) -> None:
        """Show a status to whoever asks for this orchestration.

        Raises:
            ValueMismatch: JSON cannot hold it.
        """
        self._durable.set_custom_status(dump_value(status))

    def continue_as_new(self, new_input: Any, *, save_events: bool = False) -> None:
        """Start again from the beginning with a new input and an empty history; return right after it."""
        self._durable.continue_as_new(dump_value(new_input), save_events=save_events)

    def create_task(self, coroutine: Coroutine[Any, Any, T]) -> DurableTask[T]:
        """Let a coroutine run beside this one, as a task to await later or to compare with what `when_any` gives.

        `cancel()` of the task gives up the coroutine with what it waits for, also coroutines that it let run.

        Raises:
            NotDurableError: Outside `@orchestrator`.
        """
        return as_durable_task(coroutine)

    def map(self, function: Callable[[In], Awaitable[T]], items: Iterable[In], *, width: int) -> DurableTask[list[T]]:
        """Call `function` for each item, at most `width` at a time: results in the order of the items.

        ::

            texts = await context.map(lambda city: guide.run(f"Describe {city}."), cities, width=4)

        All are called, also if some fail; then the failure of the first of those in the order of the items is raised.

        Args:
            function: Gives a task of this context, an agent's run, or a coroutine.
            items: Any number, in an order that a replay repeats.
            width: How many run at once.

        Raises:
            ValueError: `width` is less than 1.
            NotDurableError: The items are a set, which has no order; or outside `@orchestrator`.
        """
        if width < 1:
            raise ValueError(f"`width` is at least 1, not {width!r}")
        check_order(items)
        return self.create_task(self._map(function, list(items), width))

    async def _map(self, function: Callable[[In], Awaitable[T]], items: list[In], width: int) -> list[T]:
        results: dict[int, T] = {}
        failures: dict[int, Exception] = {}
        numbers = iter(range(len(items)))

        async def work() -> None:
            for number in numbers:
                try:
                    results[number] = await function(items[number])
                except Exception as error:  # noqa: BLE001 - raised when all are done
                    failures[number] = error

        await when_all([work() for _ in range(min(width, len(items)))])
        if failures:
            raise failures[min(failures)]
        return [results[number] for number in range(len(items))]

    def _follow(self, called: task.Task[Any], annotation: Any) -> DurableTask[Any]:
        durable = DurableTask[Any]()
        durable.follow(called, lambda value: load_stored(value, annotation), crossed)
        return durable

    async def _retrying(self, once: Callable[[], DurableTask[T]], policy: task.RetryPolicy) -> T:
        deadline = None if policy.retry_timeout is None else self.current_utc_datetime + policy.retry_timeout
        pause = policy.first_retry_interval
        for attempt in range(1, policy.max_number_of_attempts + 1):
            try:
                return await once()
            except (ValueMismatch, MessageTooLarge):
                raise  # the same result would not fit the next time either; and what made it has acted
            except Exception:
                last = attempt == policy.max_number_of_attempts
                if last or (deadline is not None and self.current_utc_datetime + pause > deadline):
                    raise
            await self.sleep(pause)
            longest = policy.max_retry_interval or _LONGEST_PAUSE
            seconds = pause.total_seconds() * (policy.backoff_coefficient or 1.0)
            pause = timedelta(seconds=min(seconds, longest.total_seconds()))
        raise AssertionError("unreachable: the last attempt returns or raises")

    async def _in_time(self, event: DurableTask[T], name: str, timeout: Duration) -> T:
        # The timer that lost is left alone: a scheduler cannot take one back, and durabletask warns when it fires.
        if not event.is_complete and await when_any([event, self.sleep(timeout)]) is not event:
            event.cancel()
            raise TimeoutError(f"event {name!r} was not raised within {timeout}")
        return await event


DurableAIAgentOrchestrationContext = OrchestrationContext
"""The peer's name: wraps the context that durabletask gives to a plain generator function."""


# --- The decorator ------------------------------------------------------------------------------------------------

_DEFINITION = "__dafx_orchestrator__"


def orchestrator(function: F) -> F:
    """Make an orchestration of an `async def`, or of a generator function that yields tasks.

    It takes the context, and at most one input, which is converted by its annotation, as is what it returns; what
    does not fit fails the orchestration. The result is registered with `add_orchestrator` of `DurableAIAgentWorker` or
    of a plain durabletask worker; called with an `OrchestrationContext`, it is the function itself.

    Raises:
        ConfigurationError: It is neither, or takes something else.
    """
    if mistakes := _mistakes(function):
        raise ConfigurationError(mistakes)

    def start(context: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(context, OrchestrationContext):
            return function(context, *args, **kwargs)
        return _drive(function, context, *args)

    # Not `functools.wraps`: durabletask would follow `__wrapped__` and convert by the annotations, leniently.
    for name in ("__name__", "__qualname__", "__module__", "__doc__"):
        setattr(start, name, getattr(function, name))
    setattr(start, _DEFINITION, function)
    return cast("F", start)


def definition_of(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function that was decorated, or the function itself."""
    return getattr(function, _DEFINITION, function)


def is_orchestrator(function: Callable[..., Any]) -> bool:
    """Say whether `function` was decorated with `@orchestrator`."""
    return hasattr(function, _DEFINITION)


def _mistakes(function: Callable[..., Any]) -> list[str]:
    name = getattr(function, "__qualname__", repr(function))
    mistakes: list[str] = []
    if not (inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(function)):
        mistakes.append(f"{name} cannot be an orchestration: write `async def`, or a function that yields tasks")
    elif len(parameters_of(function)) not in (1, 2):
        mistakes.append(f"{name} must take the context, and at most one input after it")
    if name.endswith("<lambda>"):
        mistakes.append(f"{name} needs a name: it cannot be a lambda")
    return mistakes


def _drive(
    function: Callable[..., Any], durable: task.OrchestrationContext, raw: Json = None
) -> Generator[Any, Any, Json]:
    """The generator that durabletask drives."""
    loop = Loop(durable)
    context = OrchestrationContext(durable, loop)
    recorded = Recorded(durable)
    dumped, failed = None, None
    try:
        dumped = dump_as((yield from loop.run(_call(function, context, raw))), returned_by(function))
    except Exception as error:  # noqa: BLE001 - it is how the orchestration ends
        failed = error
    recorded.check_end(failed)
    if failed is not None:
        raise recordable(failed)
    return dumped


async def _call(function: Callable[..., Any], context: OrchestrationContext, raw: Json) -> Any:
    arguments = [
        load_stored(raw, annotation)
        for name, annotation in parameters_of(function)[1:]
        if raw is not None or inspect.signature(function).parameters[name].default is inspect.Parameter.empty
    ]
    started = function(context, *arguments)
    return await started if inspect.isawaitable(started) else await _from_generator(started)


async def _from_generator(generator: Generator[Any, Any, T]) -> T:
    """Drive a generator that yields tasks as a coroutine that awaits them, so that both styles behave the same."""
    result, failure = None, None
    try:
        while True:
            awaited = generator.throw(failure) if failure else generator.send(result)
            result, failure = None, None
            try:
                result = await as_durable_task(awaited)
            except Exception as error:  # noqa: BLE001 - it is raised at the generator's `yield`
                failure = error
    except StopIteration as stop:
        return cast("T", stop.value)
    finally:
        generator.close()
