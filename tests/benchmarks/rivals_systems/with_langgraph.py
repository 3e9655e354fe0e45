"""LangGraph: `one DB`, all in one process, its async SQLite checkpointer and `durability="sync"`."""

# It is installed in an environment of its own, where type checkers do not look.
# mypy: ignore-errors
# pyright: basic, reportMissingImports=false

from __future__ import annotations

import sys
from typing import Any

from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.tools import tool
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition

from tests.benchmarks import control
from tests.benchmarks.rivals_systems.turns import Client, past, think, use


async def model(state: MessagesState) -> dict[str, Any]:
    """A model call."""
    messages = state["messages"]
    last = max(number for number, message in enumerate(messages) if message.type == "human")
    done = sum(message.type == "tool" for message in messages[last + 1 :])
    arguments = await think(str(messages[last].content), done)
    if arguments is None:
        return {"messages": [AIMessage(control.ANSWER)]}
    return {"messages": [AIMessage("", tool_calls=[{"name": "double", "args": arguments, "id": f"call-{done}"}])]}


@tool
async def double(number: int, seconds: float) -> int:
    """Double a number."""
    return await use(number, seconds)


class App(Client):
    """The program."""

    def __init__(self, db: str) -> None:
        self._db = db

    async def start(self) -> None:
        """Open the database and compile the graph."""
        self._opened = AsyncSqliteSaver.from_conn_string(self._db)
        saver = await self._opened.__aenter__()
        graph = StateGraph(MessagesState)
        graph.add_node("model", model)
        graph.add_node("tools", ToolNode([double]))
        graph.add_edge(START, "model")
        graph.add_conditional_edges("model", tools_condition)
        graph.add_edge("tools", "model")
        self._graph = graph.compile(checkpointer=saver)

    def _config(self, thread: str) -> Any:
        return {"configurable": {"thread_id": thread}, "recursion_limit": 1_000}

    async def turn(self, thread: str, text: str) -> str:
        """One run of the graph."""
        asked: Any = {"messages": [HumanMessage(text)]}
        state = await self._graph.ainvoke(asked, self._config(thread), durability="sync")
        return state["messages"][-1].content

    async def deepen(self, thread: str, turns: int) -> None:
        """Write what so many turns would have left."""
        kinds = {"user": HumanMessage, "assistant": AIMessage}
        messages = [kinds[message["role"]](message["content"]) for message in past(turns)]
        await self._graph.aupdate_state(self._config(thread), {"messages": messages}, as_node="model")


if __name__ == "__main__":
    control.quiet()
    App(sys.argv[2]).serve()
