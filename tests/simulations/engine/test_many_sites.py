"""More sites than a process used to keep open train together in it; with a thousand, that takes minutes."""

from dataclasses import replace
from pathlib import Path

import pytest

from privacy.run.plan import MOST_SEEDS
from simulations.engine.federation import Federation
from simulations.engine.inline import run_inline
from simulations.engine.results import read_results
from tests.federations import NOISY, TERMS

ROUNDS = 2


@pytest.mark.parametrize(
    "count",
    [
        pytest.param(MOST_SEEDS + 1, marks=pytest.mark.slow),
        pytest.param(1_000, marks=[pytest.mark.soak, pytest.mark.timeout(1800)]),
    ],
)
def test_many_inline_sites_train_and_end_with_one_model(tmp_path: Path, count: int) -> None:
    sizes = {f"site-{number}": 10 for number in range(count)}
    federation = Federation.create(tmp_path, tuple(sizes))
    cohort = replace(NOISY.cohort, sizes=sizes, minimum=count, round_deadline_seconds=3600.0)
    federation.sign(replace(NOISY, rounds=ROUNDS, cohort=cohort))
    for site, path in federation.paths.items():
        (path / TERMS.file).write_text("a,b,y\n" + "1,2,3\n0,1,2\n" * 6, encoding="utf-8")
        federation.write_settings(site, "localhost:1", replace(TERMS, tasks=(NOISY.task,)))
    run_inline(federation)
    results = read_results(federation)
    assert results.rounds == ROUNDS
    assert set(results.digests) == set(sizes)
    assert len(set(results.digests.values())) == 1
