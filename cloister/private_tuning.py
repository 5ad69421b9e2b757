"""Plan a search on private records: draw runs from a space, and say what choosing the best of them costs.

Papernot and Steinke (2022, arXiv 2110.03620) ask for three things, which are kept here: the number of runs is drawn at
random and is told to nobody else, also not by the name of a run; each run's settings are drawn by themselves, so that
no run learns from another, and none is ended early; and ε is that of the dearest run that might have been drawn.
"""

from __future__ import annotations

import itertools
import math
import random
import secrets
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from privacy.accounting.accounting import epsilon
from privacy.accounting.selection import chosen
from privacy.errors import ConfigError
from privacy.run.new_manifest import make_manifest
from privacy.storage import write_atomically

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from privacy.accounting.accounting import Mechanism

_TRIES = 1000  # to draw settings that fit each other
_MOST = 200  # combinations of settings on which ε depends


class RandomDraws:
    """Draws from a space with the operating system's randomness, each value by itself."""

    def __init__(self) -> None:
        self._draw = random.SystemRandom()

    def suggest_float(self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
                      ) -> float:  # fmt: skip
        """Draw from a range; with `log`, every factor is as likely."""
        del name
        if step:
            return low + step * self._draw.randrange(math.floor((high - low) / step + 1e-9) + 1)
        drawn = math.exp(self._draw.uniform(math.log(low), math.log(high))) if log else self._draw.uniform(low, high)
        return min(max(drawn, low), high)

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        """Draw from a range of whole numbers."""
        if log:
            return round(self.suggest_float(name, low, high, log=True))
        return self._draw.randrange(low, high + 1, step)

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:  # noqa: ANN401 - one of the choices
        """Draw one of the choices."""
        del name
        return self._draw.choice(choices)

    def repetitions(self, mean: float) -> int:
        """Draw a number of runs with this mean, from a geometric distribution."""
        count = 1
        while self._draw.random() >= 1 / mean:
            count += 1
        return count


def plan_private(run: Path, space: Path | None, mean: float) -> dict[str, Any]:
    """Return what a private search costs, and draw nothing.

    Args:
        run: a complete run.toml, with the consortium's sites.
        space: a file with `[space]`; None for the usual one.
        mean: of the number of runs.

    Raises:
        CloisterError: if run or space do not fit, or settings on which ε depends are ranges.
    """
    return _Search(run, space).cost(mean)


def draw_private(run: Path, space: Path | None, mean: float, folder: Path) -> list[Path]:
    """Draw a number of runs and each one's settings; write them to a folder, ready to sign; return their paths.

    Raises:
        CloisterError: as `plan_private` does, or if the folder has runs already.
    """
    search, draw = _Search(run, space), RandomDraws()
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.glob("run-*.toml")):
        msg = f"{folder} has runs already; to draw again until they please would cost more; name another folder"
        raise ConfigError(msg)
    paths = []
    for number in range(1, draw.repetitions(mean) + 1):
        paths.append(folder / f"run-{number:03}.toml")
        write_atomically(paths[-1], search.drawn(draw).encode())
    return paths


class _Search:
    """A run, and the space from which its settings are drawn."""

    def __init__(self, run: Path, space: Path | None) -> None:
        from client.task.installed import find_for_run  # noqa: PLC0415 - loads torch
        from privacy.config import read_toml  # noqa: PLC0415
        from privacy.run.settings import RunSettings  # noqa: PLC0415
        from simulations.tuning.space import read_space, settings_map, usual  # noqa: PLC0415
        from strategies.registry import completed  # noqa: PLC0415

        settings = completed(read_toml(run, RunSettings))
        if settings.training is None:
            msg = f"{run}: a search is for a run with [training]"
            raise ConfigError(msg)
        find_for_run(run, settings.task)
        self.settings, self.base = settings, settings_map(settings)
        self.space = usual(self.base, charged=False) if space is None else read_space(space, self.base)

    def cost(self, mean: float) -> dict[str, Any]:
        """Return ε of one run, of the choice, and of as many runs as are drawn on average."""
        charged, delta = self.space.charged, self.settings.privacy.delta
        combinations = list(itertools.product(*charged.values()))
        if len(combinations) > _MOST:
            msg = (
                f"the space has {len(combinations)} combinations of settings on which ε depends; leave at most {_MOST}"
            )
            raise ConfigError(msg)
        runs = [self._cost(dict(zip(charged, values, strict=True))) for values in combinations]
        dearest = max(runs, key=lambda run: epsilon([run], delta))
        one = epsilon([dearest], delta)
        if math.isinf(one):
            msg = "a private search needs noise in every run; set epsilon in [privacy]"
            raise ConfigError(msg)
        number = math.ceil(mean)
        return {
            "mean_runs": mean,
            "delta": delta,
            "epsilon_of_one": one,
            "epsilon_of_choice": chosen([[run] for run in runs], delta, mean),
            "epsilon_of_all": epsilon([dearest] * number, delta),
        }

    def drawn(self, draw: RandomDraws) -> str:
        """Draw a run's settings; return its run.toml. Its name does not tell how many runs there are."""
        from simulations.study.run_settings import as_toml  # noqa: PLC0415
        from simulations.tuning.space import applied  # noqa: PLC0415

        last: object = ""
        for _ in range(_TRIES):  # to draw until it fits is to draw from what fits
            try:
                run = applied(self.base, self.space.draw(draw, self.base))
                settings = run.completed(run.task or self.settings.task, self.settings.cohort.sizes)
            except ConfigError as error:
                last = error
                continue
            return as_toml(replace(settings, name=f"{settings.name[:31]}-{secrets.token_hex(4)}"))
        msg = f"of {_TRIES} draws from the space none fits: {last}; change the space"
        raise ConfigError(msg)

    def _cost(self, values: dict[str, Any]) -> Mechanism:
        from simulations.tuning.space import applied  # noqa: PLC0415

        settings = applied(self.base, values).completed(self.settings.task, self.settings.cohort.sizes)
        return make_manifest(settings, roster_version=1).run_cost
