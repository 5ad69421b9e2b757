"""Masks at real sites: what each reveals, for which attempt; what a server gets that tells of a false dropout."""

import json
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from shutil import copytree, rmtree
from types import SimpleNamespace

import pytest
from flwr.app import Context, Error, Message, MessageType

from client.flower import app, open_site
from client.round.admission import admit
from client.round.aggregate import UnopenedError, open_sum
from client.round.masking import agree, reveal
from client.round.readiness import get_ready
from client.round.train_round import train_round
from client.site import Site
from privacy.codec.envelope import Contribution, SignedUpdate, verify_update
from privacy.crypto.agreement import accuse, check_repeat
from privacy.crypto.masking import sign_pairs, sign_seed
from privacy.crypto.summation import EncryptedSum, RunningSum
from privacy.errors import AuthenticityError, CloisterError, ProtocolError, RefusedError
from privacy.run.plan import RoundPlan
from simulations.engine.federation import Federation
from tests.federations import (
    NOISY,
    SETTINGS,
    SITES,
    TERMS,
    Answer,
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
from transport.messages import AGREE, REVEAL

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
        base_model=get_ready(admit(open_site(federation.paths["north"]), document), node_of(federation, "north")).model,
    )  # fmt: skip


def updates_of(federation: Federation, plan: RoundPlan) -> dict[str, SignedUpdate]:
    """What every site of the cohort sends."""
    document, sites = signed_run(federation)[0], sites_of(federation)
    return {site: train_round(admit(sites[site], document).round(plan), []) for site in plan.cohort}


def headers(updates: dict[str, SignedUpdate]) -> list[Contribution]:
    return [Contribution(update.header, update.signature, b"") for update in updates.values()]


def sign(
    federation: Federation, site: str, plan: RoundPlan, contributions: Sequence[Contribution]
) -> tuple[bytes, bytes]:
    """What a site signs of its contributors, and the seeds that it gives."""
    return agree(admit(open_site(federation.paths[site]), signed_run(federation)[0]).round(plan), contributions)


def signed_by(
    federation: Federation, plan: RoundPlan, updates: dict[str, SignedUpdate]
) -> dict[str, tuple[bytes, bytes]]:
    return {site: sign(federation, site, plan, headers(updates)) for site in updates}


def signatures(agreed: dict[str, tuple[bytes, bytes]]) -> dict[str, bytes]:
    return {site: signature for site, (signature, _) in agreed.items()}


def ask(
    federation: Federation, site: str, plan: RoundPlan, updates: dict[str, SignedUpdate],
    agreed: dict[str, bytes] | None = None,
) -> bytes:  # fmt: skip
    """Have a site reveal its seed, once all have signed that they contributed."""
    if agreed is None:
        agreed = signatures(signed_by(federation, plan, updates))
    contributions = headers(updates)
    return reveal(
        admit(open_site(federation.paths[site]), signed_run(federation)[0]).round(plan), contributions, agreed
    )


def without_the_last(
    federation: Federation,
) -> tuple[RoundPlan, dict[str, SignedUpdate], dict[str, bytes], dict[str, bytes]]:
    """A plan, the updates of all but the last of its cohort, and their seeds: of own masks, and of shared ones."""
    plan = plan_of(federation)
    everyone = updates_of(federation, plan)
    updates = {site: everyone[site] for site in COHORT[:3]}
    agreed = signed_by(federation, plan, updates)
    seeds = {site: ask(federation, site, plan, updates, signatures(agreed)) for site in updates}
    return plan, updates, seeds, {site: sealed for site, (_, sealed) in agreed.items()}


def summed(federation: Federation, plan: RoundPlan, updates: dict[str, SignedUpdate], seeds: dict[str, bytes],
           pairs: dict[str, bytes] | None = None) -> EncryptedSum:  # fmt: skip
    """The sum as the server makes it, with what it has of the seeds."""
    _, manifest, _ = signed_run(federation)
    total, roster = RunningSum(plan), open_site(federation.paths["north"]).roster
    for site, update in updates.items():
        total.add(verify_update(update, site, plan, manifest, roster))
    closed = total.close()
    parts = [
        replace(part, reveal=seeds.get(site, b""), pairs=(pairs or {}).get(site, b""))
        for site, part in zip(updates, closed.contributions, strict=True)
    ]
    return replace(closed, contributions=tuple(parts))


