"""Read the optional numbers in a reply: they may be missing, and never invalidate the rest.

A value that is not a number, is out of range or has an unknown name is dropped and noted; the update or digest beside
it still counts.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from flwr.app import MetricRecord

from privacy.run.policy import METRIC_NAME, MOST_METRICS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from flwr.app import RecordDict

LARGEST_EPSILON = 1e6  # more than any budget
LARGEST_METRIC = 3.4e38  # what float32 can hold


@dataclass(frozen=True)
class ReportedNumbers:
    """Numbers by name, each within its valid range."""

    numbers: Mapping[str, float] = field(default_factory=dict)
    dropped: str = ""  # what was dropped, as a sentence; empty if nothing was


def read_report(content: RecordDict) -> ReportedNumbers:
    """Return the number that a site reports with its update: the ε that it has spent."""
    return _read(content, "report", lambda name, value: name == "epsilon" and 0 <= value <= LARGEST_EPSILON)


def read_metrics(content: RecordDict) -> ReportedNumbers:
    """Return the numbers that a site reports with its model's digest: mean metrics over its held-out records."""
    return _read(
        content,
        "metrics",
        lambda name, value: re.fullmatch(METRIC_NAME, name) is not None and abs(value) <= LARGEST_METRIC,
    )


def _read(content: RecordDict, record: str, can_be: Callable[[str, float], bool]) -> ReportedNumbers:
    values = content.get(record, MetricRecord())
    if not isinstance(values, MetricRecord) or len(values) > MOST_METRICS:
        return ReportedNumbers(dropped=f"its {record} is invalid, and was left out")
    numbers = {
        name: float(value)
        for name, value in values.items()
        if isinstance(value, (int, float)) and math.isfinite(value) and can_be(name, value)
    }
    left = len(values) - len(numbers)
    return ReportedNumbers(
        numbers, f"{left} of {len(values)} numbers in its {record} are invalid, and were left out" if left else ""
    )
