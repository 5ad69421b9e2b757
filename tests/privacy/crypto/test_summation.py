"""A sum counts every site once; the server can add and stop, but not pass off anything else.

The attacker here is the server: it may deliver any bytes.
"""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy.codec.ciphertext import COEFF_MODULUS, Ciphertexts, pack60, residues
from privacy.codec.envelope import Contribution, verify_update
from privacy.codec.packing import RING_DEGREE, Profile
from privacy.crypto.summation import EncryptedSum, RunningSum, check_sum
from privacy.errors import AuthenticityError, CloisterError, MalformedError, ProtocolError
from tests.privacy.consortium import (
    PARAMETERS,
    SITES,
    contribution,
    few,
    make_manifest,
    make_plan,
    make_roster,
    make_round,
    parts_of,
    plan_with,
    relaxed,
    resigned,
    run_settings,
)
from tests.privacy.honest import OTHER, VECTORS, honest_sum, open_sum, this_round, updates

PROFILES: tuple[Profile, ...] = get_args(Profile)


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
    weighted = [np.clip(weights[site] * vector, -0.5, 0.5) for site, vector in vectors.items()]
    expected = np.sum(weighted, axis=0) / sum(weights.values())
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
        assert str(caught.value) == "south's update was not added: the sum already contains this site's update"
    assert running.sites == SITES
    assert running.close() == before


def test_the_sum_refuses_an_update_for_another_plan() -> None:
    of = this_round()
    running = RunningSum(plan_with(of.plan, attempt=2))
    with pytest.raises(ProtocolError, match="south's update was not added: it is for another plan"):
        running.add(verify_update(updates()["south"], "south", of.plan, of.manifest, of.roster))
    assert running.sites == ()


@pytest.mark.parametrize("changes", [{"layout": OTHER}, {"size": PARAMETERS + 1}, {"update_bound": 0.5}])
def test_the_sum_refuses_a_model_with_other_tensors_or_another_range(changes: dict[str, object]) -> None:
    of = this_round()
    running = RunningSum(of.plan)
    running.add(verify_update(updates()["north"], "north", of.plan, of.manifest, of.roster))
    other = resigned(updates()["south"], "south", changes)
    with pytest.raises(ProtocolError, match="its tensors or the range of its values differ from the other sites'"):
        running.add(verify_update(other, "south", of.plan, of.manifest, of.roster))
    assert running.sites == ("north",)


@pytest.mark.parametrize("sites", [(), ("north",), ("north", "west")])
def test_below_the_minimum_nothing_is_released(sites: tuple[str, ...]) -> None:
    with pytest.raises(ProtocolError) as caught:
        this_round().total({site: updates()[site] for site in sites})
    assert str(caught.value) == (
        f"round 1: {len(sites)} of the 3 sites that the round needs sent an update; nothing was released"
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
        ciphertexts = Ciphertexts((pack60(row) + b"".join(parts_of(updates()[site])[1:]),))
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
        refused(few_parts, ProtocolError, rf"has too few contributors \({count}\); it was not opened")


def test_the_minimum_is_the_manifests_even_if_the_plan_asks_for_less() -> None:
    of = this_round()
    plan = plan_with(of.plan, cohort=("north", "south"), minimum_cohort=1)
    running = RunningSum(plan)
    for site in plan.cohort:
        update = resigned(updates()[site], site, {"plan": plan.digest})
        running.add(verify_update(update, site, plan, of.manifest, of.roster))
    refused(running.close(), ProtocolError, r"has too few contributors \(2\)")


def test_a_sum_that_names_a_site_twice_is_not_opened() -> None:
    first, second, _ = honest_sum().contributions
    refused(replace(honest_sum(), contributions=(first, second, second)), ProtocolError, "a site is named twice")


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
        check_sum(EncryptedSum(plan.to_bytes(), (), (), b""), run, manifest, of.roster)


def test_a_sum_with_a_contribution_of_nobody_in_the_cohort_is_not_opened() -> None:
    stranger = resigned(updates()["north"], "stranger", {"site": "stranger"})
    parts = (*honest_sum().contributions, contribution(stranger))
    refused(replace(honest_sum(), contributions=parts), MalformedError, "names a site outside the cohort")


def test_a_sum_whose_plan_names_a_member_outside_the_run_is_not_opened() -> None:
    of = this_round()
    plan = plan_with(of.plan, cohort=("east", "north", "south", "west"))
    update = resigned(updates()["north"], "east", {"site": "east", "plan": plan.digest})
    total = EncryptedSum(plan.to_bytes(), (contribution(update),), honest_sum().c0, honest_sum().codes)
    with pytest.raises(ProtocolError, match="east is not in the cohort"):
        check_sum(total, of.run, of.manifest, make_roster(*SITES, "east"))


@pytest.mark.parametrize("changes", [{"layout": OTHER}, {"size": 12_286}, {"size": 1}, {"update_bound": 0.5}])
def test_a_sum_over_different_tensors_or_ranges_is_not_opened(changes: dict[str, object]) -> None:
    other = contribution(resigned(updates()["west"], "west", changes))
    parts = (*honest_sum().contributions[:2], other)
    refused(replace(honest_sum(), contributions=parts), ProtocolError, "adds updates with different tensors or ranges")


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
def test_arbitrary_bytes_are_not_a_sum(plan: bytes, header: bytes, seeds: bytes) -> None:
    refused(EncryptedSum(plan, (), (), b""), MalformedError, "the round's plan is malformed")
    parts = (Contribution(header, b"", seeds),) * 3
    refused(replace(honest_sum(), contributions=parts), CloisterError)
