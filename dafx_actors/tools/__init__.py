"""What users declare, checked when it is declared.

Tools: what an agent may do, declared with `@tool`, and told to the model as a JSON schema.

The decorator attaches a frozen declaration to the function and hands the function back. A worker makes of it a `Tool`
that is bound to the agent's instance (`tools_of`), and reports all mistakes at once (`tool_mistakes`). *When* a tool
runs is the turn's business, and so is what it may repeat; *how* it runs is here: arguments are validated, the context
is injected, functions that block get a thread.
"""

from dafx_actors.errors import InvalidArguments, NotDone, ResultNotKept
from dafx_actors.tools._collected import AnyTool, is_size, tool_mistakes, tools_of
from dafx_actors.tools._declared import Approval, Effect, ToolContext, tool
from dafx_actors.tools._hosted import AgentTool, Tool, ToolSource, as_tool, source_needs_approval

__all__ = [
    "AgentTool",
    "AnyTool",
    "Approval",
    "Effect",
    "InvalidArguments",
    "NotDone",
    "ResultNotKept",
    "Tool",
    "ToolContext",
    "ToolSource",
    "as_tool",
    "is_size",
    "source_needs_approval",
    "tool",
    "tool_mistakes",
    "tools_of",
]
