"""What was spent stays spent: across restarts, torn writes and edits of the file."""

from __future__ import annotations

import json
import stat
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy.accounting import accounting
from privacy.accounting.accounting import Mechanism, epsilon
from privacy.crypto import signing
from privacy.errors import BudgetError, KeyFileError, LedgerError, VaultError
from privacy.ledger import entries
from privacy.ledger.ledger import Budget, Charge, Ledger, Release
from tests.privacy.consortium import chained, few, relaxed, signing_key
from tests.privacy.spending import AMPLE, KEY, NORMALLY, ROUND, events, filled, ledger, release

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

EVENT = {"run": "a" * 64, "round": 6, "attempt": 1, "noise_multiplier": 1, "sample_rate": 1, "steps": 5, "time": "",
         "purpose": "training", "discrete": False}  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The content of a ledger with a line of its own and five charges."""
    return filled(tmp_path_factory.mktemp("ledger") / "patients")


def read(data: bytes, site: str = "north", lineage: str = "patients") -> list[Mechanism]:
    # Not tmp_path, which hypothesis' examples would share.
    with TemporaryDirectory() as folder:
        path = Path(folder, "ledger")
        path.write_bytes(data)
        return Ledger(path, site, lineage, KEY.public_key()).mechanisms()


# --- Charging ------------------------------------------------------------------------------------------------------


def test_a_charge_is_in_the_file_before_reserve_returns(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "patients"
    charge = ledger(path).reserve(release(1), ROUND, AMPLE)
    first, second = events(path.read_bytes())
    assert json.loads(first).keys() == {"lineage", "site", "time"}
    assert json.loads(second).items() >= {
        "run": "a" * 64, "round": 1, "attempt": 1, "noise_multiplier": 1.0, "sample_rate": 0.1, "steps": 5
    }.items()  # fmt: skip
    assert b"epsilon" not in second
    assert charge == Charge(release(1), ROUND, path.read_text().splitlines()[-1][:64])


def test_every_line_is_signed_over_the_digest_of_all_before_it(whole: bytes) -> None:
    assert whole == chained(events(whole), KEY)


def test_only_the_owner_may_read_it(tmp_path: Path) -> None:
    ledger(tmp_path / "patients").reserve(release(1), ROUND, AMPLE)
    assert stat.S_IMODE((tmp_path / "patients").stat().st_mode) == 0o600


def test_over_the_budget_is_refused_with_all_numbers_and_writes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "patients"
    before = filled(path, 2)
    mechanism = Mechanism(1.0, 0.1, 500)
    would = epsilon([*ledger(path).mechanisms(), mechanism], 1e-5)
    with pytest.raises(BudgetError) as caught:
        ledger(path).reserve(release(3), mechanism, Budget(2.0, 1e-5))
    assert str(caught.value) == (
        f"round 3 would bring north's spending on 'patients' to ε {would:.2f}, over its budget of 2.00 at δ 1e-05; "
        "plan a cheaper run, or let the site raise its budget"
    )
    assert path.read_bytes() == before


def test_a_run_without_noise_is_over_any_budget(tmp_path: Path) -> None:
    with pytest.raises(BudgetError, match=r"to ε inf, over its budget of 1000000\.00"):
        ledger(tmp_path / "patients").reserve(release(1), Mechanism(0.0, 0.1, 1), Budget(1e6, 1e-5))


def test_a_budget_that_is_not_a_number_allows_nothing(tmp_path: Path) -> None:
    with pytest.raises(BudgetError):
        ledger(tmp_path / "patients").reserve(release(1), ROUND, Budget(float("nan"), 1e-5))


def test_the_exact_budget_is_allowed_and_slightly_more_is_refused(tmp_path: Path) -> None:
    exact = epsilon([ROUND, ROUND], 1e-5)
    for spend, path in ((exact, tmp_path / "exact"), (exact - 1e-9, tmp_path / "less")):
        ledger(path).reserve(release(1), ROUND, Budget(spend, 1e-5))
    ledger(tmp_path / "exact").reserve(release(2), ROUND, Budget(exact, 1e-5))
    with pytest.raises(BudgetError):
        ledger(tmp_path / "less").reserve(release(2), ROUND, Budget(exact - 1e-9, 1e-5))


def test_a_new_process_every_round_does_not_reset_the_budget(tmp_path: Path) -> None:
    # The mistake of a new PrivacyEngine every round: it shows one round's ε for ever.
    path, rounds = tmp_path / "patients", 50
    for number in range(1, rounds + 1):
        ledger(path).reserve(release(number), ROUND, AMPLE)
        assert ledger(path).spent(1e-5) == epsilon([Mechanism(1.0, 0.1, 5 * number)], 1e-5)
    spent = ledger(path).spent(1e-5)
    assert spent == epsilon([Mechanism(1.0, 0.1, 5 * rounds)], 1e-5)
    assert spent > 4 * epsilon([ROUND], 1e-5)
    with pytest.raises(BudgetError):
        ledger(path).reserve(release(51), ROUND, Budget(spent, 1e-5))


def test_all_runs_share_the_budget_and_each_attempt_is_charged(tmp_path: Path) -> None:
    path = tmp_path / "patients"
    for run in ("a" * 64, "b" * 64):
        for attempt in (1, 2):
            ledger(path).reserve(Release(run, 1, attempt), ROUND, AMPLE)
            ledger(path).leaves(Release(run, 1, attempt), "a")
    assert ledger(path).mechanisms() == [ROUND] * 4


def test_attempts_cannot_exceed_the_budget_of_one_run(tmp_path: Path) -> None:
    # Else a server could ask for attempt after attempt, until the whole budget of the lineage is gone.
    path = tmp_path / "patients"
    budget = Budget(100.0, 1e-5, run_epsilon=epsilon([ROUND] * 3, 1e-5))
    for attempt in (1, 2, 3):
        ledger(path).reserve(Release("a" * 64, 1, attempt), ROUND, budget)
        ledger(path).leaves(Release("a" * 64, 1, attempt), "a")
    before = path.read_bytes()
    with pytest.raises(BudgetError, match=r"round 1, attempt 4, would bring this run's spending at north to ε \d"):
        ledger(path).reserve(Release("a" * 64, 1, 4), ROUND, budget)
    assert path.read_bytes() == before
    ledger(path).reserve(Release("b" * 64, 1, 1), ROUND, budget)
    ledger(path).fails(Release("b" * 64, 1, 1))
    with pytest.raises(BudgetError, match="over the limit of nan for one run; end the run"):
        ledger(path).reserve(Release("b" * 64, 1, 2), ROUND, Budget(100.0, 1e-5, run_epsilon=float("nan")))


def test_a_plan_is_checked_against_what_was_spent_and_charges_nothing(tmp_path: Path) -> None:
    path = tmp_path / "patients"
    before = filled(path, 3)
    run = Mechanism(2.0, 0.1, 100)
    planned = ledger(path).check_plan(run, AMPLE)
    assert planned == epsilon([*ledger(path).mechanisms(), run], 1e-5)
    with pytest.raises(BudgetError, match="this run would bring north's spending on 'patients' to ε"):
        ledger(path).check_plan(run, Budget(planned - 0.01, 1e-5))
    assert path.read_bytes() == before


def test_an_empty_ledger_has_spent_nothing(tmp_path: Path) -> None:
    assert ledger(tmp_path / "patients").spent(1e-5) == 0


def test_entries_say_what_they_are_for_and_what_noise_it_was(tmp_path: Path) -> None:
    path = tmp_path / "patients"
    shared = Mechanism(3.0, 0.5, 2, discrete=True)
    ledger(path).reserve(Release("a" * 64, 1, 1, "statistics"), ROUND, AMPLE)
    charge = ledger(path).reserve(Release("a" * 64, 2, 1), shared, AMPLE)
    first, second = ledger(path).entries().charges
    assert (first.release.purpose, first.mechanism) == ("statistics", ROUND)
    assert (second.release.purpose, second.mechanism, second.head) == ("training", shared, charge.head)
    assert ledger(path).find("a" * 64, 2) == charge
    assert ledger(path).spent(1e-5) == epsilon([ROUND, shared], 1e-5)


def test_every_epsilon_is_that_of_a_person_with_all_their_records(tmp_path: Path) -> None:
    path, of_two = tmp_path / "patients", epsilon([ROUND], 1e-5, group=2)
    double = Ledger(path, "north", "patients", KEY, records_per_person=2)
    assert of_two > 2 * epsilon([ROUND], 1e-5)
    for budget in (Budget(of_two - 0.01, 1e-5), Budget(100.0, 1e-5, run_epsilon=of_two - 0.01)):
        with pytest.raises(BudgetError):
            double.reserve(release(1), ROUND, budget)
    with pytest.raises(BudgetError):
        double.check_plan(ROUND, Budget(of_two - 0.01, 1e-5))
    double.reserve(release(1), ROUND, Budget(of_two, 1e-5))
    assert double.spent(1e-5) == of_two


def test_a_lowered_number_of_records_does_not_lower_what_was_spent(tmp_path: Path) -> None:
    path = tmp_path / "patients"
    Ledger(path, "north", "patients", KEY, records_per_person=3).reserve(release(1), ROUND, AMPLE)
    lowered = ledger(path)
    assert lowered.records_per_person == 3
    assert lowered.spent(1e-5) == epsilon([ROUND], 1e-5, group=3)
    both = epsilon([ROUND, ROUND], 1e-5, group=3)
    with pytest.raises(BudgetError):
        lowered.reserve(release(2), ROUND, Budget(both - 0.01, 1e-5))
    lowered.reserve(release(2), ROUND, Budget(both, 1e-5))
    assert Ledger(path, "north", "patients", KEY, records_per_person=4).spent(1e-5) == epsilon(
        [ROUND, ROUND], 1e-5, group=4
    )


def test_a_charge_for_fewer_records_of_a_person_is_not_used_again(tmp_path: Path) -> None:
    path = tmp_path / "patients"
    charge = ledger(path).reserve(release(1), ROUND, AMPLE)
    assert ledger(path).reserve(release(1), ROUND, AMPLE) == charge
    Ledger(path, "north", "patients", KEY, records_per_person=2).reserve(release(1), ROUND, AMPLE)
    assert ledger(path).mechanisms() == [ROUND, ROUND]
    assert ledger(path).records_per_person == 2


def test_a_charge_is_as_fast_after_thousands_as_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Not timed: what is read, verified and composed is counted. Ten calibrations, hundreds of rounds with each.
    path, opened = tmp_path / "patients", {"site": "north", "lineage": "patients", "time": ""}
    rounds = [
        EVENT | {"round": number, "noise_multiplier": 5.0 + number % 10, "sample_rate": 0.001}
        for number in range(1, 3001)
    ]
    path.write_bytes(chained([json.dumps(event).encode() for event in [opened, *rounds]], KEY))
    verified, parsed, composed = list[str](), list[bytes](), list[int]()
    verify, loads, spent = signing.verify, json.loads, accounting._spent

    def verifying(key: Ed25519PublicKey, kind: str, payload: bytes, signature: bytes) -> None:
        verified.append(kind)
        verify(key, kind, payload, signature)

    def loading(data: bytes) -> object:
        parsed.append(data)
        return loads(data)

    def composing(mechanisms: tuple[Mechanism, ...], *rest: Any) -> float:  # noqa: ANN401
        composed.append(len(mechanisms))
        return spent(mechanisms, *rest)

    monkeypatch.setattr(entries, "verify", verifying)
    monkeypatch.setattr(json, "loads", loading)
    monkeypatch.setattr(accounting, "_spent", composing)
    ample = ledger(path)
    ample.reserve(release(3001), Mechanism(50.0, 0.5, 1), AMPLE)
    assert (len(verified), len(parsed)) == (1, 3001)
    for number in (3002, 3003):
        ample.reserve(release(number), Mechanism(50.0, 0.5, 1), AMPLE)
    assert (len(verified), len(parsed)) == (3, 3003)
    assert max(composed) == 11
    assert len(ample.mechanisms()) == 3003


def test_reading_writes_nothing_and_makes_no_file(tmp_path: Path, whole: bytes) -> None:
    path = tmp_path / "folder" / "patients"
    assert (ledger(path).mechanisms(), ledger(path).head, ledger(path).runs()) == ([], "0" * 64, set())
    assert not path.parent.exists()
    path.parent.mkdir()
    path.write_bytes(whole[:-1])
    assert ledger(path).head == whole.splitlines()[-2][:64].decode()
    assert path.read_bytes() == whole[:-1]


# --- Crashes -------------------------------------------------------------------------------------------------------


def test_a_tail_torn_at_any_byte_is_dropped_and_the_rest_kept(whole: bytes) -> None:
    entries = read(whole)
    start = whole.rfind(b"\n", 0, -1) + 1
    for cut in range(start, len(whole)):
        assert read(whole[:cut]) == entries[:-1]
    assert read(whole) == entries


def test_a_first_append_torn_at_any_byte_leaves_an_empty_ledger(tmp_path: Path) -> None:
    data = filled(tmp_path / "patients", 1)
    for cut in range(len(data)):
        assert read(data[:cut]) == []


@pytest.mark.parametrize("torn", [b"", b"0" * 64, bytes(4096), b"\r", b"\xff\xfe"])
def test_after_a_torn_tail_the_next_charge_continues_the_chain(tmp_path: Path, whole: bytes, torn: bytes) -> None:
    path = tmp_path / "patients"
    path.write_bytes(whole + torn)
    ledger(path).reserve(release(6), ROUND, AMPLE)
    assert path.read_bytes().startswith(whole)
    assert ledger(path).mechanisms() == [*read(whole), ROUND]


def test_a_torn_tail_is_removed_even_if_the_next_charge_is_refused(tmp_path: Path, whole: bytes) -> None:
    path = tmp_path / "patients"
    path.write_bytes(whole[:-1])
    with pytest.raises(BudgetError):  # so that nothing is appended
        ledger(path).reserve(release(6), Mechanism(0.0, 0.1, 1), AMPLE)
    assert path.read_bytes() == whole[: whole.rfind(b"\n", 0, -1) + 1]


# --- Edits ---------------------------------------------------------------------------------------------------------


@relaxed
@given(where=st.floats(0, 1, exclude_max=True), change=st.integers(1, 255))
def test_any_changed_byte_but_the_last_is_found(whole: bytes, where: float, change: int) -> None:
    data = bytearray(whole)
    data[int(where * (len(data) - 1))] ^= change
    with pytest.raises(LedgerError, match="was altered"):
        read(bytes(data))


@given(st.integers(0, NORMALLY - 1))
@few
def test_a_deleted_line_is_found(whole: bytes, number: int) -> None:
    lines = whole.splitlines(keepends=True)
    del lines[number]
    with pytest.raises(LedgerError, match=f":{number + 1}: this entry or an earlier one was altered"):
        read(b"".join(lines))


@given(st.integers(0, NORMALLY), st.integers(0, NORMALLY))
@few
def test_swapped_and_repeated_lines_are_found(whole: bytes, one: int, two: int) -> None:
    lines = whole.splitlines(keepends=True)
    repeated = [*lines[: one + 1], *lines[one:]]
    lines[one], lines[two] = lines[two], lines[one]
    for broken in (repeated, lines) if one != two else (repeated,):
        with pytest.raises(LedgerError, match="was altered"):
            read(b"".join(broken))


def test_a_ledger_that_is_rewritten_without_the_key_is_found_at_the_first_changed_line(whole: bytes) -> None:
    # Whatever is done: digests recomputed, signatures kept, made with another key or left out, at any line.
    signatures = [line.split(b" ", 2)[1] for line in whole.splitlines()]
    for place in range(1, NORMALLY + 1):
        cheaper = events(whole)
        cheaper[place] = cheaper[place].replace(b'"noise_multiplier": 1.0', b'"noise_multiplier": 10.0')
        other, head, lines, last = chained(cheaper, signing_key("mallory")), "0" * 64, b"", b""
        for event, signature in zip(cheaper, signatures, strict=True):
            head, last = sha256(bytes.fromhex(head) + last + event).hexdigest(), signature
            lines += b"%s %s %s\n" % (head.encode(), signature, event)
        with pytest.raises(LedgerError, match=f":{place + 1}: this entry or an earlier one was altered by someone"):
            read(lines)
        with pytest.raises(LedgerError, match="this ledger is not signed with north's key; restore it from backup"):
            read(other)
        kept = whole.splitlines(keepends=True)[:place] + other.splitlines(keepends=True)[place:]
        with pytest.raises(LedgerError, match=f":{place + 1}: this entry or an earlier one was altered"):
            read(b"".join(kept))


def test_the_last_entry_cannot_be_changed_either(whole: bytes) -> None:
    *kept, last = whole.splitlines(keepends=True)
    head, signature, _ = kept[-1].split(b" ", 2)
    cheaper = last.split(b" ", 2)[2].replace(b'"steps": 5', b'"steps": 1')
    forged = sha256(bytes.fromhex(head.decode()) + signature + cheaper.rstrip()).hexdigest().encode()
    for signature_used in (last.split(b" ", 2)[1], signing_key("mallory").sign(forged).hex().encode(), signature):
        with pytest.raises(LedgerError, match=":6: this entry or an earlier one was altered by someone without"):
            read(b"".join(kept) + b" ".join([forged, signature_used, cheaper]))


def test_a_signature_has_one_form(whole: bytes) -> None:
    *kept, last = whole.splitlines(keepends=True)
    head, signature, event = last.split(b" ", 2)
    with pytest.raises(LedgerError, match=":6: this entry"):
        read(b"".join(kept) + b" ".join([head, signature.upper(), event]))


def test_a_ledger_is_read_with_the_public_key_and_not_written(tmp_path: Path, whole: bytes) -> None:
    path = tmp_path / "patients"
    path.write_bytes(whole)
    auditor = Ledger(path, "north", "patients", KEY.public_key())
    assert (len(auditor.mechanisms()), auditor.head) == (NORMALLY, ledger(path).head)
    with pytest.raises(KeyFileError, match="north's signing key is missing, so nothing is written"):
        auditor.reserve(release(6), ROUND, AMPLE)
    assert path.read_bytes() == whole


def test_entries_appended_or_cut_by_another_process_are_read_again(tmp_path: Path, whole: bytes) -> None:
    path, lines = tmp_path / "patients", whole.splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:3]))
    kept = ledger(path)
    counts = []
    for data in (lines[:3], lines[:4], lines, lines[:2], lines):
        path.write_bytes(b"".join(data))
        counts.append(len(kept.mechanisms()))
    assert counts == [2, 3, 5, 1, 5]


def test_other_line_ends_are_an_edit(whole: bytes) -> None:
    for end in (b"\r\n", b"\n\n"):
        with pytest.raises(LedgerError, match=r":[12]: this entry or an earlier one"):
            read(whole.replace(b"\n", end))


def test_the_lines_of_another_ledger_do_not_fit(tmp_path: Path, whole: bytes) -> None:
    other = tmp_path / "other"
    Ledger(other, "south", "patients", signing_key("south")).reserve(release(1), ROUND, AMPLE)
    with pytest.raises(LedgerError, match="was altered"):
        read(whole + other.read_bytes().splitlines(keepends=True)[1])


@pytest.mark.parametrize(("site", "lineage"), [("south", "patients"), ("north", "customers")])
def test_another_sites_or_lineages_ledger_is_refused(whole: bytes, site: str, lineage: str) -> None:
    with pytest.raises(LedgerError, match="this ledger belongs to another site or lineage; correct `lineage`"):
        read(whole, site, lineage)


@pytest.mark.parametrize(
    "event",
    [
        b'{"statistics": "mean", "epsilon": 0.1}',
        b'{"steps": 5}',
        b"[]",
        b"5",
        b"null",
        b"",
        b"{",
        b"\xff",
        b'{"site": "north", "lineage": "patients", "time": ""}',
        *(
            json.dumps(EVENT | change).encode()
            for change in (
                {"steps": True},
                {"steps": 5.0},
                {"steps": "5"},
                {"noise_multiplier": None},
                {"discrete": 1},
                {"purpose": "fun"},
                {"purpose": ["training"]},
                {"group": 2},
                {"records_per_person": 1},
                {"records_per_person": True},
                {"records_per_person": "2"},
                {"round": None},
                {"adopted": 5},
                {"left": 5},
            )
        ),
    ],
)
def test_a_chained_entry_that_this_version_cannot_count_is_never_skipped(whole: bytes, event: bytes) -> None:
    with pytest.raises(
        LedgerError, match=":7: this version of Cloister cannot read this entry; use the version that wrote it"
    ):
        read(chained([*events(whole), event], KEY))


@relaxed
@given(st.binary(max_size=300))
def test_arbitrary_lines_are_not_a_ledger(data: bytes) -> None:
    with pytest.raises((LedgerError, VaultError), match=r"was altered|encrypted"):  # if they begin like a sealed file
        read(data + b"\n")
