"""Which sets of contributors and seeds a site accepts, and what counts as evidence against another site."""

import json
import time
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from shutil import copytree, rmtree
from types import SimpleNamespace

import pytest

from client.flower import open_site
from client.round.admission import admit
from client.round.aggregate import UnopenedError
from client.round.train_round import train_round
from privacy.crypto.agreement import accuse, check_repeat
from privacy.crypto.masking import sign_pairs, sign_seed
from privacy.errors import AuthenticityError, ProtocolError, RefusedError
from simulations.engine.federation import Federation
from tests.client.round.masked_rounds import (
    COHORT,
    MASKED,
    ask,
    headers,
    open_at,
    plan_of,
    sign,
    signatures,
    signed_by,
    summed,
    updates_of,
    without_the_last,
)
from tests.federations import (
    SETTINGS,
    TERMS,
    FederationMaker,
    charges_of,
    restart,
    signed_run,
)


@pytest.fixture
def federation(make_federation: FederationMaker) -> Federation:
    return make_federation(MASKED)


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
        with pytest.raises(UnopenedError, match="opens no other sum of that plan"):
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
