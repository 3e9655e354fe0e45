"""What a docstring says reaches the model: in the description of the tool, or in that of a parameter."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dafx_actors.tools._docstrings import Documented, read
from tests.test_tools import only

KEY_AND_MORE = {"key": "str", "more": "dict[str, list[int]] | None"}
BOTH = {"key": "The key of it.", "more": "What: else."}


def as_documented(text: str) -> Documented:
    return read(text, KEY_AND_MORE)


@pytest.mark.parametrize(
    "section",
    [
        "Args:\n    key: The key\n        of it.\n    more (dict[str, list[int]], optional): What: else.",
        "Args:\n    key (str): The key of it.\n    more (Optional[dict[str, list[int]]]): What: else.",
        "Args:\n    key (str or (None)): The key of it.\n    more (dict of (str, list)): What: else.",
        "Args:\n    key - The key of it.\n    more -- What: else.",
        "Args:\n    key \u2013 The key of it.\n    more (dict) \u2014 What: else.",
        "Args:\n    - key: The key of it.\n    * more: What: else.",
        "Args:\n    `key`: The key of it.\n    **more**: What: else.",
        "Args:\n    key:\n        The key\n        of it.\n\n    more:\n        What: else.",
        "Args:\n    key (str)\n        The key of it.\n    more\n        What: else.",
        "Args:\n  key: The key\n  of it.\n  more: What: else.",
        "arguments:\n    key: The key of it.\n\nOther Parameters:\n    more: What: else.",
        "Parameters:\n    key: The key of it.\n\nKeyword Args:\n    more: What: else.",
        "Parameters\n---\nkey : str\n    The key\n    of it.\nmore : dict[str, list[int]], optional\n    What: else.",
        "Parameters\n---\nkey\n    The key of it.\n\nmore: dict\n\n    What: else.",
        "Parameters\n---\nkey - The key of it.\nmore (dict) - What: else.",
        "Parameters\n===\nkey: str\n    The key of it.\n\nOther Parameters\n===\nmore: dict\n    What: else.",
        ":param key: The key\n    of it.\n:param dict[str, list] more: What: else.\n:type key: str",
        ":param key:\n    The key\n\n    of it.\n:keyword more: What: else.\n:kwtype more: dict",
        "@param key: The key\n    of it.\n@type key: str\n@keyword more: What: else.",
    ],
)
@pytest.mark.parametrize(
    "results",
    [
        "",
        "\n\nReturns:\n    Nothing\n    that is seen.\n\nRaises:\n    LookupError: Nothing of it.",
        "\n\nReturns\n-------\nstr\n    Nothing.\n\nRaises\n------\nLookupError\n    Nothing of it.",
        "\n\n:returns: Nothing\n    that is seen.\n:rtype: str\n:raises LookupError: Nothing of it.",
        "\n\n@return: Nothing.\n@raise LookupError: Nothing of it.",
    ],
    ids=["", "google", "numpy", "rest", "epytext"],
)
def test_every_common_style_is_read(section: str, results: str) -> None:
    assert as_documented(f"Look up.\n\n{section}{results}") == Documented("Look up.", BOTH)
    after = as_documented(f"Look up.{results}\n\n{section}")
    assert after == Documented("Look up.", BOTH)


@pytest.mark.parametrize(
    ("section", "described"),
    [
        ("Args:\n    key (in degrees): How warm.", "(in degrees) How warm."),
        ("Args:\n    key (UTC): When.", "(UTC) When."),
        ("Parameters\n---\nkey : {'fast', 'slow'}\n    How.", "({'fast', 'slow'}) How."),
        ("Parameters\n---\nkey : The name to look up.", "The name to look up."),
        ("Parameters\n---\nkey : str, such as A-1\n    Which.", "(str, such as A-1) Which."),
        (":param key: Which.\n:type key: one of those that `list` gives", "(one of those that `list` gives) Which."),
        (":type key: str", None),
        ("Args:\n    key: Which.\n\nOther Parameters:\n    key: And why.", "Which. And why."),
        ("Args:\n    key, more: Both.", "Both."),
        ("Args:\n    Of all kinds.\n    key: Which.", "Which."),
    ],
)
def test_what_stands_for_a_type_and_is_none_is_told(section: str, described: str | None) -> None:
    assert as_documented(f"Look up.\n\n{section}").parameters.get("key") == described


@pytest.mark.parametrize(
    "left",
    [
        "Args:\n    size: How many.\n        At most.",
        "Args:\n    Of all kinds.",
        "Args: what you like.",
        "Arguments:",
        "Keyword Args:\n    **kwargs: Whatever the shop takes.",
        "Parameters\n----------\nsize : int\n    How many.",
        ":param size: How many.\n    At most.",
        ":warning: It deletes.",
        ":meta private:",
        "@note: It deletes.",
        "Note:\n    Slow.",
        "Notes\n-----\nVery.",
        "Returns: the price.",
        "Returns:",
        "Example:\n\n    look_up(key='x')",
        "See Also\n--------\nkey : another tool.",
        "key: which",
        "https://127.0.0.1/a: b",
    ],
)
def test_what_is_not_understood_is_left_as_text(left: str) -> None:
    assert as_documented(f"Look up.\n\n{left}") == Documented(f"Look up.\n\n{left}", {})
    both = as_documented(f"Look up.\n\n{left}\n\nArgs:\n    key: Which.\n\nThe end.")
    assert both == Documented(f"Look up.\n\n{left}\n\nThe end.", {"key": "Which."})


def test_a_paragraph_after_numpys_results_is_no_result() -> None:
    after = "Returns\n-------\nout : str\n    The price.\n\nerr : str\n    The error.\n\nIt is slow on Sundays."
    assert as_documented(f"Look up.\n\n{after}").text == "Look up.\n\nIt is slow on Sundays."


def test_a_tool_says_what_its_docstring_says() -> None:
    def look_up(key: str, more: dict[str, list[int]] | None = None) -> str:
        """Look up.

        Args:
            key (str - such as A-1): Which.

        Other Parameters:
            more (dict[str, list[int]]): Where.
            most: There is none.
        """
        return key

    made = only(look_up)
    assert made.description == "Look up.\n\nOther Parameters:\n    most: There is none."
    described = {name: field.get("description") for name, field in made.parameters["properties"].items()}
    assert described == {"key": "(str - such as A-1) Which.", "more": "Where."}


# --- Nothing is lost -------------------------------------------------------------------------------------------------

PARAMETERS = {"alpha": "str", "beta": "int", "gamma": ""}
SAID = st.lists(st.integers(0, 999).map("w{}".format), min_size=1, max_size=4).map(" ".join)
NAME = st.sampled_from([*PARAMETERS, "delta"])
KIND = st.sampled_from(["", " (str)", " (dict[str, (int)], optional)", " (w1000 and w1001)", " ((w1002"])
LINE = st.one_of(
    SAID,
    st.builds("{}{}{}{}".format, NAME, KIND, st.sampled_from([": ", " : ", " - ", " -- ", ":", "", "  "]), SAID),
    st.builds(
        "{}{} {}: {}".format, st.sampled_from([":", "@"]), st.sampled_from(["param", "type", "w1003"]), NAME, SAID
    ),
    st.builds("{}:".format, NAME),
    st.just(""),
    st.sampled_from(
        [
            "Args:",
            "Other Parameters:",
            "Keyword Args: ",
            "Parameters",
            "Other Parameters",
            "----------",
            "===",
            "Notes:",
        ]
    ),
)
DOCSTRING = st.lists(st.builds("{}{}".format, st.sampled_from(["", "    ", "        "]), LINE), max_size=14).map(
    "\n".join
)


@given(DOCSTRING)
def test_no_word_is_lost(docstring: str) -> None:
    """Whatever a docstring looks like that tells nothing of results and errors."""
    found = read(docstring, PARAMETERS)
    told = " ".join([found.text, *found.parameters.values()])
    assert sorted(set(re.findall(r"w\d+", docstring)) - set(re.findall(r"w\d+", told))) == []
    assert found.parameters.keys() <= PARAMETERS.keys()


@given(DOCSTRING)
def test_what_is_told_before_results_is_not_lost_with_them(docstring: str) -> None:
    before = set(re.findall(r"w\d+", docstring))
    for results in ("Returns:\n    r1", "Returns\n-------\nr1\n    r2", ":returns: r1\n    r2"):
        found = read(f"{docstring}\n\n{results}", PARAMETERS)
        told = " ".join([found.text, *found.parameters.values()])
        assert sorted(before - set(re.findall(r"w\d+", told))) == []
