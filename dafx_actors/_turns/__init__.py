"""Carries out what `_rules` decides; the only place where a model or a tool is called."""
