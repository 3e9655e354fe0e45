"""The form in which a worker of ours and the embedded scheduler speak."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import grpc
import pytest
from durabletask.internal import orchestrator_service_pb2 as pb
from hypothesis import given
from hypothesis import strategies as st

from dafx_actors._durable.bundles import ANSWERS, CONNECT, ITEM, Piece, answer_of, kind_of, pack, unpack
from dafx_actors.worker._lines import BundleLine

pieces = st.builds(Piece, st.integers(0, 255), st.integers(0, 2**32 - 1), st.binary(max_size=40))


@given(st.lists(pieces, max_size=8))
def test_what_is_packed_is_unpacked(bundle: list[Piece]) -> None:
    assert unpack(pack(bundle)) == bundle


@given(st.lists(pieces, min_size=1, max_size=4), st.data())
def test_a_bundle_that_was_cut_off_is_none(bundle: list[Piece], data: st.DataObject) -> None:
    """Unless it was cut between two pieces, which nobody can see."""
    message = pack(bundle)
    whole = {len(pack(bundle[:number])) for number in range(len(bundle) + 1)}
    cut = data.draw(st.integers(0, len(message)).filter(lambda at: at not in whole))
    with pytest.raises(ValueError, match="the message ends within"):
        unpack(message[:cut])


@given(st.binary(max_size=64))
def test_other_bytes_are_none_or_a_bundle(message: bytes) -> None:
    try:
        found = unpack(message)
    except ValueError:
        return
    assert pack(found) == message


@pytest.mark.parametrize("answer", ANSWERS)
def test_every_answer_has_a_kind_of_its_own(answer: str) -> None:
    assert answer_of(kind_of(answer)) == answer
    assert len({kind_of(each) for each in ANSWERS}) == len(ANSWERS)


@pytest.mark.parametrize("kind", [CONNECT, ITEM, 15, 16 + len(ANSWERS), 255])
def test_other_kinds_are_no_answers(kind: int) -> None:
    with pytest.raises(ValueError, match=f"kind {kind}"):
        answer_of(kind)


@pytest.mark.parametrize(("items", "together"), [(3, 3), (30, 8)])
def test_answers_to_what_came_together_travel_together(items: int, together: int) -> None:
    """But they do not wait for one another for long."""
    over = threading.Event()

    def stream() -> Iterator[bytes]:
        yield pack([Piece(ITEM)] * items)
        over.wait()

    def answer() -> None:
        for _ in line._items():
            line.waiting.CompleteActivityTask(pb.ActivityResponse())

    with grpc.insecure_channel("localhost:1") as channel:
        line = BundleLine(channel)
        line._stream = stream()
        sent: list[int] = []
        sending = threading.Thread(target=lambda: sent.append(len(unpack(next(line._messages())))))
        answering = threading.Thread(target=answer)
        sending.start()
        answering.start()
        sending.join()
        over.set()
        answering.join()
    assert sent[0] >= together
