"""How values of user code are written as JSON where JSON has no form of its own, and the form that went before.

What began in the older form keeps it to its end: a tool call that an earlier version planned is made as that would have
made it. The plan of a call says in which form it is; one that says nothing is in the first.

====  ===========================  =========================================
form  bytes                        times
====  ===========================  =========================================
1     base85; arguments as text    results in UTC, those without a zone too
2     base64, in and out           as the clock said: a zone only if given
====  ===========================  =========================================
"""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Generator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, cast

from dafx_actors._json.shapes import dump_time, parse_time, shown
from dafx_actors.transcript import Json

FORM = 2
"""Today's."""
_form: ContextVar[int] = ContextVar("dafx_actors_form", default=FORM)
_stored: ContextVar[bool] = ContextVar("dafx_actors_stored", default=False)


@contextmanager
def in_form(form: int) -> Generator[None]:
    """Values are read and written in this form meanwhile."""
    token = _form.set(form)
    try:
        yield
    finally:
        _form.reset(token)


@contextmanager
def reading_what_is_stored() -> Generator[None]:
    """Values are read that an earlier version may have written, and that do not say so."""
    token = _stored.set(True)
    try:
        yield
    finally:
        _stored.reset(token)


def dump_bytes(value: bytes | bytearray | memoryview) -> str:
    """Bytes as text."""
    return (base64.b85encode if _form.get() == 1 else base64.b64encode)(bytes(value)).decode()


def load_bytes(text: Json) -> bytes:
    """Bytes of base64, also of the alphabet for URLs, and without its padding.

    Raises:
        ValueError: It is something else.
    """
    if not isinstance(text, str):
        raise ValueError(f"expected bytes in base64, found {shown(text)}")  # noqa: TRY004 - bad data
    if _form.get() == 1:
        return base64.b85decode(text)
    if _stored.get() and (earlier := _in_base85(text)) is not None:
        return earlier
    plain = "".join(text.split()).rstrip("=").replace("-", "+").replace("_", "/")
    try:
        return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"expected bytes in base64, found {shown(text)}") from error


def _in_base85(text: str) -> bytes | None:
    """Bytes as an earlier version stored them; None where today's would have written this, or nobody."""
    with suppress(binascii.Error, ValueError):
        if base64.b64encode(base64.b64decode(text, validate=True)).decode() == text:
            return None
    with suppress(ValueError):
        return base64.b85decode(text)
    return None


def is_same_text(then: str, now: str) -> bool:
    """Say whether a text may be what an earlier version wrote for a value of which today's writes the other."""
    if then == now:
        return True
    with suppress(ValueError):
        times = [time if time.tzinfo else time.replace(tzinfo=UTC) for time in map(parse_time, (then, now))]
        return times[0] == times[1]
    with suppress(ValueError):  # also what `binascii` raises
        return base64.b85decode(then) == base64.b64decode(now, validate=True)
    return False


def load_bytes_of_arguments(text: str) -> bytes:
    """Read the bytes that a model wrote for a parameter of a tool."""
    return text.encode() if _form.get() == 1 else load_bytes(text)


def key_text(key: Any) -> str:
    """The name in an object that `json.dumps` makes of a key.

    Raises:
        TypeError: It makes none.
    """
    if isinstance(key, str):
        return key
    if key is None or isinstance(key, bool):
        return {None: "null", True: "true", False: "false"}[key]
    if isinstance(key, int):
        return str(int(key))
    if isinstance(key, float) and math.isfinite(key):
        return repr(float(key))
    item: Any = getattr(cast("object", key), "item", None)
    if callable(item) and not isinstance(key, type):
        return key_text(item())
    raise TypeError(f"a key of a mapping must be a text or a number, not {shown(key)}")


def dump_clock(moment: datetime) -> str:
    """A time of user code, as the clock said it: with a zone's offset only if it has a zone."""
    return dump_time(moment) if _form.get() == 1 else moment.isoformat()


def load_clock(text: Json) -> datetime:
    """Read such a time.

    Raises:
        ValueError: It is none.
    """
    return parse_time(text)
