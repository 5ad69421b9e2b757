"""Metrics of what expires."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from prometheus_client.core import GaugeMetricFamily

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_DAY = 86_400.0  # seconds


def days_left(ends: Mapping[str, float]) -> Iterator[GaugeMetricFamily]:
    """Yield how long the certificate and the roster are valid; `ends` in seconds since 1970."""
    for document in ("certificate", "roster"):
        if document in ends:
            yield GaugeMetricFamily(
                f"cloister_{document}_days_left",
                f"Days until the {document} expires; negative once it has",
                value=(ends[document] - time.time()) / _DAY,
            )
