"""Privacy whose unit is a site: its noise, its accounting, and what it is refused with."""

from __future__ import annotations

import math
import sys
import tomllib
from typing import TYPE_CHECKING, Any

import dp_accounting
import numpy as np
import pytest
import torch
from dp_accounting.pld import PLDAccountant

from cloister import CloisterError, SitePrivacy, simulate
from simulations.study.participation import Everybody, Poisson
from simulations.study.site_privacy import SiteNoise, strategy_coefficients
from simulations.vectorised.clipped_sum import ClippedSum
from tests.simulations.study.test_simulate import INPUTS, PLAIN, TARGETS, Sign

if TYPE_CHECKING:
    from pathlib import Path


def _noise(**changed: Any) -> SiteNoise:  # noqa: ANN401 - what it is made of
    settings = SitePrivacy(0.5, noise_multiplier=2.0)
    given: dict[str, Any] = {"probability": 0.1, "sites": 1000, "coefficients": (1.0,)} | changed
    return SiteNoise(settings, 2.0, 1e-4, **given)


@pytest.mark.parametrize(("bands", "rounds"), [(1, 40), (4, 40), (4, 42)])
def test_epsilon_is_that_of_dp_accounting(bands: int, rounds: int) -> None:
    noise = _noise(coefficients=(1.0,) + (0.0,) * (bands - 1))
    event = dp_accounting.PoissonSampledDpEvent(0.1 * bands, dp_accounting.GaussianDpEvent(2.0))
    accountant = PLDAccountant(dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE)
    accountant.compose(event, math.ceil(rounds / bands))
    assert noise.spent(rounds) == pytest.approx(accountant.get_epsilon(1e-4), rel=0.01)


def test_sites_are_sampled_by_themselves_and_from_the_round_s_group() -> None:
    noise = _noise(coefficients=(0.8, 0.6))
    counts = np.zeros(1000, int)
    for number in range(1, 201):
        sampled = noise.sampled(number)
        assert (sampled % 2 == (number - 1) % 2).all()
        counts[sampled] += 1
    assert counts.mean() == pytest.approx(20, rel=0.05)
    assert counts.var() == pytest.approx(100 * 0.2 * 0.8, rel=0.2)


def test_noise_has_the_deviation_and_correlation_that_the_strategy_says() -> None:
    coefficients = np.array([0.8, 0.5, math.sqrt(1 - 0.8**2 - 0.5**2)])
    noise, size, rounds = _noise(coefficients=tuple(coefficients)), 4000, 6
    drawn = np.stack([noise.mean(np.zeros(size)) * 100 for _ in range(rounds)])  # times the expected number of sites
    strategy = np.array(
        [[coefficients[t - s] if 0 <= t - s < 3 else 0.0 for s in range(rounds)] for t in range(rounds)]
    )
    fresh = strategy @ drawn
    assert fresh.std(1) == pytest.approx(np.full(rounds, 2.0 * 0.5), rel=0.05)
    assert np.abs(np.corrcoef(fresh) - np.eye(rounds)).max() < 0.08


def test_sums_are_of_clipped_updates() -> None:
    updates = torch.tensor([[3.0, 4.0], [0.3, 0.0], [torch.inf, 0.0], [torch.nan, 1.0]])
    total = ClippedSum(2, 1.0)
    total.add(updates.clone())
    np.testing.assert_allclose(total.total, [0.6 + 0.3, 0.8], rtol=1e-6)
    draw = torch.randn(50, 7) * 100
    alone = ClippedSum(7, 0.25)
    for row in draw:
        before = alone.total.copy()
        alone.add(row[None])
        assert np.linalg.norm(alone.total - before) <= 0.25 * (1 + 1e-12)


