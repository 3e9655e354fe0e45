"""All of it in one process, with a clock that is moved by hand.

For tests of programs that use agents: no network, no key, no waiting.

::

    model = ScriptedModel(call("pay", amount=5), "Paid.")

    @durable_agent(model=model)
    class Cashier:
        instructions = "You handle payments."

        @tool(approval=True, effect="once")
        async def pay(self, amount: int) -> str: ...

    async def test_a_payment_waits_for_a_person_and_survives_a_crash() -> None:
        async with AgentHost(Cashier) as host:
            turn = await host.client.get_agent(Cashier).start("Pay 5")
            await host.advance(timedelta(days=29))                      # milliseconds
            host.crash(before="tool", name="pay")
            [asked] = await host.client.pending_approvals(Cashier)
            await host.client.approve(asked, by="ana")
            assert (await turn).text == "Paid."

- `ScriptedModel` says what it is told to say, and keeps what it was asked.
- `AgentHost` is a scheduler in memory, a worker and a client. Its clock is moved by hand, and its worker crashes where
  the test wants it.
- `replay` runs today's code against the recorded `History` of an orchestration or a turn.
- With pytest and anyio, the fixture `agent_host` starts hosts that end with the test.
"""

from __future__ import annotations

from dafx_actors.errors import ModelError
from dafx_actors.models import ModelReply, ModelRequest
from dafx_actors.testing._clock import HandClock
from dafx_actors.testing._faults import Fault, Point
from dafx_actors.testing._host import AgentHost, NotSettled
from dafx_actors.testing._model import ScriptedModel, call, chunks, late
from dafx_actors.testing._replay import History, ReplayMismatch, history_of, replay

__all__ = [
    "AgentHost",
    "Fault",
    "HandClock",
    "History",
    "ModelError",
    "ModelReply",
    "ModelRequest",
    "NotSettled",
    "Point",
    "ReplayMismatch",
    "ScriptedModel",
    "call",
    "chunks",
    "history_of",
    "late",
    "replay",
]
