"""Gradient inversion: recover records from one update of softmax regression.

With ∂L/∂z the gradient with respect to the logits, ∂L/∂W = ∂L/∂z ⊗ x and ∂L/∂b = ∂L/∂z. So a row of the weights'
update, divided by the same entry of the bias update, *is* the input, exactly, whatever the learning rate (Phong et al.
2018, "Privacy-Preserving Deep Learning via Additively Homomorphic Encryption", section 3). For a batch, the result is a
mixture dominated by the records with that label. No search, no training, no other knowledge: one division.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cloister.audit.local_run import Scratch
from privacy.accounting.calibration import calibrate
from privacy.codec.packing import Packing, pack
from privacy.codec.update import Update, privatise
from privacy.crypto.key_epoch import EpochKeys
from privacy.crypto.masking import mask
from privacy.noise.randomness import Randomness
from privacy.run.plan import RoundPlan
from privacy.run.settings import Cohort, Encryption, Privacy, RunSettings, Training
from simulations.tasks.digits import CLASSES, LARGEST, PIXELS, Digits, digits, write_digits

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from privacy.ledger.ledger import Charge

DELTA, NORM = 1e-5, 1.0
_BOUND = 4.0  # of an update's values; the largest, for a single record without clipping, is 0.9
_FILE, _SITES = "digits.csv", ("attacked", "other")
_ZERO = "0" * 64


@dataclass(frozen=True)
class Attack:
    """An attacker's reconstruction of one digit from an update of its batch."""

    name: str
    image: NDArray[np.float64]  # (64,)
    correlation: float  # with the digit, from −1 to 1


def attacks(folder: Path, row: int, batch: int, epsilon: float) -> tuple[NDArray[np.float64], list[Attack]]:
    """Attack one digit: alone, in a small batch, under DP-SGD, and encrypted, with the code that sites run.

    Args:
        folder: where to make scratch sites.
        row: the digit's index.
        batch: the number of digits in the small batch, each with a different label.
        epsilon: the cost of the protected update at δ = 1e-5.

    Returns:
        The digit `(64,)`, from 0 to 1, and the attacks on it.
    """
    pixels, targets = digits()
    truth, label = pixels[row] / LARGEST, int(targets[row])
    others = [int(np.flatnonzero(targets == (label + step) % CLASSES)[0]) for step in range(1, batch)]
    alone, several = np.array([row]), np.array([row, *others])
    plain, _ = _update(folder / "plain", alone, 0.0)
    small, _ = _update(folder / "batch", several, 0.0)
    sigma = calibrate(epsilon, DELTA, 1.0, 1)
    protected, charge = _update(folder / "protected", alone, sigma)
    images = {
        "plain update": invert(plain, label),
        f"plain update of {batch} records": invert(small, label),
        f"DP-SGD, ε = {epsilon:g}": invert(protected, label),
        "encrypted update": _pixels(_encrypted(plain, charge)),
    }
    return truth, [Attack(name, image, _correlation(image, truth)) for name, image in images.items()]


def invert(update: NDArray[np.float32], label: int) -> NDArray[np.float64]:
    """Divide the weights' update for one label by the bias update: `(650,)` to `(64,)`.

    Training always raises the label's own logit, so the bias update is positive; noise that makes it negative is
    ignored.
    """
    weights, biases = np.split(update.astype(np.float64), [CLASSES * PIXELS])
    bias = abs(biases[label])
    return np.asarray(weights.reshape(CLASSES, PIXELS)[label] / (bias or np.nan))


def _update(folder: Path, rows: NDArray[np.intp], sigma: float) -> tuple[NDArray[np.float32], Charge]:
    """Let a site make an update in one step with all these digits; if sigma is 0, also without clipping."""
    folder.mkdir(parents=True)
    norm = NORM if sigma else 1e6
    settings = RunSettings(
        name="inversion", task=f"{Digits.__module__}:{Digits.__name__}", rounds=1,
        privacy=Privacy(max_grad_norm=norm, delta=DELTA, noise_multiplier=sigma),
        cohort=Cohort(dict.fromkeys(_SITES, len(rows)), minimum=2),
        training=Training(steps_per_round=1, sample_rate=1.0, learning_rate=1.0),
        encryption=Encryption(update_bound=_BOUND, collusion_resistant=False),
    )  # fmt: skip
    scratch = Scratch.create(folder, settings, _FILE, device="cpu")
    site = scratch.sites[_SITES[0]]
    write_digits(site.place.path(site.settings.data.file), rows)
    private = scratch.first_update(site.name)
    return private.vector, private.charge


def _encrypted(update: NDArray[np.float32], charge: Charge) -> bytes:
    """Pack, tag and encrypt an update; return the first chunk of ciphertexts."""
    keys = EpochKeys.generate(1)
    packing = Packing.of("compact", cohort=3, update_bound=_BOUND, max_weight=1.0)
    plan = RoundPlan(
        run=_ZERO, round=1, attempt=1, cohort=_SITES, roster_version=1, epoch=1, keys=keys.fingerprint,
        minimum_cohort=2, deadline=0.0, base_model=_ZERO,
    )  # fmt: skip
    packed = pack(privatise(Update(update.copy()), charge), 1.0, packing, Randomness.fresh())
    encrypted = keys.decryption.encrypt(keys.tag.tag(mask(packed, None), plan, _SITES[0]))
    return keys.mac.authenticate(encrypted, plan, _SITES[0]).ciphertexts.chunks[0]


def _pixels(data: bytes) -> NDArray[np.float64]:
    """Return the first bytes as pixels from 0 to 1, `(64,)`."""
    return np.frombuffer(data[:PIXELS], dtype=np.uint8) / 255.0


def _correlation(image: NDArray[np.float64], truth: NDArray[np.float64]) -> float:
    return float(np.corrcoef(image, truth)[0, 1])
