"""Statistics of a consortium's records: what is asked of each, and how the sum is read."""
