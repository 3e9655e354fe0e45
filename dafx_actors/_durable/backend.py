"""A scheduler as a client needs it: each thing that is asked of it, over durabletask's client, sync or async."""

from __future__ import annotations

import asyncio
import functools
import json
import math
from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import anyio
import anyio.to_thread
import attrs
import grpc
import grpc.aio
from durabletask import history
from durabletask.client import (
    EntityQuery,
    OrchestrationQuery,
    OrchestrationState,
    OrchestrationStatus,
    parse_orchestration_state,
)
from durabletask.entities import EntityInstanceId
from durabletask.internal.client_helpers import (  # pyright: ignore[reportMissingTypeStubs]
    build_query_entities_req,
    build_query_instances_req,
)
from durabletask.internal.orchestrator_service_pb2 import (
    ORCHESTRATION_STATUS_FAILED,
    ORCHESTRATION_STATUS_TERMINATED,
    OrchestrationIdReusePolicy,
)
from google.protobuf.wrappers_pb2 import StringValue

from dafx_actors._durable import credentials as _credentials
from dafx_actors._durable.calls import Calls, Sent, apart, code_of, details_of, forget, within
from dafx_actors._durable.connect import TRANSPORT, Address, DurableTaskClient
from dafx_actors._durable.connections import Connections
from dafx_actors._durable.private import stub_of
from dafx_actors._durable.tokens import is_loopback
from dafx_actors.errors import SchedulerRefused, SchedulerUnreachable
from dafx_actors.transcript import Json

if TYPE_CHECKING:
    from dafx_actors._durable.admin import Hosted
    from dafx_actors._durable.words import NewWords

T = TypeVar("T")

Metadata: TypeAlias = Sequence[tuple[str, str]]

ENDED = (OrchestrationStatus.COMPLETED, OrchestrationStatus.FAILED, OrchestrationStatus.TERMINATED)
"""The statuses of an orchestration that is over."""
MARGIN = 0.25
"""Seconds that a scheduler has to say that a poll is over, before it is not waited for any more."""
_NOTHING_DONE = (
    history.OrchestratorStartedEvent,
    history.OrchestratorCompletedEvent,
    history.ExecutionStartedEvent,
    history.ExecutionSuspendedEvent,
    history.ExecutionResumedEvent,
    history.ExecutionTerminatedEvent,
    history.ExecutionCompletedEvent,
    history.EventRaisedEvent,
)
"""What is in the history of an orchestration that no worker has begun: what others did to it."""
_SILENCE = 10.0
"""Seconds after which a poll that gRPC does not end by itself has got lost."""


_REPLACED = {
    OrchestrationStatus.FAILED: ORCHESTRATION_STATUS_FAILED,
    OrchestrationStatus.TERMINATED: ORCHESTRATION_STATUS_TERMINATED,
}


@attrs.define(eq=False)
class _Shared:
    """A question to the scheduler that several wait for: those who begin at the same time ask it once."""

    task: asyncio.Future[Any]
    waiting: int = 0


@attrs.frozen
class StoredEntity:
    """An entity of a list."""

    id: str
    """`@name@key`."""
    modified_at: datetime
    state: str | None
    """As JSON text; None where it has none, where none was asked for, and where it is too large for a list."""


def _wrapped(token: str) -> Any:
    return StringValue(value=token) if token else None


def _next(page: Any, before: str) -> str:
    """What names the next page; a scheduler that names the same one again has no more."""
    token = str(page.continuationToken.value)
    return "" if token in {"", "0", before} else token


