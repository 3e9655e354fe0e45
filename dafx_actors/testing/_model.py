"""For tests of programs that use agents: a model that says what it is told to.

::

    model = ScriptedModel("Why did the cloud break up?", "Because of the server.")

    @durable_agent(model=model)
    class Joker: ...

    assert model.requests[1].messages[-1].text == "Another one"
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import TypeAlias

from dafx_actors.errors import ModelError
from dafx_actors.models import ModelReply, ModelRequest
from dafx_actors.transcript import ChatMessage, UsageStats

Reply: TypeAlias = "str | ModelReply | BaseException"
Script: TypeAlias = "Reply | Callable[[ModelRequest], Reply | Awaitable[Reply]]"


class ScriptedModel:
    """Gives its replies in turn, and remembers what it was asked.

    A reply is a text, a whole `ModelReply`, an exception to raise, or a function (sync or async) of the request that
    gives one of these; such a function, standing last, answers all further calls as well.
    """

    def __init__(self, *script: Script) -> None:
        self.requests: list[ModelRequest] = []
        """What the model was asked, oldest first."""
        self._script = list(script)

    async def complete(self, request: ModelRequest) -> ModelReply:
        """Give the next reply.

        Raises:
            AssertionError: The script is at its end: the agent asked once more than the test expects.
        """
        self.requests.append(request)
        if not self._script:
            raise AssertionError(f"the script has no reply for call {len(self.requests)}: {request}")
        repeats = len(self._script) == 1 and callable(self._script[0])
        reply = self._script[0] if repeats else self._script.pop(0)
        if callable(reply):
            made = reply(request)
            reply = await made if inspect.isawaitable(made) else made
        if isinstance(reply, BaseException):
            raise reply
        return reply if isinstance(reply, ModelReply) else _counted(request, reply)

    async def aclose(self) -> None:
        """Nothing is held."""


def _counted(request: ModelRequest, text: str) -> ModelReply:
    """A reply whose usage can be checked: a word counts as a token."""
    asked = sum(len(message.text.split()) for message in request.messages)
    answered = len(text.split())
    usage = UsageStats(asked, answered, asked + answered)
    return ModelReply(message=ChatMessage("assistant", text), usage=usage)


__all__ = ["ModelError", "ModelReply", "ModelRequest", "ScriptedModel"]
