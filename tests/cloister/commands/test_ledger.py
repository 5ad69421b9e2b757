"""`cloister ledger`: figures that are the ledger's, side by side; nothing is written, and what is wrong ends with 1."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from functools import partial
from hashlib import sha256
from pathlib import Path
from shutil import copytree, rmtree
from typing import Any

import pytest
from typer.testing import CliRunner

from client.dpsgd import crosscheck
from client.settings import read_site
from cloister import accounts
from cloister.cli import app
from cloister.views.patience import patience
from privacy.accounting import losses
from privacy.accounting.accounting import RDP, Mechanism, Relation, epsilon
from privacy.errors import BudgetError, ConfigError, KeyFileError, LedgerError
from privacy.ledger.balance import excessive
from privacy.ledger.ledger import Budget, Ledger, Release
from simulations.engine.federation import Federation, SiteTerms
from tests.federations import await_condition
from tests.privacy.consortium import chained, signing_key
from transport.pki import key_pem, read_signing_key

RUN = Path(__file__).parents[3] / "simulations" / "tasks" / "diagnosis.toml"
TRAINED, SURVEYED, SHARED = Mechanism(2.0, 0.25, 4), Mechanism(6.0, 1.0, 1), Mechanism(8.0, 0.3, 10, discrete=True)
EVALUATED = Mechanism(12.0, 1.0, 1)
EVERYTHING = [TRAINED] * 3 + [SURVEYED, SHARED]
DELTA = 1e-5


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    """North has spent, on its held-out records too; south has not."""
    consortium = Federation.create(tmp_path_factory.mktemp("ledgers") / "federation", ("north", "south", "east"))
    for site in consortium.sites:
        consortium.write_settings(
            site, "localhost:1", SiteTerms(tasks=("simulations.tasks.diagnosis:Diagnosis",), epsilon=4.0)
        )
    ledger = ledger_of(consortium, "north")
    for number in (1, 2, 3):
        ledger.reserve(Release("a" * 64, number, 1), TRAINED, Budget(9.0, DELTA))
    ledger.reserve(Release("b" * 64, 1, 1, "statistics"), SURVEYED, Budget(9.0, DELTA))
    ledger.reserve(Release("c" * 64, 1, 2), SHARED, Budget(9.0, DELTA))
    held_out = read_site(consortium.paths["north"]).held_out_ledger
    held_out.reserve(Release("d" * 64, 1, 1, "evaluation"), EVALUATED, Budget(9.0, DELTA))
    return consortium


@pytest.fixture
def copy(federation: Federation, tmp_path: Path) -> Path:
    """A copy of north's folder, to be spoilt."""
    return Path(copytree(federation.paths["north"], tmp_path / "north"))


def ledger_of(federation: Federation, site: str) -> Ledger:
    return read_site(federation.paths[site]).ledger


def run(*arguments: str | Path) -> tuple[int, str]:
    """Run a command; return how it ended, and what it printed."""
    done = CliRunner().invoke(app, ["ledger", *map(str, arguments)])
    return done.exit_code, done.output


def report_of(*arguments: str | Path) -> dict[str, Any]:
    """Run a command with --json."""
    report: dict[str, Any] = json.loads(CliRunner().invoke(app, ["ledger", *map(str, arguments), "--json"]).stdout)
    return report


def test_show_reports_the_entries_of_the_ledger(federation: Federation) -> None:
    report = report_of("show", federation.paths["north"])
    spent = epsilon(EVERYTHING, DELTA)
    assert (report["budget"], report["spent"], report["left"]) == (4.0, spent, 4 - spent)
    assert report["spent_replace_one"] == epsilon(EVERYTHING, DELTA, relation=Relation.REPLACE_ONE)
    assert [(entry["purpose"], entry["rounds"], entry["steps"]) for entry in report["runs"]] == [
        ("training", 3, 12), ("statistics", 1, 1), ("training", 1, 10)
    ]  # fmt: skip
    assert report["runs"][0]["epsilon"] == epsilon([TRAINED] * 3, DELTA)
    assert [entry["discrete"] for entry in report["runs"]] == [False, False, True]
    assert report["runs"][2]["entries"][0]["attempt"] == 2
    held_out, cost = report["held_out"], epsilon([EVALUATED], DELTA)
    assert [entry["purpose"] for entry in held_out["runs"]] == ["evaluation"]
    assert (held_out["budget"], held_out["spent"], held_out["left"]) == (4.0, cost, 4 - cost)
    assert held_out["cross_check"]["agree"]
    check = report["cross_check"]
    assert check["agree"]
    assert abs(check["prv"] - check["pld"]) < 0.02 < check["rdp"] - check["pld"]


