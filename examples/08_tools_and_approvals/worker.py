"""Hosts an agent with three tools: one looks up, one notes, and one pays back money, once, after a person approved it.

python worker.py
"""

import json
import logging
import os
import sys
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import anyio
import attrs

from dafx_actors import Approval, DurableAIAgentWorker, NotDone, ToolContext, durable_agent, tool
from dafx_actors.ids import entity_name
from dafx_actors.scheduler import scheduler_if_needed

logger = logging.getLogger("__main__")

OrderId = Annotated[str, "such as A-1001"]


@attrs.frozen
class Order:
    """What somebody bought."""

    order_id: str
    item: str
    price: float


ORDERS = {
    "A-1001": Order("A-1001", "a teapot", 40.0),
    "A-1002": Order("A-1002", "an espresso machine", 950.0),
}


class Bank:
    """Stands for a payment service: pays when it is told to, and knows its payments by their idempotency keys."""

    def __init__(self, ledger: Path) -> None:
        self.ledger = ledger

    def pay(self, order_id: str, amount: float, key: str) -> str:
        """Pay, and keep the key with the payment."""
        with self.ledger.open("a", encoding="utf-8") as ledger:
            ledger.write(json.dumps({"key": key, "order_id": order_id, "amount": amount}) + "\n")
        return f"refunded {amount:.2f} for {order_id}"

    def find(self, key: str) -> str | None:
        """The payment that was made under this key, if there is one."""
        lines = self.ledger.read_text(encoding="utf-8").splitlines() if self.ledger.exists() else []
        payments = [json.loads(line) for line in lines]
        return next((f"refunded {p['amount']:.2f} for {p['order_id']}" for p in payments if p["key"] == key), None)


def is_large(amount: float) -> bool:
    """Which refunds a person must approve."""
    return amount >= 100


@durable_agent
class SupportAgent:
    """Answers customers, and pays back their money."""

    instructions = (
        "You help customers of a shop. Look an order up before you say anything about it. Refund it where the customer "
        "asks for that, with its price. Answer in one or two sentences."
    )

    def __init__(self, bank: Bank) -> None:
        self.bank = bank

    @tool
    def find_order(self, order_id: OrderId) -> Order:
        """Look up what was ordered, and its price."""
        if order_id not in ORDERS:
            raise LookupError(f"there is no order {order_id}; there are {', '.join(ORDERS)}")
        return ORDERS[order_id]

    async def find_refund(self, context: ToolContext) -> str:
        """What became of a refund that was cut off: asked before one is made again."""
        paid = self.bank.find(context.idempotency_key)
        if paid is None:
            raise NotDone
        return paid

    @tool(effect="once", reconcile=find_refund, approval=Approval(when=is_large, timeout=timedelta(days=3)))
    def refund(self, order_id: OrderId, amount: float, context: ToolContext) -> str:
        """Pay the customer's money back."""
        logger.info("[Tool] Refunding %.2f for %s", amount, order_id)
        return self.bank.pay(order_id, amount, context.idempotency_key)


def create_worker(stop_timeout: float = 20) -> DurableAIAgentWorker:
    endpoint = os.getenv("ENDPOINT", "http://localhost:8080")
    taskhub = os.getenv("TASKHUB", "default")
    logger.info("Using taskhub: %s", taskhub)
    logger.info("Using endpoint: %s", endpoint)

    worker = DurableAIAgentWorker.connect(endpoint, taskhub, stop_timeout=stop_timeout)

    logger.info("Creating and registering agents...")
    worker.add_agent(SupportAgent(Bank(Path(os.getenv("LEDGER", "refunds.jsonl")))))
    for name in worker.registered_agent_names:
        logger.info("✓ Registered agent: %s", name)
        logger.info("  Entity name: %s", entity_name(name))
    return worker


async def main() -> None:
    logger.info("Starting Durable Task Tools and Approvals Worker...")
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
