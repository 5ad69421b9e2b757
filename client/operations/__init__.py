"""What operators see of an agent: whether it is alive and online, and its metrics."""
