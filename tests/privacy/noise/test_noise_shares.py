"""Shares of noise: how much each site adds, what that is worth against whom, and which runs cannot share it."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy.accounting.accounting import Mechanism, epsilon
from privacy.codec.packing import Packing, pack_with_share, unpack
from privacy.codec.update import Update
from privacy.errors import ConfigError, MalformedError
from privacy.noise.discrete import reach
from privacy.noise.noise_shares import Observer, most_parameters, observers, share_for, share_of
from privacy.noise.randomness import Randomness
from privacy.run.settings import Privacy, RunSettings, Training
from tests.privacy.consortium import CHARGE, MODEL, blocks_of, few, joined, make_manifest, run_settings

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from privacy.run.manifest import Manifest

SIGMA, DELTA = 8.0, 1e-5
SIZES = {"a": 400, "b": 200, "c": 100, "d": 50}


def shared_settings(
    *, minimum: int = 3, colluding: int | None = None, bound: float = 1.0, sigma: float = SIGMA, rate: float = 1.0
) -> RunSettings:
    """A run of four sites, the largest of 400 records, that shares its noise."""
    settings = run_settings(sizes=SIZES, minimum=minimum, profile="precise", update_bound=bound)
    return replace(
        settings,
        training=Training(steps_per_round=1, sample_rate=rate, learning_rate=2.0),
        privacy=Privacy(max_grad_norm=0.5, noise_multiplier=sigma, noise="shared", colluding_sites=colluding),
        encryption=replace(settings.encryption, collusion_resistant=True),
    )


def shared(**options: float) -> Manifest:
    return make_manifest(shared_settings(**options))[0]  # type: ignore[arg-type]


# --- How much each site adds -----------------------------------------------------------------------------------------


def test_a_share_follows_the_formulae() -> None:
    manifest, parameters, length = shared(), 100, 3.0
    levels = manifest.packing.levels
    assert levels == ((1 << 24) - 2) // 4 + 1
    norm = 0.5 * 2.0 / 400 / (2 * 1.0 / (levels - 1))  # C·lr/(q·n), in levels
    rounding = 10 + 2.0**-24 * (levels - 1) * (length / 1.0 + 4 * 10)
    share = share_of(manifest, parameters, length)
    assert share.sensitivity == pytest.approx(norm + rounding, rel=1e-12)
    assert share.variance == math.ceil((SIGMA * share.sensitivity) ** 2 / 2)
    model = replace(MODEL, vector=np.full(parameters, 0.3, np.float32))
    assert share_for(manifest, model).sensitivity == pytest.approx(share.sensitivity, rel=1e-7)


@few
@given(
    honest=st.integers(2, 3),
    colluding=st.integers(0, 1),
    sigma=st.floats(1.0, 6.0),
    rate=st.floats(0.3, 1.0),
    parameters=st.integers(1, 500),
)
def test_honest_sites_alone_make_all_of_the_noise(
    honest: int, colluding: int, sigma: float, rate: float, parameters: int
) -> None:
    minimum = honest + colluding
    manifest = shared(minimum=minimum, colluding=colluding, sigma=sigma, rate=rate, bound=3.0)
    share = share_of(manifest, parameters, 1.0)
    assert manifest.settings.honest_sites == minimum - colluding
    total = honest * share.variance
    assert (sigma * share.sensitivity) ** 2 <= total <= (sigma * share.sensitivity) ** 2 + minimum
    assert share.variance >= 64
    assert 4 * reach(share.variance) < manifest.packing.levels


def test_one_colluding_site_is_the_default() -> None:
    assert [shared_settings(colluding=colluding).honest_sites for colluding in (None, 0, 1)] == [2, 3, 2]
    assert run_settings().honest_sites == 1


def test_few_records_and_a_low_rate_are_divided_by_one_at_least_as_in_training() -> None:
    manifest = shared(rate=1 / 800, bound=4e2)
    norm = 0.5 * 2.0 / 1.0 / manifest.packing.unit(1.0)
    assert share_of(manifest, 1, 0.0).sensitivity == pytest.approx(norm, rel=1e-3)


@pytest.mark.parametrize("sites", [2, 10, 100_000])
def test_the_difference_of_a_sum_of_discrete_gaussians_needs_no_charge(sites: int) -> None:
    """Proposition 14 of the paper, as a logarithm: d·τ at the least share that is allowed, 8 levels."""
    k = np.arange(1, sites)
    exponents = -2 * math.pi**2 * 64 * k / (k + 1)
    tau = math.log10(10) + (exponents.max() + math.log(np.exp(exponents - exponents.max()).sum())) / math.log(10)
    assert tau + math.log10(1e9) < -260


# --- Which runs cannot ------------------------------------------------------------------------------------------------


def test_a_model_may_have_the_stated_size_and_no_more() -> None:
    manifest = shared()
    most = most_parameters(manifest)
    assert most > 1_000
    share_of(manifest, most, 0.0)
    with pytest.raises(
        ConfigError, match=f"levels are too coarse: for a model of size {most + 1}, rounding would take"
    ):
        share_of(manifest, most + 1, 0.0)
    with pytest.raises(ConfigError, match="levels are too coarse"):  # float32 alone
        share_of(manifest, 1, 1e4)


def test_noise_that_does_not_fit_the_range_is_refused_with_one_that_it_fits() -> None:
    with pytest.raises(ConfigError, match=r"more than half of the range; set update_bound to 0\.\d+ or more") as caught:
        shared(bound=0.1)
    wanted = float(str(caught.value).partition("update_bound to ")[2].split()[0])
    share_of(shared(bound=wanted * 1.05), 1, 0.0)
    with pytest.raises(ConfigError, match="half of the range"):
        shared(bound=wanted * 0.9)


def test_a_share_of_few_levels_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"share of the noise would have a deviation of \d\.\d levels; it needs 8; use profile"
    ):
        shared(bound=100.0, sigma=0.05)


# --- Against whom -----------------------------------------------------------------------------------------------------


def test_epsilon_grows_with_colluding_sites_and_is_calibrated_to_the_declared_number() -> None:
    settings = shared_settings(minimum=4)
    settings = replace(settings, privacy=replace(settings.privacy, noise_multiplier=None, epsilon=2.0))
    manifest = make_manifest(settings)[0]
    seen = observers(manifest, DELTA)
    assert [observer.colluding_sites for observer in seen] == [0, 1, 2, 3]
    assert [observer.declared for observer in seen] == [False, True, False, False]
    assert seen[1].epsilon == epsilon([manifest.run_cost], DELTA) <= 2.0
    for observer in seen:
        sigma = manifest.noise_multiplier * math.sqrt((4 - observer.colluding_sites) / 3)
        assert observer.noise_multiplier == pytest.approx(sigma)
        cost = Mechanism(observer.noise_multiplier, 1.0, 10, discrete=True)
        assert observer.epsilon == epsilon([cost], DELTA)
    assert sorted(observer.epsilon for observer in seen) == [observer.epsilon for observer in seen]
    assert seen[0].who == "sees the sums alone"
    assert seen[3].who == "and all other sites: one site's own update"


def test_local_noise_depends_on_no_other_site() -> None:
    manifest = make_manifest()[0]
    cost = epsilon([manifest.run_cost], DELTA)
    assert {observer.epsilon for observer in observers(manifest, DELTA)} == {cost}
    assert not manifest.run_cost.discrete


def test_of_many_sites_not_every_coalition_is_listed() -> None:
    sizes = {f"s{number}": 400 for number in range(100)}
    settings = replace(shared_settings(), cohort=replace(shared_settings().cohort, sizes=sizes, minimum=80))
    seen = observers(make_manifest(settings)[0], DELTA)
    assert [observer.colluding_sites for observer in seen] == [0, 1, 2, 40, 78, 79]
    assert all(isinstance(observer, Observer) for observer in seen)


def test_the_ledger_is_charged_for_discrete_noise() -> None:
    manifest = shared()
    assert manifest.round_cost == Mechanism(SIGMA, 1.0, 1, discrete=True)
    assert manifest.run_cost == Mechanism(SIGMA, 1.0, 10, discrete=True)
    assert (manifest.update_noise, make_manifest()[0].update_noise) == (0.0, 1.0)


# --- Packing ----------------------------------------------------------------------------------------------------------

PACKING = Packing.of("precise", cohort=4, update_bound=1.0, max_weight=1.0)
VARIANCE = 10_000


def levels(
    vector: NDArray[np.floating], weight: float = 1.0, *, seed: int = 1, packing: Packing = PACKING
) -> NDArray[np.float64]:
    """Pack an update with a share of noise; return its levels."""
    update = Update(np.array(vector, np.float32))
    packed = pack_with_share(update, CHARGE, weight, packing, Randomness.seeded(seed, "share"), VARIANCE)
    mean = unpack(packed.blocks, vector.size, [weight], packing).vector.astype(np.float64)
    assert not update.vector.any(), "something without noise was left"
    return mean / packing.unit(weight) + (packing.levels - 1) / 2


@few
@given(seed=st.integers(0, 1 << 32), scale=st.sampled_from([1e-7, 1e-5, 1e-2, 10.0]), weight=st.floats(0.01, 1.0))
def test_levels_of_neighbours_are_apart_by_their_distance_and_one_level_a_parameter(
    seed: int, scale: float, weight: float
) -> None:
    """The seeds give both the same dither and the same noise: what differs is what noise has to hide."""
    generator = np.random.default_rng(seed)
    one = generator.normal(size=300).astype(np.float32)
    other = (one + scale * generator.normal(size=300)).astype(np.float32)
    apart = np.abs(levels(one, weight, seed=seed) - levels(other, weight, seed=seed))
    moved = np.abs(one.astype(np.float64) - other) / PACKING.unit(weight)
    assert (apart < moved + 2).all()  # one of them is float32's, in which `unpack` answers
    assert np.linalg.norm(apart) < np.linalg.norm(moved) + 2 * math.sqrt(300)


@pytest.mark.parametrize("profile", ["compact", "precise", "dense"])
def test_levels_are_not_clipped_after_the_noise(profile: str) -> None:
    packing = Packing.of(profile, cohort=1, update_bound=1.0, max_weight=1.0)  # type: ignore[arg-type]
    variance, size = ((packing.levels - 1) // 50) ** 2, 60_000
    for sign in (-1.0, 1.0):
        update = Update(np.full(size, sign * 3e38, np.float32))
        packed = pack_with_share(update, CHARGE, 1.0, packing, Randomness.seeded(2, profile), variance)
        noise = unpack(packed.blocks, size, [1.0], packing).vector / packing.unit(1.0)
        noise -= sign * ((packing.levels - 1) / 2 - reach(variance))
        # Were it cut at the end of the range, one half would be missing.
        assert abs(noise.mean()) < 5 * math.sqrt(variance / size) + 1
        assert abs(noise.var() / variance - 1) < 5 * math.sqrt(2 / size)


def test_only_the_sum_has_all_of_the_noise() -> None:
    size, weights = 50_000, [1.0, 0.5, 0.25]
    streams = [
        joined(pack_with_share(Update(np.zeros(size, np.float32)), CHARGE, weight, PACKING, Randomness.fresh(),
                               VARIANCE).blocks) for weight in weights
    ]  # fmt: skip
    for weight, stream in zip(weights, streams, strict=True):
        alone = unpack(blocks_of(stream), size, [weight], PACKING).vector / PACKING.unit(weight)
        assert abs(alone.var() / VARIANCE - 1) < 5 * math.sqrt(2 / size)
    total = unpack(blocks_of(sum(streams)), size, weights, PACKING).vector * sum(weights) / PACKING.unit(1.0)  # type: ignore[arg-type]
    assert abs(total.var() / (3 * VARIANCE) - 1) < 5 * math.sqrt(2 / size)


@pytest.mark.parametrize("weight", [0.0, 1.1, math.nan])
def test_a_weight_that_the_manifest_does_not_fix_is_refused(weight: float) -> None:
    with pytest.raises(MalformedError, match="the range that the manifest fixes"):
        levels(np.zeros(3), weight)
