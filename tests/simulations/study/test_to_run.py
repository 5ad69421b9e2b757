"""A run that was simulated goes to real sites unchanged, and they arrive at the same model."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from safetensors.torch import load

from cloister import simulate
from cloister.local import follow, start_agents, start_server
from cloister.processes import Processes
from privacy.config import read_toml
from privacy.run.settings import RunSettings
from simulations.engine.federation import Federation
from simulations.engine.inline import run_inline
from simulations.engine.results import read_results
from simulations.pools import Division, Pool
from simulations.study.protocol import terms_for
from simulations.tasks.digits import LARGEST, Digits, digits, write_digits
from tests.federations import models_of

if TYPE_CHECKING:
    from pathlib import Path

    from cloister import Result
    from simulations.engine.federation import SiteTerms

PIXELS, LABELS = digits()
PARTS = dict(zip(("north", "south", "east"), np.array_split(np.arange(240), 3), strict=True))
RUN = {
    "rounds": 2,
    "seed": 4,
    "privacy": {"noise_multiplier": 0.0, "max_grad_norm": 1.0},
    "training": {"sample_rate": 0.5, "steps_per_round": 2, "learning_rate": 0.5},
}


def named() -> dict[str, Any]:
    """The sites' records."""
    return {site: (PIXELS[part] / LARGEST, LABELS[part]) for site, part in PARTS.items()}


def of_no_site() -> tuple[Any, Any]:
    """Records of no site."""
    return PIXELS[240:300] / LARGEST, LABELS[240:300]


def deployed(tmp_path: Path, engine: str) -> tuple[Result, Federation, SiteTerms]:
    """Simulate a run, found a consortium whose sites have the same records in files, and sign the exported run."""
    result = simulate(Digits, named(), RUN, engine=engine, test=of_no_site(), processes=2)
    exported = result.to_run(tmp_path / "run.toml")
    federation = Federation.create(tmp_path / "real", tuple(PARTS))
    for site, part in PARTS.items():
        write_digits(federation.paths[site] / "digits.csv", part)
    settings = read_toml(exported, RunSettings)
    assert (settings.encryption.collusion_resistant, settings.cohort.minimum) == (True, 3)  # as real runs are
    federation.sign(settings)
    return result, federation, replace(terms_for(settings), file="digits.csv")


def test_sites_that_read_files_arrive_at_the_simulated_model(tmp_path: Path) -> None:
    result, federation, terms = deployed(tmp_path, "inline")
    for site in federation.sites:
        federation.write_settings(site, "localhost:1", terms)
    run_inline(federation)
    assert read_results(federation).model == result.digest


@pytest.mark.soak
@pytest.mark.timeout(300)
@pytest.mark.parametrize("engine", ["inline", "processes", "vectorised"])
def test_real_agents_arrive_at_the_simulated_model(engine: str, tmp_path: Path) -> None:
    result, federation, terms = deployed(tmp_path, engine)
    with Processes() as processes:
        start_agents(processes, federation, start_server(processes, federation), terms)
        follow(processes, federation, lambda _: None)
    results = read_results(federation)
    assert len(set(results.digests.values())) == 1
    said = (tmp_path / "run.toml").read_text(encoding="utf-8").partition("\n")[0]
    assert said.startswith(f"# As simulated by the engine {engine}")
    if engine != "vectorised":
        assert results.model == result.digest
        return
    assert said.endswith("real sites arrive at the same model within rounding.")
    (document, *_) = models_of(federation).values()
    for name, values in load(document).items():
        torch.testing.assert_close(values, result.model.state_dict()[name], atol=1e-4, rtol=0)


def test_a_division_is_the_pools_of_its_sites() -> None:
    pools = {site: pool_of(part) for site, part in PARTS.items()}
    division = Division.of(pools)
    assert division.sizes == {"north": 80, "south": 80, "east": 80}
    for site, pool in pools.items():
        assert (division[site].targets == pool.targets).all()


def pool_of(part: np.ndarray[tuple[int], np.dtype[np.intp]]) -> Pool:
    """Some digits."""
    return Pool(torch.from_numpy(PIXELS[part]).float(), torch.from_numpy(LABELS[part]))
