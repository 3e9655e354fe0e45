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
- The fixture `agent_host` of pytest starts hosts that end with the test, under anyio's plugin and under pytest-asyncio.

A host has a scheduler, a clock and a worker of its own, so no test sees another's. Its start and stop cost a test some
20 ms. Where that matters, a fixture of your own gives many tests one host. They share its clock, which goes forward
only, the scripts of its models and all threads, so let each test ask for a thread of its own::

    pytestmark = pytest.mark.anyio

    @pytest.fixture(scope="module")
    def anyio_backend() -> str:
        return "asyncio"

    @pytest.fixture(scope="module")
    async def host(anyio_backend: str) -> AsyncGenerator[AgentHost]:
        async with AgentHost(Cashier) as host:
            yield host

With pytest-asyncio that is `@pytest_asyncio.fixture(scope="module", loop_scope="module")`, and the tests have the mark
`asyncio(loop_scope="module")`.
"""

from __future__ import annotations

from dafx_actors._durable.recorded import History
from dafx_actors.errors import ModelError
from dafx_actors.models import ModelReply, ModelRequest
from dafx_actors.testing._clock import HandClock
from dafx_actors.testing._faults import Fault, Point
from dafx_actors.testing._host import AgentHost, AgentHosts, NotSettled
from dafx_actors.testing._model import ScriptedModel, call, chunks, late
from dafx_actors.testing._replay import history_of
from dafx_actors.worker._replay import ReplayMismatch, replay

__all__ = [
    "AgentHost",
    "AgentHosts",
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
