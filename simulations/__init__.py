"""Federations on one machine: simulated consortia, the inline engine, adversaries, reference tasks."""
