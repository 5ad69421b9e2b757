"""Statistics over a consortium's records: encoding each record, and reading the sum."""
