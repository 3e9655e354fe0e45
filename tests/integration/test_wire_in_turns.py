"""Whole turns against a provider that refuses what real ones refuse: through the thread, and back to the provider."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from dafx_actors import durable_agent, tool
from dafx_actors.models.openai import OpenAIChatModel
from dafx_actors.testing import ScriptedModel
from dafx_actors.transcript import DataContent
from tests.integration.conftest import Hosting
from tests.provider import Answer, Provider, Refusal, Says, provider

pytestmark = pytest.mark.anyio

PNG = DataContent.from_bytes(b"\x89PNG" + b"x" * 300_000, "image/png")
SIGNED = {"google": {"thought_signature": "c2ln"}}


def call(name: str, arguments: str, call_id: str = "c1", **more: Any) -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}, **more}


def calls_in(asked: dict[str, Any]) -> list[dict[str, Any]]:
    return [made for message in asked["messages"] for made in message.get("tool_calls") or ()]


def helper(server: Provider) -> type:
    at = server.environment["OPENAI_BASE_URL"]

    @durable_agent(model=OpenAIChatModel("m", base_url=at, api_key="k", trust_env=False))
    class Helper:
        instructions = "caf\udce9"

        @tool
        def add(self, a: int, b: int) -> int:
            """Add."""
            return a + b

        @tool
        def look(self) -> list[Any]:
            """Look."""
            return ["The page: \ud83d", PNG]

    return Helper


def strict(asked: dict[str, Any]) -> Refusal | None:
    for made in calls_in(asked):
        if not re.fullmatch("[a-zA-Z0-9_-]{1,64}", made["function"]["name"]):
            return Refusal(400, message="Invalid name")
        if not isinstance(json.loads(made["function"]["arguments"]), dict):
            return Refusal(400, message="Invalid arguments")
        if made.get("extra_content") != SIGNED:
            return Refusal(400, message="Function call is missing a thought_signature")
    return None


async def test_a_model_corrects_a_call_that_it_wrote_wrong(hosting: Hosting) -> None:
    """It is told, it corrects the call, and the thread goes on; each call takes its signature back."""
    wrong = [call("functions.add", '{"a": 1, "b": "un', extra_content=SIGNED)]
    right = [call("add", '{"a": 1, "b": 2}', extra_content=SIGNED)]

    def answer(asked: dict[str, Any]) -> Answer:
        if refused := strict(asked):
            return refused
        made = len(calls_in(asked))
        return Says({"content": None, "tool_calls": right if made else wrong}) if made < 2 else "3"

    with provider(answer=answer) as server:
        agent = helper(server)
        async with hosting(agent) as client:
            asking = client.get_agent(agent)
            first = await asking.run("1 + 2?")
            again = await asking.run("Again?", thread=first.thread)
    assert (first.text, again.text) == ("3", "3")
    assert '"b": "un' in json.loads(calls_in(server.requests[-1])[0]["function"]["arguments"])["unparsed_arguments"]


async def test_an_image_from_a_tool_is_looked_at(hosting: Hosting) -> None:
    """The model gets it as an image, whole characters beside it, and in the next turn again."""

    def answer(asked: dict[str, Any]) -> Answer:
        return "A cat." if calls_in(asked) else Says({"content": None, "tool_calls": [call("look", "{}")]})

    with provider(answer=answer) as server:
        agent = helper(server)
        async with hosting(agent) as client:
            asking = client.get_agent(agent)
            first = await asking.run("Look!")
            await asking.run("And now?", thread=first.thread)
    for asked in server.requests[1:]:
        text = next(message for message in asked["messages"] if message["role"] == "tool")["content"]
        shown = next(message for message in asked["messages"] if isinstance(message["content"], list))["content"]
        assert text.startswith("The page: \ufffd\n[image/png")
        assert shown[1:] == [{"type": "image_url", "image_url": {"url": PNG.uri}}]


async def test_half_a_character_harms_no_thread(hosting: Hosting) -> None:
    """Of a user, and of a model, whichever it is: it is replaced, and the thread goes on."""

    @durable_agent(model=ScriptedModel(lambda _: "cut: \ud83d"))
    class Speaker:
        instructions = "Speak."

    with provider() as server:
        agent = helper(server)
        async with hosting(agent, Speaker) as client:
            asking = client.get_agent(agent)
            first = await asking.run("half \ud83d")
            again = await asking.run("whole", thread=first.thread)
            spoken = await client.get_agent(Speaker).run("Speak!")
    assert (first.text, again.text) == ("Answer to: half \ufffd", "Answer to: whole")
    assert spoken.text == "cut: \ufffd"
