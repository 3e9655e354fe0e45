"""Calls and streams of clients and workers."""
