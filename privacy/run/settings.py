"""Define the settings of a run, `run.toml`, and check that its tables do not contradict each other.

Exactly one of three tables states what the run does: `[training]`, `[statistics]` or `[evaluation]`. Its class, a
`RunKind`, holds the consequences for noise, codec, ledger and rules; `client.work.work` holds what a site does.
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
from privacy.config import STRICT, explained
from privacy.errors import ConfigError
from privacy.ledger.entries import Purpose
from privacy.run.averaging import Averaging
from privacy.run.optimizer import Constant, Optimizer, Schedule, Sgd, check_steps, steps_of
from privacy.run.strategy import FEDAVG, Strategy
from privacy.run.tables import Clipping, Start, Vote

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
SiteName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,31}$")]


class RunKind(Protocol):
    """What a kind of run implies for noise, codec, ledger and rules."""

    purpose: ClassVar[Purpose]
    """The purpose under which the ledger charges it."""

    held_out: ClassVar[bool]
    """Whether it uses the held-out records, which have a ledger of their own."""

    profile: ClassVar[Profile]
    """The packing profile, unless the run sets one."""

    @property
    def sampling(self) -> tuple[float, int]:
        """The sample rate, and the number of steps per round."""
        ...

    @property
    def mean(self) -> Averaging | None:
        """Which rounds' models are averaged into the result; None if it is the last one."""
        ...

    def weight(self, share: float) -> float:
        """Return the weight of a site's update, given its declared size over the largest."""
        ...

    def contradiction(self, run: RunSettings) -> str | None:
        """Return what the run's settings lack or must not contain, or None."""


@explained
@dataclass(frozen=True, config=STRICT)
class Training:
    """`[training]`: what every site does in a round."""

    sample_rate: Annotated[float, Field(gt=0, le=1)]  # Poisson: the probability of each record to be in a step
    learning_rate: Positive  # the highest, if a schedule changes it
    steps_per_round: Annotated[int, Field(ge=0)] | None = None  # optimiser steps; 0 measures the protocol alone
    epochs_per_round: Annotated[float, Field(gt=0)] | None = (
        None  # instead: how often a round uses each record, on average
    )
    optimizer: Optimizer = field(default_factory=Sgd)  # it starts anew each round
    schedule: Schedule = field(default_factory=Constant)  # of the learning rate, over all steps of the run
    averaging: Annotated[float, Field(ge=0, le=1)] = 0.0  # fraction of rounds, at the end, to average into the result
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.0  # instead: a moving average over the models of all rounds
    augmentation_multiplicity: Annotated[int, Field(ge=0, le=1024)] = 0  # augmented copies of each record; 0: as it is

    purpose: ClassVar[Purpose] = "training"
    held_out: ClassVar[bool] = False
    profile: ClassVar[Profile] = "compact"

    def __post_init__(self) -> None:
        """Check that the number of steps is given once and not too large, and that models are averaged in one way."""
        check_steps(self.steps_per_round, self.epochs_per_round, self.sample_rate)
        Averaging.of(self.averaging, self.ema_decay)

    @property
    def steps(self) -> int:
        """The number of steps per round, as given or as the epochs say."""
        return steps_of(self.steps_per_round, self.epochs_per_round, self.sample_rate)

    @property
    def plain(self) -> bool:
        """Whether each step is the learning rate times the noisy gradient, and nothing else."""
        return self.optimizer == Sgd() and self.schedule == Constant()

    @property
    def mean(self) -> Averaging | None:
        """Which models are averaged, as the table says."""
        return Averaging.of(self.averaging, self.ema_decay)

    @property
    def sampling(self) -> tuple[float, int]:
        """The table's sample rate and steps."""
        return self.sample_rate, self.steps

    def weight(self, share: float) -> float:
        """Weight updates by the sites' sizes."""
        return share

    def contradiction(self, run: RunSettings) -> str | None:
        """Return what training lacks, or why its noise cannot be shared, or None."""
        if run.encryption.update_bound is None:
            return "a run with [training] needs update_bound in [encryption]"
        if run.privacy.max_grad_norm is None:
            return "a run with [training] needs max_grad_norm in [privacy], such as 1.0"
        return self._of_shared_noise(run) if run.shares_noise else None

    def _of_shared_noise(self, run: RunSettings) -> str | None:
        privacy, wrong = run.privacy, None
        if not run.encryption.collusion_resistant:
            wrong = (
                'with noise = "shared" a single update has too little noise to be seen; set collusion_resistant '
                "= true in [encryption]"
            )
        elif self.steps != 1:
            wrong = 'noise = "shared" is added once per round; set steps_per_round = 1 and plan more rounds'
        elif not self.plain:
            wrong = 'noise = "shared" needs plain steps of one learning rate; remove optimizer and schedule'
        elif privacy.noise_multiplier == 0:
            wrong = 'noise_multiplier = 0 leaves no noise to share; set a larger one, or remove noise = "shared"'
        elif run.honest_sites < 1:
            wrong = (
                f"colluding_sites = {privacy.colluding_sites} leaves no honest site to add noise in a minimum "
                f"cohort of {run.cohort.minimum}; set fewer"
            )
        return wrong


