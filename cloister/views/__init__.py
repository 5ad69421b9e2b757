"""Output for people: tables, plots, pages and log lines."""
