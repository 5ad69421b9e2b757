"""`run.toml`: what a run asks of its sites, and what its tables may not say together.

One table of three says what the run is about: `[training]`, `[statistics]` or `[evaluation]`. What follows for noise,
codec, ledger and rules stands with the table, as a `RunKind`; what a site does then stands in `client.work.work`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import field
from functools import cached_property
from typing import Annotated, ClassVar, Literal, Protocol

from pydantic import Field
from pydantic.dataclasses import dataclass

from privacy.analytics.statistics import encoding_bound
from privacy.codec.packing import Packing, Profile
from privacy.config import STRICT
from privacy.errors import ConfigError
from privacy.ledger.entries import Purpose
from privacy.run.strategy import FEDAVG, Strategy

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
SiteName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,31}$")]


class RunKind(Protocol):
    """What kind of run it is."""

    purpose: ClassVar[Purpose]
    """What the ledger calls it."""

    held_out: ClassVar[bool]
    """Whether it is about the records that are held out, which have a ledger of their own."""

    profile: ClassVar[Profile]
    """How many bits a number of an update takes, if the run does not say."""

    @property
    def sampling(self) -> tuple[float, int]:
        """Each record's chance to be in a step, and the steps of a round."""
        ...

    @property
    def averaging(self) -> float:
        """The share of the last rounds whose models make the result."""
        ...

    def weight(self, share: float) -> float:
        """Return the weight of a site's update, given its declared size over the largest."""
        ...

    def contradiction(self, run: RunSettings) -> str | None:
        """Say what such a run has too much or too little."""


@dataclass(frozen=True, config=STRICT)
class Training:
    """`[training]`: what every site does in a round."""

    steps_per_round: Annotated[int, Field(ge=0)]  # optimiser steps; 0 measures the protocol alone
    sample_rate: Annotated[float, Field(gt=0, le=1)]  # Poisson: the chance of each record to be in a step
    learning_rate: Positive
    averaging: Annotated[float, Field(ge=0, le=1)] = 0.0  # share of the last rounds whose models make the result

    purpose: ClassVar[Purpose] = "training"
    held_out: ClassVar[bool] = False
    profile: ClassVar[Profile] = "compact"

    @property
    def sampling(self) -> tuple[float, int]:
        """As the table says."""
        return self.sample_rate, self.steps_per_round

    def weight(self, share: float) -> float:
        """Weight updates by the sites' sizes."""
        return share

    def contradiction(self, run: RunSettings) -> str | None:
        """Say what training lacks, or why its noise cannot be shared."""
        if run.encryption.update_bound is None:
            return "a run with [training] needs update_bound in [encryption]"
        if run.privacy.max_grad_norm is None:
            return "a run with [training] needs max_grad_norm in [privacy]"
        return self._of_shared_noise(run) if run.shares_noise else None

    def _of_shared_noise(self, run: RunSettings) -> str | None:
        privacy, wrong = run.privacy, None
        if not run.encryption.collusion_resistant:
            wrong = (
                'with noise = "shared" an update by itself has too little noise for anybody to read; '
                "set collusion_resistant = true in [encryption]"
            )
        elif self.steps_per_round != 1:
            wrong = 'noise = "shared" is added once a round; set steps_per_round = 1, and more rounds'
        elif privacy.noise_multiplier == 0:
            wrong = 'noise_multiplier = 0 leaves no noise to share; give more, or remove noise = "shared"'
        elif run.honest_sites < 1:
            wrong = (
                f"colluding_sites = {privacy.colluding_sites} leaves nobody of a minimum cohort of "
                f"{run.cohort.minimum} to add noise; give fewer"
            )
        return wrong


