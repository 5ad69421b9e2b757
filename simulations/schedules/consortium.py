"""The consortium that schedules are played with: real keys, made once, and folders that are new in every schedule."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from math import inf
from shutil import copytree
from typing import TYPE_CHECKING

from client.round.key_epochs import accept_letter, accept_pairs, lead_epoch
from client.settings import read_site
from client.site import Site
from privacy.run.settings import Cohort, Encryption, Privacy, RunSettings, Training
from simulations.engine.federation import Federation, SiteTerms
from simulations.schedules.clock import virtual_time

if TYPE_CHECKING:
    from pathlib import Path

SITES = ("north", "south", "east", "west", "centre")
SECONDS = 8.0  # of virtual time: a round's deadline
TASK = "simulations.schedules.work:Counting"


@dataclass(frozen=True)
class Shape:
    """A run's form."""

    sites: int
    minimum: int
    rounds: int
    masked: bool

    def settings(self) -> RunSettings:
        """Return the settings of a run without noise, for which every site counts the same."""
        return RunSettings(
            name="schedule",
            task=TASK,
            rounds=self.rounds,
            training=Training(steps_per_round=1, sample_rate=1.0, learning_rate=0.1),
            privacy=Privacy(max_grad_norm=1.0, noise_multiplier=0.0),
            encryption=Encryption(update_bound=1.0, collusion_resistant=self.masked),
            cohort=Cohort(
                sizes=dict.fromkeys(SITES[: self.sites], 10), minimum=self.minimum, round_deadline_seconds=SECONDS
            ),
            seed=1,
        )


class Consortium:
    """Consortia of any size below one folder, each made when it is first needed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._made, self._signed, self._files = cache(self._make), cache(self._sign), cache(_read)

    def begin(self, shape: Shape, *, keys: bool) -> Federation:
        """Return a federation in which nothing has happened yet.

        Args:
            shape: the run that is signed.
            keys: whether the sites have the keys of a first epoch.
        """
        self._made(shape.sites)
        place = self._place(shape.sites, keys=keys)
        now = place.with_name(f"{place.name}-now")
        _restore(now, self._files(place))
        federation = Federation(now, SITES[: shape.sites])
        federation.manifest.write_bytes(self._signed(shape))
        return federation

    def _place(self, sites: int, *, keys: bool) -> Path:
        return self._folder / f"{sites}-{'keys' if keys else 'new'}"

    def _make(self, sites: int) -> None:
        with virtual_time(sites):
            self._found(sites)

    def _found(self, sites: int) -> None:
        federation = Federation.create(self._place(sites, keys=False), SITES[:sites])
        terms = SiteTerms(
            tasks=(TASK,), epsilon=inf, maximum_epsilon=inf, minimum_noise_multiplier=0.0, minimum_cohort=2,
            collusion_resistant=False, device="cpu",
        )  # fmt: skip
        for site in federation.sites:
            federation.write_settings(site, "localhost:1", terms)
        place = self._place(sites, keys=True)
        copytree(federation.folder, place)
        _share_keys([Site(read_site(place / site)) for site in federation.sites])

    def _sign(self, shape: Shape) -> bytes:
        federation = Federation(self._place(shape.sites, keys=False), SITES[: shape.sites])
        with virtual_time(shape.sites):
            return federation.sign(shape.settings()).read_bytes()


def _read(folder: Path) -> dict[str, bytes]:
    """Return the files below a folder, by their paths in it, but for the coordinator's."""
    paths = (path for path in folder.rglob("*") if path.is_file() and "coordinator" not in path.parts)
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def _restore(folder: Path, files: dict[str, bytes]) -> None:
    """Have these files and their folders, and no others, below a folder: an operation is a place for a fault."""
    missing, top = dict(files), len(f"{folder}{os.sep}")
    for place, _, names in os.walk(folder, topdown=False):  # with strings, for many files: faster than Path
        below = f"{place}{os.sep}"
        for path in [below + name for name in names]:
            content = files.get(path[top:])
            if content is None:
                os.unlink(path)  # noqa: PTH108
            elif content == _content(path):
                del missing[path[top:]]
        if not any(relative.startswith(below[top:]) for relative in files):
            os.rmdir(place)  # noqa: PTH106
    for relative, content in missing.items():
        (folder / relative).parent.mkdir(parents=True, exist_ok=True)
        (folder / relative).write_bytes(content)


def _content(path: str) -> bytes:
    with open(path, "rb", buffering=0) as file:  # noqa: PTH123
        return file.read()


def _share_keys(sites: list[Site]) -> None:
    """Make the keys of a first epoch, and the secrets of every two sites."""
    leader, *others = sites
    keys, letters = lead_epoch(leader, 1)
    for site in others:
        accept_letter(site, leader.name, letters[site.name])
    for site in sites:
        letters_to = {
            other.name: other.keyring.own_letters(keys).get(site.name) for other in sites if other is not site
        }
        accept_pairs(site, keys.fingerprint, {name: letter for name, letter in letters_to.items() if letter})
