"""The service: it takes signed runs, keeps them in its store, and serves them one after another."""
