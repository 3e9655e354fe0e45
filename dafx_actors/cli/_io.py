"""What every subcommand needs: options that all have, lines of text or JSON, and what an error ends the process with.

Light on purpose: it is imported before it is known whether anything is to be done at all.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from datetime import datetime, timedelta

    from dafx_actors.client import DurableAIAgentClient

OK, FAILED, MISTAKE, NOT_THERE, NO_SCHEDULER, FOUND, INTERRUPTED = 0, 1, 2, 3, 4, 5, 130

EXIT_CODES = """exit codes:
  0    done
  1    it could not be done, as the line on standard error says
  2    a mistake in the command line, or in a file that it names
  3    there is no such thread, turn or orchestration
  4    the scheduler does not answer, or refuses
  5    problems were found (doctor, check, scheduler check)
  130  Ctrl+C"""

_CONTROLS = {
    **{code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if code not in (ord("\t"), ord("\n"))},
    **{code: f"\\u{code:04x}" for code in (0x2028, 0x2029, *range(0x202A, 0x202F), *range(0x2066, 0x206A))},
    **dict.fromkeys(range(55296, 57344), "�"),
}
"""What could move the cursor of a terminal, turn a text round, or cannot be written."""
_LONGEST = 60
"""Characters of a value in a table that is not the last of its line."""


class Help(argparse.RawDescriptionHelpFormatter):
    """Help whose examples stay as they are written; as wide as the terminal."""

    def __init__(self, prog: str, **how: Any) -> None:
        # argparse itself asks `shutil`, whose import would be a third of what `dafx --help` takes.
        try:
            columns = int(os.environ.get("COLUMNS") or os.get_terminal_size(1).columns)
        except (OSError, ValueError):
            columns = 80
        settings: dict[str, Any] = {"width": max(columns - 2, 40), **how}
        super().__init__(prog, **settings)


class Mistake(Exception):
    """The command line, or a file that it names, is wrong."""

    code = MISTAKE


class NotThere(Mistake):
    """What was asked for does not exist."""

    code = NOT_THERE


class Problems(Mistake):
    """It was done, and what was found is not as it should be."""

    code = FOUND


def clean(text: str) -> str:
    """A text of somebody else's, such that it writes nothing but itself on a terminal."""
    return text.translate(_CONTROLS)


