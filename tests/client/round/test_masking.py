"""Masks at real sites: what each reveals, for which attempt; what a server gets that tells of a false dropout."""

from contextlib import suppress
from dataclasses import replace

import pytest
from flwr.app import Context, Message, MessageType

from client.flower import open_site
from client.round.admission import admit
from client.round.train_round import train_round
from privacy.codec.envelope import SignedUpdate
from privacy.errors import AuthenticityError, CloisterError, ProtocolError
from simulations.engine.federation import Federation
from tests.client.round.masked_rounds import (
    COHORT,
    MASKED,
    ask,
    breaking,
    headers,
    open_at,
    plan_of,
    sign,
    signatures,
    signed_by,
    sites_of,
    summed,
    updates_of,
)
from tests.federations import (
    SETTINGS,
    FederationMaker,
    charges_of,
    models_of,
    restart,
    run_with,
    signed_run,
)
from transport.messages import AGREE, REVEAL


@pytest.fixture
def federation(make_federation: FederationMaker) -> Federation:
    return make_federation(MASKED)


# --- Whole runs -----------------------------------------------------------------------------------------------------


def test_a_masked_run_ends_with_the_same_model_as_one_without(make_federation: FederationMaker) -> None:
    plain = make_federation(replace(SETTINGS, rounds=2), name="plain")
    masked = make_federation(
        replace(SETTINGS, rounds=2, encryption=replace(SETTINGS.encryption, collusion_resistant=True)), name="masked"
    )
    assert [event["released"] for event in run_with(plain) + run_with(masked)] == [True] * 4
    values = {file[-12:] for federation in (plain, masked) for file in models_of(federation).values()}
    assert len(values) == 1


def test_a_dropout_before_the_sum_is_complete_costs_no_charge(federation: Federation) -> None:
    sent = dict[str, int]()
    inner = breaking(federation, "west", MessageType.TRAIN)

    def answer(message: Message, context: Context) -> Message:
        response = inner(message, context)
        if message.metadata.message_type == MessageType.TRAIN and response.has_content():
            site = str(message.metadata.dst_node_id)
            sent[site] = sent.get(site, 0) + 1
        return response

    first, second = run_with(federation, answer)
    for event in (first, second):
        assert (event["released"], event["attempts"], event["sites"]) == (True, 1, ["east", "north", "south"])
    assert [charges_of(federation, site) for site in COHORT] == [2, 2, 2, 0]
    assert sorted(sent.values()) == [2, 2, 2]  # each update once


def test_a_dropout_before_agreement_costs_an_attempt_but_no_charge(federation: Federation) -> None:
    first, second = run_with(federation, breaking(federation, "west", AGREE.name))
    for event, attempts in ((first, 2), (second, 1)):  # it is left out of the next: it would cost an attempt each time
        assert (event["released"], event["attempts"], event["sites"]) == (True, attempts, ["east", "north", "south"])
    assert [charges_of(federation, site) for site in COHORT] == [2, 2, 2, 1]


def test_a_site_that_withholds_its_seed_ends_the_round_and_is_left_out_of_the_next(federation: Federation) -> None:
    first, second = run_with(federation, breaking(federation, "west", REVEAL.name))
    assert (first["released"], first["problems"]) == (False, {"west": "“the line broke”"})
    assert "without the mask of west" in first["reason"]
    assert (second["released"], second["sites"]) == (True, ["east", "north", "south"])


def test_a_sum_without_a_dropout_is_that_of_the_others_updates(make_federation: FederationMaker) -> None:
    """The masks that the others share with it come off: the model is that of an unmasked run over the same sites."""
    models = set()
    for masks in (True, False):
        settings = replace(SETTINGS, encryption=replace(SETTINGS.encryption, collusion_resistant=masks))
        masked = make_federation(settings, name=f"masks-{masks}")
        (event,) = run_with(masked, breaking(masked, "west", MessageType.TRAIN))
        assert (event["released"], event["sites"]) == (True, ["east", "north", "south"])
        models |= {digest for site, digest in models_of(masked).items() if site != "west"}
    assert len({model[-12:] for model in models}) == 1


# --- A false dropout ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", range(len(COHORT) + 1))
def test_a_server_that_claims_a_false_dropout_cannot_open_two_sums_of_a_round(
    federation: Federation, split: int
) -> None:
    """It has the updates of two attempts at a round, and may ask each site for the seed of either, in any order."""
    whole, fewer = plan_of(federation), plan_of(federation, 2, COHORT[:3])
    first = updates_of(federation, whole)
    agreed = {1: signed_by(federation, whole, first)}
    early = {site: ask(federation, site, whole, first, signatures(agreed[1])) for site in COHORT[:split]}
    seeds = {1: early, 2: dict[str, bytes]()}
    second, document, sites = dict[str, SignedUpdate](), signed_run(federation)[0], sites_of(federation)
    for site in fewer.cohort:  # "west was gone": the same updates under other masks, of those that revealed none yet
        with suppress(ProtocolError):
            second[site] = train_round(admit(sites[site], document).round(fewer), [])
    assert set(second) == set(COHORT[split:3])
    agreed[2] = signed_by(federation, fewer, second) if len(second) == 3 else {}
    for site in COHORT:
        for plan, updates in ((whole, first), (fewer, second)):
            with suppress(ProtocolError):
                seeds[plan.attempt][site] = ask(federation, site, plan, updates, signatures(agreed[plan.attempt]))
        assert sum(site in owners for owners in seeds.values()) <= 1, "a site revealed for two attempts"
    opened = 0
    for site, plan, updates in (("north", whole, first), ("south", fewer, second)):
        pairs = {name: sealed for name, (_, sealed) in agreed[plan.attempt].items()}
        with suppress(CloisterError):
            open_at(federation, site, summed(federation, plan, updates, seeds[plan.attempt], pairs))
            opened += 1
    # When some have revealed for the one attempt and some for the other, neither sum opens.
    assert opened == (0 if split in {1, 2} else 1)


