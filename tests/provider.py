"""A model provider on loopback: answers OpenAI's chat completions by what it was asked, and remembers that."""

from __future__ import annotations

import json
import select
import socket
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeAlias

import attrs


@attrs.frozen
class Calls:
    """Asks for tools: names with arguments, as JSON objects."""

    calls: Sequence[tuple[str, Mapping[str, Any]]]


@attrs.frozen
class Refusal:
    """Refuses, with an HTTP status, an error code, and headers such as Retry-After."""

    status: int
    code: str = "error"
    headers: Mapping[str, str] = attrs.field(factory=dict[str, str])
    message: str = "The provider refuses."


@attrs.frozen
class Says:
    """Answers with a message as it is given, with all that a provider may put into one."""

    message: Mapping[str, Any]


@attrs.frozen
class Hold:
    """Does not answer, until the other side hangs up."""


Answer: TypeAlias = "str | Calls | Says | Refusal | Hold"


def repeat(asked: dict[str, Any]) -> str:
    """Answer with what was asked last."""
    return f"Answer to: {asked['messages'][-1]['content']}"


class Provider(ThreadingHTTPServer):
    """Answers with what `answer` makes of a request; with `together=2`, only once two are there at the same time."""

    daemon_threads = True

    def __init__(self, together: int = 1, answer: Callable[[dict[str, Any]], Answer] = repeat) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer = answer
        self.requests: list[dict[str, Any]] = []
        """The bodies, oldest first."""
        self.headers: list[dict[str, str]] = []
        """The headers, likewise, by their names in small letters."""
        self.barrier = threading.Barrier(together)
        self.answers: list[Answer] = []
        """What the next requests get, instead of the usual answer."""
        self.held = threading.Event()
        """A request has come that gets no answer."""
        self.hung_up = threading.Event()
        """The other side has closed the connection of such a request."""
        self.closing = threading.Event()

    @property
    def environment(self) -> dict[str, str]:
        """What a program needs to use this provider."""
        return {
            "OPENAI_API_KEY": "for-tests",
            "OPENAI_BASE_URL": f"http://127.0.0.1:{self.server_port}/v1",
            "OPENAI_MODEL": "scripted",
        }


class _Handler(BaseHTTPRequestHandler):
    @property
    def provider(self) -> Provider:
        assert isinstance(self.server, Provider)
        return self.server

    def do_POST(self) -> None:
        asked: dict[str, Any] = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.provider.headers.append({name.lower(): value for name, value in self.headers.items()})
        self.provider.requests.append(asked)
        self.provider.barrier.wait(timeout=60)
        if mistake := unbalanced(asked["messages"]):
            self._refuse(Refusal(400, "invalid_request_error"), mistake)
            return
        answer = self.provider.answers.pop(0) if self.provider.answers else self.provider.answer(asked)
        match answer:
            case Refusal():
                self._refuse(answer, answer.message)
            case Hold():
                self._hold()
            case Says(message):
                self._answer(asked, dict(message), "tool_calls" if message.get("tool_calls") else "stop")
            case Calls(calls):
                first = len(self.provider.requests)
                wire = [
                    {
                        "id": f"call_{first}_{number}",
                        "type": "function",
                        "function": {"name": name, "arguments": json.dumps(arguments)},
                    }
                    for number, (name, arguments) in enumerate(calls)
                ]
                self._answer(asked, {"content": None, "tool_calls": wire}, "tool_calls")
            case _:
                self._answer(asked, {"content": answer}, "stop")

    def _answer(self, asked: dict[str, Any], message: dict[str, Any], finish_reason: str) -> None:
        words = sum(len(str(message["content"]).split()) for message in asked["messages"])
        self._send(
            200,
            {
                "id": "1",
                "object": "chat.completion",
                "created": 0,
                "model": "scripted",
                "choices": [{"index": 0, "finish_reason": finish_reason, "message": {"role": "assistant", **message}}],
                "usage": {"prompt_tokens": words, "completion_tokens": 3, "total_tokens": words + 3},
            },
        )

    def _refuse(self, refusal: Refusal, message: str) -> None:
        error = {"message": message, "type": refusal.code, "param": None, "code": refusal.code}
        self._send(refusal.status, {"error": error}, refusal.headers)

    def _hold(self) -> None:
        self.provider.held.set()
        while not self.provider.closing.is_set():
            readable, _, _ = select.select([self.connection], [], [], 0.05)
            if readable and not self.connection.recv(1, socket.MSG_PEEK):
                self.provider.hung_up.set()
                break
        self.close_connection = True

    def _send(self, status: int, document: dict[str, Any], headers: Mapping[str, str] | None = None) -> None:
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing is printed."""


def unbalanced(messages: Sequence[Mapping[str, Any]]) -> str | None:
    """What OpenAI refuses in a conversation: a tool call without its result, or a result without its call."""
    opened: list[str] = []
    for number, message in enumerate(messages):
        if message["role"] == "tool":
            if message["tool_call_id"] not in opened:
                return (
                    f"Invalid parameter: messages[{number}] of role 'tool' must be a response to a preceding message "
                    "with 'tool_calls'."
                )
            opened.remove(message["tool_call_id"])
            continue
        if opened:
            break
        opened = [call["id"] for call in message.get("tool_calls") or ()]
    if not opened:
        return None
    return (
        "An assistant message with 'tool_calls' must be followed by tool messages responding to each 'tool_call_id'. "
        f"The following tool_call_ids did not have response messages: {', '.join(opened)}"
    )


@contextmanager
def provider(together: int = 1, answer: Callable[[dict[str, Any]], Answer] = repeat) -> Generator[Provider]:
    """A provider that serves for as long as the `with` block lasts."""
    with Provider(together, answer) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.closing.set()
            server.shutdown()
            thread.join()
