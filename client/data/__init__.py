"""A site's records: read them, and check them against the task."""
