"""Measurements, side by side in one run, each a command that prints a table or JSON."""
