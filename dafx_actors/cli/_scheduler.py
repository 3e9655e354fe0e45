"""`dafx scheduler`: run it; figures, backups, and the care of its file."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from dafx_actors.cli._io import Mistake, Output, Problems, actions, add_json, with_client

if TYPE_CHECKING:
    from dafx_actors.client import DurableAIAgentClient

_LAST_PORT = 65_535
_MOST_DAYS = 1_000_000


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


def declare(parser: argparse.ArgumentParser) -> None:
    """Its arguments: those of the scheduler that runs, and of what looks after it."""
    parser.description = "Run the embedded scheduler, a durable backend for one machine; or look after one."
    parser.epilog = "example:\n  dafx scheduler --db dafx.db --backups backups"
    parser.set_defaults(run=_run)
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
    add = actions(parser, required=False)
    add("stats", "figures of a scheduler that runs", _run_stats, example="dafx scheduler stats --json")
    backup = add("backup", "have a scheduler that runs copy its database", _run_backup, example="dafx scheduler backup")
    backup.add_argument("name", nargs="?", help="of the new file in its folder for backups (default: the time)")
    restore = add(
        "restore",
        "make a database of a backup, for a scheduler that does not run",
        _run_restore,
        example="dafx scheduler restore dafx.db-backups/2026-11-27.db dafx.db",
        common=False,
    )
    restore.add_argument("backup", metavar="BACKUP", help="the file of a backup")
    restore.add_argument("database", metavar="FILE", help="the database file, which must not be there")
    add_json(restore)
    check = add(
        "check",
        "look whether a database file, or a backup, is whole; while no scheduler has it open",
        _run_check,
        example="dafx scheduler check dafx.db",
        common=False,
    )
    check.add_argument("database", metavar="FILE")
    add_json(check)


def _run(arguments: argparse.Namespace) -> int:
    from dafx_actors.cli._serving import run

    return run(arguments)


def _run_stats(arguments: argparse.Namespace) -> int:
    return with_client(arguments, _stats)


async def _stats(client: DurableAIAgentClient, out: Output) -> None:
    import attrs

    stats = await client.scheduler.stats()
    if out.as_json:
        out.record(attrs.asdict(stats), "")
        return
    out.text(f"database        {stats.database}, {stats.size / 2**20:,.1f} MB")
    out.text(
        f"uptime          {stats.uptime:,.0f} s; slowest write {stats.slowest_commit:.3f} s; {stats.timers} timers"
    )
    if not stats.is_writable:
        out.text("ATTENTION       its disk refuses to be written: make room on it")
    for name, hub in sorted(stats.hubs.items()):
        counts = ", ".join(f"{count} {status}" for status, count in hub.orchestrations.items() if count) or "none"
        out.text(f"task hub        {name}")
        out.text(f"  orchestrations  {counts}; {hub.waiting_clients} clients wait")
        out.text(f"  entities        {hub.entities}")
        out.text(f"  workers         {', '.join(each.name for each in hub.workers) or 'none'}")
        for kind, work in hub.work.items():
            oldest = "" if work.oldest is None else f", the oldest for {work.oldest:,.0f} s"
            out.text(f"  {kind:<14}  {work.waiting} wait{oldest}; {work.held} with workers")


def _run_backup(arguments: argparse.Namespace) -> int:
    from datetime import UTC, datetime

    name = arguments.name or datetime.now(UTC).strftime("%Y-%m-%d-%H%M%S")

    async def back_up(client: DurableAIAgentClient, out: Output) -> None:
        made = await client.scheduler.backup(name)
        out.record({"path": str(made.path), "bytes": made.size}, f"{made.path} ({made.size:,} bytes)")

    return with_client(arguments, back_up)


def _run_restore(arguments: argparse.Namespace) -> int:
    from dafx_actors.scheduler.storage.care import mistakes_in, restore

    for mistake in mistakes_in(arguments.backup):
        raise Problems(f"the backup {arguments.backup} is not whole, and was not used: {mistake}")
    try:
        size = restore(arguments.backup, arguments.database)
    except FileExistsError:
        raise Mistake(
            f"{arguments.database} is there already, and was left as it is; move it away with its -wal and -shm files"
        ) from None
    record = {"path": arguments.database, "bytes": size}
    Output(as_json=arguments.json).record(
        record, f"{arguments.database} is there ({size:,} bytes); start it: dafx scheduler --db {arguments.database}"
    )
    return 0


def _run_check(arguments: argparse.Namespace) -> int:
    from dafx_actors.scheduler.storage.care import mistakes_in

    out = Output(as_json=arguments.json)
    found = mistakes_in(arguments.database)
    if out.as_json or not found:
        out.record({"path": arguments.database, "mistakes": found}, f"{arguments.database} is whole")
    if found:
        raise Problems(f"{arguments.database} is damaged: {'; '.join(found[:3])}. Restore a backup.")
    return 0