def test_show_fits_a_terminal_and_draws_the_budget(federation: Federation) -> None:
    code, output = run("show", federation.paths["north"], "--rounds")
    assert code == 0
    assert max(map(len, output.splitlines())) <= 80
    names = ("aaaaaaaa", "bbbbbbbb", "cccccccc", "dddddddd")
    assert sum(line.startswith(names) for line in output.splitlines()) == 4
    assert sum("0.25      4 " in line for line in output.splitlines()) == 3
    spent = epsilon(EVERYTHING, DELTA)
    full = round(spent / 4 * 30)
    assert f"{'█' * full}{'░' * (30 - full)} ε {spent:.2f} of 4.00, {4 - spent:.2f} left" in output
    cost = epsilon([EVALUATED], DELTA)
    assert f"ε {cost:.2f} of 4.00, {4 - cost:.2f} left" in output.partition("dddddddd")[2]


def test_an_empty_ledger_is_shown_and_not_changed(federation: Federation) -> None:
    code, output = run("show", federation.paths["south"])
    assert code == 0
    assert "nothing was ever charged" in output
    assert output.count("ε 0.00 of 4.00, 4.00 left") == 2
    assert not (federation.paths["south"] / "ledger").exists()


def test_accountants_that_disagree_end_with_1(federation: Federation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crosscheck, "PRV", RDP)  # looser than PRV may be
    code, output = run("show", federation.paths["north"])
    assert code == 1
    assert "✗ the accountants disagree" in output


def test_a_whole_ledger_is_verified_and_any_other_ends_with_the_reason(federation: Federation) -> None:
    place = read_site(federation.paths["north"])
    ledgers = place.ledger, place.held_out_ledger
    key = place.ledger.public_key.public_bytes_raw().hex()
    assert report_of("verify", federation.paths["north"])["ledgers"] == [
        {"ledger": str(balance.path), "site": "north", "lineage": balance.lineage, "entries": count,
         "head": balance.head, "signed_by": key, "last_head_kept": balance.head, "adopted": []}
        for balance, count in zip(ledgers, (5, 1), strict=True)
    ]  # fmt: skip
    code, output = run("verify", federation.paths["north"])
    assert code == 0
    assert all(f"head {balance.head}" in output for balance in ledgers)
    assert output.count("complete, and signed with north's key up to its last line") == 2
    assert output.count("as new as the last head that the site keeps") == 2
    assert "not verifiable here: whether the last lines are missing, unless a head shows it" in output
    assert "Anyone with the site's signing key could also rewrite the whole ledger" in output
    for ledger, steps in zip(ledgers, (4, 1), strict=True):
        whole = ledger.path.read_bytes()
        try:
            ledger.path.write_bytes(whole.replace(b'"steps": %d' % steps, b'"steps": 0', 1))
            with pytest.raises(LedgerError, match=":2: this entry or an earlier one was altered"):
                accounts.verify(federation.paths["north"])
        finally:
            ledger.path.write_bytes(whole)
    with pytest.raises(ConfigError, match="there is no ledger: nothing was ever charged for this lineage"):
        accounts.verify(federation.paths["south"])


def test_a_chain_that_is_rewritten_with_right_digests_is_not_verified(copy: Path) -> None:
    path = read_site(copy).ledger.path
    head, last, lines = "0" * 64, b"", b""
    for line in path.read_bytes().splitlines():
        _, signature, event = line.split(b" ", 2)
        event = event.replace(b'"noise_multiplier": 2.0', b'"noise_multiplier": 20.0')
        head, last = sha256(bytes.fromhex(head) + last + event).hexdigest(), signature
        lines += b"%s %s %s\n" % (head.encode(), signature, event)
    path.write_bytes(lines)
    for command in ("verify", "show"):
        code, _ = run(command, copy)
        assert code == 1
    with pytest.raises(LedgerError, match=":2: this entry or an earlier one was altered by someone"):
        accounts.verify(copy)


