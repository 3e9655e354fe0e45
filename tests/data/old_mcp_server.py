"""A server of MCP's older protocol, with sessions and pages, by hand: `python old_mcp_server.py stdio|http PORT`."""

from __future__ import annotations

import json
import os
import sys
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

VERSION = "2025-03-26"
NAMES = ["one", "two", "three"]
SESSIONS: set[str] = set()
LISTED: list[int] = []


def tool(name: str) -> dict[str, Any]:
    return {"name": name, "inputSchema": {"type": "object"}}


def page(cursor: str | None) -> dict[str, Any]:
    at = int(cursor or 0)
    LISTED.append(at)
    following = {"nextCursor": str(at + 1)} if at + 1 < len(NAMES) else {}
    return {"tools": [tool(NAMES[at])], **following}


def called(name: str) -> dict[str, Any]:
    if name == "two":
        NAMES.append("four")
    if name == "three":
        return {"content": [{"type": "text", "text": f"{len(LISTED)} pages were asked for"}]}
    return {"content": [{"type": "text", "text": f"{name} of {os.getpid()}"}]}


def answer(request: dict[str, Any]) -> dict[str, Any]:
    method, params = request["method"], request.get("params") or {}
    if method == "initialize":
        capabilities = {"tools": {"listChanged": sys.argv[1] == "stdio"}}
        info = {"name": "old", "version": "1"}
        return {"result": {"protocolVersion": VERSION, "capabilities": capabilities, "serverInfo": info}}
    if method == "tools/list":
        return {"result": page(params.get("cursor"))}
    if method == "tools/call":
        return {"result": called(params["name"])}
    return {"error": {"code": -32601, "message": f"no {method}"}}


def over_stdio() -> None:
    for line in sys.stdin:
        request = json.loads(line)
        if "id" not in request:
            continue
        if request["method"] == "tools/call" and request["params"]["name"] == "two":
            print(json.dumps({"jsonrpc": "2.0", "method": "notifications/tools/list_changed"}), flush=True)
        print(json.dumps({"jsonrpc": "2.0", "id": request["id"], **answer(request)}), flush=True)


class OverHttp(BaseHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None: ...

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.headers["authorization"] != "Bearer secret":
            return self.reply(401)
        session = self.headers["mcp-session-id"]
        if request["method"] == "initialize":
            session = str(uuid.uuid4())
            SESSIONS.add(session)
        elif session is not None and session not in SESSIONS:
            return self.reply(404)
        if "id" not in request:
            return self.reply(202)
        body = {"jsonrpc": "2.0", "id": request["id"], **answer(request)}
        return self.reply(200, json.dumps(body).encode(), session)

    def do_GET(self) -> None:
        self.reply(405)

    def do_DELETE(self) -> None:
        SESSIONS.discard(self.headers["mcp-session-id"])
        self.reply(200)

    def reply(self, status: int, body: bytes = b"", session: str | None = None) -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.send_header("content-type", "application/json")
        if session is not None:
            self.send_header("mcp-session-id", session)
        self.end_headers()
        self.wfile.write(body)


if __name__ == "__main__":
    if sys.argv[1] == "stdio":
        over_stdio()
    else:
        ThreadingHTTPServer(("127.0.0.1", int(sys.argv[2])), OverHttp).serve_forever()
