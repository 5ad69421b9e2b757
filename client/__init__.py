"""The agent: one site's process, with its training, keys and ledger."""
