"""What a turn records grows with its steps, and not with the transcript that they read."""

from __future__ import annotations

from typing import Any

import pytest

from dafx_actors import ChatMessage, Limits, ModelRequest
from dafx_actors.testing import ScriptedModel
from tests.integration.conftest import Hosting
from tests.integration.turns import agent, asks, is_balanced, results, sdk

pytestmark = pytest.mark.anyio

TOKEN = "word "
LONG = 200_000
"""Tokens: about so many words."""


def calling(rounds: int) -> ScriptedModel:
    """Calls a tool so often, one after the other, once it is told to."""

    def script(request: ModelRequest) -> Any:
        if request.messages[-1].text.startswith(TOKEN):
            return "Read."
        made = sum(1 for message in request.messages if message.role == "tool")
        return asks(("add", {"a": made})) if made < rounds else f"{made} calls; the last gave {results(request)[0]}"

    return ScriptedModel(script)


def add(a: int) -> int:
    return a + 1


async def recorded(hosting: Hosting, endpoint: str, words: int, rounds: int) -> int:
    """Bytes in the history of a turn of so many calls over a transcript of so many words."""
    async with hosting(agent(calling(rounds), add, limits=Limits(steps=250))) as client, sdk(endpoint) as operator:
        worker = client.get_agent("Worker")
        thread = worker.get_new_thread()
        await worker.run(ChatMessage("user", TOKEN * words), thread=thread)
        handle = await worker.start("Go", thread=thread)
        assert (await handle).text == f"{rounds} calls; the last gave {rounds}"
        assert is_balanced(await worker.get_transcript(thread))
        return sum(len(repr(event)) for event in await operator.get_orchestration_history(str(handle)))


@pytest.mark.timeout(400)
async def test_a_hundred_calls_over_a_long_transcript_record_no_more_than_over_a_short_one(
    hosting: Hosting, endpoint: str
) -> None:
    long = await recorded(hosting, endpoint, LONG, 100)
    short = await recorded(hosting, endpoint, 1, 100)
    few = await recorded(hosting, endpoint, LONG, 10)
    assert abs(long - short) < 0.01 * short
    assert long < 11 * few
    print(f"bytes: {long} for 100 calls over {LONG} tokens, {short} over one, {few} for 10 calls")
