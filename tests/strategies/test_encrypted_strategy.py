"""Nodes that fail, sites that say no, and members that speak for others are named, and the others go on.

Every node here is the real client app on the inline grid.
"""

from dataclasses import replace

import pytest
from flwr.app import Context, Message

from client.flower import app as client_app
from client.flower import open_site
from client.round.admission import admit
from client.round.readiness import get_ready
from privacy.accounting.accounting import Mechanism, epsilon
from privacy.crypto.signing import sign
from privacy.errors import RunError
from privacy.ledger.ledger import Release
from privacy.run.settings import RunSettings
from simulations.engine.federation import Federation, SiteTerms
from simulations.engine.results import read_events, read_results
from tests import studies
from tests.federations import (
    NOISY,
    SETTINGS,
    SITES,
    TERMS,
    FederationMaker,
    charges_of,
    models_of,
    node_of,
    run_with,
    signed_run,
    task_name,
    with_deadline,
)
from tests.strategies.hostile import EVALUATE, HONEST, HOSTILE, NOWHERE, QUERY, TRAIN, answering
from transport.flower import reply
from transport.run_messages import (
    pack_readiness,
    read_readiness,
)

BRIEF = 0.2  # seconds; the deadline of a round that will not find enough sites
COST = epsilon([Mechanism(2.0, 1.0, 1)], TERMS.delta)  # of a round of NOISY


@pytest.fixture
def federation(make_federation: FederationMaker) -> Federation:
    return make_federation()


# --- Nodes that fail ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [QUERY, TRAIN, EVALUATE])
def test_a_node_that_raises_is_named_and_the_others_go_on(federation: Federation, kind: str) -> None:
    def fail(message: Message, genuine: Message) -> Message:
        raise RuntimeError(message, genuine)

    (event,) = run_with(federation, answering(federation, kind, HOSTILE, fail))
    assert "unexpected error" in event["problems"][HOSTILE]
    assert event["released"]
    expected = sorted(SITES) if kind == EVALUATE else HONEST
    assert sorted(event["sites"]) == expected
    honest = {models_of(federation)[site] for site in HONEST}
    assert len(honest) == 1


def test_a_task_that_triggers_a_bug_is_named_and_the_others_go_on(
    make_federation: FederationMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(studies.Broken, "bugs", 1)
    federation = make_federation(replace(SETTINGS, task=task_name(studies.Broken)))
    (event,) = run_with(federation)
    ((site, problem),) = event["problems"].items()
    assert "unexpected error" in problem
    assert len(event["sites"]) == 3
    assert site not in event["sites"]
    assert studies.QUOTE not in str(read_events(federation))


# --- Sites that say no ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "terms", "reason"),
    [
        (SETTINGS, replace(TERMS, minimum_noise_multiplier=0.5), "does not allow a noise multiplier of 0"),
        (NOISY, replace(TERMS, maximum_epsilon=COST / 2), f"does not allow a run of ε {COST:.2f}"),
        (SETTINGS, replace(TERMS, maximum_epsilon=100.0), "does not allow a run of ε inf"),
        (SETTINGS, replace(TERMS, minimum_cohort=4), "does not allow a minimum cohort of 3"),
        (SETTINGS, replace(TERMS, tasks=(task_name(studies.Unlisted),)), "does not allow the task tests.studies:Tiny"),
        (NOISY, replace(TERMS, epsilon=COST / 2), "privacy budget does not cover"),
    ],
    ids=["noise too low", "epsilon too high", "no noise at all", "cohort too small", "unlisted task", "out of budget"],
)
def test_a_site_that_does_not_allow_the_run_is_named_with_its_reason_and_the_others_go_on(
    make_federation: FederationMaker, settings: RunSettings, terms: SiteTerms, reason: str
) -> None:
    federation = make_federation(settings, {HOSTILE: terms})
    (event,) = run_with(federation)
    assert reason in event["problems"].pop(HOSTILE)
    assert event["problems"] == {}
    assert event["cohort"] == event["sites"] == HONEST
    assert charges_of(federation, HOSTILE) == 0
    assert set(models_of(federation)) == set(HONEST)
    assert set(read_results(federation).digests) == set(HONEST)