class OneSum(ABC):
    """Base of the kinds of run without training: each site sums one vector over its records, once."""

    profile: ClassVar[Profile] = "precise"
    _words: ClassVar[tuple[str, str, str, str]]  # for error messages

    @property
    def mean(self) -> Averaging | None:
        """None: there is only one round."""
        return None

    @property
    def sampling(self) -> tuple[float, int]:
        """Every record, once."""
        return 1.0, 1

    def weight(self, share: float) -> float:
        """Weight all sites equally, so that every record counts the same, whatever size a site declares."""
        del share
        return 1.0

    def contradiction(self, run: RunSettings) -> str | None:
        """Return which setting is only for training, or what the table itself lacks, or None."""
        subject, take, have, their = self._words
        encryption, wrong = run.encryption, None
        if run.rounds != 1:
            wrong = f"{subject} {take} one round; set rounds = 1"
        elif encryption.update_bound or encryption.profile or run.privacy.max_grad_norm is not None:
            wrong = (
                f"{subject} {have} {their} own range, profile and norm; remove update_bound, profile and max_grad_norm"
            )
        elif run.privacy.clipping != "flat":
            wrong = f'{subject} {have} no layers to clip; remove clipping = "{run.privacy.clipping}"'
        elif run.strategy["name"] != FEDAVG["name"]:
            wrong = f"{subject} {take} no strategy, because nothing is trained; remove it"
        elif problem := self._problem(run):
            wrong = problem
        elif run.shares_noise:
            wrong = f'{subject} {have} local noise; remove noise = "shared"'
        elif encryption.update_norm is not None:
            wrong = "update_norm applies only to a run with [training]; remove it"
        elif run.vote:
            wrong = _NO_VOTE
        return wrong

    @abstractmethod
    def _problem(self, run: RunSettings) -> str | None:
        """Return what is wrong with the table itself or with the model that the run starts from, or None."""


@dataclass(frozen=True, config=STRICT)
class Statistics(OneSum):
    """`[statistics]`: a survey in which every site sums over all its records, once."""

    bins: Annotated[int, Field(ge=2, le=1024)] = 32  # of every column's range

    purpose: ClassVar[Purpose] = "statistics"
    held_out: ClassVar[bool] = False
    _words = "statistics", "take", "have", "their"

    def _problem(self, run: RunSettings) -> str | None:
        return "statistics need no initial model; remove [start]" if run.start else None


@dataclass(frozen=True, config=STRICT)
class Evaluation(OneSum):
    """`[evaluation]`: every site evaluates the model of `[start]` on its held-out records, once."""

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
            return "name each metric of an evaluation once; for the loss, set loss_bound"
        return None


@explained
@dataclass(frozen=True, config=STRICT)
class Privacy:
    """`[privacy]`: the noise, given either by the ε that the whole run may cost or by its multiplier."""

    max_grad_norm: Positive | None = None  # C, the clipping norm of one record's gradient; in training only
    clipping: Clipping = "flat"  # or each layer by itself, to C/√L; in training only
    delta: Annotated[float, Field(gt=0, lt=1e-2)] = 1e-5
    epsilon: Positive | None = None  # of the whole run, by itself
    noise_multiplier: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None  # σ, relative to C
    noise: Literal["local", "shared"] = "local"  # all of it at every site, or only in the sum: `noise_shares`
    colluding_sites: Annotated[int, Field(ge=0)] | None = None  # may collude with the server; 1 if not given

    def __post_init__(self) -> None:
        """Check that exactly one of ε and the noise multiplier is given."""
        if (self.epsilon is None) == (self.noise_multiplier is None):
            msg = "set either epsilon or noise_multiplier"
            raise ValueError(msg)


@explained
@dataclass(frozen=True, config=STRICT)
class Encryption:
    """`[encryption]`: how updates become integers. Encryption cannot be turned off."""

    update_bound: Positive | None = None  # the codec's range: values beyond it are clipped; in training only
    profile: Profile | None = None  # in training only; "compact" if not given
    collusion_resistant: bool = True  # masks: a site that colludes with the server cannot read another's update
    # The largest L2 norm of a site's update, which each site proves; in training only.
    update_norm: Annotated[float, Field(gt=0, le=1e30)] | None = None


@dataclass(frozen=True, config=STRICT)
class Cohort:
    """`[cohort]`: the sites of the run, each with the size that it declares in public."""

    sizes: Annotated[dict[SiteName, Annotated[int, Field(gt=0)]], Field(min_length=1)]  # approximate training records
    minimum: Annotated[int, Field(ge=2)] = 3
    round_deadline_seconds: Positive = 600.0

    def __post_init__(self) -> None:
        """Check that the minimum can be met."""
        if self.minimum > len(self.sizes):
            msg = f"the minimum cohort of {self.minimum} is more than the {len(self.sizes)} sites in sizes"
            raise ValueError(msg)


