"""Hosts a writer, and the orchestration that runs it twice in one thread.

python worker.py
"""

import logging
import os
import sys

import anyio

from dafx_actors import DurableAIAgentWorker, OrchestrationContext, durable_agent, orchestrator
from dafx_actors.ids import entity_name
from dafx_actors.scheduler import scheduler_if_needed

logger = logging.getLogger("__main__")


@durable_agent
class WriterAgent:
    """Writes sentences, and improves them."""

    instructions = "You write short pieces of text, and improve those that you are given. Answer with the text alone."


@orchestrator
async def single_agent_chaining_orchestration(context: OrchestrationContext) -> str:
    """Lets the writer draft a sentence and then improve it: in one thread, so that it knows its draft."""
    log = context.create_replay_safe_logger(logger)
    writer = context.get_agent(WriterAgent)
    thread = writer.get_new_thread()
    log.info("[Orchestration] Created thread: %s", thread)

    log.info("[Orchestration] First agent run: Generating initial sentence")
    initial = await writer.run("Write a concise inspirational sentence about learning.", thread=thread)
    log.info("[Orchestration] Initial response: %s", initial.text)

    log.info("[Orchestration] Second agent run: Refining the sentence")
    prompt = f"Improve this further while keeping it under 25 words: {initial.text}"
    refined = await writer.run(prompt, thread=thread)
    log.info("[Orchestration] Refined response: %s", refined.text)
    return refined.text


def create_worker(stop_timeout: float = 20) -> DurableAIAgentWorker:
    endpoint = os.getenv("ENDPOINT", "http://localhost:8080")
    taskhub = os.getenv("TASKHUB", "default")
    logger.info("Using taskhub: %s", taskhub)
    logger.info("Using endpoint: %s", endpoint)

    worker = DurableAIAgentWorker.connect(endpoint, taskhub, stop_timeout=stop_timeout)

    logger.info("Creating and registering Writer agent...")
    worker.add_agent(WriterAgent)
    for name in worker.registered_agent_names:
        logger.info("✓ Registered agent: %s", name)
        logger.info("  Entity name: %s", entity_name(name))
    logger.info("✓ Registered orchestration: %s", worker.add_orchestrator(single_agent_chaining_orchestration))
    return worker


async def main() -> None:
    logger.info("Starting Durable Task Single Agent Chaining Worker with Orchestration...")
    async with scheduler_if_needed(say=logger.info), create_worker() as worker:
        logger.info("Worker is ready and listening for requests...")
        await worker.serve()


if __name__ == "__main__":
    logging.basicConfig()
    logger.setLevel(logging.INFO)
    try:
        anyio.run(main)
    except KeyboardInterrupt:
        sys.exit(130)  # Ctrl+C
