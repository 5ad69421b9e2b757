"""From what a few rounds took here, work out what a run will cost each site and the server.

A round has four phases: training and encryption at the sites, all at once; transfer; and the server's work. Written as
the classic C × T × (D + S): of C clients in T rounds, each has D, its download and its computing, and S, its upload and
the server's part for it.

Bytes follow from the codec. Processor seconds and memory are those measured, for the run's own sites if they are few;
otherwise those of two smaller cohorts, continued as straight lines in the number of sites, and training in that of
records.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from cloister.views.observers import against_whom, cost_of_votes
from privacy.accounting.accounting import Mechanism, epsilon
from privacy.codec.ciphertext import C0_BYTES, CIPHERTEXT_BYTES, CODE_BYTES, SEED_BYTES
from privacy.errors import ConfigError
from privacy.ledger.balance import excessive
from privacy.run.new_manifest import make_manifest
from privacy.run.plan import MOST_SEEDS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from cloister.planning.measuring import Measured
    from privacy.run.manifest import Manifest
    from privacy.run.settings import RunSettings

SERVER = "server"
_FEW = 4  # sites that are measured as they are
_BITS, _HOUR, _GIGABYTE = 8, 3600.0, 1e9


@dataclass(frozen=True)
class Rates:
    """What people say of their network and their bills."""

    link: float = 100.0  # megabits a second of each site, in both directions together
    server_link: float = 1000.0  # of the server
    cpu_hour: float | None = None  # money for an hour of one core
    gigabyte: float | None = None  # money for 10^9 bytes that are sent


def cohorts(sizes: Mapping[str, int], colluding: int) -> list[dict[str, int]]:
    """Return the cohorts to measure: the run's, or a small and a larger one of its sites, from large sites to small."""
    if len(sizes) <= _FEW:
        return [dict(sizes)]
    ranked = sorted(sizes, key=lambda site: -sizes[site])
    least = max(3, colluding + 2)
    counts = sorted({min(least, len(sizes)), min(least + 2, len(sizes))})
    places = [np.unique(np.linspace(0, len(ranked) - 1, count).round().astype(int)) for count in counts]
    return [{ranked[place]: sizes[ranked[place]] for place in some} for some in places]


def bytes_of(manifest: Manifest, parameters: int) -> tuple[int, int]:
    """Return the bytes of a site's ciphertexts, and of the sum that it gets, in a round of all sites."""
    sites, count = len(manifest.settings.cohort.sizes), manifest.packing.ciphertexts(parameters)
    seeds = count * C0_BYTES if sites > MOST_SEEDS else sites * count * SEED_BYTES
    return count * CIPHERTEXT_BYTES, count * (C0_BYTES + CODE_BYTES) + seeds


def plan(settings: RunSettings, measured: Sequence[Measured], parameters: int, rates: Rates) -> dict[str, Any]:
    """Return what a run will cost, for JSON.

    Args:
        settings: the run's.
        measured: rounds of `cohorts`.
        parameters: of the model that are sent.
        rates: of network and money.
    """
    manifest, sizes, rounds = make_manifest(settings, roster_version=1), settings.cohort.sizes, settings.rounds
    up, down = _bytes(manifest, measured, parameters)
    training = _training(measured, sizes)
    apart = _line(
        measured,
        len(sizes),
        lambda each: float(np.mean([each.busy[site] - each.training[site] for site in each.training])),
    )
    serving = _line(measured, len(sizes), lambda each: each.busy[SERVER])
    first = max(each.first[site] - each.busy[site] for each in measured for site in each.training)
    sites = {
        site: _party(rounds * (seconds + apart) + max(0.0, first), rounds * up, rounds * down,
                     max(each.memory[name] for each in measured for name in each.training), rates)
        for site, seconds in training.items()
    }  # fmt: skip
    server = _party(
        rounds * serving, rounds * down * len(sizes), rounds * up * len(sizes),
        round(_line(measured, len(sizes), lambda each: float(each.memory[SERVER]))), rates,
    )  # fmt: skip
    slowest = max(training.values())
    transfer = _transfer(up, len(sizes), rates), _transfer(down, len(sizes), rates)
    phases = {"training": slowest, "encryption": apart, "transfer": sum(transfer), "server": serving}
    terms = {
        "clients": len(sizes), "rounds": rounds,
        "download_and_compute_seconds": float(np.mean(list(training.values()))) + apart + transfer[1],
        "upload_and_server_seconds": transfer[0] + serving / len(sizes),
    }  # fmt: skip
    delta = settings.privacy.delta
    spent = epsilon([manifest.run_cost], delta)
    report = {
        "task": settings.task, "sites": len(sizes), "rounds": rounds, "parameters": parameters,
        "measured": [{"sites": len(each.training), "rounds": each.rounds} for each in measured],
        "phases": {name: {"round": seconds, "run": rounds * seconds} for name, seconds in phases.items()},
        "seconds": rounds * sum(phases.values()) + max(0.0, first),
        "seconds_here": rounds * _line(measured, len(sizes), lambda each: each.elapsed),
        "terms": terms | {"seconds": len(sizes) * rounds * (terms["download_and_compute_seconds"]
                                                            + terms["upload_and_server_seconds"])},
        "bytes": rounds * len(sizes) * (up + down), "bytes_up": up, "bytes_down": down,
        "each_site": sites, "server": server,
        "money": _added([party["money"] for party in (*sites.values(), server)]),
        "epsilon": spent if math.isfinite(spent) else None, "delta": delta,
        "noise_multiplier": manifest.noise_multiplier,
        "delta_warning": excessive(delta, settings.largest_size),
        **against_whom(manifest), **cost_of_votes(manifest),
    }  # fmt: skip
    return report | {"cheaper": _cheaper(settings, manifest, parameters, report)}


