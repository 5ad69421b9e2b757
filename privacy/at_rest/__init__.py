"""Encryption of what a site keeps on its disk."""
