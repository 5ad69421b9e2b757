"""`cloister audit`: whether the guarantee holds, seen from outside."""
