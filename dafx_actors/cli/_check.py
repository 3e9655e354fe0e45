"""`dafx check app.py --histories DIR`: today's code against what was recorded."""

from __future__ import annotations

import argparse

from dafx_actors.cli._io import Mistake, Output, Problems, add_json


def declare(parser: argparse.ArgumentParser) -> None:
    """Its arguments."""
    parser.description = (
        "Run the code of a file against recorded histories, episode by episode; nothing is really done. It ends with 5 "
        "where the code would do something else: what runs while it is deployed would fail."
    )
    parser.epilog = (
        "example:\n  dafx orchestrations show 7c1b --history histories/refund.json\n"
        "  dafx check app.py --histories histories"
    )
    parser.set_defaults(run=run)
    parser.add_argument("app", help="app.py, app.py:object, module, or module:object")
    parser.add_argument("--histories", metavar="DIR", required=True, help="a folder of histories (*.json), or one")
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Replay each.

    Raises:
        Mistake: There are no histories, or one cannot be read.
        Problems: The code would do something else.
    """
    from pathlib import Path

    from dafx_actors.cli._app import load
    from dafx_actors.client import History
    from dafx_actors.worker._replay import ReplayMismatch, replay

    out, where = Output(as_json=arguments.json), Path(arguments.histories)
    files = sorted(where.glob("*.json")) if where.is_dir() else [where]
    if not files:
        raise Mistake(f"there is no history (*.json) in {where}")
    app = load(arguments.app)
    if app.worker is not None and not (app.agents or app.orchestrators):
        raise Mistake(f"{arguments.app} is a worker; name the file with its agents and orchestrators")
    differ = 0
    for file in files:
        try:
            history = History.load(file)
        except (ValueError, RecursionError) as error:
            raise Mistake(f"{file} cannot be read: {error}") from error
        why = ""
        try:
            replay(history, *app.agents, *app.orchestrators)
        except ReplayMismatch as error:
            why = str(error)
        except LookupError as error:
            why = str(error).strip("'\"")
        differ += bool(why)
        record = {"file": str(file), "name": history.name, "id": history.instance_id, "differs": why or None}
        out.record(record, f"{file}: {why or 'as recorded'}")
    if differ:
        raise Problems(f"{differ} of {len(files)} histories differ from what {arguments.app} does")
    return 0
