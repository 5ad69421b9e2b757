"""The same run under every engine of ours gives the same bits, and encryption changes nothing but rounding."""

from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file

from client.dpsgd.training_steps import train
from client.flower import open_site
from cloister.local import follow, start_agents, start_server
from privacy.codec.update import Model
from privacy.config import read_toml
from privacy.noise.randomness import Randomness
from privacy.run.manifest import open_run
from privacy.run.settings import Privacy, RunSettings
from simulations.engine.federation import Federation, SiteTerms
from simulations.engine.inline import run_inline
from simulations.engine.results import Results, read_results
from simulations.tasks.hospitals import write_hospital_records
from tests.forked import ForkedAgents

ROOT = Path(__file__).parents[3]
SITES = ("north", "south", "east")
ROUNDS = 3


STRATEGIES: dict[str, dict[str, Any]] = {
    "fedavg": {},
    "fedadam": {"server_learning_rate": 0.01},
    "scaffold": {},
    "tests.toys:Slowed": {"part": 0.75},  # as of another package
}


def _federation(folder: Path, strategy: str = "fedavg") -> tuple[Federation, SiteTerms]:
    federation = Federation.create(folder, SITES)
    write_hospital_records(federation.paths)
    settings = read_toml(ROOT / "simulations" / "tasks" / "diagnosis.toml", RunSettings)
    privacy = Privacy(max_grad_norm=settings.privacy.max_grad_norm, noise_multiplier=0.0)
    strategy_table = {"name": strategy, **STRATEGIES[strategy]}
    federation.sign(replace(settings, rounds=ROUNDS, privacy=privacy, seed=11, strategy=strategy_table))
    return federation, SiteTerms(
        tasks=(settings.task,), epsilon=inf, maximum_epsilon=inf, minimum_noise_multiplier=0.0, strategies=(strategy,)
    )


def _run_inline(folder: Path, strategy: str = "fedavg") -> tuple[Federation, Results]:
    federation, terms = _federation(folder, strategy)
    for site in SITES:
        federation.write_settings(site, "localhost:1", terms)
    run_inline(federation)
    return federation, read_results(federation)


def _weights(results: Results) -> dict[str, NDArray[np.float32]]:
    return load_file(results.paths["north"])


@pytest.mark.slow
@pytest.mark.xdist_group("processes")
@pytest.mark.parametrize(
    "strategy",
    ["tests.toys:Slowed", *(pytest.param(name, marks=pytest.mark.soak) for name in STRATEGIES if ":" not in name)],
)
def test_with_noise_off_and_a_seed_inline_and_grpc_give_the_bit_identical_model(tmp_path: Path, strategy: str) -> None:
    _, inline = _run_inline(tmp_path / "inline", strategy)
    federation, terms = _federation(tmp_path / "grpc", strategy)
    with ForkedAgents() as processes:
        start_agents(processes, federation, start_server(processes, federation), terms)
        follow(processes, federation, lambda _: None)
    grpc = read_results(federation)

    assert inline.rounds == grpc.rounds == ROUNDS
    assert inline.model == grpc.model
    for name, values in _weights(inline).items():
        assert values.tobytes() == _weights(grpc)[name].tobytes()


def test_the_encrypted_run_equals_plain_averaging_within_the_stated_rounding_error(tmp_path: Path) -> None:
    federation, results = _run_inline(tmp_path)
    sites = {site: open_site(path) for site, path in federation.paths.items()}
    manifest = open_run(federation.manifest.read_bytes(), sites["north"].roster).manifest
    study = sites["north"].study(manifest.settings.task)
    plain = study.untrained(manifest.settings.model_seed)
    weights = {site: manifest.weight(site) for site in SITES}

    for number in range(1, ROUNDS + 1):
        total = np.zeros(plain.vector.size)
        for name, site in sites.items():
            own = site.study(manifest.settings.task)
            module = own.load_into(own.module(manifest.settings.model_seed), plain)
            randomness = Randomness.seeded(11, name, number, 1, "training")
            size = manifest.settings.cohort.sizes[name]
            train(own.task, module, own.training, size, manifest, randomness)
            total += weights[name] * own.difference(module, plain).vector.astype(np.float64)
        plain = Model((plain.vector + total / sum(weights.values())).astype(np.float32), plain.layout)

    encrypted = plain.layout.flatten(_weights(results))
    # Rounding of one round also moves where the next one starts; gradients here amplify that less than twofold.
    allowed = 2 * ROUNDS * manifest.packing.max_error(list(weights.values()))
    assert np.abs(encrypted - plain.vector).max() <= allowed
    assert np.abs(encrypted - study.untrained(manifest.settings.model_seed).vector).max() > 10 * allowed
