"""Exact metrics are those that scikit-learn computes; concordance is counted pair by pair."""

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn import metrics
from sklearn.calibration import calibration_curve

from privacy.analytics.exact import exact
from privacy.analytics.scores import CONFIDENCE_BINS, Prediction
from privacy.errors import DataError
from tests.privacy.consortium import few

CLASSES = Prediction("classes")
ALL = ("accuracy", "auc", "average_precision", "f1", "precision", "recall", "balanced_accuracy", "brier", "confusion")

ZERO: dict[str, Any] = {"zero_division": 0}

Numbers = NDArray[np.float64]


def binary(scores: list[float]) -> Numbers:
    """Probabilities of both classes."""
    return np.stack([1 - np.array(scores), np.array(scores)], axis=1)


@st.composite
def records(draw: st.DrawFn, classes: int) -> tuple[Numbers, Numbers]:
    """Probabilities and labels, often tied, of which each class occurs."""
    n = draw(st.integers(classes, 40))
    labels = [*range(classes), *draw(st.lists(st.integers(0, classes - 1), min_size=n - classes, max_size=n - classes))]
    odds = draw(st.lists(st.integers(1, 9), min_size=n * classes, max_size=n * classes))
    scores = np.array(odds, np.float64).reshape(n, classes)
    return scores / scores.sum(axis=1, keepdims=True), np.array(labels, np.float64)


@few
@given(records(2))
def test_two_classes(given_: tuple[Numbers, Numbers]) -> None:
    scores, labels = given_
    figures = exact(CLASSES, ALL, scores, labels)
    score, predicted = scores[:, 1], scores[:, 1] >= 0.5
    wanted: dict[str, Any] = {
        "accuracy": metrics.accuracy_score(labels, predicted),
        "auc": metrics.roc_auc_score(labels, score),
        "average_precision": metrics.average_precision_score(labels, score),
        "f1": metrics.f1_score(labels, predicted),
        "recall": metrics.recall_score(labels, predicted),
        "balanced_accuracy": metrics.balanced_accuracy_score(labels, predicted),
        "brier": metrics.brier_score_loss(labels, score),
    }
    assert {name: figures[name]["value"] for name in wanted} == pytest.approx(wanted, abs=1e-5)
    if predicted.any():
        assert figures["precision"]["value"] == pytest.approx(metrics.precision_score(labels, predicted), abs=1e-5)
    else:
        assert figures["precision"] == {"value": None, "reason": "no record is predicted to have class 1"}
    assert figures["confusion"]["counts"] == metrics.confusion_matrix(labels, predicted, labels=[0, 1]).tolist()


@few
@given(records(4))
def test_more_classes(given_: tuple[Numbers, Numbers]) -> None:
    scores, labels = given_
    figures = exact(Prediction("classes", 4), ALL, scores, labels)
    predicted = scores.argmax(axis=1)
    truth = np.eye(4)[labels.astype(int)]
    wanted: dict[str, Any] = {
        "accuracy": metrics.accuracy_score(labels, predicted),
        "auc": metrics.roc_auc_score(labels, scores, multi_class="ovr"),
        "average_precision": metrics.average_precision_score(truth, scores),
        "f1": metrics.f1_score(labels, predicted, average="macro", **ZERO),
        "precision": metrics.precision_score(labels, predicted, average="macro", **ZERO),
        "recall": metrics.recall_score(labels, predicted, average="macro", **ZERO),
        "balanced_accuracy": metrics.balanced_accuracy_score(labels, predicted),
        "brier": metrics.brier_score_loss(labels, scores, labels=range(4)),
    }
    assert {name: figures[name]["value"] for name in wanted} == pytest.approx(wanted, abs=1e-5)
    assert figures["confusion"]["counts"] == metrics.confusion_matrix(labels, predicted, labels=range(4)).tolist()


@few
@given(st.integers(0, 1 << 32), st.integers(1, 60))
def test_calibration(seed: int, count: int) -> None:
    random = np.random.default_rng(seed)
    scores, labels = binary(random.random(count).tolist()), random.integers(0, 2, count).astype(np.float64)
    calibration = exact(CLASSES, ("ece",), scores, labels)["ece"]
    true, confidence = calibration_curve(labels, scores[:, 1], n_bins=CONFIDENCE_BINS)
    table = [row for row in calibration["table"] if row["count"]]
    assert [row["observed"] for row in table] == pytest.approx(true.tolist(), abs=1e-5)
    assert [row["confidence"] for row in table] == pytest.approx(confidence.tolist(), abs=1e-5)
    gaps = [row["count"] * abs(row["observed"] - row["confidence"]) for row in table]
    assert calibration["value"] == pytest.approx(sum(gaps) / count, abs=1e-4)


