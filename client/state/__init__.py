"""A site's state on disk from one round to the next."""
