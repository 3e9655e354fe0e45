"""The one door to what durabletask keeps private. Whoever needs a name of it asks here, and nowhere else.

durabletask has no public way to a worker's settings, to its stream of work, or to an orchestration that it has begun.
What is used is looked for when a worker is wrapped: a version that lacks a name is told of before anything runs.

====================================  ==================================================================================
what                                  without it
====================================  ==================================================================================
a worker's settings and channel       no thread could be read, no answer sent: `IncompatibleDurableTask`
`_execute_*`, `_cancel_*`, its pool   no work could be done: `IncompatibleDurableTask`
`_OrchestrationExecutor`, registry    orchestrations are not kept between episodes: each is replayed, which costs time
`_pending_actions` of a context       what an orchestration asks is compared with its history by name only
a client's channel and interceptors   errors do not name the endpoint; who hosts what is asked in another way
a client's stub                       lists come in one piece, and not in pages
====================================  ==================================================================================
"""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Literal, TypeAlias

import attrs
import durabletask.worker
import grpc
from durabletask.internal.orchestrator_service_pb2 import (
    GetInstanceRequest,
    HistoryEvent,
    OrchestratorAction,
    OrchestratorRequest,
)
from durabletask.internal.orchestrator_service_pb2_grpc import (  # pyright: ignore[reportMissingTypeStubs]
    TaskHubSidecarServiceStub,
)
from durabletask.internal.shared import get_grpc_channel  # pyright: ignore[reportMissingTypeStubs]
from durabletask.worker import TaskHubGrpcWorker

from dafx_actors.errors import IncompatibleDurableTask

_REGISTRIES = ("orchestrators", "activities", "entities")

TESTED = "1.12"
"""Versions of durabletask that begin so have the names below; see `tests/test_private_names.py`."""

ItemKind: TypeAlias = Literal["orchestratorRequest", "activityRequest", "entityRequest", "entityRequestV2"]
"""What is in a work item, by the names of the protocol."""

_DOES: dict[str, tuple[str, str]] = {
    "orchestratorRequest": ("execute_orchestrator", "cancel_orchestrator"),
    "activityRequest": ("execute_activity", "cancel_activity"),
    "entityRequest": ("execute_entity_batch", "cancel_entity_batch"),
    "entityRequestV2": ("execute_entity_batch", "cancel_entity_batch"),
}
"""How durabletask does a kind of work, and how it gives it back."""

NEEDED = (
    *("host_address", "secure_channel", "interceptors", "owns_channel", "channel", "channel_options", "payload_store"),
    *("data_converter", "async_worker_manager", "is_running"),
    *dict.fromkeys(name for names in _DOES.values() for name in names),
)
"""Names of a worker, without the underscore. If one is missing, the worker is refused."""
FOR_SESSIONS = ("registry", "logger", "exception_properties_provider")
"""Names of a worker without the underscore. If one is missing, orchestrations are replayed."""
OF_CONTEXTS = ("_is_replaying", "_encoded_custom_status", "set_failed", "get_actions")
"""Names of an orchestration's context. If one is missing, orchestrations are replayed."""


def _read(owner: object, name: str) -> Any:
    return getattr(owner, f"_{name}")


@attrs.frozen
class Executor:
    """Tells an orchestration what has happened to it, as durabletask does when it replays one."""

    _process: Callable[[Any, Any], None]

    def tell(self, context: Any, event: Any) -> None:
        """One event of its history."""
        self._process(context, event)


