"""`dafx worker app.py`: host what is in a file."""

from __future__ import annotations

import argparse
import os

from dafx_actors.cli._io import Output, add_common


def declare(parser: argparse.ArgumentParser) -> None:
    """Its arguments."""
    parser.description = (
        "Host all agents and orchestrators at the top level of a file or module, or the worker that is there. "
        "Ctrl+C ends it well: steps that run are finished, or given to another worker."
    )
    parser.epilog = (
        "examples:\n  dafx worker app.py\n  dafx worker app.py:Joker\n  dafx worker my.package:make_worker\n\n"
        "Activities are hosted by a worker of your own: a DurableAIAgentWorker in the file, or what makes one."
    )
    parser.set_defaults(run=run)
    parser.add_argument("app", help="app.py, app.py:object, module, or module:object")
    add_common(parser)
    parser.add_argument("--log-level", default="info", choices=("debug", "info", "warning", "error"))


def use_environment(arguments: argparse.Namespace) -> None:
    """Have what the command line names stand in the environment, for a worker that the file makes by itself."""
    for variable, value in (("ENDPOINT", arguments.endpoint), ("TASKHUB", arguments.taskhub)):
        if value:
            os.environ[variable] = value


def run(arguments: argparse.Namespace) -> int:
    """Host it until somebody interrupts or terminates this.

    Raises:
        Mistake: There is nothing to host.
        ConfigurationError: It cannot be hosted as it is.
    """
    import asyncio

    from dafx_actors.cli._app import load
    from dafx_actors.cli._logs import configure

    configure(arguments.log_level, as_json=arguments.json)
    use_environment(arguments)
    app = load(arguments.app)
    worker = app.hosted(arguments.endpoint, arguments.taskhub)

    async def serve() -> None:
        async with worker:
            out = Output(as_json=arguments.json)
            out.record(
                {"hosts": app.agent_names}, f"Hosts {', '.join(app.agent_names) or 'orchestrations'}. Ctrl+C ends it."
            )
            await worker.serve()

    asyncio.run(serve())
    return 0
