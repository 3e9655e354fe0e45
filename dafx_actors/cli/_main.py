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


_LAST_PORT = 65_535
_MOST_DAYS = 1_000_000


@attrs.frozen(kw_only=True)
class Command:
    """A subcommand of `dafx`."""

    help: str
    declare: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]
    """Returns the process's exit code."""


def _count(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{number} is less than 0")
    return number


def _port(text: str) -> int:
    number = _count(text)
    if number > _LAST_PORT:
        raise argparse.ArgumentTypeError(f"{number} is more than {_LAST_PORT}")
    return number


def _days(text: str) -> float:
    number = float(text)
    if not 0 <= number <= _MOST_DAYS:
        raise argparse.ArgumentTypeError(f"{text} is no number of days from 0 to {_MOST_DAYS:,}")
    return number


for _kind, _name in ((_count, "whole number"), (_port, "port"), (_days, "number of days")):
    _kind.__name__ = _name  # argparse shows it: "invalid whole number value: 'x'"


def _declare_scheduler(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--db", default="dafx.db", metavar="FILE", help="the database file (default: %(default)s)")
    parser.add_argument("--in-memory", action="store_true", help="keep everything in memory; nothing outlives a stop")
    parser.add_argument("--host", default="127.0.0.1", help="where to listen (default: %(default)s)")
    parser.add_argument("--port", type=_port, default=8080, help="0 takes any free port (default: %(default)s)")
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
    parser.add_argument(
        "--token",
        action="store_true",
        help="ask for a token, which this user's programs on this machine find by themselves: it is kept in the user's "
        "state folder",
    )
    parser.add_argument("--tls-certificate", metavar="FILE", help="a PEM file; with --tls-key")
    parser.add_argument("--tls-key", metavar="FILE", help="a PEM file; with --tls-certificate")
    parser.add_argument("--keep-days", type=_days, metavar="DAYS", help="remove ended orchestrations that are older")
    parser.add_argument("--keep-count", type=_count, metavar="N", help="keep so many ended orchestrations per task hub")
    parser.add_argument("--backups", metavar="DIR", help="where backups go (default: FILE-backups)")
    parser.add_argument("--log-format", choices=("text", "json"), default="text", help="default: %(default)s")
    parser.add_argument("--log-level", default="info", choices=("debug", "info", "warning", "error"))


def _run_scheduler(arguments: argparse.Namespace) -> int:
    from dafx_actors.cli._scheduler import run

    return run(arguments)


COMMANDS: Mapping[str, Command] = {
    "scheduler": Command(
        help="run the embedded scheduler, a durable backend for one machine",
        declare=_declare_scheduler,
        run=_run_scheduler,
    ),
}


class _Version(argparse.Action):
    """Says the version, which takes a while to find out, only when it is asked for."""

    def __init__(self, option_strings: Sequence[str], dest: str) -> None:
        super().__init__(option_strings, dest, nargs=0, default=argparse.SUPPRESS, help="say the version, and end")

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version

        sys.stdout.write(f"dafx {version('dafx-actors')}\n")  # `exit(message=)` would write it to standard error
        parser.exit()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand; returns the process's exit code."""
    parser = argparse.ArgumentParser(prog="dafx", description="Durable AI agents.")
    parser.add_argument("--version", action=_Version)
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, command in COMMANDS.items():
        command.declare(subparsers.add_parser(name, help=command.help, description=command.help))
    parsed = parser.parse_args(arguments)
    if parsed.command is None:
        parser.print_help()
        return 0
    try:
        return COMMANDS[parsed.command].run(parsed)
    except DafxError as error:
        sys.stderr.write(f"dafx: {error}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())
