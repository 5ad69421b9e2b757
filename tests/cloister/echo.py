"""Prints its arguments and its input, for tests."""

import sys

if __name__ == "__main__":
    print(sys.argv[1:], repr(sys.stdin.read()))  # noqa: T201 - it is what it is for
