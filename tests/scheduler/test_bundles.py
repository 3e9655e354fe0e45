"""Work and answers on one stream, spoken by hand: what a worker of ours may count on, and what others can send."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

import anyio
import grpc
import grpc.aio
import pytest
from anyio import to_thread
from durabletask.internal import orchestrator_service_pb2 as pb

from dafx_actors._durable.bundles import (
    CONNECT,
    ITEM,
    KEPT,
    REFUSED,
    SERVICE,
    UNWANTED,
    Piece,
    kind_of,
    offers_bundles,
    pack,
    unpack,
)
from dafx_actors.scheduler._ground.records import Start
from tests.scheduler.bench import PATIENCE, Bench, RawWorker
from tests.scheduler.test_delivery import complete

pytestmark = pytest.mark.anyio

CONNECTS = Piece(CONNECT, payload=pb.GetWorkItemsRequest().SerializeToString())


class BundleWorker:
    """A worker without an SDK, on such a stream."""

    def __init__(self, bench: Bench) -> None:
        self._channel = grpc.aio.insecure_channel(bench.scheduler.endpoint[7:])
        connect: Any = self._channel.stream_stream(f"/{SERVICE}/Connect")
        self.call: Any = connect()
        self._pieces: deque[Piece] = deque()

    async def __aenter__(self) -> BundleWorker:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._channel.close()

    async def send(self, *pieces: Piece) -> None:
        await self.call.write(pack(pieces))

    async def receive(self) -> Piece:
        """The next piece that is not a ping."""
        with anyio.fail_after(PATIENCE):
            while True:
                while not self._pieces:
                    self._pieces.extend(unpack(await self._read()))
                piece = self._pieces.popleft()
                if piece.kind != ITEM or not pb.WorkItem.FromString(piece.payload).HasField("healthPing"):
                    return piece

    async def _read(self) -> bytes:
        message: Any = await self.call.read()
        assert isinstance(message, bytes), "the stream has ended"
        return message

    async def take(self) -> Any:
        piece = await self.receive()
        assert piece.kind == ITEM
        return pb.WorkItem.FromString(piece.payload)

    async def ended(self) -> tuple[grpc.StatusCode, str]:
        """How the stream ends."""
        with anyio.fail_after(PATIENCE):
            return await self.call.code(), await self.call.details()


def answer(item: Any, number: int) -> Piece:
    return Piece(kind_of("CompleteOrchestratorTask"), number, complete(item).SerializeToString())


async def test_an_answer_for_the_work_of_another_stream_is_refused(bench: Bench) -> None:
    async with BundleWorker(bench) as holder:
        await holder.send(CONNECTS)
        instance_id = await bench.client.schedule_new_orchestration("any")
        item = await holder.take()
        async with BundleWorker(bench) as stranger:
            await stranger.send(CONNECTS)
            await stranger.send(answer(item, 7))
            refused = await stranger.receive()
            assert (refused.kind, refused.number) == (REFUSED, 7)
        await holder.send(answer(item, 8))
        assert (await holder.receive())[:2] == (KEPT, 8)
        await bench.end_of(instance_id)


async def test_work_comes_and_its_answer_counts(bench: Bench) -> None:
    async with BundleWorker(bench) as worker:
        await worker.send(CONNECTS)
        instance_ids = {await bench.client.schedule_new_orchestration("any") for _ in range(5)}
        items = [await worker.take() for _ in range(5)]
        assert {item.orchestratorRequest.instanceId for item in items} == instance_ids
        await worker.send(*(answer(item, number) for number, item in enumerate(items)))
        assert {await worker.receive() for _ in items} == {Piece(KEPT, number) for number in range(5)}
        for instance_id in instance_ids:
            assert (await bench.end_of(instance_id)).runtime_status.name == "COMPLETED"


async def test_an_answer_that_does_not_count_is_refused_and_the_stream_goes_on(bench: Bench) -> None:
    async with BundleWorker(bench) as worker:
        await worker.send(CONNECTS)
        instance_id = await bench.client.schedule_new_orchestration("any")
        item = await worker.take()
        stranger = pb.OrchestratorResponse(instanceId=instance_id, completionToken="nobody's")
        await worker.send(Piece(kind_of("CompleteOrchestratorTask"), 7, stranger.SerializeToString()))
        refused = await worker.receive()
        assert (refused.kind, refused.number) == (REFUSED, 7)
        assert b"came too late and was not used" in refused.payload
        await worker.send(Piece(kind_of("CompleteActivityTask"), 8, b"\xff"), answer(item, 9))
        assert [(piece.kind, piece.number) for piece in [await worker.receive(), await worker.receive()]] == [
            (REFUSED, 8),
            (KEPT, 9),
        ]
        await bench.end_of(instance_id)


async def test_work_can_be_given_back(bench: Bench) -> None:
    async with BundleWorker(bench) as worker:
        await worker.send(CONNECTS)
        await bench.client.schedule_new_orchestration("any")
        item = await worker.take()
        given_back = pb.AbandonOrchestrationTaskRequest(completionToken=item.completionToken)
        await worker.send(Piece(kind_of("AbandonTaskOrchestratorWorkItem"), 1, given_back.SerializeToString()))
        again = {(await worker.receive()).kind for _ in range(2)}
        assert again == {KEPT, ITEM}


async def test_limits_hold(bench: Bench) -> None:
    """What is more than a worker takes waits for the next who has room."""
    request = pb.GetWorkItemsRequest(maxConcurrentOrchestrationWorkItems=2)
    async with BundleWorker(bench) as worker:
        await worker.send(Piece(CONNECT, payload=request.SerializeToString()))
        instance_ids = {await bench.client.schedule_new_orchestration("any") for _ in range(4)}
        items = [await worker.take(), await worker.take()]
        await worker.send(answer(items[0], 1))
        pieces = [await worker.receive(), await worker.receive()]
        assert sorted(piece.kind for piece in pieces) == [ITEM, KEPT]
        items += [pb.WorkItem.FromString(piece.payload) for piece in pieces if piece.kind == ITEM]
        items.append(await RawWorker(await bench.stub()).take())
        assert {item.orchestratorRequest.instanceId for item in items} == instance_ids


@pytest.mark.parametrize(("out", "sizes"), [(1, [1, 1]), (4, [2])])
async def test_in_a_crowd_work_waits_for_company(bench: Bench, out: int, sizes: list[int]) -> None:
    """A message costs as much as what is done for a piece of work; a worker that has little to do gets it at once."""
    hub = bench.scheduler.engine.hub("default")
    async with BundleWorker(bench) as worker:
        await worker.send(CONNECTS)
        for _ in range(out):
            await bench.client.schedule_new_orchestration("any")
            await worker.take()
        for instance_id in ("one", "two"):
            with hub.changing() as changes:
                hub.orchestrations.create(changes, instance_id, Start(name="any"))
            for _ in range(4):
                await asyncio.sleep(0)
        assert [len(unpack(await worker._read())) for _ in sizes] == sizes


async def test_work_of_a_worker_that_leaves_is_handed_out_again(bench: Bench) -> None:
    async with BundleWorker(bench) as worker:
        await worker.send(CONNECTS)
        instance_id = await bench.client.schedule_new_orchestration("any")
        token = (await worker.take()).completionToken
        worker.call.cancel()
        again = await RawWorker(await bench.stub()).take()
    assert again.orchestratorRequest.instanceId == instance_id
    assert again.completionToken != token


async def test_a_worker_hears_that_nobody_waits_for_its_activity_any_more(bench: Bench) -> None:
    async with BundleWorker(bench) as worker:
        await worker.send(CONNECTS)
        instance_id = await bench.client.schedule_new_orchestration("any")
        item = await worker.take()
        asks = pb.OrchestratorAction(id=1, scheduleTask=pb.ScheduleTaskAction(name="slow"))
        asked = pb.OrchestratorResponse(instanceId=instance_id, completionToken=item.completionToken, actions=[asks])
        await worker.send(Piece(kind_of("CompleteOrchestratorTask"), 1, asked.SerializeToString()))
        pieces = [await worker.receive(), await worker.receive()]
        [activity] = [pb.WorkItem.FromString(piece.payload) for piece in pieces if piece.kind == ITEM]
        await bench.client.terminate_orchestration(instance_id)
        assert await worker.receive() == Piece(UNWANTED, payload=activity.completionToken.encode())


@pytest.mark.parametrize(
    ("first", "says"),
    [
        (b"", "does not begin with one piece"),
        (b"\x00", "the message ends within the head of a piece"),
        (pack([CONNECTS, CONNECTS]), "does not begin with one piece"),
        (pack([Piece(ITEM)]), "begins with a piece of kind 1"),
        (pack([Piece(CONNECT, payload=b"\xff")]), "cannot be read"),
    ],
)
async def test_a_stream_begins_as_it_should(bench: Bench, first: bytes, says: str) -> None:
    async with BundleWorker(bench) as worker:
        await worker.call.write(first)
        code, details = await worker.ended()
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert says in details


@pytest.mark.parametrize("nonsense", [b"\x00", pack([Piece(ITEM)]), pack([Piece(255, 1, b"x")])])
async def test_nonsense_ends_the_stream_and_loses_nothing(bench: Bench, nonsense: bytes) -> None:
    async with BundleWorker(bench) as worker:
        await worker.send(CONNECTS)
        instance_id = await bench.client.schedule_new_orchestration("any")
        await worker.take()
        await worker.call.write(nonsense)
        code, details = await worker.ended()
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert "cannot be read" in details
    again = await RawWorker(await bench.stub()).take()
    assert again.orchestratorRequest.instanceId == instance_id


async def test_a_scheduler_says_whether_it_offers_this(bench: Bench) -> None:
    with grpc.insecure_channel(bench.scheduler.endpoint[7:]) as channel:
        assert await to_thread.run_sync(offers_bundles, channel)
