"""A vote costs its ε and no more, whatever it is about; it is counted as documented, and taken by consent alone."""

from dataclasses import replace
from itertools import product
from math import exp, inf, nan
from pathlib import Path

import pytest

from privacy.accounting.accounting import PLD, RDP, Accountant, Mechanism, Relation, epsilon
from privacy.errors import BudgetError, MalformedError, RefusedError
from privacy.ledger.ledger import Budget, Ledger, Release
from privacy.noise.randomness import Randomness
from privacy.run.manifest import open_manifest
from privacy.run.new_manifest import sign_manifest
from privacy.run.policy import Policy, check_policy
from privacy.run.tables import Vote as VoteSettings
from privacy.run.votes import Errors, Vote, errors, estimate, is_rejected, respond, turned
from tests.privacy.consortium import run_settings, signing_key

DELTA = 1e-5
RELEASE = Release("ab" * 32, 1, 1, "vote")
POLICY = Policy(
    tasks=(run_settings().task,), maximum_epsilon=30.0, minimum_noise_multiplier=0.0, collusion_resistant=False
)


def ballots(rejected: int, kept: int) -> list[Vote]:
    return [Vote(reject=True, signature=bytes(64))] * rejected + [Vote(reject=False, signature=bytes(64))] * kept


@pytest.mark.parametrize("spent", [0.1, 1.0, 2.0, 8.0])
def test_the_probabilities_of_the_answers_differ_by_the_charged_factor(spent: float) -> None:
    chance = turned(spent)
    assert (1 - chance) / chance == pytest.approx(exp(spent))
    rng, count = Randomness.seeded(1, "votes"), 4000
    answers = [sum(respond(answer, spent, rng) for _ in range(count)) for answer in (True, False)]
    deviation = (count * chance * (1 - chance)) ** 0.5
    assert abs(answers[0] - count * (1 - chance)) < 5 * deviation + 1
    assert abs(answers[1] - count * chance) < 5 * deviation + 1


@pytest.mark.parametrize("accountant", [PLD, RDP])
@pytest.mark.parametrize("relation", list(Relation))
def test_votes_add_to_other_charges_and_cost_no_more_for_persons_with_many_records(
    accountant: Accountant, relation: Relation
) -> None:
    votes, noisy = [Mechanism.response(0.5, 3), Mechanism.response(0.25)], [Mechanism(2.0, 1.0, 4)]

    def cost(mechanisms: list[Mechanism], group: int) -> float:
        return epsilon(mechanisms, DELTA, accountant=accountant, relation=relation, group=group)

    assert cost(votes, 1) == cost(votes, 5) == 1.75
    assert cost([*votes, *noisy], 2) == 1.75 + cost(noisy, 2)


@pytest.mark.parametrize("pure", [-1.0, nan])
def test_a_vote_with_an_invalid_epsilon_exceeds_every_budget(pure: float) -> None:
    assert not epsilon([Mechanism.response(pure)], DELTA) < inf


def test_the_ledger_charges_a_vote_once_until_it_left_and_refuses_what_the_budget_does_not_cover(
    tmp_path: Path,
) -> None:
    ledger = Ledger(tmp_path / "ledger", "north", "patients.held-out", signing_key("north"))
    cost, budget = Mechanism.response(0.5), Budget(1.2, DELTA)
    assert ledger.reserve(RELEASE, cost, budget) == ledger.reserve(RELEASE, cost, budget)
    ledger.leaves(RELEASE, "12" * 32)
    ledger.reserve(replace(RELEASE, round=2), cost, budget)
    assert ledger.spent(DELTA) == 1.0
    with pytest.raises(BudgetError, match=r"1\.50"):
        ledger.reserve(replace(RELEASE, round=3), cost, budget)
    again = Ledger(tmp_path / "ledger", "north", "patients.held-out", signing_key("north"))
    assert again.mechanisms() == [cost, cost]


@pytest.mark.parametrize(("rejected", "kept", "undone"), [
    (0, 4, False), (1, 3, False), (2, 2, True), (4, 0, True), (2, 3, False), (3, 2, True), (2, 0, False), (1, 1, False)
])  # fmt: skip
def test_half_of_the_votes_undo_a_round_if_the_minimum_voted(rejected: int, kept: int, *, undone: bool) -> None:
    votes = ballots(rejected, kept)
    assert is_rejected(votes, 3) == undone
    if len(votes) >= 3:
        assert (estimate(votes, 1.0) >= len(votes) / 2) == undone


def test_the_estimate_is_without_bias() -> None:
    worse, better, spent = 3, 2, 0.7
    chance, mean = turned(spent), 0.0
    for flips in product((False, True), repeat=worse + better):
        answers = [(place < worse) ^ flip for place, flip in enumerate(flips)]
        likely = 1.0
        for flip in flips:
            likely *= chance if flip else 1 - chance
        mean += likely * estimate(ballots(sum(answers), len(answers) - sum(answers)), spent)
    assert mean == pytest.approx(worse)


@pytest.mark.parametrize(("voters", "liars"), [(3, 1), (4, 1), (5, 2), (6, 1)])
def test_error_rates_count_all_random_answers(voters: int, liars: int) -> None:
    spent = 1.5
    chance, missed, undone = turned(spent), 0.0, 0.0
    for flips in product((False, True), repeat=voters):
        likely = 1.0
        for flip in flips:
            likely *= chance if flip else 1 - chance
        rejected = sum(not flip for flip in flips[liars:])  # whoever lies votes for what it spoiled
        missed += likely * (2 * rejected < voters)
        undone += likely * (2 * sum(flips) >= voters)
    assert errors(voters, liars, spent) == pytest.approx(Errors(missed, undone))


@pytest.mark.parametrize("data", [b"", bytes(64), bytes(66), b"\2" + bytes(64)])
def test_anything_but_a_vote_is_refused(data: bytes) -> None:
    with pytest.raises(MalformedError):
        Vote.from_bytes(data)


def test_a_site_takes_part_in_a_vote_by_consent_alone() -> None:
    key = signing_key("coordinator")
    settings = replace(run_settings(), vote=VoteSettings(epsilon=0.5, tolerance=0.1))
    manifest, _ = open_manifest(sign_manifest(settings, key, roster_version=3).to_bytes(), key.public_key())
    with pytest.raises(RefusedError, match=r"votes of ε 0\.5: its policy says vote_epsilon = 0;"):
        check_policy(POLICY, manifest, 1.0, "north")
    check_policy(replace(POLICY, vote_epsilon=0.5), manifest, 1.0, "north")
    with pytest.raises(RefusedError, match="whose votes together cost"):
        check_policy(replace(POLICY, vote_epsilon=0.5, maximum_epsilon=1.0), manifest, 1.0, "north")
