"""A port for whoever operates a process: whether it is alive and ready, and its metrics. It has nothing secret."""
