"""Work and its answers in bundles: `dafx.scheduler.v1.Work`, which the embedded scheduler offers its workers besides.

Durable Task's protocol sends each piece of work as a message, and takes each answer as a call of its own. In Python
that costs more than all else that is done with them. Here both travel on one stream, as many in a message as there
are at the moment::

    worker ──> CONNECT, then answers, each with a number
    worker <── ITEM, and for each answer: KEPT, it is on disk; or REFUSED, with a text that says why
               UNWANTED, with a completion token: its orchestration has ended, and nobody waits for that activity

What the pieces hold is Durable Task's own, and so is what they mean: an answer counts under its completion token only,
and what a worker holds when its stream ends is handed out again.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, NamedTuple

import grpc

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

SERVICE = "dafx.scheduler.v1.Work"

CONNECT, ITEM, KEPT, REFUSED, UNWANTED = range(5)
"""Kinds of pieces. A `CONNECT` holds a `GetWorkItemsRequest`, an `ITEM` a `WorkItem`."""
ANSWERS = (
    "CompleteOrchestratorTask",
    "CompleteActivityTask",
    "CompleteEntityTask",
    "AbandonTaskOrchestratorWorkItem",
    "AbandonTaskActivityWorkItem",
    "AbandonTaskEntityWorkItem",
)
"""The calls that answers stand for; each holds the request of its call."""
USUAL = 2**19
"""Bytes that a bundle holds at most, unless it is one piece; by default gRPC receives eight times as much, and some
schedulers that are deployed take messages of 2**20."""
MOST_PIECES = 20_000
"""In a bundle: more than fit into a usual one, but for pieces that hold next to nothing."""
_FIRST_ANSWER = 16
_HEAD = struct.Struct(">BII")
_TIMEOUT = 10.0
_LOST = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED}


class Piece(NamedTuple):
    """A part of a bundle."""

    kind: int
    number: int = 0
    """Of an answer, from 0 to 2**32 - 1: who sends it says which."""
    payload: bytes = b""


def kind_of(answer: str) -> int:
    """The kind of the pieces that stand for a call."""
    return _FIRST_ANSWER + ANSWERS.index(answer)


def answer_of(kind: int) -> str:
    """The call that pieces of a kind stand for.

    Raises:
        ValueError: They are no answers.
    """
    if not 0 <= kind - _FIRST_ANSWER < len(ANSWERS):
        raise ValueError(f"a piece of kind {kind} is no answer")
    return ANSWERS[kind - _FIRST_ANSWER]


def pack(pieces: Iterable[Piece]) -> bytes:
    """A message that holds these pieces."""
    return b"".join(
        part for kind, number, payload in pieces for part in (_HEAD.pack(kind, number, len(payload)), payload)
    )


def unpack(message: bytes) -> list[Piece]:
    """The pieces in a message.

    Raises:
        ValueError: It is no bundle, or holds more than `MOST_PIECES`.
    """
    return list(pieces_in(message))


def pieces_in(message: bytes) -> Iterator[Piece]:
    """The pieces in a message, one by one.

    Raises:
        ValueError: As of `unpack`, when it comes to what is wrong.
    """
    at = number_of = 0
    while at < len(message):
        number_of += 1
        if number_of > MOST_PIECES:
            raise ValueError(f"the message has more than {MOST_PIECES:,} pieces")
        if at + _HEAD.size > len(message):
            raise ValueError("the message ends within the head of a piece")
        kind, number, length = _HEAD.unpack_from(message, at)
        at += _HEAD.size + length
        if at > len(message):
            raise ValueError(f"the message ends within a piece of {length} bytes")
        yield Piece(kind, number, message[at - length : at])


def offers_bundles(channel: Any) -> bool:
    """Whether the scheduler at the other end of a `grpc.Channel` knows this.

    Raises:
        grpc.RpcError: Nothing answers.
    """
    try:
        channel.unary_unary(f"/{SERVICE}/Hello")(b"", timeout=_TIMEOUT)
    except grpc.RpcError as error:
        if error.code() in _LOST:
            raise
        return False
    return True
