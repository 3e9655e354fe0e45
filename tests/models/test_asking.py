"""Conversations that another model began, over a socket: what a server refuses is sent in a form that it takes."""

from __future__ import annotations

from typing import Any

import pytest

from dafx_actors.errors import ModelError
from dafx_actors.models import ModelRequest
from dafx_actors.models.openai import OpenAIChatModel
from dafx_actors.transcript import ChatMessage, DataContent, FunctionCallContent, FunctionResultContent
from tests.provider import Answer, Refusal, provider

pytestmark = pytest.mark.anyio

PNG = DataContent.from_bytes(b"\x89PNG", "image/png")
LOOKED = (
    ChatMessage("user", "?"),
    ChatMessage("assistant", (FunctionCallContent("c1", "look"),)),
    ChatMessage("tool", (FunctionResultContent("c1", {"$type": "data", "uri": PNG.uri, "mediaType": "image/png"}),)),
)


def has_media(asked: dict[str, Any]) -> bool:
    return any(isinstance(message["content"], list) for message in asked["messages"])


def calling(asked: dict[str, Any]) -> dict[str, Any]:
    return next(message for message in asked["messages"] if message.get("tool_calls"))


REFUSALS: list[tuple[str, str, Any]] = [
    ("no images", "messages[3]: unknown variant `image_url`, expected `text`", has_media),
    ("no images, in other words", "This model does not support image input", has_media),
    (
        "reasoning of each call",
        "The `reasoning_content` in the thinking mode must be passed back to the API.",
        lambda asked: "reasoning_content" not in calling(asked),
    ),
    (
        "a signature of each call",
        "Function call is missing a thought_signature in functionCall parts.",
        lambda asked: "extra_content" not in calling(asked)["tool_calls"][0],
    ),
]


@pytest.mark.parametrize(("message", "refuses"), [each[1:] for each in REFUSALS], ids=[each[0] for each in REFUSALS])
async def test_a_conversation_that_another_model_began(message: str, refuses: Any) -> None:
    """It is sent again at once, as the server takes it, and from then on."""

    def answer(asked: dict[str, Any]) -> Answer:
        return Refusal(400, message=message) if refuses(asked) else "Yes."

    with provider(answer=answer) as server:
        model = OpenAIChatModel("m", base_url=server.environment["OPENAI_BASE_URL"], api_key="k", trust_env=False)
        for _ in range(2):
            assert (await model.complete(ModelRequest(messages=LOOKED))).message.text == "Yes."
        await model.aclose()
    assert [refuses(asked) for asked in server.requests] == [True, False, False]


async def test_an_image_of_a_user_is_not_left_out() -> None:
    """Whoever sent it is told that the model does not look at it."""
    with provider(answer=lambda _: Refusal(400, message="This model does not support image input")) as server:
        model = OpenAIChatModel("m", base_url=server.environment["OPENAI_BASE_URL"], api_key="k", trust_env=False)
        with pytest.raises(ModelError, match="does not support image input"):
            await model.complete(ModelRequest(messages=(ChatMessage("user", (PNG,)),)))
        await model.aclose()
    assert len(server.requests) == 1
