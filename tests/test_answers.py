"""The JSON in an answer, as models write it."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from dafx_actors._json.answers import answer, answer_mismatch, values_in
from dafx_actors._json.requests import dump_response
from dafx_actors.errors import InvalidAnswer
from dafx_actors.ids import AgentThread
from dafx_actors.transcript import ChatMessage, Response

ROME = {"name": "Rome", "hills": 7}
GOOD = json.dumps(ROME)
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "hills": {"type": "integer"}},
    "required": ["name", "hills"],
}

ANSWERS = {
    "alone": GOOD,
    "in a fence": f"```json\n{GOOD}\n```",
    "in a fence without a word": f"```\n{GOOD}\n```",
    "in a fence of tildes": f"~~~json\n{GOOD}\n~~~",
    "in a fence on one line": f"```json {GOOD} ```",
    "in a fence that is not closed": f"```json\n{GOOD}",
    "in a fence with words before and after": f"Here it is:\n\n```json\n{GOOD}\n```\nAnything else?",
    "in the second fence": f"```python\nprint(1)\n```\nand\n```json\n{GOOD}\n```",
    "after thinking": f"<think>\nRome is big.\n</think>\n\n{GOOD}",
    "after thinking in JSON": f'<think>{{"name": "Bern", "hills": 1}}</think>{GOOD}',
    "after thinking that did not begin": f"Rome is big.\n</think>\n{GOOD}",
    "after thinking, in a fence": f"<think>Hm [1].</think>\n```json\n{GOOD}\n```",
    "after words": f"The answer is {GOOD}",
    "between words with brackets": f"As [1] and {{x}} say: {GOOD} (see [2]).",
    "the last of two": f'Not {{"name": "Bern", "hills": 1}}, but {GOOD}',
    "before words": f"{GOOD}\nAs seen in [1, 2].",
    "after a byte order mark": f"\ufeff{GOOD}",
    "with a fence inside": json.dumps({**ROME, "note": "```json\n{}\n```"}),
    "with thinking inside": json.dumps({**ROME, "note": "<think>{}</think>"}),
}


def response(text: str) -> Any:
    return dump_response(Response(correlation_id="c1", messages=(ChatMessage("assistant", text),)))


@pytest.mark.parametrize("text", ANSWERS.values(), ids=ANSWERS)
@pytest.mark.parametrize("asked", [dict[str, Any], SCHEMA], ids=["type", "schema"])
def test_answer_that_holds_the_value(text: str, asked: Any) -> None:
    """The worker takes it, and the caller gets the same value; the text stays what the model wrote."""
    assert answer_mismatch(text, SCHEMA) is None
    got = answer(response(text), AgentThread("Guide", "t1"), asked)
    assert {name: got.value[name] for name in ROME} == ROME
    assert got.text == text


NONE = {
    "nothing": "",
    "words": "Rome has seven hills.",
    "thinking alone": f"<think>{GOOD}",
    "nothing after thinking": f"<think>{GOOD}</think>",
    "cut": GOOD[:-3],
    "two without a word": f"{GOOD}\n{GOOD}",
    "what JSON has not": '{"name": "Rome", "hills": NaN}',
    "nested too deeply": "[" * 5000,
}


@pytest.mark.parametrize("text", NONE.values(), ids=NONE)
def test_answer_that_holds_none(text: str) -> None:
    """It is said that it is no JSON; thinking is no answer."""
    assert (answer_mismatch(text, SCHEMA) or "").startswith("it is not JSON")
    with pytest.raises(InvalidAnswer, match="not JSON"):
        answer(response(text), AgentThread("Guide", "t1"), SCHEMA)


def test_answer_that_does_not_fit() -> None:
    """The model is told what is wrong with the value that it most likely meant."""
    assert "hills" in (answer_mismatch('```json\n{"name": "Rome"}\n```', SCHEMA) or "")


def test_words_do_not_make_values_of_scalars() -> None:
    """A number among words is no answer; a number alone is."""
    assert list(values_in("3")) == [3]
    with pytest.raises(ValueError, match="Expecting value"):
        list(values_in("It is 3."))


@pytest.mark.parametrize("text", ["{" * 200_000, '{"a": [' * 50_000, "```" * 50_000, "<think>" * 50_000])
def test_text_that_is_hard_to_read(text: str) -> None:
    """Whatever a model writes is read in a moment of the processor's time."""
    begun = time.process_time()
    with pytest.raises(ValueError):  # noqa: PT011 - whichever of JSON's complaints
        list(values_in(text))
    assert time.process_time() - begun < 5
