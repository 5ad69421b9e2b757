"""A site's records: read, and checked against the task."""
