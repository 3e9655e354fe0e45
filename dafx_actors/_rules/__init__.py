"""Decides and does nothing: no await, no clock, no network."""