@few
@given(st.lists(st.tuples(st.floats(-10, 10), st.floats(-10, 10)), min_size=2, max_size=30))
def test_values(pairs: list[tuple[float, float]]) -> None:
    predicted, true = np.array(pairs).T
    assume(np.var(true) > 1e-6)
    figures = exact(Prediction("values", 0), ("mae", "rmse", "r2"), predicted, true)
    wanted = {
        "mae": metrics.mean_absolute_error(true, predicted),
        "rmse": metrics.root_mean_squared_error(true, predicted),
        "r2": metrics.r2_score(true, predicted),
    }
    assert {name: figure["value"] for name, figure in figures.items()} == pytest.approx(wanted, rel=1e-4, abs=1e-4)


@few
@given(st.lists(st.tuples(st.integers(0, 5), st.booleans(), st.integers(0, 8)), min_size=2, max_size=30))
def test_concordance(rows: list[tuple[int, bool, int]]) -> None:
    times, events, risks = (np.array(column, np.float64) for column in zip(*rows, strict=True))
    figure = exact(Prediction("times", 6), ("c_index",), risks / 8, np.stack([times, events], axis=1))["c_index"]
    comparable = [
        (one, other)
        for one in range(len(rows))
        for other in range(len(rows))
        if events[one] and (times[one] < times[other] or (times[one] == times[other] and not events[other]))
    ]
    if not comparable:
        assert figure == {"value": None, "reason": "no two held-out records are comparable"}
        return
    won = sum(float(np.sign(risks[one] - risks[other])) / 2 + 0.5 for one, other in comparable)
    assert figure["value"] == pytest.approx(won / len(comparable), abs=1e-5)


def test_a_curve_of_a_single_class_is_undefined() -> None:
    figures = exact(CLASSES, ALL, binary([0.2, 0.7, 0.9]), np.zeros(3))
    for name in ("auc", "average_precision"):
        assert figures[name] == {"value": None, "reason": "all held-out records have class 0"}
    assert figures["recall"] == {"value": None, "reason": "no record has class 1"}
    assert figures["accuracy"]["value"] == pytest.approx(1 / 3, abs=1e-5)


def test_constant_scores_tell_nothing() -> None:
    figures = exact(CLASSES, ALL, binary([0.3] * 4), np.array([0.0, 1.0, 1.0, 1.0]))
    assert figures["auc"]["value"] == 0.5
    assert figures["average_precision"]["value"] == 0.75
    assert figures["f1"]["value"] == 0.0
    assert figures["precision"]["value"] is None


def test_a_class_that_a_site_lacks_is_left_out() -> None:
    scores = np.array([[0.6, 0.3, 0.1], [0.2, 0.7, 0.1], [0.5, 0.4, 0.1], [0.3, 0.4, 0.3]])
    labels = np.array([0.0, 1.0, 0.0, 1.0])
    figures = exact(Prediction("classes", 3), ("auc", "balanced_accuracy"), scores, labels)
    areas = [metrics.roc_auc_score(labels == one, scores[:, one]) for one in (0, 1)]
    assert figures["auc"]["value"] == pytest.approx(np.mean(areas))
    assert figures["balanced_accuracy"]["value"] == 1.0


def test_a_score_that_is_no_number_is_refused() -> None:
    scores = binary([0.2, float("nan"), 0.9])
    with pytest.raises(DataError, match="score for held-out record 2 is not finite, so auc, f1 cannot be computed"):
        exact(CLASSES, ("auc", "f1"), scores, np.array([0.0, 1.0, 1.0]))


def test_equal_targets_have_no_r_squared() -> None:
    figures = exact(Prediction("values", 0), ("r2",), np.array([1.0, 2.0]), np.array([3.0, 3.0]))
    assert figures["r2"] == {"value": None, "reason": "all held-out records have the same target"}


@pytest.mark.parametrize("odd", [2.0, -1.0, 0.5, float("nan")])
def test_a_label_that_is_no_class_is_refused(odd: float) -> None:
    with pytest.raises(DataError, match="label of held-out record 3 is not a class from 0 to 1, so f1 cannot"):
        exact(CLASSES, ("f1",), binary([0.2, 0.4, 0.9]), np.array([0.0, 1.0, odd]))
