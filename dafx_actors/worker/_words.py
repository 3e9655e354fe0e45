"""What a model says while it says it, on its way to the scheduler: the first piece at once, then what has gathered.

Words are told beside the answer, never before it, and nobody waits for them. What does not arrive is told with the
answer.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from dafx_actors._raised import in_words

_PAUSE = 0.03
"""Seconds between two pieces."""

_logger = logging.getLogger("dafx_actors.worker")


class Words:
    """The words of one attempt of a model call. It is called with each piece, on the agents' loop."""

    def __init__(self, tellers: ThreadPoolExecutor, tell: Callable[[int, str], int | None]) -> None:
        """Tell nothing yet.

        Args:
            tellers: Where a call that blocks is made.
            tell: Makes it: with the number of characters before a piece, and the piece. It gives how many are there
                now, or None where nobody keeps them.
        """
        self._tellers = tellers
        self._tell = tell
        self._text = ""
        self._known: int | None = 0
        self._telling: asyncio.Task[None] | None = None

    def __call__(self, piece: str) -> None:
        """The model has said this."""
        self._text += piece
        if self._known is not None and (self._telling is None or self._telling.done()):
            self._telling = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        while self._known is not None and self._known < len(self._text):
            telling = functools.partial(self._tell, self._known, self._text[self._known :])
            try:
                self._known = await asyncio.wrap_future(self._tellers.submit(telling))
            except Exception as error:  # noqa: BLE001 - whatever it is, the answer is told all the same
                _logger.debug("The words of a model call are told with its answer: %s", in_words(error))
                self._known = None
            await asyncio.sleep(_PAUSE)
