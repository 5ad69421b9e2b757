"""A site's ledger: every privacy charge, in a signed, append-only file."""
