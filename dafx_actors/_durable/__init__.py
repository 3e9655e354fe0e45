"""How to reach a Durable Task scheduler; the only place that names durabletask's private parts."""
