"""`dafx scheduler`: the server itself."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING

from dafx_actors._durable.tokens import kept_token, published, read_token
from dafx_actors.cli._logs import configure
from dafx_actors.errors import ConfigurationError
from dafx_actors.scheduler._hub.engine import Retention
from dafx_actors.scheduler.embedded import EmbeddedScheduler, Tls

if TYPE_CHECKING:
    import argparse

_DAY = 24 * 3600.0

logger = logging.getLogger("dafx_actors.scheduler._command")


def run(arguments: argparse.Namespace) -> int:
    """Run the scheduler until somebody interrupts or terminates it.

    Raises:
        ConfigurationError: the arguments do not go together.
        SchedulerError: it cannot start; the error says why.
    """
    configure(arguments.log_level, as_json=arguments.log_format == "json")
    token = _token(arguments)
    asyncio.run(_serve(_scheduler(arguments, token), token if arguments.token else None))
    return 0


def _scheduler(arguments: argparse.Namespace, token: str | None) -> EmbeddedScheduler:
    if bool(arguments.tls_certificate) != bool(arguments.tls_key):
        raise ConfigurationError(("--tls-certificate and --tls-key belong together; give both or neither.",))
    tls = Tls(certificate=arguments.tls_certificate, key=arguments.tls_key) if arguments.tls_certificate else None
    return EmbeddedScheduler(
        None if arguments.in_memory else arguments.db,
        host=arguments.host,
        port=arguments.port,
        synchronous=arguments.synchronous,
        token=token,
        tls=tls,
        backups=arguments.backups,
        retention=Retention(
            age=None if arguments.keep_days is None else arguments.keep_days * _DAY, count=arguments.keep_count
        ),
    )


def _token(arguments: argparse.Namespace) -> str | None:
    """From a file, since other users of the machine can read a command line; or one that is made and kept here."""
    if arguments.token and arguments.token_file:
        raise ConfigurationError(("--token makes a token and --token-file names one; give one of the two.",))
    if arguments.token_file:
        return read_token(arguments.token_file)
    return kept_token(arguments.port) if arguments.token else None


async def _serve(scheduler: EmbeddedScheduler, kept: str | None = None) -> None:
    """Serve until a signal comes; `kept` is the token that this user's programs are to find."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    # A terminal that is closed hangs up. Windows has no such signal.
    for number in filter(None, (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", None))):
        with suppress(NotImplementedError):  # Windows: Ctrl+C raises KeyboardInterrupt instead.
            loop.add_signal_handler(number, stop.set)
    async with scheduler:
        with published(scheduler.port, kept) if kept else nullcontext():
            # For a program that started this one and asked for any free port.
            sys.stdout.write(f"{scheduler.endpoint}\n")
            sys.stdout.flush()
            await stop.wait()
        logger.info("Stopping")
