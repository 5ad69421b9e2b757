"""Search for the settings of a run: a space, trials in a database, and processes that play them."""
