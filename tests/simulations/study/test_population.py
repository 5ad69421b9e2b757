"""Populations: who begins a round, who drops out, who is too late, in every engine."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cloister import CloisterError, simulate
from simulations.study.participation import Everybody, Fraction
from simulations.study.population import Population, read_seconds
from tests.simulations.study.test_simulate import INPUTS, PLAIN, TARGETS, Sign


def test_dropouts_and_stragglers_have_their_probability() -> None:
    population = Population(20_000, Fraction(0.5), 7, 0.2, read_seconds("exponential:30"), 60.0)
    turnout = population.turnout(3)
    assert turnout.dropped == pytest.approx(2_000, rel=0.1)
    assert len(turnout.late) == pytest.approx(8_000 * np.exp(-2), rel=0.1)
    assert len(turnout.delivered) + len(turnout.late) + turnout.dropped == 10_000
    assert (np.diff(turnout.charged) > 0).all()
    again, other = population.turnout(3), population.turnout(4)
    assert (again.delivered == turnout.delivered).all()
    assert not np.array_equal(other.delivered, turnout.delivered)


@pytest.mark.parametrize(
    ("text", "median"),
    [
        ("lognormal:30:0.5", 30),
        ("exponential:30", 30 * np.log(2)),
        ("uniform:10:60", 35),
        ("gamma:30:1", 30 * np.log(2)),
    ],
)
def test_seconds_have_their_distribution(text: str, median: float) -> None:
    seconds = read_seconds(text)
    assert seconds is not None
    assert np.median(seconds.draw(20_000, np.random.default_rng(1))) == pytest.approx(median, rel=0.05)
    assert str(seconds) == text


@pytest.mark.parametrize(
    "text", ["", "normal:3", "lognormal:30", "exponential:x", "uniform:60:10", "exponential:-1", 5]
)
def test_other_distributions_are_refused(text: object) -> None:
    with pytest.raises(CloisterError, match="is no distribution"):
        read_seconds(text)


@pytest.mark.parametrize(("dropout", "deadline"), [(1.0, 1.0), (-0.1, 1.0), (0.1, 0.0), (0.1, float("nan"))])
def test_impossible_numbers_are_refused(dropout: float, deadline: float) -> None:
    with pytest.raises(CloisterError):
        Population(3, Everybody(), 0, dropout, None, deadline)


def test_every_engine_plays_the_same_population() -> None:
    options: dict[str, Any] = {
        "sites": 6, "participation": 0.8, "dropout": 0.15, "site_seconds": "lognormal:30:0.5", "deadline": 40.0,
        "processes": 2, "seed": 3,
    }  # fmt: skip
    results = [
        simulate(Sign, (INPUTS, TARGETS), PLAIN, engine=engine, **options)
        for engine in ("vectorised", "inline", "processes")
    ]
    rows = [[(row["sites"], row["released"], row["problems"]) for row in result.rows] for result in results]
    assert rows[0] == rows[1] == rows[2]
    assert any("too late" in problems for _, _, problems in rows[0])
    assert results[1].digest == results[2].digest
    for name, values in results[0].model.state_dict().items():
        assert np.allclose(values, results[1].model.state_dict()[name], atol=1e-4)


def test_sites_that_are_late_have_spent_their_privacy() -> None:
    run = {"rounds": 4}
    late = simulate(
        Sign, (INPUTS, TARGETS), run, sites=8, engine="vectorised", site_seconds="uniform:10:20", deadline=11.5
    )
    unreleased = [row["problems"] for row in late.rows if not row["released"]]
    assert 0 < len(unreleased) < 4
    assert all("fewer than the minimum" in problems for problems in unreleased)
    assert late.epsilon == pytest.approx(3.0, rel=0.02)
