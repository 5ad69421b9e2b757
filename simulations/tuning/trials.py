"""The trials of a search, in an SQLite database: one process writes it, and may be killed at any time.

A trial counts once it has ended: complete, pruned, or failed, with a reason. One that was going on when the process
was killed has no reason; its values are tried again from the start, once, as the new trial names it from its beginning.
"""

from __future__ import annotations

import json
import logging
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from privacy.errors import ConfigError
from privacy.folder_locks import folder_alone

try:
    import optuna
except ImportError as error:
    missing = "a search needs Optuna; install it: pip install 'cloister[client,simulation]'"
    raise ConfigError(missing) from error

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from optuna.trial import FrozenTrial, Trial

    from simulations.tuning.space import Space, Value

PRUNERS = ("median", "hyperband", "none")
_NAME, _AGAIN, _IDENTITY, _WHY, _MEASURED = "tune", "again", "identity", "why", "measured"
_RUNNING, _FAILED = optuna.trial.TrialState.RUNNING, optuna.trial.TrialState.FAIL
_STARTS = 5  # trials, and rounds of each, before any is pruned


class Trials:
    """The trials in a folder. `opened` makes one."""

    def __init__(self, study: optuna.Study) -> None:
        self.study = study

    @classmethod
    @contextmanager
    def opened(
        cls, folder: Path, identity: Mapping[str, Any], *, larger_is_better: bool, pruner: str, rounds: int, seed: int
    ) -> Iterator[Trials]:
        """Open a folder's trials, and take up those that were interrupted.

        Args:
            folder: has the database, or will.
            identity: of what is searched; trials of anything else are not continued.
            larger_is_better: whether the metric's largest value is the best.
            pruner: one of `PRUNERS`.
            rounds: of a trial.
            seed: decides what the search draws.

        Raises:
            ConfigError: if the folder's trials are of another search.
            VaultError: if another process searches there.
        """
        folder.mkdir(parents=True, exist_ok=True)
        optuna.logging.set_verbosity(logging.WARNING)
        with folder_alone(folder), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # optuna calls some of its parts experimental, and SQLAlchemy's deprecated
            path = folder / "trials.db"
            storage = optuna.storages.RDBStorage(f"sqlite:///{path}", engine_kwargs={"connect_args": {"timeout": 60}})
            try:
                study = optuna.create_study(
                    storage=storage, study_name=_NAME, load_if_exists=True, pruner=_pruner(pruner, rounds),
                    direction="maximize" if larger_is_better else "minimize",
                )  # fmt: skip
                done = study.trials
                # A new seed: after a restart, the first draws would otherwise be the first trials again.
                study.sampler = optuna.samplers.TPESampler(seed=seed + len(done), constant_liar=True)
                text = json.dumps(identity, sort_keys=True, default=str)
                if study.user_attrs.setdefault(_IDENTITY, text) != text:
                    msg = (
                        f"{path} has trials of another search: its run, task, records, sites, space, metric or options "
                        "differ; name another folder, or remove this one"
                    )
                    raise ConfigError(msg)
                study.set_user_attr(_IDENTITY, text)
                trials = cls(study)
                trials._resume(done)
                yield trials
            finally:
                storage.engine.dispose()

    def _resume(self, done: list[FrozenTrial]) -> None:
        retried = {trial.user_attrs.get(_AGAIN) for trial in done}
        for trial in done:
            if trial.state == _RUNNING:  # its process was killed
                self.study.tell(trial.number, state=_FAILED)
            elif trial.state != _FAILED:
                continue
            if _WHY not in trial.user_attrs and trial.number not in retried:
                self.study.enqueue_trial(trial.params, user_attrs={_AGAIN: trial.number})

    def ask(self, space: Space, base: Mapping[str, Any]) -> tuple[Trial, dict[str, Value]]:
        """Begin a trial."""
        trial = self.study.ask()
        return trial, space.draw(trial, base)

    def tell(self, trial: Trial, value: float | None, figures: Mapping[str, Any], *, why: str = "", pruned: bool = False
             ) -> None:  # fmt: skip
        """End a trial: with a value; pruned; or, without a value, failed, and why."""
        trial.set_user_attr("figures", dict(figures))
        if value is None:
            trial.set_user_attr(_WHY, why or "it has no value")
            self.study.tell(trial, state=_FAILED)
        elif pruned:
            self.study.tell(trial, state=optuna.trial.TrialState.PRUNED)  # with its last value
        else:
            self.study.tell(trial, value)

    @property
    def ended(self) -> list[dict[str, Any]]:
        """A row for each trial that has ended, in the order in which they began."""
        return [
            {
                "trial": number, "state": trial.state.name.lower() if trial.state != _FAILED else "failed",
                "value": trial.value, "seconds": round(trial.duration.total_seconds(), 3) if trial.duration else None,
                "params": dict(trial.params), **trial.user_attrs.get("figures", {}),
                **({_WHY: trial.user_attrs[_WHY]} if _WHY in trial.user_attrs else {}),
            }
            for number, trial in enumerate(
                trial for trial in self.study.trials
                if trial.state.is_finished() and (trial.state != _FAILED or _WHY in trial.user_attrs)
            )
        ]  # fmt: skip

    @property
    def interrupted(self) -> list[dict[str, Value]]:
        """The settings of attempts that ended with their process; they may have read records."""
        return [
            dict(trial.params) for trial in self.study.trials if trial.state == _FAILED and _WHY not in trial.user_attrs
        ]

    def note_measured(self, cost: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Note, before it begins, that the best settings are measured in one more run; return the costs of all such."""
        costs: list[dict[str, Any]] = [*self.study.user_attrs.get(_MEASURED, []), dict(cost)]
        self.study.set_user_attr(_MEASURED, costs)
        return costs

    def importances(self) -> dict[str, float]:
        """Return how much each setting has decided, adding up to 1 (PED-ANOVA: Watanabe et al., 2023, 2304.10255)."""
        evaluator = optuna.importance.PedAnovaImportanceEvaluator()
        try:
            return optuna.importance.get_param_importances(self.study, evaluator=evaluator)
        except (ValueError, RuntimeError):  # too few trials, or all are equal
            return {}


def _pruner(name: str, rounds: int) -> optuna.pruners.BasePruner:
    """Return a pruner.

    Raises:
        ConfigError: if there is none of this name.
    """
    if name == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=_STARTS, n_warmup_steps=max(1, rounds // 4))
    if name == "hyperband":
        return optuna.pruners.HyperbandPruner(min_resource=max(1, rounds // 9), max_resource=rounds)
    if name == "none":
        return optuna.pruners.NopPruner()
    msg = f"{name!a} is no pruner; choose one of {', '.join(PRUNERS)}"
    raise ConfigError(msg)
