"""What user code raised, made safe to tell.

User code raises what it likes: a cancellation of its own, `SystemExit`, an error whose `__str__` raises, a text that
UTF-8 cannot hold. Each is a failure of its step, as any other error is. durabletask records what is an `Exception` and
can be told in words; of anything else it would send no answer, and the scheduler would hand the work out again.

Two kinds go on up as they are: the cancellation of a step by whoever runs it, and a real Ctrl+C.
"""

from __future__ import annotations

import asyncio
import dis
import logging
import threading
from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio

from dafx_actors._secrets import holds, without

T = TypeVar("T")

_LONGEST = 10_000
"""Characters of an error's text; what is longer is cut."""
_LONGEST_NAME = 200
_DEEPEST = 10
"""So many errors that led to one are told with it, by durabletask."""


# --- In words -----------------------------------------------------------------------------------------------------


def text_of(error: BaseException) -> str:
    """What an error says, whatever it is: at most some 10,000 characters, which UTF-8 can hold, without secrets."""
    try:
        # Not `error!s` of a subclass of `str`, which may have methods of its own.
        said = f"it called `sys.exit({error.code!r})`" if isinstance(error, SystemExit) else str.__str__(str(error))
    except BaseException as failed:
        if is_ctrl_c(failed):
            raise
        return f"it cannot be told, since its own text failed with {kind_of(failed)}"
    if not said and isinstance(error, asyncio.CancelledError):
        return "it was cancelled, or something that it waited for"
    return _cut(without(said), _LONGEST)


def kind_of(error: BaseException) -> str:
    """The name of an error's class."""
    return _cut(str(type(error).__name__), _LONGEST_NAME)


def in_words(error: BaseException) -> str:
    """An error's class and its text, where it has one."""
    text = text_of(error)
    return f"{kind_of(error)}: {text}" if text else kind_of(error)


def _cut(text: str, most: int) -> str:
    head = text[:most].encode(errors="backslashreplace").decode()
    return head if len(text) <= most else f"{head}... ({len(text):,} characters in all)"


# --- As an exception ----------------------------------------------------------------------------------------------


def safe(error: BaseException) -> Exception:
    """An error that durabletask can record: itself, or one of the same name that says the same.

    Raise it where no other error is being handled: that would be told with it.
    """
    if isinstance(error, Exception) and _can_be_told(error):
        return error
    # Its class is a new one, of the old one's names: those are what is recorded, besides the text.
    names = {"__module__": _cut(str(type(error).__module__), _LONGEST_NAME), "__qualname__": kind_of(error)}
    made: Exception = type(kind_of(error), (Exception,), names)(text_of(error))
    return made.with_traceback(error.__traceback__)


def _can_be_told(error: Exception) -> bool:
    told: BaseException | None = error
    for _ in range(_DEEPEST):
        if not isinstance(told, Exception):
            return True
        try:
            text = str(told)
            text.encode()
            f"{type(told).__module__}.{type(told).__qualname__}".encode()
        except BaseException as failed:
            if is_ctrl_c(failed):
                raise
            return False
        if len(text) > _LONGEST or holds(text):
            return False
        told = told.__cause__ or told.__context__
    return True


# --- Running user code --------------------------------------------------------------------------------------------


def _never() -> bool:
    return False


async def contained(run: Callable[[], Awaitable[T]], is_stopping: Callable[[], bool] = _never) -> T:
    """Await user code, of which everything that it raises is an `Exception`.

    Args:
        run: The user's code.
        is_stopping: Whether the worker is: what is cancelled then is handed back, whoever cancelled it.

    Raises:
        CancelledError: Whoever runs it has cancelled it, and not it itself.
        KeyboardInterrupt: Somebody has pressed Ctrl+C.
        Exception: What it raised.
    """
    try:
        return await run()
    except Exception:
        raise
    except BaseException as error:
        if _is_from_outside(error, is_stopping):
            raise
        raised = error
    raise safe(raised)


async def attempted(run: Callable[[], Awaitable[object]], logger: logging.Logger, what: str) -> None:
    """Await user code that gives something back; what it raises is logged, since others have to follow."""
    try:
        await contained(run)
    except Exception:
        logger.exception("%s could not be closed.", what)


def _is_from_outside(error: BaseException, is_stopping: Callable[[], bool]) -> bool:
    if isinstance(error, asyncio.CancelledError):
        return is_stopping() or anyio.current_effective_deadline() == float("-inf")
    if isinstance(error, GeneratorExit):
        return not has_loop()
    return is_ctrl_c(error)


def has_loop() -> bool:
    """Whether an event loop runs here; without one, a coroutine was left behind, and Python closes it."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def is_ctrl_c(error: BaseException) -> bool:
    """Whether a signal made this `KeyboardInterrupt`, and not a `raise` in somebody's code."""
    if not isinstance(error, KeyboardInterrupt) or threading.current_thread() is not threading.main_thread():
        return False
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    if frame is None:
        return True
    code = frame.tb_frame.f_code
    by_signal = code.co_name in {"_on_sigint", "default_int_handler"}  # asyncio's handler raises it itself
    return by_signal or dis.opname[code.co_code[frame.tb_lasti]] != "RAISE_VARARGS"
