"""The `dafx` command.

Each subcommand is an entry of `COMMANDS` and a file of its own, with `declare`, which adds its arguments, and sets
`run`. That file is imported when the subcommand is named, and what it needs when it runs, so that `dafx --help` is
quick.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from typing import TYPE_CHECKING

from dafx_actors.cli._io import EXIT_CODES, INTERRUPTED, Help, one_line, told

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

COMMANDS: Mapping[str, str] = {
    "dev": "a scheduler and your agents in one process, loaded anew when a file changes",
    "chat": "talk to an agent",
    "run": "ask an agent once",
    "worker": "host the agents of a file",
    "scheduler": "run the embedded scheduler, a durable backend for one machine; look after it",
    "threads": "list, show, export, import, reset and delete conversations",
    "turns": "list, show and follow requests to agents; cancel and retry them",
    "inbox": "what waits for a person: approve, deny, resolve",
    "orchestrations": "list and show orchestrations; start, tell, suspend, end and purge them",
    "doctor": "look for what is wrong, and say what to do",
    "check": "today's code against recorded histories",
}
"""Each subcommand, in a line."""

_EXAMPLES = """examples:
  dafx dev                                  a demo agent on a model of this machine
  dafx chat Demo                            talk to it, from another terminal
  dafx turns list --state blocked           what is stuck
  dafx doctor                               why, and what to do

`dafx COMMAND --help` says more."""


class _Version(argparse.Action):
    """Says the version, which takes a while to find out, only when it is asked for."""

    def __init__(self, option_strings: Sequence[str], dest: str) -> None:
        super().__init__(option_strings, dest, nargs=0, default=argparse.SUPPRESS, help="say the version, and end")

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version

        sys.stdout.write(f"dafx {version('dafx-actors')}\n")  # `exit(message=)` would write it to standard error
        parser.exit()


def _parser(given: Sequence[str]) -> argparse.ArgumentParser:
    """The parser of a command line: with the arguments of the subcommands that it names."""
    parser = argparse.ArgumentParser(
        prog="dafx",
        description="Durable AI agents: start, talk, look, decide, mend.",
        epilog=f"{_EXAMPLES}\n\n{EXIT_CODES}",
        formatter_class=Help,
    )
    parser.add_argument("--version", action=_Version)
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, line in COMMANDS.items():
        if name not in given:
            subparsers.add_parser(name, help=line, add_help=False, formatter_class=Help)
            continue
        from importlib import import_module

        command = subparsers.add_parser(
            name,
            help=line,
            description=f"{line[0].upper()}{line[1:]}.",
            formatter_class=Help,
        )
        import_module(f"dafx_actors.cli._{name}").declare(command)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand; returns the process's exit code."""
    given = sys.argv[1:] if arguments is None else arguments
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what a terminal has no letters for is no reason to fail
            stream.reconfigure(errors="backslashreplace")
    parser = _parser(given)
    try:
        try:
            parsed = parser.parse_args(given)
            if parsed.command is None:
                parser.print_help()
                return 0
            code: int = parsed.run(parsed)
            return code
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read has heard enough. What is left in the buffer must not be an error at the end, either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:
        known = told(error)
        if known is None:
            raise
        sys.stderr.write(f"dafx: {one_line(known[0])}\n")
        return known[1]


if __name__ == "__main__":
    sys.exit(main())
