"""The checks of an audit: a sound mechanism passes at any setting, and each check fails on what it is there for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cloister.audits.checks import Sighting, check
from privacy.accounting import Mechanism, calibrate

DELTA = 1e-5
SETTINGS = [
    pytest.param(8.0, 0.5, 12, 4, 4000, id="the reference study's"),
    pytest.param(0.1, 0.5, 12, 4, 500, id="much noise"),
    pytest.param(3.0, 1.0, 12, 1, 2000, id="no sampling, where bounds are tight"),
    pytest.param(20.0, 0.25, 6, 4, 2000, id="little noise"),
    pytest.param(40.0, 0.05, 5, 4, 2000, id="hardly any noise, and a low rate"),
    pytest.param(8.0, 0.02, 5, 10, 400, id="a low rate and few canaries"),
    pytest.param(8.0, 1.0, 1, 1, 400, id="one step"),
]


def _ideal(luck: np.random.Generator, claim: Mechanism, rounds: int, canaries: int) -> tuple[Sighting, Sighting]:
    """Simulate exactly the mechanism of a claim, at two sites."""
    included = luck.random(canaries) < 0.5
    seen = []
    for _ in range(2):
        batches = (luck.random((claim.steps, canaries)) < claim.sample_rate) & included
        counted = batches.reshape(rounds, -1, canaries).sum(axis=1)
        noise = claim.noise_multiplier * np.sqrt(claim.steps / rounds) * luck.standard_normal(counted.shape)
        seen.append(Sighting(included, counted + noise, batches, (claim,), DELTA))
    return seen[0], seen[1]


@pytest.mark.parametrize(("epsilon", "rate", "rounds", "steps", "canaries"), SETTINGS)
def test_the_ideal_mechanism_passes_at_any_setting(
    epsilon: float, rate: float, rounds: int, steps: int, canaries: int
) -> None:
    claim = Mechanism(calibrate(epsilon, DELTA, rate, rounds * steps), rate, rounds * steps)
    for seed in range(20):
        failed = [
            each for each in check(*_ideal(np.random.default_rng(seed), claim, rounds, canaries)) if not each.held
        ]
        assert not failed, seed


CLAIM = Mechanism(2.234, 0.5, 48)


def _failed(first: Sighting, second: Sighting) -> set[str]:
    return {each.name for each in check(first, second) if not each.held}


def test_each_check_fails_on_its_own_fault_alone() -> None:
    sound, other = _ideal(np.random.default_rng(1), CLAIM, 12, 4000)
    signal = sound.batches.reshape(12, 4, -1).sum(axis=1)
    noise = sound.moved - signal
    assert not _failed(sound, other)
    assert _failed(replace(sound, moved=signal + 0.85 * noise), other) == {"noise"}
    assert _failed(replace(sound, moved=signal + 1.15 * noise), other) == {"noise"}
    assert _failed(replace(sound, moved=1.1 * signal + noise), other) == {"clipping"}
    assert _failed(replace(sound, moved=0.9 * signal + noise), other) == {"clipping"}
    assert _failed(replace(sound, batches=np.vstack([sound.batches, sound.batches[:1]])), other) == {"steps"}
    assert _failed(sound, replace(other, moved=np.roll(signal, 3, axis=0) + np.roll(noise, 3, axis=0))) == {
        "another site"
    }
    again = noise.copy()
    again[7] = noise[2]
    assert "other rounds" in _failed(replace(sound, moved=signal + again), other)


def test_a_claim_that_the_model_alone_refutes_is_refuted() -> None:
    sound, other = _ideal(np.random.default_rng(2), CLAIM, 12, 4000)
    modest = (replace(CLAIM, noise_multiplier=2 * CLAIM.noise_multiplier),)
    assert "implementation" in _failed(replace(sound, charged=modest), other)
    tiny = (replace(CLAIM, noise_multiplier=10 * CLAIM.noise_multiplier),)
    assert {"formal bound", "implementation"} <= _failed(replace(sound, charged=tiny), other)


@pytest.mark.parametrize("seed", range(3))
def test_batches_that_no_poisson_sampling_makes_are_found(seed: int) -> None:
    luck = np.random.default_rng(seed)
    sound, other = _ideal(luck, CLAIM, 12, 4000)
    inside = np.flatnonzero(sound.included)

    def seen(chosen: list[np.ndarray]) -> Sighting:
        batches = np.zeros_like(sound.batches)
        for step, each in enumerate(chosen):
            batches[step, each] = True
        moved = sound.moved + batches.reshape(12, 4, -1).sum(axis=1) - sound.batches.reshape(12, 4, -1).sum(axis=1)
        return replace(sound, batches=batches, moved=moved)

    half = len(inside) // 2
    sized = [luck.choice(inside, half, replace=False) for _ in range(48)]
    dealt = [part for _ in range(24) for part in np.array_split(luck.permutation(inside), 2)]
    same = [inside[luck.random(len(inside)) < 0.5]] * 48
    lower = [inside[luck.random(len(inside)) < 0.48] for _ in range(48)]
    for chosen in (sized, dealt, same, lower):
        assert "sampling" in _failed(seen(chosen), other)
