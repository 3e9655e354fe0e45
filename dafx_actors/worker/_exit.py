"""Workers whose program ends without stopping them: they are stopped for it.

Their threads keep the process alive, and Python has begun to take it down: they would connect again and again, and no
work could be done. `atexit` comes too late, after the threads; what is registered here comes before them, as it does
for `concurrent.futures`.
"""

from __future__ import annotations

import atexit
import logging
import threading
import weakref
from collections.abc import Callable
from typing import Any, Protocol

from dafx_actors._raised import in_words

_logger = logging.getLogger("dafx_actors.worker")


class _Stops(Protocol):
    def stop(self) -> None: ...


_lock = threading.Lock()
_running: weakref.WeakSet[_Stops] = weakref.WeakSet()


def began(worker: _Stops) -> None:
    """Take note of a worker that runs."""
    with _lock:
        _running.add(worker)


def ended(worker: _Stops) -> None:
    """Forget a worker that is being stopped."""
    with _lock:
        _running.discard(worker)


def _stop_all() -> None:
    with _lock:
        left = list(_running)
    for worker in left:
        _logger.warning("The program ends without having stopped its worker, which is stopped now. Call `stop()`.")
        try:
            worker.stop()
        except Exception as error:  # noqa: BLE001 - the others are to be stopped, too
            _logger.warning("A worker could not be stopped: %s", in_words(error))


_before_threads: Callable[[Callable[[], None]], Any] = getattr(threading, "_register_atexit", atexit.register)
_before_threads(_stop_all)
