"""What `dafx dev` hosts where nothing is given."""

from __future__ import annotations

from dafx_actors.agents import durable_agent


@durable_agent
class Demo:
    """Answers briefly, by the model of the environment, or the small one of this machine."""

    instructions = "You are a helpful assistant. Answer in one or two short sentences."
