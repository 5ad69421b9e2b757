"""Play trials: in this process, or in several that are forked from it, so that they share its records.

Messages between the processes are JSON. One whose parent was killed ends at its next message.
"""

from __future__ import annotations

import gc
import json
import math
import os
from contextlib import closing, suppress
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import wait
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch

from privacy.errors import CloisterError, RunError
from simulations.study.runner import play, prepare
from simulations.tuning.space import applied

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from multiprocessing.connection import Connection
    from typing import Self

    from simulations.pools import Division, Pool
    from simulations.tuning.space import Space, Value
    from simulations.tuning.trials import Trials


@dataclass(frozen=True)
class Objective:
    """What every trial is measured on, and how it is played."""

    task: str  # its name
    base: Mapping[str, Any]
    records: Division
    test: Pool | Division
    metric: str
    options: Mapping[str, Any]
    public: Path | None = None  # the folder with the model from which each trial starts

    def play(self, values: Mapping[str, Value], report: Callable[[int, float], bool]) -> dict[str, Any]:
        """Play a trial; `report` takes a round and the metric, and says whether to go on.

        Returns:
            The metric after the last round, None if it is no number or the run failed; why it did; the other figures.

        Raises:
            CloisterError: if the values do not fit.
        """
        run = applied(self.base, {key: value for key, value in values.items() if key != "task"})
        with TemporaryDirectory(prefix="cloister-") as folder:
            study = prepare(
                str(values.get("task", self.task)), self.records, run, test=self.test,
                folder=Path(folder, "federation"), public=self.public, **self.options,
            )  # fmt: skip
            row: dict[str, Any] = {"round": 0, "epsilon": 0.0, "bytes": 0}
            value, pruned, why = math.nan, False, ""
            try:
                with closing(play(study)) as rounds:  # type: ignore[type-var]  # a generator
                    for _, row in rounds:
                        if self.metric not in row:
                            continue
                        value = float(row[self.metric])
                        if row["round"] < study.simulation.settings.rounds and not report(row["round"], value):
                            pruned = True
                            break
            except CloisterError as error:
                value, why = math.nan, str(error)
        mechanism, charged = study.manifest.round_cost, row["round"] + bool(why)  # the round that failed is, too
        figures = {
            "rounds": row["round"], "epsilon": row["epsilon"] if math.isfinite(row["epsilon"]) else None,
            "bytes": row["bytes"], "sigma": mechanism.noise_multiplier, "sample_rate": mechanism.sample_rate,
            "steps": mechanism.steps * charged, "discrete": mechanism.discrete,
            **{name: row[name] for name in ("loss",) if name in row and math.isfinite(row[name])},
        }  # fmt: skip
        return {"value": value if math.isfinite(value) else None, "pruned": pruned, "figures": figures, "why": why}


class ThisProcess:
    """Plays trials in this process."""

    def __init__(self, objective: Objective) -> None:
        self._objective = objective

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Do nothing."""

    def search(self, space: Space, trials: Trials, left: int, ended: Callable[[], None]) -> None:
        """Play so many trials; call `ended` after each."""
        for _ in range(left):
            trial, values = trials.ask(space, self._objective.base)

            def report(step: int, value: float, trial: Any = trial) -> bool:  # noqa: ANN401 - Optuna's
                return reported(trial, step, value)

            _tell(trials, trial, _played(self._objective, values, report))
            ended()


def _played(objective: Objective, values: Mapping[str, Value], report: Callable[[int, float], bool]) -> dict[str, Any]:
    """Play a trial; one that fails says why, and others go on."""
    try:
        return objective.play(values, report)
    except CloisterError as error:
        return {"value": None, "pruned": False, "figures": {}, "why": str(error)}


def reported(trial: Any, step: int, value: float) -> bool:  # noqa: ANN401 - Optuna's Trial
    """Note a round of a trial; return whether it goes on."""
    if not math.isfinite(value):
        return False
    trial.report(value, step)
    return not trial.should_prune()


def _tell(trials: Trials, trial: Any, answer: Mapping[str, Any]) -> None:  # noqa: ANN401 - Optuna's Trial
    why = answer["why"] or ("" if answer["value"] is not None else "the metric is no number: training diverged")
    trials.tell(trial, answer["value"], answer["figures"], why=why, pruned=answer["pruned"])


class ManyProcesses:
    """Processes that play trials. A context manager: they end with it.

    They start before the trials' database is opened, which processes cannot share.
    """

    def __init__(self, objective: Objective, count: int) -> None:
        self._objective = objective
        self._lines: list[Connection] = []
        self._processes = []
        forked = get_context("fork")
        for _ in range(count):
            here, there = forked.Pipe()
            process = forked.Process(target=self._work, args=(there, [*self._lines, here]))
            process.start()
            there.close()
            self._lines.append(here)
            self._processes.append(process)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for line in self._lines:
            line.close()
        for process in self._processes:
            process.terminate()
            process.join()

    def search(self, space: Space, trials: Trials, left: int, ended: Callable[[], None]) -> None:
        """Play so many trials; call `ended` after each.

        Raises:
            RunError: if a process is lost.
        """
        going: dict[Any, Any] = {}  # trials, by the lines to the processes that play them
        idle = list(self._lines)
        while left or going:
            while idle and left:
                line, left = idle.pop(), left - 1
                going[line], values = trials.ask(space, self._objective.base)
                _send(line, values)
            for ready in wait(list(going)):
                answering: Any = ready  # it is one of the lines
                trial, message = going[answering], _receive(answering)
                if "step" in message:
                    _send(answering, reported(trial, message["step"], message["value"]))
                    continue
                _tell(trials, trial, message)
                ended()
                idle.append(answering)
                del going[answering]

    def _work(self, line: Connection, others: list[Connection]) -> None:
        """Play trials until the other end is closed; the process's main function."""
        gc.freeze()  # the parent's garbage is not freed here: see `PoolGrid`
        torch.set_num_threads(1)
        os.environ["OMP_NUM_THREADS"] = "1"
        for other in others:
            other.close()

        def report(step: int, value: float) -> bool:
            _send(line, {"step": step, "value": value})
            return bool(json.loads(line.recv_bytes()))

        with suppress(EOFError, BrokenPipeError, ConnectionResetError, KeyboardInterrupt):
            while True:
                values = json.loads(line.recv_bytes())
                _send(line, _played(self._objective, values, report))


def _send(line: Connection, message: Any) -> None:  # noqa: ANN401 - JSON
    line.send_bytes(json.dumps(message).encode())


def _receive(line: Connection) -> Any:  # noqa: ANN401 - JSON
    try:
        return json.loads(line.recv_bytes())
    except (EOFError, OSError) as error:
        msg = "a process of the search has ended; is there too little memory? Run the same command again, with fewer"
        raise RunError(msg) from error
