"""Masks at real sites: what each reveals, for which attempt; what a server gets that tells of a false dropout."""

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

import pytest
from flwr.app import Error, Message, MessageType

from client.acceptance import accept, get_ready
from client.app import app
from client.masking import reveal
from client.opening import open_sum
from client.round import train_round
from client.site import Site, open_site
from privacy.envelope import Contribution, SignedUpdate, verify_update
from privacy.errors import AuthenticityError, CloisterError, ProtocolError, RefusedError
from privacy.plan import RoundPlan
from privacy.summation import EncryptedSum, RunningSum
from simulations.federation import Federation
from tests.federations import (
    NOISY,
    SETTINGS,
    SITES,
    TERMS,
    FederationMaker,
    charges_of,
    keys_of,
    models_of,
    node_of,
    restart,
    run_with,
    signed_run,
)
from transport.flower import reply

MASKED = replace(NOISY, rounds=2, encryption=replace(NOISY.encryption, collusion_resistant=True))
COHORT = tuple(sorted(SITES))


@pytest.fixture
def federation(make_federation: FederationMaker) -> Federation:
    return make_federation(MASKED)


def sites_of(federation: Federation) -> dict[str, Site]:
    return {site: open_site(federation.paths[site]) for site in COHORT}


def plan_of(federation: Federation, attempt: int = 1, cohort: Sequence[str] = COHORT) -> RoundPlan:
    """A plan of the first round."""
    document, manifest, run = signed_run(federation)
    return RoundPlan(
        run=run, round=1, attempt=attempt, cohort=tuple(cohort), roster_version=manifest.roster_version, epoch=1,
        keys=keys_of(federation, "north").fingerprint, minimum_cohort=3, deadline=time.time() + 60,
        base_model=get_ready(open_site(federation.paths["north"]), document, node_of(federation, "north")).model,
    )  # fmt: skip


def updates_of(federation: Federation, plan: RoundPlan) -> dict[str, SignedUpdate]:
    """What every site of the cohort sends."""
    document, sites = signed_run(federation)[0], sites_of(federation)
    return {site: train_round(sites[site], document, plan.to_bytes(), []) for site in plan.cohort}


def headers(updates: dict[str, SignedUpdate]) -> list[Contribution]:
    return [Contribution(update.header, update.signature, b"") for update in updates.values()]


def ask(federation: Federation, site: str, plan: RoundPlan, shown: Sequence[Contribution]) -> bytes:
    return reveal(open_site(federation.paths[site]), signed_run(federation)[0], plan.to_bytes(), shown)


def summed(federation: Federation, plan: RoundPlan, updates: dict[str, SignedUpdate], seeds: dict[str, bytes]
           ) -> EncryptedSum:  # fmt: skip
    """The sum as the server makes it, with what it has of the seeds."""
    _, manifest, _ = signed_run(federation)
    total, roster = RunningSum(plan), open_site(federation.paths["north"]).roster
    for site, update in updates.items():
        total.add(verify_update(update, site, plan, manifest, roster))
    closed = total.close()
    parts = zip(updates, closed.contributions, strict=True)
    return replace(closed, contributions=tuple(replace(part, reveal=seeds.get(site, b"")) for site, part in parts))


def open_at(federation: Federation, site: str, total: EncryptedSum) -> None:
    opened = open_site(federation.paths[site])
    open_sum(opened, accept(opened, signed_run(federation)[0]), total)


# --- Whole runs -----------------------------------------------------------------------------------------------------


def test_a_masked_run_ends_with_the_same_model_as_one_without(make_federation: FederationMaker) -> None:
    plain = make_federation(replace(SETTINGS, rounds=2), name="plain")
    masked = make_federation(
        replace(SETTINGS, rounds=2, encryption=replace(SETTINGS.encryption, collusion_resistant=True)), name="masked"
    )
    assert [event["released"] for event in run_with(plain) + run_with(masked)] == [True] * 4
    values = {file[-12:] for federation in (plain, masked) for file in models_of(federation).values()}
    assert len(values) == 1


