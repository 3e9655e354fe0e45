"""`dafx run Agent "..."`: one request, one answer."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from dafx_actors.cli._io import Mistake, Output, add_common, with_client

if TYPE_CHECKING:
    from dafx_actors.client import DurableAIAgentClient


def declare(parser: argparse.ArgumentParser) -> None:
    """Its arguments."""
    parser.epilog = (
        'examples:\n  dafx run Joker "Tell me a joke."\n  echo "Tell me a joke." | dafx run Joker -\n'
        '  dafx run Joker "Another one." --thread 4f2c --json'
    )
    parser.set_defaults(run=run)
    parser.add_argument("agent", help="the agent's name")
    parser.add_argument("message", help="what to ask; - reads standard input")
    parser.add_argument("--thread", metavar="ID", help="the conversation to go on with (default: a new one)")
    parser.add_argument("--turn", metavar="ID", help="its correlation id; sent again, it gives the same answer")
    parser.add_argument(
        "--timeout", type=float, metavar="SECONDS", help="how long to wait; the turn goes on after that"
    )
    parser.add_argument("--no-wait", action="store_true", help="say the turn's id, and do not wait for the answer")
    add_common(parser)


def run(arguments: argparse.Namespace) -> int:
    """Ask, and say the answer.

    Raises:
        Mistake: There is nothing to ask.
        DafxError: It failed.
    """
    message = sys.stdin.read() if arguments.message == "-" else arguments.message
    if not message.strip():
        raise Mistake("there is nothing to ask: the message is empty")

    async def ask(client: DurableAIAgentClient, out: Output) -> None:
        agent = client.get_agent(arguments.agent)
        thread = agent.get_thread(arguments.thread) if arguments.thread else agent.get_new_thread()
        try:
            turn = await agent.start(message, thread=thread, correlation_id=arguments.turn, timeout=arguments.timeout)
        except ValueError as error:
            raise Mistake(str(error)) from error
        where = {"agent": agent.name, "thread": str(thread), "turn": str(turn)}
        if arguments.no_wait:
            out.record(where, str(turn))
            return
        response = await turn.result(arguments.timeout)
        out.record({**where, "text": response.text, "tokens": response.usage.total_tokens}, response.text)

    return with_client(arguments, ask, waits=not arguments.no_wait)
