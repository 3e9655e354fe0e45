"""Has an article written, and asks you whether it may be published. Start `worker.py` first.

python client.py [TOPIC]                            asks on the terminal
python client.py --reject "Too long." --approve     decides in this order, without asking
python client.py --instance ID                      goes on with what another client has started
python client.py --help                             lists the rest
"""

import argparse
import json
import logging
import os
import sys
from collections.abc import Sequence
from typing import Any

import anyio

from dafx_actors import DurableAIAgentClient, OrchestrationHandle
from dafx_actors.errors import InvalidAnswer, OrchestrationFailed

logger = logging.getLogger("__main__")

HUMAN_APPROVAL_EVENT = "HumanApproval"
MAX_WAIT_TIME = 120  # seconds, for a draft

APPROVAL = {"approved": True, "feedback": ""}


def rejection(feedback: str) -> dict[str, Any]:
    return {"approved": False, "feedback": feedback}


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Has an article written, and asks whether it may be published.")
    parser.add_argument("topic", nargs="?", default="The benefits of cloud computing")
    parser.add_argument("--approve", dest="decisions", action="append_const", const=APPROVAL, default=[])
    parser.add_argument("--reject", dest="decisions", action="append", type=rejection, metavar="FEEDBACK")
    parser.add_argument("--timeout-seconds", type=float, default=300, help="how long a draft waits for a decision")
    parser.add_argument("--max-review-attempts", type=int, default=3, help="how many drafts there may be")
    parser.add_argument("--instance", metavar="ID", help="go on with what another client has started")
    return parser.parse_args(arguments)


async def main(options: argparse.Namespace) -> None:
    logger.info("Starting Durable Task HITL Content Generation Client...")
    endpoint = os.getenv("ENDPOINT", "http://localhost:8080")
    taskhub = os.getenv("TASKHUB", "default")
    logger.info("Using taskhub: %s", taskhub)
    logger.info("Using endpoint: %s", endpoint)
    logger.info("")

    async with DurableAIAgentClient.connect(endpoint, taskhub) as client:
        orchestration = await start(client, options)
        decisions = list(options.decisions)
        attempt = 0
        while (review := await next_review(orchestration, attempt)) is not None:
            attempt, draft = review["attempt"], review["draft"]
            logger.info("Title: %s", draft["title"])
            logger.info("Content: %s", draft["content"])
            decision = decisions.pop(0) if decisions else await ask()
            if decision is None:
                logger.info("Waiting for somebody to decide: python client.py --instance %s --approve", orchestration)
                break
            logger.info("Sending decision: %s", decision)
            await orchestration.raise_event(HUMAN_APPROVAL_EVENT, {**decision, "attempt": attempt})

        try:
            published = await orchestration
        except OrchestrationFailed as error:
            sys.exit(explained(error))
    logger.info("")
    logger.info("Orchestration completed successfully!")
    logger.info("Final Result: %s", json.dumps(published, indent=2))


async def start(client: DurableAIAgentClient, options: argparse.Namespace) -> OrchestrationHandle[Any]:
    if options.instance:
        logger.info("Continuing orchestration with instance ID: %s", options.instance)
        return client.get_orchestration(options.instance)
    logger.info("Topic: %s", options.topic)
    payload = {
        "topic": options.topic,
        "max_review_attempts": options.max_review_attempts,
        "approval_timeout_seconds": options.timeout_seconds,
    }
    orchestration = await client.schedule_new_orchestration("content_generation_hitl_orchestration", input=payload)
    logger.info("Orchestration started with instance ID: %s", orchestration)
    return orchestration


async def next_review(orchestration: OrchestrationHandle[Any], after: int) -> dict[str, Any] | None:
    """Show the orchestration's status until it asks for a review after the given one; None when it has ended."""
    shown = None
    with anyio.fail_after(MAX_WAIT_TIME):
        while True:
            state = await orchestration.state()
            if state is None:
                sys.exit(f"There is no orchestration {orchestration}.")
            status = json.loads(state.serialized_custom_status or '{"message": "Writing..."}')
            if status != shown:
                logger.info("Orchestration status: %s, %s", state.runtime_status, status["message"])
                shown = status
            if str(state.runtime_status) not in {"PENDING", "RUNNING"}:
                return None
            if status.get("attempt", 0) > after:
                return dict(status)
            await anyio.sleep(0.5)


def explained(error: OrchestrationFailed) -> str:
    """What went wrong; where it was the form of an answer, also the answer."""
    if isinstance(error.__cause__, InvalidAnswer):
        return f"{error}\nThe model's answer was: {error.__cause__.text}"
    return str(error)


async def ask() -> dict[str, Any] | None:
    """The decision of whoever sits at the terminal, or None where nobody does."""
    if not sys.stdin.isatty():
        return None
    answer = ""
    while answer not in {"yes", "y", "no", "n"}:
        answer = await read("Do you approve this content? (yes/no): ")
    return APPROVAL if answer in {"yes", "y"} else rejection(await read("Enter feedback for improvement: "))


async def read(question: str) -> str:
    print(question, end="", flush=True)
    await anyio.wait_readable(sys.stdin)  # not `input()`: in `sample.py`, the worker goes on meanwhile
    if not (line := sys.stdin.readline()):
        sys.exit("No decision.")
    return line.strip()


if __name__ == "__main__":
    logging.basicConfig()
    logger.setLevel(logging.INFO)
    try:
        anyio.run(main, parse(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)  # Ctrl+C
