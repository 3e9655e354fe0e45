"""Decides what an answer changes, and who gets which work. Knows no loop and no disk."""
