"""Clients of `dafx.scheduler.v1.Updates`, a service of the embedded scheduler: see `scheduler/_serve/updates.py`.

Another backend does not know the service; then the answer is None, and the words of a turn are told when they were
recorded. Nothing here loses an answer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias, cast

import attrs
import grpc

_SERVICE = "/dafx.scheduler.v1.Updates/"
_TOLD_WITHIN = 2.0
"""Seconds; words that come later are told with the answer."""
_UNKNOWN = {grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.NOT_FOUND}

Metadata: TypeAlias = Sequence[tuple[str, str]]


@attrs.frozen
class NewWords:
    """What is new of an attempt of a model call."""

    attempt: str
    step: int
    position: int
    """Characters of the attempt before `text`."""
    text: str


def tell_words(channel: Any, token: str, step: int, position: int, text: str) -> int | None:
    """Tell what a model has said, of the work under a completion token, over a `grpc.Channel`.

    Args:
        channel: To the scheduler.
        token: Of the work.
        step: The number of the reply.
        position: Characters before `text`.
        text: What the model said.

    Returns:
        How many characters are there now, to go on from there. None where nobody keeps them.

    Raises:
        grpc.RpcError: The scheduler cannot be reached, or is another one that refuses.
    """
    request = json.dumps({"token": token, "step": step, "position": position, "text": text}).encode()
    try:
        reply = channel.unary_unary(_SERVICE + "Tell")(request, timeout=_TOLD_WITHIN)
    except grpc.RpcError as error:
        if cast("Any", error).code() in _UNKNOWN:
            return None
        raise
    known = json.loads(reply)["known"]
    return known if isinstance(known, int) else None


async def look_async(
    channel: Any, metadata: Metadata = (), *, seen: Mapping[str, tuple[str, int]], seconds: float
) -> dict[str, NewWords] | None:
    """Look for words of some turns, one long poll long, over a `grpc.aio.Channel`; None if the backend has none.

    Args:
        channel: To the scheduler.
        metadata: Of every call.
        seen: Of each turn the attempt that was seen last, and how many characters of it.
        seconds: How long the poll may be.

    Raises:
        grpc.RpcError: the backend cannot be reached, or refuses the caller.
    """
    request = json.dumps({"turns": {turn: list(each) for turn, each in seen.items()}, "seconds": seconds}).encode()
    call = channel.unary_unary(_SERVICE + "Look")(request, metadata=tuple(metadata), timeout=seconds + 10.0)
    try:
        reply = await call
    except grpc.RpcError as error:
        if cast("Any", error).code() in _UNKNOWN:
            return None
        raise
    return {turn: NewWords(**each) for turn, each in json.loads(reply)["turns"].items()}
