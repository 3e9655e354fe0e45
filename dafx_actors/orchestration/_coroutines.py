"""Coroutines inside an orchestration.

durabletask drives generators that yield its tasks. Here a small loop, inside one such generator, runs any number of
coroutines side by side: each owns a task that completes when it returns, and goes on when what it awaits
completes. Nothing here looks at a clock, so a replay takes the same steps in the same order.

Three things about durabletask decide the shape:

- it completes tasks in the middle of handling an event, and goes on with its own books after that; so a completion
  only makes a coroutine *ready*, and the generator is woken (`_wakeup`) where durabletask resumes it;
- it never resumes a generator whose first yielded task is complete already; so such a task is not yielded;
- it builds the coroutines anew for each work item and abandons them; left to the garbage collector, their `finally`
  blocks would run at any time on any thread. They are closed when the work item ends (`work_item`), or by whoever keeps
  them longer (`keeping`).
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import logging
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Generator, ItemsView, Iterable, KeysView, Set
from contextlib import contextmanager
from types import CoroutineType
from typing import Any, TypeVar, cast, overload

from durabletask import task

from dafx_actors._raised import is_ctrl_c, safe, text_of
from dafx_actors.errors import NotDurableError

T = TypeVar("T")
_logger = logging.getLogger("dafx_actors._coroutines")
_MOST_CLOSES = 1000
_MOST_MADE = 100
"""Tasks that a coroutine has made that are kept before the completed ones are let go."""


class DurableTask(task.CompletableTask[T]):
    """Something that an orchestration awaits: an activity, an agent's turn, a timer, an event, a coroutine.

    It is a durabletask `Task` as well: it can be yielded, and given to durabletask's own `when_all` and `when_any`.
    """

    def __init__(self) -> None:
        super().__init__()
        self._error: Exception | None = None
        self._child: task.Task[Any] | None = None
        loop = _running.get(None)
        if loop is not None and loop.current is not None:
            loop.current.adopt(self)

    def __await__(self) -> Generator[Any, None, T]:
        if not self.is_complete:
            yield self
        return self.get_result()

    def get_result(self) -> T:
        """The result.

        Raises:
            Exception: What the task failed with; ValueError if it has not completed.
        """
        if self._error is not None:
            raise self._error
        return super().get_result()

    def get_exception(self) -> Any:
        """The error that the task failed with."""
        return self._error or super().get_exception()

    @property
    def failure(self) -> task.FailureDetails | None:
        """The recorded failure of the activity, orchestration or operation; None if it did not fail."""
        error = self._child.get_exception() if self._child is not None and self._child.is_failed else None
        return error.details if isinstance(error, task.TaskFailedError) else None

    def fail_with(self, error: Exception) -> None:
        """Complete with an error, which is raised as it is where the task is awaited."""
        self._error = error
        self.fail(text_of(error), safe(error))

    def cancel(self) -> bool:
        """Give it up; whoever awaits it gets durabletask's `TaskCancelledError`.

        A timer or an event is waited for no more, and the next event of that name goes to who waits then. The turn of
        an agent is cancelled. A coroutine is ended where it stands, with all that it waits for; its `finally` blocks
        run, and cannot await.

        Returns:
            False where it has completed, or cannot be given up: activities and other orchestrations go on.
        """
        return isinstance(self._child, task.CancellableTask) and self._child.cancel()

    def follow(
        self, child: task.Task[Any], convert: Callable[[Any], T], explain: Callable[[Exception], Exception]
    ) -> None:
        """Complete when `child` does, with its result converted; an error while converting is this task's failure."""
        self._child = child
        _Listener(child, lambda: self._take_over(child, convert, explain))

    def _take_over(
        self, child: task.Task[Any], convert: Callable[[Any], T], explain: Callable[[Exception], Exception]
    ) -> None:
        try:
            result = convert(child.get_result())
        except Exception as error:  # noqa: BLE001 - whatever it is, it is raised where the task is awaited
            self.fail_with(explain(error) if child.is_failed else error)
        except BaseException as error:  # noqa: BLE001 - of a class of the user's, which checks what it is made of
            self.fail_with(safe(error))
        else:
            self.complete(result)


