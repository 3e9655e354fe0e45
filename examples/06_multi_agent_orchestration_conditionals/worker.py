"""Hosts a spam detector and an email assistant, and the orchestration that asks the second only if the first allows.

python worker.py
"""

import logging
import os
import sys

import anyio
from pydantic import BaseModel, ConfigDict

from dafx_actors import DurableAIAgentWorker, OrchestrationContext, durable_agent, orchestrator
from dafx_actors.ids import entity_name
from dafx_actors.scheduler import scheduler_if_needed

logger = logging.getLogger("__main__")


class EmailPayload(BaseModel):
    """What the orchestration is given."""

    email_id: str
    email_content: str


class SpamDetectionResult(BaseModel):
    """What the spam detector answers."""

    model_config = ConfigDict(extra="forbid")  # lets a provider hold its model to exactly this form

    is_spam: bool
    reason: str


class EmailResponse(BaseModel):
    """What the email assistant answers."""

    model_config = ConfigDict(extra="forbid")

    response: str


@durable_agent
class SpamDetectionAgent:
    """Tells spam from other email."""

    instructions = "You are a spam detection assistant that identifies spam emails. Give the reason in one sentence."


@durable_agent
class EmailAssistantAgent:
    """Drafts replies."""

    instructions = "You are an email assistant that drafts short, professional replies to emails."


def handle_spam_email(reason: str) -> str:
    """An activity: here the world is touched, which an orchestration must not do itself."""
    logger.info("[Activity] Handling spam email: %s", reason)
    return f"Email marked as spam: {reason}"


def send_email(message: str) -> str:
    """An activity, too."""
    logger.info("[Activity] Sending email: %s", message)
    return f"Email sent: {message}"


@orchestrator
async def spam_detection_orchestration(context: OrchestrationContext, payload: EmailPayload) -> str:
    """Sets spam aside, and answers everything else."""
    log = context.create_replay_safe_logger(logger)
    log.info("[Orchestration] Processing email ID: %s", payload.email_id)
    email = f"Email ID: {payload.email_id}\nContent: {payload.email_content}"

    detector = context.get_agent(SpamDetectionAgent)
    prompt = f"Is this email spam? Answer as JSON with 'is_spam' (boolean) and 'reason' (string).\n{email}"
    detection = (await detector.run(prompt, response_format=SpamDetectionResult)).value
    log.info("[Orchestration] Spam detection result: is_spam=%s", detection.is_spam)

    if detection.is_spam:
        return await context.call_activity(handle_spam_email, input=detection.reason)

    log.info("[Orchestration] Email is legitimate, drafting response...")
    assistant = context.get_agent(EmailAssistantAgent)
    prompt = f"Draft a reply to this email. Answer as JSON with 'response' (string).\n{email}"
    draft = (await assistant.run(prompt, response_format=EmailResponse)).value
    return await context.call_activity(send_email, input=draft.response)


def create_worker(stop_timeout: float = 20) -> DurableAIAgentWorker:
    endpoint = os.getenv("ENDPOINT", "http://localhost:8080")
    taskhub = os.getenv("TASKHUB", "default")
    logger.info("Using taskhub: %s", taskhub)
    logger.info("Using endpoint: %s", endpoint)

    worker = DurableAIAgentWorker.connect(endpoint, taskhub, stop_timeout=stop_timeout)

    logger.info("Creating and registering agents...")
    worker.add_agent(SpamDetectionAgent, EmailAssistantAgent)
    for name in worker.registered_agent_names:
        logger.info("✓ Registered agent: %s", name)
        logger.info("  Entity name: %s", entity_name(name))
    for activity in (handle_spam_email, send_email):
        logger.info("✓ Registered activity: %s", worker.add_activity(activity))
    logger.info("✓ Registered orchestration: %s", worker.add_orchestrator(spam_detection_orchestration))
    return worker


async def main() -> None:
    logger.info("Starting Durable Task Spam Detection Worker with Orchestration...")
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