def _bytes(manifest: Manifest, measured: Sequence[Measured], parameters: int) -> tuple[float, float]:
    """Return the bytes that a site sends and gets in a round: by the codec, and what else was seen beside it."""
    up, down = bytes_of(manifest, parameters)
    beside_up, beside_down = 0.0, 0.0
    for each in measured:
        own_up, own_down = bytes_of(make_manifest(each.settings, roster_version=1), parameters)
        beside_up = max(beside_up, each.bytes_up / len(each.training) - own_up)
        beside_down = max(beside_down, each.bytes_down / len(each.training) - own_down)
    return up + beside_up, down + beside_down


def _training(measured: Sequence[Measured], sizes: Mapping[str, int]) -> dict[str, float]:
    """Return each site's processor seconds of training in a round."""
    known = {site: seconds for each in measured for site, seconds in each.training.items()}
    if set(known) == set(sizes):
        return {site: known[site] for site in sizes}
    points = [(sizes[site], seconds) for each in measured for site, seconds in each.training.items()]
    counts, seconds = (np.array(part, float) for part in zip(*points, strict=True))
    slope, start = np.polyfit(counts, seconds, 1) if np.ptp(counts) else (0.0, float(np.mean(seconds)))
    slope = max(0.0, float(slope))
    start = max(0.0, float(np.mean(seconds - slope * counts)))
    return {site: start + slope * size for site, size in sizes.items()}


def _line(measured: Sequence[Measured], sites: int, of: Callable[[Measured], float]) -> float:
    """Return a figure for a cohort of so many sites, on the line through those measured; it never falls."""
    small, large = measured[0], measured[-1]
    if len(measured) == 1:
        return float(of(small))
    slope = (of(large) - of(small)) / (len(large.training) - len(small.training))
    return float(of(small) + max(0.0, slope) * (sites - len(small.training)))


def _transfer(size: float, sites: int, rates: Rates) -> float:
    """Return the seconds in which all sites send or get so many bytes each, by the slower of the networks."""
    return _BITS * size * max(1 / rates.link, sites / rates.server_link) / 1e6


def _party(seconds: float, sent: float, received: float, memory: int, rates: Rates) -> dict[str, Any]:
    parts = [
        None if rate is None else rate * amount
        for rate, amount in ((rates.cpu_hour, seconds / _HOUR), (rates.gigabyte, sent / _GIGABYTE))
    ]
    return {"seconds": seconds, "sent": sent, "received": received, "memory": memory, "money": _added(parts)}


def _added(parts: Sequence[float | None]) -> float | None:
    known = [part for part in parts if part is not None]
    return sum(known) if known else None


def _cheaper(settings: RunSettings, manifest: Manifest, parameters: int, report: Mapping[str, Any]) -> list[str]:
    """Return what would make the run cheaper, and by how much."""
    found = list[str]()
    phases, whole = {name: phase["run"] for name, phase in report["phases"].items()}, report["seconds"]
    own = bytes_of(manifest, parameters)[0]
    for profile in ("dense", "compact"):
        try:
            changed = make_manifest(_with_profile(settings, profile), roster_version=1)
        except (ConfigError, ValueError):
            continue  # no room for so many sites
        other = bytes_of(changed, parameters)[0]
        if other < own:
            found.append(
                f'profile = "{profile}" in [encryption]: {1 - other / own:.0%} fewer bytes, rounded more coarsely'
            )
            break
    rounds = settings.rounds // 2
    if rounds:
        cost, delta = manifest.run_cost, settings.privacy.delta
        fewer = Mechanism(
            cost.noise_multiplier, cost.sample_rate, cost.steps // settings.rounds * rounds, cost.discrete
        )
        less = epsilon([fewer], delta)
        privacy = (
            f", and with the same noise ε {less:.2f} instead of {report['epsilon']:.2f}" if report["epsilon"] else ""
        )
        found.append(f"rounds = {rounds}: half of everything{privacy}")
    training = settings.training
    if training and training.steps > 1 and phases["training"] > whole / 4:
        found.append(f"half as many steps a round: {phases['training'] / 2 / whole:.0%} less time")
    if phases["transfer"] > whole / 4:
        share = phases["transfer"] / whole
        found.append(f"{share:.0%} of the time is transfer: freeze layers, or take more steps in fewer rounds")
    return found


def _with_profile(settings: RunSettings, profile: Any) -> RunSettings:  # noqa: ANN401 - one of the profiles
    return replace(settings, encryption=replace(settings.encryption, profile=profile))
