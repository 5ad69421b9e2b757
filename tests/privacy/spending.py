"""Ledgers for tests, and charges."""

from pathlib import Path

from privacy.accounting.accounting import Mechanism
from privacy.ledger.ledger import Budget, Ledger, Release
from tests.privacy.consortium import signing_key

ROUND = Mechanism(noise_multiplier=1.0, sample_rate=0.1, steps=5)
AMPLE = Budget(epsilon=100.0, delta=1e-5)
KEY = signing_key("north")
NORMALLY = 5  # entries of the ledger that most tests share


def release(number: int, run: str = "a" * 64) -> Release:
    return Release(run, number, 1)


def ledger(path: Path) -> Ledger:
    """Open a ledger as a process that has just started does."""
    return Ledger(path, "north", "patients", KEY)


def filled(path: Path, entries: int = NORMALLY) -> bytes:
    path.touch()
    for number in range(1, entries + 1):
        ledger(path).reserve(release(number), Mechanism(1.0, 0.1, number), AMPLE)
    return path.read_bytes()


def events(data: bytes) -> list[bytes]:
    return [line.split(b" ", 2)[2] for line in data.splitlines()]
