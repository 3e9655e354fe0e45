"""Hosts two agents with different instructions in one process.

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


@durable_agent
class WeatherAgent:
    """Tells what weather to expect."""

    instructions = (
        "You are a helpful weather assistant. You cannot look up today's weather: "
        "say in one or two sentences what is usual for the place."
    )


@durable_agent
class MathAgent:
    """Calculates."""

    instructions = (
        "You are a helpful math assistant, for calculations such as tips. Show the calculation in one or two sentences."
    )


def create_worker(stop_timeout: float = 20) -> DurableAIAgentWorker:
    endpoint = os.getenv("ENDPOINT", "http://localhost:8080")
    taskhub = os.getenv("TASKHUB", "default")
    logger.info("Using taskhub: %s", taskhub)
    logger.info("Using endpoint: %s", endpoint)

    worker = DurableAIAgentWorker.connect(endpoint, taskhub, stop_timeout=stop_timeout)

    logger.info("Creating and registering agents...")
    worker.add_agent(WeatherAgent, MathAgent)
    for name in worker.registered_agent_names:
        logger.info("✓ Registered agent: %s", name)
        logger.info("  Entity name: %s", entity_name(name))
    return worker


async def main() -> None:
    logger.info("Starting Durable Task Multi-Agent Worker...")
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
