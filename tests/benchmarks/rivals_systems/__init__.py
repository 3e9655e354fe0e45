"""The systems of `tests.benchmarks.rivals`: a script each, run in an environment of its own, and what starts them."""
