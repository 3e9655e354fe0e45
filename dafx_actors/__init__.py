"""Durable AI agents: conversations that survive crashes, on any Durable Task scheduler."""
