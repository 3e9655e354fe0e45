"""What the recorded histories are of. `python -m tests.histories.runs [FOLDER]` records those that are not there yet.

A history that was recorded stays as it is, whatever becomes of the code: it stands for the turns and orchestrations
that run while a newer version is deployed. When a run is worth a new recording, give that a new name.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeAlias

import anyio
from durabletask.task import RetryPolicy

from dafx_actors import (
    Approval,
    ModelRequest,
    OrchestrationContext,
    as_tool,
    durable_agent,
    orchestrator,
    tool,
    when_all,
)
from dafx_actors.errors import ModelError, TurnCancelled
from dafx_actors.handles import OrchestrationHandle, TurnHandle
from dafx_actors.testing import AgentHost, History, ScriptedModel, call
from dafx_actors.testing._model import Reply

FOLDER = Path(__file__).parent
START = datetime(2030, 1, 1, tzinfo=UTC)
THREAD = "8d6e0f0e-2a56-4c1c-9d2f-6f6a3c0f7a11"

LETTER = "Dear Clerk," + 8_300 * " you"
"""A request that is large."""
SCRIPTS: dict[str, list[Reply]] = {
    "Hello": ["Hello to you."],
    "Weather": [[call("look", city="Oslo"), call("look", city="Rome"), call("nowhere")], "Cold and warm."],
    "Pay": [call("pay", amount=5), "Paid."],
    "Refund": [call("refund", amount=5), "Not refunded."],
    "Busy": ["Finally."],
    "Ask": [call("Expert", request="Hello"), "The expert says hello."],
    "Number": ["five", "5"],
    "Charge": [call("charge", amount=5), "Charged."],
    LETTER: ["Long."],
}
"""By the request."""


class _Model(ScriptedModel):
    """Says what stands there for the request; it is busy at first where that is `Busy`."""

    def __init__(self) -> None:
        super().__init__(self._say)
        self._failures = 0

    def _say(self, request: ModelRequest) -> Reply:
        begun = max(
            n for n, message in enumerate(request.messages) if message.role == "user" and message.text in SCRIPTS
        )
        asked = request.messages[begun].text
        if asked == "Busy" and self._failures < 2:
            self._failures += 1
            raise ModelError("rate_limit", "slow down", status=429, retry_after=20 * self._failures)
        return SCRIPTS[asked][sum(message.role == "assistant" for message in request.messages[begun:])]


@durable_agent(model=_Model)
class Expert:
    """Knows things."""

    instructions = "You know things."


@durable_agent(model=_Model, retry=RetryPolicy(first_retry_interval=timedelta(seconds=1), max_number_of_attempts=5))
class Clerk:
    """Has tools of every sort."""

    instructions = "You do as the script says."
    tools = (as_tool(Expert),)

    @tool
    async def look(self, city: str) -> str:
        """Look at the weather."""
        return f"fine in {city}"

    @tool(approval=True)
    async def pay(self, amount: int) -> str:
        """Pay."""
        return f"paid {amount}"

    @tool(approval=Approval(timeout=timedelta(days=7)))
    async def refund(self, amount: int) -> str:
        """Give money back."""
        return f"gave {amount}"

    @tool(effect="once")
    async def charge(self, amount: int) -> str:
        """Take money."""
        return f"took {amount}"


async def tidy(text: str) -> str:
    return text.strip()


@orchestrator
async def two_agents(context: OrchestrationContext, prompt: str) -> list[str]:
    clerk, expert = context.get_agent(Clerk), context.get_agent(Expert)
    first, second = await when_all([clerk.run(prompt), expert.run(prompt)])
    await context.sleep(timedelta(days=1))
    try:
        await context.wait_for_external_event("feedback", timeout=timedelta(days=2))
    except TimeoutError:
        context.set_custom_status("nobody cares")
    return [await context.call_activity(tidy, input=response.text) for response in (first, second)]


HOSTED = (Clerk, Expert, two_agents)
"""What today's code is."""

