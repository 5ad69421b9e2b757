"""One row of `cloister bench simulation`, in a process of its own: one engine, one model, one number of sites.

All engines train on the same parts of the same digits, for one epoch a round in batches of 8, plain or with every
record clipped and noise at every site, and average by the number of records. What differs is who drives the training.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from cloister.benchmarks.simulation_trials import (
    BATCH,
    NORM,
    RATE,
    SIGMA,
    TASKS,
    accuracy,
    dealt,
    train_part,
)
from cloister.simulating import simulate
from simulations.pools import Division, Pool
from simulations.study.run_settings import named_sites

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor, nn


def ours(engine: str, model: str, sites: int, rounds: int, *, private: bool) -> dict[str, Any]:
    """Train by one of Cloister's engines."""
    parts, test = dealt(sites)
    largest = max(len(targets) for _, targets in parts)
    run = {
        "rounds": rounds,
        "privacy": {"max_grad_norm": NORM if private else _NO_CLIPPING, "noise_multiplier": SIGMA if private else 0.0},
        "training": {"sample_rate": min(1.0, BATCH / largest), "epochs_per_round": 1.0, "learning_rate": RATE},
        "encryption": {"update_bound": 1.0, "collusion_resistant": False,
                       "profile": "precise" if sites > _COMPACT else "compact"},
    }  # fmt: skip
    pool = Pool(torch.cat([inputs for inputs, _ in parts]), torch.cat([targets for _, targets in parts]))
    ranges = np.split(np.arange(len(pool)), np.cumsum([len(targets) for _, targets in parts])[:-1])
    records = Division(pool, dict(zip(named_sites(sites), ranges, strict=True)))
    result = simulate(TASKS[model], records, run, test=test, engine=engine, measure_every=rounds, progress=False)
    return {"seconds": result.rows[-1]["seconds"], "accuracy": result.metrics["accuracy"]}


_NO_CLIPPING = 1e6
_COMPACT = 4000  # sites, up to which fields of 16 bits have enough levels


def loop(model: str, sites: int, rounds: int, *, private: bool) -> dict[str, Any]:
    """Train one site after another, as a researcher's own loop does."""
    parts, test = dealt(sites)
    torch.manual_seed(0)
    module = TASKS[model]().model()
    shared = [parameter.detach().clone() for parameter in module.parameters()]
    weights = np.array([len(targets) for _, targets in parts]) / sum(len(targets) for _, targets in parts)
    train_part(TASKS[model]().model(), parts[0], private=private)  # loads what the first step loads
    started = time.perf_counter()
    for _ in range(rounds):
        totals = [torch.zeros_like(parameter) for parameter in shared]
        for part, weight in zip(parts, weights, strict=True):
            _load(module, shared)
            train_part(module, part, private=private)
            for total, parameter in zip(totals, module.parameters(), strict=True):
                total.add_(parameter.detach(), alpha=float(weight))
        shared = totals
    seconds = time.perf_counter() - started
    _load(module, shared)
    return {"seconds": seconds, "accuracy": accuracy(module, test)}


def _load(module: nn.Module, values: Sequence[Tensor]) -> None:
    with torch.no_grad():
        for parameter, value in zip(module.parameters(), values, strict=True):
            parameter.copy_(value)


def ray(model: str, sites: int, rounds: int, *, private: bool) -> dict[str, Any]:
    """Train by Flower's simulation on Ray: a `ClientApp` for each site, FedAvg at the server."""
    from cloister.benchmarks.simulation_ray import train  # noqa: PLC0415 - an extra

    return train(model, sites, rounds, private=private)


def pfl(model: str, sites: int, rounds: int, *, private: bool) -> dict[str, Any]:
    """Train by pfl-research (Granqvist et al., 2024, arXiv 2404.06430)."""
    from cloister.benchmarks.simulation_pfl import train  # noqa: PLC0415 - not among our dependencies

    return train(model, sites, rounds, private=private)


def main(arguments: Sequence[str]) -> None:
    """Print a row as JSON: arguments are engine, model, sites, rounds, and `private` or `plain`."""
    engine, model, sites, rounds, kind = arguments
    private, count, played = kind == "private", int(sites), int(rounds)
    others: dict[str, Callable[..., dict[str, Any]]] = {"loop": loop, "ray": ray, "pfl": pfl}
    started = time.perf_counter()
    if engine in others:
        row = others[engine](model, count, played, private=private)
    else:
        row = ours(engine, model, count, played, private=private)
    whole = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({**row, "start_to_end": whole, "peak_mb": peak}))  # noqa: T201 - the row


if __name__ == "__main__":
    main(sys.argv[1:])
