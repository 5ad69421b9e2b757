"""Adversaries: a malicious server, and members that lie or poison."""