Run: TypeAlias = "Callable[[AgentHost], Awaitable[TurnHandle[None] | OrchestrationHandle[list[str]]]]"


async def _turn(host: AgentHost, text: str, name: str, thread: str = THREAD) -> TurnHandle[None]:
    return await host.client.get_agent(Clerk).start(text, thread=thread, correlation_id=name)


def answered(text: str, name: str) -> Run:
    """A turn that ends by itself, as time goes by."""

    async def run(host: AgentHost) -> TurnHandle[None]:
        turn = await _turn(host, text, name)
        await host.fast_forward(turn)
        return turn

    return run


async def approved(host: AgentHost) -> TurnHandle[None]:
    turn = await _turn(host, "Pay", "approved")
    await host.advance(timedelta(days=5))
    [asked] = await host.client.pending_approvals(Clerk)
    await host.client.approve(asked, by="ana", arguments={"amount": 4})
    await turn
    return turn


async def cancelled(host: AgentHost) -> TurnHandle[None]:
    turn = await _turn(host, "Pay", "cancelled")
    await host.settled()
    assert await turn.cancel("enough", by="ana")
    try:
        await turn
    except TurnCancelled:
        return turn
    raise AssertionError("it was cancelled")


def queued(text: str) -> Run:
    """A turn that waits for another one in its thread."""

    async def run(host: AgentHost) -> TurnHandle[None]:
        first = await _turn(host, "Pay", "first")
        await host.settled()
        second = await _turn(host, text, "queued")
        await host.advance(10)
        [asked] = await host.client.pending_approvals(Clerk)
        await host.client.deny(asked, "no money")
        await first
        await second
        return second

    return run


async def unknown_outcome(host: AgentHost) -> TurnHandle[None]:
    host.crash(after="tool", name="charge")
    turn = await _turn(host, "Charge", "unknown_outcome")
    await host.settled()
    [asked] = await host.client.pending_outcomes(Clerk)
    await host.client.resolve(asked, "result", result="took 5")
    await turn
    return turn


async def orchestration(host: AgentHost) -> OrchestrationHandle[list[str]]:
    handle = await host.client.schedule_new_orchestration(two_agents, input="Hello", instance_id="orchestration")
    await host.fast_forward(handle)
    return handle


RUNS: dict[str, Run] = {
    "simple": answered("Hello", "simple"),
    "tools": answered("Weather", "tools"),
    "agent_as_tool": answered("Ask", "agent_as_tool"),
    "retried": answered("Busy", "retried"),
    "expired": answered("Refund", "expired"),
    "approved": approved,
    "cancelled": cancelled,
    "queued": queued("Hello"),
    "unknown_outcome": unknown_outcome,
    "orchestration": orchestration,
    # Since turns ask for their thread and their first model call at once:
    "at_once": answered("Hello", "at_once"),
    "at_once_tools": answered("Weather", "at_once_tools"),
    "at_once_retried": answered("Busy", "at_once_retried"),
    "at_once_approved": approved,
    "at_once_cancelled": cancelled,
    "at_once_queued": queued("Hello"),
    # Since turns look after names that nobody hosts:
    "form1_tools": answered("Weather", "form1_tools"),
    # Since limits and cancels are of the whole tree of agents:
    "tree": answered("Ask", "tree"),
    # Since a large request that waits is not sent each time that its turn asks:
    "line": queued(LETTER),
}


async def record(name: str) -> History:
    """Run it, and read what was recorded."""
    async with AgentHost(Clerk, Expert, orchestrators=[two_agents], activities=[tidy], start=START) as host:
        handle = await RUNS[name](host)
        await host.settled()
        return await host.history(handle)


async def main(folder: Path) -> None:
    """Record all that is not there yet."""
    for name in RUNS:
        file = folder / f"{name}.json"
        if not file.exists():
            (await record(name)).save(file)
            print(file)


if __name__ == "__main__":
    anyio.run(main, Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
