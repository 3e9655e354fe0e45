"""What our layer over a model's client costs per call, in CPU time: `python -m tests.benchmarks.model_calls`.

A stub server in a process of its own gives the same answer to every request. A conversation of a hundred messages is
asked for by `OpenAIChatModel`, and by the bare package given the body that this makes, in turns: as its users would
(`bare`), and as an `extra_body` that it does not look through, which is the least that it can do (`least`). Only this
process's CPU time is counted; `difference` is that between ours and the least.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Awaitable, Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import anyio
from openai import AsyncOpenAI

from dafx_actors.models import ModelRequest, ToolDefinition
from dafx_actors.models.openai import OpenAIChatModel
from dafx_actors.transcript import ChatMessage, FunctionCallContent, FunctionResultContent

_MESSAGES = 100
_ANSWER = json.dumps(
    {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 0,
        "model": "m",
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "Yes. " * 40}}],
        "usage": {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8},
    }
).encode()


class _Stub(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    last: bytes = b""

    def do_POST(self) -> None:
        received = self.rfile.read(int(self.headers["Content-Length"]))
        # The bare client is given what ours has sent, which it asks for here.
        answer = type(self).last if self.path.endswith("/last") else _ANSWER
        if not self.path.endswith("/last"):
            type(self).last = received
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing is printed."""


def serve() -> None:
    """Serve until standard input ends, and say the port on standard output."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Stub)
    print(server.server_port, flush=True)
    server.serve_forever()


def conversation() -> ModelRequest:
    """A hundred messages, a call and its result among each four, and one tool."""
    messages: list[ChatMessage] = [ChatMessage("system", "Be brief.")]
    while len(messages) < _MESSAGES:
        number = len(messages)
        messages += [
            ChatMessage("user", f"Question {number}, größer: " + "what of it? " * 20),
            ChatMessage("assistant", (FunctionCallContent(f"call_{number}", "look", {"at": "x" * 100}),)),
            ChatMessage("tool", (FunctionResultContent(f"call_{number}", {"found": ["y" * 100, number]}),)),
            ChatMessage("assistant", f"Answer {number}. " * 20),
        ]
    schema = {"type": "object", "properties": {"at": {"type": "string"}}, "required": ["at"]}
    return ModelRequest(
        messages=tuple(messages[:_MESSAGES]),
        tools=(ToolDefinition(name="look", description="Looks.", parameters=schema),),
    )


async def _cpu(call: Callable[[], Awaitable[object]], times: int) -> float:
    begun = time.process_time()
    for _ in range(times):
        await call()
    return (time.process_time() - begun) / times * 1000


def _last_of(url: str) -> Any:
    with urllib.request.urlopen(f"{url}/last", data=b"") as sent:
        return json.load(sent)


async def measure(port: int, calls: int) -> dict[str, float]:
    """Milliseconds of CPU time per call, as the median of blocks."""
    url = f"http://127.0.0.1:{port}/v1"
    model, request = OpenAIChatModel("m", base_url=url, api_key="k", trust_env=False), conversation()
    await model.complete(request)
    client = AsyncOpenAI(base_url=url, api_key="k", max_retries=0)
    body: dict[str, Any] = await anyio.to_thread.run_sync(_last_of, url)
    messages, rest = body.pop("messages"), {name: value for name, value in body.items() if name != "model"}
    create: Callable[..., Awaitable[Any]] = client.chat.completions.with_raw_response.create

    async def bare() -> None:
        json.loads((await create(model="m", messages=messages, extra_body=rest)).content)

    async def least() -> None:
        whole = {"messages": messages, **rest}
        json.loads((await create(model="m", messages=(), extra_body=whole)).content)

    async def ours() -> None:
        await model.complete(request)

    for each in (bare, least, ours):
        await _cpu(each, 20)
    blocks = [[await _cpu(each, calls // 10) for each in (ours, bare, least)] for _ in range(10)]
    await client.close()
    await model.aclose()
    return {
        "ours": statistics.median(ours for ours, _, _ in blocks),
        "bare": statistics.median(bare for _, bare, _ in blocks),
        "least": statistics.median(least for _, _, least in blocks),
        "difference": statistics.median(ours - least for ours, _, least in blocks),
    }


def main() -> None:
    """Measure, and print a line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=500)
    parser.add_argument("--serve", action="store_true", help="be the stub server")
    given = parser.parse_args()
    if given.serve:
        serve()
        return
    command = [sys.executable, "-m", "tests.benchmarks.model_calls", "--serve"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            figures = anyio.run(measure, int(server.stdout.readline()), given.calls)
        finally:
            server.terminate()
    print(json.dumps({name: round(value, 3) for name, value in figures.items()}))


if __name__ == "__main__":
    main()
