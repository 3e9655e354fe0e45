"""This package beside its peer, `agent-framework-durabletask`, which runs in an environment of its own."""
