"""This package beside its peer, `agent-framework-durabletask`, which runs in processes and an environment of its own."""
