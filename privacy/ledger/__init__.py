"""The ledger of a site: what was spent on its people, signed line by line, and never forgotten."""
