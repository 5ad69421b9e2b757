"""`python -m simulations.planning FOLDER`: an agent with records that were made up, which writes how long it trains.

The rest is the agent that ships. Only `cloister plan` starts it.
"""

from __future__ import annotations

import logging
import sys
import time
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING

from typing_extensions import override

from client.agent import attend_site
from client.settings import read_site
from client.work.training import Study
from simulations.engine.stored_site import StoredSite
from simulations.planning import TRAINING
from strategies.algorithm import PLAIN

if TYPE_CHECKING:
    from client.context import SiteContext
    from client.dpsgd.kept_steps import StepsFile
    from privacy.codec.update import Model, Update
    from privacy.noise.randomness import Randomness
    from privacy.run.manifest import Manifest
    from strategies.algorithm import LocalSolver


class TimedStudy(Study):
    """A task at a site that writes how long it trains."""

    def __init__(self, name: str, site: SiteContext) -> None:
        super().__init__(name, site)
        self._log = site.place.folder / TRAINING

    @override
    def release(self, manifest: Manifest, number: int, model: Model, randomness: Randomness,
                solver: LocalSolver = PLAIN, *, file: StepsFile | None = None) -> Update:  # fmt: skip
        started = time.process_time()
        update = super().release(manifest, number, model, randomness, solver, file=file)
        with self._log.open("a", encoding="utf-8") as out:
            out.write(f"{number} {time.process_time() - started:.6f}\n")
        return update


class PlannedSite(StoredSite):
    """A site whose records were made up, and whose training is timed."""

    @override
    def study(self, task: str) -> Study:
        if task not in self._studies:
            self._studies[task] = TimedStudy(task, self)
        return self._studies[task]


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    attend_site(read_site(Path(sys.argv[1])), Event(), kind=PlannedSite)
