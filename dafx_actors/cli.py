"""The `dafx` command.

Each subcommand is an entry of `COMMANDS`: a function that declares its arguments, and one that runs it. What a
subcommand needs is imported when it runs, so that `dafx --help` is quick.
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

import attrs

from dafx_actors.errors import DafxError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


@attrs.frozen(kw_only=True)
class Command:
    """A subcommand of `dafx`."""

    help: str
    declare: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]
    """Returns the process's exit code."""


def _declare_scheduler(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--db", default="dafx.db", metavar="FILE", help="the database file (default: %(default)s)")
    parser.add_argument("--in-memory", action="store_true", help="keep everything in memory; nothing outlives a stop")
    parser.add_argument("--host", default="127.0.0.1", help="where to listen (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8080, help="0 takes any free port (default: %(default)s)")
    parser.add_argument(
        "--synchronous",
        choices=("full", "normal"),
        default="full",
        help="full: what was acknowledged survives a power cut; normal: it survives the end of the process, "
        "and a power cut may take the last moments (default: %(default)s)",
    )
    parser.add_argument(
        "--token-file",
        metavar="FILE",
        help="its content is the token that every call needs, as `authorization: Bearer ...`",
    )
    parser.add_argument("--tls-certificate", metavar="FILE", help="a PEM file; with --tls-key")
    parser.add_argument("--tls-key", metavar="FILE", help="a PEM file; with --tls-certificate")
    parser.add_argument("--keep-days", type=float, metavar="DAYS", help="remove ended orchestrations that are older")
    parser.add_argument("--keep-count", type=int, metavar="N", help="keep so many ended orchestrations per task hub")
    parser.add_argument("--backups", metavar="DIR", help="where backups go (default: beside the database)")
    parser.add_argument("--log-format", choices=("text", "json"), default="text", help="default: %(default)s")
    parser.add_argument("--log-level", default="info", choices=("debug", "info", "warning", "error"))


def _run_scheduler(arguments: argparse.Namespace) -> int:
    from dafx_actors.scheduler._command import run

    return run(arguments)


COMMANDS: Mapping[str, Command] = {
    "scheduler": Command(
        help="run the embedded scheduler, a durable backend for one machine",
        declare=_declare_scheduler,
        run=_run_scheduler,
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand; returns the process's exit code."""
    parser = argparse.ArgumentParser(prog="dafx", description="Durable AI agents.")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        command.declare(subparsers.add_parser(name, help=command.help, description=command.help))
    parsed = parser.parse_args(arguments)
    try:
        return COMMANDS[parsed.command].run(parsed)
    except DafxError as error:
        sys.stderr.write(f"dafx: {error}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())