class PrivateWorker:
    """The private side of a durabletask worker."""

    def __init__(self, worker: TaskHubGrpcWorker) -> None:
        """Open the door.

        Raises:
            IncompatibleDurableTask: This version of durabletask was not tested, or lacks a name.
        """
        found = installed()
        missing = tuple(f"_{name}" for name in NEEDED if not hasattr(worker, f"_{name}"))
        if missing or not is_tested(found):
            raise IncompatibleDurableTask(found, f"{TESTED}.x", missing)
        self._worker = worker
        self.version = found
        self.is_strict = False
        """Whether an orchestration that asks in other words than it did ends; see `_recorded.py`."""

    # --- Settings -------------------------------------------------------------------------------------------------

    @property
    def owns_channel(self) -> bool:
        """Whether the worker makes its channels; else it was given one."""
        return bool(_read(self._worker, "owns_channel"))

    @property
    def channel(self) -> grpc.Channel:
        """The channel that it was given."""
        given: grpc.Channel = _read(self._worker, "channel")
        return given

    @property
    def host_address(self) -> str | None:
        """Where it connects to."""
        address: str | None = _read(self._worker, "host_address")
        return address

    @property
    def is_secure(self) -> bool:
        """Whether it does so with TLS."""
        return bool(_read(self._worker, "secure_channel"))

    @property
    def interceptors(self) -> Sequence[Any]:
        """What looks at its calls."""
        return tuple(_read(self._worker, "interceptors") or ())

    @property
    def metadata(self) -> list[tuple[str, str]]:
        """The pairs that its interceptors send with each call, as far as they can be told."""
        return metadata_of(self._worker)

    @property
    def channel_options(self) -> Any:
        """How it makes channels, or None."""
        return _read(self._worker, "channel_options")

    @property
    def payload_store(self) -> Any:
        """Where it keeps what is large, or None."""
        return _read(self._worker, "payload_store")

    @property
    def data_converter(self) -> Any:
        """How it reads and writes values."""
        return _read(self._worker, "data_converter")

    def loaded(self, text: str) -> Any:
        """A value, as durabletask reads it for what takes any."""
        return self.data_converter.deserialize(text, None)

    def channels(self, options: Any) -> Callable[[], tuple[grpc.Channel, bool]]:
        """Makes channels as the worker does, or gives the one that it was given; whether it is to be closed."""
        if not self.owns_channel:
            given = self.channel
            return lambda: (given, False)
        settings = (self.host_address, self.is_secure, _read(self._worker, "interceptors"))
        return lambda: (get_grpc_channel(*settings, self.channel_options or options), True)

    # --- Work -----------------------------------------------------------------------------------------------------

    def intercept(self, interceptor: Any) -> None:
        """Have the worker's stream of work pass through this first."""
        worker: Any = self._worker
        if _read(worker, "channel") is not None:
            setattr(worker, "_channel", grpc.intercept_channel(self.channel, interceptor))  # noqa: B010 - a private name
        setattr(worker, "_interceptors", [interceptor, *self.interceptors])  # noqa: B010 - a private name

    @property
    def is_running(self) -> bool:
        """Whether the worker takes work, so that nothing can be registered any more."""
        return bool(_read(self._worker, "is_running"))

    def registered(self, names: Iterable[str]) -> list[str]:
        """Which of these names something is registered by already."""
        registry = getattr(self._worker, "_registry", None)
        known: list[Mapping[str, Any] | None] = [getattr(registry, kind, None) for kind in _REGISTRIES]
        taken = {name.lower() for each in known for name in each or ()}
        return [name for name in names if name.lower() in taken]

    def use_pool(self, pool: Any) -> None:
        """Have the worker wait for this pool when it stops, in place of its own."""
        manager = _read(self._worker, "async_worker_manager")
        manager.thread_pool.shutdown(wait=False)
        manager.thread_pool = pool

    def leave_queues(self) -> None:
        """Have the worker stop at once: nothing comes into its own queues, which it would look into for a second more.

        Without the name that this needs, it stops after that second.
        """
        manager = _read(self._worker, "async_worker_manager")
        if not hasattr(manager, "_consume_queue"):
            return
        shut_down: Callable[[], None] = manager.shutdown
        wakers: list[Callable[[], object]] = []

        async def consume(_queue: object, _semaphore: object) -> None:
            loop, over = asyncio.get_running_loop(), asyncio.Event()
            wakers.append(functools.partial(loop.call_soon_threadsafe, over.set))
            if not _read(manager, "shutdown"):
                await over.wait()

        def shutdown() -> None:
            shut_down()
            while wakers:
                with suppress(RuntimeError):  # that loop is closed
                    wakers.pop()()

        setattr(manager, "_consume_queue", consume)  # noqa: B010 - a private name
        manager.shutdown = shutdown

    def execute(self, kind: str, request: Any, stub: Any, token: str) -> None:
        """Do what is in a work item, and answer by `stub`."""
        _thread.request, _thread.is_strict = request, self.is_strict
        try:
            _read(self._worker, _DOES[kind][0])(request, stub, token)
        finally:
            _thread.request, _thread.is_strict = None, False

    def give_back(self, kind: str, request: Any, stub: Any, token: str) -> None:
        """Have somebody else do what is in a work item."""
        _read(self._worker, _DOES[kind][1])(request, stub, token)

    # --- Sessions -------------------------------------------------------------------------------------------------

    @functools.cached_property
    def can_keep_orchestrations(self) -> bool:
        """Whether an orchestration can go on where it is; else each is replayed."""
        executor = getattr(durabletask.worker, "_OrchestrationExecutor", None)
        return hasattr(executor, "process_event") and all(hasattr(self._worker, f"_{name}") for name in FOR_SESSIONS)

    def executor_for(self, name: str) -> Executor | None:
        """What goes on with an orchestration of this name; None where it has to be replayed."""
        if not self.can_keep_orchestrations or getattr(_read(self._worker, "registry"), "versioning", None) is not None:
            return None
        executor = _read(durabletask.worker, "OrchestrationExecutor")(
            _read(self._worker, "registry"),
            _read(self._worker, "logger"),
            data_converter=self.data_converter,
            maximum_timer_interval=self._worker.maximum_timer_interval,
            exception_properties_provider=_read(self._worker, "exception_properties_provider"),
        )
        setattr(executor, "_orchestration_name", name)  # noqa: B010 - a private name
        return Executor(executor.process_event)

    def run_episode(self, request: OrchestratorRequest, stub: Any) -> None:
        """Replay an orchestration up to its newest events, and answer by `stub`."""
        self.execute("orchestratorRequest", request, stub, "")


