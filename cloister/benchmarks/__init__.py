"""Benchmarks that compare alternatives in one run; each is a command that prints a table or JSON."""
