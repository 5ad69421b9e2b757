"""`cloister ledger`: figures that are the ledger's, side by side; nothing is written, and what is wrong ends with 1."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from client import crosscheck
from client.settings import read_site
from cloister import accounts
from cloister.cli import app
from privacy.accounting import RDP, Mechanism, Relation, epsilon
from privacy.errors import BudgetError, ConfigError, LedgerError
from privacy.ledger import Budget, Ledger, Release
from simulations.federation import Federation, SiteTerms

RUN = Path(__file__).parent.parent.parent / "simulations" / "diagnosis.toml"
TRAINED, SURVEYED, SHARED = Mechanism(2.0, 0.25, 4), Mechanism(6.0, 1.0, 1), Mechanism(8.0, 0.3, 10, discrete=True)
EVALUATED = Mechanism(12.0, 1.0, 1)
EVERYTHING = [TRAINED] * 3 + [SURVEYED, SHARED]
DELTA = 1e-5


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    """North has spent, on its held-out records too; south has not."""
    made = Federation.create(tmp_path_factory.mktemp("ledgers") / "federation", ("north", "south", "east"))
    for site in made.sites:
        made.write_settings(site, "localhost:1", SiteTerms(tasks=("simulations.diagnosis:Diagnosis",), epsilon=4.0))
    ledger = ledger_of(made, "north")
    for number in (1, 2, 3):
        ledger.reserve(Release("a" * 64, number, 1), TRAINED, Budget(9.0, DELTA))
    ledger.reserve(Release("b" * 64, 1, 1, "statistics"), SURVEYED, Budget(9.0, DELTA))
    ledger.reserve(Release("c" * 64, 1, 2), SHARED, Budget(9.0, DELTA))
    held_out = read_site(made.paths["north"]).held_out_ledger
    held_out.reserve(Release("d" * 64, 1, 1, "evaluation"), EVALUATED, Budget(9.0, DELTA))
    return made


def ledger_of(federation: Federation, site: str) -> Ledger:
    return read_site(federation.paths[site]).ledger


def run(*arguments: str | Path) -> tuple[int, str]:
    """Run a command; return how it ended, and what it printed."""
    done = CliRunner().invoke(app, ["ledger", *map(str, arguments)])
    return done.exit_code, done.output


def asked(*arguments: str | Path) -> dict[str, Any]:
    """Run a command with --json."""
    found: dict[str, Any] = json.loads(run(*arguments, "--json")[1])
    return found


def test_what_is_shown_is_what_the_ledger_holds(federation: Federation) -> None:
    found = asked("show", federation.paths["north"])
    spent = epsilon(EVERYTHING, DELTA)
    assert (found["budget"], found["spent"], found["left"]) == (4.0, spent, 4 - spent)
    assert found["spent_replace_one"] == epsilon(EVERYTHING, DELTA, relation=Relation.REPLACE_ONE)
    assert [(each["purpose"], each["rounds"], each["steps"]) for each in found["runs"]] == [
        ("training", 3, 12), ("statistics", 1, 1), ("training", 1, 10)
    ]  # fmt: skip
    assert found["runs"][0]["epsilon"] == epsilon([TRAINED] * 3, DELTA)
    assert [each["discrete"] for each in found["runs"]] == [False, False, True]
    assert found["runs"][2]["entries"][0]["attempt"] == 2
    held_out, told = found["held_out"], epsilon([EVALUATED], DELTA)
    assert [each["purpose"] for each in held_out["runs"]] == ["evaluation"]
    assert (held_out["budget"], held_out["spent"], held_out["left"]) == (4.0, told, 4 - told)
    assert held_out["cross_check"]["agree"]
    check = found["cross_check"]
    assert check["agree"]
    assert abs(check["prv"] - check["pld"]) < 0.02 < check["rdp"] - check["pld"]


def test_it_fits_a_terminal_and_shows_the_budget_as_a_picture(federation: Federation) -> None:
    code, shown = run("show", federation.paths["north"], "--rounds")
    assert code == 0
    assert max(map(len, shown.splitlines())) <= 80
    names = ("aaaaaaaa", "bbbbbbbb", "cccccccc", "dddddddd")
    assert sum(line.startswith(names) for line in shown.splitlines()) == 4
    assert sum("0.25      4 " in line for line in shown.splitlines()) == 3
    spent = epsilon(EVERYTHING, DELTA)
    full = round(spent / 4 * 30)
    assert f"{'█' * full}{'░' * (30 - full)} ε {spent:.2f} of 4.00, {4 - spent:.2f} left" in shown
    told = epsilon([EVALUATED], DELTA)
    assert f"ε {told:.2f} of 4.00, {4 - told:.2f} left" in shown.partition("dddddddd")[2]


def test_an_empty_ledger_is_shown_and_nothing_is_made_of_it(federation: Federation) -> None:
    code, shown = run("show", federation.paths["south"])
    assert code == 0
    assert "nothing was ever charged" in shown
    assert shown.count("ε 0.00 of 4.00, 4.00 left") == 2
    assert not (federation.paths["south"] / "ledger").exists()


def test_accountants_that_disagree_end_with_1(federation: Federation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crosscheck, "PRV", RDP)  # looser than PRV may be
    code, shown = run("show", federation.paths["north"])
    assert code == 1
    assert "✗ the accountants disagree" in shown


def test_a_whole_ledger_is_verified_and_any_other_ends_with_the_reason(federation: Federation) -> None:
    place = read_site(federation.paths["north"])
    ledgers = place.ledger, place.held_out_ledger
    assert asked("verify", federation.paths["north"])["ledgers"] == [
        {"ledger": str(each.path), "site": "north", "lineage": each.lineage, "entries": count, "head": each.head}
        for each, count in zip(ledgers, (5, 1), strict=True)
    ]
    shown = run("verify", federation.paths["north"])[1]
    assert all(f"head {each.head}" in shown for each in ledgers)
    for ledger, steps in zip(ledgers, (4, 1), strict=True):
        whole = ledger.path.read_bytes()
        try:
            ledger.path.write_bytes(whole.replace(b'"steps": %d' % steps, b'"steps": 0', 1))
            with pytest.raises(LedgerError, match=":2: this entry or one before it was altered"):
                accounts.verify(federation.paths["north"])
        finally:
            ledger.path.write_bytes(whole)
    with pytest.raises(ConfigError, match="there is no ledger; nothing was ever charged for this lineage"):
        accounts.verify(federation.paths["south"])


def test_a_plan_says_what_would_be_spent_and_which_noise_would_fit(federation: Federation) -> None:
    ledger = ledger_of(federation, "north")
    before = ledger.path.read_bytes()
    code, shown = run("plan", federation.paths["north"], RUN)
    assert code == 1
    assert "over its budget of 4.00" in shown
    found = asked("plan", federation.paths["north"], RUN)
    assert ledger.path.read_bytes() == before
    cost = Mechanism(found["noise_multiplier"], found["sample_rate"], found["steps"])
    assert found["cost"] == epsilon([cost], DELTA)
    assert found["spent_after"] == epsilon([*EVERYTHING, cost], DELTA)
    assert (found["allowed"], len(found["refusals"])) == (False, 1)
    fits = Mechanism(found["noise_multiplier_that_fits"], cost.sample_rate, cost.steps)
    assert f"noise_multiplier = {fits.noise_multiplier:g} would fit what is left" in shown
    assert ledger.check_plan(fits, Budget(4.0, DELTA)) <= 4.0
    with pytest.raises(BudgetError):
        ledger.check_plan(Mechanism(fits.noise_multiplier - 0.001, fits.sample_rate, fits.steps), Budget(4.0, DELTA))


def test_a_run_that_the_budget_covers_is_allowed(federation: Federation) -> None:
    code, shown = run("plan", federation.paths["south"], RUN)
    assert code == 0
    assert "✓ south would take part" in shown
    assert max(map(len, shown.splitlines())) <= 80
    assert not (federation.paths["south"] / "ledger").exists()


def test_an_evaluation_is_planned_on_the_budget_of_what_is_held_out(federation: Federation, tmp_path: Path) -> None:
    path = tmp_path / "exam.toml"
    path.write_text(f"""\
name = "exam"
task = "simulations.diagnosis:Diagnosis"
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
    found = asked("plan", federation.paths["north"], path)
    assert (found["spent"], found["allowed"]) == (epsilon([EVALUATED], DELTA), True)
    assert found["spent_after"] == epsilon([EVALUATED] * 2, DELTA)


def test_a_signed_run_is_planned_as_it_was_signed(federation: Federation, tmp_path: Path) -> None:
    from cloister.signing import sign_run  # noqa: PLC0415

    signed = sign_run(RUN, federation.folder / "coordinator", federation.server / "roster", tmp_path / "run.manifest")
    found = asked("plan", federation.paths["south"], tmp_path / "run.manifest")
    assert (found["noise_multiplier"], found["allowed"]) == (signed["noise_multiplier"], True)


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
