"""A search: it finds what is best, prunes, goes on after it was killed, and says what it would cost."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

import pytest

from cloister import CloisterError, Tuning, tune
from privacy.accounting.accounting import RDP, epsilon
from simulations.tuning import playing
from simulations.tuning.playing import reported
from simulations.tuning.space import Space
from tests.federations import await_condition
from tests.forked import Forked
from tests.simulations.study.test_simulate import INPUTS, PLAIN, TARGETS, Sign

pytest.importorskip("optuna", reason="the extra simulation is not installed")
from simulations.tuning.trials import Trials

if TYPE_CHECKING:
    from collections.abc import Mapping

SPACE: dict[str, Any] = {"training.learning_rate": {"low": 1e-4, "high": 1.0, "log": True}}


def search(folder: Path, **further: Any) -> Tuning:  # noqa: ANN401 - arguments of all kinds
    options: dict[str, Any] = {"space": SPACE, "processes": 2, "sites": 4, "engine": "vectorised"}
    return tune(Sign, (INPUTS, TARGETS), PLAIN, folder=folder, progress=False, **(options | further))


def half_a_search(folder: str, trials: str) -> None:
    """Search until half of the trials have ended, and wait to be killed, if that has not happened before."""
    tell, told, count = playing._tell, 0, int(trials)

    def tell_half(trials: Trials, trial: Any, answer: Mapping[str, Any]) -> None:  # noqa: ANN401 - Optuna's Trial
        nonlocal told
        tell(trials, trial, answer)
        told += 1
        if told == count // 2:
            Event().wait(120)

    playing._tell = tell_half
    search(Path(folder), trials=count)


def _is_stopped(pid: int | None) -> bool:
    return Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()[0] == "T"


def _states(folder: Path) -> Counter[str]:
    with suppress(sqlite3.OperationalError), sqlite3.connect(f"file:{folder}/trials.db?mode=ro", uri=True) as database:
        return Counter(state for (state,) in database.execute("select state from trials"))
    return Counter()


def _ended(states: Counter[str]) -> int:
    return states["COMPLETE"] + states["PRUNED"]


def _in_the_middle(states: Counter[str], count: int) -> bool:
    return _ended(states) >= count // 4 and states["RUNNING"] > 0


@pytest.mark.slow
@pytest.mark.xdist_group("processes")
@pytest.mark.parametrize("count", [12, pytest.param(50, marks=pytest.mark.soak)])
def test_a_search_that_was_killed_goes_on_with_every_trial_once(count: int, tmp_path: Path) -> None:
    process = Forked(tmp_path.with_suffix(".log"), half_a_search, str(tmp_path), str(count), env={})
    assert process.pid is not None
    deadline = time.monotonic() + 100
    while True:
        time.sleep(0.02)
        assert time.monotonic() < deadline
        if not _in_the_middle(_states(tmp_path), count):
            continue
        os.kill(process.pid, signal.SIGSTOP)
        await_condition(lambda: _is_stopped(process.pid))
        if _in_the_middle(before := _states(tmp_path), count):
            break
        os.kill(process.pid, signal.SIGCONT)
    process.kill()
    process.wait(10)
    assert before["RUNNING"] in {1, 2}
    assert _ended(before) < count

    tuned = search(tmp_path, trials=count)
    assert [row["trial"] for row in tuned.trials] == list(range(count))
    assert {row["state"] for row in tuned.trials} <= {"complete", "pruned"}
    after = _states(tmp_path)
    assert _ended(after) == count
    assert after["FAIL"] == before["RUNNING"]  # what was going on
    assert after["RUNNING"] == after["WAITING"] == 0
    params = Counter(json.dumps(row["params"]) for row in tuned.trials)
    assert max(params.values()) == 1  # none ran twice to its end
    again = search(tmp_path, trials=count)  # all is done
    assert [row["params"] for row in again.trials] == [row["params"] for row in tuned.trials]


def test_a_search_finds_the_better_settings_and_writes_them(tmp_path: Path) -> None:
    tuned = search(tmp_path / "trials", trials=12, processes=1)
    assert tuned.best["state"] == "complete"
    assert tuned.best_value == max(row["value"] for row in tuned.trials if row["state"] == "complete")
    assert tuned.best_params["training.learning_rate"] > 0.05
    assert tuned.result.metrics["accuracy"] > 0.6
    assert len(tuned.history) == 12
    folder = tuned.save(tmp_path / "best")
    assert {"run.toml", "trials.csv", "tuning.json", "tuning.svg", "report.html"} <= {
        file.name for file in folder.iterdir()
    }
    assert f"learning_rate = {tuned.best_params['training.learning_rate']!r}" in (folder / "run.toml").read_text()
    assert json.loads((folder / "tuning.json").read_text())["trials"] == 12
    others: tuple[dict[str, Any], ...] = (
        {"metric": "loss"}, {"sites": 5}, {"partition": "dirichlet:0.5"}, {"test": 0.3}, {"pruner": "none"},
    )  # fmt: skip
    for other in others:
        with pytest.raises(CloisterError, match="of another search: its run, task, records"):
            search(tmp_path / "trials", trials=12, processes=1, **other)


def test_a_trial_that_promises_little_ends_early(tmp_path: Path) -> None:
    space = Space({"rounds": [1, 2]})
    with Trials.opened(tmp_path, {}, larger_is_better=True, pruner="median", rounds=8, seed=0) as trials:
        for value in (0.5, 0.6, 0.7, 0.8, 0.9, 0.1):
            trial, _ = trials.ask(space, {})
            went_on = [reported(trial, step, value) for step in (1, 2, 3)]
            assert went_on == ([True] * 3 if value > 0.1 else [True, False, False])
            trials.tell(trial, value, {}, pruned=not all(went_on))
        assert [row["state"] for row in trials.ended] == ["complete"] * 5 + ["pruned"]
        with (
            pytest.raises(CloisterError, match="uses this folder"),
            Trials.opened(tmp_path, {}, larger_is_better=True, pruner="median", rounds=8, seed=0),
        ):
            pass


def test_a_search_with_noise_says_what_all_trials_cost() -> None:
    run = {"rounds": 2, "privacy": {"epsilon": 1.0, "max_grad_norm": 1.0}}
    space = SPACE | {"task": [f"{Sign.__module__}:Sign"], "training.sample_rate": [0.2, 0.4]}
    tuned = tune(Sign, (INPUTS, TARGETS), run, space=space, trials=3, sites=3, engine="vectorised", pruner="none")
    assert all(row["epsilon"] == pytest.approx(1.0, rel=0.05) for row in tuned.trials)
    assert 1.5 < tuned.epsilon < 4.5
    assert tuned.result.epsilon < tuned.epsilon


@pytest.mark.slow
@pytest.mark.xdist_group("processes")
def test_epsilon_counts_every_attempt_and_every_last_run(tmp_path: Path) -> None:
    killed = Forked(tmp_path.with_suffix(".log"), until_killed, str(tmp_path), env={})
    assert killed.wait(100) == -signal.SIGKILL, killed.log.read_text(encoding="utf-8")
    assert _states(tmp_path) == Counter(COMPLETE=1, RUNNING=1)
    tuned = _private(tmp_path, trials=3)
    cost = tuned.result._outcome.study.manifest.run_cost
    assert tuned.epsilon == pytest.approx(
        epsilon([cost] * 5, tuned.delta, accountant=RDP)
    )  # three, one cut off, the last
    again = _private(tmp_path, trials=3)
    assert again.epsilon == pytest.approx(epsilon([cost] * 6, tuned.delta, accountant=RDP))


def _private(folder: Path, trials: int) -> Tuning:
    run = {"rounds": 2, "privacy": {"epsilon": 1.0, "max_grad_norm": 1.0}}
    return tune(
        Sign, (INPUTS, TARGETS), run, space=SPACE, trials=trials, sites=3, engine="vectorised", pruner="none",
        folder=folder, progress=False,
    )  # fmt: skip


def until_killed(folder: str) -> None:
    """Search until a kill after the first round of the second trial."""
    rounds = 0

    def kill(trial: Any, step: int, value: float) -> bool:  # noqa: ANN401 - Optuna's
        nonlocal rounds
        rounds += 1
        if rounds == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return reported(trial, step, value)

    playing.reported = kill
    _private(Path(folder), trials=3)


def test_a_trial_that_fails_says_why_and_the_others_go_on() -> None:
    tuned = tune(
        Sign, (INPUTS, TARGETS), PLAIN, space={"privacy.clipping": ["flat", "per_layer"]}, trials=6, sites=4,
        engine="vectorised", pruner="none",
    )  # fmt: skip
    assert {row["params"]["privacy.clipping"]: row["state"] for row in tuned.trials} == {
        "flat": "complete", "per_layer": "failed",
    }  # fmt: skip
    assert all("cannot play this run" in row["why"] for row in tuned.trials if row["state"] == "failed")


@pytest.mark.parametrize(
    ("further", "text"),
    [
        ({"metric": "acuracy"}, "it measures loss, accuracy"),
        ({"pruner": "medium"}, "choose one of median"),
        ({"trials": 0}, "write 1 or more"),
        ({"space": {"training.learning_rate": [0.0]}}, "greater than 0"),
    ],
)
def test_what_is_wrong_is_said_before_the_first_trial(further: dict[str, Any], text: str, tmp_path: Path) -> None:
    with pytest.raises(CloisterError, match=text):
        search(tmp_path, **{"processes": 1, **further})
