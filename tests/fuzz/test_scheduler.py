"""Any bytes on the scheduler's port: it answers with a status that says something, and goes on working."""

from __future__ import annotations

import contextlib
import json
import logging
import random
import socket
import uuid
from collections.abc import Generator
from typing import Any

import grpc
import pytest
from durabletask.client import TaskHubGrpcClient
from durabletask.internal import orchestrator_service_pb2 as pb
from durabletask.internal import orchestrator_service_pb2_grpc as stubs
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import given
from hypothesis import strategies as st

from dafx_actors._durable.bundles import ANSWERS, CONNECT, ITEM, Piece, kind_of, pack, unpack
from dafx_actors._durable.bundles import SERVICE as WORK
from dafx_actors.scheduler import EmbeddedScheduler
from dafx_actors.scheduler._serve import admin as _admin
from tests.fuzz.inputs import examples
from tests.scheduler.bench import QUIET, make_worker
from tests.scheduler.kills import Ledger, collect, do_step, steps, turn

SERVICE = pb.DESCRIPTOR.services_by_name["TaskHubSidecarService"]
METHODS = {f"/TaskHubSidecarService/{method.name}": GetMessageClass(method.input_type) for method in SERVICE.methods}
STREAMS = {method.name for method in SERVICE.methods if method.server_streaming}
IDS = ["", "one", "two", "@ledger@one", "@ledger@two", "@", "@@", "\u0000", "x" * 300]
NAMES = ["turn", "collect", "do_step", "ledger", "enter", "entry", "", "?"]
CLEAR = {code for code in grpc.StatusCode if code not in {grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL}}