class Output:
    """Standard output: a JSON object a line, or text for people."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json

    def text(self, text: str) -> None:
        """A text for people; not where programs read."""
        if not self.as_json:
            sys.stdout.write(f"{clean(text)}\n")
            sys.stdout.flush()

    def record(self, record: Mapping[str, Any], text: str) -> None:
        """A thing: as a JSON object, or as text."""
        if self.as_json:
            import json

            sys.stdout.write(f"{json.dumps(record, default=_plain)}\n")
            sys.stdout.flush()
        else:
            self.text(text)

    def table(self, records: Iterable[Mapping[str, Any]], columns: Sequence[str], *, header: bool = True) -> None:
        """Things: a JSON object each, or the lines of a table with these of their fields."""
        if self.as_json:
            for record in records:
                self.record(record, "")
            return
        rows = [[_cell(record.get(column)) for column in columns] for record in records]
        if header:
            rows.insert(0, [column.upper().replace("_", " ") for column in columns])
        widths = [min(max((len(row[at]) for row in rows), default=0), _LONGEST) for at in range(len(columns))]
        for row in rows:
            *first, last = row
            self.text("  ".join([*(cell.ljust(width) for cell, width in zip(first, widths, strict=False)), last]))


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if hasattr(value, "isoformat"):
        return str(value.astimezone().strftime("%Y-%m-%d %H:%M:%S"))
    if isinstance(value, tuple | list):
        return ", ".join(map(str, cast("Sequence[object]", value))) or "-"
    return " ".join(str(value).split()) or "-"


def _plain(value: Any) -> Any:
    if hasattr(value, "isoformat"):
        return value.isoformat()
    return str(value)


# --- Options ------------------------------------------------------------------------------------------------------


def add_common(parser: argparse.ArgumentParser, *, as_json: bool = True) -> None:
    """The options of everything that talks to a scheduler."""
    group = parser.add_argument_group("scheduler")
    group.add_argument("--endpoint", metavar="URL", help="default: $ENDPOINT, else http://localhost:8080")
    group.add_argument("--taskhub", metavar="NAME", help="default: $TASKHUB, else `default`")
    if as_json:
        add_json(parser)


def add_json(parser: argparse.ArgumentParser) -> None:
    """For programs that read what is written."""
    parser.add_argument("--json", action="store_true", help="a JSON object a line, for programs")


def actions(parser: argparse.ArgumentParser, *, required: bool = True) -> Callable[..., argparse.ArgumentParser]:
    """What makes the parser of each action of a subcommand, as `dafx threads list`."""
    made = parser.add_subparsers(dest="action", metavar="ACTION", required=required)

    def add(
        name: str, help: str, run: Callable[[argparse.Namespace], int], *, example: str, common: bool = True
    ) -> argparse.ArgumentParser:
        action = made.add_parser(
            name,
            help=help,
            description=f"{help[0].upper()}{help[1:]}.",
            epilog=f"example:\n  {example}",
            formatter_class=Help,
        )
        action.set_defaults(run=run)
        if common:
            add_common(action)
        return action

    return add


_MOST_DAYS = 36_500
"""Older is nothing: and calendars end somewhere."""
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}


def age(text: str) -> timedelta:
    """An age such as `30d`, `12h`, `90s`; a plain number is seconds."""
    from datetime import timedelta

    unit = _UNITS.get(text[-1:], 0.0)
    try:
        found = timedelta(seconds=float(text[:-1] if unit else text) * (unit or 1.0))
    except (ValueError, OverflowError):
        found = timedelta(seconds=-1)
    if timedelta() <= found <= timedelta(days=_MOST_DAYS):
        return found
    raise argparse.ArgumentTypeError(f"{text!r} is no age: write 90s, 15m, 12h, 30d or 4w")


def json_value(text: str) -> Any:
    """A JSON value on the command line."""
    import json

    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise argparse.ArgumentTypeError(f"{text!r} is no JSON; a text is written as '\"text\"'") from None


# --- Running ------------------------------------------------------------------------------------------------------


def with_client(
    arguments: argparse.Namespace,
    work: Callable[[DurableAIAgentClient, Output], Awaitable[int | None]],
    *,
    waits: bool = False,
) -> int:
    """Do something with a client of the task hub that the command line names.

    Args:
        arguments: The command line.
        work: What to do.
        waits: It may wait for long: so an outage of the scheduler is told when it begins, and not only when it ends
            what is done.
    """
    import asyncio
    import logging

    # What fails at once is one line, and that is the error.
    logging.getLogger("dafx_actors").addHandler(logging.NullHandler())

    from dafx_actors.client import DurableAIAgentClient

    async def run() -> int:
        async with DurableAIAgentClient.connect(arguments.endpoint, arguments.taskhub) as client:
            if waits:
                await client.ping()
                tell_outages()
            return await work(client, Output(as_json=getattr(arguments, "json", False))) or OK

    return asyncio.run(run())


def tell_outages() -> None:
    """Have outages of the scheduler told on standard error, in a line each."""
    import logging

    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("dafx: %(message)s"))
    logging.getLogger("dafx_actors.client").addHandler(handler)


def told(error: BaseException) -> tuple[str, int] | None:
    """What an error is told as, in a line, and what the process ends with; None where it is a fault of ours."""
    from dafx_actors.errors import (
        DafxError,
        InvalidThreadId,
        OrchestrationNotFound,
        SchedulerCredentialError,
        SchedulerRefused,
        SchedulerUnreachable,
        TurnNotFound,
    )

    if isinstance(error, Mistake):
        return str(error), error.code
    if isinstance(error, OrchestrationNotFound | TurnNotFound):
        return str(error), NOT_THERE
    if isinstance(error, SchedulerUnreachable | SchedulerRefused | SchedulerCredentialError):
        return str(error), NO_SCHEDULER
    if isinstance(error, InvalidThreadId):
        return str(error), MISTAKE
    if isinstance(error, DafxError):
        return str(error), FAILED
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}" if error.filename else str(error), FAILED
    return None


def one_line(text: str) -> str:
    """A text in one line, such that it writes nothing else on a terminal."""
    return clean(" ".join(text.split()))


def when(time: datetime | None) -> str:
    """A time as people read it, in this machine's zone."""
    return _cell(time)


# --- In bulk ------------------------------------------------------------------------------------------------------


def add_bulk(parser: argparse.ArgumentParser, what: str, states: Sequence[str]) -> None:
    """The options by which many are chosen, for what changes them."""
    group = parser.add_argument_group("many at once")
    group.add_argument("--all", action="store_true", help=f"all {what} that the filters leave; without ids")
    group.add_argument("--older", type=age, metavar="AGE", help="only what is older than 90s, 15m, 12h, 30d, 4w")
    group.add_argument("--state", choices=states, help="only what is in this state")
    group.add_argument("--dry-run", action="store_true", help="say what would be done, and do nothing")


def check_chosen(arguments: argparse.Namespace, ids: Sequence[object]) -> None:
    """See that either ids or filters are given.

    Raises:
        Mistake: Neither, or both.
    """
    filtered = arguments.all or arguments.older is not None or arguments.state is not None
    if bool(ids) == filtered:
        raise Mistake("name what is meant by id, or choose many by --all, --older or --state: one of the two")
