"""Metrics that sites tell without noise, put together: only what a site's policy lists gets here."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from privacy.run.policy import MOST_METRICS

if TYPE_CHECKING:
    from collections.abc import Mapping


def averaged(told: Mapping[str, Mapping[str, float]], sizes: Mapping[str, int]) -> dict[str, float]:
    """Average each metric over the sites that told it, by the sizes that they declare in the run.

    Of more metrics than a site may tell, those are taken that most sites told.

    >>> averaged({"north": {"loss": 0.5}, "south": {"loss": 0.2, "accuracy": 1.0}}, {"north": 200, "south": 100})
    {'loss': 0.4, 'accuracy': 1.0}
    """
    found = {}
    for name, _ in Counter(name for each in told.values() for name in each).most_common(MOST_METRICS):
        parts = [(sizes.get(site, 0), metrics[name]) for site, metrics in told.items() if name in metrics]
        if whole := sum(size for size, _ in parts):
            found[name] = sum(size * value for size, value in parts) / whole
    return found