@dataclass(frozen=True, config=STRICT)
class RunSettings:
    """The content of `run.toml`."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,39}$")]
    task: Annotated[str, Field(pattern=r"^[\w.]+:\w+$")]
    rounds: Annotated[int, Field(ge=1, le=100_000)]
    privacy: Privacy
    cohort: Cohort
    training: Training | None = None  # exactly one of training, statistics and evaluation is given
    statistics: Statistics | None = None
    evaluation: Evaluation | None = None
    start: Start | None = None
    vote: Vote | None = None  # in training only
    encryption: Encryption = field(default_factory=Encryption)
    strategy: Strategy = field(default_factory=FEDAVG.copy)  # the federated algorithm, in training only
    recipients: tuple[SiteName, ...] = ()  # who may have the model beside the run's sites: names or roles of people
    model_seed: Annotated[int, Field(ge=0, lt=1 << 63)] = 0  # of the untrained model, the same at all sites
    valid_days: Annotated[float, Field(gt=0, le=366)] = 30.0  # after signing; later, the run must be signed again
    seed: Annotated[int, Field(ge=0)] | None = None  # makes a run without privacy repeatable, for measurements

    def __post_init__(self) -> None:
        """Check the rules that involve several tables."""
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
        """The one table that states what the run does."""
        (kind,) = _kinds(self)
        return kind

    @property
    def profile(self) -> Profile:
        """The packing profile."""
        return self.encryption.profile or self.kind.profile

    @property
    def takes_steps(self) -> bool:
        """Whether sites train at all. A run without steps measures the protocol alone."""
        return self.training is not None and self.training.steps > 0

    @property
    def shares_noise(self) -> bool:
        """Whether only the sum of all updates carries all of the noise."""
        return self.privacy.noise == "shared"

    @property
    def colluding_sites(self) -> int:
        """How many sites' shares of the noise do not count; 1 by default, since every site knows its own share.

        A run may set 0 if the sites' policies allow it: its ε is then against observers who take no part.
        """
        count = self.privacy.colluding_sites
        return 1 if count is None else count

    @property
    def honest_sites(self) -> int:
        """K: how many sites' noise a run counts on. With shared noise, the minimum cohort less the colluding sites."""
        return self.cohort.minimum - self.colluding_sites if self.shares_noise else 1

    @cached_property
    def largest_size(self) -> int:
        """The largest size that a site declares."""
        return max(self.cohort.sizes.values())

    def weight(self, site: str) -> float:
        """Return the weight of a site's update, which the kind of run derives from its declared size."""
        return self.kind.weight(self.cohort.sizes[site] / self.largest_size)

    def packing(self, sigma: float) -> Packing:
        """Return the run's packing for noise of this σ."""
        return Packing.of(
            self.profile,
            cohort=len(self.cohort.sizes),
            update_bound=self.encryption.update_bound or encoding_bound(sigma, self.largest_size),
            max_weight=1.0,
        )


_NO_VOTE = "a vote judges the last round's model: it needs [training] without averaging or ema_decay"


def _kinds(run: RunSettings) -> list[RunKind]:
    sections: tuple[RunKind | None, ...] = run.training, run.statistics, run.evaluation
    return [kind for kind in sections if kind is not None]


def _contradiction(run: RunSettings) -> str | None:
    """Return a sentence that explains the first contradiction, or None."""
    if len(_kinds(run)) != 1:
        return "choose exactly one of [training], [statistics] and [evaluation]"
    wrong = run.kind.contradiction(run) or _of_masks(run) or _of_norm(run)
    return wrong or (_NO_VOTE if run.vote and run.kind.mean else None)


def _of_masks(run: RunSettings) -> str | None:
    """Return why masks cannot give the protection that the run asks for, or None."""
    colluding = run.colluding_sites
    if not run.encryption.collusion_resistant:
        if run.privacy.colluding_sites is not None:
            return "colluding_sites applies to masks; remove it, or remove collusion_resistant = false"
    elif run.cohort.minimum < colluding + 2:
        return (
            f"a minimum cohort of {run.cohort.minimum} needs two sites that do not collude beside the "
            f"{colluding} that may: set minimum = {colluding + 2} in [cohort], allow for fewer with "
            "colluding_sites in [privacy], or give up masks with collusion_resistant = false in [encryption]"
        )
    return None


def _of_norm(run: RunSettings) -> str | None:
    """Return why the norm of updates cannot be bounded as the run asks, or None."""
    if run.encryption.update_norm is None:
        return None
    if not run.encryption.collusion_resistant:
        return "proofs of update_norm need the secrets of masks; set collusion_resistant = true in [encryption]"
    if run.shares_noise:
        return (
            "a site's share of the noise is added after its update is clipped to update_norm; remove update_norm "
            'or noise = "shared"'
        )
    return None
