"""Figures of subgroups are those of each subgroup's records alone, and errors are those of the noise."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from privacy.analytics.exact import exact
from privacy.analytics.scores import Form, Prediction
from privacy.analytics.subgroups import GAPS, RATES, BySubgroup, gap, rates
from tests.second import scores as second

TWO = Prediction("classes", bins=16)
SEX = BySubgroup("sex", ("female", "male", "other"), Form(TWO, ("auc", "brier", "confusion")), ("auc", "brier"))
COUNT = 3000


def made_up(seed: int = 3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Places, probabilities and classes of records whose scores are worse in the second subgroup."""
    rng = np.random.default_rng(seed)
    places, labels = rng.integers(0, 3, COUNT), rng.integers(0, 2, COUNT)
    score = 1 / (1 + np.exp(-((2.0 - places) * (labels - 0.5) + 0.3 * places + rng.normal(size=COUNT))))
    return places, np.stack([1 - score, score], axis=1), labels.astype(np.float64)


def by_hand(places: np.ndarray, scores: np.ndarray, labels: np.ndarray, place: int) -> dict[str, float]:
    """A subgroup's rates, as they are defined."""
    chosen, true = scores[places == place, 1] >= 0.5, labels[places == place] == 1
    return {
        "selection_rate": chosen.mean(), "true_positive_rate": chosen[true].mean(),
        "false_positive_rate": chosen[~true].mean(),
    }  # fmt: skip


def test_without_noise_each_subgroup_has_the_figures_of_its_own_records() -> None:
    records = made_up()
    noiseless, alone = SEX.read(SEX.total(*records), 0.0), SEX.exact(*records)
    for place, value in enumerate(SEX.values):
        noisy, true, own = noiseless["values"][value], alone["values"][value], by_hand(*records, place)
        assert noisy["count"] == true["count"] == np.count_nonzero(records[0] == place)
        for name in RATES:
            assert noisy[name]["value"] == true[name]["value"] == pytest.approx(own[name], abs=1e-6)
        kept = records[0] == place
        assert true["auc"] == exact(TWO, ("auc",), records[1][kept], records[2][kept])["auc"]
        assert abs(noisy["auc"]["value"] - true["auc"]["value"]) <= noisy["auc"]["bins"]
        assert noisy["brier"]["value"] == pytest.approx(true["brier"]["value"], abs=1e-5)
        assert "confusion" not in noisy
    for name, rate in GAPS.items():
        rates_ = [by_hand(*records, place)[rate] for place in range(3)]
        assert noiseless["gaps"][name]["value"] == pytest.approx(max(rates_) - min(rates_), abs=1e-5)
        assert noiseless["gaps"][name]["highest"] == SEX.values[int(np.argmax(rates_))]
        assert alone["gaps"][name]["lowest"] == SEX.values[int(np.argmin(rates_))]


@pytest.mark.parametrize(
    "it",
    [TWO, Prediction("classes", 3), Prediction("values", 0, low=-1.0, high=2.0), Prediction("times", 4)],
    ids=lambda it: f"{it.family} {it.classes}",
)
def test_one_record_adds_at_most_one_to_each_block_and_only_to_its_own_subgroup(it: Prediction) -> None:
    names = {
        "classes": ("auc", "ece", "brier", "accuracy", "confusion"), "values": ("rmse", "mae", "r2"),
        "times": ("c_index",),
    }[it.family]  # fmt: skip
    by, rng = BySubgroup("site", ("a", "b"), Form(replace(it, bins=8), names), names), np.random.default_rng(1)
    sizes = [int(np.prod(shape)) for _, shape in by.shapes]
    assert by.size == sum(sizes)
    for place in (0, 1, -1, 2):
        scores = rng.dirichlet(np.ones(it.classes), 1) if it.family == "classes" else rng.uniform(-9, 9, 1)
        labels = np.array([[2.0, 1.0]]) if it.family == "times" else rng.integers(0, 3, 1).astype(np.float64)
        total = by.total(np.array([place]), scores, labels)
        for block, (_, shape) in zip(np.split(total, np.cumsum(sizes)[:-1]), by.shapes, strict=True):
            of_values = block.reshape(shape[0], -1)
            assert np.linalg.norm(of_values) <= 1 + 1e-9
            assert not np.delete(of_values, place, axis=0).any() if place in {0, 1} else not of_values.any()
        assert total.any() == (place in {0, 1})


def test_the_blocks_are_those_that_the_protocol_describes() -> None:
    places, scores, labels = (part[:20] for part in made_up())
    named = second.by_subgroup("sex", SEX.values, ("auc", "brier"), "classes", 2, 0.5, 16, (0.0, 1.0))
    assert named == [[name, list(shape)] for name, shape in SEX.shapes]
    rows = []
    for place, score, label in zip(places.tolist(), scores.tolist(), labels.astype(int).tolist(), strict=True):
        rows.append(second.record_by_subgroup(named, place, score, label, 0.5, (0.0, 1.0)))
    assert SEX.total(places, scores, labels) == pytest.approx(np.sum(rows, axis=0), abs=1e-9)
    assert json.dumps(SEX.values) in named[0][0]


def test_errors_are_the_deviations_that_noise_makes() -> None:
    rng, sums, noise = np.random.default_rng(5), SEX.total(*made_up()), 8.0
    reads = [SEX.read(sums + rng.normal(0, noise, sums.size), noise) for _ in range(300)]
    for value in SEX.values:
        for name in (*RATES, "auc"):
            readings = np.array([read["values"][value][name]["value"] for read in reads])
            stated = np.mean([read["values"][value][name]["error"] for read in reads])
            assert np.std(readings) == pytest.approx(stated, rel=0.25), (value, name)
    name = "demographic_parity_difference"  # far apart, so that chance does not choose the two
    readings = np.array([read["gaps"][name]["value"] for read in reads])
    assert np.std(readings) == pytest.approx(np.mean([read["gaps"][name]["error"] for read in reads]), rel=0.25)


def test_what_noise_hides_is_undefined_and_makes_no_gap() -> None:
    few = np.array([[3.0, 2.0], [1.0, 2.0]])
    assert rates(few, 0.0)["true_positive_rate"] == {"value": pytest.approx(2 / 3)}
    hidden = rates(few, 4.0)
    assert hidden["true_positive_rate"]["reason"] == "noise hides whether there are any records of class 1"
    empty = rates(np.zeros((2, 2)), 0.0)["selection_rate"]
    assert empty == {"value": None, "reason": "no held-out records"}
    values = {"a": {"selection_rate": {"value": 0.5}}, "b": {"selection_rate": empty}}
    assert gap(values, "selection_rate") == {"value": None, "reason": "fewer than two subgroups have a selection rate"}
    places, scores, labels = (part[:30] for part in made_up())
    alone = SEX.exact(np.zeros_like(places), scores, labels)
    assert alone["values"]["male"]["auc"] == {"value": None, "reason": "no held-out records"}
    assert alone["gaps"]["demographic_parity_difference"]["value"] is None
