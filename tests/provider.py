"""A model provider on loopback: answers OpenAI's chat completions by what it was asked, and remembers that."""

from __future__ import annotations

import json
import threading
from collections.abc import Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Provider(ThreadingHTTPServer):
    """Answers `Answer to: <last message>`; with `together=2`, only once two requests are there at the same time."""

    daemon_threads = True

    def __init__(self, together: int = 1) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
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
    server: Provider

    def do_POST(self) -> None:
        asked: dict[str, Any] = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append(asked)
        self.server.barrier.wait(timeout=60)
        text = asked["messages"][-1]["content"]
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
                        "finish_reason": "stop",
                        "message": {"role": "assistant", "content": f"Answer to: {text}"},
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
def provider(together: int = 1) -> Generator[Provider]:
    """A provider that serves for as long as the `with` block lasts."""
    with Provider(together) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
