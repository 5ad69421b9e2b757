"""The agent: one site's process, its training, its keys and its ledger."""