def test_a_ledger_that_lost_its_end_is_found_by_the_head_that_the_site_keeps_or_one_written_down(copy: Path) -> None:
    path = read_site(copy).ledger.path
    *earlier, last = path.read_bytes().splitlines(keepends=True)
    head = last[:64].decode()
    code, output = run("verify", copy, "--head", head)
    assert (code, f"✓ contains the head {head}" in output) == (0, True)
    path.write_bytes(b"".join(earlier))
    for look in (accounts.verify, accounts.report, partial(accounts.plan, run=RUN)):  # none counts too little
        with pytest.raises(LedgerError, match="lacks later charges of north"):
            look(copy)
    with pytest.raises(LedgerError, match="lacks later charges of north"):
        read_site(copy).ledger.reserve(Release("e" * 64, 1, 1), TRAINED, Budget(9.0, DELTA))
    path.unlink()
    with pytest.raises(LedgerError, match="the ledger is empty and lacks later"):
        accounts.verify(copy)
    path.write_bytes(b"".join(earlier))
    rmtree(copy / "ledger-heads")
    assert "no last head is kept here" in run("verify", copy)[1]
    with pytest.raises(LedgerError, match=f"no ledger of north contains the head {head}"):
        accounts.verify(copy, [head])


@pytest.mark.parametrize("damage", [b"", b"no head", b"\xff", b"0" * 64 + b" " + b"0" * 128 + b"\n"])
def test_a_last_head_that_the_site_did_not_sign_proves_nothing(copy: Path, damage: bytes) -> None:
    for file in (copy / "ledger-heads").iterdir():
        file.write_bytes(damage)
    assert [ledger["last_head_kept"] for ledger in accounts.verify(copy)["ledgers"]] == [None, None]
    read_site(copy).ledger.reserve(Release("e" * 64, 1, 1), TRAINED, Budget(9.0, DELTA))
    assert [ledger["last_head_kept"] is None for ledger in accounts.verify(copy)["ledgers"]] == [False, True]


def test_an_auditor_without_the_signing_key_verifies_with_what_the_roster_lists(copy: Path) -> None:
    before = report_of("verify", copy)
    (copy / "keys" / "signing.key").unlink()
    assert report_of("verify", copy) == before
    assert run("show", copy)[0] == 0
    with pytest.raises(KeyFileError, match="north's signing key is missing, so nothing is written"):
        read_site(copy).ledger.reserve(Release("e" * 64, 1, 1), TRAINED, Budget(9.0, DELTA))
    (copy / "keys" / "roster").unlink()
    with pytest.raises(KeyFileError, match=r"signing\.key"):
        accounts.verify(copy)


@pytest.mark.parametrize("checked", [True, False])
def test_a_site_with_new_keys_adopts_its_ledgers_once_and_reports_what_was_verified(
    copy: Path, tmp_path: Path, *, checked: bool
) -> None:
    old, key = tmp_path / "old.key", copy / "keys" / "signing.key"
    old.write_bytes(key.read_bytes())
    was = read_site(copy).ledger.public_key.public_bytes_raw().hex()
    key.write_bytes(key_pem(signing_key("north, later")))
    with pytest.raises(LedgerError, match="not signed with north's key; restore it from backup; if "):
        accounts.verify(copy)
    options = ["--old-key", str(old)] if checked else ["--unverified"]
    code, output = run("adopt", copy, *options)
    assert (code, "5 entries" in output) == (0, True)
    report = accounts.verify(copy)["ledgers"][0]
    assert [adoption["signed_by"] for adoption in report["adopted"]] == [was if checked else None]
    assert ("NOT VERIFIED" in run("verify", copy)[1]) != checked
    ledger = read_site(copy).ledger
    ledger.reserve(Release("e" * 64, 1, 1), TRAINED, Budget(9.0, DELTA))
    assert len(ledger.mechanisms()) == 6
    with pytest.raises(LedgerError, match="this ledger has no entry signed with a key other than"):
        accounts.adopt(copy, None)
    data = ledger.path.read_bytes()
    ledger.path.write_bytes(data.replace(b'"steps": 4', b'"steps": 0', 1))
    with pytest.raises(LedgerError, match=":2: this entry or an earlier one was altered"):
        accounts.verify(copy)