class _Listener(task.CompositeTask[None]):
    """durabletask tells only composite tasks of a completion; this one hands it on, at once if it has happened."""

    def __init__(self, child: task.Task[Any], callback: Callable[[], None]) -> None:
        self._callback = callback
        super().__init__([child])

    def on_child_completed(self, task: task.Task[Any]) -> None:
        self._callback()


def when_complete(awaited: task.Task[Any], callback: Callable[[], None]) -> None:
    """Have `callback` called when a task has completed, at once if it has."""
    _Listener(awaited, callback)


class CoroutineTask(DurableTask[T]):
    """A coroutine on its way."""

    def __init__(self, loop: Loop, coroutine: Coroutine[Any, Any, T]) -> None:
        super().__init__()
        assert isinstance(coroutine, CoroutineType)  # has a name and frames, to say what went wrong where
        self._loop = loop
        self._coroutine = coroutine
        self._made: list[DurableTask[Any]] = []
        """The tasks that the coroutine has made and may be waiting for; some have completed."""
        self._kept = _MOST_MADE
        self._is_root = not loop.has_begun
        # Its own: `set` in one coroutine is not seen by those beside it, as under asyncio.
        self._variables = contextvars.copy_context()
        self._variables.run(_running.set, loop)

    def adopt(self, made: DurableTask[Any]) -> None:
        """Take note of a task that is given up with this coroutine. Nobody gives up the first one."""
        if self._is_root:
            return
        self._made.append(made)
        if len(self._made) > self._kept:
            self._made = [each for each in self._made if not each.is_complete]
            self._kept = 2 * len(self._made) + _MOST_MADE

    def cancel(self) -> bool:
        """See `DurableTask.cancel`; False for a coroutine that gives itself up."""
        if self.is_complete or inspect.getcoroutinestate(self._coroutine) == inspect.CORO_RUNNING:
            return False
        self.close()
        made, self._made = self._made, []
        for each in made:
            each.cancel()
        self.fail_with(task.TaskCancelledError(f"`{self._coroutine.__qualname__}` was given up"))
        return True

    def step(self) -> None:
        """Go on until the coroutine awaits something incomplete, or ends."""
        if self.is_complete:
            return  # it was given up, and what it waited for has come
        self._loop.current = self
        try:
            self._go_on()
        finally:
            self._loop.current = None

    def _go_on(self) -> None:
        awaited: Any = None
        mistake: NotDurableError | None = None
        while True:
            try:
                if mistake is None:
                    awaited = self._variables.run(self._coroutine.send, None)
                else:
                    awaited = self._variables.run(self._coroutine.throw, mistake)
            except StopIteration as stop:
                self.complete(stop.value)
            except asyncio.CancelledError as error:
                text = text_of(error) if error.args else "the orchestration's code cancelled itself"
                self.fail_with(task.TaskCancelledError(text))
            except Exception as error:  # noqa: BLE001 - it is raised where the coroutine is awaited
                self.fail_with(_without_event_loop(error, self._coroutine) or error)
            except BaseException as error:
                if is_ctrl_c(error):
                    raise
                self.fail_with(safe(error))
            if self.is_complete:
                break
            if isinstance(awaited, DurableTask):
                _Listener(cast("DurableTask[Any]", awaited), lambda: self._loop.make_ready(self))
                break
            mistake = _not_durable(self._coroutine, awaited)

    def close(self) -> None:
        """End the coroutine where it stands; whatever its `finally` blocks raise is of no interest any more."""
        # The innermost first, and as often as its `finally` blocks await: closed from the outside, an inner one that
        # awaits would be left as it stands, and closed once more, with a warning, when garbage is collected.
        for _ in range(_MOST_CLOSES):
            try:
                self._variables.run(_innermost(self._coroutine).close)
            except BaseException as error:
                if is_ctrl_c(error):
                    raise
                _logger.debug("A coroutine of an orchestration did not end quietly.", exc_info=True)
            if _has_ended(self._coroutine):
                return


