"""The entities of a task hub: carries out what `_rules/batches.py` decides, in memory and in a change."""

from __future__ import annotations

import functools
import logging
import sys
import uuid
from collections import deque
from typing import TYPE_CHECKING

from dafx_actors.scheduler._ground import events as _events
from dafx_actors.scheduler._ground.proto import LARGE, entity_item, pb, text
from dafx_actors.scheduler._ground.records import Entity, Lock, LockRequest, Operation
from dafx_actors.scheduler._hub.effects import Answer, Emit
from dafx_actors.scheduler._hub.idle import Evicted, IdleCache
from dafx_actors.scheduler._rules import batches as _batches
from dafx_actors.scheduler._rules.filters import Lane
from dafx_actors.scheduler.storage import tables

if TYPE_CHECKING:
    from collections.abc import Callable

    from dafx_actors.scheduler._ground.records import Orchestration
    from dafx_actors.scheduler._hub.delivery import Rendered
    from dafx_actors.scheduler._hub.ground import Ground
    from dafx_actors.scheduler._rules.batches import BatchVerdict
    from dafx_actors.scheduler._rules.episodes import ReleaseLock, RequestLock, TellEntity
    from dafx_actors.scheduler.storage.committer import Changes

logger = logging.getLogger("dafx_actors.scheduler._entities")

_MOST_IDLE = 5_000
_HEAVIEST_IDLE = 128 * 2**20
"""So that one of the largest stays: to read it from the disk holds the loop."""
_RECORD_WEIGHT = 500


