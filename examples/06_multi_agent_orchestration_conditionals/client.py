"""Has two emails looked at, or one of your own. Start `worker.py` first.

python client.py
python client.py "Dear winner, ..."
"""

import logging
import os
import sys

import anyio

from dafx_actors import DurableAIAgentClient
from dafx_actors.errors import InvalidAnswer, OrchestrationFailed

logger = logging.getLogger("__main__")

LEGITIMATE = "Hello! I wanted to reach out about our upcoming project meeting scheduled for next week."
SPAM = "URGENT! You've won $1,000,000! Click here now to claim your prize! Limited time offer! Don't miss out!"
MAX_WAIT_TIME = 120  # seconds


async def main(email: str | None = None) -> None:
    logger.info("Starting Durable Task Spam Detection Orchestration Client...")
    endpoint = os.getenv("ENDPOINT", "http://localhost:8080")
    taskhub = os.getenv("TASKHUB", "default")
    logger.info("Using taskhub: %s", taskhub)
    logger.info("Using endpoint: %s", endpoint)

    async with DurableAIAgentClient.connect(endpoint, taskhub) as client:
        if email is not None:
            done = await process(client, "email-001", email)
        else:
            logger.info("")
            logger.info("TEST 1: Legitimate Email")
            first = await process(client, "email-001", LEGITIMATE)
            logger.info("")
            logger.info("TEST 2: Spam Email")
            done = await process(client, "email-002", SPAM) and first
    if not done:
        sys.exit(1)


async def process(client: DurableAIAgentClient, email_id: str, content: str) -> bool:
    """Have an email looked at; whether that went well."""
    logger.info("Email: %s", content)
    payload = {"email_id": email_id, "email_content": content}
    orchestration = await client.schedule_new_orchestration("spam_detection_orchestration", input=payload)
    logger.info("Orchestration started with instance ID: %s", orchestration)
    logger.info("Waiting for orchestration to complete...")
    try:
        result = await orchestration.result(timeout=MAX_WAIT_TIME)
    except OrchestrationFailed as error:
        logger.warning("%s", error)
        if isinstance(error.__cause__, InvalidAnswer):
            logger.warning("The model's answer was: %s", error.__cause__.text)
        return False
    logger.info("Result: %s", result)
    return True


if __name__ == "__main__":
    logging.basicConfig()
    logger.setLevel(logging.INFO)
    try:
        anyio.run(main, sys.argv[1] if len(sys.argv) > 1 else None)
    except KeyboardInterrupt:
        sys.exit(130)  # Ctrl+C
