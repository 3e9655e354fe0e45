"""All that becomes JSON or comes from it; nothing else spells a JSON key."""