@pytest.mark.parametrize("checked", [True, False])
def test_an_older_copy_is_not_adopted(copy: Path, tmp_path: Path, *, checked: bool) -> None:
    # The new key says nothing of the last head, which the old one signed.
    old, key, path = tmp_path / "old.key", copy / "keys" / "signing.key", read_site(copy).ledger.path
    old.write_bytes(key.read_bytes())
    key.write_bytes(key_pem(signing_key("north, later")))
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    with pytest.raises(LedgerError, match="lacks later charges of north"):
        accounts.adopt(copy, old if checked else None)


def test_a_ledger_is_not_adopted_without_its_old_key_or_explicit_consent(copy: Path, tmp_path: Path) -> None:
    strange, data = tmp_path / "strange.key", read_site(copy).ledger.path.read_bytes()
    strange.write_bytes(key_pem(signing_key("mallory")))
    (copy / "keys" / "signing.key").write_bytes(key_pem(signing_key("north, later")))
    with pytest.raises(LedgerError, match="this ledger is not signed with north's key"):
        accounts.adopt(copy, strange)
    for options in ([], ["--unverified", "--old-key", str(strange)]):
        assert run("adopt", copy, *options)[0] == 1
    assert read_site(copy).ledger.path.read_bytes() == data


@pytest.mark.parametrize("name", ["north.held-out", "North.HELD-OUT", ".", ".."])
def test_no_lineage_can_name_the_ledger_of_held_out_records(copy: Path, name: str) -> None:
    file = copy / "site.toml"
    file.write_text(file.read_text().replace('"north-patients"', f'"{name}"'))
    with pytest.raises(ConfigError, match=r"a lineage must not end in \.held-out"):
        read_site(copy)


def test_a_delta_above_one_over_the_records_gets_a_warning_with_a_sensible_delta(copy: Path) -> None:
    file = copy / "site.toml"
    (copy / "patients.csv").write_text("a,b\n" + "1,2\n" * 500)
    assert report_of("show", copy)["delta_warning"] == ""
    file.write_text(file.read_text().replace("delta = 1e-05", "delta = 0.005"))
    warning = "δ 0.005 is above 1 over 500 records, which would allow publishing a whole record; use 1e-05 or less"
    assert report_of("show", copy)["delta_warning"] == warning
    assert f"! {warning}" in run("show", copy)[1]
    declared = warning.replace("500", "224")
    assert f"! {declared}" in run("plan", copy, RUN)[1].replace("\n", "")
    (copy / "patients.csv").unlink()
    assert report_of("show", copy)["delta_warning"] == ""


@pytest.mark.parametrize(("records", "fine"), [(1, ""), (99, ""), (101, "use 1e-05 or"), (10**9, "use 1e-10 or")])
def test_the_delta_that_is_called_sensible_is_below_one_over_the_records(records: int, fine: str) -> None:
    message = excessive(0.01, records)
    assert fine in message
    assert bool(message) == bool(fine)
    assert not message or not excessive(float(message.split("use ")[1].split()[0]), records)


