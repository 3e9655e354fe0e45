"""Has a conversation with the Joker. Start `worker.py` first.

python client.py                 a new conversation
python client.py THREAD_ID       an earlier one, which the Joker remembers
"""

import logging
import os
import sys

import anyio

from dafx_actors import DurableAIAgentClient

logger = logging.getLogger("__main__")

MESSAGES = [
    "Tell me a short joke about cloud computing.",
    "Now tell me one about Python programming.",
]


async def main(thread_id: str | None = None) -> None:
    logger.info("Starting Durable Task Agent Client...")
    endpoint = os.getenv("ENDPOINT", "http://localhost:8080")
    taskhub = os.getenv("TASKHUB", "default")
    logger.info("Using taskhub: %s", taskhub)
    logger.info("Using endpoint: %s", endpoint)
    logger.info("")

    async with DurableAIAgentClient.connect(endpoint, taskhub) as client:
        logger.info("Getting reference to Joker agent...")
        joker = client.get_agent("Joker")
        if thread_id is None:
            thread = joker.get_new_thread()
            logger.info("Created conversation thread: %s", thread)
        else:
            thread = joker.get_thread(thread_id)
            remembered = list(await joker.get_transcript(thread))
            logger.info("Continuing conversation thread: %s (%d messages so far)", thread, len(remembered))

        for message in MESSAGES:
            logger.info("")
            logger.info("User: %s", message)
            logger.info("")
            response = await joker.run(message, thread=thread)
            logger.info("Joker: %s", response.text)
            logger.info("Usage: %s", response.usage)

    logger.info("")
    logger.info("Conversation completed successfully!")


if __name__ == "__main__":
    logging.basicConfig()
    logger.setLevel(logging.INFO)
    try:
        anyio.run(main, sys.argv[1] if len(sys.argv) > 1 else None)
    except KeyboardInterrupt:
        sys.exit(130)  # Ctrl+C
