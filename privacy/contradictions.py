"""What the settings of a run may not say together: in words, for whoever wrote them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from privacy.shared import honest_sites

if TYPE_CHECKING:
    from privacy.manifest import RunSettings


def contradiction(settings: RunSettings) -> str | None:
    """Say what contradicts what, if anything does."""
    return _of_purpose(settings) or _of_noise(settings)


def _of_purpose(settings: RunSettings) -> str | None:
    """Say what a run that trains, or one that gathers statistics, has too much or too little."""
    has_norm = settings.privacy.max_grad_norm is not None
    if (settings.training is None) == (settings.statistics is None):
        return "give either [training] or [statistics]"
    if settings.training:
        if settings.encryption.update_bound is None:
            return "a run with [training] needs update_bound in [encryption]"
        return None if has_norm else "a run with [training] needs max_grad_norm in [privacy]"
    if settings.rounds != 1:
        return "statistics take one round; set rounds = 1"
    if settings.encryption.update_bound or settings.encryption.profile or has_norm:
        return "statistics have their own range, profile and norm; remove update_bound, profile and max_grad_norm"
    return None


def _of_noise(settings: RunSettings) -> str | None:
    """Say why the noise of a run cannot be shared as it asks."""
    privacy, training = settings.privacy, settings.training
    wrong = None
    if not settings.shares_noise:
        if privacy.colluding_sites is not None:
            wrong = 'colluding_sites is about noise = "shared"; remove it'
    elif training is None:
        wrong = 'statistics have local noise; remove noise = "shared"'
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
