"""What operators see of a server: whether it is alive and ready, and its metrics."""