class OneSum(ABC):
    """What kinds of runs have in common that train nothing: each site adds a vector up over its records, once."""

    profile: ClassVar[Profile] = "precise"
    _words: ClassVar[tuple[str, str, str, str]]  # of sentences about it

    @property
    def averaging(self) -> float:
        """Nothing: there is one round."""
        return 0.0

    @property
    def sampling(self) -> tuple[float, int]:
        """Every record, once."""
        return 1.0, 1

    def weight(self, share: float) -> float:
        """Count every record alike, whatever a site declares."""
        del share
        return 1.0

    def contradiction(self, run: RunSettings) -> str | None:
        """Say what a run has that is only for training, or what it lacks itself."""
        what, take, have, their = self._words
        encryption, wrong = run.encryption, None
        if run.rounds != 1:
            wrong = f"{what} {take} one round; set rounds = 1"
        elif encryption.update_bound or encryption.profile or run.privacy.max_grad_norm is not None:
            wrong = f"{what} {have} {their} own range, profile and norm; remove update_bound, profile and max_grad_norm"
        elif run.strategy["name"] != FEDAVG["name"]:
            wrong = f"{what} {take} no strategy, as nothing is trained; remove it"
        elif problem := self._problem(run):
            wrong = problem
        elif run.shares_noise:
            wrong = f'{what} {have} local noise; remove noise = "shared"'
        elif encryption.update_norm is not None:
            wrong = "update_norm is of a run with [training]; remove it"
        elif run.vote:
            wrong = _NO_VOTE
        return wrong

    @abstractmethod
    def _problem(self, run: RunSettings) -> str | None:
        """Say what is wrong with the table itself, or with the model that the run starts from."""


@dataclass(frozen=True, config=STRICT)
class Statistics(OneSum):
    """`[statistics]`: what every site adds up in a survey of all its records, once."""

    bins: Annotated[int, Field(ge=2, le=1024)] = 32  # of every column's range

    purpose: ClassVar[Purpose] = "statistics"
    held_out: ClassVar[bool] = False
    _words = "statistics", "take", "have", "their"

    def _problem(self, run: RunSettings) -> str | None:
        return "statistics start from nothing; remove [start]" if run.start else None


@dataclass(frozen=True, config=STRICT)
class Evaluation(OneSum):
    """`[evaluation]`: what every site adds up over its held-out records, once, about the model of `[start]`."""

    metrics: tuple[str, ...] = ("accuracy",)  # the task's, clamped to 0 … 1
    loss_bound: Positive | None = None  # if given, the loss, clamped to it

    purpose: ClassVar[Purpose] = "evaluation"
    held_out: ClassVar[bool] = True
    _words = "an evaluation", "takes", "has", "its"

    def _problem(self, run: RunSettings) -> str | None:
        if run.start is None:
            return "an evaluation needs [start]: name the model to evaluate"
        if not self.metrics and self.loss_bound is None:
            return "an evaluation needs metrics, or a loss_bound"
        if len(set(self.metrics)) < len(self.metrics) or any(
            name.partition(" ")[0] in {"loss", "count"} for name in self.metrics
        ):
            return "the metrics of an evaluation stand there once each; for the loss, give loss_bound"
        return None


@dataclass(frozen=True, config=STRICT)
class Privacy:
    """The noise: give either the ε that the whole run may cost or the noise itself."""

    max_grad_norm: Positive | None = None  # C, the clipping norm of one record's gradient; in training only
    delta: Annotated[float, Field(gt=0, lt=1e-2)] = 1e-5
    epsilon: Positive | None = None  # of the whole run, by itself
    noise_multiplier: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None  # σ / C
    noise: Literal["local", "shared"] = "local"  # all of it at every site, or only in the sum: `privacy.noise.shared`
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
class Vote:
    """`[vote]`: after each round every site says in one bit whether the model got worse: `privacy.run.votes`."""

    epsilon: Annotated[float, Field(gt=0, le=20)]  # of one vote
    tolerance: Annotated[float, Field(ge=0, allow_inf_nan=False)]  # how much larger the loss on held-out records may be


