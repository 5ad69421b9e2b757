"""`cloister audit`: test from outside whether the privacy guarantee holds."""
