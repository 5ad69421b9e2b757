"""`cloister audit statement`: every figure from its source, nothing made up."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from client.dpsgd import crosscheck
from client.settings import read_site
from cloister.audit.statement import AUDIT, write_statement
from cloister.cli import app
from privacy.accounting.accounting import RDP, Mechanism, Relation, epsilon
from privacy.config import read_toml
from privacy.errors import CloisterError, ConfigError, KeyFileError, LedgerError
from privacy.ledger.entries import GENESIS
from privacy.ledger.ledger import Ledger, Release
from privacy.noise.noise_shares import observers
from privacy.run.settings import RunSettings
from server.settings import read_consortium, read_run
from simulations.engine.federation import Federation, SiteTerms

if TYPE_CHECKING:
    from privacy.run.manifest import Manifest

SITES = ("north", "south", "east")
RUN = Path(__file__).parents[3] / "simulations" / "tasks" / "diagnosis.toml"
OTHER = Mechanism(2.0, 1.0, 1)
DELTA = 1e-5
TASKS, DISCLOSED = ("simulations.tasks.diagnosis:Diagnosis",), ("epsilon", "loss", "accuracy")
AUDITED = {
    "passed": True, "epsilon_claimed": 8.0, "epsilon_lower": 6.5, "epsilon_formal": 3.1, "confidence": 0.95,
    "canaries": 4000, "date": "2026-01-01T00:00:00+00:00", "version": "0.1.0",
    "checks": [{"name": "noise", "held": True}],
}  # fmt: skip


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    """Three sites that share two metrics, and a signed run."""
    consortium = Federation.create(tmp_path / "federation", SITES)
    consortium.sign(read_toml(RUN, RunSettings))
    for site in SITES:
        consortium.write_settings(site, "localhost:1", SiteTerms(TASKS, epsilon=10.0, disclose=DISCLOSED))
    return consortium


def _signed(federation: Federation) -> tuple[Manifest, str]:
    run = read_run(federation.manifest, read_consortium(federation.server).roster())
    return run.manifest, run.digest


def _charge(federation: Federation, *charges: tuple[str, int, Mechanism]) -> Ledger:
    place = read_site(federation.paths["north"])
    for run, number, mechanism in charges:
        place.ledger.reserve(Release(run, number, 1), mechanism, place.settings.limit)
    return place.ledger


def _examine(federation: Federation) -> Ledger:
    place = read_site(federation.paths["north"])
    place.held_out_ledger.reserve(Release("e" * 64, 1, 1, "evaluation"), OTHER, place.settings.held_out_limit)
    return place.held_out_ledger


def _set(federation: Federation, old: str, new: str) -> None:
    path = federation.paths["north"] / "site.toml"
    path.write_text(path.read_text().replace(old, new, 1))


def _state(federation: Federation, *, run: bool = False) -> dict[str, Any]:
    return write_statement(federation.paths["north"], federation.manifest if run else None, None)[0]


def test_a_site_that_released_nothing_reports_it_without_creating_a_ledger(federation: Federation) -> None:
    statement = _state(federation)
    assert [(entry["epsilon_spent"], entry["epsilon_left"]) for entry in statement["spending"]] == [(0, 10.0)] * 2
    for ledger in statement["ledgers"].values():
        assert (ledger["entries"], ledger["first"], ledger["last"], ledger["head"]) == (0, None, None, GENESIS)
    assert statement["audit"] == {"result": "not audited; run `cloister audit privacy SITE`"}
    assert not (federation.paths["north"] / "ledger").exists()


def test_spending_head_and_composition_come_from_the_ledger(federation: Federation) -> None:
    manifest, digest = _signed(federation)
    ledger = _charge(
        federation, (digest, 1, manifest.round_cost), ("f" * 64, 1, OTHER), (digest, 2, manifest.round_cost)
    )
    statement = _state(federation, run=True)

    everything = [manifest.round_cost, OTHER, manifest.round_cost]
    spent, budget = epsilon(everything, DELTA), statement["spending"][0]
    assert (budget["epsilon_spent"], budget["epsilon_budget"], budget["epsilon_left"]) == (spent, 10.0, 10.0 - spent)
    assert budget["epsilon_spent_replace_one"] == epsilon(everything, DELTA, relation=Relation.REPLACE_ONE) > spent
    assert statement["ledgers"]["trained_on"]["head"] == ledger.head
    assert (statement["composition"]["runs"], statement["composition"]["releases"]["training"]) == (2, 3)
    assert statement["mechanism"]["charged"] == [
        {"for": "training", "noise_multiplier": 2.0, "sample_rate": 1.0, "steps": 1, "discrete": False},
        {"for": "training", "noise_multiplier": manifest.noise_multiplier, "sample_rate": 0.5, "steps": 8,
         "discrete": False},
    ]  # fmt: skip
    assert statement["mechanism"]["clipping_norm"] == 0.5
    assert (statement["run"]["rounds_charged_here"], statement["run"]["rounds"]) == (2, 12)
    assert statement["run"]["epsilon_charged_here"] == epsilon([manifest.round_cost] * 2, DELTA)
    assert statement["run"]["epsilon_of_the_whole_run"] == epsilon([manifest.run_cost], DELTA)
    assert digest in statement["about"]["run"]
    assert "loss, accuracy" in statement["composition"]["metrics"]
    assert any("metrics" in sentence for sentence in statement["not_covered"])


def test_held_out_records_have_their_own_budget_and_persons_on_both_sides_pay_twice(federation: Federation) -> None:
    manifest, digest = _signed(federation)
    _charge(federation, (digest, 1, manifest.round_cost))
    held_out = _examine(federation)
    _set(federation, "delta = ", "held_out_epsilon = 5.0\ndelta = ")
    statement = _state(federation)
    trained, evaluated = statement["spending"]
    spent = epsilon([OTHER], DELTA)
    assert trained["epsilon_spent"] == epsilon([manifest.round_cost], DELTA)
    assert (evaluated["epsilon_spent"], evaluated["epsilon_budget"], evaluated["epsilon_left"]) == (
        spent,
        5.0,
        5.0 - spent,
    )
    assert statement["composition"]["epsilon_on_both_sides"] == epsilon([manifest.round_cost, OTHER], DELTA)
    assert statement["composition"]["releases"] == {"training": 1, "statistics": 0, "evaluation": 1, "vote": 0}
    assert statement["ledgers"]["held_out"]["head"] == held_out.head
    assert [charge["for"] for charge in statement["mechanism"]["charged"]] == ["evaluation", "training"]


def test_every_epsilon_is_of_a_person_with_all_their_records(federation: Federation) -> None:
    manifest, digest = _signed(federation)
    _charge(federation, (digest, 1, manifest.round_cost))
    _set(federation, "held_out = ", "records_per_person = 3\nheld_out = ")
    statement = _state(federation, run=True)
    whole = epsilon([manifest.run_cost], DELTA, group=3)
    assert statement["guarantee"]["records_per_person"] == 3
    assert "up to 3 records" in statement["guarantee"]["adjacency"]
    assert statement["spending"][0]["epsilon_spent"] == epsilon([manifest.round_cost], DELTA, group=3)
    assert statement["run"]["epsilon_of_the_whole_run"] == whole
    assert {observer["epsilon"] for observer in statement["observers"][1:]} == {whole}


def test_shared_noise_is_stated_for_the_declared_and_for_more_colluding_sites(federation: Federation) -> None:
    run = read_toml(RUN, RunSettings)
    assert run.training
    federation.sign(replace(
        run,
        rounds=30,
        training=replace(run.training, steps_per_round=1),
        privacy=replace(run.privacy, noise="shared"),
        encryption=replace(run.encryption, profile="precise", collusion_resistant=True),
    ))  # fmt: skip
    manifest, digest = _signed(federation)
    local, planned = _state(federation), _state(federation, run=True)
    _charge(federation, (digest, 1, manifest.round_cost))
    statement = _state(federation, run=True)
    rows = [
        (observer["epsilon"], observer["noise_multiplier"], observer["charged"])
        for observer in statement["observers"][1:]
    ]
    assert rows == [
        (observer.epsilon, observer.noise_multiplier, observer.declared) for observer in observers(manifest, DELTA)
    ]
    assert [charged for _, _, charged in rows] == [False, True, False]
    assert statement["mechanism"]["charged"][0]["discrete"]
    for sentences in (
        statement["mechanism"]["noise"],
        statement["randomness"]["noise"],
        statement["randomness"]["rounding"],
    ):
        assert [line.partition(" ")[0].rstrip(":") for line in sentences] == ["shared"]
    assert planned["mechanism"]["noise"] == statement["mechanism"]["noise"]
    assert statement["run"]["noise"] == "shared; the sum of 2 sites' shares has all of it"
    assert [sentence.partition(":")[0] for sentence in local["mechanism"]["noise"]] == ["local"]
    assert "more from runs with shared noise" in _state(federation)["observers"][-1]["epsilon"]
    assert "shared" not in local["observers"][-1]["epsilon"]


def test_a_statement_ends_with_1_if_the_accountants_disagree(
    federation: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    _charge(federation, *(("f" * 64, number, Mechanism(2.0, 0.25, 4)) for number in (1, 2, 3)))
    accounting = _state(federation)["accounting"]
    check = accounting["cross_check"][0]
    assert accounting["agree"]
    assert abs(check["epsilon_prv"] - check["epsilon_pld"]) < 0.02 < check["epsilon_rdp"] - check["epsilon_pld"]
    monkeypatch.setattr(crosscheck, "PRV", RDP)  # looser than PRV may be
    result = CliRunner().invoke(app, ["audit", "statement", str(federation.paths["north"])])
    assert result.exit_code == 1
    assert "✗ the accountants disagree" in result.output


def test_a_step_without_noise_is_stated_as_infinite_in_plain_json(federation: Federation) -> None:
    terms = SiteTerms(("simulations.tasks.diagnosis:Diagnosis",), epsilon=math.inf, maximum_epsilon=math.inf)
    federation.write_settings("north", "localhost:1", terms)
    _charge(federation, ("f" * 64, 1, Mechanism(0.0, 1.0, 1)))
    result = CliRunner().invoke(app, ["audit", "statement", str(federation.paths["north"]), "--json"])
    assert result.exit_code == 0, result.output
    assert "Infinity" not in result.stdout
    assert "NaN" not in result.stdout
    assert json.loads(result.stdout)["spending"][0]["epsilon_spent"] == "infinite"


def test_a_statement_contains_the_last_audit_and_does_not_call_a_refuted_one_passed(federation: Federation) -> None:
    path = federation.paths["north"] / AUDIT
    path.write_text(json.dumps(AUDITED))
    audit = _state(federation)["audit"]
    assert (audit["result"], audit["epsilon_lower_bound_implementation_test"], audit["date"]) == (
        "passed", 6.5, AUDITED["date"],
    )  # fmt: skip
    path.write_text(json.dumps(AUDITED | {"passed": False, "checks": [{"name": "noise", "held": False}]}))
    assert _state(federation)["audit"]["result"] == "REFUTED: noise"
    for text in ("{}", "no JSON"):
        path.write_text(text)
        with pytest.raises(ConfigError, match="run `cloister audit privacy"):
            _state(federation)


def test_an_altered_ledger_or_a_run_that_nobody_signed_gets_no_statement(federation: Federation) -> None:
    ledger = _charge(federation, ("f" * 64, 1, OTHER))
    data = ledger.path.read_bytes()
    ledger.path.write_bytes(data.replace(b'"noise_multiplier": 2.0', b'"noise_multiplier": 9.0'))
    with pytest.raises(LedgerError):
        _state(federation)
    ledger.path.write_bytes(data)
    signed = federation.manifest.read_bytes()
    federation.manifest.write_bytes(signed.replace(b"diagnosis", b"diagnosiz"))
    with pytest.raises(KeyFileError, match="was altered"):
        _state(federation, run=True)
    federation.manifest.unlink()
    with pytest.raises(CloisterError, match="as `cloister sign` wrote it"):
        _state(federation, run=True)
