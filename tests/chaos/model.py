"""The model of the chaos run: an OpenAI-compatible server that calls the tools which a request names, then answers.

It keeps no state between calls, as a model does, and a book of its own of who asked what and when.
"""

from __future__ import annotations

import itertools
import json
import re
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import attrs

from tests.provider import Answer, Calls, Provider

_MARK = re.compile(r"^<([^>]+)> ?(.*)$")


@attrs.frozen
class Asked:
    """A call of the model."""

    at: float
    worker: int
    """Its process."""


class Model(Provider):
    """Answers by the request that the conversation ends with."""

    def __init__(self) -> None:
        super().__init__(answer=self.reply)
        self.asked: dict[tuple[str, int], list[Asked]] = {}
        """By turn and the number of the reply in it."""
        self._nonces = itertools.count(1)

    def reply(self, body: dict[str, Any]) -> Answer:
        now = time.monotonic()
        self.requests.clear()
        system, *messages = body["messages"]
        begins, (turn, plan) = next(
            (number, found.groups())
            for number, message in reversed(list(enumerate(messages)))
            if message["role"] == "user" and (found := _MARK.match(_text(message)))
        )
        mine = messages[begins + 1 :]
        number = sum(message["role"] == "assistant" for message in mine)
        worker = int(_text(system).removeprefix("worker "))
        self.asked.setdefault((turn, number), []).append(Asked(now, worker))
        batches = [batch.split("+") for batch in plan.split(";") if batch]
        if number < len(batches):
            return Calls([(name, {}) for name in batches[number]])
        after = sum(message["role"] in {"assistant", "user"} for message in messages[:begins])
        calls = sum(message["role"] == "tool" for message in mine)
        return json.dumps({"turn": turn, "after": after, "nonce": next(self._nonces), "calls": calls})

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Whoever asked was killed: nobody waits for the answer."""


def _text(message: dict[str, Any]) -> str:
    content = message.get("content") or ""
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


@contextmanager
def running_model() -> Generator[Model]:
    """The server, for as long as the `with` block lasts."""
    with Model() as model:
        thread = threading.Thread(target=model.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield model
        finally:
            model.shutdown()
            thread.join()
