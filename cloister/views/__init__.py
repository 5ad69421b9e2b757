"""What people look at: tables, plots, pages and log lines."""