def test_if_too_few_sites_allow_the_run_it_ends_with_the_reason(make_federation: FederationMaker) -> None:
    careful = replace(TERMS, minimum_noise_multiplier=0.5)
    refusing = {"east": careful, "west": careful}
    settings = with_deadline(replace(SETTINGS, rounds=9), BRIEF)
    federation = make_federation(settings, refusing)
    with pytest.raises(RunError, match=r"east: “east does not allow a noise multiplier.*west: “west does not allow"):
        run_with(federation)
    assert models_of(federation) == {}
    assert {charges_of(federation, site) for site in SITES} == {0}


def test_a_site_whose_budget_runs_out_during_the_run_leaves_and_the_others_go_on(
    make_federation: FederationMaker,
) -> None:
    # Enough for this run by itself; after the first round, another run spends what is left.
    both = epsilon([Mechanism(2.0, 1.0, 3)], TERMS.delta)
    federation = make_federation(replace(NOISY, rounds=3), {HOSTILE: replace(TERMS, epsilon=both)})

    def spend(message: Message, genuine: Message) -> Message:
        site = open_site(federation.paths[HOSTILE])
        if charges_of(federation, HOSTILE) == 1:
            budget = site.settings.limit
            for number in (1, 2):
                site.ledger.reserve(Release(NOWHERE, number, 1), Mechanism(2.0, 1.0, 1), budget)
        return reply(genuine.content, message)

    first, second, third = run_with(federation, answering(federation, EVALUATE, HOSTILE, spend))
    assert sorted(first["sites"]) == sorted(SITES)
    for event in (second, third):
        assert "privacy budget does not cover" in event["problems"][HOSTILE]
        assert sorted(event["sites"]) == HONEST
    assert charges_of(federation, HOSTILE) == 3
    assert len(set(models_of(federation).values())) == 1  # it gave to one round and has every sum that followed


# --- Who speaks for a site ------------------------------------------------------------------------------------------


def test_a_copied_readiness_is_not_accepted_from_another_node(federation: Federation) -> None:
    document, _, _ = signed_run(federation)
    word = get_ready(admit(open_site(federation.paths["north"]), document), node_of(federation, "north"))

    def answer(message: Message, context: Context) -> Message:
        return reply(pack_readiness(word), message) if context.node_id == 12345 else client_app(message, context)

    (event,) = run_with(federation, answer, {12345: "north"})
    assert "signature of this readiness is not valid" in event["problems"]["node 12345"]
    assert sorted(event["sites"]) == sorted(SITES)


def test_a_member_cannot_answer_for_another_member(federation: Federation) -> None:
    def claim(message: Message, genuine: Message) -> Message:
        readiness = read_readiness(genuine.content)
        run, node = signed_run(federation)[2], message.metadata.dst_node_id
        key, forged = open_site(federation.paths[HOSTILE]).signing_key, replace(readiness, site="north")
        forged = replace(forged, signature=sign(key, "readiness", forged.signed_part(run, node)))
        return reply(pack_readiness(forged), message)

    (event,) = run_with(federation, answering(federation, QUERY, HOSTILE, claim))
    assert "signature of this readiness is not valid" in event["problems"][HOSTILE]
    assert sorted(event["sites"]) == HONEST


def test_two_nodes_of_one_site_count_once(federation: Federation) -> None:
    (event,) = run_with(federation, nodes={12345: HOSTILE})
    assert sorted(event["sites"]) == sorted(event["cohort"]) == sorted(SITES)
    assert charges_of(federation, HOSTILE) == 1
    assert len(set(models_of(federation).values())) == 1


def test_a_node_of_no_site_is_named(federation: Federation) -> None:
    def claim(message: Message, genuine: Message) -> Message:
        return reply(pack_readiness(replace(read_readiness(genuine.content), site="nobody")), message)

    (event,) = run_with(federation, answering(federation, QUERY, HOSTILE, claim))
    assert "'nobody' is not a member" in event["problems"][HOSTILE]
    assert sorted(event["sites"]) == HONEST