class Backend:
    """A scheduler as a client needs it: async, patient, and with errors that say something."""

    def __init__(
        self,
        client: DurableTaskClient | Callable[[], DurableTaskClient],
        where: Address,
        *,
        credential: Any = None,
        sent: Any = None,
    ) -> None:
        """Make it.

        Args:
            client: Of durabletask, sync or async; or what makes an async one, for each event loop that needs one.
            where: What it is connected to.
            credential: To close with it.
            sent: The credential that the client sends, for what is asked beside it.
        """
        self._sent = sent
        self._asking: dict[asyncio.AbstractEventLoop, _Shared] = {}
        self.where = where
        self._connections = Connections(client, where.endpoint)
        self._longest_wait = 60.0 if self._connections.is_async else 10.0
        self._credential = credential
        self._calls = Calls(where.endpoint, self._connections.is_connected, self._connections.is_there)

    @property
    def _client(self) -> Any:
        """Durabletask's client of the running event loop."""
        return self._connections.client

    async def close(self) -> None:
        """Close the client's channels, and our own. Calls that wait raise `SchedulerUnreachable`."""
        self._calls.close()
        await self._connections.close()
        if self._credential is not None:
            await _credentials.close(self._credential)

    def silence(self, timeout: float | None, sent: Sent | None = None) -> SchedulerUnreachable:
        """What is raised where nothing was answered within `timeout`."""
        arrived = "; what was sent may have arrived" if sent is not None and sent.maybe else ""
        return SchedulerUnreachable(self.where.endpoint, f"no answer within {timeout or 0.0:g} s{arrived}")

    def bounded(self, timeout: float | None, sent: Sent | None = None) -> AbstractContextManager[None]:
        """Bound the calls that are made inside, outages included: `SchedulerUnreachable` where they are not answered.

        Args:
            timeout: Seconds; None: without a bound.
            sent: Whether what is sent inside may have arrived; the error says so.
        """
        return within(timeout, lambda: self.silence(timeout, sent))

    async def hosted(self) -> Hosted | None:
        """What the connected workers take, where the scheduler can tell: the embedded one, at an address known to us.

        Raises:
            SchedulerUnreachable: Nothing answers.
        """
        # A service of the embedded scheduler alone: programs that never ask need not import any of it.
        from dafx_actors._durable.admin import hosted_async

        loop = asyncio.get_running_loop()
        if (asked := self._asking.get(loop)) is None:
            asked = self._asking[loop] = _Shared(asyncio.ensure_future(self._ask(hosted_async)))
            asked.task.add_done_callback(forget)
        asked.waiting += 1
        try:
            await asyncio.wait({asked.task})
        finally:
            asked.waiting -= 1
            if asked.task.done() or not asked.waiting:
                asked.task.cancel()
                if self._asking.get(loop) is asked:
                    del self._asking[loop]
        if asked.task.cancelled():
            raise SchedulerUnreachable(self.where.endpoint, "the connection was closed")
        answer: Hosted | None = asked.task.result()
        return answer

    async def look(self, seen: Mapping[str, tuple[str, int]], seconds: float) -> Mapping[str, NewWords] | None:
        """What is new of what turns say just now, where the scheduler shows that: the embedded one, as of `hosted`.

        Args:
            seen: Of each turn the attempt that was seen last, and how many characters of it.
            seconds: How long the poll may be.

        Raises:
            SchedulerUnreachable: Nothing answers.
        """
        from dafx_actors._durable.words import look_async

        return await self._ask(functools.partial(look_async, seen=seen, seconds=seconds))

    async def start(
        self,
        name: str,
        instance_id: str,
        input: Json,
        *,
        replaces: OrchestrationStatus | None = None,
        sent: Sent | None = None,
    ) -> bool:
        """Start an orchestration; False where the id exists already. Sent again, with the same id, when it got lost.

        Args:
            name: Of the orchestration.
            instance_id: Names it.
            input: What it is given.
            replaces: Take the place of one of that id that has ended so.
            sent: Told whether it may have arrived.

        Raises:
            SchedulerUnreachable: Nothing answers.
        """
        policy = None if replaces is None else OrchestrationIdReusePolicy(replaceableStatus=[_REPLACED[replaces]])
        starting = functools.partial(
            self._call,
            "schedule_new_orchestration",
            name,
            input=input,
            instance_id=instance_id,
            reuse_id_policy=policy,
        )
        try:
            await self._calls.patiently(starting, sent=sent)
        except grpc.RpcError as error:
            if code_of(error) is not grpc.StatusCode.ALREADY_EXISTS:
                raise
            return False
        return True

    async def wait(self, instance_id: str, seconds: float, *, at_most: float = math.inf) -> OrchestrationState | None:
        """Wait for an orchestration to end, one long poll long; None where it has not ended by then.

        Args:
            instance_id: The orchestration.
            seconds: How long the poll may be.
            at_most: Seconds after which it is over, also where the transport loses the poll and it is made again.

        Raises:
            SchedulerUnreachable: Nothing answers.
        """
        poll = min(seconds, self._longest_wait)
        waiting = functools.partial(self._call, "wait_for_orchestration_completion", instance_id, timeout=poll)
        with anyio.move_on_after(at_most + MARGIN):
            try:
                return await self._calls.patiently(waiting, silence=poll + _SILENCE)
            except TimeoutError:
                pass
        return None

    async def state(self, instance_id: str) -> OrchestrationState | None:
        """An orchestration with its input and output, or None where there is none.

        Raises:
            SchedulerUnreachable: Nothing answers.
        """
        return await self._calls.patiently(functools.partial(self._call, "get_orchestration_state", instance_id))

    async def terminate(self, instance_id: str, reason: Json, sent: Sent | None = None) -> None:
        """End an orchestration, wherever it stands.

        Raises:
            SchedulerUnreachable: Nothing answers.
        """
        ending = functools.partial(self._call, "terminate_orchestration", instance_id, output=reason)
        await self._calls.patiently(ending, sent=sent)

    async def purge(self, instance_id: str) -> bool:
        """Remove an orchestration that has ended, and those below it that have; False where there is none.

        Raises:
            SchedulerUnreachable: Nothing answers.
        """
        purged = await self._calls.patiently(functools.partial(self._call, "purge_orchestration", instance_id))
        return bool(purged.deleted_instance_count)

    async def suspend(self, instance_id: str, reason: str, sent: Sent | None = None) -> None:
        """Have an orchestration rest where it stands, until `resume`.

        Raises:
            SchedulerUnreachable: Nothing answers.
        """
        suspending = functools.partial(self._call, "suspend_orchestration", instance_id, reason=reason)
        await self._calls.patiently(suspending, sent=sent)

    async def resume(self, instance_id: str, reason: str, sent: Sent | None = None) -> None:
        """Have an orchestration go on that was suspended.

        Raises:
            SchedulerUnreachable: Nothing answers.
        """
        resuming = functools.partial(self._call, "resume_orchestration", instance_id, reason=reason)
        await self._calls.patiently(resuming, sent=sent)

    async def page_of_instances(self, query: OrchestrationQuery, token: str) -> tuple[list[OrchestrationState], str]:
        """Some orchestrations, and what names the next of them; empty where there are no more.

        Args:
            query: Which; its `max_instance_count` is the size of the page.
            token: What named these; empty for the first.

        Raises:
            SchedulerUnreachable: Nothing answers.
            SchedulerRefused: The token is none of this scheduler.
        """
        page = await self._page("QueryInstances", build_query_instances_req(query, _wrapped(token)))
        if page is None:
            everything = functools.partial(self._call, "get_all_orchestration_states", query)
            return await self._calls.patiently(everything, silence=math.inf), ""
        return [parse_orchestration_state(each) for each in page.orchestrationState], _next(page, token)

    async def page_of_entities(self, query: EntityQuery, token: str) -> tuple[list[StoredEntity], str]:
        """Some entities, and what names the next of them; empty where there are no more.

        Args:
            query: Which; with its `page_size`. One whose state is too large for a page comes without it.
            token: What named these; empty for the first.

        Raises:
            SchedulerUnreachable: Nothing answers.
            SchedulerRefused: The token is none of this scheduler.
        """
        page = await self._page("QueryEntities", build_query_entities_req(query, _wrapped(token)))
        if page is None:
            everything = functools.partial(self._call, "get_all_entities", query)
            found = await self._calls.patiently(everything, silence=math.inf)
            return [StoredEntity(str(each.id), each.last_modified, each.get_state() or None) for each in found], ""
        entities = [
            StoredEntity(each.instanceId, each.lastModifiedTime.ToDatetime(UTC), each.serializedState.value or None)
            for each in page.entities
        ]
        return entities, _next(page, token)

    async def _page(self, method: str, request: Any) -> Any:
        """Ask for a page; None where durabletask's client has no way to."""

        async def ask() -> Any:
            connection = await self._connections.here()
            with connection.call():
                stub = stub_of(connection.client)
                if stub is None:
                    return None
                call = functools.partial(getattr(stub, method), request)
                if self._connections.is_async:
                    return await apart(call)
                return await anyio.to_thread.run_sync(call, abandon_on_cancel=True, limiter=connection.threads)

        with self.refusing():
            return await self._calls.patiently(ask)

    @contextmanager
    def refusing(self) -> Generator[None]:
        """Say in our own words that the scheduler has answered a call inside with a refusal.

        Raises:
            SchedulerRefused: It has.
        """
        try:
            yield
        except grpc.RpcError as error:
            code = code_of(error)
            raise SchedulerRefused(
                self.where.endpoint, "UNKNOWN" if code is None else code.name, details_of(error)
            ) from error

    async def stats(self) -> dict[str, Any] | None:
        """Figures of the scheduler, where it is the embedded one, at an address known to us.

        Raises:
            SchedulerUnreachable: Nothing answers.
        """
        from dafx_actors._durable.admin import stats_async

        with self.refusing():
            return await self._ask(stats_async)

    async def back_up(self, name: str, sent: Sent) -> tuple[Path, int] | None:
        """Have the scheduler copy its database into a new file; None where it is not the embedded one.

        Raises:
            SchedulerUnreachable: Nothing answers; the copy may be made all the same.
            SchedulerRefused: It could not.
        """
        from dafx_actors._durable.admin import back_up_async

        with self.refusing():
            return await self._ask(
                functools.partial(back_up_async, name=name), again=False, sent=sent, silence=math.inf
            )

    async def ended(self, prefix: str) -> list[OrchestrationState]:
        """The orchestrations whose ids begin so and that have ended, without their inputs and outputs.

        Raises:
            SchedulerUnreachable: Nothing answers.
        """
        query = OrchestrationQuery(instance_id_prefix=prefix, runtime_status=list(ENDED))
        reading = functools.partial(self._call, "get_all_orchestration_states", query)
        found: list[OrchestrationState] = await self._calls.patiently(reading, silence=math.inf)
        return found

    async def withdraw(self, instance_id: str, output: Json) -> bool:
        """End an orchestration, with that output, which no worker has begun; False where one has.

        Where the scheduler does not see to that itself, one that a worker begins in this moment may be ended, too:
        `was_begun` tells.

        Raises:
            SchedulerUnreachable: Nothing answers; it may have been ended.
        """
        from dafx_actors._durable.admin import withdraw_async

        withdrawing = functools.partial(withdraw_async, instance_id=instance_id, output=json.dumps(output))
        withdrawn = await self._ask(withdrawing)
        if withdrawn is not None:
            return withdrawn
        state = await self.state(instance_id)  # as late as can be
        if state is None or state.runtime_status is not OrchestrationStatus.PENDING:
            return False
        await self.terminate(instance_id, output)
        return True

    async def was_begun(self, instance_id: str) -> bool:
        """Whether an orchestration that has ended had done anything, as far as anybody knows.

        Raises:
            SchedulerUnreachable: Nothing answers.
        """
        try:
            events = await self.history(instance_id)
        except grpc.RpcError:
            return True  # nobody knows
        return any(not isinstance(event, _NOTHING_DONE) for event in events)

    async def history(self, instance_id: str) -> list[history.HistoryEvent]:
        """What was recorded of an orchestration.

        Raises:
            SchedulerUnreachable: Nothing answers.
            grpc.RpcError: There is none, or the scheduler does not show it.
        """
        reading = functools.partial(self._call, "get_orchestration_history", instance_id)
        events: list[history.HistoryEvent] = await self._calls.patiently(reading)
        return events

    async def _ask(self, asking: Callable[[grpc.aio.Channel, Metadata], Awaitable[T]], **how: Any) -> T | None:
        """Ask the embedded scheduler, at an address known to us, what other backends do not know."""
        if not self.where.endpoint.lower().startswith(("http://", "grpc://")):
            return None
        metadata = [("taskhub", self.where.task_hub)]
        if self._sent is not None and is_loopback(self.where.endpoint):
            token = await _credentials.on_thread(self._sent).get_token(_credentials.scope_of_schedulers())
            metadata.append(("authorization", f"Bearer {token.token}"))

        async def ask() -> T:
            connection = await self._connections.here()
            if connection.telling is None:
                target = self.where.endpoint.split("://", 1)[1]
                connection.telling = grpc.aio.insecure_channel(target, options=TRANSPORT)
            with connection.call():
                return await apart(functools.partial(asking, connection.telling, metadata))

        return await self._calls.patiently(ask, **how)

    async def signal(self, entity: EntityInstanceId, operation: str, input: Json) -> None:
        """Send an operation to an entity. Not repeated when it got lost: it might arrive twice.

        Raises:
            SchedulerUnreachable: It may or may not have arrived.
        """
        signalling = functools.partial(self._call, "signal_entity", entity, operation, input)
        await self._calls.patiently(signalling, again=False)

    async def raise_event(self, instance_id: str, name: str, data: Json, sent: Sent | None = None) -> None:
        """Raise an event for an orchestration. Not repeated when it got lost: it might arrive twice.

        Raises:
            SchedulerUnreachable: Nothing answered; the event may have arrived.
        """
        raising = functools.partial(self._call, "raise_orchestration_event", instance_id, name, data=data)
        await self._calls.patiently(raising, again=False, sent=sent)

    async def thread(self, entity_id: EntityInstanceId) -> Json:
        """The stored document of a thread, or None where there is none.

        Raises:
            SchedulerUnreachable: Nothing answers.
        """
        found = await self._calls.patiently(functools.partial(self._call, "get_entity", entity_id))
        return None if found is None else found.get_typed_state()

    async def threads(self, entity: str) -> dict[str, Json]:
        """The stored documents of all threads of an entity, by their keys.

        Raises:
            SchedulerUnreachable: Nothing answers.
        """
        # Some schedulers call a thread transient while an operation waits for it, and would leave it out.
        query = EntityQuery(instance_id_starts_with=f"@{entity.lower()}@", include_transient=True)
        # Many calls, a page each.
        reading = functools.partial(self._call, "get_all_entities", query)
        found = await self._calls.patiently(reading, silence=math.inf)
        return {each.id.key: each.get_typed_state() for each in found}

    async def _call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        connection = await self._connections.here()
        call = functools.partial(getattr(connection.client, method), *args, **kwargs)
        with connection.call():
            if self._connections.is_async:
                return await apart(call)
            return await anyio.to_thread.run_sync(call, abandon_on_cancel=True, limiter=connection.threads)
