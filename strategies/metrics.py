"""Average metrics that sites report without noise: only those that a site's policy lists."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from privacy.run.policy import MOST_METRICS

if TYPE_CHECKING:
    from collections.abc import Mapping


def averaged(reports: Mapping[str, Mapping[str, float]], sizes: Mapping[str, int]) -> dict[str, float]:
    """Average each metric over the sites that reported it, weighted by their declared sizes.

    If there are more metrics than one site may report, keep those that most sites reported.

    >>> averaged({"north": {"loss": 0.5}, "south": {"loss": 0.2, "accuracy": 1.0}}, {"north": 200, "south": 100})
    {'loss': 0.4, 'accuracy': 1.0}
    """
    averages = {}
    for name, _ in Counter(name for report in reports.values() for name in report).most_common(MOST_METRICS):
        parts = [(sizes.get(site, 0), metrics[name]) for site, metrics in reports.items() if name in metrics]
        if whole := sum(size for size, _ in parts):
            averages[name] = sum(size * value for size, value in parts) / whole
    return averages
