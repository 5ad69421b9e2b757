"""A poisoning member: real sites, the real protocol, and one update that is as harmful as the range allows.

The sites share the reference study's patients evenly. From a given round on, one site's update drives every parameter
away from what was learnt, as far as the codec's range allows. Encryption hides it, and it passes every check but the
vote.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib import resources
from math import inf
from typing import TYPE_CHECKING

import numpy as np
from typing_extensions import override

from client.data.site_records import InMemory
from client.flower import open_site
from client.site import Site
from client.work.training import Study
from privacy.codec.update import Update
from privacy.config import read_toml
from privacy.run.settings import Cohort, RunSettings
from server.settings import read_consortium, read_run
from simulations.engine.baselines import accuracy_together
from simulations.engine.federation import Federation, SiteTerms
from simulations.engine.inline import run_inline
from simulations.engine.results import read_events
from simulations.tasks.hospitals import diagnoses, write_patients
from strategies.algorithm import PLAIN

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

    from numpy.typing import NDArray

    from client.data.site_records import Records
    from client.dpsgd.kept_steps import StepsFile
    from privacy.codec.update import Model
    from privacy.noise.randomness import Randomness
    from privacy.run.manifest import Manifest
    from privacy.run.tables import Vote
    from strategies.algorithm import LocalSolver

LIAR, SINCE = "site-1", 5
"""The poisoning site, and the first round that it poisons."""

_TERMS = SiteTerms(
    tasks=("simulations.tasks.diagnosis:Diagnosis",),
    epsilon=inf,
    maximum_epsilon=inf,
    vote_epsilon=inf,
    disclose=(),
    device="cpu",
)
_MINIMUM = 3


@dataclass(frozen=True)
class Outcome:
    """The outcome of a run."""

    accuracy: float  # of the last model, on all sites' held-out records
    undone: tuple[int, ...]  # rounds
    excluded: dict[str, int]  # sites found to spoil rounds, and the round in which they were found


class Poisoned(Study):
    """A study whose updates undo what was learnt; flipped held-out labels make its votes support that."""

    _count = 0
    _learnt: NDArray[np.float32] | None = None  # the signs of the parameters to undo

    @override
    def release(
        self, manifest: Manifest, number: int, model: Model, randomness: Randomness, solver: LocalSolver = PLAIN, *,
        file: StepsFile | None = None,
    ) -> Update:  # fmt: skip
        self._count += 1
        if self._count < SINCE:
            return super().release(manifest, number, model, randomness, solver, file=file)
        if self._learnt is None:
            self._learnt = np.sign(model.vector)
        return Update(np.asarray(-manifest.packing.update_bound * self._learnt, np.float32))

    @property
    @override
    def held_out(self) -> Records:
        inputs, targets = super().held_out.whole()
        return InMemory(inputs, 1 - targets)


class Poisoner(Site):
    """A site that follows the protocol, but trains a `Poisoned` study."""

    @override
    def study(self, task: str) -> Study:
        if task not in self._studies:
            self._studies[task] = Poisoned(task, self)
        return self._studies[task]


def poisoned_run(folder: Path, sites: int, rounds: int, vote: Vote | None) -> Outcome:
    """Run the reference study over `sites` sites, one of which poisons it."""
    names = tuple(f"site-{number}" for number in range(1, sites + 1))
    federation = Federation.create(folder, names)
    malignant = diagnoses()
    for number, (name, path) in enumerate(federation.paths.items()):
        write_patients(path / _TERMS.file, np.arange(number, len(malignant), sites))
        federation.write_settings(name, "localhost:1", _TERMS)
    with resources.as_file(resources.files("simulations.tasks") / "diagnosis.toml") as file:
        settings = read_toml(file, RunSettings)
    size = len(malignant) * 4 // 5 // sites
    cohort = Cohort(dict.fromkeys(names, size), _MINIMUM, settings.cohort.round_deadline_seconds)
    federation.sign(replace(settings, rounds=rounds, vote=vote, cohort=cohort))
    run_inline(federation, {LIAR: Poisoner})
    return _outcome(federation)


def _outcome(federation: Federation) -> Outcome:
    events: list[dict[str, Any]] = [event for event in read_events(federation) if event["event"] == "round"]
    _, manifest, run, _ = read_run(federation.manifest, read_consortium(federation.server).roster())
    honest = open_site(next(path for name, path in federation.paths.items() if name != LIAR))
    model = honest.checkpoint(manifest, run).model
    return Outcome(
        accuracy_together(federation, manifest, model),
        tuple(event["round"] for event in events if event.get("undone")),
        {site: event["round"] for event in events for site in event.get("found", ())},
    )
