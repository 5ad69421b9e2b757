"""Make a manifest, as the coordinator: calibrate σ over the whole run, and sign."""

from __future__ import annotations

import json
import secrets
from dataclasses import asdict
from typing import TYPE_CHECKING

from privacy.accounting.calibration import calibrate
from privacy.clock import now
from privacy.crypto.signing import SignedDocument
from privacy.errors import ConfigError
from privacy.noise.noise_shares import share_of
from privacy.run.manifest import KIND, Manifest

if TYPE_CHECKING:
    from privacy.crypto.signing import PrivateKey
    from privacy.run.settings import RunSettings

_DAY = 86_400.0  # seconds


def sign_manifest(settings: RunSettings, key: PrivateKey, *, roster_version: int) -> SignedDocument:
    """Calibrate σ over the whole run and sign the result as the coordinator.

    Raises:
        ConfigError: if no noise reaches the requested ε, or the packing has no room for a share of the noise.
    """
    manifest = make_manifest(settings, roster_version=roster_version)
    return SignedDocument.make(key, KIND, json.dumps(asdict(manifest), indent=1, sort_keys=True).encode())


def make_manifest(settings: RunSettings, *, roster_version: int) -> Manifest:
    """Calibrate σ over the whole run.

    Raises:
        ConfigError: as `sign_manifest` does.
    """
    signed = now()
    manifest = Manifest(
        settings=settings,
        noise_multiplier=_sigma(settings),
        roster_version=roster_version,
        nonce=secrets.token_hex(8),
        created=signed.isoformat(timespec="seconds"),
        expires=signed.timestamp() + settings.valid_days * _DAY,
    )
    if settings.shares_noise:
        share_of(manifest, 1, 0.0)  # raises if not even the smallest model would work
    return manifest


def _sigma(settings: RunSettings) -> float:
    privacy = settings.privacy
    if privacy.noise_multiplier is not None:
        return privacy.noise_multiplier
    if privacy.epsilon is None:  # RunSettings allows exactly one to be absent
        msg = "give either epsilon or noise_multiplier"
        raise ConfigError(msg)
    rate, steps = settings.kind.sampling
    return calibrate(privacy.epsilon, privacy.delta, rate, steps * settings.rounds, discrete=settings.shares_noise)