def open_at(federation: Federation, site: str, total: EncryptedSum) -> None:
    opened = open_site(federation.paths[site])
    open_sum(admit(opened, signed_run(federation)[0]), total)


# --- Whole runs -----------------------------------------------------------------------------------------------------


def test_a_masked_run_ends_with_the_same_model_as_one_without(make_federation: FederationMaker) -> None:
    plain = make_federation(replace(SETTINGS, rounds=2), name="plain")
    masked = make_federation(
        replace(SETTINGS, rounds=2, encryption=replace(SETTINGS.encryption, collusion_resistant=True)), name="masked"
    )
    assert [event["released"] for event in run_with(plain) + run_with(masked)] == [True] * 4
    values = {file[-12:] for federation in (plain, masked) for file in models_of(federation).values()}
    assert len(values) == 1


def breaking(federation: Federation, site: str, kind: str) -> Answer:
    """What all sites do, but for one whose line breaks when it is to answer this kind of message."""
    node = node_of(federation, site)

    def answer(message: Message, context: Context) -> Message:
        if (message.metadata.dst_node_id, message.metadata.message_type) == (node, kind):
            return reply(Error(1, "the line broke"), message)
        return app(message, context)

    return answer


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


# --- What a site must be shown --------------------------------------------------------------------------------------


def test_a_site_signs_no_set_without_itself_nor_one_that_is_too_small_or_forged(federation: Federation) -> None:
    plan = plan_of(federation)
    contributions = headers(updates_of(federation, plan))
    others = [value for value in contributions if b'"site":"north"' not in value.header]
    forged = [replace(contributions[0], signature=bytes(64)), *contributions[1:]]
    for wrong, error in (
        (contributions[:2], ProtocolError),
        ([*others, others[0]], ProtocolError),
        (others, ProtocolError),
        ([], ProtocolError),
        (forged, AuthenticityError),
    ):
        with pytest.raises(error):
            sign(federation, "north", plan, wrong)
    assert not list((federation.paths["north"] / "outbox").glob("*.commitments"))
    sign(federation, "north", plan, contributions)  # this set it signs