def _innermost(coroutine: CoroutineType[Any, Any, Any]) -> CoroutineType[Any, Any, Any]:
    while isinstance(below := coroutine.cr_await, CoroutineType):
        inner = cast("CoroutineType[Any, Any, Any]", below)
        if _has_ended(inner):
            break
        coroutine = inner
    return coroutine


def _has_ended(coroutine: CoroutineType[Any, Any, Any]) -> bool:
    return inspect.getcoroutinestate(coroutine) == inspect.CORO_CLOSED


class Loop:
    """The coroutines of one orchestration, for one work item or for several."""

    def __init__(self, context: Any) -> None:
        """Begin with none.

        Args:
            context: durabletask's, of the orchestration.
        """
        self.context = context
        self.closed = False
        self.current: CoroutineTask[Any] | None = None
        """The coroutine that runs."""
        self._tasks: list[CoroutineTask[Any]] = []
        self._ready: deque[CoroutineTask[Any]] = deque()
        self._wakeup: task.CompletableTask[None] | None = None

    @property
    def has_begun(self) -> bool:
        """True once there is a coroutine."""
        return bool(self._tasks)

    def spawn(self, coroutine: Coroutine[Any, Any, T]) -> CoroutineTask[T]:
        """Let a coroutine run beside the others."""
        spawned = CoroutineTask(self, coroutine)
        self._tasks.append(spawned)
        self.make_ready(spawned)
        return spawned

    def make_ready(self, ready: CoroutineTask[Any]) -> None:
        """Let `ready` go on at the next chance, after those that were ready before it."""
        self._ready.append(ready)
        if self._wakeup is not None and not self._wakeup.is_complete:
            self._wakeup.complete(None)

    def run(self, coroutine: Coroutine[Any, Any, T]) -> Generator[task.Task[Any], Any, T]:
        """The generator that durabletask drives; it returns what `coroutine` returns."""
        keeper: list[Loop] | None = getattr(_thread, "keeper", None)
        if keeper is None:
            at_end_of_work_item(self.close)
        else:
            keeper.append(self)
        try:
            root = self.spawn(coroutine)
            while True:
                while self._ready and not root.is_complete:
                    self._ready.popleft().step()
                if root.is_complete:
                    return root.get_result()
                self._wakeup = task.CompletableTask[None]()
                yield self._wakeup
        finally:
            self.close()

    def close(self) -> None:
        """Close every coroutine that has not ended. The context of the orchestration refuses calls from here on."""
        self.closed = True
        while self._tasks:
            self._tasks.pop().close()


_running: contextvars.ContextVar[Loop] = contextvars.ContextVar("dafx_actors_orchestration")
_thread = threading.local()


def at_end_of_work_item(callback: Callable[[], None]) -> bool:
    """Have `callback` called when this thread's work item ends; False outside one, where nothing is kept."""
    callbacks: list[Callable[[], None]] | None = getattr(_thread, "callbacks", None)
    if callbacks is None:
        return False
    callbacks.append(callback)
    return True


def hosted_here() -> frozenset[str]:
    """The orchestrations of the worker whose work item this thread runs; none outside one."""
    hosted: frozenset[str] = getattr(_thread, "hosted", frozenset())
    return hosted


@contextmanager
def work_item(hosted: Iterable[str] = ()) -> Generator[None]:
    """Mark a work item, which this thread runs and answers for durabletask.

    Args:
        hosted: The names of the orchestrations of its worker.
    """
    callbacks: list[Callable[[], None]] = []
    _thread.callbacks = callbacks
    _thread.hosted = frozenset(hosted)
    try:
        yield
    finally:
        _thread.callbacks = None
        _thread.hosted = frozenset()
        for callback in callbacks:
            callback()


@contextmanager
def keeping() -> Generator[list[Loop]]:
    """Loops that begin to run on this thread are not closed with the work item; at the end, those that were left."""
    loops: list[Loop] = []
    _thread.keeper = loops
    try:
        yield loops
    finally:
        _thread.keeper = None
        for loop in loops:
            loop.close()


# --- What orchestrations await ------------------------------------------------------------------------------------


