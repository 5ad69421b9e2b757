"""A record moves the sum of scores by a known norm; what is read from a noisy sum is as far off as it states."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from privacy.analytics.exact import exact
from privacy.analytics.readings import read
from privacy.analytics.scores import FAMILIES, Form, Prediction, bin_of
from tests.privacy.consortium import few
from tests.second import scores as second

Numbers = NDArray[np.float64]

NAMES = {
    family: tuple(name for name, of in FAMILIES.items() if of == family) for family in ("classes", "values", "times")
}
PREDICTIONS = (
    Prediction("classes"),
    Prediction("classes", threshold=0.2, bins=8),
    Prediction("classes", classes=5, bins=16),
    Prediction("values", classes=0, low=-2.0, high=3.0),
    Prediction("times", classes=4, bins=6),
)
any_number = st.floats() | st.floats(0, 1) | st.sampled_from([0.0, 0.5, 1.0])


def draw_scores(it: Prediction, count: int, seed: int = 0, skill: float = 1.5) -> tuple[Numbers, Numbers]:
    """Scores and labels of a model with some skill."""
    random = np.random.default_rng(seed)
    if it.family == "values":
        true = random.normal(1.0, 0.8, count)
        return true + random.normal(0, 0.4, count), true
    if it.family == "times":
        risks = random.random(count)
        times = np.minimum(random.exponential(2 / (0.2 + risks)).astype(int), it.classes - 1)
        return risks, np.stack([times, random.random(count) < 0.6], axis=1).astype(np.float64)
    labels = random.integers(0, it.classes, count)
    logits = random.normal(size=(count, it.classes))
    logits[np.arange(count), labels] += skill
    odds = np.exp(logits)
    return odds / odds.sum(axis=1, keepdims=True), labels.astype(np.float64)


def summed(form: Form, scores: Numbers, labels: Numbers) -> Numbers:
    """The number of records, and the blocks."""
    return np.concatenate([[len(scores)], form.total(scores, labels)])


# --- What one record can change -------------------------------------------------------------------------------------


@few
@given(st.sampled_from(PREDICTIONS), st.data())
def test_a_record_adds_at_most_norm_one_to_each_block(it: Prediction, data: st.DataObject) -> None:
    names = data.draw(st.lists(st.sampled_from(NAMES[it.family]), min_size=1, unique=True))
    width = it.classes if it.family == "classes" else 1
    scores = np.array(data.draw(st.lists(any_number, min_size=width, max_size=width)))
    labels = np.array(data.draw(st.lists(any_number, min_size=2, max_size=2)))
    form = Form(it, tuple(names))
    total = form.total(
        scores[None] if it.family == "classes" else scores, labels[None] if it.family == "times" else labels[:1]
    )
    assert total.size == sum(math.prod(shape) for _, shape in form.shapes)
    parts = np.split(total, np.cumsum([math.prod(shape) for _, shape in form.shapes])[:-1])
    for (name, _), part in zip(form.shapes, parts, strict=True):
        assert np.linalg.norm(part) <= 1 + 1e-9, name


@pytest.mark.parametrize("it", PREDICTIONS, ids=str)
def test_the_sum_over_sites_is_the_sum_over_all_records(it: Prediction) -> None:
    form, (scores, labels) = Form(it, NAMES[it.family]), draw_scores(it, 50)
    parts = [form.total(scores[part], labels[part]) for part in (slice(0, 7), slice(7, 7), slice(7, 50))]
    assert sum(parts) == pytest.approx(form.total(scores, labels), abs=1e-9)


def test_every_public_constant_is_in_the_names() -> None:
    shapes = {Form(it, NAMES[it.family]).shapes for it in PREDICTIONS}
    assert len(shapes) == len(PREDICTIONS)
    assert dict(Form(Prediction("values", 0, low=-2.0, high=3.0), ("r2",)).shapes) == {
        "squared -2.0 3.0": (1,), "target -2.0 3.0": (1,), "target-squared -2.0 3.0": (1,)
    }  # fmt: skip


def test_bins_rise_with_scores_and_are_narrow_at_the_ends() -> None:
    scores = np.linspace(0, 1, 10_001)
    bins = bin_of(scores, 64)
    assert (np.diff(bins) >= 0).all()
    widths = np.bincount(bins, minlength=64)
    assert widths.min() > 0
    assert widths[0] < widths[32] / 20


# --- What is read -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("it", PREDICTIONS, ids=str)
def test_without_noise_metrics_are_exact_but_for_the_bins(it: Prediction) -> None:
    names, (scores, labels) = NAMES[it.family], draw_scores(it, 300)
    form = Form(it, names)
    if it.family == "values":
        scores, labels = (np.clip(values, it.low, it.high) for values in (scores, labels))
    total, wanted = read(form, summed(form, scores, labels), 1e-9), exact(it, names, scores, labels)
    for name in names:
        if name == "confusion":
            assert np.array(total[name]["counts"]) == pytest.approx(np.array(wanted[name]["counts"]), abs=1e-6)
            continue
        bins = total[name].get("bins", 0.0)
        assert abs(total[name]["value"] - wanted[name]["value"]) <= bins + 2e-5, name
        assert bins < 0.15, name


@pytest.mark.parametrize(("it", "noise"), [(it, noise) for it in PREDICTIONS for noise in (2.0, 8.0)], ids=str)
def test_noise_moves_metrics_by_about_the_error_that_is_stated(it: Prediction, noise: float) -> None:
    names, (scores, labels) = NAMES[it.family], draw_scores(it, 3200 if it.family == "values" else 800)
    form, random, trials = Form(it, names), np.random.default_rng(3), 40
    if it.family == "values":
        scores, labels = (np.clip(values, it.low, it.high) for values in (scores, labels))
    sums, wanted = summed(form, scores, labels), exact(it, names, scores, labels)
    ratios: dict[str, list[float]] = {}
    for _ in range(trials):
        for name, reading in read(form, sums + random.normal(0, noise, sums.size), noise).items():
            if reading.get("value") is not None:
                off = max(abs(reading["value"] - wanted[name]["value"]) - reading.get("bins", 0.0), 0.0)
                ratios.setdefault(name, []).append(off / reading["error"])
    assert set(ratios) == set(names) - {"confusion"}
    for name, ratio in ratios.items():
        assert len(ratio) == trials, name
        assert np.sqrt(np.mean(np.square(ratio))) < 1.6, name
        assert max(ratio) < 5, name
        if name not in {"ece", "auc", "average_precision", "c_index"}:  # whose bins, or bounds, are in the error
            assert np.sqrt(np.mean(np.square(ratio))) > 0.5, name


def undefined(reading: dict[str, Any]) -> bool:
    return reading["value"] is None


def test_a_class_that_noise_hides_makes_metrics_undefined_not_zero() -> None:
    it, names = PREDICTIONS[0], ("auc", "average_precision", "f1", "recall", "accuracy")
    scores, labels = draw_scores(it, 200)
    form = Form(it, names)
    for records, noise in ((labels == 0, 1e-9), (labels == 0, 4.0), (np.arange(200) < 8, 4.0)):
        total = read(form, summed(form, scores[records], labels[records]), noise)
        assert all(undefined(total[name]) for name in names[:-1])
        assert "noise hides whether any record has class" in total["auc"]["reason"]
        assert not undefined(total["accuracy"])


def test_a_class_without_records_is_left_out_of_the_mean() -> None:
    it, names = PREDICTIONS[2], ("auc", "recall", "balanced_accuracy")
    scores, labels = draw_scores(it, 400)
    scores, labels = scores[labels != 3], labels[labels != 3]
    form = Form(it, names)
    total, wanted = read(form, summed(form, scores, labels), 1e-9), exact(it, names, scores, labels)
    assert abs(total["auc"]["value"] - wanted["auc"]["value"]) <= total["auc"]["bins"] + 1e-5
    assert total["balanced_accuracy"]["value"] == wanted["balanced_accuracy"]["value"] == total["recall"]["value"]


def test_without_records_no_metric_is_claimed() -> None:
    for it in PREDICTIONS:
        form = Form(it, NAMES[it.family])
        size = 1 + sum(math.prod(shape) for _, shape in form.shapes)
        for sums in (np.zeros(size), np.random.default_rng(1).normal(0, 3.0, size), np.full(size, -5.0)):
            for name, reading in read(form, sums, 3.0).items():
                values = [reading.get("value") or 0.0, reading.get("error", 0.0), reading.get("bins", 0.0)]
                assert np.isfinite(values).all(), name
            assert undefined(read(form, np.zeros(size), 3.0)[NAMES[it.family][-1]]) or it.family == "classes"


def test_constant_scores_have_an_auc_of_a_half() -> None:
    it, form = PREDICTIONS[0], Form(PREDICTIONS[0], ("auc",))
    labels = np.arange(40.0) % 2
    reading = read(form, summed(form, np.full((40, 2), 0.5), labels), 1e-9)["auc"]
    assert reading["value"] == 0.5
    assert reading["bins"] == 0.5  # all of it is within one bin
    assert it.binary


def test_more_bins_tell_more_of_the_order() -> None:
    scores, labels = draw_scores(PREDICTIONS[0], 500)
    bounds = []
    for bins in (4, 16, 64, 256):
        form = Form(Prediction("classes", bins=bins), ("auc", "average_precision"))
        total = read(form, summed(form, scores, labels), 1e-9)
        bounds.append([total[name]["bins"] for name in form.names])
    assert (np.diff(bounds, axis=0) < 0).all()
    assert bounds[-1] == pytest.approx([0, 0], abs=0.004)


@pytest.mark.parametrize("it", PREDICTIONS, ids=str)
def test_the_blocks_are_those_that_the_protocol_describes(it: Prediction) -> None:
    it = replace(it, bins=7)
    scores, labels = draw_scores(it, 12)
    ends = (it.low, it.high)
    for names in (NAMES[it.family], NAMES[it.family][:1], NAMES[it.family][-1:], NAMES[it.family][2:3]):
        form = Form(it, names)
        named = second.layout(names, it.family, it.classes, it.threshold, it.bins, ends)
        assert named == [[name, list(shape)] for name, shape in form.shapes]
        rows = [
            [number for name, shape in named for number in second.record(name, shape, score, label, it.threshold, ends)]
            for score, label in zip(scores.tolist(), _labels(it, labels), strict=True)
        ]
        assert form.total(scores, labels) == pytest.approx(np.sum(rows, axis=0), abs=1e-9)


def _labels(it: Prediction, labels: Numbers) -> list[Any]:
    if it.family == "values":
        return list(labels.tolist())
    return [tuple(label) if it.family == "times" else label for label in labels.astype(int).tolist()]
