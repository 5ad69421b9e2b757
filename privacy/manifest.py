"""A run's parameters: written as `run.toml`, calibrated once, signed by the coordinator, checked by every site.

Everything that matters for privacy stands here and nowhere else; no later message can change it. The run's
name in the protocol is the manifest's digest, so every signature that covers the run covers all of its parameters.
"""

from __future__ import annotations

import json
import secrets
from dataclasses import asdict, field
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from privacy.accounting import Mechanism, calibrate
from privacy.config import STRICT
from privacy.contradictions import contradiction
from privacy.errors import ConfigError, MalformedError, RefusedError
from privacy.packing import Packing, Profile
from privacy.purposes import Evaluation, Start, Vote
from privacy.shared import share_of
from privacy.signing import SignedDocument
from privacy.statistics import encoding_bound
from privacy.strategy import FEDAVG, Strategy

if TYPE_CHECKING:
    from privacy.signing import PrivateKey, PublicKey

KIND = "manifest"
_DAY = 86_400.0  # seconds

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
SiteName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,31}$")]


@dataclass(frozen=True, config=STRICT)
class Training:
    """What every site does in a round."""

    steps_per_round: Annotated[int, Field(ge=0)]  # optimiser steps; 0 measures the protocol alone
    sample_rate: Annotated[float, Field(gt=0, le=1)]  # Poisson: the chance of each record to be in a step
    learning_rate: Positive
    averaging: Annotated[float, Field(ge=0, le=1)] = 0.0  # share of the last rounds whose models make the result


@dataclass(frozen=True, config=STRICT)
class Statistics:
    """What every site adds up in a run that trains nothing: a survey of all its records, once."""

    bins: Annotated[int, Field(ge=2, le=1024)] = 32  # of every column's range


@dataclass(frozen=True, config=STRICT)
class Privacy:
    """The noise: give either the ε that the whole run may cost or the noise itself."""

    max_grad_norm: Positive | None = None  # C, the clipping norm of one record's gradient; in training only
    delta: Annotated[float, Field(gt=0, lt=1e-2)] = 1e-5
    epsilon: Positive | None = None  # of the whole run, by itself
    noise_multiplier: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None  # σ / C
    noise: Literal["local", "shared"] = "local"  # all of it at every site, or only in the sum: `privacy.shared`
    colluding_sites: Annotated[int, Field(ge=0)] | None = (
        None  # that the run is to bear, with the server; 1 if not given
    )

    def __post_init__(self) -> None:
        """Check that exactly one of the two is given."""
        if (self.epsilon is None) == (self.noise_multiplier is None):
            msg = "give either epsilon or noise_multiplier"
            raise ValueError(msg)


@dataclass(frozen=True, config=STRICT)
class Encryption:
    """How updates become integers. There is no way to turn encryption off."""

    update_bound: Positive | None = None  # the codec's range: values of an update beyond it are cut; in training only
    profile: Profile | None = None  # "compact" if not given; statistics are always "precise"
    collusion_resistant: bool = True  # masks: a site that colludes with the server cannot read another's update
    update_norm: Annotated[float, Field(gt=0, le=1e30)] | None = (
        None  # the largest L2 norm of a site's update, which each proves to keep
    )


@dataclass(frozen=True, config=STRICT)
class Cohort:
    """Who trains: every site's name with the size that it declares in public."""

    sizes: Annotated[dict[SiteName, Annotated[int, Field(gt=0)]], Field(min_length=1)]  # training records, about
    minimum: Annotated[int, Field(ge=2)] = 3
    round_deadline_seconds: Positive = 600.0

    def __post_init__(self) -> None:
        """Check that the minimum can be met."""
        if self.minimum > len(self.sizes):
            msg = f"the minimum cohort of {self.minimum} is more than the {len(self.sizes)} sites in sizes"
            raise ValueError(msg)


@dataclass(frozen=True, config=STRICT)
class RunSettings:
    """`run.toml`."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,39}$")]
    task: Annotated[str, Field(pattern=r"^[\w.]+:\w+$")]
    rounds: Annotated[int, Field(ge=1, le=100_000)]
    privacy: Privacy
    cohort: Cohort
    training: Training | None = None  # either this, or statistics, or an evaluation
    statistics: Statistics | None = None
    evaluation: Evaluation | None = None
    start: Start | None = None
    vote: Vote | None = None  # in training only
    encryption: Encryption = field(default_factory=Encryption)
    strategy: Strategy = field(default_factory=FEDAVG.copy)  # the federated algorithm, in training only
    model_seed: Annotated[int, Field(ge=0, lt=1 << 63)] = 0  # of the untrained model, the same at all sites
    valid_days: Annotated[float, Field(gt=0, le=366)] = (
        30.0  # after it is signed; a run that lasts longer is signed anew
    )
    seed: Annotated[int, Field(ge=0)] | None = None  # repeats a run without privacy, for measurements

    def __post_init__(self) -> None:
        """Check what concerns several tables."""
        if self.seed is not None and self.privacy.noise_multiplier != 0:
            msg = "a seed makes the noise predictable; remove it, or set noise_multiplier = 0"
            raise ValueError(msg)
        if problem := contradiction(self):
            raise ValueError(problem)
        try:
            _packing(self, 0.0)
        except ConfigError as error:
            raise ValueError(str(error)) from error

    @property
    def profile(self) -> Profile:
        """How many bits a number of an update takes."""
        return (self.encryption.profile or "compact") if self.training else "precise"

    @property
    def shares_noise(self) -> bool:
        """Whether only the sum of all updates carries all of the noise."""
        return self.privacy.noise == "shared"

    @cached_property
    def largest_size(self) -> int:
        """The most records that a site declares."""
        return max(self.cohort.sizes.values())

    def weight(self, site: str) -> float:
        """Return the weight of a site's update: its declared size over the largest; where nothing is trained, 1."""
        return self.cohort.sizes[site] / self.largest_size if self.training else 1.0


