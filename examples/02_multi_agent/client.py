"""Asks both agents, each in a thread of its own. Start `worker.py` first.

python client.py
"""

import logging
import os
import sys

import anyio

from dafx_actors import DurableAIAgentClient

logger = logging.getLogger("__main__")

MESSAGES = {
    "WeatherAgent": "What is the weather in Seattle?",
    "MathAgent": "Calculate a 20% tip on a $50 bill",
}


async def main() -> None:
    logger.info("Starting Durable Task Multi-Agent Client...")
    endpoint = os.getenv("ENDPOINT", "http://localhost:8080")
    taskhub = os.getenv("TASKHUB", "default")
    logger.info("Using taskhub: %s", taskhub)
    logger.info("Using endpoint: %s", endpoint)

    async with DurableAIAgentClient.connect(endpoint, taskhub) as client:
        for name, message in MESSAGES.items():
            logger.info("")
            logger.info("Testing %s", name)
            agent = client.get_agent(name)
            thread = agent.get_new_thread()
            logger.info("Created conversation thread: %s", thread)
            logger.info("User: %s", message)
            response = await agent.run(message, thread=thread)
            logger.info("%s: %s", name, response.text)

    logger.info("")
    logger.info("Both agents completed successfully!")


if __name__ == "__main__":
    logging.basicConfig()
    logger.setLevel(logging.INFO)
    try:
        anyio.run(main)
    except KeyboardInterrupt:
        sys.exit(130)  # Ctrl+C
