"""Tasks: the class that a user writes, and the checks that it passes before it trains on a record."""