def as_durable_task(awaited: task.Task[T] | Coroutine[Any, Any, T]) -> DurableTask[T]:
    """A task that can be awaited, of a durabletask `Task` or of a coroutine, which starts to run with it.

    Raises:
        NotDurableError: It is neither, or a coroutine outside an orchestration.
    """
    if isinstance(awaited, DurableTask):
        return awaited
    if isinstance(awaited, task.Task):
        durable = DurableTask[T]()
        waited_for: task.Task[Any] = awaited
        if isinstance(waited_for, task.WhenAllTask) and not waited_for.get_tasks():
            durable.complete(cast("T", []))  # durabletask waits for the last of its tasks, which never comes
            return durable
        durable.follow(awaited, lambda result: cast("T", result), lambda error: error)
        return durable
    if isinstance(awaited, CoroutineType):
        loop = _running.get(None)
        if loop is None or loop.closed:
            awaited.close()
            raise NotDurableError(
                f"`{awaited.__qualname__}`", "Coroutines run side by side only inside `@orchestrator`."
            )
        return loop.spawn(awaited)
    raise NotDurableError(_kind(awaited), "Give it tasks of the context, agents' runs, or coroutines made of those.")


@overload
def when_all(tasks: Iterable[Awaitable[T]]) -> DurableTask[list[T]]: ...


@overload
def when_all(tasks: Iterable[task.Task[T]]) -> DurableTask[list[T]]: ...


@overload
def when_all(tasks: Iterable[Awaitable[Any] | task.Task[Any]]) -> DurableTask[list[Any]]: ...


def when_all(tasks: Iterable[Awaitable[Any] | task.Task[Any]]) -> DurableTask[list[Any]]:
    """Wait for all: results in the order given. If some fail, the first failure is raised after all have ended.

    Args:
        tasks: Agents' runs, activities, timers, events, coroutines, in any mix. None at all is complete at once.

    Raises:
        NotDurableError: One of them is something else; or they are a set, which has no order that could be repeated.
    """
    return as_durable_task(task.when_all(_as_durable_tasks(tasks)))


@overload
def when_any(tasks: Iterable[Awaitable[T]]) -> DurableTask[DurableTask[T]]: ...


@overload
def when_any(tasks: Iterable[task.Task[T]]) -> DurableTask[DurableTask[T]]: ...


@overload
def when_any(tasks: Iterable[Awaitable[Any] | task.Task[Any]]) -> DurableTask[DurableTask[Any]]: ...


def when_any(tasks: Iterable[Awaitable[Any] | task.Task[Any]]) -> DurableTask[DurableTask[Any]]:
    """Wait for the first to complete or fail, and give that *task*: `await` it for its result.

    The others go on; stop a timer, an event, a coroutine or an agent that lost with its `cancel()`.

    Raises:
        NotDurableError: One of them is nothing that can be replayed; or they are a set, as in `when_all`.
        ValueError: There are none, which would wait for ever.
    """
    durable = _as_durable_tasks(tasks)
    if not durable:
        raise ValueError("when_any() of nothing would wait for ever")
    return cast("DurableTask[DurableTask[Any]]", as_durable_task(task.when_any(durable)))


def _as_durable_tasks(tasks: Iterable[Any]) -> list[task.Task[Any]]:
    waited_for = list(tasks)
    try:
        check_order(tasks)
        return [as_durable_task(each) for each in waited_for]
    except NotDurableError:
        for each in waited_for:
            if isinstance(each, CoroutineType):
                each.close()  # else Python warns that it was never awaited, which is not the mistake
        raise


def check_order(tasks: Iterable[Any]) -> None:
    """Refuse a set: its coroutines would start in another order at each replay, and get each other's results."""
    if isinstance(tasks, Set) and not isinstance(tasks, KeysView | ItemsView):
        raise NotDurableError(f"{_kind(tasks)}, which has no order", "Give a list, as in `when_all([first, second])`.")


# --- Mistakes, named ----------------------------------------------------------------------------------------------

