"""The parts of a task hub by themselves: what each asks of the others, it emits."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from google.protobuf.wrappers_pb2 import StringValue

from dafx_actors.scheduler._ground.clock import SystemClock
from dafx_actors.scheduler._ground.proto import LARGE, Status, pb
from dafx_actors.scheduler._ground.records import Activity, Operation, Orchestration, Start
from dafx_actors.scheduler._hub.delivery import Delivery
from dafx_actors.scheduler._hub.effects import Answer, Effect, EndBelow, ForEntities, ReleaseLocksOf
from dafx_actors.scheduler._hub.entities import Entities
from dafx_actors.scheduler._hub.ground import Ground
from dafx_actors.scheduler._hub.orchestrations import Orchestrations
from dafx_actors.scheduler._hub.timers import Timers
from dafx_actors.scheduler._rules.episodes import Ended, RequestLock, RunActivity, TellEntity
from dafx_actors.scheduler.storage.committer import Changes
from dafx_actors.scheduler.storage.store import Store

pytestmark = pytest.mark.anyio
COUNTER = "@counter@one"


class Room:
    """A ground to stand on, and what was emitted."""

    def __init__(self, store: Store) -> None:
        clock = SystemClock()
        self.emitted: list[Effect] = []
        self.changes: Changes = store.committer.begin()
        delivery = Delivery(clock, store.ids, lambda work, token: None)
        self.ground = Ground(1, store, clock, Timers(clock, lambda due: None), delivery)

    def emit(self, _: Changes, effect: Effect) -> None:
        self.emitted.append(effect)


@pytest.fixture
async def room() -> AsyncIterator[Room]:
    async with Store(None, failed=lambda error: None) as store:
        made = Room(store)
        yield made
        store.committer.submit(made.changes)


def an_orchestration(room: Room) -> Orchestration:
    def unheard(_: Orchestration) -> None: ...

    orchestrations = Orchestrations(room.ground, room.emit, unheard)
    start = Start(name="order")
    return orchestrations.create(room.changes, "o1", start)


async def test_an_entity_answers_without_knowing_who_asked(room: Room) -> None:
    entities = Entities(room.ground, room.emit)
    operation = Operation(id=7, event=b"", request_id="r1", caller=3, caller_instance="o1", caller_execution="e1")
    entities.tell(room.changes, COUNTER, operation)
    entity = entities.find(COUNTER)
    assert entity is not None
    entities.render(entity, "token")
    done = pb.OperationResult(success=pb.OperationResultSuccess(result=StringValue(value="1")))
    entities.settled(room.changes, entity, pb.EntityBatchResult(results=[done], entityState=StringValue(value="1")))
    (answer,) = room.emitted
    assert isinstance(answer, Answer)
    assert (answer.orchestration, answer.execution_id, entity.state) == (3, "e1", "1")


async def test_a_lock_is_granted_by_an_answer_and_given_back(room: Room) -> None:
    entities, it = Entities(room.ground, room.emit), an_orchestration(room)
    entities.request_lock(room.changes, it, RequestLock(section="s1", entities=(COUNTER,)))
    assert [type(effect) for effect in room.emitted] == [Answer]
    entity = entities.find(COUNTER)
    assert entity is not None
    assert entity.lock is not None
    assert entities.release_orphaned_locks(room.changes, lambda row: row == it.id) == 0
    assert entities.release_orphaned_locks(room.changes, lambda row: False) == 1
    assert entity.lock is None


async def test_a_call_of_what_is_no_entity_is_answered(room: Room) -> None:
    entities, it = Entities(room.ground, room.emit), an_orchestration(room)
    asked: Any = {"entity_id": "nonsense", "request_id": "r1", "event": b"", "called": True, "due": None}
    entities.told_by(room.changes, it, TellEntity(**asked))
    assert [type(effect) for effect in room.emitted] == [Answer]


async def test_an_orchestration_asks_entities_and_lets_go_of_them(room: Room) -> None:
    told: list[Orchestration] = []
    orchestrations = Orchestrations(room.ground, room.emit, told.append)
    start = Start(name="order")
    it = orchestrations.create(room.changes, "o1", start)
    asked = RequestLock(section="s1", entities=(COUNTER,))
    orchestrations.carry_out(room.changes, it, asked)
    orchestrations.finish(room.changes, it, Ended(status=Status.COMPLETED, output="1", failure=None), at=5)
    assert room.emitted == [ForEntities(it, asked), ReleaseLocksOf(it.id)]


async def test_a_record_with_a_large_activity_stays_in_memory(room: Room) -> None:
    orchestrations = Orchestrations(room.ground, room.emit, lambda it: None)
    it = orchestrations.create(room.changes, "o1", Start(name="order"))
    asked: Any = {"task_id": 1, "name": "look", "version": None, "request": b"x" * LARGE}
    orchestrations.carry_out(room.changes, it, RunActivity(**asked))
    (row,) = it.activities
    assert (it.large, it.idle) == ({row}, False)
    activity = Activity(id=row, orchestration=it.id, instance_id="o1", **asked)
    orchestrations.activity_answered(room.changes, activity, b"")
    it.inbox.clear()
    assert (it.large, it.idle) == (set(), True)
    orchestrations.offer_stored(activity)
    assert it.large == {row}


async def test_what_is_below_a_terminated_orchestration_is_left_to_others(room: Room) -> None:
    orchestrations = Orchestrations(room.ground, room.emit, lambda it: None)
    start = Start(name="order")
    it = orchestrations.create(room.changes, "o1", start)
    orchestrations.terminate(room.changes, it, "enough", recurse=True)
    assert room.emitted == [EndBelow(it.id, "enough"), ReleaseLocksOf(it.id)]
    assert it.status == Status.TERMINATED
