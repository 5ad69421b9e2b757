"""Federations on one machine: made-up consortia, the inline engine, reference tasks."""