def test_after_an_attempt_under_other_masks_the_first_is_not_revealed(federation: Federation) -> None:
    whole = plan_of(federation)
    first = updates_of(federation, whole)
    agreed = signatures(signed_by(federation, whole, first))
    updates_of(federation, plan_of(federation, 2, COHORT[:3]))
    with pytest.raises(ProtocolError, match="has sent no masked update for this plan"):
        ask(federation, "north", whole, first, agreed)


def test_a_reveal_is_on_disk_before_it_leaves_and_binds_a_restarted_site(federation: Federation) -> None:
    whole, fewer = plan_of(federation), plan_of(federation, 2, COHORT[:3])
    sealed = ask(federation, "north", whole, updates_of(federation, whole))
    assert sealed == ask(federation, "north", whole, updates_of(federation, whole))  # a retry
    north, document = restart(federation, "north"), signed_run(federation)[0]
    with pytest.raises(ProtocolError, match="the seed for round 1 was already revealed"):
        train_round(admit(north, document).round(fewer), [])
    assert charges_of(federation, "north") == 1


def test_one_set_of_contributors_is_signed_for_a_plan_also_after_a_restart(federation: Federation) -> None:
    plan = plan_of(federation)
    updates = updates_of(federation, plan)
    fewer = {site: updates[site] for site in COHORT[:3]}
    assert sign(federation, "north", plan, headers(fewer)) == sign(federation, "north", plan, headers(fewer))
    restart(federation, "north")
    with pytest.raises(ProtocolError, match=r"agreeing on the contributors to plan .* was already recorded"):
        sign(federation, "north", plan, headers(updates))
    with pytest.raises(ProtocolError, match="does not include the update that west sent"):
        sign(federation, "west", plan, headers(fewer))


@pytest.mark.parametrize("wrong", ["missing", "another's", "of another set", "made up"])
def test_nothing_is_revealed_before_all_have_signed_this_very_set(federation: Federation, wrong: str) -> None:
    plan = plan_of(federation)
    updates = updates_of(federation, plan)
    fewer = {site: updates[site] for site in COHORT[:3]}
    early = sign(federation, "east", plan, headers(fewer))[0]  # the one that was shown another set
    agreed = {site: sign(federation, site, plan, headers(updates))[0] for site in COHORT if site != "east"}
    lie = {"missing": b"", "another's": agreed["north"], "of another set": early, "made up": bytes(64)}[wrong]
    with pytest.raises(AuthenticityError):
        ask(federation, "north", plan, updates, agreed | {"east": lie})
    assert not any("revealing" in path.read_text() for path in federation.paths["north"].glob("outbox/*.commitments"))


def test_a_truncated_note_is_of_a_reveal_that_never_left(federation: Federation) -> None:
    plan = plan_of(federation)
    updates = updates_of(federation, plan)
    agreed = signatures(signed_by(federation, plan, updates))
    notes = federation.paths["north"] / "outbox" / f"{plan.run[:16]}.commitments"
    notes.write_bytes(notes.read_bytes() + b"revealing for round 1: 0123")
    assert ask(federation, "north", plan, updates, agreed)
    assert notes.read_text().splitlines()[-1].startswith(f"revealing for round 1: {plan.digest} ")


@pytest.mark.parametrize("lost", [b"", None], ids=["damaged", "gone"])
def test_a_site_that_lost_its_update_makes_no_other_for_the_same_plan(
    federation: Federation, lost: bytes | None
) -> None:
    """Two updates under one plan have the same masks between sites: whoever had both seeds could subtract them."""
    plan = plan_of(federation)
    assert ask(federation, "north", plan, updates_of(federation, plan))
    (update,) = (federation.paths["north"] / "outbox").glob("*.update")
    if lost is None:
        update.unlink()
    else:
        update.write_bytes(lost)
    with pytest.raises(CloisterError, match=r"does not make another for the same plan|is damaged"):
        train_round(admit(open_site(federation.paths["north"]), signed_run(federation)[0]).round(plan), [])
    assert charges_of(federation, "north") == 1


def test_a_second_seed_is_not_revealed_for_the_same_plan(federation: Federation) -> None:
    """As if two agents of one site had made an update each."""
    plan = plan_of(federation)
    updates = updates_of(federation, plan)
    agreed = signatures(signed_by(federation, plan, updates))
    assert ask(federation, "north", plan, updates, agreed)
    site = open_site(federation.paths["north"])
    entry = site.outbox.last(plan.run)
    assert entry is not None
    site.outbox.keep(plan, entry.update, b"another seed of thirty-two bytes")
    with pytest.raises(ProtocolError, match="already recorded"):
        ask(federation, "north", plan, updates, agreed)
