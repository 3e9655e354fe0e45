"""The client for programs without an event loop: each call waits in the thread that makes it.

For Flask, Django, Celery, scripts and the like::

    from flask import Flask, request

    from dafx_actors.sync import DurableAIAgentClient

    app = Flask(__name__)
    joker = DurableAIAgentClient.connect().get_agent("Joker")

    @app.post("/jokes")
    def jokes() -> dict[str, str]:
        session = joker.create_session(session_id=request.json.get("session"))
        response = joker.run(request.json["question"], session=session, timeout=60)
        return {"answer": response.text, "session": str(session)}

One client serves all threads of a process, and may be made, and used, before the process forks (gunicorn's
`preload_app`, Celery's prefork pool): a child makes connections of its own. What the calls mean, take and raise is that
of the async client's calls of the same name; calls are made on one event loop, in a thread that the first call starts.
"""

from __future__ import annotations

from dafx_actors.sync._agents import DurableAIAgent
from dafx_actors.sync._client import DurableAIAgentClient
from dafx_actors.sync._decisions import DecisionStored
from dafx_actors.sync._handles import OrchestrationHandle, TurnHandle, TurnStream

__all__ = [
    "DecisionStored",
    "DurableAIAgent",
    "DurableAIAgentClient",
    "OrchestrationHandle",
    "TurnHandle",
    "TurnStream",
]
