"""Output for people: tables, plots, pages and log lines."""

NOT_METRICS = frozenset({"round", "sites", "epsilon", "site_epsilon", "bytes", "seconds", "released", "problems"})
"""What a round of a simulation has beside the loss and metrics."""
