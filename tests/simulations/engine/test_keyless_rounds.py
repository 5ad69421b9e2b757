"""The one loop of benchmarks and baselines: what it yields, and that its sums are those of sites."""

from collections.abc import Iterator

import numpy as np
import pytest

from client.flower import open_site
from cloister.benchmarks.pipelines import Cloister, charge_for_nobody
from privacy.codec.packing import Packing
from privacy.codec.update import Layout, Model, Update
from privacy.noise.randomness import Randomness
from simulations.engine.baselines import studies_of
from simulations.engine.keyless_rounds import PackedMeans, Sites, rounds
from tests.federations import FederationMaker, signed_run

START = Model(np.zeros(2, np.float32), Layout((("weight", (2,)),)))


def test_it_yields_the_model_before_the_first_round_and_after_each() -> None:
    seen = []

    def mean(number: int, model: Model) -> Update:
        seen.append((number, model.vector.tolist()))
        return Update(np.array([number, 1], np.float32))

    models = [model.vector.tolist() for model in rounds(START, 3, mean)]
    assert models == [[0, 0], [1, 1], [3, 2], [6, 3]]
    assert seen == [(1, [0, 0]), (2, [1, 1]), (3, [3, 2])]


def test_a_run_of_no_rounds_is_the_model_that_it_starts_from() -> None:
    assert [*rounds(START, 0, lambda *_: pytest.fail("a round"))] == [START]


@pytest.fixture
def sites(make_federation: FederationMaker) -> Iterator[Sites]:
    federation = make_federation()
    _, manifest, _ = signed_run(federation)
    weights = {site: manifest.weight(site) for site in federation.sites}
    studies = studies_of(federation, manifest)
    yield Sites(studies, weights, manifest, lambda *of: Randomness.seeded(1, *of))
    open_site.cache_clear()


def test_residuals_are_carried_over_and_the_range_adapts(sites: Sites) -> None:
    model = next(iter(sites.studies.values())).start(sites.manifest.settings)
    dense = Packing.of("dense", cohort=4, update_bound=1.0, max_weight=1.0)
    *_, exact = rounds(model, 8, sites.exact_mean)
    *_, carried = rounds(model, 8, PackedMeans(sites, dense, charge_for_nobody()))
    *_, dropped = rounds(model, 8, PackedMeans(sites, dense, charge_for_nobody(), carries=False))
    far, near = (np.abs(update.vector - exact.vector).max() for update in (dropped, carried))
    assert near < dense.max_error(list(sites.weights.values()))
    assert near < far


def test_under_encryption_the_model_is_the_same_to_the_bit(sites: Sites) -> None:
    model = next(iter(sites.studies.values())).start(sites.manifest.settings)
    packing, charge, weights = sites.manifest.packing, charge_for_nobody(), list(sites.weights.values())
    pipeline = Cloister("compact", model.layout.size, weights, charge)
    *_, plain = rounds(model, 3, PackedMeans(sites, packing, charge))
    *_, encrypted = rounds(model, 3, PackedMeans(sites, packing, charge, total=pipeline.total))
    assert plain.digest == encrypted.digest
