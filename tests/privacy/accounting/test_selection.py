"""The ε of choosing the best of several runs, against Google's dp-accounting."""

from __future__ import annotations

import math

import dp_accounting
import numpy as np
import pytest
from dp_accounting.rdp import RdpAccountant

from privacy.accounting import selection
from privacy.accounting.accounting import RDP, epsilon
from privacy.accounting.selection import Mechanism, _mean, _parameter, chosen

DELTA = 1e-5
ORDERS = np.arange(2.0, 129.0)  # at broken ones, theirs bounds sampled steps more loosely


def _theirs(run: list[Mechanism], mean: float, shape: float) -> float:
    accountant = RdpAccountant(ORDERS.tolist())
    parts: list[dp_accounting.DpEvent] = [
        dp_accounting.SelfComposedDpEvent(
            dp_accounting.PoissonSampledDpEvent(step.sample_rate, dp_accounting.GaussianDpEvent(step.noise_multiplier)),
            step.steps,
        )
        for step in run
    ]
    accountant.compose(dp_accounting.dp_event.RepeatAndSelectDpEvent(dp_accounting.ComposedDpEvent(parts), mean, shape))
    return float(accountant.get_epsilon(DELTA))


@pytest.mark.parametrize("shape", [math.inf, 1.0, 0.5, 0.0])
@pytest.mark.parametrize("mean", [1.5, 20.0, 200.0])
@pytest.mark.parametrize("run", [[Mechanism(2.0, 0.064, 782)], [Mechanism(1.0, 1.0, 1)],
                                 [Mechanism(4.0, 0.5, 30), Mechanism(1.5, 0.01, 100)]])  # fmt: skip
def test_the_bound_is_that_of_dp_accounting(
    run: list[Mechanism], mean: float, shape: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = chosen([run], DELTA, mean, shape), _theirs(run, mean, shape)
    assert 0.9 * theirs < ours < 1.0001 * theirs
    monkeypatch.setattr(selection, "_ORDERS", ORDERS)
    assert chosen([run], DELTA, mean, shape) == pytest.approx(theirs, rel=1e-6)


def test_a_choice_costs_more_than_one_run_and_less_than_all() -> None:
    run = [Mechanism(2.0, 0.064, 782)]
    costs = [chosen([run], DELTA, mean) for mean in (1.0, 5.0, 20.0, 100.0)]
    assert costs == sorted(costs)
    assert epsilon(run, DELTA, accountant=RDP) <= costs[0]
    assert costs[2] < epsilon(20 * run, DELTA)


def test_of_several_runs_the_dearest_counts() -> None:
    cheap, dear = [Mechanism(4.0, 0.1, 100)], [Mechanism(1.0, 0.1, 100)]
    assert chosen([cheap, dear], DELTA, 10) == chosen([dear], DELTA, 10)
    assert math.isinf(chosen([cheap, [Mechanism(0.0, 0.1, 100)]], DELTA, 10))
    discrete = chosen([[Mechanism(2.0, 0.1, 100, discrete=True)]], DELTA, 10)
    assert discrete >= 0.98 * chosen([[Mechanism(2.0, 0.1, 100)]], DELTA, 10)


@pytest.mark.parametrize("shape", [0.0, 0.3, 1.0, 4.0])
def test_the_parameter_is_that_of_the_mean(shape: float) -> None:
    for mean in (1.01, 3.0, 50.0, 1e4):
        assert _mean(_parameter(shape, mean), shape) == pytest.approx(mean, rel=1e-6)


@pytest.mark.parametrize(("delta", "mean", "shape"), [(0.0, 5.0, 1.0), (1e-5, 0.5, 1.0), (1e-5, 5.0, -1.0)])
def test_numbers_that_make_no_sense_are_refused(delta: float, mean: float, shape: float) -> None:
    with pytest.raises(ValueError, match="a choice needs"):
        chosen([[Mechanism(1.0, 0.1, 10)]], delta, mean, shape)
