"""The checks of an audit: a sound mechanism passes at any setting, and each check fails on what it is there for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cloister.audit.checks import Sighting, check
from cloister.audit.whole import check_whole
from privacy.accounting.accounting import Mechanism
from privacy.accounting.calibration import calibrate

DELTA = 1e-5
OWN = {"model.weight": 30, "model.bias": 1}
SETTINGS = [
    pytest.param(8.0, 0.5, 12, 4, 4000, id="the reference study's"),
    pytest.param(0.1, 0.5, 12, 4, 500, id="much noise"),
    pytest.param(3.0, 1.0, 12, 1, 2000, id="no sampling, where bounds are tight"),
    pytest.param(20.0, 0.25, 6, 4, 2000, id="little noise"),
    pytest.param(40.0, 0.05, 5, 4, 2000, id="hardly any noise, and a low rate"),
    pytest.param(8.0, 0.02, 5, 10, 400, id="a low rate and few canaries"),
    pytest.param(8.0, 1.0, 1, 1, 400, id="one step"),
]


def _ideal(rng: np.random.Generator, claim: Mechanism, rounds: int, canaries: int) -> tuple[Sighting, Sighting]:
    """Simulate exactly the mechanism of a claim, at two sites; at the second, with silent canaries."""
    included = rng.random(canaries) < 0.5
    seen = []
    for counts in (1, 0):
        batches = (rng.random((claim.steps, canaries)) < claim.sample_rate) & included
        counted = counts * batches.reshape(rounds, -1, canaries).sum(axis=1)
        drawn = rng.standard_normal((rounds, canaries + sum(OWN.values())))
        noise = np.split(claim.noise_multiplier * np.sqrt(claim.steps / rounds) * drawn, [canaries, canaries + 30], 1)
        own = dict(zip(OWN, noise[1:], strict=True))
        seen.append(Sighting(included, counted + noise[0], batches, (claim,), DELTA, own))
    return seen[0], seen[1]


def _loud(rng: np.random.Generator, like: Sighting, beside: float, own: float) -> Sighting:
    """Simulate a round in which canaries count so many C in their coordinates, and so many in the model's."""
    steps = like.steps // len(like.moved)
    claim = replace(like.charged[0], steps=steps)
    batches = (rng.random((steps, like.included.size)) < claim.sample_rate) & like.included
    noise = claim.noise_multiplier * np.sqrt(steps)
    moved = beside * batches.sum(axis=0) + noise * rng.standard_normal(like.included.size)
    parts = {name: noise * rng.standard_normal((1, size)) for name, size in OWN.items()}
    parts["model.bias"] += own * batches.sum()
    return Sighting(like.included, moved[None], batches, (claim,), DELTA, parts)


@pytest.mark.parametrize(("epsilon", "rate", "rounds", "steps", "canaries"), SETTINGS)
def test_the_ideal_mechanism_passes_at_any_setting(
    epsilon: float, rate: float, rounds: int, steps: int, canaries: int
) -> None:
    claim = Mechanism(calibrate(epsilon, DELTA, rate, rounds * steps), rate, rounds * steps)
    for seed in range(20):
        rng = np.random.default_rng(seed)
        first, silent = _ideal(rng, claim, rounds, canaries)
        checks = [*check(first, silent), *check_whole(silent, _loud(rng, first, 0.6, 0.8))]
        assert not [result for result in checks if not result.held], seed


CLAIM = Mechanism(2.234, 0.5, 48)


def _failed(first: Sighting, second: Sighting) -> set[str]:
    return {result.name for result in check(first, second) if not result.held}


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
    assert _failed(sound, replace(other, moved=np.roll(noise, 3, axis=0))) == {"another site"}
    assert _failed(sound, replace(other, own=sound.own)) == {"another site"}
    again = noise.copy()
    again[7] = noise[2]
    assert "other rounds" in _failed(replace(sound, moved=signal + again), other)
    again = other.own["model.weight"].copy()
    again[7] = again[2]
    assert _failed(sound, replace(other, own=other.own | {"model.weight": again})) == {"other rounds"}


def _failed_in_whole(silent: Sighting, loud: Sighting) -> set[str]:
    return {result.name for result in check_whole(silent, loud) if not result.held}


def test_each_check_of_the_whole_model_fails_on_its_own_fault_alone() -> None:
    rng = np.random.default_rng(3)
    first, silent = _ideal(rng, CLAIM, 12, 4000)
    loud, weight = _loud(rng, first, 0.6, 0.8), silent.own["model.weight"]

    def with_weight(changed: np.ndarray) -> Sighting:
        return replace(silent, own=silent.own | {"model.weight": changed})

    assert not _failed_in_whole(silent, loud)
    assert _failed_in_whole(with_weight(0.7 * weight), loud) == {"model's noise"}
    assert _failed_in_whole(with_weight(1.4 * weight), loud) == {"model's noise"}
    bias = np.zeros_like(silent.own["model.bias"])
    assert _failed_in_whole(replace(silent, own=silent.own | {"model.bias": bias}), loud) == {"model's noise"}
    for beside, own in ((1.0, 1.0), (0.0, 1.05), (1.3, 0.0)):
        assert _failed_in_whole(silent, _loud(rng, first, beside, own)) == {"joint clipping"}
    for place in (0, 1234, 3970):
        assert _failed_in_whole(with_weight(silent.moved[:, place : place + 30]), loud) == {"other places"}
    halves = np.tile(weight[:, :15], 2)
    assert _failed_in_whole(with_weight(halves), loud) == {"other places"}


def test_a_claim_that_the_model_alone_refutes_is_refuted() -> None:
    sound, other = _ideal(np.random.default_rng(2), CLAIM, 12, 4000)
    modest = (replace(CLAIM, noise_multiplier=2 * CLAIM.noise_multiplier),)
    assert "implementation" in _failed(replace(sound, charged=modest), other)
    tiny = (replace(CLAIM, noise_multiplier=10 * CLAIM.noise_multiplier),)
    assert {"formal bound", "implementation"} <= _failed(replace(sound, charged=tiny), other)


@pytest.mark.parametrize("seed", range(3))
def test_batches_that_are_not_poisson_samples_are_found(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sound, other = _ideal(rng, CLAIM, 12, 4000)
    inside = np.flatnonzero(sound.included)

    def seen(chosen: list[np.ndarray]) -> Sighting:
        batches = np.zeros_like(sound.batches)
        for step, records in enumerate(chosen):
            batches[step, records] = True
        moved = sound.moved + batches.reshape(12, 4, -1).sum(axis=1) - sound.batches.reshape(12, 4, -1).sum(axis=1)
        return replace(sound, batches=batches, moved=moved)

    half = len(inside) // 2
    sized = [rng.choice(inside, half, replace=False) for _ in range(48)]
    dealt = [part for _ in range(24) for part in np.array_split(rng.permutation(inside), 2)]
    same = [inside[rng.random(len(inside)) < 0.5]] * 48
    lower = [inside[rng.random(len(inside)) < 0.48] for _ in range(48)]
    for chosen in (sized, dealt, same, lower):
        assert "sampling" in _failed(seen(chosen), other)