def test_who_drops_out_before_the_sum_is_complete_costs_an_attempt_and_nobody_a_charge(federation: Federation) -> None:
    west = node_of(federation, "west")

    def answer(message: Message, context: object) -> Message:
        if (message.metadata.dst_node_id, message.metadata.message_type) == (west, MessageType.TRAIN):
            return reply(Error(1, "the line broke"), message)
        return app(message, context)  # type: ignore[arg-type]

    first, second = run_with(federation, answer)
    for event in (first, second):
        assert (event["released"], event["attempts"], event["sites"]) == (True, 2, ["east", "north", "south"])
    assert [charges_of(federation, site) for site in COHORT] == [2, 2, 2, 0]


def test_who_keeps_its_seed_costs_the_round_and_is_left_out_of_the_next(federation: Federation) -> None:
    west = node_of(federation, "west")

    def answer(message: Message, context: object) -> Message:
        if (message.metadata.dst_node_id, message.metadata.message_type) == (west, "query.reveal"):
            return reply(Error(1, "not today"), message)
        return app(message, context)  # type: ignore[arg-type]

    first, second = run_with(federation, answer)
    assert (first["released"], first["problems"]) == (False, {"west": "“not today”"})
    assert "without the mask of west" in first["reason"]
    assert (second["released"], second["sites"]) == (True, ["east", "north", "south"])


# --- A false dropout ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", range(len(COHORT) + 1))
def test_a_server_that_claims_a_false_dropout_cannot_open_two_sums_of_a_round(
    federation: Federation, split: int
) -> None:
    """It has the updates of two attempts at a round, and may ask each site for the seed of either, in any order."""
    whole, fewer = plan_of(federation), plan_of(federation, 2, COHORT[:3])
    first = updates_of(federation, whole)
    seeds = {1: {site: ask(federation, site, whole, headers(first)) for site in COHORT[:split]}, 2: {}}
    second = updates_of(federation, fewer)  # "west was gone": the same updates under other masks
    for site in COHORT:
        for plan, updates in ((whole, first), (fewer, second)):
            with suppress(ProtocolError):
                seeds[plan.attempt][site] = ask(federation, site, plan, headers(updates))
        assert sum(site in each for each in seeds.values()) <= 1, "a site revealed for two attempts"
    opened = 0
    for site, plan, updates in (("north", whole, first), ("south", fewer, second)):
        total = summed(federation, plan, updates, seeds[plan.attempt])
        with suppress(CloisterError):
            open_at(federation, site, total)
            opened += 1
    # When some have revealed for the one attempt and some for the other, neither sum opens.
    assert opened == (0 if split in {1, 2} else 1)


def test_after_an_attempt_under_other_masks_the_first_is_not_revealed(federation: Federation) -> None:
    whole = plan_of(federation)
    first = updates_of(federation, whole)
    updates_of(federation, plan_of(federation, 2, COHORT[:3]))
    with pytest.raises(ProtocolError, match="has sent no masked update for this plan"):
        ask(federation, "north", whole, headers(first))


def test_what_was_revealed_is_on_disk_before_it_leaves_and_binds_a_restarted_site(federation: Federation) -> None:
    whole, fewer = plan_of(federation), plan_of(federation, 2, COHORT[:3])
    sealed = ask(federation, "north", whole, headers(updates_of(federation, whole)))
    assert sealed == ask(federation, "north", whole, headers(updates_of(federation, whole)))  # a retry
    restart(federation, "north")
    second = updates_of(federation, fewer)
    with pytest.raises(ProtocolError, match="revealing for round 1 was done already"):
        ask(federation, "north", fewer, headers(second))


def test_a_note_that_was_cut_off_is_of_nothing_that_left(federation: Federation) -> None:
    plan = plan_of(federation)
    shown = headers(updates_of(federation, plan))
    notes = federation.paths["north"] / "outbox" / f"{plan.run[:16]}.once"
    notes.write_bytes(b"revealing for round 1: 0123")
    assert ask(federation, "north", plan, shown)
    assert notes.read_bytes().startswith(f"revealing for round 1: {plan.digest} ".encode())


