"""An update counts once, for one site, plan and model; the server can add and stop, but not pass off anything else.

The attacker here is the server, or a site that the roster names: it may send any bytes, and sign with its own key.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy.ciphertext import COEFF_MODULUS, Ciphertexts, add_residues, pack60, residues, seeds_digest
from privacy.envelope import Contribution, SignedUpdate, sign_update, verify_update
from privacy.errors import AuthenticityError, CloisterError, MalformedError, ProtocolError
from privacy.header import verify_header
from privacy.packing import PLAIN_MODULUS, RING_DEGREE, Profile, unpack
from privacy.signing import sign
from privacy.summation import EncryptedSum, RunningSum, check_sum
from privacy.update import Update
from tests.privacy.consortium import (
    CHARGE,
    KEYS,
    LAYOUT,
    MODEL,
    PARAMETERS,
    SITES,
    SIZES,
    Round,
    contribution,
    decryption_key,
    encrypt,
    few,
    header_of,
    make_manifest,
    make_plan,
    make_roster,
    make_round,
    parts_of,
    plan_with,
    relaxed,
    resigned,
    run_settings,
    signing_key,
    tag_key,
)

if TYPE_CHECKING:
    from privacy.plan import RoundPlan

PROFILES: tuple[Profile, ...] = get_args(Profile)
OTHER = "f" * 64
VECTORS = {site: np.linspace(-0.9, 0.9, PARAMETERS) * (place + 1) / 3 for place, site in enumerate(SITES)}


@cache
def this_round() -> Round:
    return make_round()


@cache
def updates() -> dict[str, SignedUpdate]:
    """One honest update of every site."""
    return {site: this_round().update(site, vector) for site, vector in VECTORS.items()}


@cache
def honest_sum() -> EncryptedSum:
    return this_round().total(updates())


def verify(update: SignedUpdate, site: str = "north", plan: RoundPlan | None = None) -> None:
    verify_update(update, site, plan or this_round().plan, this_round().manifest, this_round().roster)


def open_sum(total: EncryptedSum, of: Round | None = None) -> Update:
    """Do what a site does with a sum that the server delivers."""
    of = of or this_round()
    plan, headers = check_sum(total, of.run, of.manifest, of.roster)
    blocks = tag_key().check(decryption_key().decrypt(total.ciphertexts), plan, headers)
    weights = [header.weight for header in headers.values()]
    return unpack(blocks, of.model.layout.size, weights, of.manifest.packing)


# --- A round as it should go ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", PROFILES)
def test_three_sites_arrive_at_the_weighted_mean_of_what_they_sent(profile: Profile) -> None:
    size = 17_000  # two ciphertexts at least
    of = make_round(run_settings(profile=profile, update_bound=0.5), size=size)
    generator = np.random.default_rng(4)
    vectors = {site: generator.normal(scale=0.2, size=size).astype(np.float32) for site in SITES}
    total = of.total({site: of.update(site, vector) for site, vector in vectors.items()})
    plan, headers = check_sum(total, of.run, of.manifest, of.roster)
    weights = {site: header.weight for site, header in headers.items()}
    assert plan == of.plan
    assert weights == {"north": 1, "south": 200 / 300, "west": 100 / 300}
    mean = open_sum(total, of).vector
    expected = np.average(
        [np.clip(vector, -0.5, 0.5) for vector in vectors.values()], axis=0, weights=list(SIZES.values())
    )
    np.testing.assert_allclose(
        mean, expected, rtol=0, atol=of.manifest.packing.max_error(list(weights.values())) + 1e-7
    )


def test_every_site_opens_the_same_bits_whatever_the_order_of_arrival() -> None:
    backwards = this_round().total(dict(reversed(updates().items())))
    assert open_sum(honest_sum()).vector.tobytes() == open_sum(backwards).vector.tobytes()


def test_a_site_that_stays_away_is_left_out_of_the_mean() -> None:
    of = make_round(run_settings(minimum=2))
    vectors = {site: VECTORS[site] for site in ("south", "west")}
    total = of.total({site: of.update(site, vector) for site, vector in vectors.items()})
    expected = np.average(list(vectors.values()), axis=0, weights=[200, 100])
    np.testing.assert_allclose(open_sum(total, of).vector, expected, rtol=0, atol=1e-3)


def test_the_header_carries_what_the_design_promises() -> None:
    update, plan = updates()["south"], this_round().plan
    ciphertexts = Ciphertexts.read(update.chunks, 1)
    assert header_of(update) == {
        "attempt": 1,
        "base_model": MODEL.digest,
        "ciphertexts": ciphertexts.digest,
        "keys": KEYS,
        "layout": MODEL.layout.digest,
        "mask": "",
        "ledger_head": header_of(update)["ledger_head"],
        "plan": plan.digest,
        "roster_version": 3,
        "round": 1,
        "run": this_round().run,
        "seeds": seeds_digest(ciphertexts.seeds),
        "site": "south",
        "size": PARAMETERS,
        "update_bound": 1.0,
        "version": 1,
        "weight": 2 / 3,
    }


@pytest.mark.parametrize("changes", [{"run": OTHER}, {"round": 1}, {"round": 3}, {"attempt": 1}])
def test_an_update_is_only_signed_for_the_release_that_it_was_charged_for(changes: dict[str, object]) -> None:
    of = this_round()
    plan = plan_with(of.plan, round=2, attempt=2)
    release = replace(CHARGE.release, run=of.run, round=2, attempt=2)
    encrypted = encrypt(VECTORS["north"], 1.0, of.manifest.packing, replace(CHARGE, release=release),
                        plan=plan, site="north")  # fmt: skip

    def signed(plan: RoundPlan) -> SignedUpdate:
        return sign_update(
            encrypted, plan, LAYOUT, "north", signing_key("north"), weight=1.0, update_bound=1.0, mask=""
        )

    for attempt in (2, 3):  # a later attempt at the round sends what an earlier one was charged for
        assert header_of(signed(plan_with(plan, attempt=attempt)))["attempt"] == attempt
    with pytest.raises(ProtocolError, match="charged for round 2 cannot be sent for round"):
        signed(plan_with(plan, **changes))


# --- What the server refuses to add --------------------------------------------------------------------------------


def test_an_honest_update_is_verified_and_its_ciphertexts_kept() -> None:
    of = this_round()
    verified = verify_update(updates()["north"], "north", of.plan, of.manifest, of.roster)
    assert verified.header.site == "north"
    assert verified.ciphertexts.chunks == updates()["north"].chunks
    assert verified.contribution == contribution(updates()["north"])


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("site", "south", "site"),
        ("run", OTHER, "run"),
        ("round", 2, "round"),
        ("attempt", 2, "attempt"),
        ("plan", OTHER, "plan"),
        ("roster_version", 2, "roster version"),
        ("roster_version", 4, "roster version"),
        ("keys", OTHER, "keys"),
        ("base_model", OTHER, "base model"),
        ("weight", 0.999, "weight"),
        ("weight", 5e-324, "weight"),
    ],
)
def test_a_genuine_header_about_anything_else_is_refused(field: str, value: object, said: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        verify(resigned(updates()["north"], "north", {field: value}))
    assert str(caught.value) == f"north's update is for another {said} than the round's; it was not added"


@pytest.mark.parametrize(
    "changes",
    [
        {"weight": 0},
        {"weight": -1.0},
        {"weight": 1.01},
        {"weight": 1e300},
        {"weight": float("nan")},
        {"weight": float("inf")},
        {"weight": "1"},
        {"size": 0},
        {"size": -1},
        {"size": 20.5},
        {"site": "North"},
        {"site": ""},
        {"site": "north\n"},
        {"run": "F" * 64},
        {"run": "f" * 63},
        {"round": True},
        {"round": "1"},
        {"round": None},
        {"version": 2},
        {"update_bound": 0.0},
        {"update_bound": -1.0},
        {"update_bound": float("nan")},
        {"update_bound": float("inf")},
        {"update_bound": "1"},
        {"seeds": ""},
        {"extra": 1},
    ],
)
def test_a_genuine_header_of_another_form_is_malformed(changes: dict[str, object]) -> None:
    with pytest.raises(MalformedError, match="the header of north's update is malformed"):
        verify(resigned(updates()["north"], "north", changes))


def test_every_field_of_the_header_is_needed() -> None:
    update = updates()["north"]
    for name in set(header_of(update)) - {"version"}:
        left = update.header.decode().replace(f'"{name}":', f'"no-{name}":').encode()
        broken = SignedUpdate(left, sign(signing_key("north"), "update", left), update.chunks)
        with pytest.raises(MalformedError, match="the header of north's update is malformed"):
            verify(broken)


@relaxed
@given(st.binary(max_size=300))
def test_arbitrary_signed_bytes_are_no_header(data: bytes) -> None:
    with pytest.raises(MalformedError, match="the header of north's update is malformed"):
        verify(SignedUpdate(data, sign(signing_key("north"), "update", data), ()))


@pytest.mark.parametrize("signer", ["south", "coordinator", "stranger"])
def test_nobody_can_sign_for_another_site(signer: str) -> None:
    with pytest.raises(AuthenticityError, match="the signature of this update does not hold"):
        verify(resigned(updates()["north"], signer, {}))


def test_an_update_of_one_site_is_not_taken_from_another() -> None:
    with pytest.raises(AuthenticityError):
        verify(updates()["north"], "south")


def test_a_site_that_the_roster_does_not_name_is_refused() -> None:
    with pytest.raises(ProtocolError, match=r"'stranger' is not a member of clinics \(roster 3\)"):
        verify(resigned(updates()["north"], "stranger", {"site": "stranger"}), "stranger")


def test_a_member_outside_of_the_cohort_is_refused() -> None:
    of = this_round()
    plan = plan_with(of.plan, cohort=("north", "south"))
    update = resigned(updates()["west"], "west", {"plan": plan.digest})
    with pytest.raises(ProtocolError, match="west is not in the cohort of round 1; its update was not added"):
        verify_update(update, "west", plan, of.manifest, of.roster)


def test_a_member_whom_the_run_does_not_name_is_refused_even_if_the_plan_names_it() -> None:
    of = this_round()
    plan = plan_with(of.plan, cohort=(*SITES, "east"))
    update = resigned(updates()["north"], "east", {"site": "east", "plan": plan.digest})
    with pytest.raises(ProtocolError, match="east is not in the cohort of round 1"):
        verify_header(update.header, update.signature, "east", plan, of.manifest, make_roster(*SITES, "east"))


@pytest.mark.parametrize("changes", [{"round": 2}, {"attempt": 2}, {"minimum_cohort": 4}, {"deadline": 0.0}])
def test_an_update_replayed_under_another_plan_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ProtocolError, match="north's update is for another"):
        verify(updates()["north"], plan=plan_with(this_round().plan, **changes))


@relaxed
@given(
    part=st.sampled_from(["header", "signature", "chunks"]),
    where=st.floats(0, 1, exclude_max=True),
    bit=st.integers(0, 7),
)
def test_any_flipped_bit_is_refused(part: str, where: float, bit: int) -> None:
    update = updates()["north"]
    data = bytearray(update.chunks[0] if part == "chunks" else getattr(update, part))
    data[int(where * len(data))] ^= 1 << bit
    changes: dict[str, Any] = {part: (bytes(data),) if part == "chunks" else bytes(data)}
    with pytest.raises(AuthenticityError):
        verify(replace(update, **changes))


@relaxed
@given(
    header=st.binary(max_size=100),
    signature=st.binary(max_size=100),
    chunks=st.lists(st.binary(max_size=100), max_size=3).map(tuple),
)
def test_arbitrary_bytes_are_refused_with_our_errors(
    header: bytes, signature: bytes, chunks: tuple[bytes, ...]
) -> None:
    for update in (SignedUpdate(header, signature, chunks), replace(updates()["north"], chunks=chunks)):
        with pytest.raises((AuthenticityError, MalformedError, ProtocolError)):
            verify(update)


@pytest.mark.parametrize(
    "lengths", [(), (0,), (30_720,), (30_783,), (30_785,), (61_568,), (30_784, 30_784), (30_784, 0)]
)
def test_a_body_of_another_length_is_malformed(lengths: tuple[int, ...]) -> None:
    update = updates()["north"]
    chunks = tuple((update.chunks[0] * 2)[:length] for length in lengths)
    with pytest.raises(MalformedError, match=r"1 ciphertexts take 30,784 bytes, not [\d,]+; they were cut or padded"):
        verify(replace(update, chunks=chunks))


@pytest.mark.parametrize("size", [12_286, 1 << 62, 10**30])
def test_a_body_of_another_size_than_its_genuine_header_says_is_malformed(size: int) -> None:
    with pytest.raises(MalformedError, match="they were cut or padded"):
        verify(resigned(updates()["north"], "north", {"size": size}))


def test_another_update_of_the_same_site_cannot_be_put_under_a_header() -> None:
    second = this_round().update("north", VECTORS["north"])
    with pytest.raises(AuthenticityError, match="not the ones that it signed; it was altered on the way"):
        verify(replace(updates()["north"], chunks=second.chunks))


def test_a_header_whose_seeds_are_not_the_bodys_is_refused_before_it_can_spoil_the_sum() -> None:
    with pytest.raises(AuthenticityError, match="not the ones that it signed"):
        verify(resigned(updates()["north"], "north", {"seeds": OTHER}))


@pytest.mark.parametrize("value", [COEFF_MODULUS, (1 << 60) - 1])
def test_a_coefficient_of_q_or_more_is_not_added_though_its_digest_is_signed(value: int) -> None:
    of, update = this_round(), updates()["north"]
    c0, seed = parts_of(update)
    words = residues(c0).copy().reshape(-1)
    words[77] = value
    bad = resigned(update, "north", {}, pack60(words) + seed)
    running = RunningSum(of.plan)
    with pytest.raises(MalformedError, match="a coefficient is not below the modulus q"):
        running.add(verify_update(bad, "north", of.plan, of.manifest, of.roster))
    assert running.sites == ()
    for site, honest in updates().items():
        running.add(verify_update(honest, site, of.plan, of.manifest, of.roster))
    assert running.close() == honest_sum()


# --- The running sum -----------------------------------------------------------------------------------------------


def test_the_sum_refuses_a_second_update_of_one_site_and_stays_as_it_was() -> None:
    of = this_round()
    running = RunningSum(of.plan)
    for site, update in updates().items():
        running.add(verify_update(update, site, of.plan, of.manifest, of.roster))
    before = running.close()
    for again in (updates()["south"], of.update("south", VECTORS["south"])):
        with pytest.raises(ProtocolError) as caught:
            running.add(verify_update(again, "south", of.plan, of.manifest, of.roster))
        assert str(caught.value) == "south's update was not added: this site's update is in the sum already"
    assert running.sites == SITES
    assert running.close() == before


def test_the_sum_refuses_an_update_for_another_plan() -> None:
    of = this_round()
    running = RunningSum(plan_with(of.plan, attempt=2))
    with pytest.raises(ProtocolError, match="south's update was not added: it is for another round's plan"):
        running.add(verify_update(updates()["south"], "south", of.plan, of.manifest, of.roster))
    assert running.sites == ()


@pytest.mark.parametrize("changes", [{"layout": OTHER}, {"size": PARAMETERS + 1}, {"update_bound": 0.5}])
def test_the_sum_refuses_a_model_with_other_tensors_or_another_range(changes: dict[str, object]) -> None:
    of = this_round()
    running = RunningSum(of.plan)
    running.add(verify_update(updates()["north"], "north", of.plan, of.manifest, of.roster))
    other = resigned(updates()["south"], "south", changes)
    with pytest.raises(
        ProtocolError, match="its model has other tensors than the other sites', or its values another range"
    ):
        running.add(verify_update(other, "south", of.plan, of.manifest, of.roster))
    assert running.sites == ("north",)


@pytest.mark.parametrize("sites", [(), ("north",), ("north", "west")])
def test_below_the_minimum_nothing_is_released(sites: tuple[str, ...]) -> None:
    with pytest.raises(ProtocolError) as caught:
        this_round().total({site: updates()[site] for site in sites})
    assert str(caught.value) == (
        f"round 1: {len(sites)} of the 3 sites that it needs sent an update; nothing was released"
    )


@few
@given(st.integers(0, 1 << 32))
def test_the_running_sum_is_the_sum_of_the_residues(seed: int) -> None:
    of = this_round()
    generator = np.random.default_rng(seed)
    running, exact = RunningSum(of.plan), [0] * RING_DEGREE
    for site in SITES:
        verified = verify_update(updates()[site], site, of.plan, of.manifest, of.roster)
        row = generator.integers(0, COEFF_MODULUS, RING_DEGREE, np.uint64)
        ciphertexts = Ciphertexts((pack60(row) + parts_of(updates()[site])[1],))
        running.add(replace(verified, ciphertexts=ciphertexts))
        exact = [(a + b) % COEFF_MODULUS for a, b in zip(exact, row.tolist(), strict=True)]
    (c0,) = running.close().c0
    assert residues(c0)[0].tolist() == exact


# --- What a site refuses to open -----------------------------------------------------------------------------------


def refused(total: EncryptedSum, error: type[CloisterError], match: str | None = None) -> None:
    with pytest.raises(error, match=match):
        check_sum(total, this_round().run, this_round().manifest, this_round().roster)


def test_a_sum_over_too_few_sites_is_not_opened() -> None:
    total = honest_sum()
    for count in range(3):
        few_parts = replace(total, contributions=total.contributions[:count])
        refused(few_parts, ProtocolError, f"over {count} sites, fewer than the minimum; it was not opened")


def test_the_minimum_is_the_manifests_even_if_the_plan_asks_for_less() -> None:
    of = this_round()
    plan = plan_with(of.plan, cohort=("north", "south"), minimum_cohort=1)
    running = RunningSum(plan)
    for site in plan.cohort:
        update = resigned(updates()[site], site, {"plan": plan.digest})
        running.add(verify_update(update, site, plan, of.manifest, of.roster))
    refused(running.close(), ProtocolError, "over 2 sites, fewer than the minimum")


def test_a_sum_in_which_a_site_stands_twice_is_not_opened() -> None:
    first, second, _ = honest_sum().contributions
    refused(replace(honest_sum(), contributions=(first, second, second)), ProtocolError, "a site stands twice")


@relaxed
@given(part=st.sampled_from(["header", "signature", "seeds"]), where=st.floats(0, 1, exclude_max=True),
       bit=st.integers(0, 7), index=st.integers(0, 2))  # fmt: skip
def test_a_sum_with_any_flipped_bit_beside_c0_is_not_opened(part: str, where: float, bit: int, index: int) -> None:
    parts = list(honest_sum().contributions)
    data = bytearray(getattr(parts[index], part))
    data[int(where * len(data))] ^= 1 << bit
    parts[index] = replace(parts[index], **{part: bytes(data)})
    refused(replace(honest_sum(), contributions=tuple(parts)), CloisterError)


@few
@given(where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_sum_under_any_other_plan_is_not_opened(where: float, bit: int) -> None:
    data = bytearray(honest_sum().plan)
    data[int(where * len(data))] ^= 1 << bit
    with pytest.raises((AuthenticityError, MalformedError, ProtocolError)):
        check_sum(replace(honest_sum(), plan=bytes(data)), this_round().run, this_round().manifest, this_round().roster)


def test_a_sum_of_another_run_or_of_a_round_beyond_the_last_is_not_opened() -> None:
    of = this_round()
    with pytest.raises(ProtocolError, match="the sum is for another run; it was not opened"):
        check_sum(honest_sum(), OTHER, of.manifest, of.roster)
    manifest, run = make_manifest()
    plan = make_plan(run, number=manifest.settings.rounds + 1)
    with pytest.raises(ProtocolError, match="the sum is for another run; it was not opened"):
        check_sum(EncryptedSum(plan.to_bytes(), (), ()), run, manifest, of.roster)


def test_a_sum_with_a_contribution_of_nobody_in_the_cohort_is_not_opened() -> None:
    stranger = resigned(updates()["north"], "stranger", {"site": "stranger"})
    parts = (*honest_sum().contributions, contribution(stranger))
    refused(replace(honest_sum(), contributions=parts), MalformedError, "names no site of the cohort")


def test_a_sum_whose_plan_brings_in_a_member_from_outside_of_the_run_is_not_opened() -> None:
    of = this_round()
    plan = plan_with(of.plan, cohort=("east", "north", "south", "west"))
    update = resigned(updates()["north"], "east", {"site": "east", "plan": plan.digest})
    total = EncryptedSum(plan.to_bytes(), (contribution(update),), honest_sum().c0)
    with pytest.raises(ProtocolError, match="east is not in the cohort"):
        check_sum(total, of.run, of.manifest, make_roster(*SITES, "east"))


@pytest.mark.parametrize("changes", [{"layout": OTHER}, {"size": 12_286}, {"size": 1}, {"update_bound": 0.5}])
def test_a_sum_over_different_tensors_or_ranges_is_not_opened(changes: dict[str, object]) -> None:
    other = contribution(resigned(updates()["west"], "west", changes))
    parts = (*honest_sum().contributions[:2], other)
    refused(replace(honest_sum(), contributions=parts), ProtocolError, "over models with different tensors or ranges")


@pytest.mark.parametrize("lengths", [(0,), (30_705,), (30_719,), (30_721,), (61_440,), (30_720, 30_720), ()])
def test_a_sum_that_was_cut_or_padded_is_not_opened(lengths: tuple[int, ...]) -> None:
    total = honest_sum()
    refused(
        replace(total, c0=tuple((total.c0[0] * 2)[:length] for length in lengths)),
        MalformedError,
        "they were cut or padded",
    )


@few
@given(plan=st.binary(max_size=200), header=st.binary(max_size=200), seeds=st.binary(max_size=100))
def test_arbitrary_bytes_are_no_sum(plan: bytes, header: bytes, seeds: bytes) -> None:
    refused(EncryptedSum(plan, (), ()), MalformedError, "the round's plan is malformed")
    parts = (Contribution(header, b"", seeds),) * 3
    refused(replace(honest_sum(), contributions=parts), CloisterError)


# --- A server that lies about c0, which nobody signed --------------------------------------------------------------


def summed(*sent: SignedUpdate) -> tuple[bytes]:
    total = np.zeros((1, RING_DEGREE), np.uint64)
    for update in sent:
        add_residues(total, residues(parts_of(update)[0]))
    return (pack60(total.reshape(-1)),)


def test_one_sites_update_cannot_be_passed_off_as_the_sum_of_three() -> None:
    # Three times one ciphertext, with its seeds under everybody's header: were the seeds not signed, every site
    # would decrypt three times north's update, and the "mean" would be what north alone had sent.
    north = updates()["north"]
    parts = tuple(replace(part, seeds=parts_of(north)[1]) for part in honest_sum().contributions)
    total = replace(honest_sum(), contributions=parts, c0=summed(*[north] * 3))
    opened = decryption_key().decrypt(total.ciphertexts)
    assert isinstance(unpack(opened, PARAMETERS, [1.0] * 3, this_round().manifest.packing), Update)
    with pytest.raises(AuthenticityError, match="the seeds of south's update are not the ones that it signed"):
        open_sum(total)


def test_an_update_of_an_earlier_round_cannot_take_the_place_of_this_rounds() -> None:
    north, south, west = (updates()[site] for site in SITES)
    earlier = make_round(number=1).update("north", VECTORS["north"])
    parts = list(honest_sum().contributions)
    parts[0] = replace(parts[0], seeds=parts_of(earlier)[1])
    total = replace(honest_sum(), contributions=tuple(parts), c0=summed(earlier, south, west))
    with pytest.raises(AuthenticityError, match="the seeds of north's update"):
        open_sum(total)
    with pytest.raises(AuthenticityError, match="is not that of the updates it is said to hold"):
        open_sum(replace(honest_sum(), c0=total.c0))
    assert summed(north, south, west) == honest_sum().c0


@pytest.mark.parametrize(
    "sites",
    [
        pytest.param(("north",), id="one alone"),
        pytest.param(("north", "south"), id="one left out"),
        pytest.param(("north", "south", "west", "west"), id="one doubled"),
        pytest.param(("north", "north", "north"), id="one thrice"),
    ],
)
@pytest.mark.parametrize("profile", PROFILES)
def test_a_c0_that_is_not_the_sum_of_all_decrypts_to_noise_and_is_refused(
    sites: tuple[str, ...], profile: Profile
) -> None:
    of = make_round(run_settings(profile=profile))
    sent = {site: of.update(site, VECTORS[site]) for site in SITES}
    total = of.total(sent)
    assert isinstance(open_sum(total, of), Update)
    with pytest.raises(AuthenticityError, match="is not that of the updates it is said to hold"):
        open_sum(replace(total, c0=summed(*(sent[site] for site in sites))), of)


def test_a_server_that_adds_a_constant_to_the_sum_is_noticed() -> None:
    total = honest_sum()
    shift = np.zeros((1, RING_DEGREE), np.uint64)
    shift[0, 0] = 500 * (COEFF_MODULUS // PLAIN_MODULUS)  # 500 levels of the first parameter
    words = residues(total.c0[0]).copy()
    add_residues(words, shift)
    with pytest.raises(AuthenticityError, match="is not that of the updates it is said to hold"):
        open_sum(replace(total, c0=(pack60(words.reshape(-1)),)))