_SLEEP = "Use `await context.sleep(seconds)`."
_IN_TIME = "Use `await when_any([task, context.sleep(seconds)])`, or `timeout=` of an agent's run."
_TOGETHER = "Use `await when_all([...])`, or `context.create_task(...)` for one that runs beside."
_EVENT = "Use `await context.wait_for_external_event(name)`, and raise it with `context.send_event` or from a client."
_INSTEAD = {
    "sleep": _SLEEP,
    "__sleep0": _SLEEP,  # asyncio's way to sleep for no time
    "wait_for": _IN_TIME,
    "timeout": _IN_TIME,
    "timeout_at": _IN_TIME,
    "fail_after": _IN_TIME,
    "move_on_after": _IN_TIME,
    "Timeout": _IN_TIME,
    "CancelScope": _IN_TIME,
    "gather": _TOGETHER,
    "wait": _TOGETHER,
    "create_task": _TOGETHER,
    "ensure_future": _TOGETHER,
    "TaskGroup": _TOGETHER,
    "create_task_group": _TOGETHER,
    "Queue": _EVENT,
    "Event": _EVENT,
    "Condition": _EVENT,
    "MemoryObjectReceiveStream": _EVENT,
    "run": "It runs already: `await` what you would run.",
    "Runner": "It runs already: `await` what you would run.",
    "Lock": "Only one coroutine of an orchestration runs at a time; to exclude others, `context.lock_entities([...])`.",
    "Semaphore": "Use `await context.map(function, items, width=4)`.",
}
_LIBRARIES = {"asyncio", "anyio"}
_ELSE = "Do it in an activity, and `await context.call_activity(...)`."


def _not_durable(coroutine: CoroutineType[Any, Any, Any], awaited: object) -> NotDurableError:
    """The mistake of a coroutine that awaits no durable task, by the name of the innermost function."""
    inner: Any = coroutine
    while (below := getattr(inner, "cr_await", None) or getattr(inner, "gi_yieldfrom", None)) is not None:
        if not (hasattr(below, "cr_frame") or hasattr(below, "gi_frame")):
            break
        inner = below
    frame: Any = getattr(inner, "cr_frame", None) or getattr(inner, "gi_frame", None)
    what = "what" if awaited is None else f"{_kind(awaited)}, which"
    if frame is None:
        return NotDurableError(f"{what} `{coroutine.__qualname__}` awaits", _ELSE)
    module = frame.f_globals.get("__name__", "?")
    if module.split(".")[0] not in _LIBRARIES:
        return NotDurableError(f"{what} `{inner.__qualname__}` awaits", _ELSE)
    return NotDurableError(f"`{module}.{inner.__qualname__}`", _instead(inner.__qualname__))


def _without_event_loop(error: Exception, coroutine: CoroutineType[Any, Any, Any]) -> NotDurableError | None:
    """The same mistake where it shows itself earlier: asyncio and anyio ask for a running event loop first."""
    text = text_of(error)
    if not (
        (isinstance(error, RuntimeError) and ("no running event loop" in text or "no current event loop" in text))
        or type(error).__name__ in {"AsyncLibraryNotFoundError", "NoEventLoopError"}
        or (isinstance(error, AttributeError) and "create_future" in text)  # of queues and events, which ask no loop
    ):
        return None
    frame = error.__traceback__
    name, module = coroutine.__qualname__, ""
    while frame is not None:
        if not module and frame.tb_frame.f_code.co_name != "get_event_loop":
            name = frame.tb_frame.f_code.co_qualname
            if frame.tb_frame.f_globals.get("__name__", "").split(".")[0] in _LIBRARIES:
                module = frame.tb_frame.f_globals["__name__"]
        frame = frame.tb_next
    mistake = NotDurableError(f"`{module}.{name}`" if module else f"what `{name}` awaits", _instead(name))
    mistake.__cause__ = error
    return mistake


def _instead(name: str) -> str:
    """The advice for a function, or a method of a class, of asyncio or anyio."""
    known = [_INSTEAD[part] for part in reversed(name.split(".")) if part in _INSTEAD]
    return known[-1] if known else _ELSE


def _kind(value: object) -> str:
    return f"a {type(value).__qualname__}"
