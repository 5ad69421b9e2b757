"""Print the part of a lock with some packages only: `locked.py NAMES LOCK`. An image gets what it needs and no more."""

import sys
from pathlib import Path

_, names, lock = sys.argv
wanted = set(Path(names).read_text(encoding="utf-8").split())
found, keep = set(), False
for line in Path(lock).read_text(encoding="utf-8").splitlines():
    if not line.startswith((" ", "#")):
        name = line.partition("==")[0]
        keep = name in wanted
        found |= {name} & wanted
    if keep and not line.lstrip().startswith("#"):
        print(line)  # noqa: T201 - what it is for
if found != wanted:
    sys.exit(f"{lock} lacks {', '.join(sorted(wanted - found))}; write both anew: make lock")
