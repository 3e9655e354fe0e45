"""SQLite, and nothing else: the only package of the scheduler that speaks SQL."""
