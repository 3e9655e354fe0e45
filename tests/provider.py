"""A model provider on loopback: answers OpenAI's chat completions by what it was asked, and remembers that."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeAlias

Answer: TypeAlias = "str | dict[str, Any]"
"""A text; or tool calls, arguments by the tools' names."""


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
        self.barrier = threading.Barrier(together)

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
        self.provider.requests.append(asked)
        self.provider.barrier.wait(timeout=60)
        answer = self.provider.answer(asked)
        message: dict[str, Any] = {"role": "assistant", "content": answer}
        if isinstance(answer, dict):
            functions = [{"name": name, "arguments": json.dumps(given)} for name, given in answer.items()]
            calls = [{"id": f"call_{n}", "type": "function", "function": it} for n, it in enumerate(functions)]
            message = {"role": "assistant", "content": None, "tool_calls": calls}
        words = sum(len(str(message["content"]).split()) for message in asked["messages"])
        body = json.dumps(
            {
                "id": "1",
                "object": "chat.completion",
                "created": 0,
                "model": "scripted",
                "choices": [
                    {
                        "index": 0,
                        "finish_reason": "tool_calls" if isinstance(answer, dict) else "stop",
                        "message": message,
                    }
                ],
                "usage": {"prompt_tokens": words, "completion_tokens": 3, "total_tokens": words + 3},
            }
        ).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing is printed."""


@contextmanager
def provider(together: int = 1, answer: Callable[[dict[str, Any]], Answer] = repeat) -> Generator[Provider]:
    """A provider that serves for as long as the `with` block lasts."""
    with Provider(together, answer) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