@dataclass(frozen=True, config=STRICT)
class Start:
    """`[start]`: the model with which a run begins, in place of an untrained one."""

    model: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]  # SHA-256 of its file, which every site has already


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
        if problem := _contradiction(self):
            raise ValueError(problem)
        try:
            self.packing(0.0)
        except ConfigError as error:
            raise ValueError(str(error)) from error

    @cached_property
    def kind(self) -> RunKind:
        """The table that says what the run is about: there is just one."""
        (kind,) = _kinds(self)
        return kind

    @property
    def profile(self) -> Profile:
        """How many bits a number of an update takes."""
        return self.encryption.profile or self.kind.profile

    @property
    def takes_steps(self) -> bool:
        """Whether sites train at all; a run of no steps measures the protocol alone."""
        return self.training is not None and self.training.steps_per_round > 0

    @property
    def shares_noise(self) -> bool:
        """Whether only the sum of all updates carries all of the noise."""
        return self.privacy.noise == "shared"

    @property
    def colluding_sites(self) -> int:
        """How many sites' shares do not count. Every site sees the sums, and knows its own: one at least.

        A run may say 0, for a site that lets it (`[policy]`): its ε is then against those who take no part.
        """
        given = self.privacy.colluding_sites
        return 1 if given is None else given

    @property
    def honest_sites(self) -> int:
        """How many sites make the noise that a run counts on, K: of a minimum cohort, those that do not collude."""
        return self.cohort.minimum - self.colluding_sites if self.shares_noise else 1

    @cached_property
    def largest_size(self) -> int:
        """The most records that a site declares."""
        return max(self.cohort.sizes.values())

    def weight(self, site: str) -> float:
        """Return the weight of a site's update, as the kind of run sees the size that it declares."""
        return self.kind.weight(self.cohort.sizes[site] / self.largest_size)

    def packing(self, sigma: float) -> Packing:
        """Return the codec of the run, at this noise."""
        return Packing.of(
            self.profile,
            cohort=len(self.cohort.sizes),
            update_bound=self.encryption.update_bound or encoding_bound(sigma, self.largest_size),
            max_weight=1.0,
        )


_NO_VOTE = "a vote is on the last round's model: it needs [training], and no averaging"


def _kinds(run: RunSettings) -> list[RunKind]:
    given: tuple[RunKind | None, ...] = run.training, run.statistics, run.evaluation
    return [each for each in given if each is not None]


def _contradiction(run: RunSettings) -> str | None:
    """Say what contradicts what, if anything does: in words, for whoever wrote it."""
    if len(_kinds(run)) != 1:
        return "give either [training] or [statistics], or [evaluation]"
    wrong = run.kind.contradiction(run) or _of_masks(run) or _of_norm(run)
    return wrong or (_NO_VOTE if run.vote and run.kind.averaging else None)


def _of_masks(run: RunSettings) -> str | None:
    """Say why masks cannot keep what the run asks of them."""
    colluding = run.colluding_sites
    if not run.encryption.collusion_resistant:
        if run.privacy.colluding_sites is not None:
            return "colluding_sites is about masks; remove it, or collusion_resistant = false"
    elif run.cohort.minimum < colluding + 2:
        return (
            f"of the minimum cohort of {run.cohort.minimum}, {colluding} may collude and two must not, so that "
            f"nobody knows all but one: set minimum = {colluding + 2} in [cohort]; or allow for fewer with "
            "colluding_sites in [privacy]; or do without masks, collusion_resistant = false in [encryption]"
        )
    return None


def _of_norm(run: RunSettings) -> str | None:
    """Say why the length of updates cannot be bounded as a run asks."""
    if run.encryption.update_norm is None:
        return None
    if not run.encryption.collusion_resistant:
        return "proofs of update_norm hide behind the secrets of masks; set collusion_resistant = true in [encryption]"
    if run.shares_noise:
        return 'a share of the noise comes after an update is cut to update_norm; remove one, or noise = "shared"'
    return None
