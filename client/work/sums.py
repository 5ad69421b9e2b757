"""The common parts of runs that sum one vector per site once: add noise, read the sum, write a report."""

from __future__ import annotations

import json
import logging
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from privacy.accounting.accounting import epsilon
from privacy.codec.update import Update
from privacy.storage import write_atomically

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from client.context import SiteContext
    from privacy.codec.update import Layout, Model
    from privacy.noise.randomness import Randomness
    from privacy.run.manifest import Manifest
    from privacy.run.settings import RunSettings

FOLDER = "statistics"
OWN = "metrics"  # what a site finds out about its held-out records, for itself

log = logging.getLogger("cloister.agent")


class OneSum:
    """The base class of works that sum one vector per site."""

    def __init__(self, site: SiteContext) -> None:
        self._site = site

    def check_memory(self, manifest: Manifest) -> None:
        """Do nothing: a vector fits."""

    def files(self, settings: RunSettings, layout: Layout) -> dict[Path, int]:
        """Return no bytes beyond the small report."""
        del settings, layout
        return {self._site.place.folder / FOLDER: 0}

    def measure(self, settings: RunSettings, model: Model) -> tuple[int, dict[str, float]]:
        """Measure nothing: there is no model."""
        del settings, model
        return 0, {}


def noised(total: NDArray[np.float64], manifest: Manifest, randomness: Randomness) -> Update:
    """Add N(0, σ²) to a site's vector `(m,)`, which a record changes by at most 1; divide by the largest size."""
    if manifest.noise_multiplier > 0:
        total = total + manifest.noise_multiplier * randomness.gaussian(total.size)
    return Update((total / manifest.settings.largest_size).astype(np.float32))


def read_sum(manifest: Manifest, model: Model, sites: int) -> tuple[NDArray[np.float64], float]:
    """Return the sum of `sites` vectors, `(m,)`, and the standard deviation of the noise in each of its numbers."""
    size, packing = manifest.settings.largest_size, manifest.packing
    step = 2 * packing.update_bound / (packing.levels - 1) * size
    # Stochastic rounding to a multiple of the step has a standard deviation of at most half a step.
    noise = math.sqrt(sites) * math.hypot(manifest.noise_multiplier, step / 2)
    return model.vector.astype(np.float64) * size * sites, noise


def write_report(
    folder: Path, manifest: Manifest, run: str, contributors: Collection[str], results: Mapping[str, Any]
) -> None:
    """Write a run's results and their cost into a site's folder; the file is the same at every site."""
    settings, sigma = manifest.settings, manifest.noise_multiplier
    report = {
        "name": settings.name,
        "run": run,
        "sites": sorted(contributors),
        "noise_multiplier": sigma,
        # Without noise it is infinite, which JSON cannot express.
        "epsilon": round(epsilon([manifest.run_cost], settings.privacy.delta), 4) if sigma else None,
        "delta": settings.privacy.delta,
        **results,
    }
    path = folder / FOLDER / f"{settings.name}-{run[:8]}.json"
    write_atomically(path, json.dumps(report, indent=1, ensure_ascii=False).encode() + b"\n")
    log.info("sums over %d sites: %s", len(contributors), path)
