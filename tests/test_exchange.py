"""What is sent and what comes back."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any

import pytest

from dafx_actors import AgentRunResponse, AgentThread, ChatMessage, DataContent, TextContent, UriContent
from dafx_actors.exchange import Limits, RunRequest, as_messages

PICTURE = DataContent.from_bytes(b"\x89PNG", "image/png")
LINK = UriContent("https://example.com/a.png", "image/png")


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ("Hello", [ChatMessage("user", "Hello")]),
        ("", [ChatMessage("user", "")]),
        (PICTURE, [ChatMessage("user", (PICTURE,))]),
        (ChatMessage("system", "Be brief"), [ChatMessage("system", "Be brief")]),
        (["What is it?", PICTURE], [ChatMessage("user", (TextContent("What is it?"), PICTURE))]),
        (
            ["a", ChatMessage("assistant", "b"), LINK, "c"],
            [ChatMessage("user", "a"), ChatMessage("assistant", "b"), ChatMessage("user", (LINK, TextContent("c")))],
        ),
        ({"role": "user", "content": "Hello"}, [ChatMessage("user", "Hello")]),
        (
            [
                "a",
                {"role": "assistant", "content": [{"type": "text", "text": "b"}, {"type": "text", "text": "c"}]},
                "d",
            ],
            [
                ChatMessage("user", "a"),
                ChatMessage("assistant", (TextContent("b"), TextContent("c"))),
                ChatMessage("user", "d"),
            ],
        ),
        ((text for text in "ab"), [ChatMessage("user", (TextContent("a"), TextContent("b")))]),
    ],
)
def test_texts_and_contents_that_stand_together_are_one_message(given: Any, sent: list[ChatMessage]) -> None:
    assert as_messages(given) == tuple(sent)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (5, "int: 5"),
        (None, "NoneType"),
        ([5], "int: 5"),
        (["a", None], "NoneType"),
        (b"bytes", "bytes: b'bytes'"),
        ([["a"]], "list"),
    ],
)
def test_anything_else_is_a_type_error_that_names_it(given: Any, named: str) -> None:
    with pytest.raises(TypeError, match=re.escape("a message is a str, a content or a ChatMessage, not " + named)):
        as_messages(given)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"role": "tool", "content": "Hello"}, "user, assistant, system"),
        ({"role": "user"}, "`content`"),
        ({"role": "user", "content": []}, "a text or a list of text parts"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}, "DataContent or a UriContent"),
        ({"role": "user", "content": "Hello", "name": "ana"}, "nothing else"),
    ],
)
def test_a_mapping_that_is_no_message_is_a_type_error(given: Any, named: str) -> None:
    with pytest.raises(TypeError, match=named):
        as_messages(given)


def test_nothing_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="no message"):
        as_messages([])


@pytest.mark.parametrize("name", ["steps", "tokens", "seconds"])
def test_a_limit_is_more_than_nothing_or_none(name: str) -> None:
    assert getattr(Limits(**{name: None}), name) is None
    wrong: Any
    for wrong in (0, -1, float("nan")):
        with pytest.raises(ValueError, match=f"a limit of {name} must be more than"):
            Limits(**{name: wrong})


def test_bytes_become_a_data_uri() -> None:
    assert PICTURE.uri == "data:image/png;base64,iVBORw=="


def test_the_answer_is_the_last_message() -> None:
    response = AgentRunResponse[None](
        messages=(ChatMessage("assistant", "Let me see."), ChatMessage("assistant", "Ha.")),
        correlation_id="c",
        thread=AgentThread("Joker", "t"),
        created_at=datetime.now(UTC),
    )
    assert response.text == str(response) == "Ha."


@pytest.mark.parametrize("never", [1e12, 10**400, float("inf")], ids=["far", "no float", "inf"])
def test_seconds_that_no_clock_counts_are_refused_where_they_are_given(never: float) -> None:
    """They were an OverflowError in the middle of the turn."""
    with pytest.raises(ValueError, match="None is no limit"):
        Limits(seconds=never)
    with pytest.raises(ValueError, match="None is no limit"):
        RunRequest(correlation_id="c1", messages=(ChatMessage("user", "Hello"),), deadline=never)
