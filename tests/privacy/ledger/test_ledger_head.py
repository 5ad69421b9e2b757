"""A ledger that lost its end is noticed by the head that the site itself signed, and by nothing that others made."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from privacy.accounting.accounting import Mechanism
from privacy.crypto.signing import sign
from privacy.errors import LedgerError
from privacy.ledger.ledger import Budget, Ledger, Release
from privacy.ledger.ledger_head import SignedHead
from strategies.ledger_heads import LedgerHeads, RunHeads
from tests.privacy.consortium import signing_key

if TYPE_CHECKING:
    from pathlib import Path

KEY = signing_key("north")


def charged(path: Path, rounds: int, first: int = 1, lineage: str = "patients") -> Ledger:
    ledger = Ledger(path, "north", lineage, KEY)
    for number in range(first, first + rounds):
        ledger.reserve(Release("a" * 64, number, 1), Mechanism(5.0, 0.1, 1), Budget(9.0, 1e-5))
    return ledger


def test_a_ledger_has_every_head_that_it_ever_had(tmp_path: Path) -> None:
    ledger = charged(tmp_path / "ledger", 0)
    heads = [ledger.sign_head()]
    for number in (1, 2, 3):
        charged(ledger.path, 1, first=number)
        heads.append(ledger.sign_head())
    assert len({signed.head for signed in heads}) == 4
    for head in (None, *heads):
        ledger.check_head(head)


def test_an_older_copy_is_refused_with_what_to_do(tmp_path: Path) -> None:
    ledger = charged(tmp_path / "ledger", 2)
    backup = ledger.path.read_bytes()
    charged(ledger.path, 1, first=3)
    known = ledger.sign_head()
    ledger.path.write_bytes(backup)
    with pytest.raises(LedgerError) as caught:
        ledger.check_head(known)
    assert str(caught.value) == (
        f"{ledger.path}: the ledger ends on {ledger.entries().charges[-1].time} and lacks later charges of north "
        f"(head {known.head[:12]}); restore the newest copy; nothing is charged until then; "
        "if it is lost, see `cloister ledger recover --help`"
    )
    charged(ledger.path, 1, first=4)  # whatever is charged since then does not make it whole
    with pytest.raises(LedgerError, match="lacks later charges of north"):
        ledger.check_head(known)


def test_a_deleted_ledger_is_refused(tmp_path: Path) -> None:
    known = charged(tmp_path / "ledger", 1).sign_head()
    (tmp_path / "ledger").unlink()
    with pytest.raises(LedgerError, match="the ledger is empty and lacks later charges of north"):
        Ledger(tmp_path / "ledger", "north", "patients", KEY).check_head(known)


def test_a_head_that_this_site_did_not_sign_for_this_lineage_proves_nothing(tmp_path: Path) -> None:
    ledger, other = charged(tmp_path / "ledger", 1), charged(tmp_path / "other", 2, lineage="customers")
    strange = "ab" * 32
    for head in (
        SignedHead(strange, bytes(64)),
        other.sign_head(),
        SignedHead(other.sign_head().head, ledger.sign_head().signature),
        SignedHead(strange, sign(signing_key("south"), "ledger", f"north patients {strange}".encode())),
        SignedHead(strange, sign(KEY, "readiness", f"north patients {strange}".encode())),
        SignedHead(strange, sign(KEY, "ledger", f"south patients {strange}".encode())),
    ):
        ledger.check_head(head)
    with pytest.raises(LedgerError):
        ledger.check_head(SignedHead(strange, sign(KEY, "ledger", f"north patients {strange}".encode())))


def test_the_server_keeps_the_last_head_of_each_site_over_restarts(tmp_path: Path) -> None:
    path = tmp_path / "server" / "heads.json"
    one, two = SignedHead("1" * 64, bytes(64)), SignedHead("2" * 64, b"s" * 64)
    heads = RunHeads(LedgerHeads(path))
    assert heads.of("north") is None
    assert heads.of(None) is None
    heads.note("north", one)
    heads.note("south", one)
    heads.save()
    heads.note("north", two)
    heads.note("south", None)
    heads.save()
    again = RunHeads(LedgerHeads(path))
    assert (again.of("north"), again.of("south"), again.of("east")) == (two, one, None)


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b'{"north": {}}', b'{"north": {"head": "x", "signature": ""}}'])
def test_a_damaged_list_of_heads_is_refused_in_our_words(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "heads.json").write_bytes(data)
    with pytest.raises(LedgerError, match="this file is not a list of ledger heads; restore it from backup"):
        LedgerHeads(tmp_path / "heads.json")
