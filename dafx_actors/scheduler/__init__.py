"""The embedded scheduler: a durable, single-node Durable Task backend."""
