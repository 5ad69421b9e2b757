"""A ledger whose file cannot be written allows nothing, and processes that spend at once lose no entry."""

import json
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from privacy.accounting.accounting import Mechanism, epsilon
from privacy.errors import LedgerError
from tests.privacy.spending import AMPLE, ROUND, events, filled, ledger, release


def test_a_folder_in_its_place_is_a_ledger_error(tmp_path: Path) -> None:
    with pytest.raises(LedgerError) as caught:
        ledger(tmp_path).reserve(release(1), ROUND, AMPLE)
    assert str(caught.value) == f"{tmp_path}: Is a directory; no update is sent until the ledger can be written"


def test_a_file_in_its_folders_place_is_a_ledger_error(tmp_path: Path) -> None:
    (tmp_path / "folder").touch()
    with pytest.raises(LedgerError, match="no update is sent until the ledger can be written"):
        ledger(tmp_path / "folder" / "patients").reserve(release(1), ROUND, AMPLE)


@contextmanager
def room_for(path: Path, size: int) -> Iterator[None]:
    """Let no file of this process grow larger than this one may."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, ((path.stat().st_size if path.exists() else 0) + size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("entries", [0, 2])
@pytest.mark.parametrize("room", [0, 50, 350])
def test_a_full_disk_is_a_ledger_error_and_the_ledger_survives_it(tmp_path: Path, entries: int, room: int) -> None:
    path = tmp_path / "patients"
    filled(path, entries)
    before = ledger(path).mechanisms()
    full = pytest.raises(LedgerError, match="patients: File too large; no update is sent")
    with room_for(path, room), full:
        ledger(path).reserve(release(9), ROUND, AMPLE)
    assert ledger(path).mechanisms() == before
    ledger(path).reserve(release(9), ROUND, AMPLE)
    assert ledger(path).mechanisms() == [*before, ROUND]


def test_a_file_that_takes_its_place_while_it_is_written_is_a_ledger_error(tmp_path: Path) -> None:
    # A copy that is moved there: what was written would be in a file that nobody reads any more.
    path, other = tmp_path / "patients", tmp_path / "restored"
    before = filled(path, 2)
    for charge in (release(3), release(2)):  # a new one, and one that stands there
        other.write_bytes(before)
        kept = ledger(path)
        with kept.opened() as (file, entries):
            other.replace(path)
            stands = entries.unused(charge, Mechanism(1.0, 0.1, 2), 1)
            write = kept.sync if stands else partial(kept.append, lines=before.splitlines(keepends=True)[-1])
            with pytest.raises(LedgerError, match="another file replaced this ledger"):
                write(file)
        assert path.read_bytes() == before


# --- Two processes -------------------------------------------------------------------------------------------------

SPENDER = """
import sys
from pathlib import Path
from privacy.accounting.accounting import Mechanism
from privacy.errors import BudgetError
from privacy.ledger.ledger import Budget, Ledger, Release
from tests.privacy.consortium import signing_key

key = signing_key("north")
path, name, limit = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
sys.stdin.readline()  # until all are ready
done = 0
try:
    while True:
        release = Release(name * 64, done + 1, 1)
        Ledger(path, "north", "patients", key).reserve(release, Mechanism(1.0, 0.1, 5), Budget(limit, 1e-5))
        done += 1
except BudgetError:
    print(done)
"""


def test_processes_that_spend_at_once_lose_no_entry_and_never_exceed_the_budget(tmp_path: Path) -> None:
    path, rounds = tmp_path / "patients", 30
    limit = epsilon([Mechanism(1.0, 0.1, 5 * rounds)], 1e-5)
    spenders = [
        subprocess.Popen(
            [sys.executable, "-c", SPENDER, str(path), name, repr(limit)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in "ab"
    ]
    for spender in spenders:
        assert spender.stdin is not None
        spender.stdin.write("go\n")
        spender.stdin.flush()
    counts = [int(spender.communicate(timeout=60)[0]) for spender in spenders]
    assert sum(counts) == rounds
    assert ledger(path).mechanisms() == [ROUND] * rounds
    assert ledger(path).spent(1e-5) <= limit
    lines = [json.loads(line) for line in events(path.read_bytes())[1:]]
    assert [sorted(line["round"] for line in lines if line["run"] == name * 64) for name in "ab"] == [
        list(range(1, count + 1)) for count in counts
    ]
