"""Records dealt out to sites that differ: each once, by labels, the same for the same seed."""

import numpy as np
import pytest

from privacy.errors import ConfigError
from simulations.tasks.partition import dirichlet

LABELS = np.repeat(np.arange(4), 100)


@pytest.mark.parametrize("seed", range(5))
def test_every_record_is_at_exactly_one_site(seed: int) -> None:
    parts = dirichlet(LABELS, 5, 0.5, seed)
    assert sorted(np.concatenate(parts)) == list(range(400))
    assert min(map(len, parts)) >= 10


def test_the_same_seed_deals_the_same_and_another_does_not() -> None:
    first, again, other = (dirichlet(LABELS, 5, 0.5, seed) for seed in (1, 1, 2))
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert any(len(a) != len(b) or (a != b).any() for a, b in zip(first, other, strict=True))


def test_the_lower_the_concentration_the_more_sites_differ() -> None:
    def unlike(concentration: float) -> float:
        counts = [np.bincount(LABELS[part], minlength=4) for part in dirichlet(LABELS, 5, concentration, 0)]
        return float(np.mean([abs(count / count.sum() - 0.25).max() for count in counts]))

    assert unlike(1000.0) < 0.1 < unlike(0.3)


def test_too_few_records_are_refused() -> None:
    with pytest.raises(ConfigError, match="30 records are too few for 4 sites"):
        dirichlet(np.zeros(30, np.int64), 4, 0.5, 0)
