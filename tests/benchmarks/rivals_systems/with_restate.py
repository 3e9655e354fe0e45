"""Restate: `worker PORT`, `client INGRESS`. A thread is a virtual object, and each step is a `ctx.run_typed`."""

# It is installed in an environment of its own, where type checkers do not look.
# mypy: ignore-errors
# pyright: basic, reportMissingImports=false

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import httpx
import restate
from hypercorn.asyncio import serve
from hypercorn.config import Config

from tests.benchmarks import control
from tests.benchmarks.rivals_systems.turns import Client, past, think, use

agent = restate.VirtualObject("Bench")


async def model(messages: list[dict[str, Any]]) -> dict[str, Any]:
    """A model call."""
    last = max(number for number, message in enumerate(messages) if message["role"] == "user")
    done = sum(message["role"] == "tool" for message in messages[last + 1 :])
    call = await think(messages[last]["content"], done)
    return {"role": "assistant", **({"content": control.ANSWER} if call is None else {"call": call})}


async def double(number: int, seconds: float) -> int:
    """The tool."""
    return await use(number, seconds)


@agent.handler()
async def turn(ctx: restate.ObjectContext, text: str) -> str:
    """Until the model answers."""
    messages = await ctx.get("messages", type_hint=list) or []
    messages.append({"role": "user", "content": text})
    while True:
        reply = await ctx.run_typed("model", model, restate.RunOptions(), messages)
        messages.append(reply)
        if "call" not in reply:
            ctx.set("messages", messages)
            return reply["content"]
        called = await ctx.run_typed("double", double, restate.RunOptions(), **reply["call"])
        messages.append({"role": "tool", "content": called})


@agent.handler()
async def deepen(ctx: restate.ObjectContext, turns: int) -> None:
    """Write what so many turns would have left."""
    ctx.set("messages", past(turns))


def run_worker(port: int) -> None:
    """Serve the object to the server."""
    config = Config()
    config.bind = [f"127.0.0.1:{port}"]
    config.loglevel = "CRITICAL"
    print(json.dumps("ready"), flush=True)
    asyncio.run(serve(restate.app([agent]), config))


class Caller(Client):
    """A client: it posts to the server's ingress."""

    def __init__(self, ingress: str) -> None:
        self._ingress = ingress

    async def start(self) -> None:
        """Make the pool of connections."""
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=2_000)
        self._http = httpx.AsyncClient(base_url=self._ingress, timeout=None, limits=limits)

    async def _post(self, path: str, body: Any) -> Any:
        reply = await self._http.post(path, json=body)
        assert reply.is_success, reply.text
        return reply.json() if reply.content else None

    async def turn(self, thread: str, text: str) -> str:
        """One invocation."""
        return await self._post(f"/Bench/{thread}/turn", text)

    async def deepen(self, thread: str, turns: int) -> None:
        """By the handler."""
        await self._post(f"/Bench/{thread}/deepen", turns)


if __name__ == "__main__":
    control.quiet()
    role, where = sys.argv[1:]
    if role == "worker":
        run_worker(int(where))
    else:
        Caller(where).serve()
