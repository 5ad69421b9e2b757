"""Signing or planning a run states what its votes cost and how often they err; a benchmark shows their use."""

from dataclasses import replace

import pytest

from cloister import accounts
from cloister.benchmarks import poisoning
from cloister.views.observers import cost_of_votes, table
from privacy.run.manifest import Manifest, open_manifest
from privacy.run.new_manifest import sign_manifest
from privacy.run.tables import Vote
from tests.federations import NOISY, SITES, TERMS, FederationMaker
from tests.privacy.consortium import run_settings, signing_key


def signed(vote: Vote | None) -> Manifest:
    key = signing_key("coordinator")
    document = sign_manifest(replace(run_settings(), vote=vote), key, roster_version=3)
    return open_manifest(document.to_bytes(), key.public_key())[0]


def test_a_run_without_votes_does_not_mention_them() -> None:
    assert cost_of_votes(signed(None)) == {}
    assert table({}) == []


@pytest.mark.parametrize(("spent", "warned"), [(0.5, True), (2.0, False)])
def test_a_run_with_votes_states_their_cost_and_error_rates(spent: float, *, warned: bool) -> None:
    manifest = signed(Vote(epsilon=spent, tolerance=0.1))
    lines = table(cost_of_votes(manifest))
    assert f"ε {spent:g}, all of them {manifest.settings.rounds * spent:.2f}" in lines[0]
    assert "of spoiled rounds are kept" in lines[1]
    assert any("may be blamed" in line for line in lines) == warned


def test_a_plan_holds_votes_against_the_policy_and_the_budget_of_those_held_out(
    make_federation: FederationMaker,
) -> None:
    run = replace(NOISY, rounds=3, vote=Vote(epsilon=2.0, tolerance=0.1))
    terms = replace(TERMS, epsilon=5.0)
    federation = make_federation(run, {**dict.fromkeys(SITES, terms), "north": replace(terms, vote_epsilon=2.0)})
    allowed, refused = (accounts.plan(federation.paths[site], federation.manifest) for site in ("north", "south"))
    assert allowed["votes"] == refused["votes"] == 6.0
    assert [refusal for refusal in allowed["refusals"] if "held-out" in refusal]
    assert any("vote_epsilon = 0" in refusal for refusal in refused["refusals"])


def test_the_measured_runs_are_a_table() -> None:
    rows = [
        {"sites": 4, "vote_epsilon": None, "accuracy": 0.1, "undone": [], "found": {}},
        {"sites": 4, "vote_epsilon": 2.0, "accuracy": 0.95, "undone": [5, 6], "found": {"site-1": 6}},
    ]
    message = poisoning.table({"rows": rows, "rounds": 24, "liar": "site-1", "since": 5}).splitlines()
    assert message[1].split() == ["4", "none", "0.100", "0", "–"]
    assert message[2].split() == ["4", "ε", "2", "0.950", "2", "site-1", "in", "round", "6"]
