"""A researcher's study on one machine: records, sites, a run, and an engine that plays it."""
