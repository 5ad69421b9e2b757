"""Compute each site's share of shared noise: only the sum of all updates has all of the noise.

This is the distributed discrete Gaussian (Kairouz, Liu and Steinke 2021, arXiv 2102.06387); masks ensure that nobody
sees less than a sum. In a run with one step per round, weight × update is lr·S/max(1, q·n) with the same factor at
every site: S is the sum of its clipped gradients, q the sample rate, n the largest declared size. So the levels of all
sites add up to the pooled clipped gradient.

    Δ = C + √d + ρ      L2 sensitivity of the sum of d levels to one record; C is the clipping norm in levels
    ρ = 2⁻²⁴·(L − 1)·(‖model‖/bound + 4·√d)
    s² = ⌈(σΔ)²/K⌉      variance of the discrete Gaussian at each site; K = minimum cohort − colluding sites

√d covers rounding: with the same dither for both of two neighbouring data sets, the floors of two numbers that differ
by δ differ by less than |δ| + 1. ρ covers float32, in which a site's update is the difference of two models: two
updates, each off by half a unit in the last place of the model and of four intermediate results within the range.

Two approximations are too small to be charged. The sum of discrete Gaussians is a discrete Gaussian up to a Rényi
divergence of d·τ, τ = 10·Σ exp(−2π²s²k/(k+1)), k = 1 … sites − 1 (proposition 14 there): below 10⁻²⁶⁰ for s ≥ 8. And
each share is truncated at 12s, beyond which lies less than 2⁻¹⁰⁰ of the mass. docs/decisions/0006-shared-noise.md has
the argument.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from privacy.accounting.accounting import epsilon
from privacy.errors import ConfigError
from privacy.noise.discrete import reach

if TYPE_CHECKING:
    from privacy.codec.update import Model
    from privacy.run.manifest import Manifest

_MOST_ROUNDING = 0.05  # relative to C
_LEAST_VARIANCE = 8**2  # levels²
_FLOAT32 = 2.0**-24  # half a unit in the last place of 1
_FEW_SITES = 8  # up to which coalitions of every size are listed


@dataclass(frozen=True)
class Share:
    """One site's share of the noise, for a given model."""

    sensitivity: float  # Δ, in levels
    variance: int  # s², in levels²


@dataclass(frozen=True)
class Observer:
    """An observer of a run's releases, and the ε of a site's records against it."""

    who: str
    colluding_sites: int
    noise_multiplier: float
    epsilon: float
    declared: bool  # the strongest observer that the run declares, for which the ledger charges


def share_for(manifest: Manifest, model: Model) -> Share:
    """Return each site's share in a round that starts from this model. See `share_of` for the error."""
    squares = float(np.einsum("i,i->", model.vector, model.vector, dtype=np.float64))  # without a copy in float64
    return share_of(manifest, model.vector.size, math.sqrt(squares))


def share_of(manifest: Manifest, parameters: int, length: float) -> Share:
    """Return each site's share of the noise.

    Args:
        manifest: the manifest of a run with shared noise.
        parameters: d, the number of parameters of the model that the round starts from.
        length: the L2 norm of that model.

    Raises:
        ConfigError: if the levels are too coarse for the model or the noise, or the range is too narrow for the noise.
    """
    clipped, packing = _clipping_norm(manifest), manifest.packing
    rounding = math.sqrt(parameters) * (1 + 4 * _float32_error(manifest))
    rounding += length / packing.update_bound * _float32_error(manifest)
    if rounding > _MOST_ROUNDING * clipped:
        msg = (
            f"levels are too coarse: for a model of size {parameters}, rounding would take over {_MOST_ROUNDING:.0%} "
            'of the shared noise; use profile = "precise", a smaller update_bound or a smaller model'
        )
        raise ConfigError(msg)
    sensitivity = clipped + rounding
    variance = math.ceil((manifest.noise_multiplier * sensitivity) ** 2 / manifest.settings.honest_sites)
    if variance < _LEAST_VARIANCE:
        msg = (
            f"a site's share of the noise would have a deviation of {math.sqrt(variance):.1f} levels; it needs "
            f'{math.isqrt(_LEAST_VARIANCE)}; use profile = "precise" or a smaller update_bound'
        )
        raise ConfigError(msg)
    if 4 * reach(variance) > packing.levels - 1:
        needed = packing.update_bound * 4 * reach(variance) / (packing.levels - 1)
        msg = (
            f"a site's share of the noise would take more than half of the range; "
            f"set update_bound to {needed:.2g} or more, or use less noise"
        )
        raise ConfigError(msg)
    return Share(sensitivity, variance)


def most_parameters(manifest: Manifest) -> int:
    """Return the most parameters that a model of norm 0 may have before `share_of` refuses it for its rounding."""
    room = _MOST_ROUNDING * _clipping_norm(manifest)
    return int((room / (1 + 4 * _float32_error(manifest))) ** 2)


def observers(manifest: Manifest, delta: float, group: int = 1) -> tuple[Observer, ...]:
    """Return the ε of the whole run against each kind of observer, weakest observer first.

    With shared noise, colluding sites know their own shares and subtract them from the sum; if all but one of a cohort
    collude, they are left with one site's update and its share. With local noise each update has all the noise, so it
    needs no other site. A person may have up to `group` records.
    """
    settings, sites = manifest.settings, manifest.settings.cohort.minimum
    declared = sites - settings.honest_sites
    several = range(sites) if sites <= _FEW_SITES else sorted({0, 1, 2, declared, sites // 2, sites - 2, sites - 1})
    return tuple(_observer(manifest, colluding, delta, group) for colluding in several)


def _observer(manifest: Manifest, colluding: int, delta: float, group: int) -> Observer:
    settings, cost = manifest.settings, manifest.run_cost
    others = settings.cohort.minimum - colluding
    declared = settings.cohort.minimum - settings.honest_sites
    who = "sees the sums alone" if colluding == 0 else f"and {colluding} colluding site{'s' if colluding > 1 else ''}"
    if others == 1:
        who = "and all other sites: one site's own update"
    factor = math.sqrt(others / settings.honest_sites) if settings.shares_noise else 1.0
    cost = replace(cost, noise_multiplier=cost.noise_multiplier * factor)
    return Observer(who, colluding, cost.noise_multiplier, epsilon([cost], delta, group=group), colluding == declared)


def _clipping_norm(manifest: Manifest) -> float:
    """Return the norm, in levels, of a gradient of norm C in the sum of all sites' levels."""
    settings, training = manifest.settings, manifest.settings.training
    norm = settings.privacy.max_grad_norm
    if training is None or norm is None:
        msg = f"the run {settings.name} computes statistics, whose noise is always local"
        raise ConfigError(msg)
    batch = max(1.0, training.sample_rate * settings.largest_size)
    return norm * training.learning_rate / batch / manifest.packing.unit(1.0)


def _float32_error(manifest: Manifest) -> float:
    """Return the largest error, in levels, of rounding two numbers within the range to float32."""
    return _FLOAT32 * (manifest.packing.levels - 1)
