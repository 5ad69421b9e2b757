"""The server's store: runs, their states, events and sums, in SQLite or PostgreSQL. The one room with SQLAlchemy."""
