"""Arguments for tools, and answers of a model's server: any JSON, and what is none."""

from __future__ import annotations

import json
from collections.abc import Generator
from datetime import date
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import anyio
import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dafx_actors._json.crossing import dump_error, load_error
from dafx_actors._json.messages import dump_message, dump_usage, load_message
from dafx_actors.errors import InvalidArguments, ModelError
from dafx_actors.models import ModelRequest
from dafx_actors.models.openai import OpenAIChatModel
from dafx_actors.tools import Tool, tools_of
from dafx_actors.tools._toolbox import Toolbox
from dafx_actors.transcript import ChatMessage, FunctionCallContent
from tests.fuzz.inputs import examples, json_objects, json_values, mangled


@attrs.frozen
class Place:
    city: str
    code: int = 0


class Desk:
    """Whatever has tools."""

    def __init__(self) -> None:
        self.tools = [look, note]


def look(place: Place, days: int = 1, since: date | None = None, kinds: list[str] = [], exact: float = 0.0) -> str:  # noqa: B006
    return f"{place.city} {days} {since} {kinds} {exact}"


def note(text: str, about: dict[str, list[int]] | None = None, anything: Any = None) -> None: ...


TOOLS = [each for each in tools_of(Desk()) if isinstance(each, Tool)]
FITS = {
    "look": {"place": {"city": "Ulm", "code": 3}, "days": 2, "since": "2026-01-01", "kinds": ["a"], "exact": 1.5},
    "note": {"text": "x", "about": {"a": [1]}, "anything": {}},
}


@examples(200)
@given(given=st.one_of(*(st.tuples(st.just(each), mangled(FITS[each.name]) | json_objects) for each in TOOLS)))
def test_any_arguments_fit_or_are_refused_with_every_mistake(given: tuple[Tool, Any]) -> None:
    tool, arguments = given
    if not isinstance(arguments, dict):
        return
    try:
        bound = tool.bind(arguments)
    except InvalidArguments as error:
        assert error.mistakes  # noqa: PT017 - either is fine
        str(error)
    else:
        assert set(bound) >= set(arguments)


CALL = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": json.dumps(FITS["look"])}}
ANSWER: dict[str, Any] = {
    "id": "1", "object": "chat.completion", "created": 0, "model": "m",
    "choices": [
        {"index": 0, "finish_reason": "tool_calls",
         "message": {"role": "assistant", "content": None, "tool_calls": [CALL, CALL], "refusal": None}},
    ],
    "usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7},
}  # fmt: skip
SAYS: dict[str, Any] = {
    **ANSWER,
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "Hello"}}],
}


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    status = 200
    body = b""


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        server: Any = self.server
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(server.status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(server.body)))
        self.end_headers()
        self.wfile.write(server.body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing is printed."""


@pytest.fixture(scope="module")
def server() -> Generator[_Server]:
    with _Server(("127.0.0.1", 0), _Handler) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


some_bodies = (
    (mangled(ANSWER) | mangled(SAYS) | json_values).map(lambda body: json.dumps(body).encode())
    | st.binary(max_size=20)
    | st.sampled_from([b"", b"null", b"[" * 100_000, b"{}", b'{"choices": []}', b'{"choices": [{}]}', b"NaN"])
)


@examples(50)
@given(body=some_bodies, status=st.sampled_from([200, 200, 200, 400, 404, 429, 500]))
def test_any_body_of_a_models_server(server: _Server, body: bytes, status: int) -> None:
    """A reply that can be stored, and whose calls have a plan; or a ModelError."""
    server.body, server.status = body, status
    try:
        reply = anyio.run(_ask, server.server_port)
    except ModelError as error:
        crossed = load_error(json.loads(json.dumps(dump_error(error))))
        assert isinstance(crossed, ModelError)
        return
    assert status == 200
    stored = json.loads(json.dumps(dump_message(reply.message)))
    assert load_message(stored) == reply.message
    json.dumps(dump_usage(reply.usage) if reply.usage else None)
    calls = [content for content in reply.message.contents if isinstance(content, FunctionCallContent)]
    for plan in anyio.run(_plans, calls):
        json.dumps(plan.dump())


async def _ask(port: int) -> Any:
    model = OpenAIChatModel("m", base_url=f"http://127.0.0.1:{port}/v1", api_key="k", trust_env=False)
    try:
        with anyio.fail_after(30):
            return await model.complete(ModelRequest(messages=(ChatMessage("user", "Hello"),)))
    finally:
        await model.aclose()


async def _plans(calls: list[FunctionCallContent]) -> list[Any]:
    toolbox = Toolbox(TOOLS)
    offered = await toolbox.definitions()
    return [await toolbox.plan(call, offered) for call in calls]
