"""Asks for a refund, and asks you whether it may be made. Start `worker.py` first.

python client.py [MESSAGE]                     asks on the terminal
python client.py --approve                     approves what waits for it
python client.py --deny "Out of warranty."     denies it
python client.py --turn ID                     goes on with a turn that another client has started
"""

import argparse
import getpass
import logging
import os
import sys
from collections.abc import Sequence

import anyio

from dafx_actors import DurableAIAgentClient, PendingApproval, TurnHandle
from dafx_actors.errors import TurnError
from dafx_actors.updates import Asked

logger = logging.getLogger("__main__")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Asks for a refund, and asks whether it may be made.")
    parser.add_argument("message", nargs="?", default="My espresso machine, order A-1002, broke. Refund it.")
    decision = parser.add_mutually_exclusive_group()
    decision.add_argument("--approve", action="store_true")
    decision.add_argument("--deny", metavar="REASON")
    parser.add_argument("--turn", metavar="ID", help="go on with a turn that another client has started")
    return parser.parse_args(arguments)


async def main(options: argparse.Namespace) -> None:
    logger.info("Starting Durable Task Tools and Approvals Client...")
    endpoint = os.getenv("ENDPOINT", "http://localhost:8080")
    taskhub = os.getenv("TASKHUB", "default")
    logger.info("Using taskhub: %s", taskhub)
    logger.info("Using endpoint: %s", endpoint)
    logger.info("")

    async with DurableAIAgentClient.connect(endpoint, taskhub) as client:
        agent = client.get_agent("SupportAgent")
        if options.turn:
            turn: TurnHandle[None] = agent.get_turn(options.turn)
        else:
            logger.info("User: %s", options.message)
            turn = await agent.start(options.message)
            logger.info("Started turn: %s", turn)
        try:
            # Another client of this turn is told what was asked before as well; the updates end with the turn.
            async with turn.updates() as updates:
                async for update in updates:
                    if not (isinstance(update, Asked) and isinstance(update.approval, PendingApproval)):
                        continue
                    if not await decide(client, update.approval, options):
                        logger.info("Waiting for somebody to decide: python client.py --turn %s --approve", turn)
                        break
                response = await updates.response()
        except TurnError as error:
            sys.exit(str(error))
    logger.info("SupportAgent: %s", response.text)


async def decide(client: DurableAIAgentClient, approval: PendingApproval, options: argparse.Namespace) -> bool:
    """Approve or deny, as the arguments or whoever sits at the terminal say; False where nobody does."""
    logger.info("The agent wants to call %s with %s", approval.tool, dict(approval.arguments))
    if options.approve or (options.deny is None and sys.stdin.isatty() and await says_yes()):
        await client.approve(approval, by=getpass.getuser())
        logger.info("Approved")
    elif options.deny is not None or sys.stdin.isatty():
        await client.deny(approval, options.deny or "The shop's owner said no.", by=getpass.getuser())
        logger.info("Denied")
    else:
        return False
    return True


async def says_yes() -> bool:
    answer = ""
    while answer not in {"yes", "y", "no", "n"}:
        print("Do you approve this call? (yes/no): ", end="", flush=True)
        await anyio.wait_readable(sys.stdin)  # not `input()`: in `sample.py`, the worker goes on meanwhile
        if not (line := sys.stdin.readline()):
            sys.exit("No decision.")
        answer = line.strip()
    return answer in {"yes", "y"}


if __name__ == "__main__":
    logging.basicConfig()
    logger.setLevel(logging.INFO)
    try:
        anyio.run(main, parse(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)  # Ctrl+C
