"""Federations on one machine: consortia, the inline engine, and the results of runs."""
