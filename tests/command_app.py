"""What `tests/test_command.py` hosts: copied into a folder of the test, and changed there."""

import anyio

from dafx_actors import ModelReply, ModelRequest, OrchestrationContext, durable_agent, orchestrator, tool
from dafx_actors.testing import ScriptedModel, call
from dafx_actors.transcript import ChatMessage, FunctionCallContent, FunctionResultContent


class Says:
    """A model that repeats what it was told; `sleep` takes for ever."""

    async def complete(self, request: ModelRequest) -> ModelReply:
        text = request.messages[-1].text
        if text == "sleep":
            await anyio.sleep_forever()
        if text == "fail":
            raise RuntimeError("it is broken")
        return ModelReply(message=ChatMessage("assistant", f"You said: {text}"))

    async def aclose(self) -> None:
        """Nothing is open."""


def pays(request: ModelRequest) -> str | FunctionCallContent:
    results = [each.result for each in request.messages[-1].contents if isinstance(each, FunctionResultContent)]
    return f"Done: {results[0]}" if results else call("pay", amount=5)


@durable_agent(model=Says())
class Parrot:
    instructions = "Repeat."


@durable_agent(model=ScriptedModel(pays))
class Payer:
    instructions = "Pay."

    @tool(approval=True)
    def pay(self, amount: int) -> str:
        """Pay."""
        return f"paid {amount}"


@orchestrator
async def waits(context: OrchestrationContext, start: int) -> int:
    return start + await context.wait_for_external_event("more", data_type=int)
