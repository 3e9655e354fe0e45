"""The service by which workers tell what models say, and clients look at it: `dafx.scheduler.v1.Updates`.

Requests and replies are JSON objects in UTF-8, as those of the service in `admin.py`.

======  =================================================  =========================================================
method  request                                            reply
======  =================================================  =========================================================
Tell    `{"token": "t", "step": 1, "position": 0,          `{"known": 5}`: the characters that are there of this
        "text": "Hello"}`, of the work that is out under   attempt, from where the worker goes on; null where the
        this completion token                              token is not out, or no more is kept
Look    `{"turns": {"i": ["t", 5]}, "seconds": 20}`: of     `{"turns": {"i": {"attempt": "t", "step": 1,
        each turn the attempt that was seen last, and how  "position": 5, "text": " you"}}}`: what is new, as soon
        many characters of it (`["", 0]`: nothing)         as something is, or the seconds have passed
======  =================================================  =========================================================
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from dafx_actors.scheduler._hub.hub import Refused

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from dafx_actors.scheduler._hub.engine import Engine
    from dafx_actors.scheduler._hub.hub import TaskHub

SERVICE = "dafx.scheduler.v1.Updates"
_LONGEST_LOOK = 60.0
"""Seconds."""
_UNREADABLE = (ValueError, KeyError, TypeError, RecursionError, AttributeError)


async def _tell(_: Engine, hub: TaskHub, request: bytes) -> bytes:
    try:
        told = json.loads(request)
        token, step, position, text = told["token"], told["step"], told["position"], told["text"]
        if not (isinstance(token, str) and _is_count(step) and _is_count(position) and isinstance(text, str)):
            raise TypeError
    except _UNREADABLE:
        message = 'Send a JSON object: {"token": "t", "step": 1, "position": 0, "text": "Hello"}.'
        raise Refused("INVALID_ARGUMENT", message) from None
    return json.dumps({"known": hub.views.tell(token, step, position, text)}).encode()


async def _look(_: Engine, hub: TaskHub, request: bytes) -> bytes:
    seen: dict[str, tuple[str, int]] = {}
    try:
        asked = json.loads(request)
        seconds = float(asked["seconds"])
        for turn, (attempt, position) in asked["turns"].items():
            if not isinstance(attempt, str) or not _is_count(position):
                raise TypeError
            seen[turn] = (attempt, position)
    except _UNREADABLE:
        message = 'Send a JSON object: {"turns": {"i": ["", 0]}, "seconds": 20}.'
        raise Refused("INVALID_ARGUMENT", message) from None
    return json.dumps({"turns": await hub.views.look(seen, max(0.0, min(seconds, _LONGEST_LOOK)))}).encode()


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


METHODS: Mapping[str, Callable[[Engine, TaskHub, bytes], Awaitable[bytes]]] = {"Tell": _tell, "Look": _look}