class Entities:
    """Every method that takes `changes` adds to them, and is carried out in memory at once."""

    def __init__(self, ground: Ground, emit: Emit) -> None:
        """Know none yet.

        Args:
            ground: of the task hub.
            emit: carries out what concerns others.
        """
        self._ground = ground
        self._emit = emit
        self._by_name: dict[str, Entity] = {}
        self._requests: dict[int, LockRequest] = {}
        """Who waits for locks, in order."""
        self._locked: dict[str, Entity] = {}
        self._idle: IdleCache[str] = IdleCache(self._evict, most=_MOST_IDLE, heaviest=_HEAVIEST_IDLE)
        self._evicted: Evicted[Entity] = Evicted()

    # --- finding -------------------------------------------------------------------------------------------------

    def find(self, entity_id: str) -> Entity | None:
        """What is known of an entity, be it that it has no state."""
        found = self._by_name.get(entity_id)
        if found is None:
            found = self._ground.store.entity(self._ground.hub, entity_id)
            if found is not None:
                found = self._by_name[entity_id] = self._evicted.same(found.id, found)
                if found.lock is not None:
                    self._locked[entity_id] = found
                if found.idle:
                    self._idle.put(entity_id, _weight(found))
        return found

    def _find_or_make(self, entity_id: str) -> Entity:
        found = self.find(entity_id)
        if found is None:
            found = Entity(id=self._ground.ids.row(), entity_id=entity_id, modified=self._ground.clock.now())
            self._by_name[entity_id] = found
        return found

    def __len__(self) -> int:
        return len(self._by_name)

    def _evict(self, entity_id: str) -> None:
        found = self._by_name.get(entity_id)
        if found is not None and found.idle and found.dirty <= self._ground.store.committer.committed:
            del self._by_name[entity_id]
            if not found.empty:
                self._evicted.add(found.id, found)

    def forget(self) -> None:
        """Drop all from memory; what is on disk counts."""
        self._by_name.clear()
        self._requests.clear()
        self._locked.clear()
        self._idle.clear()
        self._evicted.clear()

    def load(self, requests: list[LockRequest]) -> None:
        """Who waits for locks, from the store."""
        self._requests = {request.id: request for request in requests}

    def touch(self, changes: Changes, entity: Entity) -> None:
        """It is part of these changes: look after it when they are on disk."""
        known = self._by_name.setdefault(entity.entity_id, entity)
        assert known is entity, "one record stands for an entity"
        if entity.dirty != changes.seq:
            entity.dirty = changes.seq
            self._idle.take(entity.entity_id)
            changes.then(lambda: self._committed(entity, changes.seq))

    def _committed(self, entity: Entity, seq: int) -> None:
        self.offer(entity)
        if entity.dirty > seq or not entity.idle:
            return
        if entity.empty:
            self._evict(entity.entity_id)
        else:
            self._idle.put(entity.entity_id, _weight(entity))

    def offer(self, entity: Entity) -> None:
        """Queue its next batch, if there is one."""
        if not entity.queued and _batches.runnable(entity):
            entity.queued = True
            self._idle.take(entity.entity_id)
            self._ground.delivery.offer(entity, Lane(kind="entity", name=_batches.name_of(entity.entity_id)))

    def _write(self, changes: Changes, entity: Entity) -> None:
        """Keep its row as it is now, or remove it if nothing is left to remember."""
        if not entity.empty:
            tables.write_entity(changes, self._ground.hub, entity)
            entity.stored = True
        elif entity.stored:
            tables.delete_entity(changes, entity.id)
            entity.stored = False
        self.touch(changes, entity)

    # --- being told ----------------------------------------------------------------------------------------------

    def tell(self, changes: Changes, entity_id: str, operation: Operation) -> None:
        """Put an operation into an entity's mailbox. Its id must be younger than what is in there."""
        entity = self._find_or_make(entity_id)
        entity.mailbox.append(operation)
        if not entity.stored:
            self._write(changes, entity)
        tables.insert_operation(changes, entity.id, operation)
        self.touch(changes, entity)

    def tell_at(self, changes: Changes, entity_id: str, operation: Operation, due: int | None) -> None:
        """The same, at a time; now, if that has passed."""
        if due is None or due <= self._ground.clock.now():
            self.tell(changes, entity_id, operation)
            return
        timer = operation.id
        tables.insert_delayed_operation(changes, timer, self._ground.hub, due, entity_id, operation)
        changes.then(lambda: self._ground.add_timer(due, timer, tables.TIMER_TELLS, None, None))

    def told_by(self, changes: Changes, it: Orchestration, effect: TellEntity) -> None:
        """An orchestration calls or signals an entity."""
        operation = Operation(
            id=self._ground.ids.row(),
            event=effect.event,
            request_id=effect.request_id,
            caller=it.id if effect.called else None,
            caller_instance=it.instance_id if effect.called else None,
            caller_execution=it.execution_id if effect.called else None,
        )
        problem = _batches.problem_with(effect.entity_id)
        if problem is None:
            self.tell_at(changes, effect.entity_id, operation, effect.due)
        elif effect.called:
            failure = pb.TaskFailureDetails(errorType="InvalidEntityId", errorMessage=problem, isNonRetriable=True)
            event = _events.operation_failed(self._ground.clock.now(), effect.request_id, failure)
            self._emit(changes, Answer(it.id, it.execution_id, event))
        else:
            logger.warning("A signal of %s was dropped: %s", it.instance_id, problem)

    # --- batches -------------------------------------------------------------------------------------------------

    def render(self, entity: Entity, token: str, *, at_once: bool = False) -> Rendered | None:
        """The work item of its next batch, which is now out under this token; what makes a large one, on a thread."""
        entity.queued = False
        entity.batch = _batches.runnable(entity)
        if not entity.batch:
            return None
        entity.lease = token
        operations = [operation.event for operation in entity.batch]
        make = functools.partial(
            entity_item, token=token, entity_id=entity.entity_id, state=entity.state, operations=operations
        )
        is_large = len(entity.state or "") + sum(map(len, operations)) >= LARGE
        return make if is_large and not at_once else make()

    def taken_back(self, entity: Entity) -> None:
        """Its batch is not out any more, and has to be given again."""
        entity.lease, entity.batch = None, ()
        entity.queued = True

    def judge(self, entity: Entity, result: pb.EntityBatchResult) -> BatchVerdict:
        """What a worker's answer for its batch changes; reads what does not change while that is out."""
        now = max(self._ground.clock.now(), entity.modified)
        return _batches.settle(entity.batch, result, now, lambda: str(uuid.uuid4()))

    def settled(
        self,
        changes: Changes,
        entity: Entity,
        result: pb.EntityBatchResult,
        verdict: BatchVerdict | None = None,
    ) -> None:
        """A worker has answered for its batch; `verdict` is what was made of that before, on a thread."""
        now = max(self._ground.clock.now(), entity.modified)
        verdict = verdict or self.judge(entity, result)
        entity.lease, entity.batch = None, ()
        done = {operation.id for operation in verdict.done}
        while entity.mailbox and entity.mailbox[0].id in done:
            entity.mailbox.popleft()
        if entity.mailbox and done:
            entity.mailbox = deque(operation for operation in entity.mailbox if operation.id not in done)
        for row in done:
            tables.delete_operation(changes, entity.id, row)
        entity.state, entity.modified = verdict.state, now
        for answer in verdict.answers:
            operation = answer.operation
            assert operation.caller is not None, "only calls are answered"
            assert operation.caller_execution is not None, "every call names its execution"
            self._emit(changes, Answer(operation.caller, operation.caller_execution, answer.event))
        for effect in verdict.effects:
            if isinstance(effect, _batches.Signal):
                self._signal(changes, effect)
            else:
                self._emit(changes, effect)
        self._write(changes, entity)
        self._grant(changes)
        if not (verdict.answers or verdict.effects or entity.mailbox):
            changes.follow = True  # signals only: nobody waits, and whoever sent them is at its next step

    def fail(self, changes: Changes, entity: Entity, failure: pb.TaskFailureDetails) -> None:
        """Its batch cannot be done by anybody: callers are told, signals come to nothing, its state stays."""
        logger.error("%d operations of %s have failed: %s", len(entity.batch), entity.entity_id, failure.errorMessage)
        failed = pb.OperationResult(failure=pb.OperationResultFailure(failureDetails=failure))
        result = pb.EntityBatchResult(results=[failed] * len(entity.batch), entityState=text(entity.state))
        self.settled(changes, entity, result)

    def _signal(self, changes: Changes, signal: _batches.Signal) -> None:
        problem = _batches.problem_with(signal.entity_id)
        if problem is not None:
            logger.warning("A signal of an entity was dropped: %s", problem)
            return
        operation = Operation(id=self._ground.ids.row(), event=signal.event, request_id=signal.request_id)
        self.tell_at(changes, signal.entity_id, operation, signal.due)

    # --- locks ---------------------------------------------------------------------------------------------------

    def request_lock(self, changes: Changes, it: Orchestration, effect: RequestLock) -> None:
        """An orchestration asks to hold several entities."""
        request = LockRequest(
            id=self._ground.ids.row(),
            section=effect.section,
            holder=it.id,
            holder_instance=it.instance_id,
            holder_execution=it.execution_id,
            entities=effect.entities,
        )
        self._requests[request.id] = request
        tables.insert_lock_request(changes, self._ground.hub, request)
        self._grant(changes)

    def release_lock(self, changes: Changes, effect: ReleaseLock) -> None:
        """The holder of an entity lets it go."""
        entity = self.find(effect.entity_id)
        if entity is not None and entity.lock is not None and entity.lock.section == effect.section:
            self._release(changes, entity)
            self._grant(changes)

    def release_locks_of(self, changes: Changes, orchestration: int) -> None:
        """The orchestration of this row is over: it holds nothing and waits for nothing."""
        if not self._requests and not self._locked:
            return
        for request in [request for request in self._requests.values() if request.holder == orchestration]:
            del self._requests[request.id]
            tables.delete_lock_request(changes, request.id)
        for entity in list(self._locked.values()):
            if entity.lock is not None and entity.lock.holder == orchestration:
                self._release(changes, entity)
        self._grant(changes)

    def release_orphaned_locks(self, changes: Changes, is_live: Callable[[int], bool]) -> int:
        """Let go of entities whose holder is not there or has ended, as `is_live` says of its row. Returns how many."""
        released = 0
        for entity in list(self._locked.values()):
            assert entity.lock is not None, "it is locked"
            if not is_live(entity.lock.holder):
                self._release(changes, entity)
                released += 1
        if released:
            self._grant(changes)
        return released

    def _release(self, changes: Changes, entity: Entity) -> None:
        entity.lock = None
        self._locked.pop(entity.entity_id, None)
        self._write(changes, entity)

    def _grant(self, changes: Changes) -> None:
        """Grant what can be granted now."""
        if not self._requests:
            return
        for request in _batches.grants(self._requests.values(), self.find):
            del self._requests[request.id]
            tables.delete_lock_request(changes, request.id)
            for entity_id in request.entities:
                entity = self._find_or_make(entity_id)
                entity.lock = Lock(
                    section=request.section, holder=request.holder, holder_instance=request.holder_instance
                )
                self._locked[entity_id] = entity
                self._write(changes, entity)
            event = _events.lock_granted(self._ground.clock.now(), request.section)
            self._emit(changes, Answer(request.holder, request.holder_execution, event))


def _weight(entity: Entity) -> int:
    return _RECORD_WEIGHT + sys.getsizeof(entity.state)
