"""What fuzzing is made of. `DAFX_FUZZ=20 python -m pytest tests/fuzz` tries twenty times as much."""

from __future__ import annotations

import os
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

FACTOR = int(os.environ.get("DAFX_FUZZ", "1"))


def examples(count: int) -> settings:
    """So many examples, more of them in a longer run; how long one takes depends on what else the machine does."""
    slow = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture]
    return settings(max_examples=count * FACTOR, deadline=None, suppress_health_check=slow)


WORDS = [
    "active", "agent", "approval", "approve", "arguments", "asks", "at", "attempts", "by", "c1", "c2", "callId",
    "cancelled", "children", "contents", "conversationHistory", "correlationId", "created_at", "createdAt", "dafx",
    "data", "decision", "deny", "digest", "draft", "error", "expire", "fields", "functionCall", "functionResult",
    "joined", "k1", "key", "kind", "length", "limits", "mark", "message", "messages", "number", "options",
    "orchestrationId", "outcome", "progress", "reason", "request", "response", "responseSchema", "result", "role",
    "schemaVersion", "steered", "text", "thread", "token", "tool", "tool_choice", "type", "usage", "user", "waiting",
    "whole", "$type", "1.1.0", "2.0.0", "2026-01-01T00:00:00Z", "", "\u0000", "\ud83d", "\U0001f600",
]  # fmt: skip
"""What our documents are written with: random texts alone would not get far."""

numbers = st.integers(-3, 3) | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
scalars: st.SearchStrategy[Any] = st.none() | st.booleans() | numbers | st.sampled_from(WORDS) | st.text(max_size=5)
json_values: st.SearchStrategy[Any] = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS) | st.text(max_size=3), inner, max_size=4)
    ),
    max_leaves=8,
)
json_objects = st.dictionaries(st.sampled_from(WORDS), json_values, max_size=5)


@st.composite
def mangled(draw: st.DrawFn, document: Any) -> Any:
    """The document, with something in it replaced, removed or added."""
    if isinstance(document, dict) and document and draw(st.integers(0, 4)):
        key = draw(st.sampled_from(sorted(document)))
        if not draw(st.integers(0, 5)):
            return {name: value for name, value in document.items() if name != key}
        if not draw(st.integers(0, 7)):
            return {**document, draw(st.sampled_from(WORDS)): draw(json_values)}
        return {**document, key: draw(mangled(document[key]))}
    if isinstance(document, list) and document and draw(st.integers(0, 4)):
        place = draw(st.integers(0, len(document) - 1))
        return [*document[:place], draw(mangled(document[place])), *document[place + 1 :]]
    return draw(json_values)
