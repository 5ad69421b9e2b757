"""`cloister run show` and `cloister approve`: people at a site see what a run would do, and decide."""

from __future__ import annotations

import json
from dataclasses import replace
from io import StringIO
from typing import TYPE_CHECKING

import pytest

from client.flower import open_site
from privacy.errors import PolicyError
from privacy.ledger.entries import Release
from tests.federations import NOISY, TERMS, FederationMaker, charges_of, opened_run, signed_run

if TYPE_CHECKING:
    from tests.cloister.in_process import Run

CAREFUL = replace(TERMS, epsilon=50.0, maximum_epsilon=50.0, further_policy="approval = true\n")


def test_a_run_is_shown_in_words_and_costs_nothing(make_federation: FederationMaker, cloister: Run) -> None:
    federation = make_federation(NOISY, {"north": CAREFUL})
    run, site = federation.manifest, federation.paths["north"]
    shown = cloister("run", "show", run, site)
    assert shown.returncode == 0, shown.stderr
    for words in (
        "signed by   founder, coordinator of demo",
        f"{NOISY.task}, listed in this site's policy",
        "trains a model on this site's training records; 1 round of at most 60 s",
        "without masks: a site that colludes with the server can open it; summed over at least 3 sites",
        "the model after each round goes to east, north, south, west; the server cannot decrypt it",
        "this site's ledger: ε 0.00 now",
        "it waits for: cloister approve",
    ):
        assert words in shown.stdout
    report = json.loads(cloister("run", "show", run, site, "--json").stdout.splitlines()[-1])
    assert report["run"] == signed_run(federation)[2]
    assert report["allowed"]
    assert report["cost"]["spent_after"] > 0
    assert report["approval"] == {"needed": True, "decision": None, "time": None}
    assert charges_of(federation, "north") == 0


def test_a_run_that_is_charged_already_is_not_shown_as_one_that_costs_its_price_again(
    make_federation: FederationMaker, cloister: Run
) -> None:
    federation = make_federation(NOISY, {"north": CAREFUL})
    site, (_, manifest, digest) = open_site(federation.paths["north"]), signed_run(federation)
    ledger, budget = site.place.account(manifest.settings.kind)
    ledger.reserve(Release(digest, 1, 1), manifest.round_cost, budget)
    shown = cloister("run", "show", federation.manifest, federation.paths["north"])
    assert shown.returncode == 0, shown.stderr
    assert "1 of its 1 rounds are charged already" in shown.stdout
    report = json.loads(cloister("run", "show", federation.manifest, federation.paths["north"], "--json").stdout)
    assert report["cost"]["spent"] == report["cost"]["spent_after"] > 0


def test_the_rule_that_refuses_a_run_is_named_and_the_run_cannot_be_approved(
    make_federation: FederationMaker, cloister: Run
) -> None:
    federation = make_federation(NOISY, {"north": replace(CAREFUL, minimum_cohort=4)})
    shown = cloister("run", "show", federation.manifest, federation.paths["north"])
    assert shown.returncode == 1
    assert "✗ north does not allow a minimum cohort of 3" in shown.stdout
    assert "(policy: minimum_cohort)" in shown.stdout
    refused = cloister("approve", federation.manifest, federation.paths["north"], "--yes")
    assert refused.returncode == 1
    assert "north cannot approve this run" in refused.stderr
    assert not (federation.paths["north"] / "approvals").exists()


def test_what_waits_is_listed_approved_by_its_first_digits_and_withdrawn(
    make_federation: FederationMaker, cloister: Run
) -> None:
    federation = make_federation(NOISY, {"north": CAREFUL})
    site, signed = federation.paths["north"], opened_run(federation)
    assert "no run waits" in cloister("approve", site).stdout
    approvals = open_site(site).approvals
    with pytest.raises(PolicyError, match="has not approved the run study") as caught:
        approvals.check("north", signed)
    assert caught.value.rule == "approval"
    short = signed.digest[:8]
    assert f"{short}  study" in cloister("approve", site).stdout
    approved = cloister("approve", short, site, "--yes")
    assert approved.returncode == 0, approved.stderr
    assert "✓ study: approved" in approved.stdout
    approvals.check("north", signed)
    withdrawn = cloister("approve", short, site, "--withdraw", "--yes", "--json")
    assert json.loads(withdrawn.stdout.splitlines()[-1])["approved"] is False
    assert "withdrawn" in cloister("approve", site).stdout
    unknown = cloister("approve", "01234567", site, "--yes")
    assert unknown.returncode == 1
    assert "no such file, and no such run waits here" in unknown.stderr


@pytest.mark.parametrize(("typed", "approved"), [("y\n", True), ("n\n", False), ("", False)])
def test_a_person_is_asked_and_only_a_yes_approves(
    make_federation: FederationMaker, cloister: Run, monkeypatch: pytest.MonkeyPatch, typed: str, *, approved: bool
) -> None:
    federation = make_federation(NOISY, {"north": CAREFUL})
    monkeypatch.setattr("sys.stdin", StringIO(typed))
    asked = cloister("approve", federation.manifest, federation.paths["north"])
    assert "Approve this run?" in asked.stdout
    assert "signed by   founder, coordinator of demo" in asked.stdout
    assert (asked.returncode == 0) == approved
    assert (open_site(federation.paths["north"]).approvals.decision(signed_run(federation)[2]) is not None) == approved
