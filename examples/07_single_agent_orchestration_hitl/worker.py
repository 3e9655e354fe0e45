"""Hosts a writer, and the orchestration that publishes what it writes once a person has approved it.

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

HUMAN_APPROVAL_EVENT = "HumanApproval"


class ContentGenerationInput(BaseModel):
    """What the orchestration is given."""

    topic: str
    max_review_attempts: int = 3
    approval_timeout_seconds: float = 300


class GeneratedContent(BaseModel):
    """What the writer answers."""

    model_config = ConfigDict(extra="forbid")  # lets a provider hold its model to exactly this form

    title: str
    content: str


class HumanApproval(BaseModel):
    """What a person decides: the data of the event."""

    approved: bool
    feedback: str = ""
    attempt: int | None = None  # the draft that the person has seen


@durable_agent
class WriterAgent:
    """Writes articles."""

    instructions = (
        "You are a content writer. You write articles of two short sentences. "
        "Answer as JSON with 'title' and 'content'."
    )


def notify_user_for_approval(content: GeneratedContent) -> str:
    """An activity: tells the reviewer; think of an email here."""
    logger.info("NOTIFICATION: Please review the following content for approval:")
    logger.info("Title: %s", content.title)
    logger.info("Content: %s", content.content)
    return "Notification sent to user for approval."


def publish_content(content: GeneratedContent) -> str:
    """An activity: what must not happen before a person has agreed."""
    logger.info("PUBLISHING: Content has been published successfully: %s", content.title)
    return "Published content successfully."


@orchestrator
async def content_generation_hitl_orchestration(
    context: OrchestrationContext, payload: ContentGenerationInput
) -> GeneratedContent:
    """Lets the writer write, and write again, until a person approves.

    Raises:
        TimeoutError: Nobody decided in time.
        RuntimeError: The last draft that was allowed has been rejected.
    """
    log = context.create_replay_safe_logger(logger)
    writer = context.get_agent(WriterAgent)
    thread = writer.get_new_thread()
    prompt = f"Write two short sentences about '{payload.topic}'."

    for attempt in range(1, payload.max_review_attempts + 1):
        log.info("[Orchestration] Writing, attempt %d of %d", attempt, payload.max_review_attempts)
        content = (await writer.run(prompt, thread=thread, response_format=GeneratedContent)).value
        await context.call_activity(notify_user_for_approval, input=content)

        timeout = payload.approval_timeout_seconds
        asking = f"Requesting human feedback (Attempt {attempt}, timeout {timeout:g}s)"
        context.set_custom_status({"message": asking, "attempt": attempt, "draft": content})
        try:
            approval = await decision_about(context, attempt, timeout)
        except TimeoutError:
            context.set_custom_status({"message": "Human approval timed out."})
            raise TimeoutError(f"Human approval timed out after {timeout:g} second(s).") from None

        if approval.approved:
            context.set_custom_status({"message": "Content approved by human reviewer. Publishing..."})
            await context.call_activity(publish_content, input=content)
            return content

        log.info("[Orchestration] Content rejected. Feedback: %s", approval.feedback)
        context.set_custom_status({"message": "Content rejected by human reviewer. Regenerating..."})
        prompt = (
            f"A reviewer rejected this. Write it again, in two short sentences, with this feedback: {approval.feedback}"
        )

    context.set_custom_status({"message": "Max review attempts exhausted."})
    raise RuntimeError(f"Content could not be approved after {payload.max_review_attempts} iteration(s).")


async def decision_about(context: OrchestrationContext, attempt: int, timeout: float) -> HumanApproval:
    """Wait, for days if need be: nothing runs meanwhile, and the worker may be stopped and started again.

    Raises:
        TimeoutError: Nobody decided in time.
    """
    while True:
        approval = await context.wait_for_external_event(HUMAN_APPROVAL_EVENT, data_type=HumanApproval, timeout=timeout)
        if approval.attempt in {None, attempt}:  # else two people have decided about one draft
            return approval


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
    for activity in (notify_user_for_approval, publish_content):
        logger.info("✓ Registered activity: %s", worker.add_activity(activity))
    logger.info("✓ Registered orchestration: %s", worker.add_orchestrator(content_generation_hitl_orchestration))
    return worker


async def main() -> None:
    logger.info("Starting Durable Task HITL Content Generation Worker...")
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
