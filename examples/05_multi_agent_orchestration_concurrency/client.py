"""Starts the orchestration and prints both experts' answers. Start `worker.py` first.

python client.py [PROMPT]
"""

import logging
import os
import sys

import anyio

from dafx_actors import DurableAIAgentClient

logger = logging.getLogger("__main__")

PROMPT = "What is temperature?"
MAX_WAIT_TIME = 120  # seconds


async def main(prompt: str = PROMPT) -> None:
    logger.info("Starting Durable Task Multi-Agent Orchestration Client...")
    endpoint = os.getenv("ENDPOINT", "http://localhost:8080")
    taskhub = os.getenv("TASKHUB", "default")
    logger.info("Using taskhub: %s", taskhub)
    logger.info("Using endpoint: %s", endpoint)
    logger.info("")

    async with DurableAIAgentClient.connect(endpoint, taskhub) as client:
        logger.info("Prompt: %s", prompt)
        logger.info("")
        logger.info("Starting multi-agent concurrent orchestration...")
        orchestration = await client.schedule_new_orchestration("multi_agent_concurrent_orchestration", input=prompt)
        logger.info("Orchestration started with instance ID: %s", orchestration)
        logger.info("Waiting for orchestration to complete...")
        state = await orchestration.wait(timeout=MAX_WAIT_TIME)
        logger.info("")
        logger.info("Orchestration status: %s", state.runtime_status)
        results: dict[str, str] = await orchestration

    rule = "=" * 80
    print(f"{rule}\nOrchestration completed successfully!\n{rule}\n\nPrompt: {prompt}\n\nResults:\n")
    print(f"Physicist's response:\n  {results['physicist']}\n")
    print(f"Chemist's response:\n  {results['chemist']}\n\n{rule}")


if __name__ == "__main__":
    logging.basicConfig()
    logger.setLevel(logging.INFO)
    try:
        anyio.run(main, sys.argv[1] if len(sys.argv) > 1 else PROMPT)
    except KeyboardInterrupt:
        sys.exit(130)  # Ctrl+C
