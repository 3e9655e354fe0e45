"""Ids that are never given twice."""

from __future__ import annotations

import secrets
import uuid
from itertools import count

BLOCK = 2**32
"""How many row ids one run of the scheduler reserves when it opens its file."""


class Ids:
    """Row ids, execution ids and completion tokens.

    A worker can outlive a scheduler and answer what an earlier one gave it, and a row can refer to one that was
    deleted before a restart: so nothing here may repeat, also across restarts. Row ids come from a block that is
    reserved on disk when the file is opened. Whoever has a completion token can answer for the work: tokens are random,
    so that nobody can guess one.
    """

    def __init__(self, first: int) -> None:
        self._rows = count(first)

    def row(self) -> int:
        """The id of a new row of any table; larger than all before it."""
        return next(self._rows)

    @staticmethod
    def token() -> str:
        """A completion token: 16 random bytes, as two halves of hexadecimal digits."""
        return f"{secrets.token_hex(8)}-{secrets.token_hex(8)}"

    @staticmethod
    def execution() -> str:
        """An execution id: 32 hexadecimal digits, as the SDKs expect."""
        return uuid.uuid4().hex
