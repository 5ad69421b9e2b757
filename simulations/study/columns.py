"""The columns of a simulation's rounds."""

NOT_METRICS = frozenset({"round", "sites", "epsilon", "site_epsilon", "bytes", "seconds", "released", "problems"})
"""What a round has beside the loss and metrics: no metric can have such a name."""
