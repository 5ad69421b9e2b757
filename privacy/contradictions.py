"""What the settings of a run may not say together: in words, for whoever wrote them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from privacy.shared import colluding_sites, honest_sites
from privacy.strategy import FEDAVG

if TYPE_CHECKING:
    from privacy.manifest import RunSettings


def contradiction(settings: RunSettings) -> str | None:
    """Say what contradicts what, if anything does."""
    return (
        _of_purpose(settings) or _of_noise(settings) or _of_masks(settings) or _of_norm(settings) or _of_vote(settings)
    )


def _of_purpose(settings: RunSettings) -> str | None:  # noqa: PLR0911 - a sentence each
    """Say what a run that trains, or one that gathers statistics, has too much or too little."""
    has_norm = settings.privacy.max_grad_norm is not None
    purposes = settings.training, settings.statistics, settings.evaluation
    if sum(each is not None for each in purposes) != 1:
        return "give either [training] or [statistics], or [evaluation]"
    if settings.training:
        if settings.encryption.update_bound is None:
            return "a run with [training] needs update_bound in [encryption]"
        return None if has_norm else "a run with [training] needs max_grad_norm in [privacy]"
    what, takes, has = (
        ("an evaluation", "takes", "has its") if settings.evaluation else ("statistics", "take", "have their")
    )
    if settings.rounds != 1:
        return f"{what} {takes} one round; set rounds = 1"
    if settings.encryption.update_bound or settings.encryption.profile or has_norm:
        return f"{what} {has} own range, profile and norm; remove update_bound, profile and max_grad_norm"
    if settings.strategy["name"] != FEDAVG["name"]:
        return f"{what} {takes} no strategy, as nothing is trained; remove it"
    return _of_evaluation(settings)


def _of_evaluation(settings: RunSettings) -> str | None:
    """Say what an evaluation lacks."""
    asked = settings.evaluation
    if asked is None:
        return "statistics start from nothing; remove [start]" if settings.start else None
    if settings.start is None:
        return "an evaluation needs [start]: name the model to evaluate"
    if not asked.metrics and asked.loss_bound is None:
        return "an evaluation needs metrics, or a loss_bound"
    if len(set(asked.metrics)) < len(asked.metrics) or any(
        name.partition(" ")[0] in {"loss", "count"} for name in asked.metrics
    ):
        return "the metrics of an evaluation stand there once each; for the loss, give loss_bound"
    return None


def _of_vote(settings: RunSettings) -> str | None:
    """Say why there is nothing to vote on."""
    if settings.vote and (settings.training is None or settings.training.averaging):
        return "a vote is on the last round's model: it needs [training], and no averaging"
    return None


def _of_masks(settings: RunSettings) -> str | None:
    """Say why masks cannot keep what the run asks of them."""
    colluding = colluding_sites(settings)
    if settings.encryption.collusion_resistant and settings.cohort.minimum < colluding + 2:
        return (
            f"of the minimum cohort of {settings.cohort.minimum}, {colluding} may collude and two must not, so that "
            f"nobody knows all but one: set minimum = {colluding + 2} in [cohort]; or allow for fewer with "
            "colluding_sites in [privacy]; or do without masks, collusion_resistant = false in [encryption]"
        )
    return None


def _of_norm(settings: RunSettings) -> str | None:
    """Say why the length of updates cannot be bounded as a run asks."""
    if settings.encryption.update_norm is None:
        return None
    if settings.training is None:
        return "update_norm is of a run with [training]; remove it"
    if not settings.encryption.collusion_resistant:
        return "proofs of update_norm hide behind the secrets of masks; set collusion_resistant = true in [encryption]"
    if settings.shares_noise:
        return 'a share of the noise comes after an update is cut to update_norm; remove one, or noise = "shared"'
    return None


def _of_noise(settings: RunSettings) -> str | None:
    """Say why the noise of a run cannot be shared as it asks."""
    privacy, training = settings.privacy, settings.training
    wrong = None
    if not settings.shares_noise:
        if privacy.colluding_sites is not None and not settings.encryption.collusion_resistant:
            wrong = "colluding_sites is about masks; remove it, or collusion_resistant = false"
    elif training is None:
        what = "statistics have" if settings.statistics else "an evaluation has"
        wrong = f'{what} local noise; remove noise = "shared"'
    elif not settings.encryption.collusion_resistant:
        wrong = (
            'with noise = "shared" an update by itself has too little noise for anybody to read; '
            "set collusion_resistant = true in [encryption]"
        )
    elif training.steps_per_round != 1:
        wrong = 'noise = "shared" is added once a round; set steps_per_round = 1, and more rounds'
    elif privacy.noise_multiplier == 0:
        wrong = 'noise_multiplier = 0 leaves no noise to share; give more, or remove noise = "shared"'
    elif honest_sites(settings) < 1:
        wrong = (
            f"colluding_sites = {privacy.colluding_sites} leaves nobody of a minimum cohort of "
            f"{settings.cohort.minimum} to add noise; give fewer"
        )
    return wrong
