"""`dafx scheduler`."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from dafx_actors.errors import ConfigurationError
from dafx_actors.scheduler._engine import Retention
from dafx_actors.scheduler._logs import configure
from dafx_actors.scheduler.embedded import EmbeddedScheduler, Tls

if TYPE_CHECKING:
    import argparse

_DAY = 24 * 3600.0

logger = logging.getLogger(__name__)


def run(arguments: argparse.Namespace) -> int:
    """Run the scheduler until somebody interrupts or terminates it.

    Raises:
        ConfigurationError: the arguments do not go together.
        SchedulerError: it cannot start; the error says why.
    """
    configure(arguments.log_level, as_json=arguments.log_format == "json")
    asyncio.run(_serve(_scheduler(arguments)))
    return 0


def _scheduler(arguments: argparse.Namespace) -> EmbeddedScheduler:
    if bool(arguments.tls_certificate) != bool(arguments.tls_key):
        raise ConfigurationError(("--tls-certificate and --tls-key belong together; give both or neither.",))
    tls = Tls(certificate=arguments.tls_certificate, key=arguments.tls_key) if arguments.tls_certificate else None
    return EmbeddedScheduler(
        None if arguments.in_memory else arguments.db,
        host=arguments.host,
        port=arguments.port,
        synchronous=arguments.synchronous,
        token=_token(arguments.token_file),
        tls=tls,
        backups=arguments.backups,
        retention=Retention(
            age=None if arguments.keep_days is None else arguments.keep_days * _DAY, count=arguments.keep_count
        ),
    )


def _token(path: str | None) -> str | None:
    """From a file, since other users of the machine can read a command line."""
    if path is None:
        return None
    try:
        token = Path(path).read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ConfigurationError((f"The token cannot be read: {error}",)) from error
    if not token:
        raise ConfigurationError((f"The token file {path} is empty.",))
    return token


async def _serve(scheduler: EmbeddedScheduler) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    # A terminal that is closed hangs up. Windows has no such signal.
    for number in filter(None, (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", None))):
        with suppress(NotImplementedError):  # Windows: Ctrl+C raises KeyboardInterrupt instead.
            loop.add_signal_handler(number, stop.set)
    async with scheduler:
        # For a program that started this one and asked for any free port.
        sys.stdout.write(f"{scheduler.endpoint}\n")
        sys.stdout.flush()
        await stop.wait()
        logger.info("Stopping")