_numbers = {
    FieldDescriptor.CPPTYPE_INT32: st.integers(-(2**31), 2**31 - 1) | st.integers(-2, 5),
    FieldDescriptor.CPPTYPE_INT64: st.integers(-(2**63), 2**63 - 1) | st.integers(-2, 5),
    FieldDescriptor.CPPTYPE_UINT32: st.integers(0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: st.integers(0, 2**64 - 1),
    FieldDescriptor.CPPTYPE_DOUBLE: st.floats(),
    FieldDescriptor.CPPTYPE_FLOAT: st.floats(width=32),
    FieldDescriptor.CPPTYPE_BOOL: st.booleans(),
}
_texts = st.sampled_from(IDS) | st.sampled_from(NAMES) | st.text(st.characters(codec="utf-8"), max_size=8)


def _value(draw: st.DrawFn, field: Any, depth: int) -> Any:
    if field.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE:
        return _message(draw, GetMessageClass(field.message_type), depth + 1)
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        return draw(_texts if field.type == FieldDescriptor.TYPE_STRING else st.binary(max_size=8))
    if field.cpp_type == FieldDescriptor.CPPTYPE_ENUM:
        return draw(st.integers(0, 9))
    return draw(_numbers[field.cpp_type])


def _message(draw: st.DrawFn, cls: type[Message], depth: int = 0) -> Any:
    """A message with some of its fields; enough depth for an action of an orchestration, or a signal of an entity."""
    made: Any = cls()
    fields: list[Any] = list(cls.DESCRIPTOR.fields)
    for field in draw(st.lists(st.sampled_from(fields), max_size=4, unique=True)) if fields and depth < 5 else ():
        map_entry = field.message_type is not None and field.message_type.GetOptions().map_entry
        target = getattr(made, field.name)
        if map_entry:
            with contextlib.suppress(TypeError, ValueError):  # its values are messages
                target[draw(_texts)] = draw(_texts)
        elif field.is_repeated:
            target.extend(_value(draw, field, depth) for _ in range(draw(st.integers(0, 3))))
        elif field.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE:
            target.SetInParent()
            target.CopyFrom(_value(draw, field, depth))
        else:
            setattr(made, field.name, _value(draw, field, depth))
    return made


@st.composite
def some_calls(draw: st.DrawFn) -> tuple[str, bytes]:
    """A method, and a message for it, whole or mangled."""
    method = draw(st.sampled_from(sorted(METHODS)))
    sent: bytes = _message(draw, METHODS[method]).SerializeToString()
    if not draw(st.integers(0, 3)):
        chance = random.Random(draw(st.integers(0, 1_000_000)))
        mangled = bytearray(sent or b"\x0a\x05")
        for _ in range(chance.randint(1, 4)):
            mangled[chance.randrange(len(mangled))] = chance.randrange(256)
        sent = bytes(mangled[: chance.randint(1, len(mangled))])
    return method, sent


@pytest.fixture(scope="module")
def scheduler(tmp_path_factory: pytest.TempPathFactory) -> Generator[EmbeddedScheduler]:
    with EmbeddedScheduler(tmp_path_factory.mktemp("fuzz") / "dafx.db").on_a_thread() as scheduler:
        yield scheduler


@pytest.fixture(autouse=True)
def works(scheduler: EmbeddedScheduler, caplog: pytest.LogCaptureFixture) -> Generator[None]:
    """Afterwards an orchestration with an entity, activities and a child runs; nothing was logged as a fault."""
    caplog.set_level(logging.WARNING)
    yield
    client = TaskHubGrpcClient(host_address=scheduler.endpoint, metadata=[("taskhub", "whole")], logger=QUIET)
    worker = make_worker(scheduler.endpoint, turn, steps, collect, do_step, hub="whole")
    worker.add_entity(Ledger, name="ledger")
    worker.start()
    try:
        state = client.wait_for_orchestration_completion(client.schedule_new_orchestration(turn, input=1), timeout=30)
        assert state is not None
        assert state.serialized_output == "3"
    finally:
        worker.stop()
        client.close()
    faults = [record for record in caplog.get_records("call") if record.exc_info or record.levelno >= logging.ERROR]
    assert not faults, [record.getMessage() for record in faults]


def ask(channel: grpc.Channel, method: str, sent: bytes, hub: str = "fuzz") -> None:
    """Make a call: an answer, or an error that is not a fault of the scheduler's own."""
    metadata = (("taskhub", hub),)
    try:
        if method.rsplit("/", 1)[1] in STREAMS:
            streaming: Any = channel.unary_stream(method)
            stream = streaming(sent, metadata=metadata, timeout=0.05)
            with contextlib.closing(stream) if hasattr(stream, "close") else contextlib.nullcontext():
                for _ in stream:
                    pass
        else:
            call: Any = channel.unary_unary(method)
            call(sent, metadata=metadata, timeout=0.1 if "Wait" in method else 10.0)
    except grpc.RpcError as error:
        failed: Any = error
        waits = "Wait" in method or method.rsplit("/", 1)[1] in STREAMS
        assert failed.code() in CLEAR, (method, failed.code(), failed.details())
        assert waits or failed.code() is not grpc.StatusCode.DEADLINE_EXCEEDED, (method, sent)
        assert "Traceback" not in failed.details()


@examples(150)
@given(call=some_calls())
def test_any_message_on_any_method(scheduler: EmbeddedScheduler, call: tuple[str, bytes]) -> None:
    ask(_channel(scheduler), *call)


def _channel(scheduler: EmbeddedScheduler, known: dict[str, grpc.Channel] = {}) -> grpc.Channel:  # noqa: B006 - a cache
    if scheduler.endpoint not in known:
        known[scheduler.endpoint] = grpc.insecure_channel(scheduler.endpoint[7:])
    return known[scheduler.endpoint]


@st.composite
def some_answers(draw: st.DrawFn) -> dict[str, tuple[str, Any]]:
    """One for each kind of work."""
    kinds = {
        "orchestratorRequest": ("CompleteOrchestratorTask", pb.OrchestratorResponse),
        "activityRequest": ("CompleteActivityTask", pb.ActivityResponse),
        "entityRequest": ("CompleteEntityTask", pb.EntityBatchResult),
        "entityRequestV2": ("CompleteEntityTask", pb.EntityBatchResult),
    }
    return {kind: (method, _message(draw, cls)) for kind, (method, cls) in kinds.items()}


@examples(60)
@given(answers=some_answers(), signals=st.booleans(), names=st.booleans())
def test_any_answer_of_a_worker_to_work_that_it_holds(
    scheduler: EmbeddedScheduler, answers: dict[str, tuple[str, Any]], signals: bool, names: bool
) -> None:
    """Answers are the messages that change most: actions of an orchestration, states and signals of entities."""
    channel, metadata = _channel(scheduler), (("taskhub", "worked"),)
    stub = stub_of(channel)
    if signals:
        signal = pb.SignalEntityRequest(instanceId=f"@ledger@{uuid.uuid4()}", name="enter")
        stub.SignalEntity(signal, metadata=metadata, timeout=10)
    else:
        stub.StartInstance(pb.CreateInstanceRequest(name="turn"), metadata=metadata, timeout=10)
    stream = stub.GetWorkItems(pb.GetWorkItemsRequest(), metadata=metadata, timeout=5)
    try:
        item = next(each for each in stream if not each.HasField("healthPing"))
        kind = item.WhichOneof("request")
        method, answer = answers[kind]
        answer.completionToken = item.completionToken
        if names and hasattr(answer, "instanceId"):
            answer.instanceId = getattr(item, kind).instanceId
        ask(channel, f"/TaskHubSidecarService/{method}", answer.SerializeToString(), "worked")
    finally:
        stream.cancel()


_answers = st.sampled_from([pb.GetWorkItemsRequest, pb.OrchestratorResponse, pb.ActivityResponse, pb.EntityBatchResult])


@st.composite
def some_messages(draw: st.DrawFn) -> bytes:
    sent: bytes = _message(draw, draw(_answers)).SerializeToString()
    return sent


@st.composite
def some_bundles(draw: st.DrawFn) -> bytes:
    """Pieces of every kind with all sorts of messages in them, whole or cut off."""
    kinds = st.sampled_from([CONNECT, ITEM, 3, *map(kind_of, ANSWERS)]) | st.integers(0, 255)
    payloads = some_messages() | st.binary(max_size=12)
    pieces = draw(st.lists(st.builds(Piece, kinds, st.integers(0, 2**32 - 1), payloads), max_size=4))
    # Many of a kind in a row, as a worker sends that has much to tell, or somebody who means no good.
    bundle = pack(pieces * draw(st.sampled_from([1, 1, 1, 300, 6_000])))
    return bundle[: draw(st.integers(0, len(bundle)))] if not draw(st.integers(0, 3)) else bundle


@examples(80)
@given(connects=st.booleans(), bundles=st.lists(some_bundles(), max_size=4))
def test_any_bundles_on_a_workers_stream(scheduler: EmbeddedScheduler, connects: bool, bundles: list[bytes]) -> None:
    """The stream may be ended, with a status that says why."""
    first = [pack([Piece(CONNECT, payload=pb.GetWorkItemsRequest().SerializeToString())])] if connects else []
    call: Any = _channel(scheduler).stream_stream(f"/{WORK}/Connect")
    try:
        for message in call(iter([*first, *bundles]), metadata=(("taskhub", "bundles"),), timeout=5):
            unpack(message)
    except grpc.RpcError as error:
        failed: Any = error
        assert failed.code() is grpc.StatusCode.INVALID_ARGUMENT, (failed.code(), failed.details())
        assert "Traceback" not in failed.details()


def stub_of(channel: grpc.Channel) -> Any:
    return stubs.TaskHubSidecarServiceStub(channel)  # type: ignore[no-untyped-call]


SQLITES = ["dafx.db", "dafx.db-wal", "dafx.db-journal", "dafx.db-lock"]
NO_FILES = ["", ".", "..", "../x", "x" * 300, "\u0000"]
some_json = st.binary(max_size=30) | st.recursive(
    st.none() | st.integers() | _texts, lambda inner: st.lists(inner) | st.dictionaries(_texts, inner), max_leaves=4
).map(lambda value: json.dumps(value).encode()) | st.sampled_from(
    [json.dumps({"name": name}).encode() for name in (*NO_FILES, "/x", *SQLITES, 1)]
)  # fmt: skip


@examples(60)
@given(method=st.sampled_from([*_admin.METHODS, "Nothing"]), sent=some_json)
def test_anything_for_the_admin_service(scheduler: EmbeddedScheduler, method: str, sent: bytes) -> None:
    ask(_channel(scheduler), f"/{_admin.SERVICE}/{method}", sent)


@examples(40)
@given(sent=st.lists(st.binary(max_size=40), max_size=3), preface=st.booleans())
def test_any_bytes_on_the_port(scheduler: EmbeddedScheduler, sent: list[bytes], preface: bool) -> None:
    with socket.create_connection(("127.0.0.1", scheduler.port), timeout=10) as raw, contextlib.suppress(OSError):
        if preface:
            raw.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        for each in sent:
            raw.sendall(each)


@examples(20)
@given(hub=st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=300))
def test_any_name_of_a_task_hub(scheduler: EmbeddedScheduler, hub: str) -> None:
    ask(_channel(scheduler), "/TaskHubSidecarService/GetInstance", b"\x0a\x03one", hub)