def test_thousands_of_entries_are_shown_with_little_work(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Not timed: distributions that are composed, and those in each, are counted. It took 16 to 105 s.
    place, key = read_site(copy), read_signing_key(copy / "keys" / "signing.key")
    events: list[dict[str, Any]] = [{"site": "north", "lineage": "north-patients", "time": "2026-01-01T00:00:00+00:00"}]
    for number in range(2000):
        of = Mechanism(4.0 + number % 5, (0.01, 0.02, 1.0)[number % 3], 1 + number % 2, discrete=number % 7 == 0)
        events.append(asdict(Release(f"{number // 50:064x}", number, 1)) | asdict(of) | {"time": events[0]["time"]})
        del events[-1]["pure"]  # of votes alone
    place.ledger.path.write_bytes(
        chained([json.dumps(event).encode() for event in events], key, "north north-patients")
    )
    rmtree(copy / "ledger-heads")
    composed, compose = list[int](), losses.epsilon_of

    def counting(steps: Any, delta: float) -> float:  # noqa: ANN401
        composed.append(len(steps))
        return compose(steps, delta)

    monkeypatch.setattr(losses, "epsilon_of", counting)
    report = report_of("show", copy)
    assert (len(report["runs"]), sum(len(entry["entries"]) for entry in report["runs"])) == (40, 2000)
    assert report["cross_check"]["agree"]
    assert len(composed) < 50
    assert max(composed) <= 11


def test_a_wait_of_more_than_a_second_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    parts = list[str]()

    def is_explained() -> bool:
        parts.append(capsys.readouterr().err)
        return bool(parts[-1])

    with patience("thinking"):
        await_condition(is_explained, 30)
    assert "".join(parts) == "thinking …\n"
    with patience("hurrying"):
        pass
    assert capsys.readouterr().err == ""


def test_a_plan_states_the_cost_and_the_noise_that_would_fit(federation: Federation) -> None:
    ledger = ledger_of(federation, "north")
    before = ledger.path.read_bytes()
    code, output = run("plan", federation.paths["north"], RUN)
    assert code == 1
    assert "over its budget of 4.00" in output
    report = report_of("plan", federation.paths["north"], RUN)
    assert ledger.path.read_bytes() == before
    cost = Mechanism(report["noise_multiplier"], report["sample_rate"], report["steps"])
    assert report["cost"] == epsilon([cost], DELTA)
    assert report["spent_after"] == epsilon([*EVERYTHING, cost], DELTA)
    assert (report["allowed"], len(report["refusals"])) == (False, 1)
    fits = Mechanism(report["noise_multiplier_that_fits"], cost.sample_rate, cost.steps)
    assert f"noise_multiplier = {fits.noise_multiplier:g} would fit the remaining budget" in output
    assert ledger.check_plan(fits, Budget(4.0, DELTA)) <= 4.0
    with pytest.raises(BudgetError):
        ledger.check_plan(Mechanism(fits.noise_multiplier - 0.001, fits.sample_rate, fits.steps), Budget(4.0, DELTA))


def test_a_run_that_the_budget_covers_is_allowed(federation: Federation) -> None:
    code, output = run("plan", federation.paths["south"], RUN)
    assert code == 0
    assert "✓ south would take part" in output
    assert max(map(len, output.splitlines())) <= 80
    assert not (federation.paths["south"] / "ledger").exists()


def test_an_evaluation_is_planned_on_the_budget_of_what_is_held_out(federation: Federation, tmp_path: Path) -> None:
    path = tmp_path / "exam.toml"
    path.write_text(f"""\
name = "exam"
task = "simulations.tasks.diagnosis:Diagnosis"
rounds = 1
[start]
model = "{"0" * 64}"
[evaluation]
[privacy]
noise_multiplier = 12.0
[cohort.sizes]
north = 10
south = 10
east = 10
""")
    report = report_of("plan", federation.paths["north"], path)
    assert (report["spent"], report["allowed"]) == (epsilon([EVALUATED], DELTA), True)
    assert report["spent_after"] == epsilon([EVALUATED] * 2, DELTA)


def test_a_signed_run_is_planned_as_it_was_signed(federation: Federation, tmp_path: Path) -> None:
    from cloister.commands.sign import sign_run  # noqa: PLC0415

    signed = sign_run(RUN, federation.folder / "coordinator", federation.server / "roster", tmp_path / "run.manifest")
    report = report_of("plan", federation.paths["south"], tmp_path / "run.manifest")
    assert (report["noise_multiplier"], report["allowed"]) == (signed["noise_multiplier"], True)


def test_without_opacus_and_torch_all_of_it_works_but_prv(federation: Federation) -> None:
    code = """
import sys
class Nowhere:
    def find_spec(self, name, *rest):
        if name in {"torch", "opacus", "tenseal"}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Nowhere())
from cloister.cli import main
main()
"""
    for command in (["show", "north"], ["verify", "north"], ["plan", "south", str(RUN)]):
        done = subprocess.run(
            [sys.executable, "-c", code, "ledger", *command], cwd=federation.folder, capture_output=True, text=True,
            check=True, timeout=60,
        )  # fmt: skip
        if command[0] == "show":
            assert "PRV – (needs Opacus)" in done.stdout
