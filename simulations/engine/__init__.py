"""Federations on one machine: consortia, the inline engine, and what came out of a run."""
