"""What the sites of a schedule do instead of training: send numbers that nobody else sends, and have that counted."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256
from typing import TYPE_CHECKING, cast

import numpy as np
from typing_extensions import override

from client.site import Site
from privacy.codec.update import Layout, Model, Update

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from client.settings import SiteFolder
    from client.work.work import Work
    from privacy.codec.header import UpdateHeader
    from privacy.noise.randomness import Randomness
    from privacy.run.manifest import Manifest
    from privacy.run.settings import RunSettings
    from simulations.schedules.watch import Watch

LAYOUT = Layout((("weights", (8,)),))
START = Model(np.zeros(LAYOUT.size, dtype=np.float32), LAYOUT)


def numbers(site: str, number: int, count: int) -> NDArray[np.float32]:
    """Return the update `(8,)` of a site's training in a round, the `count`-th time. The first value keeps the range.

    >>> float(numbers("north", 1, 1)[0])
    0.5
    """
    digest = sha256(f"{site} {number} {count}".encode()).digest()
    values = np.frombuffer(digest, dtype="<u4")[: LAYOUT.size] / 2**32 - 0.5
    values[0] = 0.5
    return values.astype(np.float32)


class Counting:
    """Trains nothing, and tells the watch whenever it is asked to."""

    def __init__(self, site: str, watch: Watch) -> None:
        self._site, self._watch = site, watch

    def count(self) -> int:
        """Return that there are records."""
        return 10

    def layout(self, settings: RunSettings) -> Layout:
        """Return eight parameters."""
        del settings
        return LAYOUT

    def start(self, settings: RunSettings) -> Model:
        """Return zeros."""
        del settings
        return replace(START, vector=START.vector.copy())

    def check_records(self, settings: RunSettings) -> None:
        """Find nothing wrong."""

    def check_memory(self, manifest: Manifest) -> None:
        """Find enough."""

    def files(self, settings: RunSettings, layout: Layout) -> dict[Path, int]:
        """Write no files."""
        del settings, layout
        return {}

    def release(self, manifest: Manifest, number: int, model: Model, randomness: Randomness) -> Update:
        """Return the numbers of this site and round."""
        del manifest, model, randomness
        return Update(self._watch.trains(self._site, number))

    def opened(self, manifest: Manifest, run: str, model: Model, contributors: Collection[str]) -> None:
        """Have the watch check the model and the sum that led to it."""
        del manifest, run
        with self._watch.noting():
            self._watch.opens(self._site, model, cast("Mapping[str, UpdateHeader]", contributors))

    def measure(self, settings: RunSettings, model: Model) -> tuple[int, dict[str, float]]:
        """Measure nothing."""
        del settings, model
        return 0, {}


class CountingSite(Site):
    """A site as it is, but for its records."""

    def __init__(self, place: SiteFolder, watch: Watch) -> None:
        super().__init__(place)
        self._counting = Counting(self.name, watch)

    @override
    def work(self, settings: RunSettings) -> Work:
        """Return the work that is counted."""
        del settings
        return self._counting
