"""What runs share that add up a vector of every site's once: noise on it, its sum read, a report of it."""

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

log = logging.getLogger("cloister.agent")


class OneSum:
    """What both kinds of such works have in common."""

    def __init__(self, site: SiteContext) -> None:
        self._site = site

    def check_memory(self, manifest: Manifest) -> None:
        """Check nothing: a vector fits."""

    def files(self, settings: RunSettings, layout: Layout) -> dict[Path, int]:
        """Count the report."""
        del settings, layout
        return {self._site.place.folder / FOLDER: 0}

    def measure(self, settings: RunSettings, model: Model) -> tuple[int, dict[str, float]]:
        """Measure nothing: there is no model."""
        del settings, model
        return 0, {}


def noised(total: NDArray[np.float64], manifest: Manifest, randomness: Randomness) -> Update:
    """Add N(0, σ²) to a site's vector `(m,)`, which a record changes by 1 at most; all over the largest size."""
    if manifest.noise_multiplier > 0:
        total = total + manifest.noise_multiplier * randomness.gaussian(total.size)
    return Update((total / manifest.settings.largest_size).astype(np.float32))


def read_sum(manifest: Manifest, model: Model, sites: int) -> tuple[NDArray[np.float64], float]:
    """Return so many sites' vectors added up, `(m,)`, and the deviation of the noise in every number of it."""
    size, packing = manifest.settings.largest_size, manifest.packing
    step = 2 * packing.update_bound / (packing.levels - 1) * size
    # Rounding to a step or the next one up has at most half a step's deviation.
    noise = math.sqrt(sites) * math.hypot(manifest.noise_multiplier, step / 2)
    return model.vector.astype(np.float64) * size * sites, noise


def write_report(
    folder: Path, manifest: Manifest, run: str, contributors: Collection[str], found: Mapping[str, Any]
) -> None:
    """Write what a run has found, and at what cost, into a site's folder: the same file at every site."""
    settings, sigma = manifest.settings, manifest.noise_multiplier
    report = {
        "name": settings.name,
        "run": run,
        "sites": sorted(contributors),
        "noise_multiplier": sigma,
        # At no noise, infinite; JSON has no such number.
        "epsilon": round(epsilon([manifest.run_cost], settings.privacy.delta), 4) if sigma else None,
        "delta": settings.privacy.delta,
        **found,
    }
    path = folder / FOLDER / f"{settings.name}-{run[:8]}.json"
    write_atomically(path, json.dumps(report, indent=1, ensure_ascii=False).encode() + b"\n")
    log.info("sums over %d sites: %s", len(contributors), path)