@dataclass(frozen=True, config=STRICT)
class Manifest:
    """A run as every site checks it: the settings, and the one σ that was calibrated over all its steps."""

    settings: RunSettings
    noise_multiplier: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    roster_version: Annotated[int, Field(ge=1)]
    nonce: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]  # two runs of the same settings are two runs
    created: str
    expires: Annotated[float, Field(allow_inf_nan=False)]  # seconds since 1970; afterwards no site takes part
    version: Literal[1] = 1

    def check_valid(self, now: float) -> None:
        """Check that the run may still be taken part in.

        Raises:
            RefusedError: if its time is over: an old run is not brought back without the coordinator.
        """
        if now > self.expires:
            until = datetime.fromtimestamp(self.expires, UTC).isoformat(timespec="seconds")
            msg = f"the run {self.settings.name!r} was valid until {until}; ask the coordinator to sign it anew"
            raise RefusedError(msg)

    @cached_property
    def packing(self) -> Packing:
        """The codec of this run."""
        return _packing(self.settings, self.noise_multiplier)

    def weight(self, site: str) -> float:
        """Return the weight of a site's update."""
        return self.settings.weight(site)

    @property
    def update_noise(self) -> float:
        """The σ of the noise in a site's update before it is packed; a share comes later."""
        return 0.0 if self.settings.shares_noise else self.noise_multiplier

    @property
    def round_cost(self) -> Mechanism:
        """What one round costs a site."""
        return Mechanism(self.noise_multiplier, *_sampling(self.settings), self.settings.shares_noise)

    @property
    def run_cost(self) -> Mechanism:
        """What the whole run costs a site."""
        rate, steps = _sampling(self.settings)
        return Mechanism(self.noise_multiplier, rate, steps * self.settings.rounds, self.settings.shares_noise)

    @property
    def votes_cost(self) -> Mechanism:
        """What the votes of the whole run cost a site's held-out records."""
        vote = self.settings.vote
        return Mechanism.response(vote.epsilon if vote else 0.0, self.settings.rounds)


def sign_manifest(settings: RunSettings, key: PrivateKey, *, roster_version: int) -> SignedDocument:
    """Calibrate σ over the whole run and sign the result as the coordinator.

    Raises:
        ConfigError: if no noise reaches the ε that was asked for, or the levels or the range suit no share of it.
    """
    now = datetime.now(UTC)
    manifest = Manifest(
        settings=settings,
        noise_multiplier=_sigma(settings),
        roster_version=roster_version,
        nonce=secrets.token_hex(8),
        created=now.isoformat(timespec="seconds"),
        expires=now.timestamp() + settings.valid_days * _DAY,
    )
    if settings.shares_noise:
        share_of(manifest, 1, 0.0)  # what not even the smallest model could do with
    payload = json.dumps(asdict(manifest), indent=1, sort_keys=True).encode()
    return SignedDocument.make(key, KIND, payload)


class SignedRun(NamedTuple):
    """A manifest that the coordinator signed."""

    document: bytes  # as it travels
    manifest: Manifest
    digest: str  # the run's name


def open_manifest(data: bytes, key: PublicKey) -> tuple[Manifest, str]:
    """Check the coordinator's signature, then read the manifest; return it and its digest, the run's name.

    Raises:
        AuthenticityError: if the coordinator did not sign it.
        MalformedError: if it is no manifest of this version.
    """
    document = SignedDocument.open(data, KIND, key)
    try:
        return TypeAdapter(Manifest).validate_json(document.payload), document.digest
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        msg = (
            f"this manifest does not fit this version of Cloister ({place}: {first['msg']}); use one version everywhere"
        )
        raise MalformedError(msg) from error


def _packing(settings: RunSettings, sigma: float) -> Packing:
    return Packing.of(
        settings.profile,
        cohort=len(settings.cohort.sizes),
        update_bound=settings.encryption.update_bound or encoding_bound(sigma, settings.largest_size),
        max_weight=1.0,
    )


def _sampling(settings: RunSettings) -> tuple[float, int]:
    """Return each record's chance to be in a step, and the steps of a round; statistics use every record once."""
    training = settings.training
    return (training.sample_rate, training.steps_per_round) if training else (1.0, 1)


def _sigma(settings: RunSettings) -> float:
    privacy = settings.privacy
    if privacy.noise_multiplier is not None:
        return privacy.noise_multiplier
    if privacy.epsilon is None:  # RunSettings allows exactly one to be absent
        msg = "give either epsilon or noise_multiplier"
        raise ConfigError(msg)
    rate, steps = _sampling(settings)
    return calibrate(privacy.epsilon, privacy.delta, rate, steps * settings.rounds, discrete=settings.shares_noise)