@pytest.mark.parametrize("lost", [b"", None], ids=["damaged", "gone"])
def test_a_site_that_lost_its_update_makes_no_other_for_the_same_plan(
    federation: Federation, lost: bytes | None
) -> None:
    """Two updates under one plan have the same masks between sites: whoever had both seeds could subtract them."""
    plan = plan_of(federation)
    assert ask(federation, "north", plan, headers(updates_of(federation, plan)))
    (update,) = (federation.paths["north"] / "outbox").glob("*.update")
    if lost is None:
        update.unlink()
    else:
        update.write_bytes(lost)
    with pytest.raises(CloisterError, match=r"makes no other for the same plan|is damaged"):
        train_round(open_site(federation.paths["north"]), signed_run(federation)[0], plan.to_bytes(), [])
    assert charges_of(federation, "north") == 1


def test_a_second_seed_is_not_revealed_for_the_same_plan(federation: Federation) -> None:
    """As if two agents of one site had made an update each."""
    plan = plan_of(federation)
    updates = updates_of(federation, plan)
    assert ask(federation, "north", plan, headers(updates))
    site = open_site(federation.paths["north"])
    made = site.outbox.last(plan.run)
    assert made is not None
    site.outbox.keep(plan, made.update, b"another seed of thirty-two bytes")
    with pytest.raises(ProtocolError, match="done already"):
        ask(federation, "north", plan, headers(updates))


# --- What a site must be shown --------------------------------------------------------------------------------------


def test_a_site_reveals_nothing_unless_its_whole_cohort_is_shown(federation: Federation) -> None:
    plan = plan_of(federation)
    shown = headers(updates_of(federation, plan))
    others = [each for each in shown if b'"site":"north"' not in each.header]
    forged = [replace(shown[0], signature=bytes(64)), *shown[1:]]
    for wrong, error in (
        (shown[:3], ProtocolError),
        ([*others, others[0]], ProtocolError),
        (others, ProtocolError),
        ([], ProtocolError),
        (forged, AuthenticityError),
    ):
        with pytest.raises(error):
            ask(federation, "north", plan, wrong)
    assert not list((federation.paths["north"] / "outbox").glob("*.once"))
    assert ask(federation, "north", plan, shown)


def test_a_site_reveals_nothing_for_headers_of_another_attempt(federation: Federation) -> None:
    whole, again = plan_of(federation), plan_of(federation, 2)
    first = headers(updates_of(federation, whole))
    updates_of(federation, again)
    with pytest.raises(ProtocolError, match="another attempt"):
        ask(federation, "north", again, first)


def test_a_sum_with_anothers_seed_or_none_is_not_opened(federation: Federation) -> None:
    plan = plan_of(federation)
    updates = updates_of(federation, plan)
    seeds = {site: ask(federation, site, plan, headers(updates)) for site in COHORT}
    for site, wrong in zip(COHORT, (
        seeds | {"east": seeds["west"]}, seeds | {"east": bytes(48)}, {s: seeds[s] for s in COHORT[1:]}, {},
    ), strict=True):  # fmt: skip
        with pytest.raises(AuthenticityError, match="does not open"):
            open_at(federation, site, summed(federation, plan, updates, wrong))
    for site in COHORT:
        restart(federation, site).refused_sums.clear()
        open_at(federation, site, summed(federation, plan, updates, seeds))
    assert len(set(models_of(federation).values())) == 1


def test_a_site_may_insist_on_masks(make_federation: FederationMaker) -> None:
    terms = {"north": replace(TERMS, collusion_resistant=True)}
    federation = make_federation(SETTINGS, terms)
    with pytest.raises(RefusedError, match="a run without masks: its policy says collusion_resistant = true"):
        accept(open_site(federation.paths["north"]), signed_run(federation)[0])
    masked = make_federation(MASKED, terms, name="masked")
    accept(open_site(masked.paths["north"]), signed_run(masked)[0])


def test_a_site_without_a_masked_update_reveals_nothing(federation: Federation) -> None:
    with pytest.raises(ProtocolError, match="reveals nothing"):
        ask(federation, "north", plan_of(federation), [])