def test_a_site_restored_from_an_old_backup_shows_no_seed_for_a_plan_that_is_long_over(
    federation: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has forgotten which set it signed: with two of them, and one more site, a server would read its update."""
    plan = plan_of(federation)
    updates = updates_of(federation, plan)
    first, second = ({site: updates[site] for site in sites} for sites in (COHORT[:3], COHORT[1:]))
    backup = copytree(federation.paths["north"], tmp_path / "backup")
    agreed = signatures(signed_by(federation, plan, first))
    rmtree(federation.paths["north"])
    copytree(backup, federation.paths["north"])
    restart(federation, "north")
    clock, over = time.time, 6 * 60.0 + 30.0  # messages of a round, and by how much clocks may differ
    monkeypatch.setattr("privacy.run.plan.time", SimpleNamespace(time=lambda: clock() + 60 + over))
    with pytest.raises(ProtocolError, match=r"round 1 is long over .*; north reveals no seed for it"):
        sign(federation, "north", plan, headers(second))
    with pytest.raises(ProtocolError, match="long over"):
        ask(federation, "north", plan, first, agreed)
    monkeypatch.setattr("privacy.run.plan.time", SimpleNamespace(time=lambda: clock() + over))
    assert sign(federation, "north", plan, headers(first))[0] == agreed["north"]
    ask(federation, "north", plan, first, agreed)


def test_a_site_signs_no_set_of_headers_of_another_attempt(federation: Federation) -> None:
    whole, again = plan_of(federation), plan_of(federation, 2)
    first = headers(updates_of(federation, whole))
    updates_of(federation, again)
    with pytest.raises(ProtocolError, match="another attempt"):
        sign(federation, "north", again, first)


@pytest.mark.parametrize("wrong", ["another's", "none", "of a site that is there", "made up"])
def test_a_sum_with_other_seeds_of_shared_masks_than_were_committed_to_is_not_opened(
    federation: Federation, wrong: str
) -> None:
    plan, updates, seeds, pairs = without_the_last(federation)
    lie = {
        "another's": pairs["north"],
        "none": b"",
        "of a site that is there": pairs["east"] * 2,
        "made up": bytes(len(pairs["east"])),
    }[wrong]
    with pytest.raises(AuthenticityError, match="does not open"):
        open_at(federation, "north", summed(federation, plan, updates, seeds, pairs | {"east": lie}))
    open_at(federation, "south", summed(federation, plan, updates, seeds, pairs))


def test_a_sum_with_anothers_seed_or_none_is_not_opened_nor_is_any_other_of_its_plan_after_a_restart(
    federation: Federation,
) -> None:
    plan = plan_of(federation)
    updates = updates_of(federation, plan)
    seeds = {site: ask(federation, site, plan, updates) for site in COHORT}
    for site, wrong in zip(COHORT, (
        seeds | {"east": seeds["west"]}, seeds | {"east": bytes(48)}, {s: seeds[s] for s in COHORT[1:]}, {},
    ), strict=True):  # fmt: skip
        with pytest.raises(AuthenticityError, match="does not open"):
            open_at(federation, site, summed(federation, plan, updates, wrong))
    for site in COHORT:
        restart(federation, site)
        with pytest.raises(ProtocolError, match="opens no other sum of that plan"):
            open_at(federation, site, summed(federation, plan, updates, seeds))


@pytest.mark.parametrize("owner", ["its own mask", "a mask that it shares"])
def test_a_false_seed_that_its_site_signed_is_evidence_against_it(federation: Federation, owner: str) -> None:
    plan, updates, seeds, pairs = without_the_last(federation)
    east, header = open_site(federation.paths["east"]), json.loads(updates["east"].header)
    if owner == "its own mask":
        seeds["east"] = sign_seed(seeds["north"][64:], plan, header["mask"], east.signing_key)
    else:
        pairs["east"] = sign_pairs(pairs["north"][64:], plan, header["pairs"], COHORT[3:], east.signing_key)
    total = summed(federation, plan, updates, seeds, pairs)
    for site in ("north", "south"):
        with pytest.raises(UnopenedError) as caught:
            open_at(federation, site, total)
        assert (caught.value.refusal.why, caught.value.refusal.liars) == ("seeds", ["east"])
        digest = restart(federation, site).commitments.find(plan.run, "evidence against east")
        assert digest == sha256(updates["east"].header).hexdigest()


@pytest.mark.parametrize("evidence", ["no seed", "no shared seeds", "seeds shared with another"])
def test_omitted_or_mismatched_parts_are_evidence_against_no_site(federation: Federation, evidence: str) -> None:
    """Else it could have a round added up again without an honest site, and subtract."""
    plan, updates, seeds, pairs = without_the_last(federation)
    if evidence == "no seed":
        seeds["east"] = b""
    elif evidence == "no shared seeds":
        pairs["east"] = b""
    else:
        everyone = updates_of(federation, plan)  # the very same
        updates = {site: everyone[site] for site in COHORT[1:]}
        seeds[COHORT[3]] = seeds["north"]
        pairs[COHORT[3]] = pairs["north"]
    with pytest.raises(UnopenedError) as caught:
        open_at(federation, "north", summed(federation, plan, updates, seeds, pairs))
    assert (caught.value.refusal.why, caught.value.refusal.liars) == ("codes", [])
    assert not any("evidence" in path.read_text() for path in federation.paths["north"].glob("outbox/*.commitments"))


def test_a_garbled_seed_is_evidence_against_no_site(federation: Federation) -> None:
    plan = plan_of(federation)
    updates = updates_of(federation, plan)
    seeds = {site: ask(federation, site, plan, updates) for site in COHORT}
    garbled = seeds["east"][:-1] + bytes([seeds["east"][-1] ^ 1])
    with pytest.raises(UnopenedError) as caught:
        open_at(federation, "north", summed(federation, plan, updates, seeds | {"east": garbled}))
    assert (caught.value.refusal.why, caught.value.refusal.liars) == ("codes", [])
    assert open_site(federation.paths["north"]).commitments.find(plan.run, "evidence against east") is None


@pytest.mark.parametrize("known", [True, False], ids=["with evidence", "without"])
def test_a_round_is_repeated_after_a_reveal_only_without_members_proven_to_cheat(
    federation: Federation, *, known: bool
) -> None:
    whole, fewer = plan_of(federation), plan_of(federation, 2, COHORT[:3])
    ask(federation, "north", whole, updates_of(federation, whole))
    north, document = restart(federation, "north"), signed_run(federation)[0]
    if not known:
        with pytest.raises(ProtocolError, match="the seed for round 1 was already revealed"):
            train_round(admit(north, document).round(fewer), [])
        return
    accuse(north.commitments, whole.run, "west", "what it signed")
    again = {
        site: train_round(admit(open_site(federation.paths[site]), document).round(fewer), []) for site in fewer.cohort
    }
    assert ask(federation, "north", fewer, again)
    assert charges_of(federation, "north") == 1
    with pytest.raises(ProtocolError, match="has sent no masked update for this plan"):
        ask(federation, "north", whole, again)


@pytest.mark.parametrize("other", [False, True], ids=["lost", "replaced"])
def test_a_site_repeats_nothing_with_another_update_than_it_revealed_for(
    federation: Federation, *, other: bool
) -> None:
    """Over the same sites the difference of the two sums would be that of one site's two updates."""
    whole, fewer = plan_of(federation), plan_of(federation, 3, COHORT[:3])
    ask(federation, "north", whole, updates_of(federation, whole))
    north, document = restart(federation, "north"), signed_run(federation)[0]
    accuse(north.commitments, whole.run, "west", "what it signed")
    (update,) = (federation.paths["north"] / "outbox").glob("*.update")
    if other:  # as if a second agent of this site had made one meanwhile
        entry = north.outbox.last(whole.run)
        assert entry is not None
        north.outbox.keep(plan_of(federation, 2), entry.update, entry.mask)
    else:
        update.unlink()
    with pytest.raises(ProtocolError, match="the update is lost"):
        train_round(admit(north, document).round(fewer), [])
    assert charges_of(federation, "north") == 1


def test_a_repetition_that_is_not_whole_is_refused(federation: Federation) -> None:
    whole, fewer = plan_of(federation), plan_of(federation, 2, COHORT[1:])
    ask(federation, "north", whole, updates_of(federation, whole))
    record = open_site(federation.paths["north"]).commitments
    accuse(record, whole.run, "east", "what it signed")
    check_repeat(record, fewer, COHORT[1:])
    with pytest.raises(ProtocolError, match="the seed for round 1 was already revealed"):
        check_repeat(record, fewer, COHORT[1:3])


def test_a_site_may_insist_on_masks(make_federation: FederationMaker) -> None:
    terms = {"north": replace(TERMS, collusion_resistant=True)}
    federation = make_federation(SETTINGS, terms)
    with pytest.raises(RefusedError, match="a run without masks: its policy says collusion_resistant = true"):
        admit(open_site(federation.paths["north"]), signed_run(federation)[0])
    masked = make_federation(MASKED, terms, name="masked")
    admit(open_site(masked.paths["north"]), signed_run(masked)[0])


def test_a_site_without_a_masked_update_reveals_nothing(federation: Federation) -> None:
    with pytest.raises(ProtocolError, match="reveals no seed"):
        sign(federation, "north", plan_of(federation), [])
