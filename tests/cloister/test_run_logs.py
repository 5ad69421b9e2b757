"""A simulation's rounds in logs, each by a flag: CSV, JSON lines, TensorBoard and MLflow."""

from __future__ import annotations

import csv
import json
import sys
from typing import TYPE_CHECKING

import pytest

from cloister import CloisterError, simulate
from tests.simulations.study.test_simulate import INPUTS, PLAIN, TARGETS, Sign

if TYPE_CHECKING:
    from pathlib import Path

    from cloister import Result
    from tests.cloister.in_process import Run


def _simulate(**log: Path | str) -> Result:
    return simulate(Sign, (INPUTS, TARGETS), PLAIN, sites=4, engine="vectorised", measure_every=2, log=log)


def test_files_hold_every_round_of_every_run(tmp_path: Path) -> None:
    table, lines = tmp_path / "logs" / "rounds.csv", tmp_path / "rounds.jsonl"
    results = [_simulate(csv=table, jsonl=str(lines)) for _ in range(2)]
    with table.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    entries = [json.loads(line) for line in lines.read_text(encoding="utf-8").splitlines()]
    assert [row["round"] for row in rows] == ["1", "2", "3"] * 2
    assert len({row["run"] for row in rows}) == 2
    assert [row["run"] for row in rows] == [entry["run"] for entry in entries]
    assert [row["accuracy"] for row in rows[:2]] == ["", str(results[0].rows[1]["accuracy"])]  # round 1 is not measured
    assert float(rows[-1]["loss"]) == entries[-1]["loss"] == results[1].metrics["loss"]
    assert entries[0]["epsilon"] is None  # without noise


def test_a_line_that_was_cut_short_damages_none_of_the_next(tmp_path: Path) -> None:
    table, lines = tmp_path / "rounds.csv", tmp_path / "rounds.jsonl"
    table.write_text("run,round,sites\na,1", encoding="utf-8")
    lines.write_text('{"run": "a", "round": 1}\n{"run": "a", "ro', encoding="utf-8")
    _simulate(csv=table, jsonl=lines)
    with table.open(encoding="utf-8", newline="") as file:
        assert [row["round"] for row in csv.DictReader(file)] == ["1", "1", "2", "3"]
    assert [json.loads(line)["round"] for line in lines.read_text(encoding="utf-8").splitlines()[2:]] == [1, 2, 3]


@pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")  # mlflow's tables
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_tensorboard_and_mlflow_have_the_run(tmp_path: Path) -> None:
    pytest.importorskip("mlflow", reason="the extra tracking is not installed")
    from mlflow.tracking import MlflowClient  # noqa: PLC0415 - an extra
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # noqa: PLC0415

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    result = _simulate(tensorboard=tmp_path / "board", mlflow=uri)
    (folder,) = (tmp_path / "board").iterdir()
    events = EventAccumulator(str(folder))
    events.Reload()
    assert [event.step for event in events.Scalars("sites")] == [1, 2, 3]
    assert events.Scalars("accuracy")[-1].value == pytest.approx(result.metrics["accuracy"])
    client = MlflowClient(tracking_uri=uri)
    found = client.get_experiment_by_name("cloister")
    assert found is not None
    (run,) = client.search_runs([found.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params["training.learning_rate"] == "0.5"
    assert run.data.metrics["accuracy"] == pytest.approx(result.metrics["accuracy"])


@pytest.mark.parametrize(
    ("log", "text"),
    [
        ({"cvs": "a"}, "did you mean `csv`"),
        ({"mlflow": "runs"}, "is neither"),
        ({"csv": "notes.csv"}, "no log of rounds"),
        ({"jsonl": "notes.csv"}, "no log of rounds"),
        ({"jsonl": "notes.csv/rounds"}, "cannot be written"),
        ({"csv": "cut.csv"}, "no log of rounds"),
    ],
)
def test_what_is_no_log_is_refused_before_the_first_round(
    log: dict[str, str], text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.csv").write_text("patient,age\n1,2\n", encoding="utf-8")
    (tmp_path / "cut.csv").write_text('run,round,problems\na,1,"cut in a', encoding="utf-8")
    with pytest.raises(CloisterError, match=text):
        _simulate(**log)
    assert (tmp_path / "notes.csv").read_text(encoding="utf-8") == "patient,age\n1,2\n"


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transport.tracking.event_files", None)
    with pytest.raises(CloisterError, match=r"pip install 'cloister\[tracking\]'"):
        _simulate(tensorboard=tmp_path)


def test_made_up_hospitals_have_no_such_log(tmp_path: Path, cloister: Run) -> None:
    refused = cloister("simulate", "--log-csv", tmp_path / "rounds.csv")
    assert refused.returncode == 1
    assert "--records" in refused.stderr
