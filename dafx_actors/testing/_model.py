"""A model that says what the test tells it to say."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, TypeAlias, cast

import anyio
import attrs

from dafx_actors.models import ModelDelta, ModelReply, ModelRequest
from dafx_actors.transcript import (
    ChatMessage,
    Content,
    FunctionCallContent,
    FunctionResultContent,
    TextContent,
    UsageStats,
)


@attrs.frozen
class Chunks:
    """A text that a streaming caller gets piece by piece."""

    pieces: tuple[str, ...]


@attrs.frozen
class Late:
    """A reply that is a while in coming."""

    reply: Any
    seconds: float


Reply: TypeAlias = "str | Content | Sequence[str | Content] | Chunks | Late | ModelReply | BaseException"
"""What the model says: a text, tool calls (see `call`), several of these in one message, or an exception to raise."""
Script: TypeAlias = "Reply | Callable[[ModelRequest], Reply | Awaitable[Reply]]"


def call(tool: str, /, **arguments: Any) -> FunctionCallContent:
    """A reply that asks for a tool: `call("get_weather", city="Oslo")`. A list of them asks for several at once."""
    return FunctionCallContent("", tool, arguments)


def chunks(*pieces: str) -> Chunks:
    """A text that comes in these pieces from `ScriptedModel.stream`; from `complete`, at once."""
    return Chunks(pieces)


def late(reply: Reply, seconds: float) -> Late:
    """A reply that takes so many real seconds, for time-outs: `late("At last.", 0.5)`. No clock of a test moves it.

    Raises:
        TypeError: `seconds` is no number.
    """
    if not isinstance(seconds, int | float):  # pyright: ignore[reportUnnecessaryIsInstance] - callers may not type-check
        raise TypeError(f"late(reply, seconds): {seconds!r} is no number of seconds")
    return Late(reply, seconds)


class ScriptedModel:
    """Gives its replies one after the other, and remembers what it was asked.

    ::

        model = ScriptedModel(
            [call("get_weather", city="Oslo"), call("get_weather", city="Rome")],
            ModelError("rate_limit", "slow down", status=429, retry_after=30),
            "Cold in Oslo, warm in Rome.",
        )

    A reply is a text, a tool call, a list of both, `chunks(...)`, `late(...)`, a whole `ModelReply`, an exception to
    raise, or a function (sync or async) of the request that gives one of these; such a function, standing last, answers
    all further calls as well. Tool calls get the ids `call-1`, `call-2`, ...; a word counts as a token.
    """

    def __init__(self, *script: Script) -> None:
        self.requests: list[ModelRequest] = []
        """The requests that the model was asked, oldest first."""
        self._script = list(script)
        self._calls = 0

    async def complete(self, request: ModelRequest) -> ModelReply:
        """Give the next reply.

        Raises:
            AssertionError: The script is at its end: the agent asked once more than the test expects.
        """
        return self._made(request, await self._next(request))

    async def stream(self, request: ModelRequest) -> AsyncIterator[ModelDelta | ModelReply]:
        """Give the next reply in its pieces, or its text as one piece; last the whole of it.

        Raises:
            AssertionError: As `complete`.
        """
        reply = await self._next(request)
        whole = self._made(request, reply)
        for piece in reply.pieces if isinstance(reply, Chunks) else (whole.message.text,):
            if piece:
                yield ModelDelta(text=piece)
        yield whole

    async def aclose(self) -> None:
        """Nothing is held."""

    # --- What a test asks it --------------------------------------------------------------------------------------

    def conversation(self, number: int = -1) -> list[str]:
        """Show the messages of one call of the model, a line for each, such as `user: Hello`.

        Tool calls read as `assistant: -> get_weather(city='Oslo')`, results as `tool: <- 'cold'`.

        Args:
            number: Which call, as an index of `requests`; the latest by default.

        Raises:
            AssertionError: There was no such call.
        """
        try:
            request = self.requests[number]
        except IndexError:
            raise AssertionError(f"the model has no call {number}: it was asked {_times(len(self.requests))}") from None
        return [f"{message.role}: {_shown(message)}" for message in request.messages]

    def assert_asked(self, times: int) -> None:
        """See that the model was asked so often.

        Raises:
            AssertionError: It was not; the message lists what it was asked last in each call.
        """
        if len(self.requests) != times:
            asked = "".join(f"\n  {n}. {self.conversation(n)[-1]}" for n in range(len(self.requests)))
            raise AssertionError(f"the model was asked {_times(len(self.requests))}, not {_times(times)}:{asked}")

    def assert_finished(self) -> None:
        """See that the whole script was used.

        Raises:
            AssertionError: Replies are left; the message lists them.
        """
        left = [reply for reply in self._script if not callable(reply)]
        if left:
            raise AssertionError(f"the model was asked {_times(len(self.requests))}; not used: {left!r}")

    # --- Inside ---------------------------------------------------------------------------------------------------

    async def _next(self, request: ModelRequest) -> Reply:
        self.requests.append(request)
        if not self._script:
            raise AssertionError(
                f"the script has no reply for call {len(self.requests)}, which ends with: {self.conversation()[-1:]}"
            )
        repeats = len(self._script) == 1 and callable(self._script[0])
        reply = self._script[0] if repeats else self._script.pop(0)
        if callable(reply):
            made = reply(request)
            reply = await made if inspect.isawaitable(made) else made
        while isinstance(reply, Late):
            await anyio.sleep(reply.seconds)
            reply = reply.reply
        if isinstance(reply, BaseException):
            raise reply
        return reply

    def _made(self, request: ModelRequest, reply: Any) -> ModelReply:
        if isinstance(reply, ModelReply):
            return reply
        if isinstance(reply, Chunks):
            reply = "".join(reply.pieces)
        is_several = isinstance(reply, Sequence) and not isinstance(reply, str)
        several: Sequence[Any] = cast("Sequence[Any]", reply) if is_several else [reply]
        contents = tuple(self._named(each) for each in several)
        calls = any(isinstance(content, FunctionCallContent) for content in contents)
        message = ChatMessage("assistant", contents)
        return ModelReply(
            message=message, usage=_counted(request, message), finish_reason="tool_calls" if calls else "stop"
        )

    def _named(self, given: str | Content) -> Content:
        if isinstance(given, str):
            return TextContent(given)
        if isinstance(given, FunctionCallContent) and not given.call_id:
            self._calls += 1
            return attrs.evolve(given, call_id=f"call-{self._calls}")
        return given


def _counted(request: ModelRequest, message: ChatMessage) -> UsageStats:
    """A usage that can be checked."""
    asked = sum(len(each.text.split()) for each in request.messages)
    answered = len(message.text.split())
    return UsageStats(asked, answered, asked + answered)


def _shown(message: ChatMessage) -> str:
    shown: list[str] = []
    for content in message.contents:
        if isinstance(content, TextContent):
            shown.append(content.text)
        elif isinstance(content, FunctionCallContent):
            arguments = ", ".join(f"{name}={value!r}" for name, value in content.arguments.items())
            shown.append(f"-> {content.name}({arguments})")
        elif isinstance(content, FunctionResultContent):
            shown.append(f"<- {content.result!r}")
        else:
            shown.append(f"({type(content).__name__})")
    return "; ".join(shown)


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"
