"""Hosts two experts, and the orchestration that asks both at the same time.

python worker.py
"""

import logging
import os
import sys

import anyio

from dafx_actors import DurableAIAgentWorker, OrchestrationContext, durable_agent, orchestrator, when_all
from dafx_actors.ids import entity_name
from dafx_actors.scheduler import scheduler_if_needed

logger = logging.getLogger("__main__")


@durable_agent
class PhysicistAgent:
    """Answers as a physicist."""

    instructions = "You are an expert in physics. You answer questions from a physics perspective."


@durable_agent
class ChemistAgent:
    """Answers as a chemist."""

    instructions = "You are an expert in chemistry. You answer questions from a chemistry perspective."


@orchestrator
async def multi_agent_concurrent_orchestration(context: OrchestrationContext, prompt: str) -> dict[str, str]:
    """Asks both experts the same question and puts their answers together."""
    log = context.create_replay_safe_logger(logger)
    log.info("[Orchestration] Starting concurrent execution for prompt: %s", prompt)

    physicist = context.get_agent(PhysicistAgent)
    chemist = context.get_agent(ChemistAgent)
    physicist_thread = physicist.get_new_thread()
    chemist_thread = chemist.get_new_thread()
    log.info("[Orchestration] Created threads - Physicist: %s, Chemist: %s", physicist_thread, chemist_thread)

    tasks = [physicist.run(prompt, thread=physicist_thread), chemist.run(prompt, thread=chemist_thread)]
    log.info("[Orchestration] Created agent tasks, executing concurrently...")

    physics, chemistry = await when_all(tasks)
    log.info("[Orchestration] Both agents completed")

    results = {"physicist": physics.text, "chemist": chemistry.text}
    log.info("[Orchestration] Aggregated results ready")
    return results


def create_worker(stop_timeout: float = 20) -> DurableAIAgentWorker:
    endpoint = os.getenv("ENDPOINT", "http://localhost:8080")
    taskhub = os.getenv("TASKHUB", "default")
    logger.info("Using taskhub: %s", taskhub)
    logger.info("Using endpoint: %s", endpoint)

    worker = DurableAIAgentWorker.connect(endpoint, taskhub, stop_timeout=stop_timeout)

    logger.info("Creating and registering agents...")
    worker.add_agent(PhysicistAgent, ChemistAgent)
    for name in worker.registered_agent_names:
        logger.info("✓ Registered agent: %s", name)
        logger.info("  Entity name: %s", entity_name(name))
    logger.info("✓ Registered orchestration: %s", worker.add_orchestrator(multi_agent_concurrent_orchestration))
    return worker


async def main() -> None:
    logger.info("Starting Durable Task Multi-Agent Worker with Orchestration...")
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
