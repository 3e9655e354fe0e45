"""What user code raised, made safe to tell."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from collections.abc import Callable
from typing import Any

import anyio
import pytest
from durabletask.internal import helpers

from dafx_actors._raised import attempted, contained, in_words, is_ctrl_c, safe, text_of

pytestmark = pytest.mark.anyio


class Mute(Exception):
    """Its text cannot be had."""

    def __str__(self) -> str:
        raise KeyError("no text")


class Leaving(Exception):
    """Its text ends the process."""

    def __str__(self) -> str:
        raise SystemExit(4)


class Numeric(Exception):
    """Its text is none."""

    def __str__(self) -> str:
        return 7  # type: ignore[return-value]


class Sly(str):
    """A text with methods of its own."""

    def __str__(self) -> str:
        raise KeyError

    def __getitem__(self, key: Any) -> str:
        raise KeyError


class WithSly(Exception):
    def __str__(self) -> str:
        return Sly("sly")


def led_by(error: BaseException) -> Exception:
    """An error that is well, and comes of one that is not."""
    made = ValueError("and so")
    made.__cause__ = error
    return made


ODD = [
    SystemExit(3),
    KeyboardInterrupt(),
    GeneratorExit("enough"),
    asyncio.CancelledError(),
    BaseException("bare"),
    Mute(),
    Leaving(),
    Numeric(),
    WithSly(),
    ValueError("lone \ud800 surrogate"),
    type("Odd", (Exception,), {"__module__": "\udc80"})("its class"),
    ValueError("x" * 50_000_000),
    led_by(Mute()),
    led_by(ValueError("\udfff")),
    led_by(led_by(Leaving())),
]


@pytest.mark.parametrize("error", ODD, ids=lambda error: ascii(type(error).__name__))
def test_durabletask_can_record_any_error_that_was_made_safe(error: BaseException) -> None:
    details = helpers.new_failure_details(safe(error))
    assert len(details.SerializeToString()) < 100_000
    assert details.errorType.rpartition(".")[2] == type(error).__name__


@pytest.mark.parametrize("error", ODD, ids=lambda error: ascii(type(error).__name__))
def test_any_error_has_words(error: BaseException) -> None:
    words = in_words(error)
    words.encode()
    assert 0 < len(words) < 11_000


def test_an_error_that_can_be_told_stays_what_it_is() -> None:
    for error in (ValueError("plain"), ValueError(), led_by(KeyError("x"))):
        assert safe(error) is error


def test_the_name_of_the_class_is_kept() -> None:
    details = helpers.new_failure_details(safe(SystemExit(3)))
    assert (details.errorType, details.errorMessage) == ("builtins.SystemExit", "it called `sys.exit(3)`")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ValueError("plain"), "ValueError: plain"),
        (ValueError(), "ValueError"),
        (ValueError("a\ud800"), "ValueError: a\\ud800"),
        (asyncio.CancelledError(), "CancelledError: it was cancelled, or something that it waited for"),
        (Mute(), "Mute: it cannot be told, since its own text failed with KeyError"),
        (WithSly(), "WithSly: sly"),
    ],
    ids=lambda value: ascii(value) if isinstance(value, str) else "",
)
def test_the_words_of_an_error(error: BaseException, words: str) -> None:
    assert in_words(error) == words


def test_a_long_text_says_how_long_it_was() -> None:
    assert text_of(ValueError("x" * 50_000)) == "x" * 10_000 + "... (50,000 characters in all)"


@pytest.mark.parametrize(
    "error", [SystemExit(3), GeneratorExit(), asyncio.CancelledError("closed"), KeyboardInterrupt()]
)
async def test_what_user_code_raises_is_an_exception(error: BaseException) -> None:
    async def raises() -> None:
        raise error

    found: BaseException | None = None
    try:
        await contained(raises)
    except BaseException as raised:
        found = raised
    assert isinstance(found, Exception)
    assert (type(found).__name__, found.__context__) == (type(error).__name__, None)


async def test_what_it_awaits_may_be_cancelled_by_somebody_else() -> None:
    async def waits() -> None:
        job = asyncio.ensure_future(asyncio.Event().wait())
        asyncio.get_running_loop().call_soon(job.cancel)
        await job

    with pytest.raises(Exception, match="cancelled"):
        await contained(waits)


async def test_a_cancellation_from_outside_goes_on_up() -> None:
    with anyio.move_on_after(0.01) as scope:
        await contained(anyio.sleep_forever)
    assert scope.cancelled_caught


async def test_while_the_worker_stops_a_cancellation_is_handed_on() -> None:
    async def cancelled() -> None:
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await contained(cancelled, lambda: True)


def test_what_python_closes_is_let_go() -> None:
    """A coroutine that was left behind gets `GeneratorExit`, and must not go on."""

    class Pending:
        def __await__(self) -> Any:
            yield

    async def waits() -> None:
        await Pending()

    coroutine = contained(waits)
    coroutine.send(None)
    coroutine.close()


async def test_what_fails_to_close_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def exits() -> None:
        sys.exit(3)

    await attempted(exits, logging.getLogger("dafx_actors.worker"), "A model")
    assert "A model could not be closed." in caplog.text


def caught(function: Callable[[], Any]) -> BaseException:
    try:
        function()
    except KeyboardInterrupt as error:
        return error
    raise AssertionError


def test_a_signal_is_told_from_a_raise() -> None:
    def raises() -> None:
        raise KeyboardInterrupt

    def interrupted() -> None:
        signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert is_ctrl_c(caught(interrupted))
    finally:
        signal.signal(signal.SIGINT, before)
    assert not is_ctrl_c(caught(raises))
