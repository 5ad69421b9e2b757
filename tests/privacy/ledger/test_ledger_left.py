"""A charged update leaves once, is charged again after a reported failure, and never leaves before it is on disk."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from privacy.accounting.accounting import Mechanism
from privacy.errors import LedgerError, ProtocolError
from privacy.ledger.ledger import Budget, Ledger, Release
from tests.privacy.consortium import signing_key

ROUND = Mechanism(noise_multiplier=1.0, sample_rate=0.1, steps=5)
AMPLE = Budget(epsilon=100.0, delta=1e-5)
RELEASE = Release("a" * 64, 1, 1)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "new" / "folder" / "patients"


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """What was synced to disk since the test began, in order."""
    paths, sync = list[Path](), os.fsync

    def noting(descriptor: int) -> None:
        paths.append(Path(f"/proc/self/fd/{descriptor}").readlink())
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", noting)
    return paths


def ledger(path: Path) -> Ledger:
    """Open a ledger as a process that has just started does."""
    return Ledger(path, "north", "patients", signing_key("north"))


def charge(path: Path, attempt: int = 1) -> int:
    """Reserve the release, or another attempt at it, and count what was ever charged."""
    ledger(path).reserve(replace(RELEASE, attempt=attempt), ROUND, AMPLE)
    return len(ledger(path).mechanisms())


def test_a_charge_is_reused_until_a_release_or_a_reported_failure(path: Path) -> None:
    assert [charge(path), charge(path)] == [1, 1]
    ledger(path).fails(RELEASE)
    assert not ledger(path).has_left(RELEASE)
    assert [charge(path), charge(path)] == [2, 2]
    ledger(path).leaves(RELEASE, "a")
    ledger(path).leaves(RELEASE, "a")
    assert ledger(path).has_left(RELEASE)
    with pytest.raises(ProtocolError, match="it does not send a second one"):
        ledger(path).leaves(RELEASE, "b")
    assert charge(path) == 3


def test_another_attempt_takes_over_the_charge_of_one_at_which_the_site_was_killed(path: Path) -> None:
    assert [charge(path), charge(path, attempt=2)] == [1, 1]
    first, later = (ledger(path).reserve(replace(RELEASE, attempt=number), ROUND, AMPLE) for number in (1, 3))
    assert (first.head, first.release.attempt, later.release.attempt) == (later.head, 1, 3)
    ledger(path).leaves(replace(RELEASE, attempt=2), "a")
    assert charge(path, attempt=3) == 2  # an update has left: the next one is another
    ledger(path).fails(replace(RELEASE, attempt=3))
    assert [charge(path, attempt=4), charge(path, attempt=4)] == [3, 3]
    assert charge(path, attempt=3) == 4  # an earlier attempt after a later one: nobody asks for that


def test_another_attempt_of_another_cost_is_charged(path: Path) -> None:
    charge(path)
    ledger(path).reserve(replace(RELEASE, attempt=2), Mechanism(1.0, 0.1, 6), AMPLE)
    for other in (replace(RELEASE, round=2), replace(RELEASE, run="b" * 64), replace(RELEASE, purpose="evaluation")):
        ledger(path).reserve(other, ROUND, AMPLE)
    assert len(ledger(path).mechanisms()) == 5


def test_after_a_loss_of_entries_no_earlier_charge_is_taken_over(path: Path) -> None:
    charge(path)
    ledger(path).accept_lost([], [], 1)  # a lost entry may have said that the update left
    assert charge(path) == 2


def test_an_update_leaves_only_for_a_charged_round(path: Path) -> None:
    charge(path)
    ledger(path).leaves(replace(RELEASE, attempt=2), "a")  # with masks, the same update again
    others = replace(RELEASE, round=2), replace(RELEASE, run="b" * 64), replace(RELEASE, purpose="evaluation")
    for other in others:
        with pytest.raises(LedgerError, match="no charge for round"):
            ledger(path).leaves(other, "a")


def test_entries_of_another_process_are_on_disk_before_they_are_used(path: Path, synced: list[Path]) -> None:
    # It may have been killed between writing and syncing: then the line can be read, and a power failure takes it.
    for deed in (lambda: charge(path), lambda: ledger(path).leaves(RELEASE, "a")):
        for _ in range(2):
            synced.clear()
            deed()
            assert synced[-2:] == [path, path.parent]


def test_its_parent_folders_are_on_disk_too(tmp_path: Path, path: Path, synced: list[Path]) -> None:
    charge(path)
    assert {tmp_path, tmp_path / "new", path.parent, path} <= set(synced)
