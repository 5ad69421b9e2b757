"""Reference tasks and their data."""
