"""Starts the orchestration and prints the sentence that the writer has drafted and improved. Start `worker.py` first.

python client.py
"""

import logging
import os
import sys

import anyio

from dafx_actors import DurableAIAgentClient

logger = logging.getLogger("__main__")

MAX_WAIT_TIME = 120  # seconds


async def main() -> None:
    logger.info("Starting Durable Task Single Agent Chaining Orchestration Client...")
    endpoint = os.getenv("ENDPOINT", "http://localhost:8080")
    taskhub = os.getenv("TASKHUB", "default")
    logger.info("Using taskhub: %s", taskhub)
    logger.info("Using endpoint: %s", endpoint)
    logger.info("")

    async with DurableAIAgentClient.connect(endpoint, taskhub) as client:
        logger.info("Starting single agent chaining orchestration...")
        orchestration = await client.schedule_new_orchestration("single_agent_chaining_orchestration")
        logger.info("Orchestration started with instance ID: %s", orchestration)
        logger.info("Waiting for orchestration to complete...")
        sentence = await orchestration.result(timeout=MAX_WAIT_TIME)

    logger.info("")
    logger.info("Orchestration completed successfully!")
    logger.info("Final refined sentence: %s", sentence)


if __name__ == "__main__":
    logging.basicConfig()
    logger.setLevel(logging.INFO)
    try:
        anyio.run(main)
    except KeyboardInterrupt:
        sys.exit(130)  # Ctrl+C