@pytest.mark.parametrize("method", ["GetInstance", "StreamInstanceHistory", "GetWorkItems"])
def test_bytes_that_are_no_message_are_refused_as_such(scheduler: EmbeddedScheduler, method: str) -> None:
    """gRPC itself made an UNKNOWN of them, with the exception's name, and logged a traceback."""
    call: Any = _channel(scheduler).unary_stream(f"/TaskHubSidecarService/{method}")
    with pytest.raises(grpc.RpcError) as caught:
        list(call(b"\xd7", timeout=10))
    failed: Any = caught.value
    assert failed.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "cannot be read" in failed.details()


@pytest.mark.parametrize(
    "sent",
    [
        *(json.dumps({"name": name}).encode() for name in ("x" * 300, "a\u0000b", "\ud83d", ".", "..", "")),
        b"[" * 100_000,
    ],
    ids=lambda sent: sent[:20].decode(),
)
def test_what_names_no_file_is_refused_as_a_backup(scheduler: EmbeddedScheduler, sent: bytes) -> None:
    """It was an UNKNOWN with the words of an OSError or a ValueError, and a traceback in the log."""
    call: Any = _channel(scheduler).unary_unary(f"/{_admin.SERVICE}/Backup")
    with pytest.raises(grpc.RpcError) as caught:
        call(sent, timeout=10)
    failed: Any = caught.value
    assert failed.code() is grpc.StatusCode.INVALID_ARGUMENT