def test_a_simulation_says_what_a_site_spends_beside_what_a_person_does(tmp_path: Path) -> None:
    result = simulate(
        Sign, (INPUTS, TARGETS), PLAIN | {"rounds": 6, "seed": 1}, sites=60, participation="poisson:0.3",
        site_privacy=SitePrivacy(0.5, epsilon=4.0), dropout=0.1,
    )  # fmt: skip
    assert result.engine == "vectorised"
    assert result.site_epsilon == pytest.approx(4.0, rel=0.01)
    assert [row["site_epsilon"] for row in result.rows] == sorted(row["site_epsilon"] for row in result.rows)
    assert result.summary()["site_delta"] == pytest.approx(60**-1.1)
    assert math.isinf(result.epsilon)  # of a person: sites train without noise
    assert "site ε" in repr(result)
    assert "site_epsilon" not in result.metrics
    written = result.to_run(tmp_path / "run.toml").read_text(encoding="utf-8")
    assert "Site privacy is not part of a run" in written
    assert "site_privacy" not in tomllib.loads(written)
    none = simulate(
        Sign, (INPUTS, TARGETS), PLAIN, sites=60, participation="poisson:0.0001",
        site_privacy=SitePrivacy(0.5, noise_multiplier=1.0),
    )  # fmt: skip
    assert [row["released"] for row in none.rows] == [True] * 3  # that nobody was sampled is a secret, too


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "sampled independently"),
        ({"participation": 0.5}, "sampled independently"),
        ({"participation": "poisson:0.5", "engine": "inline"}, "trusted party"),
        ({"participation": "poisson:0.5", "run": PLAIN | {"strategy": {"name": "scaffold"}}}, "choose fedavg"),
        ({"participation": "poisson:0.5", "site_privacy": SitePrivacy(1.0, 3.0, bands=3)}, "fewer bands"),
    ],
)
def test_what_would_not_hold_is_refused(options: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"site_privacy": SitePrivacy(1.0, 3.0), "sites": 8, "run": PLAIN} | options
    with pytest.raises(CloisterError, match=message):
        simulate(Sign, (INPUTS, TARGETS), given.pop("run"), **given)


@pytest.mark.parametrize(
    "values",
    [
        {"max_update_norm": 1.0},
        {"max_update_norm": 1.0, "epsilon": 1.0, "noise_multiplier": 1.0},
        {"max_update_norm": 0.0, "epsilon": 1.0},
        {"max_update_norm": 1.0, "epsilon": -1.0},
        {"max_update_norm": 1.0, "epsilon": math.inf},
        {"max_update_norm": 1.0, "epsilon": 1.0, "delta": 1.0},
        {"max_update_norm": 1.0, "epsilon": 1.0, "bands": 0},
        {"max_update_norm": 1.0, "epsilon": 1.0, "bands": 2.5},
    ],
)
def test_values_out_of_range_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(CloisterError, match="site privacy"):
        SitePrivacy(**values)


@pytest.mark.parametrize(("delta", "sites"), [(0.5, 200), (0.005, 200), (None, 1)])
def test_a_delta_that_would_let_a_site_be_published_is_refused(delta: float | None, sites: int) -> None:
    with pytest.raises(CloisterError, match="below one over the number of sites"):
        SitePrivacy(1.0, 3.0, delta=delta).planned(sites, 10, Poisson(0.1))


def test_bands_come_from_jax_privacy() -> None:
    toeplitz = pytest.importorskip("jax_privacy.matrix_factorization.toeplitz")
    coefficients = strategy_coefficients(32, 4)
    assert np.linalg.norm(coefficients) == pytest.approx(1.0, abs=1e-12)
    assert float(toeplitz.minsep_sensitivity_squared(np.array(coefficients), min_sep=4, n=32)) == pytest.approx(8, 1e-4)
    noise = SitePrivacy(1.0, 3.0, bands=4).planned(500, 32, Poisson(0.05))
    plain = SitePrivacy(1.0, 3.0).planned(500, 32, Poisson(0.05))
    assert noise.spent(32) <= 3.0
    errors = [
        float(toeplitz.per_query_error(strategy_coef=np.array(each.coefficients), n=32).mean())
        for each in (noise, plain)
    ]
    assert errors[0] < errors[1]


def test_without_jax_privacy_bands_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jax_privacy.matrix_factorization", None)
    with pytest.raises(CloisterError, match="pip install"):
        SitePrivacy(1.0, 3.0, bands=2).planned(100, 10, Poisson(0.1))
    with pytest.raises(CloisterError, match="sampled independently"):
        SitePrivacy(1.0, 3.0).planned(100, 10, Everybody())
