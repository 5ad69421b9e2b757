"""Formulas of metrics that are not means, on counts: AUC, average precision, F1, calibration, concordance, R².

The counts may be exact, with one cell for each distinct score, or noisy, with one cell for each bin: both use the same
formulas. Every function takes leading axes `...` and returns one value for each, NaN where a metric is not defined.
Cells are ordered by score, lowest first. A tie, that is one cell, counts half in AUC and concordance.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Numbers = NDArray[np.float64]


def auc(negative: Numbers, positive: Numbers) -> Numbers:
    """Return the probability that a positive scores higher than a negative.

    >>> auc(np.array([1.0, 1.0, 0.0]), np.array([0.0, 1.0, 1.0]))
    array(0.875)

    Args:
        negative: counts in each cell, `(..., k)`.
        positive: the same for the other class.
    """
    below = np.cumsum(negative, axis=-1) - negative / 2
    return ratio(np.sum(positive * below, axis=-1), np.sum(negative, axis=-1) * np.sum(positive, axis=-1))


def auc_bound(negative: Numbers, positive: Numbers) -> Numbers:
    """Return by how much the scores' order within the cells can change the AUC."""
    within = np.sum(np.maximum(negative, 0) * np.maximum(positive, 0), axis=-1)
    return ratio(within / 2, np.sum(negative, axis=-1) * np.sum(positive, axis=-1))


def average_precision(negative: Numbers, positive: Numbers) -> Numbers:
    """Return Σ (increase of recall) · precision, over thresholds from the highest cell down; see `auc`.

    >>> round(float(average_precision(np.array([1.0, 1.0, 0.0]), np.array([0.0, 1.0, 1.0]))), 4)
    0.8333
    """
    hits, all_ = _from_the_top(positive), _from_the_top(negative + positive)
    rates = np.clip(ratio(hits, all_, 0.0), 0.0, 1.0)
    return ratio(np.sum(positive * rates, axis=-1), np.sum(positive, axis=-1))


def average_precision_bound(negative: Numbers, positive: Numbers) -> Numbers:
    """Return by how much the scores' order within the cells can change the average precision, at most.

    Within a cell, precision is highest if all positives come first, and lowest if they come last. With H positives and
    M negatives before the first of them, the sum of (H + i)/(H + i + M) over p positives is ∫ (H + x)/(H + x + M) dx
    over 0 … p, plus at most the last term minus the one at 0, since the terms increase.
    """
    positive, negative = np.maximum(positive, 0.0), np.maximum(negative, 0.0)
    hits, misses = _from_the_top(positive) - positive, _from_the_top(negative) - negative
    middle = positive * ratio(hits + positive, hits + positive + misses + negative, 0.0)
    last = ratio(hits + positive, hits + positive + misses, 0.0)
    best = np.minimum(positive * last, _integral(hits, misses, positive) + last - ratio(hits, hits + misses, 0.0))
    worst = _integral(hits, misses + negative, positive)
    up, down = np.sum(best - middle, axis=-1), np.sum(middle - worst, axis=-1)
    return ratio(np.maximum(up, down), np.sum(positive, axis=-1))


def _integral(hits: Numbers, misses: Numbers, positive: Numbers) -> Numbers:
    return positive - misses * np.log(ratio(hits + positive + misses, hits + misses, 1.0))


def _from_the_top(counts: Numbers) -> Numbers:
    return np.cumsum(counts[..., ::-1], axis=-1)[..., ::-1]


def precision(confusion: Numbers) -> Numbers:
    """Return each class's precision, `(..., c)`; confusion counts are `(..., c, c)`: true class, then predicted."""
    return ratio(_right(confusion), np.sum(confusion, axis=-2))


def recall(confusion: Numbers) -> Numbers:
    """Return each class's recall, `(..., c)`."""
    return ratio(_right(confusion), np.sum(confusion, axis=-1))


def f1(confusion: Numbers) -> Numbers:
    """Return each class's F1, `(..., c)`: the harmonic mean of precision and recall."""
    return ratio(2 * _right(confusion), np.sum(confusion, axis=-1) + np.sum(confusion, axis=-2))


def _right(confusion: Numbers) -> Numbers:
    return np.diagonal(confusion, axis1=-2, axis2=-1)


def concordance(counts: Numbers) -> Numbers:
    """Return Harrell's C: in which part of the comparable pairs the earlier event has the higher risk.

    A pair is comparable if one record has an event, and the other a later time, or the same time and no event.

    Args:
        counts: by time, event (0 or 1) and cell of the risk, `(..., t, 2, k)`, earliest time first.
    """
    events, all_ = counts[..., 1, :], np.sum(counts, axis=-2)
    later = np.cumsum(all_[..., ::-1, :], axis=-2)[..., ::-1, :] - all_ + counts[..., 0, :]
    below = np.cumsum(later, axis=-1) - later / 2
    pairs = np.sum(np.sum(events, axis=-1) * np.sum(later, axis=-1), axis=-1)
    return ratio(np.sum(events * below, axis=(-2, -1)), pairs)


def concordance_bound(counts: Numbers) -> Numbers:
    """Return by how much the risks' order within the cells can change the concordance."""
    events, all_ = counts[..., 1, :], np.sum(counts, axis=-2)
    later = np.cumsum(all_[..., ::-1, :], axis=-2)[..., ::-1, :] - all_ + counts[..., 0, :]
    pairs = np.sum(np.sum(events, axis=-1) * np.sum(later, axis=-1), axis=-1)
    return ratio(np.sum(np.maximum(events, 0) * np.maximum(later, 0), axis=(-2, -1)) / 2, pairs)


def r_squared(squares: Numbers, mean: Numbers, mean_square: Numbers) -> Numbers:
    """Return R²: 1 − mean squared error over the targets' variance, which is mean of squares − squared mean."""
    return 1 - ratio(squares, mean_square - mean**2)


def ratio(above: Numbers, below: Numbers, undefined: float = np.nan) -> Numbers:
    """Return a quotient, and `undefined` where the divisor is not positive."""
    above, below = np.broadcast_arrays(np.asarray(above, np.float64), np.asarray(below, np.float64))
    ratios: Numbers = np.divide(above, below, out=np.full(above.shape, undefined), where=below > 0)
    return ratios
