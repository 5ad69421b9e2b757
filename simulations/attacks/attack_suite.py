"""A consortium under attack: an idle study, a malicious server, and all of its attacks."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from math import inf
from typing import TYPE_CHECKING

import torch
from torch import nn
from typing_extensions import override

from privacy.run.plan import MOST_SEEDS
from privacy.run.settings import Cohort, Encryption, Privacy, RunSettings, Training
from simulations.attacks.backups import BACKUPS
from simulations.attacks.collusion import COLLUSION
from simulations.attacks.forged_sums import FORGED_SUMS
from simulations.attacks.malicious_server import SITES, MaliciousServer
from simulations.attacks.protocol_attacks import PROTOCOL_ATTACKS
from simulations.attacks.unmasking import UNMASKING
from simulations.engine.federation import Federation, SiteTerms
from simulations.tasks.idle import Idle

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import numpy as np

    from simulations.attacks.forged_sums import Lie

_ABSENT = tuple(f"site-{number}" for number in range(MOST_SEEDS + 1 - len(SITES)))
_MOST_ROUNDS = 100_000
_WIDTH = 112  # with two layers, slightly more parameters than fit one ciphertext


class TwoCiphertexts(Idle):
    """A model that takes two ciphertexts, so that they can be exchanged."""

    @override
    def model(self) -> nn.Module:
        """Make the untrained model."""
        return nn.Sequential(nn.Linear(1, _WIDTH), nn.Linear(_WIDTH, _WIDTH))


def settings(name: str, sites: tuple[str, ...], rounds: int = _MOST_ROUNDS, colluding: int = 0) -> RunSettings:
    """Return a run without training; with masks if it must tolerate colluding sites."""
    return RunSettings(
        name=name,
        task=f"{TwoCiphertexts.__module__}:{TwoCiphertexts.__name__}",
        rounds=rounds,
        training=Training(steps_per_round=0, sample_rate=0.1, learning_rate=1.0),
        privacy=Privacy(max_grad_norm=1.0, noise_multiplier=1.0, colluding_sites=colluding or None),
        encryption=Encryption(update_bound=1.0, collusion_resistant=colluding > 0),
        cohort=Cohort(sizes={site: 100 - number for number, site in enumerate(sites)}, minimum=2 + max(1, colluding)),
    )


_TERMS = SiteTerms(
    tasks=(settings("few", SITES).task,),
    epsilon=inf,
    maximum_epsilon=inf,
    collusion_resistant=False,
    disclose=(),
    device="cpu",
)


def make_federation(folder: Path, absent: tuple[str, ...] = ()) -> Federation:
    """Make a consortium of the sites, ready to take part, and of absent members that never answer."""
    federation = Federation.create(folder, SITES + absent, consortium="attacks")
    for site in SITES:
        (federation.paths[site] / _TERMS.file).write_text("0\n" * 20, encoding="utf-8")
        federation.write_settings(site, "localhost:1", _TERMS)
    return federation


def prepare_attacks(folder: Path, rng: np.random.Generator) -> MaliciousServer:
    """Make a consortium, and a server that has played one honest round of each of four runs.

    The sums of the first contain every contributor's seeds. The second has so many sites that the server expands the
    seeds to c1, which it can then change. The others have masks, against one colluding site and against two.
    """
    server = MaliciousServer(make_federation(folder, _ABSENT), rng)
    server.start(settings("few", SITES))
    server.start(settings("many", SITES + _ABSENT))
    server.start(settings("masked", SITES, colluding=1))
    server.start(settings("pair", SITES, colluding=2))
    return server


def _delivering(lie: Lie) -> Callable[[MaliciousServer], bool]:
    """Return an attack that delivers a forged sum of one round."""

    def attack(server: MaliciousServer) -> bool:
        run = server.pick_run()
        return server.deliver(run, lie(server.collect(run), run.honest, server.rng))

    return attack


ATTACKS: dict[str, Callable[[MaliciousServer], bool]] = {
    **{name: _delivering(lie) for name, lie in FORGED_SUMS.items()},
    **UNMASKING,
    **COLLUSION,
    **BACKUPS,
    **PROTOCOL_ATTACKS,
}
"""All attacks, by their name in the table: each makes one try, and returns whether every site refused."""


@contextmanager
def quiet_agents() -> Iterator[None]:
    """Hide the refusals that agents log, but not unexpected errors, and compute on one thread.

    Many tries run in one process per core: more threads would only wait for each other.
    """
    logger, threads = logging.getLogger("cloister.agent"), torch.get_num_threads()
    before = logger.level
    logger.setLevel(logging.ERROR)
    torch.set_num_threads(1)
    try:
        yield
    finally:
        logger.setLevel(before)
        torch.set_num_threads(threads)