def can_go_on(context: object) -> bool:
    """Whether an orchestration with this context can be told more than its first episode held."""
    return all(hasattr(context, name) for name in OF_CONTEXTS)


def set_replaying(context: object, is_replaying: bool) -> None:
    """Say whether what an orchestration does now was done before."""
    setattr(context, "_is_replaying", is_replaying)  # noqa: B010 - a private name


def custom_status_of(context: object) -> str | None:
    """What an orchestration shows, as JSON text."""
    status: str | None = _read(context, "encoded_custom_status")
    return status


# --- What an orchestration asks, and what it asked -----------------------------------------------------------------

_thread = threading.local()


def history_here() -> Sequence[HistoryEvent]:
    """What had happened to the orchestration whose episode this thread runs; empty where no worker of ours runs it."""
    request = getattr(_thread, "request", None)
    return list(request.pastEvents) if isinstance(request, OrchestratorRequest) else []


def is_strict_here() -> bool:
    """Whether the worker that runs this thread's episode is one of a test."""
    return bool(getattr(_thread, "is_strict", False))


Confirm: TypeAlias = Callable[[int, OrchestratorAction | None], None]


class _Pending(dict[int, OrchestratorAction]):
    """What an orchestration asks and its history has not confirmed: durabletask takes out what it has."""

    def __init__(self, confirm: Confirm) -> None:
        super().__init__()
        self._confirm = confirm

    def pop(self, key: int, default: Any = None) -> Any:
        """Take out what the orchestration asks by a number."""
        action = super().pop(key, default)
        self._confirm(key, action)
        return action


def on_confirmed(context: object, confirm: Confirm) -> bool:
    """Have `confirm` called with each action of an orchestration when its history confirms that; it may raise.

    Args:
        context: durabletask's. It has asked for nothing yet.
        confirm: Takes the number of the action, and the action, or None if there is none of that number.

    Returns:
        False where that cannot be: the orchestration has asked for something, or durabletask is another.
    """
    if getattr(context, "_sequence_number", None) != 0 or getattr(context, "_pending_actions", None) != {}:
        return False
    setattr(context, "_pending_actions", _Pending(confirm))  # noqa: B010 - a private name
    return True


def drop_asked(context: object) -> None:
    """Have an orchestration that is about to fail ask for nothing any more, except that its locks are opened."""
    pending: dict[int, OrchestratorAction] = _read(context, "pending_actions")
    for number, action in list(pending.items()):
        if not action.sendEntityMessage.HasField("entityUnlockSent"):
            del pending[number]
    # It may have ended or begun anew already, where its history goes on: that does not count.
    setattr(context, "_is_complete", False)  # noqa: B010 - a private name


# --- Clients ------------------------------------------------------------------------------------------------------


def channel_of(client: object) -> Any:
    """A client's channel, whose interceptors send the task hub and the token; None where it cannot be told."""
    return getattr(client, "_channel", None)


def host_of(client: object) -> str | None:
    """Where a client connects to, if it makes its own channel."""
    return getattr(client, "_host_address", None) if getattr(client, "_owns_channel", False) else None


def metadata_of(client: object) -> list[tuple[str, str]]:
    """What a client sends with each call, as far as it can be told."""
    interceptors = getattr(client, "_interceptors", None) or ()
    return [pair for each in interceptors for pair in getattr(each, "_metadata", None) or ()]


def stub_of(client: object) -> Any:
    """Durabletask's calls, over a client's own channel; None where it cannot be told."""
    getting = getattr(client, "_get_stub", None)  # of an async client, which makes its channel when it is first used
    return getattr(client, "_stub", None) if getting is None else getting()


def begin_wait_for_end(stub: Any, instance_id: str) -> grpc.Future[Any]:
    """Begin to wait for the end of an orchestration; completes with it, or fails as the call does."""
    request = GetInstanceRequest(instanceId=instance_id, getInputsAndOutputs=False)
    call: grpc.Future[Any] = stub.WaitForInstanceCompletion.future(request)
    return call


def stub_on(channel: grpc.Channel) -> Any:
    """Durabletask's calls, over a channel."""
    return TaskHubSidecarServiceStub(channel)  # type: ignore[no-untyped-call]


# --- The version --------------------------------------------------------------------------------------------------


def installed() -> str:
    """The version of durabletask."""
    # Not at the top: the package that knows takes long to import, and is asked once.
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("durabletask")
    except PackageNotFoundError:  # in a bundle without metadata: the names decide alone
        return f"{TESTED}.unknown"


def is_tested(found: str) -> bool:
    """Whether this version is one of those that were tested."""
    return found.startswith(f"{TESTED}.")
