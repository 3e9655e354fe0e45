"""A small language model on this machine's CPU: no key, no account, and no network after the first use.

It is SmolLM2 with 135 million parameters: it answers in whole sentences, about 75 tokens a second, and often
wrongly. It is there so that a first program runs and that tests meet a real model. Its weights (93 MB) are
fetched at the first use, or ahead of it with `python -m dafx_actors.models.local`.
"""

from __future__ import annotations

import importlib.util
import sys
import threading
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path
from typing import ClassVar

import anyio
import attrs
from anyio import to_thread

from dafx_actors.errors import ConfigurationError, ModelError
from dafx_actors.models import ModelDelta, ModelReply, ModelRequest, _server, _weights
from dafx_actors.models.openai import OpenAIChatModel
from dafx_actors.transcript import DataContent, HostedFileContent, UriContent

__all__ = ["LocalModel", "fetch"]

fetch = _weights.fetch


@attrs.define(eq=False, kw_only=True)
class LocalModel:
    """The small model. All that are alike in one process share one server, from first use to the last `aclose()`.

    It cannot call tools, and reads only text. Asked with a `response_schema`, it is held to that schema's form.
    """

    name: ClassVar[str] = _weights.NAME

    context: int = 4096
    """Tokens of one conversation, question and answer together; the model was trained for up to 8192."""
    slots: int = 2
    """Answers made at the same time; further calls wait. Each takes memory, 23 KB for a token of context."""
    threads: int = 1
    """Threads that compute. Two are twice as fast on two idle cores, but wait for each other at every step: where
    other programs want a core too, they were seen to be forty times slower than one."""
    temperature: float = 0.7
    seed: int = 13
    """Fixed, so that the same conversation gets the same answer."""
    max_tokens: int = 512
    """The longest answer: a model this small may not find an end. A request's options may say otherwise."""
    weights: Path | None = None
    """Another file with a model, in GGUF form, instead of the one that is fetched."""

    _mutex: threading.Lock = attrs.field(init=False, repr=False, factory=threading.Lock)
    _lease: _server.Lease | None = attrs.field(init=False, repr=False, default=None)
    _chat: OpenAIChatModel | None = attrs.field(init=False, repr=False, default=None)

    async def complete(self, request: ModelRequest) -> ModelReply:
        """Make one call. The first one starts the server, and fetches the weights if need be.

        Raises:
            ModelError: The call failed; of kind `bad_request` for tools and for what is not text, `context_length` for
                a conversation that is too long, `not_found` where the option `model` names another one.
            ConfigurationError: The extra is not installed, or the weights cannot be fetched.
        """
        _check(request)
        chat = await self._served()
        return await chat.complete(request)

    async def stream(self, request: ModelRequest) -> AsyncGenerator[ModelDelta | ModelReply, None]:
        """Make one call; gives pieces of text as they come, and last the whole reply.

        Raises:
            ModelError: As for `complete()`.
            ConfigurationError: As for `complete()`.
        """
        _check(request)
        chat = await self._served()
        async with aclosing(chat.stream(request)) as pieces:
            async for piece in pieces:
                yield piece

    async def aclose(self) -> None:
        """Stop the server, if no other model uses it. Safe to do twice."""
        with anyio.CancelScope(shield=True):
            chat, self._chat = self._chat, None
            if chat is not None:
                await chat.aclose()
            await to_thread.run_sync(self._release)

    async def _served(self) -> OpenAIChatModel:
        """The way to the server, which is started first if it does not run (any more)."""
        lease, chat = self._lease, self._chat
        if lease is not None and chat is not None and lease.alive:
            return chat
        started = await to_thread.run_sync(self._start)
        if chat is not None and chat is not started:
            await chat.aclose()  # its server is gone
        return started

    def _start(self) -> OpenAIChatModel:
        # Off the event loop: it loads for half a second, and the first time ever fetches 93 MB.
        with self._mutex:
            if self._lease is not None and self._chat is not None and self._lease.alive:
                return self._chat
            if importlib.util.find_spec("xllamacpp") is None:
                raise ConfigurationError(("The local model needs its extra: pip install 'dafx-actors[local]'",))
            settings = _server.Settings(
                name=self.name,
                weights=self.weights or fetch(),
                context=self.context,
                slots=self.slots,
                threads=self.threads,
            )
            if self._lease is not None:
                self._lease.release()
            self._lease = lease = _server.lease(settings)
            self._chat = OpenAIChatModel(
                self.name,
                base_url=f"{lease.url}/v1",
                api_key=lease.api_key,
                options={"temperature": self.temperature, "seed": self.seed, "max_tokens": self.max_tokens},
                # A proxy for the world outside must not be asked for a server on 127.0.0.1.
                trust_env=False,
                # Its server closes a connection when it likes, also just as the next request arrives.
                keep_alive=False,
            )
            return self._chat

    def _release(self) -> None:
        with self._mutex:
            lease, self._lease = self._lease, None
            if lease is not None:
                lease.release()


def _check(request: ModelRequest) -> None:
    named = request.options.get("model", LocalModel.name)
    if named != LocalModel.name:
        raise ModelError(kind="not_found", message=f"The local model is {LocalModel.name}, and no {named!r}.")
    if request.tools:
        raise ModelError(
            kind="bad_request",
            message="The local model cannot call tools. Configure OpenAI or Azure OpenAI for an agent that has tools.",
        )
    for message in request.messages:
        for content in message.contents:
            if isinstance(content, DataContent | UriContent | HostedFileContent):
                what = type(content).__name__
                raise ModelError(kind="bad_request", message=f"The local model reads only text, and no {what}.")


def main() -> int:
    """Fetch the weights and say where they are."""
    try:
        path = fetch()
    except ConfigurationError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(f"{path}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
