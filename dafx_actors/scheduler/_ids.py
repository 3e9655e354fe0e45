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
    reserved on disk when the file is opened; completion tokens carry a random prefix for each run.
    """

    def __init__(self, first: int) -> None:
        self._rows = count(first)
        self._run = secrets.token_hex(6)
        self._tokens = count(1)

    def row(self) -> int:
        """The id of a new row of any table; larger than all before it."""
        return next(self._rows)

    def token(self) -> str:
        """A completion token."""
        return f"{self._run}-{next(self._tokens):x}"

    @staticmethod
    def execution() -> str:
        """An execution id: 32 hexadecimal digits, as the SDKs expect."""
        return uuid.uuid4().hex
