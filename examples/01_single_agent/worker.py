"""Hosts the Joker: one agent, whose conversations survive whatever happens to this process.

python worker.py
"""

import logging
import os
import sys

import anyio

from dafx_actors import DurableAIAgentWorker, durable_agent
from dafx_actors.ids import entity_name
from dafx_actors.scheduler import scheduler_if_needed

logger = logging.getLogger("__main__")


@durable_agent(name="Joker")
class Joker:
    """Tells jokes."""

    instructions = "You are good at telling jokes."


def create_worker(stop_timeout: float = 20) -> DurableAIAgentWorker:
    endpoint = os.getenv("ENDPOINT", "http://localhost:8080")
    taskhub = os.getenv("TASKHUB", "default")
    logger.info("Using taskhub: %s", taskhub)
    logger.info("Using endpoint: %s", endpoint)

    worker = DurableAIAgentWorker.connect(endpoint, taskhub, stop_timeout=stop_timeout)

    logger.info("Creating and registering Joker agent...")
    worker.add_agent(Joker)
    for name in worker.registered_agent_names:
        logger.info("✓ Registered agent: %s", name)
        logger.info("  Entity name: %s", entity_name(name))
    logger.info("")
    return worker


async def main() -> None:
    logger.info("Starting Durable Task Agent Worker...")
    async with scheduler_if_needed(say=logger.info), create_worker() as worker:
        logger.info("Worker is ready and listening for requests...")
        logger.info("Press Ctrl+C to stop.")
        await worker.serve()


if __name__ == "__main__":
    logging.basicConfig()
    logger.setLevel(logging.INFO)
    try:
        anyio.run(main)
    except KeyboardInterrupt:
        sys.exit(130)  # Ctrl+C
